package chubby_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// lockSoon asks for the lock in the background and gives the time of the grant.
func lockSoon(t *testing.T, n *chubby.Node, path string) (granted <-chan *chubby.Lock, at *time.Time) {
	t.Helper()
	c, at := make(chan *chubby.Lock, 1), new(time.Time)
	go func() {
		l, err := n.Lock(context.Background(), path)
		if err != nil {
			t.Errorf("Lock(%q): %v", path, err)
		}
		*at = time.Now()
		c <- l
	}()
	synctest.Wait()
	return c, at
}

// wantBetween fails unless lo <= d <= hi.
func wantBetween(t *testing.T, what string, d, lo, hi time.Duration) {
	t.Helper()
	if d < lo || d > hi {
		t.Errorf("%s after %v, want %v to %v", what, d, lo, hi)
	}
}

// At the end of its MaxHold the holder knows, to the moment, and the next has the lock at once: its holder gives it back.
func TestMaxHold(t *testing.T) {
	const hold = 5 * time.Second
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/m", chubby.MaxHold(hold))
		ctx, start := l.Context(), time.Now()
		granted, at := lockSoon(t, cell.Node(1), "/m")
		time.Sleep(hold - time.Millisecond)
		if ctx.Err() != nil || l.Err() != nil {
			t.Fatalf("a moment before: %v, %v", context.Cause(ctx), l.Err())
		}
		time.Sleep(time.Millisecond)
		if ctx.Err() == nil || !errors.Is(context.Cause(ctx), chubby.ErrLockLost) || !errors.Is(l.Err(), chubby.ErrLockLost) || l.Context().Err() == nil {
			t.Errorf("at its end: %v, %v", context.Cause(ctx), l.Err())
		}
		select {
		case <-l.Done():
		default:
			t.Error("Done is open")
		}
		next := <-granted
		wantBetween(t, "granted", at.Sub(start), hold, hold+100*time.Millisecond)
		if err := l.Unlock(t.Context()); !errors.Is(err, chubby.ErrNotHeld) {
			t.Errorf("Unlock afterwards: %v", err)
		}
		time.Sleep(10 * hold) // what was decided about the first grant leaves the second alone
		if next.Context().Err() != nil {
			t.Errorf("the next holder: %v", context.Cause(next.Context()))
		}
		if err := cell.Node(2).CheckSequencer(t.Context(), next.Sequencer()); err != nil {
			t.Error(err)
		}
		mustUnlock(t, next)
	})
}

// Nobody looks at this lock: the keeper notices.
func TestMaxHoldTellsByItself(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/m", chubby.MaxHold(time.Second))
		start := time.Now()
		<-l.Context().Done()
		<-l.Done()
		wantBetween(t, "Done", time.Since(start), time.Second, 1100*time.Millisecond)
	})
}

func longLease(o *chubby.Options) { o.SessionLease = time.Minute }

// A holder that cannot be reached knows in time; the cell counts by itself, longer than the holder, and does not wait for
// the session's end.
func TestMaxHoldOfUnreachableHolder(t *testing.T) {
	const hold = 30 * time.Second
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		holder, other := others(3, leader)[0], others(3, leader)[1]
		l := mustLock(t, cell.Node(holder), "/m", chubby.MaxHold(hold))
		ctx, start := l.Context(), time.Now()
		granted, at := lockSoon(t, cell.Node(other), "/m")
		time.Sleep(25 * time.Second) // a KeepAlive has repeated the acknowledgement, which must not start the count again
		cell.Partition([]int{holder}, []int{leader, other})
		<-ctx.Done()
		wantBetween(t, "the holder knows", time.Since(start), hold, hold+100*time.Millisecond)
		next := <-granted
		margin := hold/100 + hold/10
		wantBetween(t, "granted", at.Sub(start), hold+margin, hold+margin+200*time.Millisecond)
		cell.Heal()
		time.Sleep(10 * time.Second)
		if err := cell.Node(holder).CheckSequencer(t.Context(), next.Sequencer()); err != nil {
			t.Errorf("after the first holder came back: %v", err)
		}
		mustUnlock(t, next)
	}, longLease)
}

// A new cell leader has not heard of the grant. The next KeepAlive tells it, and it counts from there.
func TestMaxHoldOverLeaderChange(t *testing.T) {
	const hold = 50 * time.Second
	inBubble(t, 5, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		rest := others(5, leader)
		l := mustLock(t, cell.Node(rest[0]), "/m", chubby.MaxHold(hold))
		start := time.Now()
		cell.Crash(leader)
		granted, at := lockSoon(t, cell.Leader(), "/m")
		if now := cell.Index(cell.Leader()); now == rest[0] {
			t.Skip("the holder leads: it cannot be cut off from the leader")
		}
		time.Sleep(30 * time.Second) // a third of the lease is 20 s
		cell.Partition([]int{rest[0]}, rest[1:])
		next := <-granted
		if l.Context().Err() == nil {
			t.Error("two holders")
		}
		// Its session would end 66.6 s after its last KeepAlive, which left 10 s before the cut at the earliest.
		wantBetween(t, "granted", at.Sub(start), hold+hold/100+hold/10, 20*time.Second+hold+hold/100+hold/10+time.Second)
		mustUnlock(t, next)
	}, longLease)
}

