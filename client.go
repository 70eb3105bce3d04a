package chubby

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// Client is a way to the cell: the files, locks and sessions of one program. All methods are safe for concurrent use.
type Client struct {
	cell      cell
	terms     terms
	principal string        // who asks, in each command
	last      atomic.Uint64 // revision of the newest answer that this Client has seen

	mu struct {
		sync.Mutex
		sessions map[uint64]*Session
		current  *Session // the default session
		opening  *opening // of the default session
		waiters  map[owner]*lockWaiter
		closed   bool
	}
	cache *clientCache  // nil = none
	wake  chan struct{} // cap 1: the keeper has something new to look after
	fresh atomic.Bool   // there are grants to acknowledge
	// watchful tells that the keeper looks at the clock as often as locks want it to.
	watchful atomic.Bool
}

// owner names a Lock command, and with it the holder or waiter that it made.
type owner struct{ session, seq uint64 }

// opening is one attempt to open the default session, shared by all who wait for it.
type opening struct {
	done    chan struct{}
	session *Session
	err     error
}

func newClient(cell cell, t terms) *Client {
	c := &Client{cell: cell, terms: t, principal: t.principal, wake: make(chan struct{}, 1)}
	c.mu.sessions = make(map[uint64]*Session)
	c.mu.waiters = make(map[owner]*lockWaiter)
	return c
}

// Session returns the Client's default session. It is opened when it is first needed and replaced after it expired.
func (c *Client) Session(ctx context.Context) (*Session, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, &Error{Op: "session", Err: err}
	}
	return s, nil
}

func (c *Client) session(ctx context.Context) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.mu.closed {
		c.mu.Unlock()
		return nil, c.cell.stopCause()
	}
	if s := c.mu.current; s != nil {
		c.mu.Unlock()
		return s, nil
	}
	o := c.mu.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		c.mu.opening = o
		// In the Client's own time: one caller's impatience must not fail the others.
		if !c.cell.spawn(func() {
			o.session, o.err = c.openSession(c.cell.life(), SessionOptions{Name: c.terms.name}, c.cache != nil)
			c.mu.Lock()
			if o.err == nil && !c.mu.closed {
				select {
				case <-o.session.done:
				default:
					c.mu.current = o.session
				}
			}
			c.mu.opening = nil
			c.mu.Unlock()
			close(o.done)
		}) {
			c.mu.opening = nil
			c.mu.Unlock()
			return nil, c.cell.stopCause()
		}
	}
	c.mu.Unlock()
	select {
	case <-o.done:
		if o.err != nil && c.stopped() {
			// Whether the session was opened is nothing to the caller, whose own command was not sent.
			return nil, c.cell.stopCause()
		}
		return o.session, o.err
	case <-ctx.Done():
		return nil, c.cell.explain(ctx.Err())
	case <-c.cell.halted():
		return nil, c.cell.stopCause()
	}
}

// keep takes a session into the keeper's care.
func (c *Client) keep(s *Session) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return c.cell.stopCause()
	}
	c.mu.sessions[uint64(s.id)] = s
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return nil
}

// drop forgets a session that has ended.
func (c *Client) drop(s *Session) {
	if c.cache != nil {
		c.cache.ended(s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.sessions, uint64(s.id))
	if c.mu.current == s {
		c.mu.current = nil
	}
}

// all returns the sessions that live.
func (c *Client) all() []*Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]*Session, 0, len(c.mu.sessions))
	for _, s := range c.mu.sessions {
		list = append(list, s)
	}
	return list
}

// stopped reports whether calls must return.
func (c *Client) stopped() bool {
	select {
	case <-c.cell.halted():
		return true
	default:
		return false
	}
}

// saw notes the revision of an answer, so that no later FastGet of this Client shows an older state.
func (c *Client) saw(revision uint64) {
	for {
		old := c.last.Load()
		if revision <= old || c.last.CompareAndSwap(old, revision) {
			return
		}
	}
}

const (
	keeperTick   = 50 * time.Millisecond // how late the end of a lock may be noticed by nobody asking, in a process that stood still
	keeperIdle   = 5 * time.Second       // the same for a session without locks
	keeperLinger = time.Second           // how long it looks for locks after the last one
	keepsByLease = 3                     // KeepAlives in one lease, so that one may be lost
	// retriesByLease is how many times in a lease KeepAlives that fail are repeated in the long run.
	retriesByLease = 12
)

