package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
)

// faults gathers violations from all goroutines. The zero value is ready.
type faults struct {
	mu struct {
		sync.Mutex
		errs []error
		more int
	}
}

// faultsMax is how many violations are told one by one.
const faultsMax = 50

func (f *faults) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.mu.errs) < faultsMax {
		f.mu.errs = append(f.mu.errs, fmt.Errorf("violation: %w", err))
	} else {
		f.mu.more++
	}
}

// err is nil as long as there is no violation.
func (f *faults) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.more > 0 {
		return errors.Join(errors.Join(f.mu.errs...), fmt.Errorf("and %d more", f.mu.more))
	}
	return errors.Join(f.mu.errs...)
}

// figures are the times of a run.
type figures struct {
	begun                  time.Time
	took                   time.Duration // of the kills, from the first write on
	kills                  int
	leaderGap, followerGap durations // from a kill to the next acknowledged write
	open, ready            durations // from a node's start
	sync                   durations // the driver's own longest one, from a kill until the node is ready
}

func (g *figures) print(out io.Writer, o options, t tally, chains int) {
	fmt.Fprintf(out, "%d kills, %d of the cell leader, in %v\n", g.kills, len(g.leaderGap), g.took.Round(time.Second))
	fmt.Fprintf(out, "%d writes in %d chains: %d acknowledged, %d uncertain of which %d happened, %d refused\n",
		t.done+t.uncertain+t.refused, chains, t.done, t.uncertain, t.happened, t.refused)
	fmt.Fprintf(out, "%-46s %8s %8s %8s %8s\n", "", "min", "median", "p90", "max")
	line := func(what string, d durations) {
		if len(d) > 0 {
			fmt.Fprintf(out, "%-46s %8v %8v %8v %8v\n", what, round(d.at(0)), round(d.median()), round(d.at(0.9)), round(d.at(1)))
		}
	}
	line("from the cell leader's kill to the next write", g.leaderGap)
	line("from a follower's kill to the next write", g.followerGap)
	line("from a node's start until it is open", g.open)
	line("from a node's start until it is ready", g.ready)
	line("the driver's own longest sync in a cycle", g.sync)
}

// durations are measured times.
type durations []time.Duration

func (d *durations) add(t time.Duration) { *d = append(*d, t) }

// at is a quantile: 0 the shortest, 1 the longest; 0 if there is none.
func (d durations) at(q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return s[int(q*float64(len(s)-1)+0.5)]
}

// median is the mean of the middle two if their number is even.
func (d durations) median() time.Duration {
	if len(d) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(d))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
