package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

func mustLock(t *testing.T, c interface {
	Lock(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error)
}, path string, opts ...chubby.LockOption) *chubby.Lock {
	t.Helper()
	l, err := c.Lock(within(t, time.Minute), path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustUnlock(t *testing.T, l *chubby.Lock) {
	t.Helper()
	if err := l.Unlock(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		a, b := cell.Node(0), cell.Node(1)
		l := mustLock(t, a, "/svc/primary")
		if l.Path() != "/svc/primary" || l.Mode() != chubby.Exclusive || l.Context().Err() != nil || l.Err() != nil {
			t.Fatalf("fresh lock: %q, %v, %v, %v", l.Path(), l.Mode(), l.Context().Err(), l.Err())
		}
		if err := b.CheckSequencer(t.Context(), l.Sequencer()); err != nil {
			t.Errorf("CheckSequencer of a held lock: %v", err)
		}
		if _, err := b.TryLock(t.Context(), "svc/primary"); !errors.Is(err, chubby.ErrLockHeld) {
			t.Errorf("TryLock of a held lock: %v", err)
		}
		if _, err := a.TryLock(t.Context(), "/ls/local/svc/primary"); !errors.Is(err, chubby.ErrLockHeld) {
			t.Errorf("TryLock by the holder's own session: %v", err)
		}
		if _, err := a.Stat(t.Context(), "/svc/primary"); !errors.Is(err, chubby.ErrNotFound) {
			t.Errorf("Stat of a lock without an entry: %v", err)
		}
		info, err := b.LockInfo(t.Context(), "/svc/primary")
		if err != nil || len(info.Holders) != 1 || info.Holders[0].Name != "n0" || info.Generation != l.Sequencer().Generation {
			t.Errorf("LockInfo = %+v, %v", info, err)
		}

		type grant struct {
			lock *chubby.Lock
			err  error
		}
		next := make(chan grant)
		go func() {
			l, err := b.Lock(context.Background(), "/svc/primary")
			next <- grant{l, err}
		}()
		synctest.Wait()
		ctx, released := l.Context(), time.Now()
		mustUnlock(t, l)
		if !errors.Is(context.Cause(ctx), chubby.ErrNotHeld) || !errors.Is(l.Err(), chubby.ErrNotHeld) {
			t.Errorf("after Unlock: cause %v, Err %v", context.Cause(ctx), l.Err())
		}
		g := <-next
		if g.err != nil {
			t.Fatal(g.err)
		}
		if d := time.Since(released); d > 50*time.Millisecond {
			t.Errorf("hand-over took %v", d)
		}
		if g.lock.Sequencer().Compare(l.Sequencer()) <= 0 {
			t.Errorf("sequencer %v after %v", g.lock.Sequencer(), l.Sequencer())
		}
		if err := a.CheckSequencer(t.Context(), l.Sequencer()); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("CheckSequencer of the former holder: %v", err)
		}
		if err := l.Unlock(t.Context()); !errors.Is(err, chubby.ErrNotHeld) {
			t.Errorf("second Unlock: %v", err)
		}
		if _, err := a.Set(t.Context(), "/data", []byte("late"), chubby.IfHolds(l.Sequencer())); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("fenced write of the former holder: %v", err)
		}
		if _, err := b.Set(t.Context(), "/data", []byte("fresh"), chubby.IfHolds(g.lock.Sequencer())); err != nil {
			t.Errorf("fenced write of the holder: %v", err)
		}
		mustUnlock(t, g.lock)
	})
}

