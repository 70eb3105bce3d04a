// Package state is the replicated state machine of a cell: entries, locks, sessions.
//
// It is pure. [Machine.Apply] sees a command, its index and its term, and nothing else: no clock, no randomness, no
// options, no order of a Go map. Equal logs give equal states, results and events on every node. A refused command is a
// result, not an error.
//
// There is one writer, the Machine, and any number of readers. The writer changes its own handles on persistent maps and
// publishes an immutable [State] at the end of each batch of commands; a State never changes and is read without locks.
package state

import (
	"iter"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/index"
)

// State is the state of a cell after some command. It never changes; all methods are safe for concurrent use.
//
// Invariants are in Check.
type State struct {
	cell  string
	epoch uint64
	level uint64 // feature level whose commands are used; 1 at first
	key   string // under which the texts of handles are sealed; "" = none yet

	revision uint64 // of the last command that changed something; the root directory is of revision 1
	index    uint64 // of the last raft entry
	term     uint64 // of that entry
	hash     uint64 // over everything that was applied
	mark     Mark   // hash at the last index divisible by markEvery below index
	counts   Counts
	guarded  bool // the directory /acl exists: ACLs are checked

	entries    omap[*entry]   // treeKey
	ephemerals omap[string]   // session, path -> path: entries that go with a session that lives
	locks      omap[*lock]    // path: locks that are held, awaited or delayed
	owners     omap[*owner]   // session, seq: all holders and waiters
	holders    omap[*owner]   // path, ticket
	waiters    omap[*owner]   // path, ticket
	delays     omap[*lock]    // path: locks that are shut
	sessions   omap[*session] // id
	slots      omap[*slot]    // number
	nodes      omap[uint32]   // raft server id -> slot
	floors     omap[uint64]   // slot -> greatest session id opened
	opens      omap[*open]    // session, seq: handles on ephemeral entries
	openers    omap[*open]    // path, session, seq

	hint index.Map[*entry] // path: a hint for Get, shared with the states after this one; nil = none
}

// Mark is the state hash at one raft index.
type Mark struct{ Index, Hash uint64 }

// markEvery is the distance of the indexes at which voters compare hashes.
const markEvery = 1000

// Counts are sizes of a state.
type Counts struct {
	Entries  int   // without the root
	Sessions int   //
	Locks    int   // paths whose lock is held
	Waiters  int   // Lock calls in queues
	Bytes    int64 // of paths and contents of entries
}

// New returns the state of a cell that has just been founded.
func New(cell string, epoch uint64) *State {
	s := empty()
	s.cell, s.epoch, s.revision, s.level = cell, epoch, 1, 1
	s.hash = xxhash.Checksum64S([]byte(cell), epoch)
	s.entries.set(treeKey("/"), &entry{path: "/", instance: 1, revision: 1, dir: true})
	return s
}

func empty() *State {
	return &State{
		entries: newOmap[*entry](), ephemerals: newOmap[string](), locks: newOmap[*lock](), owners: newOmap[*owner](),
		holders: newOmap[*owner](), waiters: newOmap[*owner](), delays: newOmap[*lock](), sessions: newOmap[*session](),
		slots: newOmap[*slot](), nodes: newOmap[uint32](), floors: newOmap[uint64](),
		opens: newOmap[*open](), openers: newOmap[*open](),
	}
}

// Cell is the cell's name.
func (s *State) Cell() string { return s.cell }

// Epoch is the cell's epoch.
func (s *State) Epoch() uint64 { return s.epoch }

// Level is the feature level whose commands the cell uses: every member has known them when it was raised.
func (s *State) Level() uint32 { return uint32(s.level) }

// Revision is that of the last command that changed something.
func (s *State) Revision() uint64 { return s.revision }

// Index is that of the last raft entry that was applied.
func (s *State) Index() uint64 { return s.index }

// Term is that of the last raft entry that was applied.
func (s *State) Term() uint64 { return s.term }

// Hash is the running hash over revisions, commands, results and changes. States of equal logs have equal hashes.
func (s *State) Hash() uint64 { return s.hash }

// HashAt is the hash after the last command at or below the last raft index divisible by 1000, and that index.
func (s *State) HashAt() (index, hash uint64) {
	if s.index%markEvery == 0 {
		return s.index, s.hash
	}
	return s.mark.Index, s.mark.Hash
}

// Counts costs nothing.
func (s *State) Counts() Counts { return s.counts }

// Get returns the entry at path, a canonical one, and whether there is one. Data aliases the state and must not be
// changed.
func (s *State) Get(path string) (command.Entry, bool) {
	e := s.find(path)
	if e == nil {
		return command.Entry{}, false
	}
	return e.view(), true
}

func (s *State) entry(path string) *entry {
	if path == "" || path[0] != '/' {
		return nil
	}
	e, _ := s.entries.get(treeKey(path))
	return e
}

