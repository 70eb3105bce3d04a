package recipes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"

	"github.com/chubbygo/chubby"
)

const permitsMax = 1024 // each is looked at by whoever comes to the head of the queue

// Semaphore lets at most n holders at a time do something. Its permits are numbered, and each is a lock of its own: so a
// permit has a context and a sequencer with the same worth as a lock's, and its number can name a resource out of n.
//
// The bound is kept by the cell, without exception. It is that of the largest n in use at the path: while processes
// change from one n to another, each takes only permits with numbers below its own.
//
// Waiting calls are served in the order in which the cell received them, and a permit that becomes free wakes only the
// first of them. TryAcquire does not overtake those who wait. Permits of a lost session come back when the cell ends it,
// and so does the place at the head of the queue: until then, those behind a head that crashed wait with it.
//
// Nothing is left in the cell when nobody holds a permit or waits for one: it is made of locks without entries, path
// itself, which is the queue, and path/permit/<number>.
type Semaphore struct {
	c    *chubby.Client
	path string
	n    int
}

// NewSemaphore names the semaphore at path, with 1 to 1,024 permits.
func NewSemaphore(c *chubby.Client, path string, permits int) (*Semaphore, error) {
	if err := checkPlace("new semaphore", c, path); err != nil {
		return nil, err
	}
	if permits < 1 || permits > permitsMax {
		return nil, fail("new semaphore", path, fmt.Errorf("%w: permits %d: use 1 to %d", chubby.ErrBadOptions, permits, permitsMax))
	}
	return &Semaphore{c, path, permits}, nil
}

// Permit is one of a semaphore's permits, held by the Client's default session.
type Permit struct {
	lock   *chubby.Lock
	number int
}

// Acquire waits for a permit, until ctx ends. Whenever it returns an error the caller has no permit, and what it left in
// the queue is withdrawn.
func (s *Semaphore) Acquire(ctx context.Context) (*Permit, error) {
	p, err := s.try(ctx)
	if errors.Is(err, chubby.ErrLockHeld) {
		p, err = s.wait(ctx)
	}
	if err != nil {
		return nil, fail("acquire permit", s.path, err)
	}
	return p, nil
}

// TryAcquire takes a permit if one is free that nobody waits for, and else returns chubby.ErrLockHeld. A refusal costs
// the cell a read, no write.
func (s *Semaphore) TryAcquire(ctx context.Context) (*Permit, error) {
	p, err := s.try(ctx)
	if err != nil {
		return nil, fail("try to acquire permit", s.path, err)
	}
	return p, nil
}

// try takes a permit if more are free than calls are before this one.
func (s *Semaphore) try(ctx context.Context) (*Permit, error) {
	queue, err := s.c.LockInfo(ctx, s.path)
	if err != nil {
		return nil, err
	}
	free, err := s.free(ctx)
	if err != nil {
		return nil, err
	}
	before := queue.Waiters + len(queue.Holders)
	for len(free) > before {
		p, err := s.take(ctx, free[0])
		if p != nil || err != nil {
			return p, err
		}
		free = free[1:]
	}
	return nil, chubby.ErrLockHeld
}

// wait stands in the queue, which is the lock at path. Its holder is the only one who waits for permits. Should it lose
// that lock while it waits, two do, which is not quite fair, but permits are locks and care for themselves.
func (s *Semaphore) wait(ctx context.Context) (*Permit, error) {
	head, err := s.c.Lock(ctx, s.path)
	if err != nil {
		return nil, err
	}
	// If ctx has ended, Unlock goes on by itself. If the lock was lost there is nothing to give back.
	defer func() { _ = head.Unlock(ctx) }()
	var p *Permit
	err = follow(ctx, s.c, s.path+"/permit", chubby.WatchOptions{}, func() (bool, error) {
		free, err := s.free(ctx)
		for _, number := range free {
			if p != nil || err != nil {
				break
			}
			p, err = s.take(ctx, number)
		}
		return p != nil, err
	}, func(e chubby.Event) (bool, error) {
		number, err := strconv.Atoi(base(e.Path))
		if e.Kind != chubby.EventLockReleased || err != nil || number < 0 || number >= s.n {
			return false, nil
		}
		p, err = s.take(ctx, number)
		return p != nil, err
	})
	return p, err
}

// take tries to lock one permit. It is nil without an error when somebody else has it.
func (s *Semaphore) take(ctx context.Context, number int) (*Permit, error) {
	l, err := s.c.TryLock(ctx, s.permit(number))
	if errors.Is(err, chubby.ErrLockHeld) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &Permit{l, number}, nil
}

// free lists the permits that nobody has, in random order so that callers who look at the same time try different ones.
func (s *Semaphore) free(ctx context.Context) ([]int, error) {
	infos, errs := make([]chubby.LockInfo, s.n), make([]error, s.n)
	var wg sync.WaitGroup
	for i := range s.n {
		wg.Go(func() { infos[i], errs[i] = s.c.LockInfo(ctx, s.permit(i)) }) // all at once: one question serves them all
	}
	wg.Wait()
	var free []int
	for i, info := range infos {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if len(info.Holders) == 0 {
			free = append(free, i)
		}
	}
	rand.Shuffle(len(free), func(i, j int) { free[i], free[j] = free[j], free[i] })
	return free, nil
}

func (s *Semaphore) permit(number int) string { return s.path + "/permit/" + strconv.Itoa(number) }

// Number returns which permit it is, from 0. No two live permits have one number.
func (p *Permit) Number() int { return p.number }

// Sequencer returns the proof of this permit: the next holder of the same number has a larger one, so a resource with a
// fence.Guard refuses whoever lost it, and chubby.IfHolds makes a write to the cell conditional on it.
func (p *Permit) Sequencer() chubby.Sequencer { return p.lock.Sequencer() }

// Context ends before the cell may give the permit to another; see [chubby.Lock.Context].
func (p *Permit) Context() context.Context { return p.lock.Context() }

// Done is closed when the permit is gone for good; see [chubby.Lock.Done].
func (p *Permit) Done() <-chan struct{} { return p.lock.Done() }

// Err tells why the permit is gone; see [chubby.Lock.Err].
func (p *Permit) Err() error { return p.lock.Err() }

// Release gives the permit back; its Context ends first. It returns chubby.ErrNotHeld if it was gone before. If ctx ends
// before the cell has answered it returns chubby.ErrUncertain, and releasing goes on in the background.
func (p *Permit) Release(ctx context.Context) error {
	return fail("release permit", p.lock.Path(), p.lock.Unlock(ctx))
}
