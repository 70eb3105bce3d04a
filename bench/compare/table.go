package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
)

// The table of ChubbyGo's README: so many threads, each with one request at a time, make 1000 Sets in all. Rows of 1000
// are over in a moment, so each is measured with more Sets beside it.

// seedRows are the threads of ChubbyGo's table, and the Sets in a second that it published for them.
var seedRows = []struct{ threads, tps int }{{10, 370}, {20, 733}, {30, 796}, {40, 1154}, {50, 1249}, {60, 1466}, {70, 1570}, {100, 1669}}

const (
	seedSets  = 1000
	tableKeys = 1000
)

// setter is a running product with durable writes, as far as the table needs it.
type setter interface {
	Name() string
	// Caller makes what one thread needs, such as a connection. Threads do so before the clock starts.
	Caller(ctx context.Context, i int) (caller setCaller, err error)
	// Close ends it and waits for it.
	Close() error
}

type setCaller interface {
	// Set returns when the write is acknowledged. Keys are numbers below tableKeys.
	Set(ctx context.Context, key int, value string) error
	Close() error
}

// setOpener starts a product in an empty directory. note says what is particular to it. Its open fails with errMissing
// where the product is not installed.
type setOpener struct {
	name, note string
	open       func(ctx context.Context, dir string) (setter, error)
}

var errMissing = errors.New("not installed")

func setOpeners() []setOpener {
	return []setOpener{
		{"chubby", "three nodes in this process, each acknowledged write synced on a majority; callers on all nodes", openChubbySetter},
		{"redis", "a leader with appendfsync always, two replicas, one sentinel; acknowledged when the leader alone has it", openRedis},
		{"zookeeper", "three servers, each acknowledged write synced on a majority; callers on all servers", openZooKeeper},
	}
}

// tableRow is one product under one number of threads.
type tableRow struct {
	sets  int
	total time.Duration
	mean  time.Duration // of one call
}

func (r tableRow) tps() float64 { return float64(r.sets) / r.total.Seconds() }

// measureSets has threads make so many Sets in all.
func measureSets(ctx context.Context, s setter, threads, sets int) (row tableRow, err error) {
	callers := make([]setCaller, 0, threads)
	defer func() {
		for _, c := range callers {
			err = errors.Join(err, c.Close())
		}
	}()
	for i := range threads {
		c, err := s.Caller(ctx, i)
		if err != nil {
			return row, err
		}
		callers = append(callers, c)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	v := value(1)
	var next, spent atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range callers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(sets) || ctx.Err() != nil {
					return
				}
				began := time.Now()
				if err := c.Set(ctx, int(i)%tableKeys, v); err != nil {
					cancel(err)
					return
				}
				spent.Add(int64(time.Since(began)))
			}
		})
	}
	wg.Wait()
	row = tableRow{sets, time.Since(start), time.Duration(spent.Load() / int64(sets))}
	return row, context.Cause(ctx)
}

// table measures and prints. The products run one after the other within each row, and all stay up for the whole run.
func table(ctx context.Context, openers []setOpener, dir string, sets int, out io.Writer) (err error) {
	var systems []setter
	defer func() {
		for _, s := range systems {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, o := range openers {
		place := filepath.Join(dir, "table-"+o.name)
		if err := os.Mkdir(place, 0o700); err != nil {
			return err
		}
		startCtx, cancel := context.WithTimeout(ctx, time.Minute)
		s, err := o.open(startCtx, place)
		cancel()
		if errors.Is(err, errMissing) {
			fmt.Fprintf(out, "%s is left out: %v\n", o.name, err)
			continue
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", o.name, err)
		}
		fmt.Fprintf(out, "%s: %s\n", o.name, o.note)
		systems = append(systems, s)
	}
	for _, s := range systems { // makes what is missing, and wakes everything up
		if _, err := measureSets(ctx, s, 20, 2*tableKeys); err != nil {
			return fmt.Errorf("%s: %w", s.Name(), err)
		}
	}
	for _, n := range []int{seedSets, sets} {
		rows := make([][]tableRow, len(seedRows))
		for i, seed := range seedRows {
			for _, s := range systems {
				row, err := measureSets(ctx, s, seed.threads, n)
				if err != nil {
					return fmt.Errorf("%s, %d threads: %w", s.Name(), seed.threads, err)
				}
				rows[i] = append(rows[i], row)
			}
		}
		if err := printTable(out, systems, n, rows); err != nil {
			return err
		}
	}
	return nil
}

// printTable prints one table. RT is the mean time of a call; ChubbyGo's is the total divided by the requests, the inverse
// of its TPS, so only TPS is put beside it.
func printTable(out io.Writer, systems []setter, sets int, rows [][]tableRow) error {
	fmt.Fprintf(out, "\n%d Sets in each row\n", sets)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(w, "threads\tChubbyGo TPS\t")
	for i, s := range systems {
		fmt.Fprintf(w, "%s: total ms\tTPS\tRT ms\t", s.Name())
		if i == 0 {
			fmt.Fprint(w, "x ChubbyGo\t")
		}
	}
	fmt.Fprintln(w)
	for i, seed := range seedRows {
		fmt.Fprintf(w, "%d\t%d\t", seed.threads, seed.tps)
		for k, r := range rows[i] {
			fmt.Fprintf(w, "%.1f\t%.0f\t%.2f\t", milliseconds(r.total), r.tps(), milliseconds(r.mean))
			if k == 0 {
				fmt.Fprintf(w, "%.1f\t", r.tps()/float64(seed.tps))
			}
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// chubbySetter is the cell of the other workloads.
type chubbySetter struct{ system }

func openChubbySetter(ctx context.Context, dir string) (setter, error) {
	s, err := openChubby(ctx, dir)
	return chubbySetter{s}, err
}

func (s chubbySetter) Caller(_ context.Context, i int) (setCaller, error) {
	return chubbyCaller{s.system, i % nodes}, nil
}

type chubbyCaller struct {
	s    system
	node int
}

func (c chubbyCaller) Set(ctx context.Context, key int, value string) error {
	return c.s.Put(ctx, c.node, fmt.Sprintf("table/%04d", key), value)
}

func (c chubbyCaller) Close() error { return nil }
