package state

import (
	"slices"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// Records in the maps of a State never change once they are published; a change puts a new one in their place. The one
// exception is a session, which the writer may change in the batch that made it.

// entry is a file or a directory.
type entry struct {
	path       string
	data       []byte
	instance   uint64 // revision that created it
	generation uint64 // revision of the last write; 0 for a directory
	lockGen    uint64
	aclGen     uint64
	revision   uint64       // of the last change of any kind; a directory's children coming and going included
	checksum   uint64       // xxhash64 of data; 0 for a directory
	session    uint64       // ephemeral: goes with this session; 0 = it stays while it is open, a directory while it has children too
	acl        *command.ACL // nil: no names; shared by entries
	children   int
	dir        bool
	ephemeral  bool
}

func (e *entry) stat() command.Stat {
	return command.Stat{
		Instance: e.instance, Generation: e.generation, LockGeneration: e.lockGen, ACLGeneration: e.aclGen,
		Revision: e.revision, Checksum: e.checksum, Size: len(e.data), Children: e.children, Dir: e.dir, Ephemeral: e.ephemeral,
	}
}

func (e *entry) view() command.Entry {
	return command.Entry{Path: e.path, Data: e.data, Stat: e.stat()}
}

func (e *entry) bytes() int64 { return int64(len(e.path) + len(e.data)) }

// lock is a lock that is held, awaited or delayed.
type lock struct {
	mode       fence.Mode // of the holders; 0 = none
	generation uint64     // revision of the grant to the exclusive or first shared holder; kept while shut; else 0
	// delay is the longest lock-delay, in milliseconds, of the holders of this generation that were lost. It counts when
	// the last holder has gone: until then the lock is not free in any case, and there is one delay for a generation.
	delay   uint64
	holders int
	waiters int
}

func (l *lock) shut() bool { return l.holders == 0 && l.delay > 0 }

// admits reports whether a holder in this mode may join the present ones. Whoever waits ahead comes first.
func (l *lock) admits(mode fence.Mode) bool {
	return !l.shut() && (l.holders == 0 || l.mode == fence.Shared && mode == fence.Shared)
}

// owner is a Lock command that holds its lock or waits for it.
type owner struct {
	session uint64
	seq     uint64
	path    string
	ticket  uint64 // revision of the Lock command: the order of the queue
	since   uint64 // revision of the grant; 0 = waiting
	mode    fence.Mode
	delay   uint64 // milliseconds
	hold    uint64 // milliseconds for which it may be held; 0 = no bound
	publish bool   // data is to be written at path with the grant; only while waiting
	data    []byte
	// instance is that of the entry for which it waits; 0 = whatever is there.
	instance uint64
}

func (o *owner) held() bool { return o.since > 0 }

// slot is a number that makes the session ids of one node differ from those of all others.
type slot struct {
	node     string
	revision uint64 // of the assignment
}

// session is a client's standing with the cell.
type session struct {
	id    uint64
	nonce [16]byte
	slot  uint32
	node  string
	name  string
	// principal is who opened it. No other's commands are its own.
	principal string
	lease     uint64 // milliseconds
	grace     uint64 // milliseconds
	opened    uint64 // revision
	// caching says that its client keeps a consistent cache: a new leader must not change anything before it knows that
	// nothing of it is left.
	caching bool

	acked   uint64   // commands below this sequence have been answered and acknowledged
	answers []answer // to commands from acked on, by sequence: the window
	bytes   int      // of these answers
	waits   int      // Lock commands in queues: their places in the window are open

	batch *batch // may be changed in this batch
}

// answer is the encoded result of a command, kept for further copies of it.
type answer struct {
	seq uint64
	raw []byte
}

// batch is the identity of the commands between two publishes. It has a size so that no two have the same address.
type batch struct{ _ byte }

// The window of a session. Both bounds are checked before a command is executed, so the bytes can exceed theirs by the
// answer of one command. They do not hold up the lowest command that is not acknowledged: while it waits, nothing above
// it can be acknowledged and make room. Waiting Lock commands have their places in the queue, not here.
const (
	windowMax      = 1024    // unacknowledged commands
	windowBytesMax = 1 << 20 // bytes of encoded results
	answerBytes    = 48      // most results are smaller
)

func (s *session) view() SessionView {
	return SessionView{
		ID: s.id, Node: s.node, Name: s.name, Principal: s.principal, Lease: s.lease, Grace: s.grace, Slot: s.slot, Caching: s.caching,
	}
}

func (s *session) clone(b *batch) *session {
	c := *s
	c.batch = b
	c.answers = make([]answer, len(s.answers), len(s.answers)+8)
	copy(c.answers, s.answers)
	return &c
}

func (s *session) full() bool {
	return len(s.answers) >= windowMax || s.bytes >= windowBytesMax
}

func (s *session) search(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(s.answers, seq, func(a answer, seq uint64) int {
		switch {
		case a.seq < seq:
			return -1
		case a.seq > seq:
			return 1
		}
		return 0
	})
}

// acknowledge forgets the answers below seq, which only grows.
func (s *session) acknowledge(seq uint64) {
	if seq <= s.acked {
		return
	}
	s.acked = seq
	n, _ := s.search(seq)
	for _, a := range s.answers[:n] {
		s.bytes -= len(a.raw)
	}
	clear(s.answers[:n]) // not moved: a full window would be copied for each command
	s.answers = s.answers[n:]
}

// remember keeps the answer to seq, in place of an earlier one.
func (s *session) remember(seq uint64, r *command.Result) {
	if seq < s.acked {
		return
	}
	a := answer{seq, command.AppendResult(make([]byte, 0, answerBytes), r)}
	s.bytes += len(a.raw)
	if i, ok := s.search(seq); ok {
		s.bytes -= len(s.answers[i].raw)
		s.answers[i] = a
	} else {
		s.answers = slices.Insert(s.answers, i, a)
	}
}
