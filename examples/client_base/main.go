// Command client_base sets and gets from many goroutines at once, as ChubbyGo's program of this name does.
//
//	go run ./examples/client_base
//	go run ./examples/client_base -goroutines 50 -requests 200 -fast
//	go run ./examples/client_base -client client_config.json
//
// Each goroutine writes a file of its own and reads it back, again and again, with Get or, with -fast, with FastGet. You
// see how many calls were made, how long they took, and what a read costs: Get asks the cell and is linearizable on every
// node; FastGet reads the memory of the node, says how old that may be, and still shows this client its own writes. A
// read that did not show the write before it would end the program with an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/examples/internal/cell"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "client_base:", err)
		os.Exit(1)
	}
}

const dir = "/client_base"

// worker is one goroutine and what its calls took.
type worker struct {
	path      string
	set, read time.Duration
	oldest    time.Duration // the greatest Age of its reads
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("client_base", flag.ContinueOnError)
	goroutines := fs.Int("goroutines", 10, "how many set and get at once")
	requests := fs.Int("requests", 100, "how often each does")
	fast := fs.Bool("fast", false, "read with FastGet instead of Get")
	where := cell.Register(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *goroutines < 1 || *requests < 1 {
		return fmt.Errorf("-goroutines %d, -requests %d: use at least 1", *goroutines, *requests)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	c, err := where.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	workers := make([]worker, *goroutines)
	errs := make([]error, *goroutines)
	var wg sync.WaitGroup
	begun := time.Now()
	for i := range workers {
		workers[i].path = fmt.Sprintf("%s/%d", dir, i)
		wg.Go(func() { errs[i] = workers[i].work(ctx, c.Client(i), *requests, *fast) })
	}
	wg.Wait()
	took := time.Since(begun)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	report(out, workers, *requests, *fast, took)
	return c.Client(0).DeleteTree(ctx, dir)
}

// work writes and reads back.
func (w *worker) work(ctx context.Context, c *chubby.Client, requests int, fast bool) error {
	read := c.Get
	if fast {
		read = c.FastGet
	}
	for i := range requests {
		want := fmt.Sprintf("value %d", i)
		begun := time.Now()
		if _, err := c.Set(ctx, w.path, []byte(want)); err != nil {
			return err
		}
		written := time.Now()
		e, err := read(ctx, w.path)
		if err != nil {
			return err
		}
		w.set += written.Sub(begun)
		w.read += time.Since(written)
		w.oldest = max(w.oldest, e.Age)
		if string(e.Data) != want {
			return fmt.Errorf("%s is %q after %q was written", w.path, e.Data, want)
		}
	}
	return nil
}

func report(out io.Writer, workers []worker, requests int, fast bool, took time.Duration) {
	var set, read, oldest time.Duration
	for _, w := range workers {
		set, read, oldest = set+w.set, read+w.read, max(oldest, w.oldest)
	}
	n := len(workers) * requests
	each := func(d time.Duration) time.Duration { return (d / time.Duration(n)).Round(100 * time.Nanosecond) }
	fmt.Fprintf(out, "%d goroutines: %d Sets and as many reads in %v, %.0f calls a second\n",
		len(workers), n, took.Round(time.Millisecond), float64(2*n)/took.Seconds())
	fmt.Fprintf(out, "a Set took %v on average\n", each(set))
	if fast {
		fmt.Fprintf(out, "a FastGet took %v on average, and was at most %v old\n", each(read), oldest.Round(100*time.Microsecond))
	} else {
		fmt.Fprintf(out, "a Get took %v on average, and was as new as an answer can be\n", each(read))
	}
	fmt.Fprintln(out, "each read showed the write before it")
}