// Waiting calls are served in order, across nodes, and a Lock call that was given up is not served.
func TestLockQueue(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/q")
		var order []int
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 9 {
			ctx, cancel := context.WithCancel(context.Background())
			wg.Go(func() {
				l, err := cell.Node(i%3).Lock(ctx, "/q")
				if i%4 == 1 {
					if !errors.Is(err, context.Canceled) || errors.Is(err, chubby.ErrUncertain) {
						t.Errorf("given up: %v", err)
					}
					return
				}
				if err != nil {
					t.Errorf("waiter %d: %v", i, err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				mustUnlock(t, l)
			})
			time.Sleep(10 * time.Millisecond)
			if i%4 == 1 {
				cancel()
			} else {
				t.Cleanup(cancel)
			}
		}
		time.Sleep(time.Second)
		if info, err := cell.Node(1).LockInfo(t.Context(), "/q"); err != nil || info.Waiters != 7 {
			t.Errorf("LockInfo = %+v, %v, want 7 waiters", info, err)
		}
		mustUnlock(t, l)
		wg.Wait()
		if got, want := fmt.Sprint(order), "[0 2 3 4 6 7 8]"; got != want {
			t.Errorf("served %v, want %v", got, want)
		}
	})
}

func TestSharedLocks(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		r1, err := cell.Node(0).RLock(t.Context(), "/s")
		if err != nil {
			t.Fatal(err)
		}
		r2, err := cell.Node(1).TryRLock(t.Context(), "/s")
		if err != nil {
			t.Fatal(err)
		}
		if r1.Sequencer() != r2.Sequencer() {
			t.Errorf("shared holders have sequencers %v and %v", r1.Sequencer(), r2.Sequencer())
		}
		var writer atomic.Pointer[chubby.Lock]
		go func() {
			l, err := cell.Node(2).Lock(context.Background(), "/s")
			if err != nil {
				t.Error(err)
			}
			writer.Store(l)
		}()
		time.Sleep(time.Second)
		if _, err := cell.Node(1).TryRLock(t.Context(), "/s"); !errors.Is(err, chubby.ErrLockHeld) {
			t.Errorf("TryRLock overtakes a waiting writer: %v", err)
		}
		mustUnlock(t, r1)
		time.Sleep(time.Second)
		if writer.Load() != nil {
			t.Fatal("exclusive while a shared holder is left")
		}
		mustUnlock(t, r2)
		time.Sleep(time.Second)
		if writer.Load() == nil {
			t.Fatal("the writer still waits")
		}
		mustUnlock(t, writer.Load())
	})
}

// A Lock call whose ctx ends, whatever became of its command, leaves nothing behind.
func TestLockGivenUp(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Leader()
		for i := range 40 {
			n := cell.Node(i % 3)
			// From before the command leaves to after the grant.
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*5*time.Microsecond)
			l, err := n.Lock(ctx, "/g")
			cancel()
			if err == nil {
				mustUnlock(t, l)
			} else if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, chubby.ErrUncertain) {
				t.Fatalf("given up: %v", err)
			}
			mustUnlock(t, mustLock(t, cell.Node((i+1)%3), "/g"))
		}
		time.Sleep(time.Second)
		if info, err := cell.Node(0).LockInfo(t.Context(), "/g"); err != nil || len(info.Holders) != 0 || info.Waiters != 0 {
			t.Errorf("LockInfo = %+v, %v", info, err)
		}
	})
}

// A holder that is cut off knows, by its own clock, before the cell gives the lock to another.
func TestLockLostByPartition(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for range 4 {
			leader := cell.Index(cell.Leader())
			for _, holder := range []int{leader, others(3, leader)[0]} {
				l := mustLock(t, cell.Node(holder), "/p")
				ctx := l.Context()
				rest := others(3, holder)
				cell.Partition([]int{holder}, rest)
				next := mustLock(t, cell.Node(rest[0]), "/p")
				select {
				case <-ctx.Done():
				default:
					t.Fatal("two live holders")
				}
				if !errors.Is(context.Cause(ctx), chubby.ErrLockLost) {
					t.Errorf("cause %v", context.Cause(ctx))
				}
				cell.Heal()
				select {
				case <-l.Done():
				case <-time.After(2 * time.Minute):
					t.Fatal("the old holder never learns that the lock is gone")
				}
				if !errors.Is(l.Err(), chubby.ErrSessionExpired) {
					t.Errorf("Err = %v", l.Err())
				}
				mustUnlock(t, next)
			}
		}
	})
}

