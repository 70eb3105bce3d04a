package recipes

import (
	"context"
	"errors"
	"fmt"

	"github.com/chubbygo/chubby"
)

const countMax = 100_000 // names that a waiting call reads and remembers

// CountDownLatch lets callers of Wait through once n different things have been counted down. It needs no beginning:
// who waits and who counts may come in any order. It stays open until it is reset.
//
// Each countdown has a name, the part of the work that is done, and each name counts once. So CountDown can be called
// again after any error, by another process too, and the count is exact.
//
// The latch is not bound to sessions, because what was counted stays done when its process is gone. A process that
// crashed before it counted has not counted: whoever does its part afterwards counts it under the same name. To hand a
// part to the next worker by itself when one crashes, work under a lock:
//
//	err := node.WithLock(ctx, "/import/parts/7", func(ctx context.Context, l *chubby.Lock) error {
//		... // do part 7, unless it was done already
//		return imported.CountDown(ctx, "7")
//	})
//
// It is the directory at path, with an empty file for each name that was counted, until Reset.
type CountDownLatch struct {
	c    *chubby.Client
	path string
	n    int
}

// NewCountDownLatch names the latch at path, for 1 to 100,000 countdowns. All processes must use the same n.
func NewCountDownLatch(c *chubby.Client, path string, n int) (*CountDownLatch, error) {
	if err := checkPlace("new latch", c, path); err != nil {
		return nil, err
	}
	if n < 1 || n > countMax {
		return nil, fail("new latch", path, fmt.Errorf("%w: n %d: use 1 to %d countdowns", chubby.ErrBadOptions, n, countMax))
	}
	return &CountDownLatch{c, path, n}, nil
}

// CountDown counts name, a path's part of 1 to 255 bytes, unless it was counted before. With chubby.ErrUncertain it may
// have been: call again.
func (l *CountDownLatch) CountDown(ctx context.Context, name string) error {
	if err := checkName("name", name); err != nil {
		return fail("count down", l.path, err)
	}
	_, err := l.c.Create(ctx, l.path+"/"+name, nil, chubby.CreateOptions{})
	if errors.Is(err, chubby.ErrExists) {
		return nil
	}
	return fail("count down", l.path, err)
}

// Count tells how many countdowns are missing until the latch opens. It is linearizable.
func (l *CountDownLatch) Count(ctx context.Context) (int, error) {
	stat, err := l.c.Stat(ctx, l.path)
	if err != nil && !errors.Is(err, chubby.ErrNotFound) {
		return 0, fail("count", l.path, err)
	}
	return max(l.n-stat.Children, 0), nil
}

// Counted lists the names that were counted, sorted: what is missing from them is what the latch waits for.
func (l *CountDownLatch) Counted(ctx context.Context) ([]string, error) {
	list, err := l.c.List(ctx, l.path)
	if err != nil && !errors.Is(err, chubby.ErrNotFound) {
		return nil, fail("list countdowns", l.path, err)
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = base(e.Path)
	}
	return names, nil
}

// Wait returns nil once n countdowns have been counted, at once if they have been. It costs the cell no writes.
func (l *CountDownLatch) Wait(ctx context.Context) error {
	// Events keep the names up to date, so that a wait of n countdowns does not read the directory n times.
	counted := make(map[string]bool)
	open := func() (bool, error) {
		if len(counted) < l.n {
			return false, nil
		}
		missing, err := l.Count(ctx) // events from before the directory was read may tell of names that a Reset removed
		return missing == 0, err
	}
	return fail("wait for latch", l.path, follow(ctx, l.c, l.path, chubby.WatchOptions{}, func() (bool, error) {
		names, err := l.Counted(ctx)
		clear(counted)
		for _, name := range names {
			counted[name] = true
		}
		if err != nil {
			return false, err
		}
		return open()
	}, func(e chubby.Event) (bool, error) {
		switch e.Kind {
		case chubby.EventCreated:
			if !e.Entry.Stat.Dir { // the latch itself
				counted[base(e.Path)] = true
			}
		case chubby.EventDeleted:
			delete(counted, base(e.Path))
		}
		return open()
	}))
}

// Reset makes the latch as if nothing had been counted, and leaves nothing in the cell. Callers who wait wait on.
func (l *CountDownLatch) Reset(ctx context.Context) error {
	err := l.c.DeleteTree(ctx, l.path)
	if errors.Is(err, chubby.ErrNotFound) {
		return nil
	}
	return fail("reset latch", l.path, err)
}
