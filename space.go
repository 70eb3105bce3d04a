package chubby

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// spaceReserve is what is kept for what brings a cell out of its need: below Limits.MinFreeDisk nothing is added, and
	// below this nothing is written at all but what raft itself writes.
	spaceReserve  = 8 << 20
	spaceEvery    = time.Second     // between two looks at the disk
	spaceTransfer = 5 * time.Second // before leadership is offered again to a voter that did not take it
)

// room says what a node's disk has room for.
type room int32

const (
	roomEnough room = iota
	roomLow         // less than Limits.MinFreeDisk: commands that add data are refused
	roomNone        // less than the reserve too
)

// space watches the disk that a node's directory is on. What it finds is used on the cell leader, which refuses commands,
// and told to the cell leader in answers to confirm rounds, which hands over to a voter with room if it has none.
type space struct {
	node *Node
	free func() (int64, error) // nil: nothing to watch
	room atomic.Int32
}

func newSpace(n *Node) *space {
	s := &space{node: n, free: n.opts.Hooks.Free}
	if s.free == nil && n.opts.Dir != "" {
		s.free = func() (int64, error) { return freeBytes(n.opts.Dir) }
	}
	if n.opts.Limits.MinFreeDisk < 0 {
		s.free = nil
	}
	if s.free != nil {
		s.look()
	}
	return s
}

func (s *space) left() room { return room(s.room.Load()) }

// run looks again and again. On the cell leader it also sees to it that the cell is led by a node with room, if there is
// one.
func (s *space) run() {
	if s.free == nil {
		return
	}
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	var offered time.Time
	for {
		select {
		case <-tick.C:
		case <-s.node.ctx.Done():
			return
		}
		s.look()
		l := s.node.proposer.route().lead
		if l == nil || s.left() == roomEnough || time.Since(offered) < spaceTransfer {
			continue
		}
		target := s.node.roomier(l)
		if target == "" {
			continue // the leadership stays
		}
		offered = time.Now()
		if err := l.changer.transfer(l.ctx, target); err != nil && l.ctx.Err() == nil {
			s.node.log.Warn("little disk space, and leadership was not handed over", "to", nodeID(target), "err", err)
		}
	}
}

// look asks the disk once. When it does not say, what it said last holds.
func (s *space) look() {
	free, err := s.free()
	if err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			s.node.log.Warn("free disk space is not known", "err", err)
		}
		return
	}
	floor, now := s.node.opts.Limits.MinFreeDisk, roomEnough
	switch {
	case free < min(spaceReserve, floor):
		now = roomNone
	case free < floor:
		now = roomLow
	}
	switch before := room(s.room.Swap(int32(now))); {
	case before == now:
	case now == roomEnough:
		s.node.log.Info("there is disk space again", "free", free)
	default:
		s.node.log.Warn("little disk space: nothing is added", "free", free, "floor", floor, "even deletes are refused", now == roomNone)
	}
}

// roomier is the voter that has caught up best of those that said in this leadership that their disk has room; "" if there
// is none.
func (n *Node) roomier(l *leadership) (best raft.ServerID) {
	var index uint64
	for _, s := range n.configuration().Servers {
		if s.ID == n.server || s.Suffrage != raft.Voter || l.confirmer.room(s.ID) != roomEnough {
			continue
		}
		if i, silent, ok := n.transport.matched(s.ID); ok && silent < n.opts.ElectionTimeout && (best == "" || i > index) {
			best, index = s.ID, i
		}
	}
	return best
}

// errNoRoom means that a voter should not lead, because its disk is as full as this one's.
func errNoRoom(server raft.ServerID) error {
	return fmt.Errorf("%w: the disk of %s has less free than its Limits.MinFreeDisk", ErrNoSpace, nodeID(server))
}