// A frozen holder believes in its lock; the fence does not.
func TestFrozenHolder(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/f")
		cell.Pause(0)
		next := mustLock(t, cell.Node(1), "/f")
		if l.Context().Err() != nil {
			t.Error("its clock stands with it, so it cannot know")
		}
		if err := cell.Node(1).CheckSequencer(t.Context(), l.Sequencer()); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("CheckSequencer: %v", err)
		}
		cell.Resume(0)
		_, err := cell.Node(0).Set(t.Context(), "/data", nil, chubby.IfHolds(l.Sequencer()))
		if !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("fenced write after the freeze: %v", err)
		}
		mustUnlock(t, next)
	})
}

// A session outlives changes of the cell leader, and its locks with it.
func TestFailoverLosesNoLock(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for range 5 {
			leader := cell.Index(cell.Leader())
			holder := others(3, leader)[1]
			l := mustLock(t, cell.Node(holder), "/l")
			ctx := l.Context()
			cell.Crash(leader)
			time.Sleep(30 * time.Second)
			if ctx.Err() != nil || l.Err() != nil {
				t.Fatalf("lost: %v, %v", context.Cause(ctx), l.Err())
			}
			if err := cell.Node(holder).CheckSequencer(t.Context(), l.Sequencer()); err != nil {
				t.Fatal(err)
			}
			mustUnlock(t, l)
			cell.Restart(leader)
		}
	})
}

// Jeopardy ends the context for good; a session saved in its grace period still has the lock, with a new context.
func TestJeopardy(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{Name: "worker"})
		if err != nil {
			t.Fatal(err)
		}
		var states []chubby.SessionState
		go func() {
			for st := range s.States(context.Background()) {
				states = append(states, st)
			}
		}()
		l := mustLock(t, s, "/j")
		ctx := l.Context()
		cell.Partition([]int{0}, []int{1}, []int{2}) // nobody can expire anything
		time.Sleep(15 * time.Second)
		if s.State() != chubby.SessionJeopardy || ctx.Err() == nil || l.Err() != nil {
			t.Fatalf("in jeopardy: %v, %v, %v", s.State(), ctx.Err(), l.Err())
		}
		cell.Heal()
		time.Sleep(5 * time.Second)
		if s.State() != chubby.SessionActive || ctx.Err() == nil || l.Context().Err() != nil {
			t.Fatalf("saved: %v, old context %v, new context %v", s.State(), ctx.Err(), l.Context().Err())
		}
		if err := cell.Node(1).CheckSequencer(t.Context(), l.Sequencer()); err != nil {
			t.Fatalf("the lock of a saved session: %v", err)
		}
		cell.Partition([]int{0}, []int{1}, []int{2})
		time.Sleep(12*time.Second + 45*time.Second + time.Second)
		if !errors.Is(s.Err(), chubby.ErrSessionExpired) || !errors.Is(l.Err(), chubby.ErrSessionExpired) {
			t.Errorf("after the grace period: %v, %v", s.Err(), l.Err())
		}
		cell.Heal()
		if _, err := s.Lock(t.Context(), "/other"); !errors.Is(err, chubby.ErrSessionExpired) {
			t.Errorf("Lock in an expired session: %v", err)
		}
		synctest.Wait()
		if got, want := fmt.Sprint(states), "[active jeopardy active jeopardy expired]"; got != want {
			t.Errorf("states %v, want %v", got, want)
		}
	})
}

