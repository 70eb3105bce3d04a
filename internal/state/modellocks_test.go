package state

import (
	"maps"
	"slices"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// What the model says of locks and of sessions that end.

// at lists the holders of path, or those who wait.
func (m *model) at(path string, held bool) (list []*modelOwner) {
	for _, o := range m.owners {
		if o.path == path && o.held == held {
			list = append(list, o)
		}
	}
	return list
}

func (m *model) admits(o *modelOwner) bool {
	holders := m.at(o.path, true)
	if len(holders) == 0 {
		return m.locks[o.path].delay == 0
	}
	return holders[0].mode == fence.Shared && o.mode == fence.Shared
}

func (m *model) grant(o *modelOwner) {
	first := len(m.at(o.path, true)) == 0
	if first {
		m.locks[o.path] = modelLock{generation: m.now()}
	}
	o.held, m.changed = true, true
	if o.publish {
		m.write(o.path, o.data)
	}
	if f, ok := m.files[o.path]; ok && first {
		f.lockGen = m.now()
		m.files[o.path] = f
		m.touch(o.path)
	}
}

func (m *model) leave(o *modelOwner, lost bool) {
	m.owners = slices.DeleteFunc(m.owners, func(x *modelOwner) bool { return x == o })
	m.changed = true
	if !o.held {
		return
	}
	l := m.locks[o.path]
	if lost {
		l.delay = max(l.delay, o.delay)
	}
	m.locks[o.path] = l
	if l.delay == 0 && len(m.at(o.path, true)) == 0 {
		delete(m.locks, o.path)
	}
}

// settle grants every lock that can be granted, path by path.
func (m *model) settle() {
	paths := map[string]bool{}
	for _, o := range m.owners {
		paths[o.path] = true
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		for {
			queue := m.at(path, false)
			if len(queue) == 0 || !m.admits(queue[0]) {
				break
			}
			o, s := queue[0], m.sessions[queue[0].session]
			r := command.Result{Revision: m.now()}
			if o.publish {
				r.Code = m.writable(path)
			}
			if o.instance != 0 && m.files[path].instance != o.instance {
				r.Code = command.Gone
			}
			if r.Code == command.OK {
				m.grant(o)
				r.Generation = m.locks[path].generation
			} else {
				m.leave(o, false)
			}
			if o.seq >= s.acked {
				s.answers[o.seq] = r
			}
		}
	}
}

func (m *model) end(ids []uint64, lost bool) {
	for _, id := range ids {
		if m.sessions[id] == nil {
			continue
		}
		delete(m.sessions, id)
		m.opens = slices.DeleteFunc(m.opens, func(o modelOpen) bool { return o.session == id })
		m.changed = true
		for _, o := range slices.Clone(m.owners) {
			if o.session == id {
				m.leave(o, lost)
			}
		}
	}
	// Whatever belongs to nobody goes, from the leaves up.
	paths := slices.Sorted(maps.Keys(m.files))
	slices.Reverse(paths)
	for _, p := range paths {
		f, ok := m.files[p]
		switch {
		case !ok:
		case f.session == 0:
			m.collect(p)
		case m.sessions[f.session] != nil:
		case len(m.children(p)) == 0 && !(f.dir && m.isOpen(p)):
			m.remove(p)
		default:
			f.session = 0
			m.files[p] = f
			m.touch(p)
		}
	}
	m.settle()
}
