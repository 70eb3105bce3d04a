package chubby

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/chubbygo/chubby/internal/state"
)

// Event is one thing that happened in the cell. What it tells of is readable on this node before it is delivered.
type Event struct {
	Kind EventKind
	Path string // of the entry or lock; empty for EventLeaderChanged
	// Revision is that of the command that did it. Events of one command have one revision. EventLeaderChanged has no
	// revision of its own: everything up to Revision has been delivered before it.
	Revision uint64
	More     bool  // the next event of this watch has the same Revision
	Entry    Entry // as it is after the event; only its Path is set where there is no entry
}

// EventKind says what happened.
type EventKind int

// What can happen. The numbers of the first seven are those of internal/state.
const (
	EventCreated       EventKind = iota + 1 // an entry was made, for itself or as a parent
	EventModified                           // the contents of a file were written, with equal ones too
	EventDeleted                            // an entry is gone: deleted, or with its session
	EventLockAcquired                       // the lock at Path got a holder; for a campaign the file is written just before
	EventLockReleased                       // a holder of the lock at Path is gone, whatever ended it
	EventLockContended                      // somebody began to wait for the lock at Path
	EventACLChanged                         // the ACL names of an entry changed
	EventLeaderChanged                      // another node leads the cell, as far as this node knows; nobody need act on it
)

// String returns what happened, in words.
func (k EventKind) String() string {
	switch k {
	case EventCreated:
		return "created"
	case EventModified:
		return "modified"
	case EventDeleted:
		return "deleted"
	case EventLockAcquired:
		return "lock acquired"
	case EventLockReleased:
		return "lock released"
	case EventLockContended:
		return "lock contended"
	case EventACLChanged:
		return "ACL changed"
	case EventLeaderChanged:
		return "leader changed"
	}
	return fmt.Sprintf("event kind %d", int(k))
}

// WatchOptions says what a Watch tells of. The zero value is the entry and its direct children, from now on.
type WatchOptions struct {
	// Recursive adds everything below the direct children.
	Recursive bool
	// From is the first revision wanted: one after that of the last event that was seen, to go on from there. Each node
	// remembers some 40,000 changes of small entries, fewer of large ones; it forgets them when it is sent a snapshot. What
	// is not remembered is ErrLagged, and so is a revision of another epoch as far as its number tells: one that is more
	// than one ahead. 0 means from now on: what was acknowledged before the call is left out.
	From uint64
}

// Watch tells what happens to the entry at path and its direct children, and to their locks, whether or not there are
// entries. It is registered when the call returns: whatever is acknowledged afterwards, by any node, will be told. So to
// know a state and all its changes, watch first and read then.
//
//	for e, err := range node.Watch(ctx, "/service", chubby.WatchOptions{}) {
//		if err != nil { ... } // the last turn
//	}
//
// Events come in the order of their revisions, without gap and without duplicate, those of one revision together. They
// go on through changes of the cell leader; while this node is cut off from the cell they wait there and come later. What
// the loop has not taken yet waits in memory that all watches of the node share, so a slow loop holds up nobody.
//
// The loop ends with exactly one error, unless its body breaks off: the error of ctx; ErrLagged when events were
// forgotten before the loop took them, or when the node was sent a snapshot because it had been away for long; ErrClosed;
// at once ErrBadPath, ErrLagged for a From that is not remembered, ErrOverloaded beyond Limits.Watchers, or the error of
// ctx with ErrNoLeader or ErrNoQuorum. After ErrLagged, watch again and then read the state.
//
// The watch ends with its loop or with ctx, looped over or not. It can be looped over once; a second loop gets
// ErrBadOptions. The body may call anything. See Chubby §2.5.
func (c *Client) Watch(ctx context.Context, path string, o WatchOptions) iter.Seq2[Event, error] {
	fail := func(yield func(Event, error) bool, err error) {
		yield(Event{}, &Error{Op: "watch", Path: path, Err: err})
	}
	w, _, err := c.watch(ctx, path, o)
	if err != nil {
		return func(yield func(Event, error) bool) { fail(yield, err) }
	}
	stop := context.AfterFunc(ctx, w.close)
	var looped atomic.Bool
	return func(yield func(Event, error) bool) {
		if looped.Swap(true) {
			fail(yield, fmt.Errorf("%w: a watch can be looped over once; call Watch again", ErrBadOptions))
			return
		}
		defer w.close()
		defer stop()
		for {
			seen, err := w.next(ctx)
			if err != nil {
				fail(yield, err)
				return
			}
			if seen.led && !yield(Event{Kind: EventLeaderChanged, Revision: seen.done}, nil) {
				return
			}
			for i := range seen.events {
				if i > 0 && ctx.Err() != nil {
					break
				}
				e := publicEvent(seen.events[i])
				e.More = i+1 < len(seen.events)
				c.saw(e.Revision)
				if !yield(e, nil) {
					return
				}
			}
		}
	}
}

// watch registers a watch after whatever was acknowledged before the call, and gives the clean path.
func (c *Client) watch(ctx context.Context, path string, o WatchOptions) (watcher, string, error) {
	p, err := cleanPath(path, c.terms.cell, c.terms.limits)
	if err != nil {
		return nil, "", err
	}
	w, now, err := c.cell.register(ctx, topicKey{p, o.Recursive}, o.From)
	c.saw(now)
	return w, p, err
}

// publicEvent copies the contents, in the watcher's own time.
func publicEvent(e *state.Event) Event {
	return Event{Kind: EventKind(e.Kind), Path: e.Path, Revision: e.Revision, Entry: publicEntry(e.Entry)}
}
