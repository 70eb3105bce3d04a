package chubby

import (
	"context"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// handler answers calls of one kind. It runs in its own goroutine and may be called concurrently; payload and answer
// change owner. ctx ends when the caller gives up, and with the stream and the transport.
type handler func(ctx context.Context, from peerInfo, payload []byte) (answer []byte, err error)

// handle sets who answers calls of kind k. An error of h reaches the caller with its text, and with its sentinel for
// errors.Is if faultCodes has it.
func (t *transport) handle(k wire.Kind, h handler) { t.handlers[k].Store(&h) }

// call sends a request to a server and waits for the answer until ctx ends. It gives up at once when the server cannot be
// dialled. Errors that match errNotSent, ErrOverloaded or errNoHandler mean that no handler saw the request.
func (t *transport) call(ctx context.Context, to raft.ServerID, k wire.Kind, payload []byte) ([]byte, error) {
	p := k.Purpose()
	if p == wire.Found || p == wire.Client || k == 0 {
		return nil, fmt.Errorf("%w: kind %d needs callAddr", errNotSent, k)
	}
	s, err := t.peer(to, "").links[p].get(ctx, false)
	if err != nil {
		return nil, err
	}
	return s.call(ctx, k, payload)
}

// callAddr sends a request to whatever node listens at addr, on a stream of its own, and tells who answered. For kinds of
// purpose Found. Errors are those of call.
func (t *transport) callAddr(ctx context.Context, addr string, k wire.Kind, payload []byte) (peerInfo, []byte, error) {
	if k.Purpose() != wire.Found {
		return peerInfo{}, nil, fmt.Errorf("%w: kind %d needs call", errNotSent, k)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()
	s, err := t.open(ctx, addr, wire.Found, "")
	if err != nil {
		return peerInfo{}, nil, fmt.Errorf("%w: %s: %w", errNotSent, addr, err)
	}
	s.wg.Go(s.write)
	s.wg.Go(s.readAnswers)
	defer s.wg.Wait()
	defer s.fail(ErrClosed)
	b, err := s.call(ctx, k, payload)
	return s.peer, b, err
}

func (s *stream) call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error) {
	return s.roundTrip(ctx, wire.TypeCall, func(b []byte) []byte {
		return append(append(b, byte(k)), payload...)
	})
}
