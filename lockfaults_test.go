package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
)

// Exact schedules of faults around locks, each for one rule that a shorter implementation would break.

// With clocks that are wrong by all that is allowed, in every combination, an isolated holder knows before the lock goes
// to another, and the lock goes to another within the bound.
func TestClockRates(t *testing.T) {
	const lease, most = 12 * time.Second, 10_000
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for _, slow := range []int64{-most, most} {
			for _, fast := range []int64{-most, most} {
				leader := cell.Index(cell.Leader())
				rest := others(3, leader)
				holder, next := rest[0], rest[1]
				cell.Skew(holder, slow)
				cell.Skew(leader, fast)
				l := mustLock(t, cell.Node(holder), "/r")
				ctx := l.Context()
				time.Sleep(lease)
				cell.Partition([]int{holder}, []int{leader, next})
				cut := time.Now()
				told := make(chan time.Duration, 1)
				context.AfterFunc(ctx, func() { told <- time.Since(cut) })
				n := mustLock(t, cell.Node(next), "/r")
				if ctx.Err() == nil || l.Context().Err() == nil {
					t.Fatalf("holder by %d ppm, cell leader by %d ppm: two live holders", slow, fast)
				}
				took := time.Since(cut)
				// The last renewal was up to a third of a lease before the cut, and jitter.
				if least, bound := lease*2/3*99/100, (lease*111/100)*100/99+200*time.Millisecond; took < least || took > bound {
					t.Errorf("granted %v after the cut, want %v to %v", took, least, bound)
				}
				if d := <-told; d > lease*100/99+100*time.Millisecond {
					t.Errorf("the isolated holder was told after %v", d)
				}
				cell.Heal()
				mustUnlock(t, n)
			}
		}
	})
}

// A leader that was deposed and does not know it renews nothing, not even its own sessions: raft's goroutine that would
// step down hangs in a write to the disk, and everything else goes on.
func TestDeposedLeaderRenewsNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		old := cell.Index(cell.Leader())
		l := mustLock(t, cell.Node(old), "/d")
		ctx := l.Context()
		cell.StallDisk(old)
		stuck := make(chan error, 1)
		go func() { _, err := cell.Node(old).Set(context.Background(), "/stuck", nil); stuck <- err }()
		time.Sleep(10 * time.Millisecond)
		cell.Partition([]int{old}, others(3, old))
		next := mustLock(t, cell.Node(others(3, old)[0]), "/d")
		if role := cell.Node(old).Status().Role; role != chubby.RoleLeader {
			t.Fatalf("the old leader is %s: it was to believe that it leads", role)
		}
		if ctx.Err() == nil {
			t.Error("two live holders")
		}
		cell.Resume(old)
		cell.Heal()
		if err := <-stuck; err != nil && !errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("the write that was stuck: %v", err) // its session ended while it was
		}
		mustUnlock(t, next)
	})
}

// Once the leader has offered to end a session it does not renew it, though a KeepAlive comes and the entry waits long
// for a majority: here until the disks of both followers write again.
func TestNoRenewalAfterExpiryWasOffered(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		rest := others(3, leader)
		holder, next := rest[0], rest[1]
		l := mustLock(t, cell.Node(holder), "/o")
		time.Sleep(time.Second)
		cell.StallDisk(holder)
		cell.StallDisk(next)
		cell.Partition([]int{holder}, []int{leader, next})
		time.Sleep(14 * time.Second) // the cell's lease of 13.32 s is over, and nothing can commit
		cell.Heal()
		time.Sleep(2 * time.Second) // KeepAlives reach the leader
		cell.Partition([]int{holder}, []int{leader, next})
		cell.Resume(next)
		n := mustLock(t, cell.Node(next), "/o")
		if l.Context().Err() == nil {
			t.Error("two live holders")
		}
		cell.Heal()
		cell.Resume(holder)
		mustUnlock(t, n)
	})
}

// Unlock whose answer is lost goes on in the background, under another number. Both copies are executed, and the second
// finds that its grant is over: it frees neither the lock nor the next in the queue.
func TestUnlockTwiceFreesOnce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		rest := others(3, leader)
		holder := rest[0]
		l := mustLock(t, cell.Node(holder), "/u")
		ctx := l.Context()
		granted := make(chan *chubby.Lock, 2)
		for _, i := range []int{leader, rest[1]} {
			go func() {
				next, err := cell.Node(i).Lock(context.Background(), "/u")
				if err != nil {
					t.Error(err)
				}
				if ctx.Err() == nil {
					t.Error("the lock is handed on before its context ends")
				}
				granted <- next
			}()
			time.Sleep(100 * time.Millisecond)
		}
		cell.Cut(leader, holder)
		if err := l.Unlock(within(t, 50*time.Millisecond)); !errors.Is(err, chubby.ErrUncertain) {
			t.Fatalf("Unlock without an answer: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
		cell.Heal()
		first := <-granted
		time.Sleep(5 * time.Second)
		if len(granted) > 0 || first.Context().Err() != nil || first.Err() != nil {
			t.Error("the lock went on to a third holder")
		}
		if err := cell.Node(holder).CheckSequencer(t.Context(), first.Sequencer()); err != nil {
			t.Error(err)
		}
		mustUnlock(t, first)
		mustUnlock(t, <-granted)
	})
}