// acknowledge has the keeper tell the cell of grants that bear a MaxHold.
func (c *Client) acknowledge() {
	c.fresh.Store(true)
	signal(c.wake)
}

// keeper looks after the sessions: it compares their deadlines with the clock and sends one KeepAlive for all of them,
// with jitter, so that the nodes of a cell do not ask in step.
func (c *Client) keeper() {
	type outcome struct {
		began   time.Duration // Clock.Boot
		all, ok bool
	}
	var sending bool
	var due time.Duration // Clock.Boot: when the next KeepAlive leaves
	sent := make(chan outcome, 1)
	tick := make(chan struct{}, 1)
	stop := func() bool { return true }
	defer func() { stop() }()
	armed, alarm := false, time.Duration(0) // a timer runs, until then
	locked := -keeperLinger                 // Clock.Boot: when locks were seen last
	fails := 0                              // KeepAlives that failed since the last that did not
	for {
		// Before the sessions are looked at: a lock that comes after that wakes this loop.
		c.watchful.Store(false)
		sessions := c.all()
		now := c.terms.clock.Boot()
		shortest, next := time.Duration(0), now+keeperIdle
		for _, s := range sessions {
			s.check(now)
			if shortest == 0 || s.lease < shortest {
				shortest = s.lease
			}
			end, locks := s.outlook()
			next = min(next, end)
			if locks {
				locked = now
			}
		}
		if now-locked < keeperLinger { // locks that come and go need not wake this loop
			c.watchful.Store(true)
			next = min(next, now+keeperTick)
		}
		if pause := shortest / keepsByLease; due > now+pause {
			due = now + pause // a session with a shorter lease has come
		}
		if all := now >= due; len(sessions) > 0 && !sending && (all || c.fresh.Load()) {
			c.fresh.Store(false)
			timeout := max(shortest/10, c.terms.heartbeat)
			var holds []wire.Hold
			for _, s := range sessions {
				holds = s.holdings(holds, all)
			}
			renew := sessions
			if !all {
				renew = nil
			}
			sending = true
			if !c.cell.spawn(func() { sent <- outcome{now, all, c.keepAlive(renew, holds, timeout)} }) {
				return
			}
		}
		if !sending {
			next = min(next, due)
		}
		if len(sessions) > 0 && (!armed || next < alarm && stop()) {
			armed, alarm = true, next
			stop = c.terms.clock.AfterFunc(max(next-now, 0), func() { tick <- struct{}{} }) // cap 1, one timer at a time
		}
		select {
		case <-tick:
			armed = false
		case o := <-sent:
			sending = false
			// From its sending, as the lease counts: an answer that took long has little left of it.
			from, pause := o.began, shortest/keepsByLease
			if fails++; o.ok {
				fails = 0
			} else {
				// Try again soon: somebody will be elected. But not all the time, which would keep a busy cell from it.
				soon := c.terms.heartbeat / 2
				from, pause = c.terms.clock.Boot(), min(soon<<min(fails-1, 8), max(shortest/retriesByLease, soon))
			}
			if o.all || !o.ok {
				due = from + pause*3/4 + rand.N(pause/4+1)
			}
		case <-c.wake:
		case <-c.cell.life().Done():
			return
		}
	}
}

// keepAlive asks the cell leader to renew the sessions and tells it of grants. It reports whether everything was answered
// and every grant is known there. What the answer promises counts from before the question was sent, so that the cell's
// own count, which begins at its receipt, ends later.
func (c *Client) keepAlive(sessions []*Session, holds []wire.Hold, timeout time.Duration) bool {
	all := wire.KeepAlive{Sessions: make([]uint64, len(sessions)), Holds: holds}
	for i, s := range sessions {
		all.Sessions[i] = uint64(s.id)
	}
	known := true
	for _, part := range wire.SplitKeepAlive(all) {
		sent := c.terms.clock.Boot()
		ctx, cancel := context.WithTimeout(c.cell.life(), timeout)
		answer, err := c.cell.renew(ctx, &part)
		cancel()
		if err != nil || len(answer) != len(part.Sessions)+len(part.Holds) {
			return false
		}
		for i, s := range sessions[:len(part.Sessions)] {
			switch answer[i] {
			case wire.RenewAlive:
				s.extend(sent + s.lease)
			case wire.RenewEnded:
				s.end(ErrSessionExpired)
			}
		}
		sessions = sessions[len(part.Sessions):]
		for _, a := range answer[len(part.Sessions):] {
			known = known && a == wire.RenewAlive
		}
	}
	return known
}

