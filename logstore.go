package chubby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/OneOfOne/xxhash"
	"github.com/hashicorp/raft"
)

const (
	// deleteChunk bounds one deletion's transaction, so that a compaction never keeps raft's main goroutine from its
	// writes for long.
	deleteChunk = 2000
	// entryOverhead is about what an entry takes on disk beside its data.
	entryOverhead = 112
)

// logStore is raft's LogStore: it checks what it stores and what it reads, keeps the newest entries in memory, counts
// bytes, and ends raft's goroutine instead of letting it go on after a storage error.
//
// Invariants: the log is empty (first = last = 0) or 1 <= first <= last and the file holds every entry from first to
// last; first-1 <= index of the newest snapshot.
//
// Raft appends and truncates from its main goroutine and compacts from another; GetLog comes from any.
type logStore struct {
	s     *store
	chunk uint64 // entries deleted in one transaction
	ring  logRing

	first, last atomic.Uint64 // written under mu

	mu        sync.Mutex
	sizes     []uint32 // of the entries first..last
	bytes     int64    // their sum
	chain     uint64   // of the entry last, 0 when the log is empty
	truncated bool     // a suffix was deleted and nothing appended since

	// turn holds one value while nobody deletes or writes the mark. It is a channel and not a mutex because its holder
	// works on the disk.
	turn chan struct{}
	mark markRecord // guarded by turn
}

var (
	_ raft.LogStore          = (*logStore)(nil)
	_ raft.MonotonicLogStore = (*logStore)(nil)
)

// markRecord tells, at the next open, how much there must be at least. Bolt has no checksums in its pages: a damaged page
// number can make an older version of a page part of the tree, and a damaged count can hide what is there; what is left
// is valid in itself.
type markRecord struct {
	index uint64 // this entry was in the log; 0 = nothing is known
	chain uint64 // and this was its chain
	snap  uint64 // the newest snapshot was that of this index; 0 = there was none
}

func (m markRecord) encode() []byte {
	b := []byte{storeFormat}
	b = binary.BigEndian.AppendUint64(b, m.index)
	b = binary.BigEndian.AppendUint64(b, m.chain)
	return binary.BigEndian.AppendUint64(b, m.snap)
}

func decodeMark(b []byte) (m markRecord, ok bool) {
	if len(b) != 25 || b[0] != storeFormat {
		return m, false
	}
	m.index, m.chain, m.snap = binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]), binary.BigEndian.Uint64(b[17:])
	return m, true
}

// entrySum is the checksum of an entry. It travels with the entry, as its Extensions.
func entrySum(index, term uint64, typ raft.LogType, data []byte) uint64 {
	var h [17]byte
	binary.BigEndian.PutUint64(h[:], index)
	binary.BigEndian.PutUint64(h[8:], term)
	h[16] = byte(typ)
	return xxhash.Checksum64S(data, xxhash.Checksum64(h[:]))
}

// chainSum ties an entry to all before it.
func chainSum(before, sum uint64) uint64 {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], before)
	binary.BigEndian.PutUint64(b[8:], sum)
	return xxhash.Checksum64(b[:])
}

// entryIntact reports whether an entry from elsewhere is what its sender stored. One without checksum is new.
func entryIntact(e *raft.Log) bool {
	return len(e.Extensions) == 0 ||
		len(e.Extensions) == 8 && binary.BigEndian.Uint64(e.Extensions) == entrySum(e.Index, e.Term, e.Type, e.Data)
}

func entryBytes(e *raft.Log) uint32 { return uint32(len(e.Data)) + entryOverhead }

func (l *logStore) init(s *store) {
	l.s, l.chunk = s, deleteChunk
	l.turn = make(chan struct{}, 1)
	l.turn <- struct{}{}
}

// read reads and checks an entry of the file. It returns raft.ErrLogNotFound, ErrCorrupt or the file's error.
func (l *logStore) read(index uint64, e *raft.Log) (chain uint64, err error) {
	*e = raft.Log{}
	if err := l.s.file.GetLog(index, e); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) || isClosed(err) {
			return 0, err
		}
		return 0, corruptf(logFileName, "entry %d cannot be decoded: %v", index, err)
	}
	if len(e.Extensions) != 16 || e.Index != index ||
		binary.BigEndian.Uint64(e.Extensions) != entrySum(e.Index, e.Term, e.Type, e.Data) {
		return 0, corruptf(logFileName, "entry %d has a wrong checksum", index)
	}
	chain = binary.BigEndian.Uint64(e.Extensions[8:])
	e.Extensions = e.Extensions[:8:8]
	return chain, nil
}

