package wire

import (
	"math"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// QueryKind tells what is asked of a state. Kinds cross the wire: append at the end, do not renumber.
type QueryKind uint8

const (
	QueryEntry  QueryKind = iota + 1 // Path: the entry there
	QueryList                        // Path: a directory's children, without their data
	QueryLock                        // Path: how the lock stands
	QueryLeader                      // Path: how the lock stands, and the entry
	QueryGrant                       // Session, Seq, Path: what became of a Lock command; and the entry
	QueryHolds                       // Sequencer: whether the lock is held under it
	QueryHandle                      // Path, Write, Change: what a handle opened so is on. With Seal: whether it is that of a handle on Instance
	queryEnd                         // first unknown kind
)

// Query is one question to the state of a cell. Which fields count depends on Kind; the others are zero.
type Query struct {
	Kind          QueryKind
	Path          string
	Session, Seq  uint64
	Sequencer     fence.Sequencer // with any kind: whether the lock is held under it at the same moment
	Write, Change bool            // QueryHandle: what the handle is for
	Instance      uint64
	Seal          []byte

	// Principal is who asks. It does not travel: a member knows its clients.
	Principal string
}

// Answer is what a state says to a Query. What was not asked for is zero.
type Answer struct {
	Code     command.Code // OK, or why there is nothing to say
	Revision uint64       // of the state that was asked
	Entry    command.Entry
	Entries  []command.Entry
	Lock     LockState
	Grant    Grant
	Holds    bool
	Right    command.Right // Code Permission: what is not granted
	Seal     []byte        // QueryHandle: of the handle's text
}

// LockState says how a lock stands. That of a free lock is zero.
type LockState struct {
	Mode       fence.Mode // of the holders; 0 when there are none
	Generation uint64
	Holders    []LockHolder
	Waiters    int
	Delayed    bool
}

// LockHolder is one holder of a lock.
type LockHolder struct {
	Session uint64
	Name    string
	Since   uint64
}

// Grant says what became of a Lock command.
type Grant struct {
	Generation uint64 // of the grant, if Held
	Held       bool
	Waiting    bool
	Live       bool // its session lives
}

// Stored is an entry on its way to a client.
type Stored = command.Entry

const (
	statBytes   = 6*8 + 2*8 + 2
	storedBytes = 4 + 4 + statBytes
)

func putStored(b []byte, e *Stored) []byte {
	b = putBytes(b, e.Path)
	b = putBytes(b, e.Data)
	s := &e.Stat
	for _, v := range [...]uint64{
		s.Instance, s.Generation, s.LockGeneration, s.ACLGeneration, s.Revision, s.Checksum, uint64(s.Size), uint64(s.Children),
	} {
		b = le.AppendUint64(b, v)
	}
	return putBool(putBool(b, s.Dir), s.Ephemeral)
}

func (d *decoder) stored() Stored {
	return Stored{Path: string(d.bytes()), Data: d.bytes(), Stat: command.Stat{
		Instance: d.u64(), Generation: d.u64(), LockGeneration: d.u64(), ACLGeneration: d.u64(), Revision: d.u64(), Checksum: d.u64(),
		Size: d.size(), Children: d.size(), Dir: d.bool(), Ephemeral: d.bool(),
	}}
}

// size reads one that every machine can hold.
func (d *decoder) size() int {
	v := d.u64()
	if v > math.MaxInt32 {
		d.fail("size %d", v)
		return 0
	}
	return int(v)
}

func (d *decoder) mode() fence.Mode {
	m := fence.Mode(d.u8())
	if m != 0 && m != fence.Exclusive && m != fence.Shared {
		d.fail("mode %d", m)
		return 0
	}
	return m
}

func putQuery(b []byte, q *Query) []byte {
	b = append(b, byte(q.Kind))
	b = putBytes(b, q.Path)
	b = le.AppendUint64(b, q.Session)
	b = le.AppendUint64(b, q.Seq)
	b = putBytes(b, q.Sequencer.Cell)
	b = le.AppendUint64(b, q.Sequencer.Epoch)
	b = putBytes(b, q.Sequencer.Path)
	b = append(b, byte(q.Sequencer.Mode))
	b = le.AppendUint64(b, q.Sequencer.Generation)
	b = putBool(putBool(b, q.Write), q.Change)
	b = le.AppendUint64(b, q.Instance)
	return putBytes(b, q.Seal)
}

func (d *decoder) query() Query {
	q := Query{Kind: QueryKind(d.u8()), Path: string(d.bytes()), Session: d.u64(), Seq: d.u64(), Sequencer: fence.Sequencer{
		Cell: string(d.bytes()), Epoch: d.u64(), Path: string(d.bytes()), Mode: d.mode(), Generation: d.u64(),
	}, Write: d.bool(), Change: d.bool(), Instance: d.u64(), Seal: d.bytes()}
	if d.err == nil && (q.Kind == 0 || q.Kind >= queryEnd) {
		d.fail("query of kind %d", q.Kind)
	}
	return q
}

// AppendQuery encodes q.
func AppendQuery(b []byte, q *Query) []byte { return putQuery(b, q) }

// ParseQuery decodes what AppendQuery made.
func ParseQuery(b []byte) (Query, error) {
	d := decoder{b: b}
	q := d.query()
	return q, d.end()
}

// AppendPeek encodes p.
func AppendPeek(b []byte, p *Peek) []byte { return putQuery(le.AppendUint64(b, p.Seen), &p.Query) }

// ParsePeek decodes what AppendPeek made.
func ParsePeek(b []byte) (Peek, error) {
	d := decoder{b: b}
	p := Peek{Seen: d.u64(), Query: d.query()}
	return p, d.end()
}

// AppendAnswer encodes a.
func AppendAnswer(b []byte, a *Answer) []byte {
	b = append(b, byte(a.Code))
	b = le.AppendUint64(b, a.Revision)
	b = putStored(b, &a.Entry)
	b = le.AppendUint32(b, uint32(len(a.Entries)))
	for i := range a.Entries {
		b = putStored(b, &a.Entries[i])
	}
	l := &a.Lock
	b = append(b, byte(l.Mode))
	b = le.AppendUint64(b, l.Generation)
	b = le.AppendUint32(b, uint32(len(l.Holders)))
	for i := range l.Holders {
		h := &l.Holders[i]
		b = le.AppendUint64(b, h.Session)
		b = putBytes(b, h.Name)
		b = le.AppendUint64(b, h.Since)
	}
	b = le.AppendUint64(b, uint64(l.Waiters))
	b = putBool(b, l.Delayed)
	b = le.AppendUint64(b, a.Grant.Generation)
	b = putBool(b, a.Grant.Held)
	b = putBool(b, a.Grant.Waiting)
	b = putBool(b, a.Grant.Live)
	b = putBool(b, a.Holds)
	b = append(b, byte(a.Right))
	return putBytes(b, a.Seal)
}

func (d *decoder) answer() Answer {
	a := Answer{Code: command.Code(d.u8()), Revision: d.u64(), Entry: d.stored()}
	if n := d.count(storedBytes); n > 0 {
		a.Entries = make([]Stored, 0, n)
		for range n {
			a.Entries = append(a.Entries, d.stored())
		}
	}
	l := &a.Lock
	l.Mode, l.Generation = d.mode(), d.u64()
	if n := d.count(8 + 4 + 8); n > 0 {
		l.Holders = make([]LockHolder, 0, n)
		for range n {
			l.Holders = append(l.Holders, LockHolder{Session: d.u64(), Name: string(d.bytes()), Since: d.u64()})
		}
	}
	l.Waiters, l.Delayed = d.size(), d.bool()
	a.Grant = Grant{Generation: d.u64(), Held: d.bool(), Waiting: d.bool(), Live: d.bool()}
	a.Holds = d.bool()
	a.Right, a.Seal = command.Right(d.u8()), d.bytes()
	return a
}

// ParseAnswer decodes what AppendAnswer made. Contents alias b.
func ParseAnswer(b []byte) (Answer, error) {
	d := decoder{b: b}
	a := d.answer()
	if err := d.end(); err != nil {
		return Answer{}, err
	}
	return a, nil
}

// AppendPeeked encodes p.
func AppendPeeked(b []byte, p *Peeked) []byte {
	return AppendAnswer(le.AppendUint64(b, uint64(p.Age)), &p.Answer)
}

// ParsePeeked decodes what AppendPeeked made. Contents alias b.
func ParsePeeked(b []byte) (Peeked, error) {
	d := decoder{b: b}
	p := Peeked{Age: d.duration(), Answer: d.answer()}
	if err := d.end(); err != nil {
		return Peeked{}, err
	}
	return p, nil
}
