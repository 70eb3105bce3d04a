package chubby

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/command"
)

// The way of a write through this file:
//
//	Node.propose     the caller's goroutine: one attempt after the other until the state machine has answered
//	  proposer.enqueue   into the queue of this node, bounded
//	    proposer.run       one of a few goroutines that take what has gathered, all of it, without lingering
//	      proposer.apply     on the cell leader: one raft entry of many commands
//	        fsm.ApplyBatch     executes them and gives the results to proposer.settle
//	      proposer.forward   elsewhere: one frame to the cell leader, which enqueues them at its own proposer
//
// What is final: only a result from the state machine. Every attempt carries the same bytes, hence the same (session,
// sequence), so a second copy of a command that was executed gets the first copy's answer.

const (
	batchCommands = 1024      // commands in one raft entry
	batchBytes    = 128 << 10 // their bytes, unless one command alone is larger
	commandMax    = 1 << 20   // bytes of one command
	// entriesInFlight bounds what a deposed leader can have in its log beyond the common prefix. hashicorp/raft 697 needs
	// that suffix to be shorter than the trailing log; see compactor.
	entriesInFlight = 2
	proposers       = 4                    // goroutines; on a follower as many frames are on their way to the leader
	retryPause      = 2 * time.Millisecond // before another attempt where nothing tells that it will do better

	// An entry costs flushes of several disks, however much it holds. So a second one leaves only when it is a worthy
	// load, or when there are so few commands in all that sharing would save nothing worth waiting for: a lock that
	// changes hands must not wait for its last holder's next call. And after an entry the leader gives those whom it just
	// answered a moment to come back: see gather.
	worthyCommands = 256
	lightCommands  = 5                      // in flight and queued
	gatherCommands = 8                      // fewer do not make waiting worth it
	gatherMin      = 50 * time.Microsecond  // below it a flush is too cheap to wait for company
	gatherMax      = 500 * time.Microsecond // however slow the disk is
)

// status says what became of one attempt.
type status uint8

const (
	statusApplied    status = iota + 1 // the state machine answered
	statusRefused                      // this copy is not in the log and will not be
	statusUnknown                      // it may be in the log, or may get there
	statusOverloaded                   // refused because a queue is full
	statusNoSpace                      // refused because the cell's state is at a limit
)

// proposal is one attempt to get one command into the log.
type proposal struct {
	raw    []byte
	urgent bool // unlocks, closes, cancels: they free what others wait for, so overload does not stop them

	status status         // set before wake or group is told
	result command.Result // with statusApplied
	wake   chan struct{}  // cap 1; receives once, unless group is set
	group  *group         // the frame it came with, on a node that forwards for others

	caches *caches      // of the term in which touch was begun; nil = it was not
	touch  *cache.Touch // what the command may change of what clients cache
}

func (p *proposal) complete(s status, r *command.Result) {
	p.status = s
	if r != nil {
		p.result = *r
	}
	if p.group == nil {
		p.wake <- struct{}{}
	} else if p.group.left.Add(-1) == 0 {
		close(p.group.done)
	}
}

// group is the commands of one forwarded frame.
type group struct {
	left atomic.Int64
	done chan struct{} // closed by the last proposal that completes
}

// batch is what one raft entry holds.
type batch struct {
	props    []*proposal
	taken    int   // commands taken from the queue; admit may drop some of them
	commands int   // of these, those that have not been set aside for caches
	bytes    int64 // of them
	// untracked says that nobody looked at what the commands touch, because nobody cached.
	untracked bool
}

// proposer gathers the commands of this node and brings them into the log, through raft where this node leads the cell,
// else through the leader. Its goroutines belong to the Node.
type proposer struct {
	node   *Node
	origin uint64 // random: which process an entry came from

	mu struct {
		sync.Mutex
		urgent, normal []*proposal
		aside          map[*cache.Touch]*proposal // waiting for caches to drop what they touch
		route          route
		commands       int   // queued, set aside and in flight
		bytes          int64 // of them
		entries        map[uint64]*batch
		last           uint64 // number of the newest entry
		applying       int    // entries in flight
		flying         int    // commands in them
		expected       int    // commands worth waiting for in the queue; 0 = none
		gathering      uint64 // counts the waits, so that a late timer does not end another's
		held           bool   // the log is over its limit: proposals wait for the snapshot
		paused         bool   // leadership is being handed over: proposals wait for the outcome
		closed         bool
	}
	work *sync.Cond // on mu: queue, route, held or closed changed
}

