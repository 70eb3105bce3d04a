// Compare runs the same workloads on chubby and on what one would use instead: embedded etcd, and hashicorp/raft with
// raft-boltdb as its examples use it. See README.md.
//
// Usage, from the root of the repository:
//
//	go -C bench/compare run . -table [-sets 100000] [-dir path]
//	go -C bench/compare run . [-rounds 5] [-d 2s] [-systems a,b] [-workloads regexp] [-dir path] [-out file]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := compare(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds    int
	d         time.Duration
	openers   []opener
	workloads []workload
	dir       string
	out       string
	table     bool
	sets      int
}

func parse(args []string) (options, error) {
	var o options
	var names []string
	for _, op := range openers() {
		names = append(names, op.name)
	}
	flags := flag.NewFlagSet("compare", flag.ExitOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often every workload runs on every system")
	flags.DurationVar(&o.d, "d", 2*time.Second, "measured time of one workload on one system")
	systems := flags.String("systems", strings.Join(names, ","), "systems to measure; the others are compared with the first")
	pattern := flags.String("workloads", "", "regular expression that chooses workloads by name, such as put/callers=64")
	flags.StringVar(&o.dir, "dir", "", "directory for the data, removed again; it decides what fsync costs (default: the system's temporary directory)")
	flags.StringVar(&o.out, "out", "", "file for the figures of each round, readable by benchstat")
	flags.BoolVar(&o.table, "table", false, "the table of ChubbyGo's README instead, beside Redis and ZooKeeper where they are installed")
	flags.IntVar(&o.sets, "sets", 100_000, "with -table: Sets in each row of the longer run")
	flags.Parse(args) // ExitOnError: it does not return an error.

	chosen, err := regexp.Compile(*pattern)
	if err != nil {
		return o, err
	}
	for _, w := range workloads() {
		if chosen.MatchString(w.name()) {
			o.workloads = append(o.workloads, w)
		}
	}
	for name := range strings.SplitSeq(*systems, ",") {
		i := slices.Index(names, name)
		if i < 0 {
			return o, fmt.Errorf("-systems: no system %q, there are %s", name, strings.Join(names, ", "))
		}
		if slices.ContainsFunc(o.openers, func(op opener) bool { return op.name == name }) {
			return o, fmt.Errorf("-systems: %s twice", name)
		}
		o.openers = append(o.openers, openers()[i])
	}
	switch {
	case len(o.workloads) == 0:
		return o, fmt.Errorf("-workloads: none matches %q", *pattern)
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.rounds < 1 || o.d <= 0 || o.sets < 1:
		return o, errors.New("-rounds, -d and -sets must be positive")
	}
	return o, nil
}

func compare(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	bench := io.Discard
	if o.out != "" {
		f, createErr := os.Create(o.out)
		if createErr != nil {
			return createErr
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		bench = f
	}
	dir, err := os.MkdirTemp(o.dir, "chubby-compare-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fsync, err := fsyncTime(dir)
	if err != nil {
		return err
	}
	env := environment(fsync)
	fmt.Print(env)
	if _, err := io.WriteString(bench, env); err != nil {
		return err
	}

	if o.table {
		return table(ctx, setOpeners(), dir, o.sets, os.Stdout)
	}
	systems, err := open(ctx, o.openers, dir)
	defer func() {
		for _, s := range systems {
			err = errors.Join(err, s.Close())
		}
	}()
	if err != nil {
		return err
	}
	rounds, err := play(ctx, o, systems, bench)
	if err != nil {
		return err
	}
	var names []string
	for _, s := range systems {
		names = append(names, s.Name())
	}
	if err := report(os.Stdout, rounds, o.workloads, names); err != nil {
		return err
	}
	return failures(rounds)
}

// open starts all systems and fills them. It returns those that run, also with an error.
func open(ctx context.Context, openers []opener, dir string) ([]system, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var systems []system
	for _, op := range openers {
		s, err := op.open(ctx, filepath.Join(dir, op.name))
		if err != nil {
			return systems, fmt.Errorf("open %s: %w", op.name, err)
		}
		systems = append(systems, s)
		if err := fill(ctx, s); err != nil {
			return systems, fmt.Errorf("fill %s: %w", op.name, err)
		}
	}
	return systems, nil
}

// play measures everything. The systems take turns within each workload, another one first in each round, so that drift
// of the machine and what one leaves behind for the next meet all of them alike.
func play(ctx context.Context, o options, systems []system, bench io.Writer) ([][]sample, error) {
	rounds := make([][]sample, o.rounds)
	for r := range rounds {
		for _, w := range o.workloads {
			for i := range systems {
				s := measure(ctx, systems[(r+i)%len(systems)], w, o.d)
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				rounds[r] = append(rounds[r], s)
				if s.err != nil {
					fmt.Fprintf(os.Stderr, "round %d: %s: %s: %v\n", r+1, s.workload, s.system, s.err)
					continue
				}
				fmt.Fprintf(os.Stderr, "round %d: %s: %s: %.0f ops/s\n", r+1, s.workload, s.system, s.opsPerSecond())
				if err := writeBench(bench, s); err != nil {
					return nil, err
				}
			}
		}
	}
	return rounds, nil
}

// failures tells how many measurements are missing from the figures.
func failures(rounds [][]sample) error {
	n := 0
	for _, round := range rounds {
		for _, s := range round {
			if s.err != nil {
				n++
			}
		}
	}
	if n > 0 {
		return fmt.Errorf("%d measurements failed and are left out", n)
	}
	return nil
}

// fsyncTime is the median time of writing and syncing 4 KiB in dir: what every system here pays for each durable write.
func fsyncTime(dir string) (time.Duration, error) {
	f, err := os.CreateTemp(dir, "fsync-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var times []time.Duration
	block := make([]byte, 4096)
	for range 101 {
		start := time.Now()
		if _, err := f.WriteAt(block, 0); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}
