package chubby

import (
	"context"

	"github.com/chubbygo/chubby/internal/wire"
)

// LockHolder is one holder of a lock.
type LockHolder struct {
	Session SessionID
	Name    string // the session's
	Since   uint64 // revision of the grant to this holder
}

// LockInfo says how a lock stands.
type LockInfo struct {
	Path       string
	Mode       Mode         // of its holders; 0 when there are none
	Generation uint64       // of the grant; 0 when there are no holders
	Holders    []LockHolder // empty: nobody holds it
	Waiters    int          // calls in the queue
	Delayed    bool         // shut by a lost holder's LockDelay
}

// LockInfo tells how the lock at path stands. It is linearizable. A lock that nobody holds is no error.
func (c *Client) LockInfo(ctx context.Context, path string) (LockInfo, error) {
	p, a, err := c.readAt(ctx, wire.QueryLock, path)
	if err != nil {
		return LockInfo{}, &Error{Op: "lock info", Path: path, Err: err}
	}
	v := a.Lock
	info := LockInfo{Path: p, Mode: v.Mode, Generation: v.Generation, Waiters: v.Waiters, Delayed: v.Delayed}
	for _, h := range v.Holders {
		info.Holders = append(info.Holders, LockHolder{SessionID(h.Session), h.Name, h.Since})
	}
	if len(info.Holders) == 0 {
		info.Mode, info.Generation = 0, 0
	}
	return info, nil
}

// CheckSequencer returns nil if the lock is held under s at this moment, and ErrStaleSequencer if not. It is
// linearizable; what it says may be over by the time its caller acts on it, which is why a resource that can remember
// the newest sequencer it saw should use fence.Guard instead, and a write to the cell IfHolds. Shared holders have one
// sequencer: it is good while any of them holds the lock.
func (c *Client) CheckSequencer(ctx context.Context, s Sequencer) error {
	a, err := c.cell.query(ctx, wire.Query{Kind: wire.QueryHolds, Sequencer: s, Principal: c.principal})
	if err == nil {
		err = answerError(c.principal, &a)
	}
	if err == nil && !a.Holds {
		err = ErrStaleSequencer
	}
	if err != nil {
		return &Error{Op: "check sequencer", Path: s.Path, Err: err}
	}
	return nil
}
