package chubby

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/chubbygo/chubby/internal/wire"
)

// Acquire waits until the session holds the entry's lock in the given mode, as [Session.Lock] does. The handle must be
// open for writing, for Shared too, since a shared holder keeps others out (Chubby §2.4). A handle holds one lock at a
// time: while it does, or another call acquires it, Acquire returns ErrLockHeld.
func (h *Handle) Acquire(ctx context.Context, m Mode, opts ...LockOption) (*Lock, error) {
	return h.acquire(ctx, "acquire", lockRequest{mode: m}, opts)
}

// TryAcquire is Acquire that does not wait: it returns ErrLockHeld when the lock cannot be had at once.
func (h *Handle) TryAcquire(ctx context.Context, m Mode, opts ...LockOption) (*Lock, error) {
	return h.acquire(ctx, "try acquire", lockRequest{mode: m, try: true}, opts)
}

func (h *Handle) acquire(ctx context.Context, op string, q lockRequest, opts []LockOption) (l *Lock, err error) {
	s := h.session
	err = h.call(ctx, op, func(ctx context.Context) error {
		if q.mode != Exclusive && q.mode != Shared {
			return fmt.Errorf("%w: %v: use Exclusive or Shared", ErrBadOptions, q.mode)
		}
		if err := h.forWriting(); err != nil {
			return err
		}
		s.mu.Lock()
		busy := h.acquiring || h.lock != nil && h.lock.err == nil
		h.acquiring = h.acquiring || !busy
		s.mu.Unlock()
		if busy {
			return fmt.Errorf("%w: through this handle, or it is being acquired", ErrLockHeld)
		}
		q.conds = h.conds()
		l, err = s.acquire(ctx, h.path, &q, opts)
		s.mu.Lock()
		h.acquiring = false
		ended := h.err
		if err == nil && ended == nil {
			h.lock = l
		}
		s.mu.Unlock()
		if err == nil && ended != nil {
			l.release(ctx)
			l, err = nil, ended
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Release gives the lock back as [Lock.Unlock] does. It returns ErrNotHeld if this handle does not hold one: that another
// handle or call of the same session does is nothing to it.
func (h *Handle) Release(ctx context.Context) error {
	return h.call(ctx, "release", func(ctx context.Context) error {
		s := h.session
		s.mu.Lock()
		l := h.lock
		h.lock = nil
		s.mu.Unlock()
		if l == nil {
			return ErrNotHeld
		}
		return l.unlock(ctx)
	})
}

// GetSequencer returns the sequencer of the lock that this handle holds, or ErrNotHeld.
func (h *Handle) GetSequencer() (q Sequencer, err error) {
	err = h.call(context.Background(), "get sequencer", func(context.Context) error {
		s := h.session
		s.mu.Lock()
		l := h.lock
		s.mu.Unlock()
		if l == nil || l.Err() != nil {
			return ErrNotHeld
		}
		q = l.Sequencer()
		return nil
	})
	return q, err
}

// SetSequencer ties the handle to a lock: all later reads and writes through it, and Acquire, fail with ErrStaleSequencer
// once that is not held under q any more. The cell judges it in the same step as the call. It returns ErrBadSequencer if q
// is none.
func (h *Handle) SetSequencer(q Sequencer) error {
	return h.call(context.Background(), "set sequencer", func(context.Context) error {
		if _, err := q.MarshalBinary(); err != nil {
			return err
		}
		h.session.mu.Lock()
		defer h.session.mu.Unlock()
		h.sequencer = q
		return nil
	})
}

// CheckSequencer is [Client.CheckSequencer].
func (h *Handle) CheckSequencer(ctx context.Context, q Sequencer) error {
	return h.call(ctx, "check sequencer", func(ctx context.Context) error {
		c := h.session.client
		a, err := c.cell.query(ctx, wire.Query{Kind: wire.QueryHolds, Sequencer: q, Principal: c.principal})
		if err == nil {
			err = answerError(c.principal, &a)
		}
		if err == nil && !a.Holds {
			err = ErrStaleSequencer
		}
		return err
	})
}

// Events tells what happens to the entry and its direct children, and to their locks, from the call on, as [Client.Watch]
// does. Its loop ends with ErrNotFound after the entry's own EventDeleted, and when the handle ends. Call it with a context
// that ends.
func (h *Handle) Events(ctx context.Context) iter.Seq2[Event, error] {
	c := h.session.client
	inner, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(h.ctx, cancel)
	events := c.Watch(inner, h.path, WatchOptions{})
	// The watch came first: if the entry is the handle's now, its end will be told.
	err := h.call(ctx, "events", func(ctx context.Context) error {
		_, err := h.read(ctx, wire.QueryHandle)
		return err
	})
	return func(yield func(Event, error) bool) {
		defer cancel()
		defer stop()
		if err != nil {
			yield(Event{}, err)
			return
		}
		goOn := true
		err := h.call(ctx, "events", func(context.Context) error {
			for e, err := range events {
				if err != nil {
					var told *Error
					if errors.As(err, &told) {
						err = told.Err
					}
					return err
				}
				if goOn = yield(e, nil); !goOn {
					return nil
				}
				if e.Kind == EventDeleted && e.Path == h.path {
					return errGone
				}
			}
			return nil
		})
		if err != nil && goOn {
			yield(Event{}, err)
		}
	}
}
