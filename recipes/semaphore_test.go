package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/recipes"
)

func semaphore(t *testing.T, n *chubby.Node, permits int) *recipes.Semaphore {
	t.Helper()
	s, err := recipes.NewSemaphore(n.Client, "/svc/sem", permits)
	must(t, err)
	return s
}

func acquire(t *testing.T, s *recipes.Semaphore) *recipes.Permit {
	t.Helper()
	p, err := s.Acquire(within(t, 2*time.Minute))
	must(t, err)
	return p
}

// acquiring is acquire in a goroutine, which has a second to come as far as it can.
func acquiring(t *testing.T, s *recipes.Semaphore) <-chan *recipes.Permit {
	got := make(chan *recipes.Permit, 1)
	ctx := within(t, 2*time.Minute)
	go func() {
		p, err := s.Acquire(ctx)
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	time.Sleep(time.Second)
	return got
}

func TestSemaphore(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		a, b := semaphore(t, cell.Node(0), 2), semaphore(t, cell.Node(1), 2)
		p, q := acquire(t, a), acquire(t, b)
		if p.Number() == q.Number() {
			t.Fatalf("two permits with number %d", p.Number())
		}
		_, err := a.TryAcquire(t.Context())
		wantErr(t, err, chubby.ErrLockHeld)

		// Whoever lost a permit is refused where the next holder of its number was.
		before, ctx := p.Sequencer(), p.Context()
		must(t, p.Release(t.Context()))
		if ctx.Err() == nil || !errors.Is(p.Err(), chubby.ErrNotHeld) {
			t.Errorf("after Release: context %v, Err %v", ctx.Err(), p.Err())
		}
		wantErr(t, p.Release(t.Context()), chubby.ErrNotHeld)
		r, err := b.TryAcquire(t.Context())
		must(t, err)
		var guard fence.Guard
		must(t, guard.Check(before))
		must(t, guard.Check(r.Sequencer()))
		if err := guard.Check(before); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("the permit's last holder: %v", err)
		}

		// Nothing is left of a wait that was given up, nor of anything once all is released.
		cancelled(t, func(ctx context.Context) error { _, err := a.Acquire(ctx); return err })
		time.Sleep(time.Second)
		idle(t, cell.Node(2).Client, "/svc/sem")
		must(t, q.Release(t.Context()))
		must(t, r.Release(t.Context()))
		time.Sleep(time.Second)
		if s := cell.Node(1).Status(); s.Locks != 0 || s.Entries != 0 || s.Watchers != 0 {
			t.Errorf("left behind: %d locks, %d entries, %d watches", s.Locks, s.Entries, s.Watchers)
		}
	})
}

// Waiters spread over the nodes get permits in the order in which they came, and one who tries overtakes none of them.
func TestSemaphoreFair(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		p := acquire(t, semaphore(t, cell.Node(0), 1))
		var queue []<-chan *recipes.Permit
		for i := range 6 {
			queue = append(queue, acquiring(t, semaphore(t, cell.Node(i%3), 1)))
		}
		begin := cell.Node(0).Status().Revision
		for i, next := range queue {
			_, err := semaphore(t, cell.Node(1), 1).TryAcquire(t.Context())
			wantErr(t, err, chubby.ErrLockHeld)
			must(t, p.Release(t.Context()))
			_, err = semaphore(t, cell.Node(1), 1).TryAcquire(t.Context())
			wantErr(t, err, chubby.ErrLockHeld)
			p = <-next
			for j, later := range queue[i+1:] {
				if len(later) > 0 {
					t.Errorf("number %d came with number %d", i+1+j, i)
				}
			}
		}
		must(t, p.Release(t.Context()))
		time.Sleep(time.Second)
		// For each: it takes the permit, leaves the queue to the next, releases. No herd that tries in vain.
		if d := cell.Node(0).Status().Revision - begin; d > 6*3+1 {
			t.Errorf("6 hand-overs changed the cell %d times", d)
		}
	})
}

// A free permit is taken at once only where those before in the queue have one each.
func TestSemaphoreTryBehindQueue(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		head, err := cell.Node(0).Lock(t.Context(), "/svc/sem") // as one that is about to take a permit
		must(t, err)
		_, err = semaphore(t, cell.Node(1), 1).TryAcquire(t.Context())
		wantErr(t, err, chubby.ErrLockHeld)
		p, err := semaphore(t, cell.Node(1), 2).TryAcquire(t.Context())
		must(t, err)
		must(t, p.Release(t.Context()))
		must(t, head.Unlock(t.Context()))
		p, err = semaphore(t, cell.Node(1), 1).TryAcquire(t.Context())
		must(t, err)
		must(t, p.Release(t.Context()))
	})
}

