package state

import (
	"encoding/binary"
	"errors"
	"hash"
	"io"

	"github.com/OneOfOne/xxhash"
)

// A snapshot is a magic, a version byte and sections, in a fixed order and each there once: an id byte; records, each a
// uvarint length above 0 and that many bytes; a zero byte; xxhash64, little endian, of all that (and, in the first, of
// magic and version too). Records have the order of their keys. Whatever can be worked out (indexes, counts, checksums)
// is not written. So one state has one encoding. See docs/format.md.
const (
	snapshotMagic   = "chubbyST"
	snapshotVersion = 1
	recordMax       = 4 << 20 // more than any command can make
)

// Sections: do not renumber.
const (
	sectionCell = iota + 1
	sectionSlots
	sectionFloors
	sectionSessions
	sectionAnswers
	sectionEntries
	sectionLocks
	sectionOwners
	sectionOpens
)

var (
	// ErrCorrupt means that a snapshot's bytes are not what was written.
	ErrCorrupt = errors.New("corrupt snapshot")
	// ErrVersion means that a newer release wrote the snapshot.
	ErrVersion = errors.New("unknown version of the snapshot")
)

// WriteTo writes the state as a snapshot, which [Read] reads, and returns how many bytes it wrote. Equal states give
// equal bytes. It needs little memory beside the state, and commands may be applied meanwhile.
func (s *State) WriteTo(w io.Writer) (int64, error) {
	p := &snapshotWriter{w: w, sum: xxhash.New64()}
	p.buf = append(append(p.buf, snapshotMagic...), snapshotVersion)

	p.begin(sectionCell)
	p.text(s.cell)
	p.numbers(s.epoch, s.revision, s.index, s.term, s.hash, s.mark.Index, s.mark.Hash)
	p.numbers(s.level)
	p.text(s.key)
	p.record()
	p.end()

	p.begin(sectionSlots)
	s.slots.all(func(key string, v *slot) bool {
		p.text(v.node)
		p.numbers(v.revision)
		return p.record()
	})
	p.end()

	p.begin(sectionFloors)
	s.floors.all(func(key string, id uint64) bool {
		p.numbers(binary.BigEndian.Uint64([]byte(key)), id)
		return p.record()
	})
	p.end()

	p.begin(sectionSessions)
	s.sessions.all(func(_ string, v *session) bool {
		p.numbers(v.id)
		p.rec = append(p.rec, v.nonce[:]...)
		p.numbers(uint64(v.slot))
		p.text(v.node)
		p.text(v.name)
		p.text(v.principal)
		p.numbers(v.lease, v.grace, v.opened, v.acked)
		p.flags(v.caching, false)
		return p.record()
	})
	p.end()

	p.begin(sectionAnswers)
	s.sessions.all(func(_ string, v *session) bool {
		for _, a := range v.answers {
			p.numbers(v.id, a.seq)
			p.rec = append(p.rec, a.raw...)
			if !p.record() {
				return false
			}
		}
		return true
	})
	p.end()

	p.begin(sectionEntries)
	s.entries.all(func(_ string, e *entry) bool {
		p.text(e.path)
		p.flags(e.dir, e.ephemeral, e.acl != nil)
		p.numbers(e.instance, e.generation, e.lockGen, e.aclGen, e.revision, e.session)
		if e.acl != nil {
			p.text(e.acl.Read)
			p.text(e.acl.Write)
			p.text(e.acl.Change)
		}
		p.rec = append(p.rec, e.data...)
		return p.record()
	})
	p.end()

	p.begin(sectionLocks)
	s.locks.all(func(path string, l *lock) bool {
		p.text(path)
		p.numbers(l.generation, l.delay)
		return p.record()
	})
	p.end()

	p.begin(sectionOwners)
	s.owners.all(func(_ string, o *owner) bool {
		p.numbers(o.session, o.seq)
		p.text(o.path)
		p.numbers(o.ticket, o.since, o.delay, o.hold, o.instance)
		p.rec = append(p.rec, byte(o.mode))
		p.flags(o.publish)
		p.rec = append(p.rec, o.data...)
		return p.record()
	})
	p.end()

	p.begin(sectionOpens)
	s.opens.all(func(_ string, o *open) bool {
		p.numbers(o.session, o.seq)
		p.text(o.path)
		p.numbers(o.instance)
		return p.record()
	})
	p.end()
	p.flush()
	return p.n, p.err
}

// snapshotWriter gathers a record in rec and written bytes in buf.
type snapshotWriter struct {
	w   io.Writer
	sum hash.Hash64
	rec []byte
	buf []byte // not yet written and not yet in sum
	n   int64
	err error // the first; nothing is written after it
}

const snapshotBuffer = 64 << 10

func (p *snapshotWriter) begin(section byte) { p.buf = append(p.buf, section) }

func (p *snapshotWriter) text(s string) {
	p.rec = append(binary.AppendUvarint(p.rec, uint64(len(s))), s...)
}

func (p *snapshotWriter) numbers(numbers ...uint64) {
	for _, n := range numbers {
		p.rec = binary.AppendUvarint(p.rec, n)
	}
}

func (p *snapshotWriter) flags(set ...bool) {
	var f byte
	for i, on := range set {
		if on {
			f |= 1 << i
		}
	}
	p.rec = append(p.rec, f)
}

// record ends a record and reports whether to go on.
func (p *snapshotWriter) record() bool {
	p.buf = binary.AppendUvarint(p.buf, uint64(len(p.rec)))
	p.buf = append(p.buf, p.rec...)
	p.rec = p.rec[:0]
	if len(p.buf) >= snapshotBuffer {
		p.flush()
	}
	return p.err == nil
}

func (p *snapshotWriter) end() {
	p.buf = append(p.buf, 0)
	p.flush()
	p.buf = binary.LittleEndian.AppendUint64(p.buf, p.sum.Sum64())
	p.write()
	p.sum.Reset()
}

func (p *snapshotWriter) flush() {
	_, _ = p.sum.Write(p.buf) // a hash takes everything
	p.write()
}

func (p *snapshotWriter) write() {
	if p.err == nil {
		var n int
		n, p.err = p.w.Write(p.buf)
		p.n += int64(n)
		if p.err == nil && n < len(p.buf) {
			p.err = io.ErrShortWrite
		}
	}
	p.buf = p.buf[:0]
}
