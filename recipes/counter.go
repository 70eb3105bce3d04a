package recipes

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/chubbygo/chubby"
)

// Counter is a number that never leaves its bounds. It begins at 0.
//
// Each call changes it exactly once, however often it was retried inside. A call that ends with chubby.ErrUncertain,
// which takes an ended ctx, a lost session or a closed node, may have changed it or may yet; a second one could change it
// twice. Where that must not be, count names instead of numbers, as CountDownLatch does, or write the number together
// with what it counts, in a chubby.Txn.
//
// What was added stays when its process is gone. For what must come back by itself, use a Semaphore.
//
// It is the file at path, a decimal number, made by the first Add or Sub. Deleting the file makes it 0 again.
type Counter struct {
	c        *chubby.Client
	path     string
	min, max int64
}

// NewCounter names the counter at path. min must be at most 0 and max at least 0; math.MinInt64 and math.MaxInt64 are no
// bounds. Each call keeps to the bounds of its own Counter.
func NewCounter(c *chubby.Client, path string, min, max int64) (*Counter, error) {
	if err := checkPlace("new counter", c, path); err != nil {
		return nil, err
	}
	if min > 0 || max < 0 {
		return nil, fail("new counter", path, fmt.Errorf("%w: min %d, max %d: 0, where it begins, must be within", chubby.ErrBadOptions, min, max))
	}
	return &Counter{c, path, min, max}, nil
}

// Add adds delta, which must not be negative, and returns the new value. It returns chubby.ErrBound, and adds nothing,
// if that would pass max.
func (c *Counter) Add(ctx context.Context, delta int64) (int64, error) {
	return c.change(ctx, "add", func() (int64, error) { return c.c.Add(ctx, c.path, delta, c.max) })
}

// Sub subtracts delta, which must not be negative, and returns the new value. It returns chubby.ErrBound, and subtracts
// nothing, if that would fall below min.
func (c *Counter) Sub(ctx context.Context, delta int64) (int64, error) {
	return c.change(ctx, "sub", func() (int64, error) { return c.c.Sub(ctx, c.path, delta, c.min) })
}

// change makes the file if there is none.
func (c *Counter) change(ctx context.Context, op string, f func() (int64, error)) (int64, error) {
	for {
		n, err := f()
		if !errors.Is(err, chubby.ErrNotFound) {
			return n, fail(op, c.path, err)
		}
		// An outcome that is unknown here leaves the number as it is.
		if _, err := c.c.Create(ctx, c.path, []byte("0"), chubby.CreateOptions{}); err != nil && !errors.Is(err, chubby.ErrExists) && !errors.Is(err, chubby.ErrUncertain) {
			return 0, fail(op, c.path, err)
		}
		if ctx.Err() != nil {
			return 0, fail(op, c.path, ctx.Err())
		}
	}
}

// Get returns the value. It is linearizable. It returns chubby.ErrNotNumber if somebody wrote something else to the file.
func (c *Counter) Get(ctx context.Context) (int64, error) {
	e, err := c.c.Get(ctx, c.path)
	if errors.Is(err, chubby.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fail("get", c.path, err)
	}
	n, err := strconv.ParseInt(string(e.Data), 10, 64)
	if err != nil {
		return 0, fail("get", c.path, chubby.ErrNotNumber)
	}
	return n, nil
}
