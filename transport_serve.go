package chubby

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// admit is the goroutine of an accepted connection: handshake and hello under a deadline, then the stream's reader.
func (t *transport) admit(raw net.Conn) {
	s, err := t.welcome(raw)
	<-t.pending
	if err != nil {
		t.drop(raw)
		t.c.Logger.Debug("stream refused", "from", raw.RemoteAddr().String(), "error", err)
		return
	}
	defer func() { <-s.place }()
	if s.guest != nil {
		defer s.guest.leave()
	}
	s.wg.Go(s.write)
	s.fail(s.serve())
	if s.purpose == wire.Control && t.c.Gone != nil && t.ctx.Err() == nil {
		t.c.Gone(s.peer.Server)
	}
	s.wg.Wait()
}

// welcome is the acceptor's side of handshake and hello. Nothing else is read before both are done. With a stream it
// returns a place in t.accepted.
func (t *transport) welcome(raw net.Conn) (*stream, error) {
	if err := raw.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	conn, cert, err := t.c.Security.handshake(raw, false)
	if err != nil {
		return nil, err
	}
	h, err := wire.ReadHello(conn)
	t.c.Gate.Wait()
	var version *wire.VersionError
	if errors.As(err, &version) {
		return nil, t.refuse(conn, err)
	}
	if err != nil {
		return nil, err // a stranger gets no answer
	}
	from := peerInfo{Server: raft.ServerID(h.Server), ID: h.ID, Level: h.Level, Names: certificateNames(cert), Node: fitsNode(cert), Addr: raw.RemoteAddr().String()}
	if err := t.judge(h, from); err != nil {
		return nil, t.refuse(conn, err)
	}
	place := t.accepted
	if h.Purpose == wire.Client {
		place = t.guests
	}
	select {
	case place <- struct{}{}:
	default:
		return nil, t.refuse(conn, fmt.Errorf("%w: %d streams are open", ErrOverloaded, cap(place)))
	}
	s := newStream(t.ctx, t, raw, conn, from, h.Purpose)
	s.place = place
	if h.Purpose == wire.Client {
		s.guest, err = t.c.Guest(s)
	}
	if err != nil {
		err = t.refuse(conn, err)
	} else if err = t.greetBack(conn, nil); err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if err != nil {
		<-place
		s.cancel()
		if s.guest != nil {
			s.guest.leave()
		}
		return nil, err
	}
	return s, nil
}

// judge decides whether a stream may be opened.
func (t *transport) judge(h *wire.Hello, from peerInfo) error {
	if !h.Purpose.Valid() {
		return fmt.Errorf("%w: %s", errNoHandler, h.Purpose)
	}
	if h.To != "" && h.To != string(t.c.Server) {
		return fmt.Errorf("%w: this is %s, not %s", ErrWrongCell, t.c.Server, h.To)
	}
	if h.Purpose == wire.Client {
		return t.judgeGuest(from)
	}
	if h.Purpose != wire.Found {
		cell := t.cell.Load()
		switch {
		case cell == nil:
			return errNotFounded
		case h.Cell != *cell:
			return fmt.Errorf("%w: %s belongs to cell %x, not %x", ErrWrongCell, t.c.Server, *cell, h.Cell)
		case h.To == "":
			return fmt.Errorf("%w: a %s stream must name whom it is for", ErrWrongCell, h.Purpose)
		}
	}
	if h.Purpose != wire.Found && from.ID == "" {
		return fmt.Errorf("%w: a %s stream is for nodes", ErrPermission, h.Purpose)
	}
	if err := t.proved(from); err != nil {
		return err
	}
	if t.c.Authorize != nil {
		return t.c.Authorize(from, h.Purpose)
	}
	return nil
}

// judgeGuest is judge for a dialled client. It names its cell in its first call, because it does not know its id.
func (t *transport) judgeGuest(from peerInfo) error {
	switch {
	case t.c.Guest == nil:
		return fmt.Errorf("%w: %s", errNoHandler, wire.Client)
	case t.cell.Load() == nil:
		return errNotFounded
	case from.Server != "" || from.ID != "":
		return fmt.Errorf("%w: a %s stream is not for nodes", ErrPermission, wire.Client)
	}
	return nil
}

// refuse tells the dialler why, and returns the reason.
func (t *transport) refuse(conn net.Conn, reason error) error {
	if err := t.greetBack(conn, reason); err != nil {
		return errors.Join(reason, err)
	}
	return reason
}

