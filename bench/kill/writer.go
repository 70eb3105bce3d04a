package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// writers write chains until they are told to stop, and keep them for verification.
type writers struct {
	cell  *cell
	opts  options
	fault func(error)
	watch stopwatch
	acked atomic.Int64
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		chains []*chain // Their contents belong to the writer until wg is done.
	}
}

const (
	// patience is how long a write may take while a majority is up: longer is a violation.
	patience = 20 * time.Second
	// impatience bounds the time of a write whose caller gives up early, so that all three outcomes occur.
	impatience = 50 * time.Millisecond
)

// run starts the writers. They stop, each after the write it is at, when ctx ends.
func (w *writers) run(ctx context.Context, seed uint64) {
	for i := range w.opts.writers {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		w.wg.Go(func() {
			for number := 0; ctx.Err() == nil; number++ {
				c := &chain{dir: fmt.Sprintf("/%s/c%d", writerName(i), number)}
				w.mu.Lock()
				w.mu.chains = append(w.mu.chains, c)
				w.mu.Unlock()
				running := w.cell.running()
				w.write(ctx, rng, c, running[rng.IntN(len(running))])
			}
		})
	}
}

func writerName(i int) string { return fmt.Sprintf("w%d", i) }

// write carries out one chain through one node.
func (w *writers) write(ctx context.Context, rng *rand.Rand, c *chain, id string) {
	p := w.cell.node(id)
	if p == nil {
		return // killed a moment ago
	}
	for i := 0; i < chainMax && ctx.Err() == nil; i++ {
		o := op{delta: 1 + rng.Int64N(deltaMax)}
		switch n := rng.IntN(3); {
		case i == 0:
			o.kind, o.delta = callSet, 0
		case n == 0:
			o.kind = callAdd
		case n == 1:
			o.kind = callTxn
		default:
			o.kind, o.delta = callSet, 0
		}
		c.ops = append(c.ops, o)
		r := c.request(i)
		r.Timeout = patience
		if w.opts.impatient && rng.IntN(8) == 0 {
			r.Timeout = time.Duration(1 + rng.Int64N(int64(impatience)))
		}
		begun := time.Now()
		a, err := p.call(r)
		c.ops[i].outcome = a.Outcome
		switch {
		case errors.Is(err, errEnded):
			c.ops[i].outcome = uncertain
			return
		case err != nil:
			c.ops[i].outcome = uncertain
			w.fault(fmt.Errorf("node %s: %w", id, err))
			return
		case a.Outcome == wrong, a.Outcome != done && r.Timeout == patience:
			w.fault(fmt.Errorf("node %s: %s %s: after %v, %s: %s", id, r.Call, r.Path, time.Since(begun), a.Outcome, a.Err))
		case a.Outcome == done:
			w.acked.Add(1)
			w.watch.saw(begun, time.Now())
			if want := c.sum(); c.ops[i].delta != 0 && a.Number != want {
				w.fault(fmt.Errorf("node %s: %s %s: acknowledged with a counter of %d, want %d", id, r.Call, r.Path, a.Number, want))
			}
		}
		if a.Outcome == wrong || a.Outcome == uncertain || i == 0 && a.Outcome == refused {
			return
		}
	}
}

// stopwatch measures the time from a kill to the first acknowledgement of a write that began after it. One that began
// before may have been on its way already, so it does not count.
type stopwatch struct {
	mu struct {
		sync.Mutex
		from    time.Time
		stopped chan time.Duration // nil: not running
	}
}

// start returns a channel that receives the time, once.
func (s *stopwatch) start() <-chan time.Duration {
	c := make(chan time.Duration, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.from, s.mu.stopped = time.Now(), c
	return c
}

// saw is told of each write acknowledged.
func (s *stopwatch) saw(begun, acked time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped != nil && begun.After(s.mu.from) {
		s.mu.stopped <- acked.Sub(s.mu.from) // cap 1, and only once
		s.mu.stopped = nil
	}
}
