package chubby

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// The way of a linearizable read:
//
//	Node.read          the caller's goroutine
//	  leadership.readIndex   on the cell leader: note the commit index, join a confirm round
//	  reader.index           elsewhere: one question to the leader for all who wait, which does the same there
//	fsm.at             wait until that index is applied here, take the root
//
// Everything acknowledged before the read began is at or below the index: acknowledgements follow Apply, and what is
// applied is committed. And the leader that gave the index led after the read began, so nobody else had acknowledged
// anything newer by then.

// read returns a root that has everything acknowledged, by any node, before the call.
func (n *Node) read(ctx context.Context) (*state.State, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := n.proposer.route()
		var index uint64
		var err error
		if r.lead != nil {
			index, err = r.lead.readIndex(ctx)
		} else {
			index, err = n.reader.index(ctx)
		}
		if err == nil {
			root, err := n.fsm.at(ctx, index)
			if err != nil && ctx.Err() != nil {
				err = n.explain(err)
			}
			return root, err
		}
		select {
		case <-n.stopping:
			return nil, n.stopCause()
		default:
		}
		if ctx.Err() != nil {
			return nil, n.explain(ctx.Err())
		}
		select { // The leader changed under us.
		case <-r.changed:
		case <-time.After(retryPause):
		case <-ctx.Done():
		case <-n.stopping:
		}
	}
}

// readIndex gives an index that covers everything acknowledged before the call. The leadership exists only once its
// own barrier is applied, so the commit index is known to cover what former leaders acknowledged.
func (l *leadership) readIndex(ctx context.Context) (uint64, error) {
	index := l.node.raft.Load().CommitIndex()
	if err := l.confirmer.confirm(ctx); err != nil {
		return 0, err
	}
	return index, nil
}

// answerReadIndex is the leader's side of reader.
func (n *Node) answerReadIndex(ctx context.Context, _ peerInfo, _ []byte) ([]byte, error) {
	lead := n.proposer.route().lead
	if lead == nil || n.stalled() {
		return nil, errNotLeader
	}
	index, err := lead.readIndex(ctx)
	if err != nil {
		return nil, errNotLeader
	}
	return binary.LittleEndian.AppendUint64(nil, index), nil
}

// reader asks the cell leader for read indexes, one question at a time for all callers that have come meanwhile. Like a
// confirm round, a question serves only those who came before it was sent.
type reader struct {
	node *Node
	wake chan struct{} // cap 1: next is not nil

	mu struct {
		sync.Mutex
		next *question
	}
}

// question is one request for a read index. index is set before done is closed.
type question struct {
	done  chan struct{}
	index uint64
}

func newReader(n *Node) *reader { return &reader{node: n, wake: make(chan struct{}, 1)} }

// index waits for an answer to a question asked after the call, or for ctx, or for this node to become leader itself.
func (r *reader) index(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	q := r.mu.next
	if q == nil {
		q = &question{done: make(chan struct{})}
		r.mu.next = q
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	r.mu.Unlock()
	select {
	case <-q.done:
		return q.index, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-r.node.stopping:
		return 0, r.node.stopCause()
	}
}

// run asks until the node stops. A question is repeated until it is answered, whoever leads by then.
func (r *reader) run() {
	n := r.node
	for {
		select {
		case <-r.wake:
		case <-n.ctx.Done():
			return
		}
		r.mu.Lock()
		q := r.mu.next
		r.mu.next = nil
		r.mu.Unlock()
		if q == nil {
			continue
		}
		for {
			to := n.proposer.route()
			sent := n.clock.Boot()
			index, err := r.ask(to)
			if err == nil {
				q.index = index
				close(q.done)
				n.seen(index, sent)
				break
			}
			if n.ctx.Err() != nil {
				return
			}
			pause := retryPause
			if to.lead == nil && to.server == "" {
				pause = n.opts.HeartbeatTimeout // nobody to ask before the route changes
			}
			select {
			case <-to.changed:
			case <-time.After(pause):
			case <-n.ctx.Done():
				return
			}
		}
	}
}

func (r *reader) ask(to route) (uint64, error) {
	n := r.node
	if to.lead != nil {
		return to.lead.readIndex(to.ctx)
	}
	if to.server == "" {
		return 0, ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(to.ctx, n.callTimeout())
	defer cancel()
	answer, err := n.transport.call(ctx, to.server, wire.KindReadIndex, nil)
	if err != nil {
		return 0, err
	}
	if len(answer) != 8 {
		return 0, errBadMessage
	}
	return binary.LittleEndian.Uint64(answer), nil
}

// freshness is what FastGet knows about the age of local memory. Times are of Clock.Boot.
type freshness struct {
	mu struct {
		sync.Mutex
		pending []sighting // answered, not yet applied here; indexes and times both ascend
	}
	at    atomic.Int64 // when the newest question was sent whose index is applied here
	known atomic.Bool  // there is one: this node has caught up since its start
}

type sighting struct {
	index uint64
	sent  time.Duration
}

// sightingsMax bounds what is remembered while this node lags; with more, the oldest answers merge into later ones,
// which makes Age larger, never smaller.
const sightingsMax = 64

// seen notes that the leader, asked at sent, named index.
func (n *Node) seen(index uint64, sent time.Duration) {
	f := &n.freshness
	f.mu.Lock()
	if len(f.mu.pending) == sightingsMax {
		f.mu.pending = f.mu.pending[1:]
	}
	f.mu.pending = append(f.mu.pending, sighting{index, sent})
	f.mu.Unlock()
	n.aged(n.fsm.root.Load())
}

// aged moves the freshness up to what root has.
func (n *Node) aged(root *state.State) {
	f := &n.freshness
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.mu.pending) > 0 && f.mu.pending[0].index <= root.Index() {
		f.set(f.mu.pending[0].sent)
		f.mu.pending = f.mu.pending[1:]
	}
}

// freshen is for the leader, whose memory is as of the start of its last good round.
func (n *Node) freshen(started time.Duration) {
	f := &n.freshness
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(started)
}

func (f *freshness) set(t time.Duration) {
	if !f.known.Load() || int64(t) > f.at.Load() {
		f.at.Store(int64(t))
		f.known.Store(true)
	}
}

// age returns how old what is readable here may be, or ErrNoLeader before this node has caught up once.
func (n *Node) age() (time.Duration, error) {
	if !n.freshness.known.Load() {
		return 0, fmt.Errorf("%w: this node has not caught up with the cell since it started", ErrNoLeader)
	}
	return max(n.clock.Boot()-time.Duration(n.freshness.at.Load()), 0), nil
}

// refresh keeps Age small, and a follower caught up, when nobody reads: one question every heartbeat.
func (n *Node) refresh() {
	for {
		ctx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
		_, err := n.read(ctx)
		cancel()
		if err != nil && n.ctx.Err() == nil {
			n.log.Debug("not in touch with the cell", "err", err)
		}
		t := time.NewTimer(n.opts.HeartbeatTimeout)
		select {
		case <-t.C:
		case <-n.ctx.Done():
			t.Stop()
			return
		}
	}
}
