package chubby

import (
	"context"
	"errors"
	"fmt"

	"github.com/chubbygo/chubby/internal/wire"
)

// A dialled client's watch is a watch of its member. The client asks for what comes next, one question at a time for each
// watch, and the answer waits until there is something. So nothing is queued for a client that does not ask, and what it
// has been told up to is enough to go on at another member.

// watch registers one.
func (c *guestConn) watch(ctx context.Context, payload []byte) ([]byte, error) {
	call, err := wire.ParseWatchCall(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if err := c.house.path(call.Path, true); err != nil {
		return nil, err
	}
	c.mu.Lock()
	_, taken := c.mu.watches[call.Number]
	free := !taken && !c.mu.left && len(c.mu.watches) < maxGuestWatches
	if free {
		c.mu.watches[call.Number] = nil
	}
	c.mu.Unlock()
	switch {
	case taken:
		return nil, fmt.Errorf("%w: watch %d is there already", ErrBadOptions, call.Number)
	case !free:
		return nil, fmt.Errorf("%w: %d watches of one client", ErrOverloaded, maxGuestWatches)
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	w, now, err := c.node.registerFor(ctx, c.house.principal, topicKey{call.Path, call.Recursive}, call.From)
	c.mu.Lock()
	_, wanted := c.mu.watches[call.Number]
	if err == nil && wanted {
		c.mu.watches[call.Number] = w.(*nodeWatch)
	} else {
		delete(c.mu.watches, call.Number)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if !wanted { // ended meanwhile, or the client is gone
		w.close()
		return nil, context.Canceled
	}
	return wire.AppendWatched(nil, &wire.Watched{Touch: c.node.touch(), Now: now, Done: w.(*nodeWatch).done}), nil
}

// next waits for what a watch has to tell, and gathers what follows without waiting.
func (c *guestConn) next(ctx context.Context, payload []byte) ([]byte, error) {
	number, err := wire.ParseNumber(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	// While it is out, nobody else can take it: a watch belongs to one goroutine.
	c.mu.Lock()
	w := c.mu.watches[number]
	if w != nil {
		c.mu.watches[number] = nil
	}
	c.mu.Unlock()
	if w == nil {
		return nil, fmt.Errorf("%w: watch %d is unknown, or busy", ErrBadOptions, number)
	}
	told, err := c.gather(ctx, w)
	c.mu.Lock()
	_, wanted := c.mu.watches[number]
	if wanted = wanted && err == nil; wanted {
		c.mu.watches[number] = w
	} else {
		delete(c.mu.watches, number)
	}
	c.mu.Unlock()
	if !wanted {
		w.close()
	}
	if err != nil {
		return nil, err
	}
	told.Touch = c.node.touch()
	return wire.AppendWatched(nil, &told), nil
}

func (c *guestConn) gather(ctx context.Context, w *nodeWatch) (told wire.Watched, err error) {
	wait, cancel := context.WithTimeout(ctx, watchTime)
	defer cancel()
	s, err := w.next(wait)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return wire.Watched{Done: w.done}, nil
	}
	size := 0
	for err == nil {
		for _, e := range s.events {
			size += len(e.Path) + len(e.Entry.Data)
			told.Events = append(told.Events, wire.Event{Kind: uint8(e.Kind), Path: e.Path, Revision: e.Revision, Entry: e.Entry})
		}
		told.Done, told.Led = s.done, s.led
		if s.led || size > watchBytes {
			break // a change of the leader has its place among the events: behind those that were told
		}
		var changed <-chan struct{}
		s = sight{}
		if s.led, changed, _, err = w.look(); err == nil {
			if !s.led && len(w.found) == 0 {
				if changed != nil {
					told.Done = w.done
				}
				break
			}
			s.done, s.events = w.done, w.visible()
		}
	}
	if len(told.Events) > 0 {
		err = nil // first what there is; the fault is met again
	}
	return told, err
}

// end ends a watch.
func (c *guestConn) end(payload []byte) error {
	number, err := wire.ParseNumber(payload)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	c.mu.Lock()
	w := c.mu.watches[number]
	delete(c.mu.watches, number)
	c.mu.Unlock()
	if w != nil {
		w.close()
	}
	return nil
}