func TestLockDelay(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/d", chubby.LockDelay(time.Minute))
		mustUnlock(t, l)
		start := time.Now()
		mustUnlock(t, mustLock(t, cell.Node(1), "/d"))
		if d := time.Since(start); d > time.Second {
			t.Errorf("delay after Unlock: %v", d)
		}
		mustLock(t, cell.Node(0), "/d", chubby.LockDelay(30*time.Second))
		cell.Crash(0)
		start = time.Now()
		time.Sleep(20 * time.Second)
		if info, err := cell.Node(1).LockInfo(t.Context(), "/d"); err != nil || !info.Delayed || len(info.Holders) != 0 {
			t.Errorf("LockInfo = %+v, %v", info, err)
		}
		if _, err := cell.Node(1).TryLock(t.Context(), "/d"); !errors.Is(err, chubby.ErrLockHeld) {
			t.Errorf("TryLock of a delayed lock: %v", err)
		}
		next := mustLock(t, cell.Node(2), "/d")
		if d := time.Since(start); d < 30*time.Second+10*time.Second {
			t.Errorf("granted %v after the crash: lease and delay are at least 40s", d)
		}
		mustUnlock(t, next)
		if _, err := cell.Node(1).Lock(t.Context(), "/d", chubby.LockDelay(61*time.Second)); !errors.Is(err, chubby.ErrBadOptions) {
			t.Errorf("LockDelay of 61s: %v", err)
		}
	})
}

func TestWithLock(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		boom := errors.New("boom")
		if err := cell.Node(0).WithLock(t.Context(), "/w", func(context.Context, *chubby.Lock) error { return boom }); err != boom {
			t.Errorf("fn's error comes as %v", err)
		}
		err := cell.Node(0).WithLock(t.Context(), "/w", func(ctx context.Context, l *chubby.Lock) error {
			cell.Partition([]int{0}, []int{1, 2})
			<-ctx.Done()
			cell.Heal()
			return nil
		})
		if !errors.Is(err, chubby.ErrLockLost) {
			t.Errorf("lost meanwhile: %v", err)
		}
		mustUnlock(t, mustLock(t, cell.Node(1), "/w"))
		// fn may unlock by itself, with the context that ends by that, and wait for the cell's answer.
		err = cell.Node(0).WithLock(t.Context(), "/w", func(ctx context.Context, l *chubby.Lock) error {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if err := l.Unlock(ctx); err != nil {
				t.Errorf("Unlock within fn: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Errorf("unlocked by fn: %v", err)
		}
		// What leaves fn otherwise leaves no lock behind.
		func() {
			defer func() {
				if r := recover(); r != "boom" {
					t.Errorf("recovered %v", r)
				}
			}()
			_ = cell.Node(0).WithLock(t.Context(), "/w", func(context.Context, *chubby.Lock) error { panic("boom") })
		}()
		if _, err := cell.Node(1).TryLock(t.Context(), "/w"); err != nil {
			t.Errorf("after a panic: %v", err)
		}
	})
}

func TestElection(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		if _, err := cell.Node(0).Leader(t.Context(), "/e"); !errors.Is(err, chubby.ErrNoLeader) {
			t.Errorf("Leader of nobody: %v", err)
		}
		first, err := cell.Node(0).Campaign(t.Context(), "/e", []byte("zero"))
		if err != nil {
			t.Fatal(err)
		}
		won := make(chan *chubby.Leadership)
		go func() {
			l, err := cell.Node(1).Campaign(context.Background(), "/e", []byte("one"))
			if err != nil {
				t.Error(err)
			}
			won <- l
		}()
		time.Sleep(time.Second)
		if info, err := cell.Node(2).Leader(t.Context(), "/e"); err != nil || string(info.Value) != "zero" || info.Name != "n0" {
			t.Errorf("Leader = %+v, %v", info, err)
		}
		if err := first.Publish(t.Context(), []byte("zero, again")); err != nil {
			t.Error(err)
		}
		wantGet(t, cell.Node(2), "/e", "zero, again")
		cell.Crash(0)
		second := <-won
		if second.Sequencer().Compare(first.Sequencer()) <= 0 {
			t.Errorf("sequencers %v, then %v", first.Sequencer(), second.Sequencer())
		}
		wantGet(t, cell.Node(2), "/e", "one")
		if err := second.Resign(t.Context()); err != nil {
			t.Error(err)
		}
		if err := second.Publish(t.Context(), []byte("too late")); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("Publish after Resign: %v", err)
		}
		if _, err := cell.Node(2).Leader(t.Context(), "/e"); !errors.Is(err, chubby.ErrNoLeader) {
			t.Errorf("Leader after Resign: %v", err)
		}
		wantGet(t, cell.Node(2), "/e", "one")
	})
}

