package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

func counter(t *testing.T, n *chubby.Node, min, max int64) *recipes.Counter {
	t.Helper()
	c, err := recipes.NewCounter(n.Client, "/svc/counter", min, max)
	must(t, err)
	return c
}

func wantNumber(t *testing.T, want int64) func(int64, error) {
	return func(got int64, err error) {
		t.Helper()
		must(t, err)
		if got != want {
			t.Errorf("got %d, want %d", got, want)
		}
	}
}

func TestCounter(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, time.Minute)
		a, b := counter(t, cell.Node(0), -5, 10), counter(t, cell.Node(1), -5, 10)
		wantNumber(t, 0)(a.Get(ctx))
		wantNumber(t, -5)(a.Sub(ctx, 5))
		_, err := b.Sub(ctx, 1)
		wantErr(t, err, chubby.ErrBound)
		wantNumber(t, 10)(b.Add(ctx, 15))
		_, err = a.Add(ctx, 1)
		wantErr(t, err, chubby.ErrBound)
		_, err = a.Add(ctx, -1)
		wantErr(t, err, chubby.ErrBadOptions)
		wantNumber(t, 10)(a.Get(ctx))

		_, err = cell.Node(2).Set(ctx, "/svc/counter", []byte("ten"))
		must(t, err)
		_, err = a.Get(ctx)
		wantErr(t, err, chubby.ErrNotNumber)
		_, err = a.Add(ctx, 1)
		wantErr(t, err, chubby.ErrNotNumber)

		must(t, cell.Node(2).Delete(ctx, "/svc/counter"))
		all := counter(t, cell.Node(2), math.MinInt64, math.MaxInt64)
		wantNumber(t, math.MaxInt64)(all.Add(ctx, math.MaxInt64))
		_, err = all.Add(ctx, 1)
		wantErr(t, err, chubby.ErrBound)
		cut, cancel := context.WithCancel(ctx)
		cancel()
		_, err = all.Sub(cut, 1)
		wantErr(t, err, context.Canceled)
	})
}

// Many callers begin at once, the first with no file yet, while the leader is killed: every call counts once.
func TestCounterExact(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		ctx := within(t, 5*time.Minute)
		var wg sync.WaitGroup
		var full atomic.Int64
		for i := range 20 {
			c := counter(t, cell.Node([]int{a, b}[i%2]), 0, 450)
			wg.Go(func() {
				for range 25 {
					switch _, err := c.Add(ctx, 1); {
					case errors.Is(err, chubby.ErrBound):
						full.Add(1)
					case err != nil:
						t.Error(err)
					}
				}
			})
			if i == 10 {
				cell.Crash(lead)
			}
		}
		wg.Wait()
		cell.Restart(lead)
		wantNumber(t, 450)(counter(t, cell.Node(lead), 0, 450).Get(ctx))
		if n := full.Load(); n != 50 {
			t.Errorf("%d of 500 calls found a bound of 450 reached", n)
		}
	})
}

func ExampleCounter() {
	node, ctx := open(), context.Background()
	defer node.Close()

	seats, err := recipes.NewCounter(node.Client, "/event/seats-sold", 0, 100)
	if err != nil {
		log.Fatal(err)
	}
	for range 3 {
		sold, err := seats.Add(ctx, 40)
		if errors.Is(err, chubby.ErrBound) {
			fmt.Println("not enough seats left")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("sold", sold)
	}
	// Output:
	// sold 40
	// sold 80
	// not enough seats left
}
