package chubby

import (
	"sync/atomic"

	"github.com/hashicorp/raft"
)

const (
	ringEntries = 4096
	ringBytes   = 16 << 20
)

// logRing holds the newest entries of the log in memory, bounded by their number and bytes. get may be called at any
// time; everything else needs the log's mutex.
type logRing struct {
	slots  [ringEntries]atomic.Pointer[ringEntry]
	oldest uint64 // no slot holds an index below
	newest uint64 // nor above; below oldest when the ring is empty
	bytes  int64
}

// ringEntry does not change once it is in the ring.
type ringEntry struct{ log raft.Log }

// get copies the entry at index to e, if the ring holds it.
func (r *logRing) get(index uint64, e *raft.Log) bool {
	p := r.slots[index%ringEntries].Load()
	if p == nil || p.log.Index != index {
		return false
	}
	*e = p.log
	return true
}

// put adds the entry after the newest one, and lets the oldest go as far as the bounds ask.
func (r *logRing) put(p *ringEntry) {
	index := p.log.Index
	if index != r.newest+1 {
		r.clear()
		r.oldest = index
	}
	r.newest = index
	if index-r.oldest >= ringEntries {
		r.drop()
	}
	r.slots[index%ringEntries].Store(p)
	r.bytes += int64(entryBytes(&p.log))
	for r.bytes > ringBytes {
		r.drop()
	}
}

// drop lets the oldest entry go.
func (r *logRing) drop() {
	if p := r.slots[r.oldest%ringEntries].Swap(nil); p != nil {
		r.bytes -= int64(entryBytes(&p.log))
	}
	r.oldest++
}

// truncate forgets the entries from..to, which are the newest.
func (r *logRing) truncate(from, to uint64) {
	for i := max(from, r.oldest); i <= to && i <= r.newest; i++ {
		if p := r.slots[i%ringEntries].Swap(nil); p != nil {
			r.bytes -= int64(entryBytes(&p.log))
		}
	}
	if r.newest >= from {
		r.newest = from - 1
	}
	if r.oldest > from {
		r.oldest = from
	}
}

// clear forgets everything.
func (r *logRing) clear() {
	for i := range r.slots {
		r.slots[i].Store(nil)
	}
	r.oldest, r.newest, r.bytes = 0, 0, 0
}
