package state

import (
	"bytes"
	"encoding/binary"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/internal/command"
)

// Machine is the one writer of a cell's state on one node. It is for one goroutine; what it publishes is for all.
type Machine struct {
	last *State // published
	w    State  // being written; its maps are the writer's own handles
	// batch marks what was made since the last Publish and may be changed in place.
	batch  *batch
	events []Event
	// touched are the paths whose records have changed since the last Publish, if there is an index.
	touched []string

	// Of the command in execution.
	now     uint64 // its revision, if it changes something
	changed bool
	changes []byte // digest of what it changed, for the state hash
	cmd     command.Command
	denied  struct { // what may refused last
		path  string
		right command.Right
	}
}

// NewMachine returns a writer that goes on from s, which stays as it is, but for its index.
func NewMachine(s *State) *Machine {
	m := &Machine{last: s, w: *s, batch: new(batch)}
	m.w.entries = s.entries.fork()
	m.w.ephemerals = s.ephemerals.fork()
	m.w.locks = s.locks.fork()
	m.w.owners = s.owners.fork()
	m.w.holders = s.holders.fork()
	m.w.waiters = s.waiters.fork()
	m.w.delays = s.delays.fork()
	m.w.sessions = s.sessions.fork()
	m.w.slots = s.slots.fork()
	m.w.nodes = s.nodes.fork()
	m.w.floors = s.floors.fork()
	m.w.opens = s.opens.fork()
	m.w.openers = s.openers.fork()
	return m
}

// State is what Publish returned last, or what NewMachine was given.
func (m *Machine) State() *State { return m.last }

// Publish ends a batch. It returns the state after all commands so far, and their events since the last Publish in the
// order of revisions. Neither shares memory with what the Machine writes from now on.
func (m *Machine) Publish() (*State, []Event) {
	s := m.w
	s.entries = m.w.entries.publish(m.last.entries)
	s.ephemerals = m.w.ephemerals.publish(m.last.ephemerals)
	s.locks = m.w.locks.publish(m.last.locks)
	s.owners = m.w.owners.publish(m.last.owners)
	s.holders = m.w.holders.publish(m.last.holders)
	s.waiters = m.w.waiters.publish(m.last.waiters)
	s.delays = m.w.delays.publish(m.last.delays)
	s.sessions = m.w.sessions.publish(m.last.sessions)
	s.slots = m.w.slots.publish(m.last.slots)
	s.nodes = m.w.nodes.publish(m.last.nodes)
	s.floors = m.w.floors.publish(m.last.floors)
	s.opens = m.w.opens.publish(m.last.opens)
	s.openers = m.w.openers.publish(m.last.openers)
	m.reindex() // before anybody has s
	m.last = &s
	m.batch = new(batch)
	events := m.events
	m.events = nil
	for i := 1; i < len(events); i++ {
		events[i-1].More = events[i-1].Revision == events[i].Revision
	}
	return m.last, events
}

// Advance notes that a raft entry without commands was applied.
func (m *Machine) Advance(index, term uint64) {
	if index > m.w.index {
		// All commands at or below the last multiple before index have come, and this is the hash after them.
		if at := (index - 1) / markEvery * markEvery; at > m.w.mark.Index {
			m.w.mark = Mark{at, m.w.hash}
		}
		m.w.index = index
	}
	m.w.term = term
}

// Apply executes one encoded command of the raft entry index. What it decides is in the result; nothing of raw is kept.
// Data in the result aliases the state. An error means that raw cannot be decoded: nothing was done, and the node must
// stop, because others may have understood it.
func (m *Machine) Apply(index, term uint64, raw []byte) (command.Result, error) {
	if err := command.Decode(raw, &m.cmd); err != nil {
		return command.Result{}, err
	}
	m.Advance(index, term)
	m.now, m.changed, m.changes = m.w.revision+1, false, m.changes[:0]
	r := m.answer(&m.cmd)
	if m.changed {
		m.w.revision = m.now
	}
	m.changes = command.AppendResult(m.changes, &r)
	m.changes = binary.LittleEndian.AppendUint64(m.changes, m.w.revision)
	m.w.hash = xxhash.Checksum64S(m.changes, xxhash.Checksum64S(raw, m.w.hash))
	return r, nil
}

// revision is that of the command in execution as it stands: its own once it changed something.
func (m *Machine) revision() uint64 {
	if m.changed {
		return m.now
	}
	return m.w.revision
}

// note takes a change into the state hash and makes the command one that has a revision.
func (m *Machine) note(what byte, name string, numbers ...uint64) {
	m.changed = true
	m.changes = append(m.changes, what)
	m.changes = binary.AppendUvarint(m.changes, uint64(len(name)))
	m.changes = append(m.changes, name...)
	for _, n := range numbers {
		m.changes = binary.AppendUvarint(m.changes, n)
	}
}

