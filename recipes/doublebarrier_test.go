package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

func double(t *testing.T, n *chubby.Node, parties int) *recipes.DoubleBarrier {
	t.Helper()
	b, err := recipes.NewDoubleBarrier(n.Client, "/svc/stage", parties)
	must(t, err)
	return b
}

// entering is one Enter in a goroutine, with what it gave once it ended.
type entering struct {
	done  <-chan error
	party *recipes.Party
}

func enter(t *testing.T, b *recipes.DoubleBarrier) *entering {
	e := &entering{}
	e.done = running(t, func(ctx context.Context) (err error) {
		e.party, err = b.Enter(ctx)
		return err
	})
	return e
}

func (e *entering) wait(t *testing.T) *recipes.Party {
	t.Helper()
	must(t, <-e.done)
	return e.party
}

func TestDoubleBarrier(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		for round := range 3 {
			var in []*entering
			for i := range 2 {
				in = append(in, enter(t, double(t, cell.Node(i), 3)))
			}
			// One who gives up is as if it had never come.
			cancelled(t, func(ctx context.Context) error { _, err := double(t, cell.Node(2), 4).Enter(ctx); return err })
			time.Sleep(time.Second)
			wantRunning(t, in[0].done, in[1].done)
			in = append(in, enter(t, double(t, cell.Node(2), 3)))
			next := enter(t, double(t, cell.Node(2), 3)) // one too many waits for the next round
			var out []<-chan error
			for i := range 2 {
				out = append(out, running(t, in[i].wait(t).Leave))
			}
			wantRunning(t, out[0], out[1], next.done)
			must(t, in[2].wait(t).Leave(within(t, time.Minute)))
			must(t, <-out[0])
			must(t, <-out[1])
			// It is part of that one, so that two more suffice.
			more := []*entering{enter(t, double(t, cell.Node(0), 3)), enter(t, double(t, cell.Node(1), 3)), next}
			out = nil
			for _, e := range more {
				out = append(out, running(t, e.wait(t).Leave))
			}
			for _, o := range out {
				must(t, <-o)
			}
			time.Sleep(time.Second)
			left := entries(t, cell.Node(0).Client, "/svc")
			if fmt.Sprint(left) != "[/svc/stage/left /svc/stage/met]" || cell.Node(0).Status().Sessions > 3 {
				t.Errorf("after round %d: %v, %d sessions", round, left, cell.Node(0).Status().Sessions)
			}
		}
	})
}

// A party that is lost before the round leaves its place to another; one that is lost in it holds up nobody, and all the
// others learn that it was lost.
func TestDoubleBarrierLost(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		enter(t, double(t, cell.Node(lead), 3)) // the cell leader too
		in := []*entering{enter(t, double(t, cell.Node(a), 3))}
		cell.Crash(lead)
		time.Sleep(40 * time.Second)
		cell.Restart(lead)
		in = append(in, enter(t, double(t, cell.Node(b), 3)))
		wantRunning(t, in[0].done, in[1].done)
		in = append(in, enter(t, double(t, cell.Node(lead), 3)))
		for _, e := range in {
			e.wait(t)
		}

		cell.Partition([]int{lead}, []int{a, b})
		out := []<-chan error{running(t, in[0].party.Leave), running(t, in[1].party.Leave)}
		next := enter(t, double(t, cell.Node(a), 3))
		wantRunning(t, out...)
		begun := time.Now()
		wantErr(t, <-out[0], recipes.ErrBroken)
		wantErr(t, <-out[1], recipes.ErrBroken)
		if d := time.Since(begun); d > 40*time.Second {
			t.Errorf("a lost party held the others up for %v", d)
		}
		cell.Heal()
		wantErr(t, in[2].party.Leave(within(t, time.Minute)), chubby.ErrSessionExpired)

		// The barrier goes on.
		more := []*entering{next, enter(t, double(t, cell.Node(b), 3)), enter(t, double(t, cell.Node(lead), 3))}
		out = nil
		for _, e := range more {
			out = append(out, running(t, e.wait(t).Leave))
		}
		for _, o := range out {
			must(t, <-o)
		}
	}, noGrace)
}

