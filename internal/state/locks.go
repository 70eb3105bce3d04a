package state

import (
	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// How a lock changes hands. Owners of one path are in the order of their tickets: holders first, then the queue. A
// command that takes owners away calls settle for their paths, once each and after it has taken all of them: settle
// grants the lock to those at the head of the queue whom it admits, and they get this command's revision.

func queued(o *owner) command.Result { return command.Result{Revision: o.ticket, Queued: true} }

func (m *Machine) putLock(path string, l lock) {
	m.w.locks.set(path, &l)
	m.note(noteLock, path, uint64(l.mode), l.generation, l.delay, uint64(l.holders), uint64(l.waiters))
	if l.shut() {
		m.w.delays.set(path, &l)
	} else if m.w.delays.len() > 0 {
		m.w.delays.delete(path)
	}
}

func (m *Machine) putOwner(o *owner) {
	m.w.owners.set(key128(o.session, o.seq), o)
	m.note(noteOwner, o.path, o.session, o.seq, o.ticket, o.since, o.delay, o.hold, uint64(o.mode))
}

func (m *Machine) lockOf(path string) lock {
	if l, ok := m.w.locks.get(path); ok {
		return *l
	}
	return lock{}
}

// emitLock adds an event of a lock, with the entry at its path.
func (m *Machine) emitLock(kind EventKind, o *owner, generation uint64) {
	e := Event{Kind: kind, Path: o.path, Session: o.session, Seq: o.seq, Generation: generation, Entry: command.Entry{Path: o.path}}
	if at := m.w.entry(o.path); at != nil {
		e.Entry = at.view()
	}
	m.emit(e)
}

func (m *Machine) lock(c *command.Command) command.Result {
	if !fits(c.Path) || c.Session == 0 || c.Mode != fence.Exclusive && c.Mode != fence.Shared {
		return refuse(command.BadCommand)
	}
	if code := m.judge(c, command.RightWrite); code != command.OK {
		return refuse(code)
	}
	if c.HasData {
		if code := m.writable(m.w.entry(c.Path), c.Path); code != command.OK {
			return refuse(code)
		}
	}
	l := m.lockOf(c.Path)
	free := l.waiters == 0 && l.admits(c.Mode)
	if !free && c.Try {
		return refuse(command.LockHeld)
	}
	o := &owner{session: c.Session, seq: c.Seq, path: c.Path, ticket: m.now, mode: c.Mode, delay: c.Delay, hold: c.Hold, publish: c.HasData, data: keep(c.Data)}
	for i := range c.Conds {
		if cond := &c.Conds[i]; cond.Kind == command.CondInstance && about(cond, c.Path) == c.Path {
			o.instance = cond.Generation
		}
	}
	if free {
		m.grant(o)
		return command.Result{Generation: m.lockOf(c.Path).generation}
	}
	l.waiters++
	m.w.counts.Waiters++
	m.session(o.session).waits++
	m.w.waiters.set(ticketKey(o.path, o.ticket), o)
	m.putOwner(o)
	m.putLock(o.path, l)
	m.emitLock(LockContended, o, l.generation)
	return queued(o)
}

// grant makes o, which is not in the queue, a holder.
func (m *Machine) grant(o *owner) {
	held := *o
	held.since, held.publish, held.data, held.instance = m.now, false, nil, 0
	l := m.lockOf(o.path)
	first := l.holders == 0
	if first {
		l.mode, l.generation = o.mode, m.now
		m.w.counts.Locks++
	}
	l.holders++
	m.w.holders.set(ticketKey(o.path, o.ticket), &held)
	m.putOwner(&held)
	m.putLock(o.path, l)
	e := m.w.entry(o.path)
	if o.publish {
		e = m.write(e, o.path, o.data)
	}
	if first && e != nil && e.lockGen != m.now {
		n := *e
		n.lockGen, n.revision = m.now, m.now
		m.put(e, &n)
	}
	m.emitLock(LockAcquired, &held, l.generation)
}

// settle hands the lock at path on, and forgets it when nobody has to do with it.
func (m *Machine) settle(path string) {
	for {
		l, ok := m.w.locks.get(path)
		if !ok {
			return
		}
		o, waiting := m.w.waiters.first(path + "\x00")
		if !waiting || !l.admits(o.mode) {
			break
		}
		m.unqueue(o)
		s := m.session(o.session)
		if code := m.grantable(o); code != command.OK {
			m.w.owners.delete(key128(o.session, o.seq))
			s.remember(o.seq, &command.Result{Code: code, Revision: m.now})
			m.emitLock(LockRefused, o, 0)
			continue
		}
		m.grant(o)
		s.remember(o.seq, &command.Result{Revision: m.now, Generation: m.lockOf(path).generation})
	}
	if l := m.lockOf(path); l.holders == 0 && l.waiters == 0 && l.delay == 0 {
		m.w.locks.delete(path)
		m.note(noteLock, path)
	}
}

// grantable looks again at what a waiter asked for: the tree may have changed since its command came. A grant without the
// publication would lie to observers, and one for another entry of the same path to the holder of a handle.
func (m *Machine) grantable(o *owner) command.Code {
	e := m.w.entry(o.path)
	if o.instance != 0 && (e == nil || e.instance != o.instance) {
		return command.Gone
	}
	if o.publish {
		return m.writable(e, o.path)
	}
	return command.OK
}

// unqueue takes a waiter out of the queue; it stays among the owners.
func (m *Machine) unqueue(o *owner) {
	l := m.lockOf(o.path)
	l.waiters--
	m.w.counts.Waiters--
	m.session(o.session).waits--
	m.w.waiters.delete(ticketKey(o.path, o.ticket))
	m.putLock(o.path, l)
}

// drop ends an owner, holding or waiting. lost says that its session expired, so that its lock-delay counts. The caller
// settles the path.
func (m *Machine) drop(o *owner, lost bool) {
	m.w.owners.delete(key128(o.session, o.seq))
	m.note(noteLeft, o.path, o.session, o.seq)
	if !o.held() {
		m.unqueue(o)
		return
	}
	l := m.lockOf(o.path)
	generation := l.generation
	l.holders--
	if lost {
		l.delay = max(l.delay, o.delay)
	}
	m.w.holders.delete(ticketKey(o.path, o.ticket))
	if l.holders == 0 {
		m.w.counts.Locks--
		l.mode = 0
		if l.delay == 0 {
			l.generation = 0
		}
	}
	m.putLock(o.path, l)
	m.emitLock(LockReleased, o, generation)
	if l.shut() {
		m.emitLock(LockDelayed, &owner{path: o.path}, generation)
	}
}

func (m *Machine) unlock(c *command.Command) command.Result {
	switch {
	case !fits(c.Path) || c.Session == 0 || c.Seq == 0 && c.Term == 0:
		return refuse(command.BadCommand)
	case c.Seq == 0 && c.Term != m.w.term:
		return refuse(command.Void)
	}
	o, ok := m.w.owners.get(key128(c.Session, c.LockSeq))
	if !ok || !o.held() || o.path != c.Path || m.lockOf(c.Path).generation != c.Generation {
		return refuse(command.NotHeld)
	}
	m.drop(o, false)
	m.settle(c.Path)
	return command.Result{}
}

func (m *Machine) cancelLock(c *command.Command) command.Result {
	if !fits(c.Path) || c.Session == 0 || c.LockSeq == 0 || c.LockSeq == c.Seq {
		return refuse(command.BadCommand)
	}
	s := m.session(c.Session)
	o, ok := m.w.owners.get(key128(c.Session, c.LockSeq))
	if ok && o.path != c.Path {
		return refuse(command.BadCommand)
	}
	if ok {
		m.drop(o, false)
		m.settle(c.Path)
	}
	// A copy of the Lock may still come, the first one even. Where another answer stands, there is nothing to undo.
	if _, answered := s.search(c.LockSeq); ok || !answered {
		s.remember(c.LockSeq, &command.Result{Code: command.Cancelled, Revision: m.revision()})
	}
	return command.Result{}
}

func (m *Machine) clearDelay(c *command.Command) command.Result {
	l, ok := m.w.locks.get(c.Path)
	if !ok || c.Term != m.w.term || !l.shut() || l.generation != c.Generation {
		return refuse(command.Void)
	}
	open := *l
	open.delay, open.generation = 0, 0
	m.putLock(c.Path, open)
	m.settle(c.Path)
	return command.Result{}
}