// load checks the whole log against itself, the mark, the term and the newest snapshot.
func (l *logStore) load() error {
	b, err := l.s.record(keyMark)
	if err != nil {
		return err
	}
	var ok bool
	if l.mark, ok = decodeMark(b); !ok {
		return corruptf(logFileName, "record %q has no known form", keyMark)
	}
	first, err := l.s.file.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log's first index: %w", err)
	}
	last, err := l.s.file.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log's last index: %w", err)
	}
	snap, snapTerm := l.s.snap.newest(), l.s.snap.newestTerm()
	switch {
	case first > 1 && first-1 > snap:
		return corruptf(logFileName, "the log begins at %d, but the newest snapshot ends at %d", first, snap)
	case l.mark.snap > snap:
		return corruptf(snapFileName, "the snapshot of index %d is missing, the newest is of index %d", l.mark.snap, snap)
	case l.mark.index > last && !l.s.boot.lossy():
		return corruptf(logFileName, "entry %d is missing, the log ends at %d", l.mark.index, last)
	}
	if last == 0 {
		return nil
	}
	var e raft.Log
	var term, chain uint64
	stale := last < snap
	for i := first; i <= last; i++ {
		c, err := l.read(i, &e)
		switch {
		case errors.Is(err, raft.ErrLogNotFound):
			return corruptf(logFileName, "entry %d is missing between %d and %d", i, first, last)
		case err != nil:
			return err
		case e.Term < term:
			return corruptf(logFileName, "entry %d has term %d after term %d", i, e.Term, term)
		case i > first && c != chainSum(chain, entrySum(e.Index, e.Term, e.Type, e.Data)):
			return corruptf(logFileName, "entry %d does not follow entry %d", i, i-1)
		case i == l.mark.index && c != l.mark.chain:
			return corruptf(logFileName, "entry %d is not the one that was stored last", i)
		}
		term, chain = e.Term, c
		stale = stale || i == snap && term != snapTerm
		size := entryBytes(&e)
		l.sizes = append(l.sizes, size)
		l.bytes += int64(size)
	}
	if current, _ := l.s.vote.state(); term > current {
		return corruptf(logFileName, "entry %d has term %d, but the current term is %d", last, term, current)
	}
	l.first.Store(first)
	l.last.Store(last)
	l.chain = chain
	if stale {
		// Raft was about to drop the log that an installed snapshot replaces: it ends before the snapshot, or went
		// another way and was never committed there. Left alone it would have a gap, or disagree with what was applied.
		l.s.c.Logger.Info("dropping the log that a snapshot replaced", "first", first, "last", last, "snapshot", snap)
		return l.delete(first, last)
	}
	return nil
}

// ends gives the first and the last index, 0 and 0 if the log is empty.
func (l *logStore) ends() (first, last uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first.Load(), l.last.Load()
}

// FirstIndex gives the index of the oldest entry, 0 if there is none.
func (l *logStore) FirstIndex() (uint64, error) { return l.first.Load(), l.s.err() }

// LastIndex gives the index of the newest entry, 0 if there is none.
func (l *logStore) LastIndex() (uint64, error) { return l.last.Load(), l.s.err() }

// IsMonotonic tells raft to delete the log when it installs a snapshot beyond its end, instead of leaving a gap.
func (l *logStore) IsMonotonic() bool { return true }

// GetLog gives a copy of the entry at index, or raft.ErrLogNotFound. The copy shares Data and Extensions with the store:
// nobody may change them. On a damaged entry it does not return.
func (l *logStore) GetLog(index uint64, e *raft.Log) error {
	must(l.s.err())
	if index == 0 || index < l.first.Load() || index > l.last.Load() {
		l.s.c.Gate.Wait()
		return raft.ErrLogNotFound
	}
	if !l.ring.get(index, e) {
		err := guard(func() error {
			_, err := l.read(index, e)
			return err
		})
		if err != nil {
			if index < l.first.Load() || index > l.last.Load() {
				err = raft.ErrLogNotFound // deleted meanwhile
			} else {
				if errors.Is(err, raft.ErrLogNotFound) {
					err = corruptf(logFileName, "entry %d is missing", index)
				}
				must(l.s.fail(err))
			}
		}
		l.s.c.Gate.Wait()
		return err
	}
	l.s.c.Gate.Wait()
	return nil
}

