// Command lock shows a lock and the sequencers that make it safe.
//
//	go run ./examples/lock
//
// Two workers in one cell of one in memory take turns at a lock. You see who is let in, that readers share it, that a
// request which was under way while the lock changed hands is refused by the resource, and what a worker that lost its
// session learns.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/fence"
)

const path = "/storage/writer"

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lock:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	node, err := chubby.Open(chubby.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()

	// Each worker has a session of its own, as it would in a process of its own.
	ann, err := node.NewSession(ctx, chubby.SessionOptions{Name: "ann"})
	if err != nil {
		return err
	}
	bob, err := node.NewSession(ctx, chubby.SessionOptions{Name: "bob"})
	if err != nil {
		return err
	}
	// The storage stands for any resource that the lock protects. It asks nobody; it compares.
	var storage fence.Guard
	write := func(who string, s chubby.Sequencer) error {
		err := storage.Check(s)
		if err == nil {
			fmt.Fprintf(out, "storage: %s may write\n", who)
		} else {
			fmt.Fprintf(out, "storage: %s may not write: %v\n", who, err)
		}
		return err
	}

	// WithLock waits for the lock, and gives it back whatever happens.
	err = ann.WithLock(ctx, path, func(_ context.Context, l *chubby.Lock) error {
		_, err := bob.TryLock(ctx, path)
		if !errors.Is(err, chubby.ErrLockHeld) {
			return fmt.Errorf("a second holder: %v", err)
		}
		fmt.Fprintln(out, "bob:", err)
		info, err := node.LockInfo(ctx, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "held by %s, %v\n", info.Holders[0].Name, info.Mode)
		return write("ann", l.Sequencer())
	})
	if err != nil {
		return err
	}

	// Ann takes it again and falls ill: her session ends while a request of hers is still under way.
	late, err := ann.Lock(ctx, path)
	if err != nil {
		return err
	}
	if err := ann.Close(ctx); err != nil {
		return err
	}
	<-late.Done()
	fmt.Fprintln(out, "ann lost the lock:", late.Err())
	next, err := bob.Lock(ctx, path)
	if err != nil {
		return err
	}
	if err := write("bob", next.Sequencer()); err != nil {
		return err
	}
	if err := write("ann", late.Sequencer()); !errors.Is(err, fence.ErrStale) {
		return fmt.Errorf("a late write: %v, want %v", err, fence.ErrStale)
	}
	// A write to the cell itself needs no guard: the condition is judged in the same step.
	_, err = node.Set(ctx, "/storage/log", []byte("ann was here"), chubby.IfHolds(late.Sequencer()))
	if !errors.Is(err, chubby.ErrStaleSequencer) {
		return fmt.Errorf("a late write to the cell: %v, want %v", err, chubby.ErrStaleSequencer)
	}
	fmt.Fprintln(out, "cell:", err)
	if err := next.Unlock(ctx); err != nil {
		return err
	}

	// Readers share a lock, and its generation.
	one, err := bob.RLock(ctx, path)
	if err != nil {
		return err
	}
	two, err := node.RLock(ctx, path) // in the node's default session
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "two readers, one generation: %t\n", one.Sequencer() == two.Sequencer())
	return errors.Join(one.Unlock(ctx), two.Unlock(ctx))
}
