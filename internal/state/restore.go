package state

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// Read reads a snapshot to its end and checks every invariant of the state in it. It returns ErrVersion, ErrCorrupt, or
// the error of r. Writing the state again gives the same bytes.
func Read(r io.Reader) (*State, error) {
	p := &snapshotReader{r: bufio.NewReaderSize(r, snapshotBuffer), sum: xxhash.New64()}
	head := make([]byte, len(snapshotMagic)+1)
	if err := p.full(head); err != nil {
		return nil, err
	}
	if string(head[:len(snapshotMagic)]) != snapshotMagic {
		return nil, fmt.Errorf("%w: it does not begin as a snapshot", ErrCorrupt)
	}
	if v := head[len(snapshotMagic)]; v != snapshotVersion {
		return nil, fmt.Errorf("%w: %d; this release reads %d", ErrVersion, v, snapshotVersion)
	}
	s := &builder{State: empty()}
	for i, parse := range [...]func(*fields) error{
		s.readCell, s.readSlot, s.readFloor, s.readSession, s.readAnswer, s.readEntry, s.readLock, s.readOwner, s.readOpen,
	} {
		if err := p.section(byte(sectionCell+i), parse); err != nil {
			return nil, fmt.Errorf("section %d: %w", sectionCell+i, err)
		}
	}
	switch _, err := p.r.ReadByte(); {
	case err == nil:
		return nil, fmt.Errorf("%w: bytes after its end", ErrCorrupt)
	case err != io.EOF:
		return nil, err
	}
	s.locks.all(func(path string, l *lock) bool {
		if l.shut() {
			s.delays.set(path, l)
		}
		return true
	})
	// The checksums tell that these are the bytes that were written. Check tells that what wrote them was sound, and that
	// no other bytes could mean the same state.
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return s.State, nil
}

// snapshotReader takes a snapshot apart. All it has read is in sum.
type snapshotReader struct {
	r   *bufio.Reader
	sum hash.Hash64
	rec []byte
}

func (p *snapshotReader) full(b []byte) error {
	if _, err := io.ReadFull(p.r, b); err != nil {
		return cutOff(err)
	}
	_, _ = p.sum.Write(b) // a hash takes everything
	return nil
}

func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: cut off", ErrCorrupt)
	}
	return err
}

