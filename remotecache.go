package chubby

import (
	"context"
	"time"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/wire"
)

// memberLine is the stream to the member that leads the cell, for a Client that caches.
type memberLine struct{ conn *memberConn }

const linePause = 100 * time.Millisecond // before members are asked again who leads

// pollPatience is how long a poll may be without an answer before its member must be gone.
const pollPatience = pollTime + callTime

func (l memberLine) call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error) {
	patience := callTime
	if k == wire.KindCachePoll {
		patience = pollPatience
	}
	return l.conn.call(ctx, k, payload, patience)
}

// line looks for the member that says of itself that it leads.
func (r *remote) line(ctx context.Context) (leaderLine, error) {
	ctx, cancel := context.WithTimeout(ctx, cache.ClientLease)
	defer cancel()
	for {
		r.mu.Lock()
		changed := r.mu.changed
		conns := make([]*memberConn, 0, len(r.mu.live))
		for c := range r.mu.live {
			conns = append(conns, c)
		}
		r.mu.Unlock()
		if c := r.leader(ctx, conns); c != nil {
			return memberLine{c}, nil
		}
		t := time.NewTimer(linePause)
		select {
		case <-changed:
			t.Stop()
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		}
	}
}

// leader asks all of conns who leads, and returns the one that names itself.
func (r *remote) leader(ctx context.Context, conns []*memberConn) *memberConn {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	found := make(chan *memberConn, len(conns))
	asked := 0
	for _, c := range conns {
		if !r.spawn(func() {
			b, err := c.call(ctx, wire.KindTouch, nil, touchTime)
			if err == nil {
				if t, err := wire.ParseTouch(b); err == nil && t.InTouch && t.Leader == string(c.stream.peer.Server) {
					found <- c
					return
				}
			}
			found <- nil
		}) {
			return nil
		}
		asked++
	}
	for range asked {
		if c := <-found; c != nil {
			return c
		}
	}
	return nil
}