// A process that is stopped while its clock goes on has lost its lock when it goes on: whoever asks is told so, before
// any timer has run.
func TestStoppedHolderKnows(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/s")
		ctx := l.Context()
		cell.Stall(0)
		next := mustLock(t, cell.Node(1), "/s")
		if ctx.Err() == nil || l.Context().Err() == nil {
			t.Error("two live holders")
		}
		cell.Resume(0)
		if ctx.Err() == nil {
			t.Error("two live holders, after it goes on")
		}
		mustUnlock(t, next)
	})
}

// A waiter that gives up leaves the queue, wherever it stands in it, and the next one gets its turn.
func TestGivenUpWaiterLeaves(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/g")
		for i := range 3 {
			if _, err := cell.Node(i).Lock(within(t, 100*time.Millisecond), "/g"); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond)
		if info, err := cell.Node(1).LockInfo(t.Context(), "/g"); err != nil || info.Waiters != 0 {
			t.Errorf("LockInfo = %+v, %v", info, err)
		}
		mustUnlock(t, l)
		next, err := cell.Node(2).TryLock(t.Context(), "/g")
		if err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, next)
	})
}

// A lock call whose answer is lost may have been granted. It returns the error of its ctx alone, and gives back what it got.
func TestDoubtfulLockIsWithdrawn(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		caller := others(3, leader)[0]
		if _, err := cell.Node(caller).Session(t.Context()); err != nil {
			t.Fatal(err)
		}
		cell.Cut(leader, caller)
		_, err := cell.Node(caller).Lock(within(t, 50*time.Millisecond), "/d")
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, chubby.ErrUncertain) {
			t.Fatal(err)
		}
		cell.Heal()
		time.Sleep(time.Second)
		l, err := cell.Node(leader).TryLock(t.Context(), "/d")
		if err != nil {
			t.Fatal(err)
		}
		mustUnlock(t, l)
	})
}

// Generations of one path grow for ever: over deletion of the file at the path and of the lock that nobody needs any
// more, over snapshots, and over restarts.
func TestGenerationsGrow(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		var last chubby.Sequencer
		var value [4 << 10]byte
		for round := range 30 {
			n := cell.Node(round % 3)
			mustSet(t, n, "/a", string(value[:]))
			l := mustLock(t, n, "/a")
			if s := l.Sequencer(); s.Compare(last) <= 0 {
				t.Fatalf("round %d: %v after %v", round, s, last)
			} else {
				last = s
			}
			mustUnlock(t, l)
			if err := n.Delete(t.Context(), "/a"); err != nil {
				t.Fatal(err)
			}
			if round%10 == 9 {
				for i := range 3 {
					cell.Crash(i)
				}
				for i := range 3 {
					cell.Restart(i)
				}
			}
		}
		if s := cell.Leader().Status(); s.SnapshotBytes == 0 {
			t.Errorf("no snapshot was taken: %+v", s)
		}
	}, func(o *chubby.Options) { o.MaxLogBytes = 64 << 10 })
}

// resource takes the writes of those who say that they hold the lock.
type resource struct {
	guard    *fence.Guard // nil: it believes them
	newest   chubby.Sequencer
	refused  int
	overlaps int // writes of a holder after its successor's
}

func (r *resource) write(s chubby.Sequencer) {
	if r.guard != nil && r.guard.Check(s) != nil {
		r.refused++
		return
	}
	if s.Compare(r.newest) < 0 {
		r.overlaps++
		return
	}
	r.newest = s
}

// A holder that is frozen with its clock, in the moment between asking whether it holds the lock and writing, is
// replaced and knows nothing. No lock service can help: with a fence at the resource its write is refused; without one
// it is taken, in this very schedule, which is why the run without it must fail.
func TestOnlyTheFenceSpeaks(t *testing.T) {
	const rounds = 3
	for _, guard := range []*fence.Guard{nil, new(fence.Guard)} {
		t.Run(fmt.Sprintf("fence=%v", guard != nil), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
				r := &resource{guard: guard}
				for range rounds {
					old := mustLock(t, cell.Node(0), "/f")
					r.write(old.Sequencer())
					cell.Pause(0)
					next := mustLock(t, cell.Node(1), "/f")
					r.write(next.Sequencer())
					cell.Resume(0)
					if old.Context().Err() != nil {
						t.Fatal("its clock stood with it, so it was not to know")
					}
					r.write(old.Sequencer())
					mustUnlock(t, next)
				}
				switch {
				case guard == nil && r.overlaps != rounds:
					t.Errorf("%d of %d overlapping writes were seen: the schedule does not show what the fence is for", r.overlaps, rounds)
				case guard != nil && (r.overlaps > 0 || r.refused != rounds):
					t.Errorf("%d overlapping writes, %d of %d refused", r.overlaps, r.refused, rounds)
				}
			})
		})
	}
}