func newProposer(n *Node, origin uint64) *proposer {
	p := &proposer{node: n, origin: origin}
	p.mu.entries = make(map[uint64]*batch)
	p.mu.aside = make(map[*cache.Touch]*proposal)
	p.mu.route = route{ctx: n.ctx, changed: make(chan struct{})}
	p.work = sync.NewCond(&p.mu)
	return p
}

// propose brings one encoded command into the log and returns the state machine's answer. Its errors follow the rule
// of three outcomes: without ErrUncertain in the chain, the command has not been and will not be executed.
//
// lost, if not nil, is closed when the session that sends the command is gone.
func (n *Node) propose(ctx context.Context, raw []byte, urgent bool, lost <-chan struct{}) (command.Result, error) {
	if err := ctx.Err(); err != nil {
		return command.Result{}, err
	}
	if len(raw) > commandMax {
		return command.Result{}, fmt.Errorf("%w: a command of %d bytes, at most %d", ErrTooLarge, len(raw), commandMax)
	}
	if need := command.LevelOf(raw); need > 1 && need > n.fsm.root.Load().Level() {
		return command.Result{}, errTooEarly(need)
	}
	offered := 0 // attempts that may have reached the log
	fail := func(err error) (command.Result, error) {
		if offered > 0 {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return command.Result{}, err
	}
	for {
		p := &proposal{raw: raw, urgent: urgent, wake: make(chan struct{}, 1)}
		changed, err := n.proposer.enqueue(p)
		if err != nil {
			if !errors.Is(err, ErrOverloaded) || offered == 0 {
				return fail(err)
			}
		} else {
			inTime := lost
		waiting:
			select {
			case <-p.wake:
			case <-ctx.Done():
				if n.proposer.withdraw(p) {
					return fail(n.explain(ctx.Err()))
				}
				offered++
				return fail(ctx.Err())
			case <-inTime:
				if n.proposer.withdraw(p) {
					return fail(n.lostCause())
				}
				inTime = nil // this attempt's outcome can still make certain what became of the command
				goto waiting
			case <-n.stopping:
				if !n.proposer.withdraw(p) {
					offered++
				}
				return fail(n.stopCause())
			}
			switch p.status {
			case statusApplied:
				if p.result.Code == command.SessionExpired && offered > 0 {
					// An earlier copy may have been executed while the session lived.
					return fail(ErrSessionExpired)
				}
				return p.result, nil
			case statusUnknown:
				offered++
			case statusOverloaded:
				if offered == 0 {
					return fail(ErrOverloaded)
				}
			case statusNoSpace:
				if offered == 0 {
					return fail(ErrNoSpace)
				}
			}
		}
		select { // The leader is changing, or busy: a moment, unless news of it comes first.
		case <-changed:
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fail(n.explain(ctx.Err()))
		case <-lost:
			return fail(n.lostCause())
		case <-n.stopping:
			return fail(n.stopCause())
		}
	}
}

// explain adds to a context's error what the call was waiting for.
func (n *Node) explain(err error) error {
	if r := n.proposer.route(); r.lead == nil && r.server == "" {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return fmt.Errorf("%w: %w", ErrNoQuorum, err)
}

// enqueue puts one proposal into the queue. The channel is closed when the route that it met has changed.
func (p *proposer) enqueue(x *proposal) (routeChanged <-chan struct{}, err error) {
	l := p.node.opts.Limits
	p.mu.Lock()
	defer p.mu.Unlock()
	routeChanged = p.mu.route.changed
	if p.mu.closed {
		return routeChanged, p.node.stopCause()
	}
	if !x.urgent && (p.mu.commands >= l.PendingCommands || p.mu.bytes+int64(len(x.raw)) > l.PendingBytes) {
		return routeChanged, fmt.Errorf("%w: %d commands of %d bytes are in flight on this node; wait, or raise Limits.PendingCommands or PendingBytes", ErrOverloaded, p.mu.commands, p.mu.bytes)
	}
	p.push(x)
	p.work.Signal()
	return routeChanged, nil
}

// push is called with mu held.
func (p *proposer) push(x *proposal) {
	p.mu.commands++
	p.mu.bytes += int64(len(x.raw))
	p.requeue(x)
}

// requeue is push for what is counted already. Called with mu held.
func (p *proposer) requeue(x *proposal) {
	if x.urgent {
		p.mu.urgent = append(p.mu.urgent, x)
	} else {
		p.mu.normal = append(p.mu.normal, x)
	}
}

// enqueueGroup takes a frame of another node's commands. It refuses the whole frame unless this node leads the cell:
// commands are forwarded once, never around in a circle.
func (p *proposer) enqueueGroup(props []*proposal) status {
	l := p.node.opts.Limits
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed || p.mu.route.lead == nil {
		return statusRefused
	}
	if p.mu.commands >= l.PendingCommands || p.mu.bytes >= l.PendingBytes {
		urgent := props[:0:0]
		for _, x := range props {
			if x.urgent {
				urgent = append(urgent, x)
			} else {
				x.complete(statusOverloaded, nil)
			}
		}
		props = urgent
	}
	for _, x := range props {
		p.push(x)
	}
	p.work.Signal()
	return statusApplied
}

// withdraw takes a proposal back out of the queue. It reports false if it had left already.
func (p *proposer) withdraw(x *proposal) bool {
	if !p.remove(x) {
		return false
	}
	if x.caches != nil {
		x.caches.withdrawn(x.touch)
	}
	return true
}

func (p *proposer) remove(x *proposal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	lane := &p.mu.normal
	if x.urgent {
		lane = &p.mu.urgent
	}
	i := slices.Index(*lane, x)
	switch {
	case x.touch != nil && p.mu.aside[x.touch] == x:
		delete(p.mu.aside, x.touch)
	case i >= 0:
		*lane = append((*lane)[:i:i], (*lane)[i+1:]...)
	default:
		return false
	}
	p.mu.commands--
	p.mu.bytes -= int64(len(x.raw))
	return true
}

// route tells where commands go now.
type route struct {
	lead    *leadership     // not nil: this node leads the cell and has caught up with its own term
	server  raft.ServerID   // else: the leader, "" = none is known
	ctx     context.Context // ends when the route changes
	changed chan struct{}   // closed when the route changes
}

func (p *proposer) route() route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.route
}

// setRoute is called by the Node's tracker only. What others forwarded here goes back to them when this node does not
// lead any more, because their next attempt may reach the new leader in one step.
func (p *proposer) setRoute(r route) {
	p.mu.Lock()
	close(p.mu.route.changed)
	r.changed = make(chan struct{})
	p.mu.route = r
	var back []*proposal
	p.recall()
	if r.lead == nil {
		back = p.takeForwarded(&p.mu.urgent, back)
		back = p.takeForwarded(&p.mu.normal, back)
	}
	p.work.Broadcast()
	p.mu.Unlock()
	for _, x := range back {
		x.complete(statusRefused, nil)
	}
}

// takeForwarded moves the proposals of other nodes out of a lane. Called with mu held.
func (p *proposer) takeForwarded(lane *[]*proposal, into []*proposal) []*proposal {
	kept := (*lane)[:0:0]
	for _, x := range *lane {
		if x.group == nil {
			kept = append(kept, x)
			continue
		}
		p.mu.commands--
		p.mu.bytes -= int64(len(x.raw))
		into = append(into, x)
	}
	*lane = kept
	return into
}

// hold makes proposals wait, or lets them go on: the log has reached its limit and a snapshot is on its way.
func (p *proposer) hold(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.held = on
	p.work.Broadcast()
}

// pause makes proposals wait while leadership is handed over, or lets them go on.
func (p *proposer) pause(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.paused = on
	p.work.Broadcast()
}

// resting reports whether no entry of this node is on its way.
func (p *proposer) resting() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.applying == 0
}