// List returns the direct children of dir, sorted by name, without their data; or NotFound or NotDir.
func (s *State) List(dir string) ([]command.Entry, command.Code) {
	e := s.entry(dir)
	switch {
	case e == nil:
		return nil, command.NotFound
	case !e.dir:
		return nil, command.NotDir
	}
	list := make([]command.Entry, 0, e.children)
	s.children(dir, func(child *entry) {
		v := child.view()
		v.Data = nil
		list = append(list, v)
	})
	return list, command.OK
}

func (s *State) children(dir string, f func(*entry)) {
	s.entries.prefix(childPrefix(dir), func(_ string, e *entry) bool {
		if e.path != "/" {
			f(e)
		}
		return true
	})
}

// LockView says how a lock stands. That of a free lock is zero.
type LockView struct {
	Mode       fence.Mode // of the holders; 0 when there are none
	Generation uint64     // of the grant; while Delayed that of the grant which was lost
	Holders    []Holder   // in the order of their grants
	Waiters    int
	Delayed    bool
	Delay      uint64 // milliseconds that the lock stays shut after it became Delayed
}

// Holder is one holder of a lock.
type Holder struct {
	Session uint64
	Seq     uint64 // of the Lock command
	Name    string // of the session
	Since   uint64 // revision of the grant to this holder
	Hold    uint64 // milliseconds for which it may hold; 0 = no bound
}

// Lock tells how the lock at path stands.
func (s *State) Lock(path string) LockView {
	l, ok := s.locks.get(path)
	if !ok {
		return LockView{}
	}
	v := LockView{Mode: l.mode, Generation: l.generation, Waiters: l.waiters}
	if l.shut() {
		v.Delayed, v.Delay = true, l.delay
	}
	if l.holders > 0 {
		v.Holders = make([]Holder, 0, l.holders)
		s.holders.prefix(path+"\x00", func(_ string, o *owner) bool {
			h := Holder{Session: o.session, Seq: o.seq, Since: o.since, Hold: o.hold}
			if session, ok := s.sessions.get(key64(o.session)); ok {
				h.Name = session.name
			}
			v.Holders = append(v.Holders, h)
			return true
		})
	}
	return v
}

// Grant tells what became of the Lock command seq of session for path: whether it holds the lock, and since which
// generation, or waits for it.
func (s *State) Grant(session, seq uint64, path string) (generation uint64, held, waiting bool) {
	o, ok := s.owners.get(key128(session, seq))
	switch {
	case !ok || o.path != path:
		return 0, false, false
	case !o.held():
		return 0, false, true
	}
	l, _ := s.locks.get(path)
	return l.generation, true, false
}

// HoldID names one holding of a lock.
type HoldID struct {
	Path         string
	Generation   uint64
	Session, Seq uint64 // the owner
}

// MaxHold tells whether the lock is held so, and for how many milliseconds from its holder's acknowledgement it may be;
// 0 means no bound.
func (s *State) MaxHold(h HoldID) (ms uint64, held bool) {
	o, ok := s.owners.get(key128(h.Session, h.Seq))
	if !ok || !o.held() || o.path != h.Path {
		return 0, false
	}
	if l, _ := s.locks.get(h.Path); l.generation != h.Generation {
		return 0, false
	}
	return o.hold, true
}

// Holds reports whether the lock is held under q at this moment.
func (s *State) Holds(q fence.Sequencer) bool {
	l, ok := s.locks.get(q.Path)
	return ok && q.Cell == s.cell && q.Epoch == s.epoch && l.holders > 0 && q.Mode == l.mode && q.Generation == l.generation
}

// SessionView is a session that lives.
type SessionView struct {
	ID           uint64
	Node         string // raft server id of the node that speaks for it
	Name         string
	Principal    string // who opened it
	Lease, Grace uint64 // milliseconds
	Slot         uint32
	Caching      bool // its client keeps a consistent cache
}

// Session returns the session, if it lives.
func (s *State) Session(id uint64) (SessionView, bool) {
	v, ok := s.sessions.get(key64(id))
	if !ok {
		return SessionView{}, false
	}
	return v.view(), true
}

// Sessions gives the sessions that live, by id.
func (s *State) Sessions() iter.Seq[SessionView] {
	return func(yield func(SessionView) bool) {
		s.sessions.all(func(_ string, v *session) bool { return yield(v.view()) })
	}
}

// DelayID names one lock-delay: a lock is shut at most once under each generation.
type DelayID struct {
	Path       string
	Generation uint64
}

// DelayView is a lock that is shut.
type DelayView struct {
	DelayID
	Delay uint64 // milliseconds from the command that shut it
}

// Delays gives the locks that are shut, by path. Each became so with a LockDelayed event.
func (s *State) Delays() iter.Seq[DelayView] {
	return func(yield func(DelayView) bool) {
		s.delays.all(func(path string, l *lock) bool {
			return yield(DelayView{DelayID{path, l.generation}, l.delay})
		})
	}
}