// An idle session costs no log entry.
func TestKeepAliveIsNotInTheLog(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/idle")
		time.Sleep(time.Second)
		before := cell.Node(1).Status().CommitIndex
		time.Sleep(5 * time.Minute)
		if after := cell.Node(1).Status().CommitIndex; after != before {
			t.Errorf("five idle minutes took %d log entries", after-before)
		}
		if l.Context().Err() != nil {
			t.Error("and lost the lock")
		}
		mustUnlock(t, l)
	})
}

// A call that waits does not use up its session: everything else goes on, and its Unlock above all.
func TestWaitersDoNotFillTheWindow(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		l := mustLock(t, n, "/l")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var served atomic.Int64
		for i := range 1100 {
			wg.Go(func() {
				ctx := ctx
				if i%100 == 0 {
					ctx = t.Context() // these wait to the end
				}
				l, err := n.Lock(ctx, "/l")
				if err != nil {
					return
				}
				served.Add(1)
				mustUnlock(t, l)
			})
		}
		time.Sleep(time.Second)
		for i := range 1100 {
			mustSet(t, n, "/x", fmt.Sprint(i))
		}
		cancel()
		mustUnlock(t, l)
		wg.Wait()
		if got := served.Load(); got < 11 {
			t.Errorf("%d waiters served", got)
		}
		time.Sleep(time.Second)
		if info, err := n.LockInfo(t.Context(), "/l"); err != nil || info.Waiters != 0 || len(info.Holders) != 0 {
			t.Errorf("LockInfo = %+v, %v", info, err)
		}
	})
}

// A campaign whose value cannot be written when its turn comes is told so, and the next one gets its turn.
func TestCampaignRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/c")
		errs := make(chan error, 1)
		go func() {
			_, err := cell.Node(1).Campaign(context.Background(), "/c", []byte("me"))
			errs <- err
		}()
		time.Sleep(time.Second)
		if _, err := cell.Node(2).Create(t.Context(), "/c", nil, chubby.CreateOptions{Dir: true}); err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, l)
		if err := <-errs; !errors.Is(err, chubby.ErrIsDir) {
			t.Errorf("Campaign: %v", err)
		}
		mustUnlock(t, mustLock(t, cell.Node(2), "/c"))
	})
}

// LockInfo names every holder with its session, and tells who waits and what shuts the lock.
func TestLockInfo(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		info := func() chubby.LockInfo {
			t.Helper()
			info, err := cell.Node(2).LockInfo(t.Context(), "i")
			if err != nil {
				t.Fatal(err)
			}
			return info
		}
		if got := info(); got.Path != "/i" || got.Mode != 0 || got.Generation != 0 || got.Holders != nil || got.Waiters != 0 || got.Delayed {
			t.Errorf("free: %+v", got)
		}
		var sessions []*chubby.Session
		var want []chubby.LockHolder
		var generation uint64
		for i, name := range []string{"alice", "bob"} {
			s, err := cell.Node(i).NewSession(t.Context(), chubby.SessionOptions{Name: name})
			if err != nil {
				t.Fatal(err)
			}
			l, err := s.RLock(t.Context(), "/i", chubby.LockDelay(time.Minute))
			if err != nil {
				t.Fatal(err)
			}
			generation = l.Sequencer().Generation
			sessions = append(sessions, s)
			want = append(want, chubby.LockHolder{Session: s.ID(), Name: name, Since: cell.Leader().Status().Revision})
		}
		for range 3 {
			go func() { _, _ = cell.Node(2).Lock(context.Background(), "/i") }()
		}
		time.Sleep(time.Second)
		got := info()
		if fmt.Sprint(got.Holders) != fmt.Sprint(want) || got.Mode != chubby.Shared || got.Generation != generation || got.Generation != want[0].Since || got.Waiters != 3 || got.Delayed {
			t.Errorf("got %+v, want holders %+v since generation %d", got, want, generation)
		}
		if err := sessions[0].Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := info(); fmt.Sprint(got.Holders) != fmt.Sprint(want[1:]) || got.Generation != generation {
			t.Errorf("one left: %+v", got)
		}
		cell.Crash(1)
		time.Sleep(30 * time.Second)
		if got := info(); !got.Delayed || got.Holders != nil || got.Mode != 0 || got.Generation != 0 || got.Waiters != 3 {
			t.Errorf("delayed: %+v", got)
		}
		time.Sleep(time.Minute)
		if got := info(); got.Delayed || got.Mode != chubby.Exclusive || len(got.Holders) != 1 || got.Holders[0].Name != "n2" || got.Waiters != 2 {
			t.Errorf("after the delay: %+v", got)
		}
	})
}

