package chubby

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// leaseBench is a leader's leases without the goroutines that drive them: the test says when a confirm round is run and when a
// tick comes. Its node is a cell of one, whose own leases judge nothing in the time that the tests take.
type leaseBench struct {
	t    *testing.T
	node *Node
	lead *leadership
	s    *leases
	lock *Lock // with a MaxHold, so that there is something of each kind to judge
	id   uint64
}

func newLeaseBench(t *testing.T) *leaseBench {
	t.Helper()
	n, err := Open(Options{SessionLease: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	l, err := n.Lock(t.Context(), "/l", MaxHold(24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b := &leaseBench{t: t, node: n, lead: n.newLeadership(n.proposer.route().lead.term), lock: l, id: uint64(l.session.id)}
	t.Cleanup(b.lead.cancel)
	b.s = b.lead.leases
	now := n.clock.Mono()
	b.s.mu.sessions.Set(b.id, now)
	b.s.mu.holds.Set(b.hold(), now)
	return b
}

func (b *leaseBench) hold() state.HoldID {
	return state.HoldID{Path: "/l", Generation: b.lock.generation, Session: b.id, Seq: b.lock.seq}
}

// confirm runs confirm rounds until the test ends.
func (b *leaseBench) confirm() {
	b.lead.wg.Go(b.lead.confirmer.run)
	b.t.Cleanup(func() { b.lead.cancel(); b.lead.wg.Wait() })
}

func (b *leaseBench) judge(now time.Duration) {
	b.s.endHolds(now)
	b.s.expire(now)
}

func (b *leaseBench) lives() bool {
	_, live := b.node.fsm.root.Load().Session(b.id)
	return live
}

func (b *leaseBench) held() bool {
	_, held := b.node.fsm.root.Load().MaxHold(b.hold())
	return held
}

// Nothing that is due is decided, let alone offered, before a confirm round that began after the deadline has ended well.
// (The term in the command would make a deposed leader's decision void, but a leader that is cut off with it in its log
// would have stopped answering KeepAlives for it.)
func TestExpiryNeedsConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		before := b.node.Status().CommitIndex
		done := make(chan struct{})
		now := b.node.clock.Mono()
		go func() { b.s.expire(now); close(done) }()
		held := make(chan struct{})
		go func() { b.s.endHolds(now); close(held) }()
		time.Sleep(10 * time.Minute)
		b.s.mu.Lock()
		marked := len(b.s.mu.ending)
		b.s.mu.Unlock()
		if marked != 0 || !b.lives() || !b.held() || b.node.Status().CommitIndex != before {
			t.Fatalf("decided without proof of leadership: %d marked, session lives: %v, lock held: %v", marked, b.lives(), b.held())
		}
		b.confirm()
		<-held
		<-done
		if b.lives() || b.held() {
			t.Error("with the proof it is not decided")
		}
	})
}

// A KeepAlive that was received before a decision puts it off until it is answered, and what it was told is true.
func TestKeepAlivePutsExpiryOff(t *testing.T) {
	for _, expireFirst := range []bool{false, true} { // who waits longer is woken first after the round
		synctest.Test(t, func(t *testing.T) {
			b := newLeaseBench(t)
			answer, done := make(chan []byte, 1), make(chan struct{})
			expire := func() {
				go func() { b.s.expire(b.node.clock.Mono()); close(done) }()
				synctest.Wait()
			}
			if expireFirst {
				expire()
			}
			go func() {
				a, err := b.s.keepAlive(context.Background(), &wire.KeepAlive{Sessions: []uint64{b.id}})
				if err != nil {
					t.Error(err)
				}
				answer <- a
			}()
			synctest.Wait()
			if !expireFirst {
				expire()
			}
			b.confirm()
			<-done
			if a := <-answer; len(a) != 1 || a[0] != wire.RenewAlive || !b.lives() {
				t.Fatalf("answered %v, session lives: %v", a, b.lives())
			}
		})
	}
}

// No KeepAlive is answered for a session whose expiry is being offered, also when that began during its confirm round.
func TestMarkedSessionIsNotRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		answer := make(chan []byte, 1)
		go func() {
			a, _ := b.s.keepAlive(context.Background(), &wire.KeepAlive{Sessions: []uint64{b.id, 12345}})
			answer <- a
		}()
		synctest.Wait()
		b.s.mu.Lock()
		b.s.mu.ending[b.id] = true
		b.s.mu.Unlock()
		b.confirm()
		if a := <-answer; len(a) != 2 || a[0] != wire.RenewUnknown || a[1] != wire.RenewEnded {
			t.Errorf("answered %v", a)
		}
	})
}

// Only the first acknowledgement starts the count of a holding, and only one of a grant that is there.
func TestAcknowledgement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newLeaseBench(t)
		b.s.mu.holds.Remove(b.hold())
		b.confirm()
		ack := func(h state.HoldID) byte {
			t.Helper()
			a, err := b.s.keepAlive(context.Background(), &wire.KeepAlive{Holds: []wire.Hold{wire.Hold(h)}})
			if err != nil || len(a) != 1 {
				t.Fatal(a, err)
			}
			return a[0]
		}
		received := b.node.clock.Mono()
		if a := ack(b.hold()); a != wire.RenewAlive {
			t.Errorf("answered %d", a)
		}
		time.Sleep(time.Hour)
		ack(b.hold())
		if at, ok := b.s.mu.holds.Deadline(b.hold()); !ok || at != received+cellLease(24*time.Hour) {
			t.Errorf("deadline %v, %v", at-received, ok)
		}
		for name, change := range map[string]func(*state.HoldID){
			"path": func(h *state.HoldID) { h.Path = "/m" }, "generation": func(h *state.HoldID) { h.Generation-- },
			"session": func(h *state.HoldID) { h.Session++ }, "sequence": func(h *state.HoldID) { h.Seq++ },
		} {
			h := b.hold()
			change(&h)
			if a := ack(h); a != wire.RenewEnded {
				t.Errorf("another %s: answered %d", name, a)
			}
		}
		if n := b.s.mu.holds.Len(); n != 1 {
			t.Errorf("%d holdings are counted", n)
		}
	})
}

// The margins are what the argument needs: the cell counts longer than any clock that is within 1 % of its own.
func TestCellLease(t *testing.T) {
	for lease, want := range map[time.Duration]time.Duration{
		time.Second:      time.Second + 10*time.Millisecond + 200*time.Millisecond,
		12 * time.Second: 12*time.Second + 120*time.Millisecond + 1200*time.Millisecond,
		time.Millisecond: 201*time.Millisecond + 10*time.Microsecond,
	} {
		if got := cellLease(lease); got != want {
			t.Errorf("cellLease(%v) = %v, want %v", lease, got, want)
		}
	}
}

// Commands count whole milliseconds: a part of one must not become none, which would be no delay at all.
func TestRoundUp(t *testing.T) {
	for d, want := range map[time.Duration]uint64{0: 0, 1: 1, 900 * time.Microsecond: 1, time.Millisecond: 1, 1001 * time.Microsecond: 2, time.Minute: 60000} {
		if got := roundUp(d); got != want {
			t.Errorf("roundUp(%v) = %d, want %d", d, got, want)
		}
	}
}
