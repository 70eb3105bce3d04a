package state

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/OneOfOne/xxhash"
)

// EpochLeap is how far the revision moves when a new epoch begins. What the old cell did after the backup, or what the
// survivor of a lost quorum never heard of, had revisions that this state does not know: so that none of them comes twice,
// the new epoch begins above them all. At a million changes a second they would be used up in 12 days.
//
// So generations, instances and conditions on them stay unique over epochs, and to watch from a revision of the old epoch
// is to watch from before the remembered past. Do not change: it is part of what a snapshot means.
const EpochLeap = 1 << 40

// NewEpoch returns the state with which a cell of a new epoch begins: the entries of s, without the sessions and what goes
// with them: locks, queues, delays, windows, handles and ephemeral entries. Slots and their floors stay, so that no session id
// comes twice. Its raft index is the one after that of s; term must be at least that of s.
//
// It fails if the numbers of s are beyond what any cell reaches.
func (s *State) NewEpoch(epoch, term uint64) (*State, error) {
	if epoch <= s.epoch || term == 0 || term < s.term || s.revision > math.MaxUint64-2*EpochLeap || s.index > math.MaxUint64/2 || term > math.MaxUint64/2 {
		return nil, fmt.Errorf("no epoch %d after epoch %d, revision %d, index %d, term %d to %d", epoch, s.epoch, s.revision, s.index, s.term, term)
	}
	m := NewMachine(s)
	m.Advance(s.index+1, term)
	m.now, m.changes = s.revision+EpochLeap, m.changes[:0]
	var ids []uint64
	for v := range s.Sessions() {
		ids = append(ids, v.ID)
	}
	m.endSessions(ids, false)
	// Those that were shut before, and those that a lost holder had left to be shut after the rest.
	var shut []string
	m.w.delays.all(func(path string, _ *lock) bool {
		shut = append(shut, path)
		return true
	})
	for _, path := range shut {
		l := m.lockOf(path)
		l.delay, l.generation = 0, 0
		m.putLock(path, l)
		m.settle(path)
	}
	m.w.epoch, m.w.revision = epoch, m.now
	m.changes = binary.LittleEndian.AppendUint64(m.changes, epoch)
	m.changes = binary.LittleEndian.AppendUint64(m.changes, m.now)
	m.w.hash = xxhash.Checksum64S(m.changes, m.w.hash)
	next, _ := m.Publish()
	if err := next.Check(); err != nil {
		return nil, err
	}
	return next, nil
}