// run is one of the goroutines that bring batches into the log.
func (p *proposer) run() {
	for {
		b, r, ok := p.take()
		if !ok {
			return
		}
		start := time.Now()
		if r.lead != nil {
			p.apply(b, r.lead)
		} else {
			p.forward(b, r)
		}
		p.mu.Lock()
		p.mu.commands -= b.commands
		p.mu.bytes -= b.bytes
		if r.lead != nil {
			p.mu.applying--
			p.mu.flying -= b.taken
			p.gather(b.commands, time.Since(start))
			p.work.Signal()
		}
		p.mu.Unlock()
	}
}

// gather makes the next entry wait until as many have asked as were just answered, for at most a quarter
// of what an entry takes. With many callers that each wait for their answer, which is what services have, an entry then
// carries about all of them instead of half, for the same flushes. A lone caller never waits. Called with mu held.
func (p *proposer) gather(answered int, took time.Duration) {
	wait := min(took/4, gatherMax)
	if answered < gatherCommands || wait < gatherMin || p.mu.applying > 0 {
		p.mu.expected = 0
		return
	}
	p.mu.expected = p.queued() + answered
	p.mu.gathering++
	mine := p.mu.gathering
	time.AfterFunc(wait, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.mu.gathering == mine {
			p.mu.expected = 0
			p.work.Signal()
		}
	})
}