func (p *snapshotReader) section(id byte, parse func(*fields) error) error {
	var b [8]byte
	if err := p.full(b[:1]); err != nil {
		return err
	}
	if b[0] != id {
		return fmt.Errorf("%w: section %d in its place", ErrCorrupt, b[0])
	}
	records, f := 0, new(fields)
	for {
		n, err := p.length()
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if records++; id == sectionCell && records > 1 {
			return fmt.Errorf("%w: %d records", ErrCorrupt, records)
		}
		if err := p.record(n); err != nil {
			return err
		}
		*f = fields{b: p.rec}
		if err := parse(f); err != nil {
			return fmt.Errorf("record %d: %w", records, err)
		}
		if f.bad {
			return fmt.Errorf("%w: record %d is malformed", ErrCorrupt, records)
		}
	}
	if id == sectionCell && records == 0 {
		return fmt.Errorf("%w: empty", ErrCorrupt)
	}
	want := p.sum.Sum64()
	if err := p.full(b[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint64(b[:]) != want {
		return fmt.Errorf("%w: the checksum does not fit", ErrCorrupt)
	}
	p.sum.Reset()
	return nil
}

// length reads a uvarint in its shortest form.
func (p *snapshotReader) length() (int, error) {
	var n uint64
	var b [1]byte
	for shift := 0; shift <= 21; shift += 7 {
		if err := p.full(b[:]); err != nil {
			return 0, err
		}
		n |= uint64(b[0]&0x7f) << shift
		if b[0] < 0x80 {
			if b[0] == 0 && shift > 0 || n > recordMax {
				break
			}
			return int(n), nil
		}
	}
	return 0, fmt.Errorf("%w: length of a record", ErrCorrupt)
}

// record reads n bytes into rec. Memory grows with what is there, not with what is announced.
func (p *snapshotReader) record(n int) error {
	p.rec = p.rec[:0]
	for len(p.rec) < n {
		at, part := len(p.rec), min(n-len(p.rec), snapshotBuffer)
		p.rec = append(p.rec, make([]byte, part)...)
		if err := p.full(p.rec[at:]); err != nil {
			return err
		}
	}
	return nil
}

// fields takes a record apart. After the first fault everything is zero.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) number() uint64 {
	n, size := binary.Uvarint(f.b)
	if size <= 0 || size > 1 && f.b[size-1] == 0 {
		f.b, f.bad = nil, true
		return 0
	}
	f.b = f.b[size:]
	return n
}

func (f *fields) numbers(to ...*uint64) {
	for _, n := range to {
		*n = f.number()
	}
}

func (f *fields) take(n uint64) []byte {
	if n > uint64(len(f.b)) {
		f.b, f.bad = nil, true
		return nil
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) text() string { return string(f.take(f.number())) }

// rest gives a copy of what is left.
func (f *fields) rest() []byte {
	v := keep(f.b)
	f.b = nil
	return v
}

func (f *fields) byte(limit byte) byte {
	v := f.take(1)
	if len(v) == 0 || v[0] > limit {
		f.bad = true
		return 0
	}
	return v[0]
}

// done reports whether the record was sound, and nothing is left of it.
func (f *fields) done() bool {
	f.bad = f.bad || len(f.b) > 0
	return !f.bad
}

var errOrder = errors.New("records out of order")

// grow appends a record to a map. Keys must come in order, so that no other sequence of records means the same.
func grow[V any](o *omap[V], key string, v V) error {
	if last, _, ok := o.last(); ok && key <= last {
		return fmt.Errorf("%w: %w", ErrCorrupt, errOrder)
	}
	o.load(key, v)
	return nil
}

// builder is a State in the making.
type builder struct {
	*State
	answered uint64       // session of the last answer
	parent   *entry       // of the last entry: siblings stand side by side
	acl      *command.ACL // the last that was not the parent's
}

func (s *builder) readCell(f *fields) error {
	s.cell = f.text()
	f.numbers(&s.epoch, &s.revision, &s.index, &s.term, &s.hash, &s.mark.Index, &s.mark.Hash)
	s.level = f.number()
	s.key = f.text()
	f.done()
	return nil
}

func (s *builder) readSlot(f *fields) error {
	v := &slot{node: f.text(), revision: f.number()}
	n := uint32(s.slots.len())
	if !f.done() || n >= slotsMax || s.nodes.has(v.node) {
		f.bad = true
		return nil
	}
	s.nodes.set(v.node, n)
	return grow(&s.slots, slotKey(n), v)
}

func (s *builder) readFloor(f *fields) error {
	n, id := f.number(), f.number()
	if !f.done() || n >= slotsMax || id == 0 {
		f.bad = true
		return nil
	}
	return grow(&s.floors, slotKey(uint32(n)), id)
}

func (s *builder) readSession(f *fields) error {
	v := &session{id: f.number()}
	copy(v.nonce[:], f.take(uint64(len(v.nonce))))
	n := f.number()
	v.slot, v.node, v.name, v.principal = uint32(n), f.text(), f.text(), f.text()
	f.numbers(&v.lease, &v.grace, &v.opened, &v.acked)
	v.caching = f.byte(1) != 0
	if !f.done() || n >= slotsMax {
		f.bad = true
		return nil
	}
	s.counts.Sessions++
	return grow(&s.sessions, key64(v.id), v)
}

func (s *builder) readAnswer(f *fields) error {
	id, a := f.number(), answer{seq: f.number()}
	a.raw = f.rest()
	v, ok := s.sessions.get(key64(id))
	if !f.done() || !ok || len(v.answers) > 0 && v.answers[len(v.answers)-1].seq >= a.seq {
		f.bad = true
		return nil
	}
	if id < s.answered {
		return fmt.Errorf("%w: %w", ErrCorrupt, errOrder)
	}
	s.answered = id
	v.answers = append(v.answers, a)
	v.bytes += len(a.raw)
	return nil
}

func (s *builder) readEntry(f *fields) error {
	e := &entry{path: f.text()}
	flags := f.byte(7)
	e.dir, e.ephemeral = flags&1 != 0, flags&2 != 0
	f.numbers(&e.instance, &e.generation, &e.lockGen, &e.aclGen, &e.revision, &e.session)
	var names command.ACL
	if flags&4 != 0 {
		names = command.ACL{Read: f.text(), Write: f.text(), Change: f.text()}
		f.bad = f.bad || names == command.ACL{}
	}
	e.data = f.rest()
	if !f.done() || !canonical(e.path) {
		f.bad = true
		return nil
	}
	if !e.dir {
		e.checksum = xxhash.Checksum64(e.data)
	}
	if e.path != "/" {
		// A parent's key sorts before its children's.
		if up := parentOf(e.path); s.parent == nil || s.parent.path != up {
			s.parent = s.entry(up)
		}
		if s.parent == nil {
			f.bad = true
			return nil
		}
		s.parent.children++
		s.counts.Entries++
		s.counts.Bytes += e.bytes()
	}
	if flags&4 != 0 {
		e.acl = s.share(names)
	}
	if e.path == aclDir {
		s.guarded = e.dir
	}
	if e.session != 0 {
		s.ephemerals.set(key64(e.session)+e.path, e.path)
	}
	return grow(&s.entries, treeKey(e.path), e)
}

// share gives names that an entry before has had, where it can: most have their parent's.
func (s *builder) share(names command.ACL) *command.ACL {
	if s.parent != nil && s.parent.acl != nil && *s.parent.acl == names {
		return s.parent.acl
	}
	if s.acl == nil || *s.acl != names {
		s.acl = &names
	}
	return s.acl
}

func (s *builder) readLock(f *fields) error {
	path, l := f.text(), &lock{generation: f.number(), delay: f.number()}
	if !f.done() {
		return nil
	}
	return grow(&s.locks, path, l)
}

func (s *builder) readOwner(f *fields) error {
	o := &owner{session: f.number(), seq: f.number(), path: f.text()}
	f.numbers(&o.ticket, &o.since, &o.delay, &o.hold, &o.instance)
	o.mode = fence.Mode(f.byte(byte(fence.Shared)))
	o.publish = f.byte(1) != 0
	o.data = f.rest()
	l, ok := s.locks.get(o.path)
	v, lives := s.sessions.get(key64(o.session))
	if !f.done() || !ok || !lives || o.mode == 0 || o.held() && (o.publish || o.instance != 0) || !o.publish && len(o.data) > 0 {
		f.bad = true
		return nil
	}
	list := &s.waiters
	if o.held() {
		list = &s.holders
		if l.holders == 0 {
			s.counts.Locks++
			l.mode = o.mode
		}
		l.holders++
	} else {
		l.waiters++
		v.waits++
		s.counts.Waiters++
	}
	key := ticketKey(o.path, o.ticket)
	if list.has(key) {
		f.bad = true
		return nil
	}
	list.set(key, o)
	return grow(&s.owners, key128(o.session, o.seq), o)
}

func (s *builder) readOpen(f *fields) error {
	o := &open{session: f.number(), seq: f.number(), path: f.text(), instance: f.number()}
	if !f.done() {
		return nil
	}
	s.openers.set(openKey(o), o)
	return grow(&s.opens, key128(o.session, o.seq), o)
}
