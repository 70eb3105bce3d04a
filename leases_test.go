package chubby

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/wire"
)

// jumpClock is the clock of a bubble that can jump ahead of it. Its timers do not jump.
type jumpClock struct {
	hook.Clock
	mu    sync.Mutex
	ahead time.Duration
	next  time.Duration // added to ahead once the clock has been read
}

func (c *jumpClock) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.Clock.Boot() + c.ahead
	c.ahead, c.next = c.ahead+c.next, 0
	return now
}

func (c *jumpClock) Mono() time.Duration { return c.Boot() }

func (c *jumpClock) jump(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += d
}

// jumpAfterReading makes the clock jump as soon as somebody has read it.
func (c *jumpClock) jumpAfterReading(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = d
}

// inOne runs f on a cell of one in a bubble, on a clock that jumps.
func inOne(t *testing.T, f func(t *testing.T, n *Node, clock *jumpClock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		clock := &jumpClock{Clock: hook.TimeClock()}
		n, err := Open(Options{Hooks: &hook.Hooks{Clock: clock}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if err := n.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		f(t, n, clock)
	})
}

// openSilent opens a session that nobody renews.
func openSilent(t *testing.T, n *Node) uint64 {
	t.Helper()
	return openSilentFor(t, n, n.opts.SessionLease)
}

func openSilentFor(t *testing.T, n *Node, lease time.Duration) uint64 {
	t.Helper()
	slot, err := n.slot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id, err := n.ids.next(slot)
	if err != nil {
		t.Fatal(err)
	}
	c := command.Command{
		Kind: command.KindOpenSession, Session: id, Slot: slot, Node: string(n.server), Nonce: [16]byte{1},
		Lease: uint64(lease / time.Millisecond),
	}
	if r, err := n.propose(t.Context(), command.Append(nil, &c), false, nil); err != nil || r.Code != command.OK {
		t.Fatal(r, err)
	}
	return id
}

func (n *Node) hasSession(id uint64) bool {
	_, live := n.fsm.root.Load().Session(id)
	return live
}

// A leader that stood still may not have heard what it should have: no deadline passes while it does.
func TestStalledLeaderEndsNoSession(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		id := openSilent(t, n)
		time.Sleep(n.opts.SessionLease / 2)
		clock.jump(time.Hour)
		time.Sleep(n.opts.SessionLease / 2)
		if !n.hasSession(id) {
			t.Fatal("the time in which the leader stood still counted")
		}
		time.Sleep(n.opts.SessionLease)
		if n.hasSession(id) {
			t.Error("and then the session lives for ever")
		}
	})
}

// While the leader's disk hangs it refuses KeepAlives: that time counts for nobody.
func TestHangingDiskEndsNoSession(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, _ *jumpClock) {
		const lease = 2 * time.Second
		id := openSilentFor(t, n, lease)
		write := n.store.watch.begin("log", true)
		time.Sleep(5 * time.Second)
		n.store.watch.end(write)
		time.Sleep(lease / 4)
		if !n.hasSession(id) {
			t.Fatal("the time in which the disk hung counted")
		}
		time.Sleep(lease)
		if n.hasSession(id) {
			t.Error("and then the session lives for ever")
		}
	})
}

// What the leader waits for by its own decision, rounds and commits, is no stall: however many sessions end on a slow
// disk, the others' deadlines stay where they are.
func TestSlowDecisionsAreNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(op string) error {
			if op == "log" {
				time.Sleep(150 * time.Millisecond)
			}
			return nil
		}
		n, err := Open(Options{Hooks: &hook.Hooks{Clock: hook.TimeClock(), Storage: slow}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		if err := n.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		const long = 6 * time.Second
		id := openSilentFor(t, n, long)
		opened := time.Now()
		for range 20 { // one after the other they end, for most of the long session's lease
			openSilentFor(t, n, time.Second)
		}
		time.Sleep(time.Until(opened.Add(long)))
		if !n.hasSession(id) {
			t.Fatal("the session ended before its lease")
		}
		time.Sleep(time.Until(opened.Add(cellLease(long) + 2*leaseTick + 3*150*time.Millisecond)))
		if n.hasSession(id) {
			t.Error("the time that other decisions took was added to the session's lease")
		}
	})
}

