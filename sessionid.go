package chubby

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sony/sonyflake/v2"

	"github.com/chubbygo/chubby/internal/command"
)

// sessionIDs makes the ids of this node's sessions: sonyflake's time, sequence and machine, where the machine is the
// slot that the cell gave this node. Unlike an address, a slot is never shared by two nodes. The cell refuses an id
// that is not above all ids that the slot had before, and names that floor; so a clock that went back costs an attempt
// and never an id used twice.
type sessionIDs struct {
	mu struct {
		sync.Mutex
		flake *sonyflake.Sonyflake
		made  int // ids that flake has made
		last  uint64
	}
}

// idStart is earlier than any clock: testing/synctest begins in the year 2000.
var idStart = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	slotBits = 16
	flakeIDs = 1 << 8 // in 10 ms
)

// next returns an id above all that it returned before and above the floor.
func (s *sessionIDs) next(slot uint32) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.flake == nil || s.mu.made == flakeIDs || s.behind() {
		// A generator whose clock fell behind its last id, or that has used up the numbers of its 10 ms, would sleep in
		// NextID, and with it everybody who waits for mu. A new one begins again, and last is what ids are above.
		flake, err := sonyflake.New(sonyflake.Settings{StartTime: idStart, MachineID: func() (int, error) { return int(slot), nil }})
		if err != nil {
			return 0, fmt.Errorf("session id: %w", err)
		}
		s.mu.flake, s.mu.made = flake, 0
	}
	s.mu.made++
	id, err := s.mu.flake.NextID()
	if err != nil {
		return 0, fmt.Errorf("session id: %w", err)
	}
	// The step keeps the machine bits: ids of one slot differ in what stands above them.
	s.mu.last = max(uint64(id), s.mu.last+1<<slotBits)
	return s.mu.last, nil
}

// behind reports whether the clock shows an earlier time than the last id was made at. Called with mu held.
func (s *sessionIDs) behind() bool {
	return s.mu.flake.ToTime(int64(s.mu.last)).After(time.Now())
}

// raise makes the next id greater than floor.
func (s *sessionIDs) raise(floor uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.last = max(s.mu.last, floor)
}

// slot asks the cell, once, for this node's slot.
func (n *Node) slot(ctx context.Context) (uint32, error) {
	if s := n.slotKnown.Load(); s != 0 {
		return uint32(s - 1), nil
	}
	r, err := n.propose(ctx, command.Append(nil, &command.Command{Kind: command.KindAssignSlot, Node: string(n.server)}), false, nil)
	if err != nil {
		return 0, err
	}
	if r.Code != command.OK {
		return 0, codeError(r.Code)
	}
	n.slotKnown.Store(uint64(r.Slot) + 1)
	return r.Slot, nil
}