// No cell leader has heard of the grant until its time is over: what the cell cannot count the holder gives back when it
// can, and nobody waits for the end of its session.
func TestMaxHoldUnacknowledged(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/m", chubby.MaxHold(2*time.Second))
		start := time.Now()
		cell.Partition([]int{0}, []int{1}, []int{2})
		granted, at := lockSoon(t, cell.Node(1), "/m")
		<-l.Done()
		wantBetween(t, "the holder knows", time.Since(start), 2*time.Second, 2100*time.Millisecond)
		time.Sleep(time.Until(start.Add(5 * time.Second)))
		if len(granted) > 0 {
			t.Fatal("granted without a majority")
		}
		cell.Heal()
		next := <-granted
		wantBetween(t, "granted", at.Sub(start), 5*time.Second, 8*time.Second)
		if s, err := cell.Node(0).Session(t.Context()); err != nil || s.State() != chubby.SessionActive {
			t.Errorf("the first holder's session: %v", err)
		}
		mustUnlock(t, next)
	}, longLease)
}

// A holder that was frozen with its clock learns from the cell that its time was over.
func TestMaxHoldOfFrozenHolder(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		holder, other := others(3, leader)[0], others(3, leader)[1]
		for _, atOnce := range []bool{false, true} {
			l := mustLock(t, cell.Node(holder), "/m", chubby.MaxHold(20*time.Second))
			time.Sleep(time.Second)
			cell.Pause(holder)
			next := mustLock(t, cell.Node(other), "/m")
			cell.Resume(holder)
			if !atOnce { // else it believes in its lock, and its Unlock goes to the cell
				time.Sleep(time.Second) // of the 18 s and more that its own clock leaves it
				if !errors.Is(l.Err(), chubby.ErrLockLost) || l.Context().Err() == nil {
					t.Errorf("after the freeze: %v", l.Err())
				}
			}
			if err := l.Unlock(t.Context()); !errors.Is(err, chubby.ErrNotHeld) {
				t.Errorf("Unlock: %v", err)
			}
			if err := cell.Node(holder).CheckSequencer(t.Context(), next.Sequencer()); err != nil {
				t.Error(err)
			}
			mustUnlock(t, next)
		}
	}, longLease)
}

// Every call that takes the option keeps it.
func TestMaxHoldOfEveryCall(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		s, err := n.NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		type held interface {
			Done() <-chan struct{}
			Err() error
		}
		ctx, opt := t.Context(), chubby.MaxHold(time.Second)
		for name, call := range map[string]func() (held, error){
			"Client.Lock":      func() (held, error) { return n.Lock(ctx, "/1", opt) },
			"Client.RLock":     func() (held, error) { return n.RLock(ctx, "/2", opt) },
			"Client.TryLock":   func() (held, error) { return n.TryLock(ctx, "/3", opt) },
			"Client.TryRLock":  func() (held, error) { return n.TryRLock(ctx, "/2", opt) },
			"Client.Campaign":  func() (held, error) { return n.Campaign(ctx, "/5", nil, opt) },
			"Session.Lock":     func() (held, error) { return s.Lock(ctx, "/6", opt) },
			"Session.RLock":    func() (held, error) { return s.RLock(ctx, "/7", opt) },
			"Session.TryLock":  func() (held, error) { return s.TryLock(ctx, "/8", opt) },
			"Session.TryRLock": func() (held, error) { return s.TryRLock(ctx, "/7", opt) },
			"Session.Campaign": func() (held, error) { return s.Campaign(ctx, "/10", nil, opt) },
		} {
			h, err := call()
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			start := time.Now()
			<-h.Done()
			if d := time.Since(start); d < 900*time.Millisecond || d > 1100*time.Millisecond || !errors.Is(h.Err(), chubby.ErrLockLost) {
				t.Errorf("%s: over after %v with %v", name, d, h.Err())
			}
		}
		for name, with := range map[string]func(context.Context, string, func(context.Context, *chubby.Lock) error, ...chubby.LockOption) error{
			"Client.WithLock": n.WithLock, "Session.WithLock": s.WithLock,
		} {
			err := with(ctx, "/w", func(ctx context.Context, l *chubby.Lock) error {
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), chubby.ErrLockLost) {
					t.Errorf("%s: cause %v", name, context.Cause(ctx))
				}
				return nil
			}, opt)
			if !errors.Is(err, chubby.ErrLockLost) {
				t.Errorf("%s: %v", name, err)
			}
		}
		time.Sleep(time.Second)
		if status := n.Status(); status.Locks != 0 {
			t.Errorf("%d locks are held afterwards", status.Locks)
		}
	})
}

func TestMaxHoldOptions(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		for _, d := range []time.Duration{-time.Second, 0, time.Microsecond, 31 * 24 * time.Hour} {
			_, err := cell.Node(0).Lock(t.Context(), "/m", chubby.MaxHold(d), chubby.LockDelay(2*time.Minute))
			if !errors.Is(err, chubby.ErrBadOptions) {
				t.Errorf("MaxHold %v: %v", d, err)
				continue
			}
			for _, want := range []string{"MaxHold " + d.String(), "use 1ms to 720h", "LockDelay 2m"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		}
		// The cell counts whole milliseconds, and never fewer than the holder.
		l := mustLock(t, cell.Node(0), "/m", chubby.MaxHold(1500*time.Microsecond))
		<-l.Done()
	})
}