// A KeepAlive that was received postpones what is decided until it is answered.
func TestNoExpiryWhileKeepAliveWaits(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		s := n.proposer.route().lead.leases
		id := openSilent(t, n)
		for _, inbox := range []int{1, 0} {
			s.mu.Lock()
			s.mu.inbox = inbox
			s.mu.Unlock()
			s.expire(clock.Mono() + time.Hour)
			if live := n.hasSession(id); live != (inbox > 0) {
				t.Errorf("%d KeepAlives wait, and the session lives: %v", inbox, live)
			}
		}
	})
}

// Once an expiry was offered, nobody is told that the session lives, until the outcome is applied or the term is over.
// It stays so when the leadership ends first: the entry may be executed all the same, and a KeepAlive whose confirm round
// ended in time may come to its answer late.
func TestEndingSessionIsNotRenewed(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		id := openSilent(t, n)
		answer := func(l *leadership) byte {
			t.Helper()
			l.leases.mu.Lock()
			defer l.leases.mu.Unlock()
			return l.leases.answer(&wire.KeepAlive{Sessions: []uint64{id}}, clock.Mono())[0]
		}
		l := n.newLeadership(n.raft.Load().CurrentTerm())
		l.wg.Go(l.confirmer.run)
		l.leases.mu.sessions.Set(id, 0)
		if got := answer(l); got != wire.RenewAlive {
			t.Fatalf("before: %d", got)
		}
		n.proposer.hold(true) // what is offered does not get into the log
		l.wg.Go(func() { l.leases.expire(clock.Mono() + time.Hour) })
		synctest.Wait()
		if b, err := l.leases.keepAlive(t.Context(), &wire.KeepAlive{Sessions: []uint64{id}}); err != nil || b[0] != wire.RenewUnknown {
			t.Errorf("KeepAlive while the expiry is on its way: %v, %v", b, err)
		}
		l.cancel()
		l.wg.Wait()
		if got := answer(l); got != wire.RenewUnknown {
			t.Errorf("a late answer after the end of the term: %d", got)
		}
		n.proposer.hold(false)
		if !n.hasSession(id) {
			t.Error("what was offered was withdrawn with the leadership")
		}
	})
}

// What the cell promises counts from when it was asked. The answer may be long on its way.
func TestLeaseCountsFromSending(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		s, err := n.NewSession(t.Context(), SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // the keeper has looked at the clock
		asked := clock.Boot()
		clock.jumpAfterReading(2 * time.Second)
		if !n.keepAlive([]*Session{s}, nil, time.Second) {
			t.Fatal("no answer")
		}
		if got := clock.Boot() - asked; got < 2*time.Second {
			t.Fatalf("the answer took %v", got)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if got := s.mu.validUntil - asked; got != s.lease {
			t.Errorf("valid for %v from asking, want %v", got, s.lease)
		}
	})
}

// A grant that comes while the session is in jeopardy is handed out when the session is saved, not before.
func TestGrantWaitsForSession(t *testing.T) {
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		s, err := n.NewSession(t.Context(), SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()     // the keeper sleeps
		clock.jump(s.lease) // and it has not looked yet
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		held := &Lock{session: s, path: "/l", mode: Exclusive, generation: 1, seq: 1, done: make(chan struct{})}
		if _, err := s.hold(ctx, held); err == nil {
			t.Error("a lock is handed out in jeopardy")
		}
		l, err := s.hold(t.Context(), held)
		if err != nil || s.State() != SessionActive || l.Context().Err() != nil {
			t.Errorf("once the session is saved: %v, %v", err, s.State())
		}
	})
}