// happened tells the Client what the state machine did to its sessions and waiters. The fsm calls it after each batch;
// it never blocks.
func (c *Client) happened(events []state.Event) {
	// Ended sessions first: their locks were released with them, and what they tell is that the session ended.
	for _, e := range events {
		if e.Kind == state.SessionEnded {
			if s := c.known(e.Session); s != nil {
				s.end(ErrSessionExpired)
			}
		}
	}
	for _, e := range events {
		switch e.Kind {
		case state.LockAcquired:
			c.granted(owner{e.Session, e.Seq}, e.Generation)
		case state.LockRefused:
			c.granted(owner{e.Session, e.Seq}, 0)
		case state.LockReleased:
			if s := c.known(e.Session); s != nil {
				s.released(e.Seq)
			}
		}
	}
}

// told takes what a member tells a dialled Client of its Lock commands.
func (c *Client) told(o wire.Owner) {
	switch o.Kind {
	case wire.OwnerGranted:
		c.granted(owner{o.Session, o.Seq}, o.Generation)
	case wire.OwnerRefused:
		c.granted(owner{o.Session, o.Seq}, 0)
	case wire.OwnerReleased:
		if s := c.known(o.Session); s != nil {
			s.released(o.Seq)
		}
	}
}

// review has every Lock call that waits look after its place: its grant may have been missed.
func (c *Client) review() {
	c.mu.Lock()
	waiting := make([]owner, 0, len(c.mu.waiters))
	for o := range c.mu.waiters {
		waiting = append(waiting, o)
	}
	c.mu.Unlock()
	for _, o := range waiting {
		c.granted(o, 0)
	}
}

// newEpoch ends the sessions of earlier epochs, and forgets their revisions.
func (c *Client) newEpoch(epoch uint64) {
	c.last.Store(0)
	for _, s := range c.all() {
		if s.epoch < epoch {
			s.end(ErrSessionExpired)
		}
	}
}

// known returns the session if it is one of this Client's and lives.
func (c *Client) known(id uint64) *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.sessions[id]
}

// jumped compares the Client's waiters with a state that came without its events, from a snapshot. Sessions are left to
// the next KeepAlive: one that the snapshot does not know may have been opened after it.
func (c *Client) jumped(root *state.State) {
	c.mu.Lock()
	waiters := make(map[owner]*lockWaiter, len(c.mu.waiters))
	for o, w := range c.mu.waiters {
		waiters[o] = w
	}
	c.mu.Unlock()
	for o, w := range waiters {
		// One that neither holds nor waits may be one that the snapshot does not know yet; a read will tell.
		if generation, _, waiting := root.Grant(o.session, o.seq, w.path); !waiting {
			c.granted(o, generation)
		}
	}
}

// closeSessions ends all sessions, for at most 2 s, and refuses new ones: contexts of locks first, then the cell is told,
// so that others need not wait for leases.
func (c *Client) closeSessions() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range c.all() {
		wg.Go(func() {
			if err := s.close(ctx, false); err != nil {
				c.terms.log.Debug("session left to its lease", "session", s.id, "err", err)
			}
		})
	}
	wg.Wait()
}

// closeTimeout bounds how long Close tries to end sessions in the cell.
const closeTimeout = 2 * time.Second

// close ends all sessions here, without telling anybody.
func (c *Client) close() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	for _, s := range c.all() {
		s.end(ErrClosed)
	}
}

// Close closes the node that this is the Client of; see [Node.Close]. A dialled Client ends its sessions, for at most
// 2 s, so that others need not wait for their leases, and then its calls, which return ErrClosed, with ErrUncertain if they
// may have taken effect. It leaves no goroutine and no connection.
func (c *Client) Close() error { return c.cell.Close() }