// StoreLog stores one entry; see StoreLogs.
func (l *logStore) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

// StoreLogs appends entries and returns when they are synced. It gives those without checksum one, in its own copy: on a
// leader the entries are part of futures that raft hands to the FSM later, on a follower they came from a transport that
// may share them with the sender, so changing them here could race.
//
// An entry damaged on the way is an error, and nothing is stored: raft refuses the append, and the sender tries again.
func (l *logStore) StoreLogs(entries []*raft.Log) error {
	must(l.s.err())
	if len(entries) == 0 {
		return nil
	}
	l.mu.Lock()
	last, truncated := l.last.Load(), l.truncated
	l.mu.Unlock()
	next := last + 1
	if last == 0 {
		next = max(entries[0].Index, 1)
		if snap := l.s.snap.newest(); next-1 > snap {
			must(l.s.fail(fmt.Errorf("raft stores entry %d in an empty log after a snapshot up to %d", next, snap)))
		}
	}
	for i, e := range entries {
		if e.Index != next+uint64(i) {
			// Raft believes in a log that is not there. It would vote and commit by it.
			must(l.s.fail(fmt.Errorf("raft stores entry %d after entry %d", e.Index, next+uint64(i)-1)))
		}
		if !entryIntact(e) {
			err := fmt.Errorf("entry %d was damaged on the way: wrong checksum", e.Index)
			if truncated {
				// After an error here raft goes on with the last index from before the truncation, and so
				// would claim, in votes and in appends, entries that are gone.
				must(l.s.fail(err))
			}
			return err
		}
	}
	must(l.append(entries))
	return nil
}

// append stores what StoreLogs has checked.
func (l *logStore) append(entries []*raft.Log) error {
	l.mu.Lock()
	chain := l.chain
	l.mu.Unlock()
	var dataBytes int
	for _, e := range entries {
		dataBytes += len(e.Data)
	}
	var (
		stored = make([]*raft.Log, len(entries))
		copies = make([]raft.Log, len(entries))
		cached = make([]ringEntry, len(entries))
		sums   = make([]byte, 0, 16*len(entries))
	)
	for i, e := range entries {
		sum := entrySum(e.Index, e.Term, e.Type, e.Data)
		chain = chainSum(chain, sum)
		sums = binary.BigEndian.AppendUint64(sums, sum)
		sums = binary.BigEndian.AppendUint64(sums, chain)
		copies[i] = *e
		copies[i].Extensions = sums[16*i : 16*i+16 : 16*i+16]
		stored[i] = &copies[i]
	}
	if err := l.s.write("log", func() error { return l.s.file.StoreLogs(stored) }); err != nil {
		return err
	}
	for i := range copies {
		// Own bytes: the caller's may be a piece of a future or of a frame that the ring would keep alive.
		e := copies[i]
		e.Data, e.Extensions = slices.Clone(e.Data), e.Extensions[:8:8]
		cached[i] = ringEntry{e}
	}
	l.s.boot.unsynced.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range cached {
		l.ring.put(&cached[i])
		size := entryBytes(entries[i])
		l.sizes = append(l.sizes, size)
		l.bytes += int64(size)
	}
	l.chain = chain
	l.truncated = false
	if l.first.Load() == 0 {
		l.first.Store(entries[0].Index)
	}
	// Last: who sees the index must find the entry.
	l.last.Store(entries[len(entries)-1].Index)
	return nil
}

// DeleteRange deletes the entries from min to max from one end of the log. It does not return on an error.
func (l *logStore) DeleteRange(min, max uint64) error {
	must(l.s.err())
	must(l.delete(min, max))
	return nil
}