// Two Lock calls of one session exclude each other like those of two, and each Unlock is of its own grant.
func TestCallsOfOneSessionExclude(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var inside atomic.Int32
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 5 {
					err := s.WithLock(t.Context(), "/x", func(context.Context, *chubby.Lock) error {
						if n := inside.Add(1); n != 1 {
							t.Errorf("%d inside", n)
						}
						time.Sleep(time.Millisecond)
						inside.Add(-1)
						return nil
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		// A shared holder waits for itself when it wants more, until its ctx ends.
		r, err := s.RLock(t.Context(), "/x")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Lock(within(t, time.Minute), "/x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock over its own RLock: %v", err)
		}
		mustUnlock(t, r)
	})
}

// The grant and the end of the waiter's ctx meet at every distance, to within a microsecond: the call either has the lock
// or leaves nothing, and the next one does not wait.
func TestCancelMeetsGrant(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Leader()
		cell.Delay(0, 20*time.Microsecond)
		granted := 0
		const rounds = 100
		for i := range rounds {
			l := mustLock(t, cell.Node(i%3), "/g")
			ctx, cancel := context.WithCancel(t.Context())
			got := make(chan *chubby.Lock)
			go func() {
				l, err := cell.Node((i+1)%3).Lock(ctx, "/g")
				if (l == nil) != (err != nil) || err != nil && (!errors.Is(err, context.Canceled) || errors.Is(err, chubby.ErrUncertain)) {
					t.Errorf("%v, %v", l, err)
				}
				got <- l
			}()
			time.Sleep(10 * time.Millisecond)
			time.AfterFunc(time.Duration(i*2)*time.Microsecond, cancel)
			mustUnlock(t, l)
			if l := <-got; l != nil {
				granted++
				if err := cell.Node(i%3).CheckSequencer(t.Context(), l.Sequencer()); err != nil || l.Context().Err() != nil {
					t.Errorf("round %d: a grant that is none: %v, %v", i, err, context.Cause(l.Context()))
				}
				mustUnlock(t, l)
			}
			start := time.Now()
			mustUnlock(t, mustLock(t, cell.Node((i+2)%3), "/g"))
			wantBetween(t, "the next has it", time.Since(start), 0, 100*time.Millisecond)
		}
		if granted == 0 || granted == rounds {
			t.Errorf("%d of %d calls were granted: the moments did not meet", granted, rounds)
		}
		t.Logf("%d of %d granted", granted, rounds)
	})
}