// queued is called with mu held.
func (p *proposer) queued() int { return len(p.mu.urgent) + len(p.mu.normal) }

// ready reports whether what is queued should leave now on route r. Called with mu held.
func (p *proposer) ready(r route) bool {
	n := p.queued()
	switch {
	case n == 0:
		return false
	case r.lead == nil:
		return r.server != ""
	case p.mu.held || p.mu.paused || !r.lead.caches.open.Load():
		return false
	case p.mu.applying == 0:
		return n >= p.mu.expected
	}
	return p.mu.applying < entriesInFlight && (n >= worthyCommands || p.mu.flying+n <= lightCommands)
}

// take waits for something to do and somewhere to send it, and takes all that fits into one entry.
func (p *proposer) take() (*batch, route, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.mu.closed {
		r := p.mu.route
		if p.ready(r) {
			b := &batch{}
			p.fill(b, &p.mu.urgent)
			p.fill(b, &p.mu.normal)
			if r.lead != nil {
				p.mu.applying++
				p.mu.flying += b.taken
				p.mu.expected = 0
			}
			if p.ready(r) {
				p.work.Signal() // for another of us
			}
			return b, r, true
		}
		p.work.Wait()
	}
	return nil, route{}, false
}

// fill is called with mu held.
func (p *proposer) fill(b *batch, lane *[]*proposal) {
	n := 0
	for _, x := range *lane {
		size := int64(len(x.raw))
		if len(b.props) == batchCommands || len(b.props) > 0 && b.bytes+size > batchBytes {
			break
		}
		b.props = append(b.props, x)
		b.taken++
		b.commands++
		b.bytes += size
		n++
	}
	if n == len(*lane) {
		clear(*lane)
		*lane = (*lane)[:0]
	} else {
		*lane = append((*lane)[:0:0], (*lane)[n:]...)
	}
}

// apply offers one entry to raft and waits for what becomes of it. Results come through settle; the future only tells
// that there will be none.
func (p *proposer) apply(b *batch, lead *leadership) {
	lead.admit(b)
	lead.caches.admit(b)
	if len(b.props) == 0 {
		lead.caches.decided(b)
		return
	}
	entry := make([]byte, 0, int(b.bytes)+3*len(b.props)+32)
	p.mu.Lock()
	p.mu.last++
	number := p.mu.last
	p.mu.entries[number] = b
	p.mu.Unlock()
	entry = command.AppendEntryHeader(entry, p.origin, number, len(b.props))
	for _, x := range b.props {
		entry = command.AppendEntryCommand(entry, x.raw)
	}

	err := p.node.promise(p.node.raft.Load().ApplyLog(raft.Log{Data: entry}, 0))

	p.mu.Lock()
	_, open := p.mu.entries[number]
	delete(p.mu.entries, number)
	p.mu.Unlock()
	if !open {
		lead.caches.decided(b)
		return // settled
	}
	s := statusUnknown
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) || errors.Is(err, raft.ErrEnqueueTimeout) {
		s = statusRefused // raft said so before the entry was in its log
	}
	if s == statusRefused {
		lead.caches.decided(b)
	}
	for _, x := range b.props {
		x.complete(s, nil)
	}
}

// settle gives the results of an entry to those who wait for them. The fsm calls it after the state that they describe
// is readable. An entry that nobody waits for any more, or one of another process, is not ours to answer.
func (p *proposer) settle(origin, number uint64, results []command.Result) {
	if origin != p.origin {
		return
	}
	p.mu.Lock()
	b := p.mu.entries[number]
	delete(p.mu.entries, number)
	p.mu.Unlock()
	if b == nil {
		return
	}
	for i, x := range b.props {
		x.complete(statusApplied, &results[i])
	}
}

// close ends the proposer: its goroutines return when what they have in flight is decided. What is queued stays with
// its callers, which see Node.stopping.
func (p *proposer) close() {
	p.mu.Lock()
	p.mu.closed = true
	p.recall()
	var back []*proposal
	back = p.takeForwarded(&p.mu.urgent, back)
	back = p.takeForwarded(&p.mu.normal, back)
	p.work.Broadcast()
	p.mu.Unlock()
	for _, x := range back {
		x.complete(statusRefused, nil)
	}
}