func (t *transport) greetBack(conn net.Conn, reason error) error {
	w := wire.Welcome{Server: string(t.c.Server), ID: t.c.ID, Level: t.c.Level}
	if reason != nil {
		w.Fault = faultOf(reason)
	}
	b, err := wire.AppendWelcome(nil, &w)
	if err != nil {
		return err
	}
	t.c.Gate.Wait()
	_, err = conn.Write(b)
	return err
}

// serve reads what the dialler sends until the stream breaks. It returns why.
func (s *stream) serve() error {
	switch s.purpose {
	case wire.Append:
		return s.serveAppends()
	case wire.Snapshot:
		return s.serveSnapshots()
	default:
		return s.serveCalls()
	}
}

// serveCalls reads control, rpc, found and client streams. It never waits for a handler or for raft, so that one slow
// request holds up no other.
func (s *stream) serveCalls() error {
	r := newRunning()
	for {
		h, payload, err := s.receive()
		if err != nil {
			return err
		}
		switch {
		case h.Type == wire.TypeCancel:
			r.cancel(h.ID)
		case h.Type == wire.TypeCall:
			if err := s.startCall(r, h.ID, payload); err != nil {
				return err
			}
		case s.purpose == wire.Control:
			rpc, err := s.decodeRPC(h.Type, payload)
			if err != nil {
				return err
			}
			if s.answerHeartbeat(h.ID, rpc) {
				continue
			}
			s.start(r, h.ID, &s.t.lanes.node, func(ctx context.Context) { s.relay(ctx, h.ID, rpc) })
		default:
			return fmt.Errorf("%w: type %d on a %s stream", wire.ErrFrame, h.Type, s.purpose)
		}
	}
}

// startCall runs the handler of a call.
func (s *stream) startCall(r *running, id uint64, payload []byte) error {
	if len(payload) == 0 {
		return fmt.Errorf("%w: call without a kind", wire.ErrFrame)
	}
	k := wire.Kind(payload[0])
	if k == 0 || k.Purpose() != s.purpose {
		return fmt.Errorf("%w: call of kind %d on a %s stream", wire.ErrFrame, k, s.purpose)
	}
	if s.guest != nil {
		s.start(r, id, s.t.lanes.of(k), func(ctx context.Context) {
			b, err := s.guest.call(ctx, k, payload[1:])
			s.answer(id, b, err)
		})
		return nil
	}
	h := s.t.handlers[k].Load()
	if h == nil {
		s.answer(id, nil, fmt.Errorf("%w: kind %d", errNoHandler, k))
		return nil
	}
	s.start(r, id, &s.t.lanes.node, func(ctx context.Context) {
		b, err := (*h)(ctx, s.peer, payload[1:])
		s.answer(id, b, err)
	})
	return nil
}

// start runs f in a goroutine of the stream, if there is a place for it in its lane.
func (s *stream) start(r *running, id uint64, l *lane, f func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(s.ctx)
	if !r.begin(id, l, cancel) {
		cancel()
		s.answer(id, nil, fmt.Errorf("%w: %d calls of this stream are running", ErrOverloaded, l.perStream))
		return
	}
	select {
	case l.places <- struct{}{}:
	default:
		r.end(id, l)
		s.answer(id, nil, fmt.Errorf("%w: %d calls are running", ErrOverloaded, cap(l.places)))
		return
	}
	s.wg.Go(func() {
		defer func() {
			<-l.places
			r.end(id, l)
		}()
		f(ctx)
	})
}

// partBytes is how much of an answer one frame to a client carries.
const partBytes = 1 << 20

// answer sends the outcome of a request. What is too large for one frame goes to a client in parts.
func (s *stream) answer(id uint64, payload []byte, err error) {
	if err == nil {
		for s.purpose == wire.Client && len(payload) > partBytes {
			part := payload[:partBytes]
			if _, err = s.send(nil, nil, wire.TypePart, id, func(b []byte) []byte { return append(b, part...) }); err != nil {
				return
			}
			payload = payload[partBytes:]
		}
		_, err = s.send(nil, nil, wire.TypeAnswer, id, func(b []byte) []byte { return append(b, payload...) })
		if !errors.Is(err, ErrTooLarge) {
			return // sent, or the stream is broken and with it the caller's wait
		}
	}
	f := faultOf(err)
	_, _ = s.send(nil, nil, wire.TypeError, id, func(b []byte) []byte { return wire.AppendFault(b, f) })
}
