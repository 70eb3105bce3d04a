package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

func barrier(t *testing.T, n *chubby.Node) *recipes.Barrier {
	t.Helper()
	b, err := recipes.NewBarrier(n.Client, "/ls/local/svc/gate")
	must(t, err)
	return b
}

// running calls f in a goroutine, which has a second to come as far as it can.
func running(t *testing.T, f func(context.Context) error) <-chan error {
	done := make(chan error, 1)
	ctx := within(t, 2*time.Minute)
	go func() { done <- f(ctx) }()
	time.Sleep(time.Second)
	return done
}

func wantRunning(t *testing.T, calls ...<-chan error) {
	t.Helper()
	for i, c := range calls {
		if len(c) > 0 {
			t.Fatalf("call %d ended: %v", i, <-c)
		}
	}
}

func TestBarrier(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 5*time.Minute)
		b := barrier(t, cell.Node(0))
		must(t, b.Wait(ctx)) // never held

		h, err := b.Hold(ctx)
		must(t, err)
		cancelled(t, b.Wait)
		cancelled(t, func(ctx context.Context) error { _, err := barrier(t, cell.Node(1)).Hold(ctx); return err })
		var waits []<-chan error
		for i := range 3 {
			waits = append(waits, running(t, barrier(t, cell.Node(i)).Wait))
		}
		// What happens below the barrier's path is not about it.
		_, err = cell.Node(1).Set(ctx, "/svc/other", nil)
		must(t, err)

		// Those who wait for this hold go on, although the next one follows at once.
		next := make(chan *recipes.BarrierHold, 1)
		second := barrier(t, cell.Node(2))
		held := running(t, func(ctx context.Context) error {
			h, err := second.Hold(ctx)
			next <- h
			return err
		})
		wantRunning(t, append(waits, held)...)
		must(t, h.Open(ctx))
		for _, w := range waits {
			must(t, <-w)
		}
		must(t, <-held)
		must(t, h.Open(ctx)) // again, and not the next one's
		cancelled(t, b.Wait)
		must(t, (<-next).Open(ctx))
		must(t, b.Wait(ctx))
		idle(t, cell.Node(0).Client, "/svc/gate")
		if left := entries(t, cell.Node(0).Client, "/"); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// A holder that is lost breaks the barrier for those who wait and those who come, until it is held and opened again.
func TestBarrierBroken(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lost := cell.Index(cell.Leader())
		a, b := others(lost)
		h, err := barrier(t, cell.Node(lost)).Hold(ctx)
		must(t, err)
		held := h.Context()
		w := running(t, barrier(t, cell.Node(a)).Wait)
		cell.Partition([]int{lost}, []int{a, b})
		wantErr(t, <-w, recipes.ErrBroken)
		if held.Err() == nil {
			t.Error("the barrier broke before its holder's context ended")
		}
		wantErr(t, barrier(t, cell.Node(b)).Wait(ctx), recipes.ErrBroken)
		cell.Heal()
		wantErr(t, h.Open(ctx), chubby.ErrStaleSequencer)
		wantErr(t, barrier(t, cell.Node(b)).Wait(ctx), recipes.ErrBroken)

		h, err = barrier(t, cell.Node(a)).Hold(ctx)
		must(t, err)
		w = running(t, barrier(t, cell.Node(lost)).Wait)
		wantRunning(t, w)
		must(t, h.Open(ctx))
		must(t, <-w)
	}, noGrace)
}

// Waits go on through a change of the cell leader and while their node is cut off.
func TestBarrierFaults(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		h, err := barrier(t, cell.Node(a)).Hold(ctx)
		must(t, err)
		w, v := running(t, barrier(t, cell.Node(b)).Wait), running(t, barrier(t, cell.Node(a)).Wait)
		cell.Crash(lead)
		time.Sleep(5 * time.Second)
		cell.Restart(lead)
		cell.Leader()
		wantRunning(t, w, v)
		cell.Partition([]int{b}, []int{a, lead})
		must(t, h.Open(ctx))
		must(t, <-v)
		time.Sleep(20 * time.Second)
		wantRunning(t, w)
		cell.Heal()
		must(t, <-w)
	})
}

// A slow opener whose ctx ends leaves the barrier open or shut, and the next call finds out.
func TestBarrierOpenUncertain(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		h, err := barrier(t, cell.Node(a)).Hold(ctx)
		must(t, err)
		cell.Partition([]int{a}, []int{b, lead})
		err = h.Open(within(t, time.Second))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Open without a quorum: %v", err)
		}
		cell.Heal()
		must(t, h.Open(ctx))
		must(t, barrier(t, cell.Node(b)).Wait(ctx))
	})
}

func ExampleBarrier() {
	node, ctx := open(), context.Background()
	defer node.Close()

	migrated, err := recipes.NewBarrier(node.Client, "/shop/schema-migrated")
	if err != nil {
		log.Fatal(err)
	}
	hold, err := migrated.Hold(ctx) // before the workers start
	if err != nil {
		log.Fatal(err)
	}
	worker := make(chan error)
	go func() { worker <- migrated.Wait(ctx) }()

	fmt.Println("migrating")
	if err := hold.Open(ctx); err != nil { // a crash instead would give the workers recipes.ErrBroken
		log.Fatal(err)
	}
	fmt.Println("worker:", <-worker)
	// Output:
	// migrating
	// worker: <nil>
}
