package chubby

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"
)

// compactor keeps the live log below Options.MaxLogBytes: at 85 % it takes a snapshot and lets raft drop what that
// covers, except the newest quarter, from which followers that lag a little catch up without a snapshot. When the log
// reaches the whole of it before that is done, this node's proposals wait.
type compactor struct {
	node    *Node
	wake    chan struct{}   // cap 1: the log has grown past the threshold
	request chan chan error // Node.Snapshot
}

const (
	// trailingMin entries stay behind a snapshot at least, however large they are. A deposed leader's log differs from
	// the cell's in at most entriesInFlight entries, the term's no-op, its barrier and one configuration. With more
	// trailing entries than that a new leader's snapshot is always above everything that such a node has, which is what
	// keeps hashicorp/raft 697, a node that installs the same snapshot for ever, from arising.
	trailingMin = 256
	// trailingFloor is trailingMin where entries are so large that trailingMin of them alone would fill the log.
	trailingFloor = 4 * (entriesInFlight + 3)
)

func newCompactor(n *Node) *compactor {
	return &compactor{node: n, wake: make(chan struct{}, 1), request: make(chan chan error)}
}

func (c *compactor) threshold() int64 { return c.node.opts.MaxLogBytes / 100 * 85 }

// grew is called by the fsm after each batch. It never blocks.
func (c *compactor) grew() {
	size := c.node.store.logBytes()
	if size < c.threshold() {
		return
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run takes one snapshot at a time.
func (c *compactor) run() {
	n := c.node
	for {
		var reply chan error
		select {
		case <-c.wake:
			if n.store.logBytes() < c.threshold() {
				continue
			}
		case reply = <-c.request:
		case <-n.ctx.Done():
			return
		}
		err := c.compact()
		if reply != nil {
			reply <- err // cap 1
		} else if err != nil && n.ctx.Err() == nil {
			n.log.Warn("snapshot failed; the log grows until one succeeds", "err", err, "bytes", n.store.logBytes())
			select { // the next batch wakes us, but not at once
			case <-time.After(time.Second):
			case <-n.ctx.Done():
				return
			}
		}
	}
}

// compact takes a snapshot and drops what it covers.
func (c *compactor) compact() error {
	n := c.node
	r := n.raft.Load()
	keep := max(trailingFloor, min(trailingMin, n.store.trailing(n.opts.MaxLogBytes/2)), n.store.trailing(n.opts.MaxLogBytes/4))
	n.reloadRaft(func(c *raft.ReloadableConfig) { c.TrailingLogs = keep })
	f := r.Snapshot()
	done := make(chan error, 1)
	if !n.spawn(func() { done <- n.promise(f) }) {
		return n.stopCause()
	}
	// While the snapshot is written the log may reach its limit. Only this node's own proposals wait then; what a
	// leader sends is always taken.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	held := false
	defer func() {
		if held {
			n.proposer.hold(false)
		}
	}()
	for {
		select {
		case err := <-done:
			if errors.Is(err, raft.ErrNothingNewToSnapshot) {
				err = nil
			}
			return err
		case <-tick.C:
			if over := n.store.logBytes() >= n.opts.MaxLogBytes; over != held {
				held = over
				n.proposer.hold(over)
			}
		case <-n.ctx.Done():
			return n.stopCause()
		}
	}
}

// Snapshot compacts the log now: it writes the state to disk and drops log entries that it covers. Reads and writes go
// on meanwhile. It returns ErrClosed, the error of ctx, or why the snapshot could not be written.
func (n *Node) Snapshot(ctx context.Context) error {
	reply := make(chan error, 1)
	var err error
	select {
	case <-n.running:
		select {
		case n.compactor.request <- reply:
			select {
			case err = <-reply:
			case <-ctx.Done():
				err = ctx.Err()
			case <-n.stopping:
				err = n.stopCause()
			}
		case <-ctx.Done():
			err = ctx.Err()
		case <-n.stopping:
			err = n.stopCause()
		}
	case <-ctx.Done():
		err = ctx.Err()
	case <-n.stopping:
		err = n.stopCause()
	}
	if err != nil {
		return &Error{Op: "snapshot", Path: n.opts.Dir, Err: err}
	}
	return nil
}
