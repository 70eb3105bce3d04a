package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"
)

// sample is one workload on one system in one round.
type sample struct {
	system   string
	workload string
	ops      int
	elapsed  time.Duration
	p50, p99 time.Duration
	err      error // what ended it early; then nothing else counts
}

func (s sample) opsPerSecond() float64 { return float64(s.ops) / s.elapsed.Seconds() }

// patience bounds how long a step may outlive the measured time.
const patience = 30 * time.Second

// measure runs w on s for d, after a warm-up of an eighth of it. The warm-up also lets the previous system finish what it
// does behind its acknowledgements, and each measurement starts with the heap collected, so that no system pays for
// another's garbage.
func measure(ctx context.Context, s system, w workload, d time.Duration) sample {
	result := sample{system: s.Name(), workload: w.name(), elapsed: d}
	ctx, cancel := context.WithTimeoutCause(ctx, d+d/8+patience, fmt.Errorf("no answer within %v", patience))
	defer cancel()
	leader := s.Leader()
	if leader < 0 {
		result.err = errors.New("no leader")
		return result
	}
	steps, cleanup, err := w.prepare(ctx, s, w.place(leader))
	if err != nil {
		result.err = err
		return result
	}
	runtime.GC()
	latencies, err := run(ctx, steps, d/8, d)
	if result.err = errors.Join(err, cleanup()); result.err != nil {
		return result
	}
	if result.ops = len(latencies); result.ops == 0 {
		result.err = errors.New("no operation ended within the measured time")
		return result
	}
	slices.Sort(latencies)
	result.p50 = latencies[(len(latencies)-1)*50/100]
	result.p99 = latencies[(len(latencies)-1)*99/100]
	return result
}

// run repeats the steps side by side until warm and d are over, and gives the latencies of those that ended within d.
// The first error ends all of them.
func run(ctx context.Context, steps []step, warm, d time.Duration) ([]time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	latencies := make([][]time.Duration, len(steps))
	start := time.Now()
	for i, step := range steps {
		wg.Go(func() {
			for ctx.Err() == nil {
				took, err := step(ctx)
				if err != nil {
					cancel(err)
					return
				}
				ended := time.Since(start)
				if ended > warm+d {
					return
				}
				if ended > warm && took != uncounted {
					latencies[i] = append(latencies[i], took)
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return slices.Concat(latencies...), nil
}