// A permit comes back from a node that crashed, not before the holder's own clock ended its context.
func TestSemaphoreHolderLost(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		lost := cell.Index(cell.Leader()) // and with it the cell leader
		a, _ := others(lost)
		p := acquire(t, semaphore(t, cell.Node(lost), 1))
		ctx := p.Context()
		got := acquiring(t, semaphore(t, cell.Node(a), 1))
		b, c := others(lost)
		cell.Partition([]int{lost}, []int{b, c})
		begun := time.Now()
		q := <-got
		if ctx.Err() == nil {
			t.Error("two live permits of one")
		}
		if d := time.Since(begun); d < 11*time.Second || d > 40*time.Second {
			t.Errorf("the permit came back after %v", d)
		}
		cell.Heal()
		must(t, q.Release(t.Context()))

		// A crash instead of a partition, of a follower.
		lead := cell.Index(cell.Leader())
		f, g := others(lead)
		acquire(t, semaphore(t, cell.Node(f), 1))
		got = acquiring(t, semaphore(t, cell.Node(g), 1))
		cell.Crash(f)
		q = <-got
		must(t, q.Release(t.Context()))
		cell.Restart(f)
	})
}

// The head of the queue waits on through a change of the cell leader and through its own default session's end.
func TestSemaphoreWaiterSurvives(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		p := acquire(t, semaphore(t, cell.Node(a), 1))
		waiter := cell.Node(b)
		got := acquiring(t, semaphore(t, waiter, 1))
		cell.Crash(lead)
		cell.Restart(lead)
		cell.Leader()
		session, err := waiter.Session(t.Context())
		must(t, err)
		must(t, session.Close(t.Context()))
		must(t, p.Release(t.Context()))
		must(t, (<-got).Release(t.Context()))
		idle(t, cell.Node(lead).Client, "/svc/sem")
	})
}

// Under faults at random there are never more than three live permits at one instant, and everybody gets on afterwards.
func TestSemaphoreBound(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		var live struct {
			sync.Mutex
			permits map[*recipes.Permit]bool
			most    int
		}
		live.permits = make(map[*recipes.Permit]bool)
		judge := func() {
			live.Lock()
			defer live.Unlock()
			n := 0
			for p := range live.permits {
				if p.Context().Err() == nil {
					n++
				}
			}
			if live.most = max(live.most, n); n > 3 {
				t.Errorf("%d live permits of 3", n)
			}
		}
		cell.Leader()
		ctx := within(t, schedule())
		var wg sync.WaitGroup
		rounds := 0
		for i := range 9 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 1))
				for ctx.Err() == nil {
					s, err := recipes.NewSemaphore(cell.Node(i%3).Client, "/svc/sem", 3)
					if err != nil {
						t.Error(err)
						return
					}
					wait, cancel := context.WithTimeout(ctx, time.Duration(r.IntN(60_000))*time.Millisecond)
					var p *recipes.Permit
					if r.IntN(4) == 0 {
						p, err = s.TryAcquire(wait)
					} else {
						p, err = s.Acquire(wait)
					}
					cancel()
					if err == nil {
						live.Lock()
						live.permits[p] = true
						rounds++
						live.Unlock()
						judge()
						time.Sleep(time.Duration(r.IntN(3000)) * time.Millisecond)
						judge()
						_ = p.Release(ctx) // may be lost by now
						live.Lock()
						delete(live.permits, p)
						live.Unlock()
					} else {
						time.Sleep(100 * time.Millisecond) // a node may be down
					}
				}
			})
		}
		wg.Go(func() {
			r := rand.New(rand.NewPCG(7, 7))
			for ctx.Err() == nil {
				i := r.IntN(3)
				switch r.IntN(4) {
				case 0:
					cell.Crash(i)
					time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
					cell.Restart(i)
				case 1:
					cell.Pause(i)
					time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
					judge()
					cell.Resume(i)
				default:
					cell.Partition([]int{i})
					time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
					judge()
					cell.Heal()
				}
				judge()
				time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
			}
		})
		wg.Wait()
		t.Logf("at most %d live permits, %d permits in all", live.most, rounds)
		if live.most != 3 || rounds < 10 {
			t.Errorf("the run shows little: at most %d live permits, %d permits in all", live.most, rounds)
		}
		for range 3 {
			acquire(t, semaphore(t, cell.Leader(), 3))
		}
	}, noGrace)
}

func ExampleSemaphore() {
	node, ctx := open(), context.Background()
	defer node.Close()

	licences, err := recipes.NewSemaphore(node.Client, "/render/licences", 2)
	if err != nil {
		log.Fatal(err)
	}
	first, err := licences.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	second, err := licences.Acquire(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("different licences:", first.Number() != second.Number())

	_, err = licences.TryAcquire(ctx)
	fmt.Println(err)

	// The licence server refuses whoever lost a licence: it checks the permit's sequencer.
	_, err = node.Set(ctx, "/render/log", []byte("frame 1"), chubby.IfHolds(first.Sequencer()))
	fmt.Println("may render:", err == nil)
	if err := first.Release(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = node.Set(ctx, "/render/log", []byte("frame 2"), chubby.IfHolds(first.Sequencer()))
	fmt.Println("may still render:", err == nil)
	// Output:
	// different licences: true
	// chubby: try to acquire permit /render/licences: lock is held
	// may render: true
	// may still render: false
}
