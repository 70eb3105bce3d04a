package chubby

import (
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// confirmer proves, again and again, that this node still leads its cell.
//
// A round asks every voter of the latest configuration "is T your current term?" and ends well when a majority, this
// node included, has said yes to a question asked after the round began. Whoever joins a round joins one that has not
// begun, so every yes was said after he came.
//
// Why that proves leadership at the moment of joining: a voter adopts a newer term before it votes in it. Had a leader
// of a newer term been elected before the round began, a majority would have adopted that term, and would have shared
// at least one voter with the majority that said yes. raft.VerifyLeader gives no such proof: it counts answers to
// questions asked before, and answers of nonvoters.
type confirmer struct {
	lead *leadership
	wake chan struct{} // cap 1: next is not nil

	mu struct {
		sync.Mutex
		next    *round // gathers those who come
		current *round // being confirmed
		number  uint64 // of the newest round that began
		peers   map[raft.ServerID]*confirmPeer
	}
}

// round is one confirmation. err is set before done is closed.
type round struct {
	number  uint64
	started time.Duration // Clock.Boot when it began
	missing int           // yeses still needed
	yes     map[raft.ServerID]bool
	quorum  chan struct{} // closed when missing reaches 0
	done    chan struct{}
	err     error
}

// confirmPeer asks one voter, one question at a time, so that a slow voter is never asked more than once at once.
type confirmPeer struct {
	id   raft.ServerID
	wake chan struct{} // cap 1: a round has begun
	room atomic.Int32  // what its disk has room for, as it said last; negative: it has not said
}

func newConfirmer(l *leadership) *confirmer {
	c := &confirmer{lead: l, wake: make(chan struct{}, 1)}
	c.mu.peers = make(map[raft.ServerID]*confirmPeer)
	return c
}

// confirm joins the next round and waits for its end. It returns errNotLeader, or ctx's error.
func (c *confirmer) confirm(ctx context.Context) error {
	_, err := c.join(ctx)
	return err
}

// join is confirm that also gives the time at which the round began.
func (c *confirmer) join(ctx context.Context) (started time.Duration, err error) {
	c.mu.Lock()
	r := c.mu.next
	if r == nil {
		r = &round{quorum: make(chan struct{}), done: make(chan struct{})}
		c.mu.next = r
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	select {
	case <-r.done:
		return r.started, r.err
	case <-c.lead.ctx.Done():
		return 0, errNotLeader
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// run begins rounds, one after the other, until the leadership ends.
func (c *confirmer) run() {
	for {
		select {
		case <-c.wake:
		case <-c.lead.ctx.Done():
			return
		}
		r := c.begin()
		if r == nil {
			continue
		}
		select {
		case <-r.quorum:
		case <-c.lead.ctx.Done():
		}
		// Our own yes, said at the end: it is the latest of them all.
		if !c.lead.stands() {
			r.err = errNotLeader
		} else {
			c.lead.node.freshen(r.started)
		}
		c.mu.Lock()
		c.mu.current = nil
		c.mu.Unlock()
		close(r.done)
	}
}

// begin turns the gathering round into the current one and asks the voters.
func (c *confirmer) begin() *round {
	voters := c.lead.node.voters()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.mu.next
	if r == nil {
		return nil
	}
	c.mu.next = nil
	c.mu.number++
	r.number = c.mu.number
	r.started = c.lead.node.clock.Boot()
	r.yes = make(map[raft.ServerID]bool, len(voters))
	r.missing = len(voters)/2 + 1
	c.mu.current = r
	self := c.lead.node.server
	for _, id := range voters {
		if id == self {
			c.countLocked(r, id)
			continue
		}
		peer := c.mu.peers[id]
		if peer == nil {
			peer = &confirmPeer{id: id, wake: make(chan struct{}, 1)}
			peer.room.Store(-1)
			c.mu.peers[id] = peer
			c.lead.wg.Go(func() { c.ask(peer) })
		}
		r.yes[id] = false // a voter of this round
		select {
		case peer.wake <- struct{}{}:
		default:
		}
	}
	return r
}

// countLocked notes a yes. Only voters of the round's configuration count, each once.
func (c *confirmer) countLocked(r *round, id raft.ServerID) {
	if r.yes[id] || r.missing == 0 {
		return
	}
	r.yes[id] = true
	if r.missing--; r.missing == 0 {
		close(r.quorum)
	}
}

// ask is the goroutine of one voter.
func (c *confirmer) ask(p *confirmPeer) {
	n := c.lead.node
	question := binary.LittleEndian.AppendUint64(nil, c.lead.term)
	for {
		select {
		case <-p.wake:
		case <-c.lead.ctx.Done():
			return
		}
		for {
			c.mu.Lock()
			r := c.mu.current
			c.mu.Unlock()
			if r == nil || r.voted(c, p.id) {
				break // nothing to ask until the next round begins
			}
			ctx, cancel := context.WithTimeout(c.lead.ctx, n.opts.HeartbeatTimeout)
			answer, err := n.transport.call(ctx, p.id, wire.KindConfirm, question)
			cancel()
			if err == nil && len(answer) == 1 && answer[0]&confirmYes != 0 {
				p.room.Store(int32(answer[0] >> confirmRoom))
				c.mu.Lock()
				// The question was asked while r was current, so it counts for r and for no later round.
				if _, voter := r.yes[p.id]; voter && c.mu.current == r {
					c.countLocked(r, p.id)
				}
				c.mu.Unlock()
				break
			}
			select {
			case <-time.After(retryPause):
			case <-c.lead.ctx.Done():
				return
			}
		}
	}
}

func (r *round) voted(c *confirmer, id raft.ServerID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	yes, voter := r.yes[id]
	return yes || !voter
}

// answerConfirm is the voter's side. It reads the term after the question arrived; that order is the proof's key step.
func (n *Node) answerConfirm(_ context.Context, _ peerInfo, question []byte) ([]byte, error) {
	if len(question) != 8 {
		return nil, errBadMessage
	}
	if r := n.raft.Load(); r != nil && r.CurrentTerm() == binary.LittleEndian.Uint64(question) {
		return []byte{confirmYes | byte(n.space.left())<<confirmRoom}, nil
	}
	return []byte{0}, nil
}

// The answer to a confirm round: the term is the answerer's, and from bit 1 on its room.
const (
	confirmYes  = 1
	confirmRoom = 1
)

// room is what a voter said of its disk in this leadership; negative if it has not said anything.
func (c *confirmer) room(id raft.ServerID) room {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.mu.peers[id]; p != nil {
		return room(p.room.Load())
	}
	return -1
}
