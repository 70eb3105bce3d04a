// Command CAS_base does ChubbyGo's three compare-and-swap operations from many goroutines at once.
//
//	go run ./examples/CAS_base
//	go run ./examples/CAS_base -client client_config.json
//
// A counter begins at 8. Nine goroutines subtract 1 with the bound 0: eight succeed. Nine add 1 with the bound 8: eight
// succeed. Nine swap 8 for 10: one succeeds. All of them run on the three nodes of a cell, in this process if no file is
// named. You see how each ended and what the counter is in the end, which is the same every time: an operation is judged
// where it is executed, once, and in the same order on every node.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/examples/internal/cell"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "CAS_base:", err)
		os.Exit(1)
	}
}

const (
	path    = "/CAS_base/counter"
	first   = 8
	callers = 9
)

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("CAS_base", flag.ContinueOnError)
	where := cell.Register(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := where.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()

	if _, err := c.Client(0).Set(ctx, path, []byte(strconv.Itoa(first))); err != nil {
		return err
	}
	for _, step := range []struct {
		name    string
		call    func(*chubby.Client) error
		refused error
	}{
		{"Sub 1, not below 0", func(c *chubby.Client) error {
			_, err := c.Sub(ctx, path, 1, 0)
			return err
		}, chubby.ErrBound},
		{"Add 1, not above 8", func(c *chubby.Client) error {
			_, err := c.Add(ctx, path, 1, first)
			return err
		}, chubby.ErrBound},
		{"CompareAndSwap 8 to 10", func(c *chubby.Client) error {
			_, err := c.CompareAndSwap(ctx, path, []byte("8"), []byte("10"))
			return err
		}, chubby.ErrConflict},
	} {
		done, refused, err := together(c, step.call, step.refused)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		e, err := c.Client(1).Get(ctx, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%d times %s: %d succeed, %d are refused (%v), the counter is %s\n",
			callers, step.name, done, refused, step.refused, e.Data)
	}
	return nil
}

// together has all callers make the call at once and counts how it ended.
func together(c *cell.Cell, call func(*chubby.Client) error, refusal error) (done, refused int, err error) {
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { errs[i] = call(c.Client(i)) })
	}
	wg.Wait()
	for _, e := range errs {
		switch {
		case e == nil:
			done++
		case errors.Is(e, refusal):
			refused++
		default:
			err = errors.Join(err, e)
		}
	}
	return done, refused, err
}