// A Leave whose ctx ended can be called again, and one party that waits is enough to notice.
func TestDoubleBarrierLeaveAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Index(cell.Leader())
		a, b := others(lead)
		x, y := enter(t, double(t, cell.Node(a), 2)), enter(t, double(t, cell.Node(b), 2))
		p, q := x.wait(t), y.wait(t)
		cancelled(t, p.Leave)
		cell.Partition([]int{b}, []int{a, lead})
		err := q.Leave(within(t, time.Second))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Leave without a quorum: %v", err)
		}
		cell.Heal()
		must(t, q.Leave(within(t, time.Minute)))
		must(t, p.Leave(within(t, time.Minute)))
		wantErr(t, p.Leave(within(t, time.Minute)), chubby.ErrSessionExpired)
	})
}

// Nobody leaves before all have entered, nobody returns from Enter alone, and all that enter together agree on how the
// round ended, whatever happens to the cell.
func TestDoubleBarrierInvariant(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		const n = 3
		cell.Leader()
		ctx := within(t, schedule())
		var mu sync.Mutex
		verdicts := make(map[string]error) // by round
		var called, passed atomic.Int64    // Enter calls begun, Enter calls that returned a party
		rounds, broken := 0, 0
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 3))
				for ctx.Err() == nil {
					b, err := recipes.NewDoubleBarrier(cell.Node(i%3).Client, "/stage", n)
					if err != nil {
						t.Error(err)
						return
					}
					called.Add(1)
					p, err := b.Enter(ctx)
					if err != nil {
						time.Sleep(100 * time.Millisecond)
						continue
					}
					// Each round takes n calls that no other round has.
					if now := passed.Add(1); called.Load() < (now+n-1)/n*n {
						t.Errorf("%d parties are in, with %d calls of Enter", now, called.Load())
					}
					time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
					err = p.Leave(ctx)
					if ctx.Err() != nil || errors.Is(err, chubby.ErrSessionExpired) || errors.Is(err, chubby.ErrClosed) {
						continue
					}
					mu.Lock()
					if errors.Is(err, recipes.ErrBroken) {
						err = recipes.ErrBroken
						broken++
					} else if err != nil {
						t.Errorf("Leave: %v", err)
					}
					round := recipes.RoundOf(p)
					if before, ok := verdicts[round]; ok && before != err {
						t.Errorf("round %s ended with %v and with %v", round, before, err)
					}
					verdicts[round] = err
					rounds = len(verdicts)
					mu.Unlock()
				}
			})
		}
		wg.Go(func() {
			r := rand.New(rand.NewPCG(9, 9))
			for ctx.Err() == nil {
				time.Sleep(time.Duration(r.IntN(10_000)) * time.Millisecond)
				i := r.IntN(3)
				if r.IntN(2) == 0 {
					cell.Crash(i)
					time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
					cell.Restart(i)
				} else {
					cell.Partition([]int{i})
					time.Sleep(time.Duration(r.IntN(20_000)) * time.Millisecond)
					cell.Heal()
				}
			}
		})
		wg.Wait()
		t.Logf("%d rounds, %d broken verdicts", rounds, broken)
		if rounds < 3 || *long && broken == 0 {
			t.Errorf("the run shows little: %d rounds, %d broken", rounds, broken)
		}
	}, noGrace)
}

func ExampleDoubleBarrier() {
	node, ctx := open(), context.Background()
	defer node.Close()

	stage, err := recipes.NewDoubleBarrier(node.Client, "/train/epoch", 3)
	if err != nil {
		log.Fatal(err)
	}
	var computed atomic.Int64
	var wg sync.WaitGroup
	for range 3 { // in reality each is a process of its own
		wg.Go(func() {
			party, err := stage.Enter(ctx)
			if err != nil {
				log.Fatal(err)
			}
			computed.Add(1)
			if err := party.Leave(ctx); err != nil { // recipes.ErrBroken if one of them crashed
				log.Fatal(err)
			}
			if computed.Load() != 3 {
				log.Fatal("somebody left early")
			}
		})
	}
	wg.Wait()
	fmt.Println("all three are through")
	// Output: all three are through
}
