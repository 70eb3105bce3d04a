package recipes

import (
	"context"
	"errors"
	"fmt"

	"github.com/chubbygo/chubby"
)

// What the file of a barrier says. Anything else is open too, as is no file.
const (
	barrierHeld = "held"
	barrierOpen = "open"
)

// Barrier keeps callers of Wait waiting from when somebody holds it until that holder opens it. It is open at first and
// between holds: hold it before those who are to wait can start.
//
// A hold is bound to its holder's session. When that is lost the barrier is broken: Wait returns ErrBroken, to those who
// wait and to those who come, until the barrier is held again. It does not let them through, because whatever they were
// to wait for was not done.
//
// Wait costs the cell nothing but reads and leaves nothing. The barrier is the lock at path and a small file there, which
// goes when the barrier is opened, and stays when it is broken or when Open's ctx ends in the middle.
type Barrier struct {
	c    *chubby.Client
	path string
}

// NewBarrier names the barrier at path.
func NewBarrier(c *chubby.Client, path string) (*Barrier, error) {
	if err := checkPlace("new barrier", c, path); err != nil {
		return nil, err
	}
	return &Barrier{c, path}, nil
}

// BarrierHold keeps a barrier shut, in the Client's default session.
type BarrierHold struct {
	b    *Barrier
	lead *chubby.Leadership
}

// Hold shuts the barrier. While another holds it, Hold waits for its turn, in a fair queue. Whenever it returns an error
// the caller does not hold it.
func (b *Barrier) Hold(ctx context.Context) (*BarrierHold, error) {
	lead, err := b.c.Campaign(ctx, b.path, []byte(barrierHeld))
	if err != nil {
		return nil, fail("hold barrier", b.path, err)
	}
	return &BarrierHold{b, lead}, nil
}

// Wait returns nil once the barrier is open or was open for a moment during the call; at once if it is. It returns
// ErrBroken if the session of who held it is lost, or the error of ctx.
func (b *Barrier) Wait(ctx context.Context) error {
	var self string
	look := func() (open bool, err error) {
		self, open, err = b.look(ctx)
		return open, err
	}
	err := follow(ctx, b.c, b.path, chubby.WatchOptions{}, look, func(e chubby.Event) (bool, error) {
		switch {
		case e.Path != self: // of something below it
		case e.Kind == chubby.EventModified && string(e.Entry.Data) != barrierHeld, e.Kind == chubby.EventDeleted:
			return true, nil
		case e.Kind == chubby.EventLockReleased:
			return look() // it was given up by an opening before this call, or by a loss
		}
		return false, nil
	})
	return fail("wait for barrier", b.path, err)
}

// look tells whether the barrier is open now, and if not, its path in the form that events have. A broken one is an error.
func (b *Barrier) look(ctx context.Context) (self string, open bool, err error) {
	for {
		before, err := b.c.Get(ctx, b.path)
		if errors.Is(err, chubby.ErrNotFound) || err == nil && string(before.Data) != barrierHeld {
			return "", true, nil
		}
		if err != nil {
			return "", false, err
		}
		lock, err := b.c.LockInfo(ctx, b.path)
		if err != nil || len(lock.Holders) > 0 {
			return lock.Path, false, err
		}
		// Nobody holds it, and the file says held. Both were so at one moment if nobody has written it since.
		after, err := b.c.Stat(ctx, b.path)
		if err == nil && after.Generation == before.Stat.Generation {
			return "", false, fmt.Errorf("%w: who held the barrier is gone", ErrBroken)
		}
		if err != nil && !errors.Is(err, chubby.ErrNotFound) {
			return "", false, err
		}
	}
}

// Open opens the barrier: all who wait go on. It returns chubby.ErrStaleSequencer if the hold was lost, which broke the
// barrier unless an earlier call had opened it. With any other error it is still shut, or may be with
// chubby.ErrUncertain: call Open again, which is safe also when the first call opened it.
func (h *BarrierHold) Open(ctx context.Context) error {
	if h.lead.Err() == nil {
		if err := h.lead.Publish(ctx, []byte(barrierOpen)); err != nil {
			return fail("open barrier", h.b.path, err)
		}
		if err := h.lead.Resign(ctx); err != nil && !errors.Is(err, chubby.ErrNotHeld) && !errors.Is(err, chubby.ErrUncertain) {
			return fail("open barrier", h.b.path, err)
		}
	} else if !errors.Is(h.lead.Err(), chubby.ErrNotHeld) { // not by an Open before
		return fail("open barrier", h.b.path, fmt.Errorf("%w: %w", chubby.ErrStaleSequencer, h.lead.Err()))
	}
	// It is open by now. What follows tidies up; the next hold may have begun.
	_ = h.b.c.Delete(ctx, h.b.path, chubby.IfValue([]byte(barrierOpen)))
	return nil
}

// Context ends before the barrier can be broken or held by another; see [chubby.Lock.Context].
func (h *BarrierHold) Context() context.Context { return h.lead.Context() }

// Done is closed when the hold is over for good; see [chubby.Lock.Done].
func (h *BarrierHold) Done() <-chan struct{} { return h.lead.Done() }
