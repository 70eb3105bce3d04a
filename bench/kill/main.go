// Kill runs a cell of three nodes in processes of their own, writes to it, kills the processes, and then checks that no
// acknowledged write was lost and that each was applied once. See README.md.
//
// Usage, from the root of the repository:
//
//	go run ./bench/kill [-mode durability|failover] [-cycles 200] [-kills 10] [-writers 8] [-heartbeat 50ms] [-seed n] ...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == nodeArgument {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "kill: node:", err)
			os.Exit(1)
		}
		return
	}
	o, err := parse(os.Args[1:])
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		err = run(ctx, o, os.Stdout)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kill:", err)
		os.Exit(1)
	}
}

// options are the flags, with what a mode means by them.
type options struct {
	mode      string
	kills     int
	writers   int
	heartbeat time.Duration // 0: default
	logBytes  int64         // 0: default
	sync      string        // one of policies
	target    time.Duration // 0: none
	seed      uint64
	dir       string
	verbose   bool
	keep      bool

	impatient        bool          // some callers give up early
	leaders          float64       // how many of the kills are of the cell leader
	downMin, downMax time.Duration // from a kill to the restart
	gapMin, gapMax   time.Duration // from one kill to the next, at least
	calm             time.Duration // from a node's being ready to the next kill, at least
}

// policies are the words for chubby.SyncPolicy, in its order. What a killed process wrote is safe under each.
var policies = []string{"always", "everysecond", "never"}

const (
	modeDurability = "durability"
	modeFailover   = "failover"
)

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("kill", flag.ExitOnError)
	flags.StringVar(&o.mode, "mode", modeDurability, "durability: kill random nodes; failover: kill cell leaders and measure how long writes stand still")
	cycles := flags.Int("cycles", 200, "kills in mode durability")
	kills := flags.Int("kills", 10, "kills in mode failover")
	flags.IntVar(&o.writers, "writers", 8, "writers, each with one write at a time")
	flags.DurationVar(&o.heartbeat, "heartbeat", 0, "Options.HeartbeatTimeout; 0 is its default")
	flags.StringVar(&o.sync, "sync", "always", "Options.Sync: always, everysecond or never")
	flags.Int64Var(&o.logBytes, "log", 0, "Options.MaxLogBytes; 0 is its default. With a small one, nodes are killed while they compact")
	flags.DurationVar(&o.target, "target", 0, "fail if the median time from a leader's kill to the next acknowledged write is longer; 0: do not judge")
	flags.Uint64Var(&o.seed, "seed", 0, "of the kills and writes; 0 draws one. Processes and disks keep their own time, so it does not repeat a run exactly")
	flags.StringVar(&o.dir, "dir", "", "directory for the nodes' data, removed again unless something is wrong (default: the system's temporary directory)")
	flags.BoolVar(&o.verbose, "v", false, "print every kill")
	flags.BoolVar(&o.keep, "keep", false, "keep the nodes' data and logs")
	flags.Parse(args) // ExitOnError: it does not return an error.
	switch {
	case o.mode != modeDurability && o.mode != modeFailover:
		return o, fmt.Errorf("-mode %q: use %s or %s", o.mode, modeDurability, modeFailover)
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case *cycles < 1 || *kills < 1 || o.writers < 1 || o.writers > handlersMax/2:
		return o, fmt.Errorf("-cycles and -kills must be positive, -writers 1 to %d", handlersMax/2)
	case !slices.Contains(policies, o.sync):
		return o, fmt.Errorf("-sync %q: use one of %v", o.sync, policies)
	case o.heartbeat < 0 || o.logBytes < 0 || o.target < 0:
		return o, errors.New("-heartbeat, -log and -target must not be negative")
	}
	if o.mode == modeDurability {
		o.kills = *cycles
		o.impatient, o.leaders = true, 0.5
		o.downMin, o.downMax = 50*time.Millisecond, 300*time.Millisecond
		o.gapMin, o.gapMax = 300*time.Millisecond, 600*time.Millisecond
	} else {
		o.kills = *kills
		o.leaders = 1
		o.verbose = true
		o.downMin, o.downMax = time.Second, time.Second
		o.calm = time.Second
	}
	for o.seed == 0 {
		o.seed = rand.Uint64()
	}
	return o, nil
}

