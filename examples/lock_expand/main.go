// Command lock_expand asks for read locks and write locks from many goroutines at once, as ChubbyGo's program of this
// name does.
//
//	go run ./examples/lock_expand
//	go run ./examples/lock_expand -readers 20 -writers 10 -rounds 50
//	go run ./examples/lock_expand -client client_config.json
//
// You see that readers hold the lock together; that a writer waits for them, and that a reader who comes after it waits
// behind it, so that readers cannot starve a writer; and then all of them at once: two files are always changed
// together, readers never see one changed without the other, and no change is lost.
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
		fmt.Fprintln(os.Stderr, "lock_expand:", err)
		os.Exit(1)
	}
}

const (
	path  = "/lock_expand/lock"
	left  = "/lock_expand/left"
	right = "/lock_expand/right"
)

// show is a run of the program.
type show struct {
	*cell.Cell
	out                      io.Writer
	readers, writers, rounds int
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("lock_expand", flag.ContinueOnError)
	s := &show{out: out}
	fs.IntVar(&s.readers, "readers", 5, "how many want the lock for reading")
	fs.IntVar(&s.writers, "writers", 5, "how many want it for writing")
	fs.IntVar(&s.rounds, "rounds", 10, "how often each wants it")
	where := cell.Register(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if s.readers < 1 || s.writers < 1 || s.rounds < 1 {
		return fmt.Errorf("-readers %d, -writers %d, -rounds %d: use at least 1", s.readers, s.writers, s.rounds)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	if s.Cell, err = where.Open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	for _, step := range []func(context.Context) error{s.share, s.queue, s.storm} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return s.Client(0).DeleteTree(ctx, "/lock_expand")
}

// together runs f in n goroutines and waits for all of them.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// share has all readers hold the lock at one moment.
func (s *show) share(ctx context.Context) error {
	held := make([]*chubby.Lock, s.readers)
	err := together(s.readers, func(i int) (err error) {
		held[i], err = s.Client(i).RLock(ctx, path)
		return err
	})
	if err != nil {
		return err
	}
	info, err := s.Client(0).LockInfo(ctx, path)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%d readers hold the lock together: %v, %d holders\n", s.readers, info.Mode, len(info.Holders))
	return together(s.readers, func(i int) error { return held[i].Unlock(ctx) })
}

// queue has a reader, a writer and a reader come one after the other.
func (s *show) queue(ctx context.Context) error {
	first, err := s.Client(0).RLock(ctx, path)
	if err != nil {
		return err
	}
	var order []string // written by holders that exclude each other, and read after both
	var wg sync.WaitGroup
	var writeErr, readErr error
	ctx, cancel := context.WithCancel(ctx)
	defer wg.Wait()
	defer cancel() // who still waits withdraws
	wg.Go(func() {
		writeErr = s.Client(1).WithLock(ctx, path, func(context.Context, *chubby.Lock) error {
			order = append(order, "writer")
			return nil
		})
	})
	if err := s.waiting(ctx, 1); err != nil {
		return err
	}
	wg.Go(func() {
		var l *chubby.Lock
		if l, readErr = s.Client(2).RLock(ctx, path); readErr == nil {
			order = append(order, "reader")
			readErr = l.Unlock(ctx)
		}
	})
	if err := s.waiting(ctx, 2); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "a reader holds it, a writer waits, and a reader waits behind the writer")
	if err := first.Unlock(ctx); err != nil {
		return err
	}
	wg.Wait()
	if err := errors.Join(writeErr, readErr); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "they had it in this order:", order)
	return nil
}

// waiting returns when n calls wait for the lock.
func (s *show) waiting(ctx context.Context, n int) error {
	for {
		info, err := s.Client(0).LockInfo(ctx, path)
		if err != nil || info.Waiters == n {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// storm has everybody at once: writers add 1 to two files, one after the other, and readers compare them.
func (s *show) storm(ctx context.Context) error {
	for _, file := range []string{left, right} {
		if _, err := s.Client(0).Set(ctx, file, []byte("0")); err != nil {
			return err
		}
	}
	err := together(s.readers+s.writers, func(i int) error {
		for range s.rounds {
			var err error
			if i < s.readers {
				err = s.read(ctx, s.Client(i))
			} else {
				err = s.write(ctx, s.Client(i))
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	e, err := s.Client(0).Get(ctx, left)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%d reads saw both files equal; %d writes are %s in each file\n", s.readers*s.rounds, s.writers*s.rounds, e.Data)
	return nil
}

// read compares the files under a read lock.
func (s *show) read(ctx context.Context, c *chubby.Client) (err error) {
	l, err := c.RLock(ctx, path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Unlock(ctx)) }()
	a, err := c.Get(ctx, left)
	if err != nil {
		return err
	}
	b, err := c.Get(ctx, right)
	if err != nil {
		return err
	}
	if string(a.Data) != string(b.Data) {
		return fmt.Errorf("a reader sees %s and %s", a.Data, b.Data)
	}
	return nil
}

// write adds 1 to both files under a write lock. It reads and writes in separate calls, so only the lock keeps two
// writers from losing an addition, and each write says under which grant it is made: should the lock have been lost
// meanwhile, it is refused.
func (s *show) write(ctx context.Context, c *chubby.Client) error {
	return c.WithLock(ctx, path, func(ctx context.Context, l *chubby.Lock) error {
		for _, file := range []string{left, right} {
			e, err := c.Get(ctx, file)
			if err != nil {
				return err
			}
			n, err := strconv.Atoi(string(e.Data))
			if err != nil {
				return err
			}
			if _, err := c.Set(ctx, file, []byte(strconv.Itoa(n+1)), chubby.IfHolds(l.Sequencer())); err != nil {
				return err
			}
		}
		return nil
	})
}
