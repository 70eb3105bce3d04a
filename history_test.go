package chubby_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/lincheck"
)

var (
	long     = flag.Bool("long", false, "run histories for long")
	histSeed = flag.Uint64("seed", 0, "of the fault schedule and the workload; 0 = several")
)

// history records calls and their answers for porcupine.
type history struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
	next  int // client ids: an open call keeps its own for ever
}

func (h *history) record(c lincheck.FileCall, do func() lincheck.FileAnswer) {
	call := int64(time.Since(h.start))
	a := do()
	if a.Unknown && (a.Missing || c.Op == lincheck.Get) {
		return // certain not to have happened, or a read without an answer
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	ret := int64(time.Since(h.start))
	if a.Unknown {
		ret = int64(1000 * time.Hour)
	}
	h.ops = append(h.ops, porcupine.Operation{ClientId: h.next, Input: c, Call: call, Output: a, Return: ret})
}

func answerOf(err error, value string) lincheck.FileAnswer {
	switch {
	case err == nil:
		return lincheck.FileAnswer{Value: value}
	case errors.Is(err, chubby.ErrUncertain):
		return lincheck.FileAnswer{Unknown: true}
	case errors.Is(err, chubby.ErrNotFound):
		return lincheck.FileAnswer{Missing: true}
	case errors.Is(err, chubby.ErrConflict), errors.Is(err, chubby.ErrNotNumber):
		return lincheck.FileAnswer{Refused: true}
	}
	return lincheck.FileAnswer{Unknown: true, Missing: true} // certainly not done: not for the history
}

// TestHistory has callers on all nodes work on a few files while nodes are cut off, frozen and crashed, and checks that
// what they saw can be put in one order. Calls that were certain not to happen are left out of it, so a history in which
// they did would fail.
func TestHistory(t *testing.T) {
	seeds := []uint64{1, 2}
	length := time.Minute
	if *long {
		seeds, length = nil, 5*time.Minute
		for s := range uint64(200) {
			seeds = append(seeds, s+100)
		}
	}
	if *histSeed != 0 {
		seeds = []uint64{*histSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := &history{}
			synctest.Test(t, func(t *testing.T) { runHistory(t, h, seed, length, 0) })
			switch r, _ := porcupine.CheckOperationsVerbose(lincheck.Files(), h.ops, time.Minute); r {
			case porcupine.Illegal:
				t.Errorf("seed %d: %d calls cannot be put in one order", seed, len(h.ops))
			case porcupine.Unknown:
				t.Errorf("seed %d: undecided after a minute; shorten the history", seed)
			default:
				t.Logf("%d calls", len(h.ops))
			}
		})
	}
}

// mapOf gives each of the nodes n0, n1 and n2 another MapStrategy: nobody must notice.
func mapOf(id string) chubby.MapStrategy {
	return map[string]chubby.MapStrategy{"n0": chubby.ConcurrentMap, "n1": chubby.SyncMap}[id]
}

func runHistory(t *testing.T, h *history, seed uint64, length time.Duration, dialled int) {
	cell := chubbytest.NewCell(t, 3, func(o *chubby.Options) {
		o.MaxLogBytes, o.Map = 64<<10, mapOf(o.ID)
	})
	cell.Leader()
	var clients []*chubby.Client
	for range dialled {
		clients = append(clients, cell.Dial())
	}
	h.start = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var wg sync.WaitGroup
	for caller := range 6 {
		rng := rand.New(rand.NewPCG(seed, uint64(caller)))
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				n := cell.Node(caller % 3).Client
				if caller < len(clients) {
					n = clients[caller]
				}
				oneCall(h, n, rng, fmt.Sprintf("%d.%d", caller, i))
				time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
			}
		})
	}
	if dialled > 0 {
		rng := rand.New(rand.NewPCG(seed, 1001))
		wg.Go(func() { clientFaults(ctx, cell, rng) }) // until the other faults heal the network
	}
	wg.Go(func() { faults(ctx, cell, rand.New(rand.NewPCG(seed, 1000))) })
	wg.Wait()
}

// oneCall makes one random call and notes it.
func oneCall(h *history, n *chubby.Client, rng *rand.Rand, unique string) {
	c := lincheck.FileCall{Path: fmt.Sprintf("/h/%d", rng.IntN(3)), Op: lincheck.FileOp(1 + rng.IntN(5)), New: unique, Delta: 1}
	if rng.IntN(2) == 0 {
		c.New = fmt.Sprint(rng.IntN(5)) // something that Add and CompareAndSwap can meet
	}
	c.Old = fmt.Sprint(rng.IntN(5))
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+rng.IntN(3000))*time.Millisecond)
	defer cancel()
	h.record(c, func() lincheck.FileAnswer {
		switch c.Op {
		case lincheck.Get:
			e, err := n.Get(ctx, c.Path)
			if err != nil && !errors.Is(err, chubby.ErrNotFound) {
				return lincheck.FileAnswer{Unknown: true}
			}
			return answerOf(err, string(e.Data))
		case lincheck.Set:
			_, err := n.Set(ctx, c.Path, []byte(c.New))
			return answerOf(err, "")
		case lincheck.CompareAndSwap:
			_, err := n.CompareAndSwap(ctx, c.Path, []byte(c.Old), []byte(c.New))
			return answerOf(err, "")
		case lincheck.Add:
			v, err := n.Add(ctx, c.Path, c.Delta, 1<<62)
			return answerOf(err, fmt.Sprint(v))
		default:
			return answerOf(n.Delete(ctx, c.Path), "")
		}
	})
}

// faults does something to the cell every second or so, and always leaves a majority that can go on in the end.
func faults(ctx context.Context, cell *chubbytest.Cell, rng *rand.Rand) {
	pause := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		i := rng.IntN(3)
		length := time.Duration(50+rng.IntN(3000)) * time.Millisecond
		switch rng.IntN(6) {
		case 0:
			cell.Partition([]int{i}, others(3, i))
			pause(length)
		case 1:
			cell.Pause(i)
			pause(length)
			cell.Resume(i)
		case 2:
			cell.Crash(i)
			pause(length)
			cell.Restart(i)
		case 3:
			cell.Cut(i, (i+1)%3)
			pause(length)
		case 4:
			cell.Stop(i)
			pause(length)
			cell.Restart(i)
		case 5:
			cell.Delay(0, time.Duration(rng.IntN(50))*time.Millisecond)
			pause(length)
			cell.Delay(0, 0)
		}
		cell.Heal()
		pause(time.Duration(rng.IntN(1500)) * time.Millisecond)
	}
}
