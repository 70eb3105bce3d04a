package state

import (
	"cmp"
	"slices"

	"github.com/chubbygo/chubby/internal/command"
)

// slotsMax is how many nodes a cell can tell apart at a time: sonyflake's machine id has 16 bits.
const slotsMax = 1 << 16

func slotKey(n uint32) string { return key64(uint64(n)) }

// assignSlot gives each node a slot of its own, in the order of asking. When all have been given away, the one that was
// given away first goes to another node, unless sessions of its owner live: then the next.
func (m *Machine) assignSlot(c *command.Command) command.Result {
	if c.Node == "" {
		return refuse(command.BadCommand)
	}
	if n, ok := m.w.nodes.get(c.Node); ok {
		return command.Result{Slot: n}
	}
	n := uint32(m.w.slots.len())
	if n == slotsMax {
		var ok bool
		if n, ok = m.idleSlot(); !ok {
			return refuse(command.Slots)
		}
		old, _ := m.w.slots.get(slotKey(n))
		m.w.nodes.delete(old.node)
	}
	m.w.slots.set(slotKey(n), &slot{node: c.Node, revision: m.now})
	m.w.nodes.set(c.Node, n)
	m.note(noteSlot, c.Node, uint64(n))
	return command.Result{Slot: n}
}

func (m *Machine) idleSlot() (n uint32, ok bool) {
	busy := make([]bool, slotsMax)
	m.w.sessions.all(func(_ string, s *session) bool {
		busy[s.slot] = true
		return true
	})
	var oldest uint64
	i := uint32(0)
	m.w.slots.all(func(_ string, s *slot) bool {
		if !busy[i] && (!ok || s.revision < oldest) {
			n, ok, oldest = i, true, s.revision
		}
		i++
		return true
	})
	return n, ok
}

// principalMax bounds the name of a principal, in bytes.
const principalMax = 255

func (m *Machine) openSession(c *command.Command) command.Result {
	if c.Session == 0 || c.Slot >= slotsMax || len(c.Principal) > principalMax {
		return refuse(command.BadCommand)
	}
	// A second copy finds its session alive, or an id that is used up. So no late copy reopens what was closed.
	floor, _ := m.w.floors.get(slotKey(c.Slot))
	if s, ok := m.w.sessions.get(key64(c.Session)); ok {
		if s.nonce == c.Nonce && s.principal == c.Principal {
			return command.Result{Revision: s.opened}
		}
		return command.Result{Code: command.SessionRefused, Floor: max(floor, c.Session)}
	}
	if c.Session <= floor {
		return command.Result{Code: command.SessionRefused, Floor: floor}
	}
	m.w.floors.set(slotKey(c.Slot), c.Session)
	m.w.sessions.set(key64(c.Session), &session{
		id: c.Session, nonce: c.Nonce, slot: c.Slot, node: c.Node, name: c.Name, principal: c.Principal, lease: c.Lease, grace: c.Grace, caching: c.Caching, opened: m.now, batch: m.batch,
	})
	m.w.counts.Sessions++
	m.note(noteSession, c.Name, c.Session)
	m.emit(Event{Kind: SessionOpened, Session: c.Session})
	return command.Result{}
}

func (m *Machine) closeSession(c *command.Command) command.Result {
	if s, ok := m.w.sessions.get(key64(c.Session)); ok && s.principal != c.Principal {
		return refuse(command.Permission)
	}
	m.endSessions([]uint64{c.Session}, false)
	return command.Result{}
}

// endSessions ends those of the sessions that live, and sorts ids. All of them leave all locks and queues before any lock is handed on:
// none of them gets what another of them had, and each path has at most one new generation. Ephemeral entries go before
// that too, so that what a new holder publishes stays.
func (m *Machine) endSessions(ids []uint64, lost bool) {
	slices.Sort(ids)
	var paths []string
	var entries []*entry
	for _, id := range slices.Compact(ids) {
		key := key64(id)
		s, ok := m.w.sessions.get(key)
		if !ok {
			continue
		}
		var owners []*owner
		m.w.owners.prefix(key, func(_ string, o *owner) bool {
			owners = append(owners, o)
			return true
		})
		for _, o := range owners {
			m.drop(o, lost)
			paths = append(paths, o.path)
		}
		m.w.ephemerals.prefix(key, func(_ string, path string) bool {
			entries = append(entries, m.w.entry(path))
			return true
		})
		var opens []*open
		m.w.opens.prefix(key, func(_ string, o *open) bool {
			opens = append(opens, o)
			return true
		})
		for _, o := range opens {
			m.dropOpen(o)
			entries = append(entries, m.w.entry(o.path))
		}
		m.w.sessions.delete(key)
		m.w.counts.Sessions--
		m.note(noteEnded, "", s.id)
		m.emit(Event{Kind: SessionEnded, Session: s.id})
	}
	m.dropEphemerals(entries)
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		m.settle(path)
	}
}

// dropEphemerals looks at entries whose sessions ended or had them open, children before parents, and removes those that
// nothing keeps any more. A directory that still has children, or is open, stays until that is over.
func (m *Machine) dropEphemerals(entries []*entry) {
	slices.SortFunc(entries, func(a, b *entry) int { return cmp.Compare(b.path, a.path) })
	for _, e := range entries {
		e = m.w.entry(e.path) // its record may have changed since it was listed, or it went with its last child
		switch {
		case e == nil:
		case e.session == 0 || m.w.sessions.has(key64(e.session)): // it was open
			if m.w.abandoned(e) {
				m.remove(e)
			}
		case e.children == 0 && !(e.dir && m.w.isOpen(e.path)):
			m.remove(e)
		default:
			n := *e
			n.session, n.revision = 0, m.now
			m.w.ephemerals.delete(key64(e.session) + e.path)
			m.put(e, &n)
		}
	}
}