// emit adds an event of the command in execution.
func (m *Machine) emit(e Event) {
	e.Revision = m.now
	m.events = append(m.events, e)
}

// answer executes c, or finds the answer that an earlier copy of it got.
func (m *Machine) answer(c *command.Command) (r command.Result) {
	switch c.Kind {
	case command.KindBarrier, command.KindAssignSlot, command.KindOpenSession, command.KindCloseSession,
		command.KindExpireSessions, command.KindClearDelay, command.KindCellKey, command.KindRaiseLevel, command.KindProbe:
		r = m.execute(c)
		if r.Revision == 0 {
			r.Revision = m.revision()
		}
		return r
	}
	if c.Session == 0 || c.Kind == command.KindUnlock && c.Seq == 0 {
		// Nobody's command has no window. Neither has the leader's Unlock: naming the grant makes doing it twice the same
		// as doing it once.
		r = m.execute(c)
		r.Revision = m.revision()
		return r
	}
	s := m.session(c.Session)
	switch {
	case s == nil:
		return command.Result{Code: command.SessionExpired, Revision: m.w.revision}
	case s.principal != c.Principal: // before anything of the session's own is touched
		return command.Result{Code: command.Permission, Revision: m.w.revision}
	case c.Seq == 0:
		return command.Result{Code: command.BadCommand, Revision: m.w.revision}
	}
	s.acknowledge(c.AckedBelow)
	if o, ok := m.w.owners.get(key128(s.id, c.Seq)); ok && !o.held() {
		return queued(o) // its place is open, whatever has been acknowledged
	}
	if i, ok := s.search(c.Seq); ok {
		// Nothing else encodes an answer, and Read has decoded those that came from a snapshot.
		_, _ = command.DecodeResult(s.answers[i].raw, &r)
		return r
	}
	switch {
	case c.Seq < s.acked:
		return command.Result{Code: command.Old, Revision: m.w.revision}
	case s.full() && c.Seq > s.acked:
		return command.Result{Code: command.WindowFull, Revision: m.w.revision}
	}
	r = m.execute(c)
	r.Revision = m.revision()
	if !r.Queued {
		s.remember(c.Seq, &r)
	}
	return r
}

func (m *Machine) execute(c *command.Command) command.Result {
	r := m.decide(c)
	if r.Code == command.Permission && c.Kind != command.KindCloseSession {
		r.Path, r.Right = m.denied.path, m.denied.right
	}
	return r
}

func (m *Machine) decide(c *command.Command) command.Result {
	switch c.Kind {
	case command.KindAssignSlot:
		return m.assignSlot(c)
	case command.KindOpenSession:
		return m.openSession(c)
	case command.KindCloseSession:
		return m.closeSession(c)
	case command.KindExpireSessions:
		if c.Term != m.w.term {
			return command.Result{Code: command.Void}
		}
		m.endSessions(c.Sessions, true)
		return command.Result{}
	case command.KindClearDelay:
		return m.clearDelay(c)
	case command.KindSet:
		return m.set(c)
	case command.KindCreate:
		return m.create(c)
	case command.KindCompareAndSwap:
		return m.compareAndSwap(c)
	case command.KindAdd:
		return m.add(c)
	case command.KindSub:
		return m.sub(c)
	case command.KindDelete:
		return m.delete(c)
	case command.KindDeleteTree:
		return m.deleteTree(c)
	case command.KindTxn:
		return m.txn(c)
	case command.KindLock:
		return m.lock(c)
	case command.KindUnlock:
		return m.unlock(c)
	case command.KindCancelLock:
		return m.cancelLock(c)
	case command.KindRaiseLevel:
		return m.raiseLevel(c)
	case command.KindCellKey:
		return m.setKey(c)
	case command.KindOpen:
		return m.open(c)
	case command.KindCloseHandle:
		return m.closeHandle(c)
	case command.KindSetACL:
		return m.setACL(c)
	}
	return command.Result{} // Barrier: its entry's term is noted
}

// session gives the session for changes, or nil.
func (m *Machine) session(id uint64) *session {
	key := key64(id)
	s, ok := m.w.sessions.get(key)
	if !ok {
		return nil
	}
	if s.batch != m.batch {
		s = s.clone(m.batch)
		m.w.sessions.set(key, s)
	}
	return s
}

// keep copies what is to outlive the command's bytes.
func keep(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return bytes.Clone(b)
}

// raiseLevel notes that the commands of a feature level are used from now on. It never goes down.
func (m *Machine) raiseLevel(c *command.Command) command.Result {
	switch {
	case c.Term != m.w.term:
		return refuse(command.Void)
	case uint64(c.Level) > m.w.level:
		m.w.level = uint64(c.Level)
		m.note(noteLevel, "", m.w.level)
	}
	return command.Result{}
}
