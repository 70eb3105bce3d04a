// Command lock_base goes through all basic lock operations, as ChubbyGo's program of this name does.
//
//	go run ./examples/lock_base
//	go run ./examples/lock_base -client client_config.json
//
// Two sessions, named ann and bob, take turns at one file and its lock, each on a node of its own. You see the lock tried,
// taken, waited for and given back; a token (here: sequencer) checked and found stale; readers who share; a lock that ends
// by itself; and what is refused: a lock that is held, the root, deleting a file whose lock is held, unlocking twice.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/examples/internal/cell"
)

func main() {
	if err := run(context.Background(), os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lock_base:", err)
		os.Exit(1)
	}
}

const path = "/lock_base/file"

// show is a run of the program.
type show struct {
	out      io.Writer
	ann, bob *chubby.Session
	client   *chubby.Client // for what needs no session
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("lock_base", flag.ContinueOnError)
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
	s := &show{out: out, client: c.Client(2)}
	for i, session := range []**chubby.Session{&s.ann, &s.bob} {
		if *session, err = c.Client(i).NewSession(ctx, chubby.SessionOptions{Name: []string{"ann", "bob"}[i]}); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, (*session).Close(context.WithoutCancel(ctx))) }()
	}
	for _, step := range []func(context.Context) error{s.create, s.try, s.wait, s.share, s.bound, s.delete} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// refused reports a call that must have been refused with want.
func (s *show) refused(what string, err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: %v, want %v", what, err, want)
	}
	s.say("refused: %s: %v", what, want)
	return nil
}

// create makes a file. Its directory comes with it. A lock would need no file.
func (s *show) create(ctx context.Context) error {
	if _, err := s.ann.Create(ctx, path, []byte("contents"), chubby.CreateOptions{}); err != nil {
		return err
	}
	s.say("ann creates %s", path)
	_, err := s.bob.Create(ctx, path, nil, chubby.CreateOptions{})
	return s.refused("to create it again", err, chubby.ErrExists)
}

// try is ChubbyGo's Acquire, which never waits, with Release and CheckToken.
func (s *show) try(ctx context.Context) error {
	l, err := s.ann.TryLock(ctx, path)
	if err != nil {
		return err
	}
	info, err := s.client.LockInfo(ctx, path)
	if err != nil {
		return err
	}
	s.say("ann takes the lock: %s holds it, %v", info.Holders[0].Name, info.Mode)
	_, err = s.bob.TryLock(ctx, path)
	if err := s.refused("bob tries it", err, chubby.ErrLockHeld); err != nil {
		return err
	}
	_, err = s.bob.TryRLock(ctx, path)
	if err := s.refused("bob tries it for reading", err, chubby.ErrLockHeld); err != nil {
		return err
	}
	// The sequencer can be sent to whoever is asked to act for its holder.
	if err := s.client.CheckSequencer(ctx, l.Sequencer()); err != nil {
		return err
	}
	s.say("ann's sequencer is good")
	if err := l.Unlock(ctx); err != nil {
		return err
	}
	s.say("ann gives the lock back")
	if err := s.refused("to give it back again", l.Unlock(ctx), chubby.ErrNotHeld); err != nil {
		return err
	}
	return s.refused("ann's sequencer", s.client.CheckSequencer(ctx, l.Sequencer()), chubby.ErrStaleSequencer)
}

// wait is what ChubbyGo could not: whoever comes waits its turn, for as long as its context lets it.
func (s *show) wait(ctx context.Context) error {
	held, err := s.ann.Lock(ctx, path)
	if err != nil {
		return err
	}
	impatient, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = s.bob.Lock(impatient, path)
	if err := s.refused("bob waits for 20 ms", err, context.DeadlineExceeded); err != nil {
		return err
	}
	type outcome struct {
		lock *chubby.Lock
		err  error
	}
	got := make(chan outcome, 1)
	go func() {
		l, err := s.bob.Lock(ctx, path)
		got <- outcome{l, err}
	}()
	for info := (chubby.LockInfo{}); info.Waiters == 0; {
		if info, err = s.client.LockInfo(ctx, path); err != nil {
			return err
		}
	}
	if err := held.Unlock(ctx); err != nil {
		return err
	}
	next := <-got
	if next.err != nil {
		return next.err
	}
	s.say("bob waits, and has the lock when ann gives it back")
	if next.lock.Sequencer().Compare(held.Sequencer()) <= 0 {
		return fmt.Errorf("%v follows %v", next.lock.Sequencer(), held.Sequencer())
	}
	s.say("his sequencer is greater than hers")
	return next.lock.Unlock(ctx)
}

// share is ChubbyGo's ReadLock, whose holders are known here.
func (s *show) share(ctx context.Context) error {
	one, err := s.ann.RLock(ctx, path)
	if err != nil {
		return err
	}
	two, err := s.bob.TryRLock(ctx, path)
	if err != nil {
		return err
	}
	s.say("ann and bob hold it for reading")
	_, err = s.ann.TryLock(ctx, path)
	if err := s.refused("ann tries it for writing", err, chubby.ErrLockHeld); err != nil {
		return err
	}
	return errors.Join(one.Unlock(ctx), two.Unlock(ctx))
}

// bound is ChubbyGo's Acquire with a timeout. When it is over this grant ends, and no other.
func (s *show) bound(ctx context.Context) error {
	l, err := s.ann.Lock(ctx, path, chubby.MaxHold(50*time.Millisecond))
	if err != nil {
		return err
	}
	<-l.Done()
	if err := l.Err(); !errors.Is(err, chubby.ErrLockLost) {
		return fmt.Errorf("after its time the lock ended with %v, want %v", err, chubby.ErrLockLost)
	}
	s.say("ann may hold it for 50 ms: %v", chubby.ErrLockLost)
	// WithLock gives the lock back when the function returns.
	return s.bob.WithLock(ctx, path, func(context.Context, *chubby.Lock) error {
		s.say("bob has it")
		return nil
	})
}

// delete removes the file, and shows what may not be locked or removed.
func (s *show) delete(ctx context.Context) error {
	_, err := s.ann.TryLock(ctx, "/")
	if err := s.refused("to lock the root", err, chubby.ErrBadPath); err != nil {
		return err
	}
	l, err := s.ann.Lock(ctx, path)
	if err != nil {
		return err
	}
	if err := s.refused("to delete what is locked", s.client.Delete(ctx, path), chubby.ErrLockHeld); err != nil {
		return err
	}
	if err := errors.Join(l.Unlock(ctx), s.client.Delete(ctx, path), s.client.Delete(ctx, "/lock_base")); err != nil {
		return err
	}
	s.say("the file and its directory are deleted")
	return nil
}
