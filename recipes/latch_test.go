package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

func latch(t *testing.T, n *chubby.Node, count int) *recipes.CountDownLatch {
	t.Helper()
	l, err := recipes.NewCountDownLatch(n.Client, "/svc/latch", count)
	must(t, err)
	return l
}

func wantCount(t *testing.T, l *recipes.CountDownLatch, want int) {
	t.Helper()
	n, err := l.Count(within(t, time.Minute))
	must(t, err)
	if n != want {
		t.Errorf("%d countdowns missing, want %d", n, want)
	}
}

func TestCountDownLatch(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 5*time.Minute)
		a, b := latch(t, cell.Node(0), 3), latch(t, cell.Node(1), 3)
		wantCount(t, a, 3)
		first := running(t, latch(t, cell.Node(2), 3).Wait) // before the latch has an entry
		for range 3 {
			must(t, a.CountDown(ctx, "x"))
			must(t, b.CountDown(ctx, "x")) // by another process, once more
		}
		wantCount(t, b, 2)
		must(t, b.CountDown(ctx, "y"))
		second := running(t, a.Wait)
		cancelled(t, b.Wait)
		wantRunning(t, first, second)
		wantErr(t, a.CountDown(ctx, "y/z"), chubby.ErrBadOptions)
		wantErr(t, a.CountDown(ctx, ".."), chubby.ErrBadPath)
		must(t, a.CountDown(ctx, "z"))
		must(t, <-first)
		must(t, <-second)
		must(t, b.CountDown(ctx, "more")) // does no harm
		must(t, b.Wait(ctx))
		wantCount(t, a, 0)
		names, err := a.Counted(ctx)
		if err != nil || fmt.Sprint(names) != "[more x y z]" {
			t.Errorf("counted %v, %v", names, err)
		}

		must(t, a.Reset(ctx))
		must(t, a.Reset(ctx))
		wantCount(t, b, 3)
		if left := entries(t, cell.Node(0).Client, "/svc"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		// Names counted before a reset and after it are not added up.
		must(t, a.CountDown(ctx, "x"))
		w := running(t, b.Wait)
		must(t, a.CountDown(ctx, "y"))
		must(t, a.Reset(ctx))
		must(t, a.CountDown(ctx, "z"))
		must(t, a.CountDown(ctx, "v"))
		time.Sleep(time.Second)
		wantRunning(t, w)
		must(t, a.CountDown(ctx, "w"))
		must(t, <-w)
	})
}

// Countdowns that are cut off in the middle are repeated until they are known to be done; each counts once, and waits
// anywhere end with the last one.
func TestCountDownLatchFaults(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		const n = 60
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		waits := []<-chan error{running(t, latch(t, cell.Node(a), n).Wait), running(t, latch(t, cell.Node(b), n).Wait)}
		latches := [2]*recipes.CountDownLatch{latch(t, cell.Node(a), n), latch(t, cell.Node(b), n)}
		ctx := within(t, 5*time.Minute)
		var wg sync.WaitGroup
		uncertain := make(chan error, 1000)
		for i := range n - 1 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 100 * time.Millisecond)
				for {
					try, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
					err := latches[i%2].CountDown(try, fmt.Sprint(i))
					cancel()
					if err == nil {
						return
					}
					if errors.Is(err, chubby.ErrUncertain) {
						select {
						case uncertain <- err:
						default:
						}
					}
				}
			})
		}
		time.Sleep(time.Second)
		cell.Partition([]int{a}, []int{b, lead})
		time.Sleep(time.Second)
		cell.Heal()
		time.Sleep(time.Second)
		cell.Crash(lead)
		time.Sleep(2 * time.Second)
		cell.Restart(lead)
		wg.Wait()
		if len(uncertain) == 0 {
			t.Error("no call was cut off in the middle: the run shows nothing")
		}
		wantCount(t, latches[0], 1)
		wantRunning(t, waits...)
		must(t, latch(t, cell.Node(lead), n).CountDown(ctx, "last"))
		must(t, <-waits[0])
		must(t, <-waits[1])
	})
}

func ExampleCountDownLatch() {
	node, ctx := open(), context.Background()
	defer node.Close()

	imported, err := recipes.NewCountDownLatch(node.Client, "/import/done", 2)
	if err != nil {
		log.Fatal(err)
	}
	var workers sync.WaitGroup
	for _, part := range []string{"customers", "orders", "customers"} { // one is done twice, and counts once
		workers.Go(func() {
			err := node.WithLock(ctx, "/import/parts/"+part, func(ctx context.Context, l *chubby.Lock) error {
				return imported.CountDown(ctx, part) // after the work; who crashes before it leaves the part to the next
			})
			if err != nil {
				log.Fatal(err)
			}
		})
	}
	if err := imported.Wait(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println(imported.Counted(ctx))
	workers.Wait()
	// Output: [customers orders] <nil>
}