func (l *logStore) delete(from, to uint64) error {
	<-l.turn
	defer func() { l.turn <- struct{}{} }()
	first, last := l.ends()
	if from < first {
		from = first
	}
	if to > last {
		to = last
	}
	switch {
	case last == 0 || from > to:
		return nil
	case to == last:
		return l.deleteSuffix(from, to)
	case from == first:
		return l.deletePrefix(from, to)
	}
	return l.s.fail(fmt.Errorf("raft deletes entries %d to %d from the middle of %d to %d", from, to, first, last))
}

// deletePrefix deletes less than the whole log, in ascending order, so that a crash leaves no gap. The caller has the turn.
func (l *logStore) deletePrefix(from, to uint64) error {
	mark := markRecord{snap: l.s.snap.newest()}
	l.mu.Lock()
	mark.index, mark.chain = l.last.Load(), l.chain
	l.mu.Unlock()
	if err := l.setMark(mark); err != nil {
		return err
	}
	l.mu.Lock()
	n := int(to - from + 1)
	for _, size := range l.sizes[:n] {
		l.bytes -= int64(size)
	}
	l.sizes = l.sizes[n:]
	l.first.Store(to + 1)
	l.mu.Unlock()
	for from <= to {
		end := min(from+l.chunk-1, to)
		if err := l.s.write("delete", func() error { return l.s.file.DeleteRange(from, end) }); err != nil {
			return err
		}
		from = end + 1
	}
	return nil
}

// deleteSuffix deletes the end of the log or all of it, in descending order, so that a crash leaves no gap. The caller
// has the turn, and is the only one who appends.
func (l *logStore) deleteSuffix(from, to uint64) error {
	mark := l.mark
	mark.snap = l.s.snap.newest()
	var chain uint64
	first, _ := l.ends()
	if from > first {
		err := guard(func() (err error) {
			var e raft.Log
			chain, err = l.read(from-1, &e)
			return err
		})
		if err != nil {
			return l.s.fail(err)
		}
		if mark.index >= from {
			mark.index, mark.chain = from-1, chain
		}
	} else {
		mark.index, mark.chain = 0, 0
	}
	if err := l.setMark(mark); err != nil {
		return err
	}
	l.mu.Lock()
	keep := len(l.sizes) - int(to-from+1)
	for _, size := range l.sizes[keep:] {
		l.bytes -= int64(size)
	}
	l.sizes = l.sizes[:keep]
	if keep == 0 {
		l.first.Store(0)
		l.last.Store(0)
	} else {
		l.last.Store(from - 1)
	}
	l.chain = chain
	l.truncated = true
	l.ring.truncate(from, to)
	l.mu.Unlock()
	for to >= from {
		start := from
		if to-from >= l.chunk {
			start = to - l.chunk + 1
		}
		if err := l.s.write("delete", func() error { return l.s.file.DeleteRange(start, to) }); err != nil {
			return err
		}
		to = start - 1
	}
	return nil
}

// setMark needs the turn.
func (l *logStore) setMark(m markRecord) error {
	if m == l.mark {
		return nil
	}
	if err := l.s.write("delete", func() error { return l.s.file.Set(keyMark, sealRecord(m.encode())) }); err != nil {
		return err
	}
	l.mark = m
	return nil
}

// seal writes down where the log ends. It is for close, when nobody else uses the store, and fails nothing.
func (l *logStore) seal() error {
	if l.s.err() != nil {
		return nil
	}
	m := markRecord{snap: l.s.snap.newest()}
	l.mu.Lock()
	m.index, m.chain = l.last.Load(), l.chain
	l.mu.Unlock()
	if m == l.mark {
		return nil
	}
	if err := l.s.fault("meta"); err != nil {
		return err
	}
	return guard(func() error { return l.s.file.Set(keyMark, sealRecord(m.encode())) })
}

// logBytes gives about how many bytes the live entries take, overhead included.
func (s *store) logBytes() int64 {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	return s.log.bytes
}

// lastIndex gives the index of the newest entry, 0 if there is none.
func (s *store) lastIndex() uint64 { return s.log.last.Load() }

// trailing gives how many of the newest entries fit in budget bytes.
func (s *store) trailing(budget int64) uint64 {
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	var n uint64
	for _, size := range slices.Backward(s.log.sizes) {
		if budget -= int64(size); budget < 0 {
			break
		}
		n++
	}
	return n
}