// run carries out one run and prints it. It returns an error if there was any violation, or if the run could not be
// carried out; the data are kept then.
func run(ctx context.Context, o options, out io.Writer) (err error) {
	dir, err := os.MkdirTemp(o.dir, "chubby-kill-")
	if err != nil {
		return err
	}
	defer func() {
		switch {
		case err != nil && ctx.Err() == nil:
			err = fmt.Errorf("%w\nseed %d; the nodes' data and logs are in %s", err, o.seed, dir)
		case o.keep:
			fmt.Fprintf(out, "the nodes' data and logs are in %s\n", dir)
		default:
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	fmt.Fprintf(out, "mode %s, %d kills, %d writers, seed %d\n", o.mode, o.kills, o.writers, o.seed)

	var faults faults
	c, err := newCell(ctx, o, dir, faults.add)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	w := &writers{cell: c, opts: o, fault: faults.add}
	writing, stop := context.WithCancel(ctx)
	defer w.wg.Wait() // after stop; before the nodes are stopped
	defer stop()
	w.run(writing, o.seed)
	var d disk
	w.wg.Go(func() {
		if err := d.run(writing, dir); err != nil {
			faults.add(err)
		}
	})
	figures, err := killAll(ctx, o, c, w, &d, &faults, out)
	if err != nil {
		return errors.Join(err, faults.err())
	}
	stop()
	w.wg.Wait()
	t, bad := w.verify()
	for _, b := range bad {
		faults.add(errors.New(b))
	}
	figures.print(out, o, t, len(w.mu.chains))
	err = faults.err()
	if median := figures.leaderGap.median(); err == nil && o.target > 0 && median > o.target {
		err = fmt.Errorf("the median time to the next write is %v, more than %v", median, o.target)
	}
	if err == nil {
		fmt.Fprintf(out, "no acknowledged write lost, none applied twice, %d nodes equal\n", nodes)
	}
	return err
}

// killAll kills and restarts nodes, one at a time, so that a majority is always up. It ends at the first fault.
func killAll(ctx context.Context, o options, c *cell, w *writers, disk *disk, f *faults, out io.Writer) (*figures, error) {
	rng := rand.New(rand.NewPCG(o.seed, 1<<32))
	between := func(lo, hi time.Duration) time.Duration { return lo + time.Duration(rng.Int64N(int64(hi-lo)+1)) }
	g := &figures{begun: time.Now()}
	if err := pause(ctx, time.Second); err != nil { // of writing without kills
		return nil, err
	}
	for i := 1; i <= o.kills && f.err() == nil; i++ {
		leader := c.leader()
		victim := leader
		if leader == "" || rng.Float64() >= o.leaders {
			others := without(c.ids, leader)
			victim = others[rng.IntN(len(others))]
		}
		disk.take()
		killed := time.Now()
		gap := w.watch.start()
		c.kill(victim)
		if err := pause(ctx, between(o.downMin, o.downMax)); err != nil {
			return nil, err
		}
		restarted := time.Now()
		if err := c.restart(ctx, victim); err != nil {
			return nil, err
		}
		open := time.Since(restarted)
		if err := c.ready(victim); err != nil {
			return nil, err
		}
		ready := time.Since(restarted)
		var d time.Duration
		select {
		case d = <-gap:
		case <-time.After(patience + callGrace):
			return nil, fmt.Errorf("kill %d, of %s: no write was acknowledged for %v", i, victim, patience+callGrace)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		sync := disk.take()
		g.kills++
		g.sync.add(sync)
		g.open.add(open)
		g.ready.add(ready)
		if victim == leader {
			g.leaderGap.add(d)
		} else {
			g.followerGap.add(d)
		}
		if o.verbose {
			role := ""
			if victim == leader {
				role = ", the cell leader"
			}
			fmt.Fprintf(out, "kill %d, %s of %s%s: next write after %v; open after %v, ready after %v; a sync took up to %v; %d writes acknowledged\n",
				i, killed.Format("15:04:05.000"), victim, role, round(d), round(open), round(ready), round(sync), w.acked.Load())
		} else if i%50 == 0 {
			fmt.Fprintf(out, "%d kills, %d of the cell leader; %d writes acknowledged\n", i, len(g.leaderGap), w.acked.Load())
		}
		if err := pause(ctx, max(o.calm, between(o.gapMin, o.gapMax)-time.Since(killed))); err != nil {
			return nil, err
		}
	}
	g.took = time.Since(g.begun)
	return g, nil
}

func without(ids []string, id string) []string {
	var others []string
	for _, x := range ids {
		if x != id {
			others = append(others, x)
		}
	}
	return others
}

// pause lets time pass, which here is what a run is made of.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