// The lock of a holder that is gone is granted elsewhere when its lease, the margin and its delay are over: no sooner, and
// hardly later. A change of the cell leader meanwhile costs one full lease.
func TestHolderLost(t *testing.T) {
	const lease, delay = 12 * time.Second, 7 * time.Second
	const counted = lease + lease/100 + lease/10 // what the cell counts
	for _, tt := range []struct {
		name    string
		opts    []chubby.LockOption
		delay   time.Duration
		changes int
	}{
		{"lease", nil, 0, 0},
		{"lease and delay", []chubby.LockOption{chubby.LockDelay(delay)}, delay, 0},
		{"a leader change", nil, 0, 1},
		{"two leader changes", []chubby.LockOption{chubby.LockDelay(delay)}, delay, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, 5, func(t *testing.T, cell *chubbytest.Cell) {
				holder := others(5, cell.Index(cell.Leader()))[0]
				l := mustLock(t, cell.Node(holder), "/l", tt.opts...)
				time.Sleep(10 * time.Second)
				ctx, start := l.Context(), time.Now()
				cell.Partition([]int{holder}, others(5, holder))
				known := make(chan time.Duration, 1)
				go func() {
					<-ctx.Done()
					known <- time.Since(start)
				}()
				for range tt.changes {
					time.Sleep(5 * time.Second)
					leader := cell.Index(cell.Leader())
					cell.Crash(leader)
					cell.Leader()
					cell.Restart(leader)
				}
				mustLock(t, cell.Node(others(5, holder)[0]), "/l")
				d := time.Since(start)
				// The last KeepAlive before the cut left at most a third of the lease before it.
				wantBetween(t, "the holder knows", <-known, lease-lease/3, lease+100*time.Millisecond)
				lo, hi := counted-lease/3+tt.delay, counted+tt.delay+200*time.Millisecond
				if tt.changes > 0 {
					lo = counted + tt.delay
					hi += time.Duration(tt.changes) * (5*time.Second + 3*time.Second) // the change's time, and the election
				}
				wantBetween(t, "granted", d, lo, hi)
			})
		})
	}
}

// Changes of the cell leader that are shorter than the lease lose no session and no lock, however many they are.
func TestLeaderChangesLoseNothing(t *testing.T) {
	rounds := 25
	if *long {
		rounds = 1000
	}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		var locks []*chubby.Lock
		var contexts []context.Context
		for i := range 3 {
			cell.Leader()
			for j := range 4 {
				l := mustLock(t, cell.Node(i), fmt.Sprintf("/l/%d/%d", i, j))
				locks, contexts = append(locks, l), append(contexts, l.Context())
			}
		}
		term, changes := cell.Leader().Status().Term, 0
		for round := range rounds {
			leader := cell.Index(cell.Leader())
			switch round % 3 {
			case 0:
				cell.Partition([]int{leader}, others(3, leader))
				time.Sleep(time.Second)
				cell.Heal()
			case 1:
				cell.Pause(leader)
				time.Sleep(time.Second)
				cell.Resume(leader)
			case 2: // it hears the others, and they do not hear it
				for _, i := range others(3, leader) {
					cell.Cut(leader, i)
				}
				time.Sleep(time.Second)
				cell.Heal()
			}
			if now := cell.Leader().Status().Term; now > term {
				term = now
				changes++
			}
			time.Sleep(time.Second)
		}
		for i, l := range locks {
			if contexts[i].Err() != nil || l.Err() != nil {
				t.Fatalf("lock %d: %v, %v", i, context.Cause(contexts[i]), l.Err())
			}
			if err := cell.Node(0).CheckSequencer(within(t, time.Minute), l.Sequencer()); err != nil {
				t.Fatal(err)
			}
		}
		if changes < rounds*9/10 {
			t.Errorf("only %d changes in %d rounds", changes, rounds)
		}
		t.Logf("%d changes of the cell leader", changes)
	})
}

// A second caller of Close waits for the first: were the node stopped under its good-bye, others would wait for its lease.
func TestClosingTwiceFreesLocks(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		follower := others(3, cell.Index(cell.Leader()))[0]
		n := cell.Node(follower)
		mustLock(t, n, "/lock")
		cell.Partition([]int{follower}, others(3, follower))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { n.Close() })
		}
		time.Sleep(time.Second) // of the two that a good-bye may take
		cell.Heal()
		began := time.Now()
		mustLock(t, cell.Leader(), "/lock")
		if waited := time.Since(began); waited > 5*time.Second {
			t.Errorf("waited %v for the lock of a node that was closed", waited)
		}
		wg.Wait()
	})
}
