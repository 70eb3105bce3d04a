package chubby

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/chubbygo/chubby/internal/wire"
)

// relayTime is how long a member gathers KeepAlives of its clients before it asks the cell leader, once for all of them.
// With a thousand clients that takes most of the calls, and of the leader's confirm rounds, away. A client counts its lease
// from its own sending, so the delay costs it this much of its lease and no safety.
const relayTime = 20 * time.Millisecond

// relay carries KeepAlives of dialled clients to the cell leader.
type relay struct {
	node *Node
	mu   struct {
		sync.Mutex
		gathered []*relayed // nil: nobody is about to send
	}
}

// relayed is one client's KeepAlive. answer and err are set before done is closed.
type relayed struct {
	k      wire.KeepAlive
	done   chan struct{}
	answer []byte
	err    error
}

// renew asks the cell leader, together with others who ask at about the same time.
func (r *relay) renew(ctx context.Context, k wire.KeepAlive) ([]byte, error) {
	own := &relayed{k: k, done: make(chan struct{})}
	r.mu.Lock()
	first := len(r.mu.gathered) == 0
	r.mu.gathered = append(r.mu.gathered, own)
	r.mu.Unlock()
	if first && !r.node.spawn(r.send) {
		r.take() // nobody sends any more
		return nil, r.node.stopCause()
	}
	select {
	case <-own.done:
		return own.answer, own.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrNoLeader, ctx.Err())
	}
}

func (r *relay) take() []*relayed {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.mu.gathered
	r.mu.gathered = nil
	return list
}

// send waits a moment, takes what has gathered, and asks.
func (r *relay) send() {
	t := time.NewTimer(relayTime)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.node.stopping:
	}
	list := r.take()
	ctx, cancel := context.WithTimeout(r.node.ctx, answerTime)
	defer cancel()
	sessions, holds, err := r.ask(ctx, list)
	for _, x := range list {
		if x.err = err; err == nil {
			n, m := len(x.k.Sessions), len(x.k.Holds)
			x.answer = append(append(make([]byte, 0, n+m), sessions[:n]...), holds[:m]...)
			sessions, holds = sessions[n:], holds[m:]
		}
		close(x.done)
	}
}

// ask gives the leader's answers for the sessions of all, and for their holds.
func (r *relay) ask(ctx context.Context, list []*relayed) (sessions, holds []byte, err error) {
	var all wire.KeepAlive
	for _, x := range list {
		all.Sessions = append(all.Sessions, x.k.Sessions...)
		all.Holds = append(all.Holds, x.k.Holds...)
	}
	for _, part := range wire.SplitKeepAlive(all) {
		answer, err := r.node.renew(ctx, &part)
		if err != nil {
			return nil, nil, err
		}
		if len(answer) != len(part.Sessions)+len(part.Holds) {
			return nil, nil, fmt.Errorf("%w: an answer to a KeepAlive", errBadMessage)
		}
		sessions = append(sessions, answer[:len(part.Sessions)]...)
		holds = append(holds, answer[len(part.Sessions):]...)
	}
	return sessions, holds, nil
}
