package state

import (
	"maps"
	"slices"

	"github.com/chubbygo/chubby/internal/command"
)

// What the model says of conditions and operations, and of a Txn of them.

func (m *model) cond(c command.Cond, path string) command.Code {
	if c.Path != "" {
		path = c.Path
	}
	if c.Kind == command.CondHolds {
		for _, o := range m.at(c.Sequencer.Path, true) {
			if q := c.Sequencer; q.Cell == "local" && q.Epoch == 7 && q.Mode == o.mode && q.Generation == m.locks[o.path].generation {
				return command.OK
			}
		}
		return command.StaleSequencer
	}
	if !valid(path) {
		return command.BadCommand
	}
	if c.Kind == command.CondInstance {
		if m.files[path].instance != c.Generation || c.Generation == 0 {
			return command.Gone
		}
		return command.OK
	}
	f, ok := m.files[path]
	switch {
	case c.Kind == command.CondAbsent && ok:
		return command.Exists
	case c.Kind == command.CondAbsent, c.Kind == command.CondGeneration && c.Generation == 0 && !ok:
		return command.OK
	case !ok:
		return command.NotFound
	case c.Kind == command.CondGeneration && (c.Generation == 0 || c.Generation != f.generation),
		c.Kind == command.CondValue && (f.dir || f.data != string(c.Value)):
		return command.Conflict
	}
	return command.OK
}

func (m *model) op(o command.Op, session uint64) (command.Entry, command.Code) {
	e := command.Entry{Path: o.Path}
	if !valid(o.Path) || o.Path == "/" && o.Kind != command.OpGet {
		return e, command.BadCommand
	}
	f, exists := m.files[o.Path]
	switch o.Kind {
	case command.OpGet:
		if e.Stat = m.stat(o.Path); len(f.data) > 0 {
			e.Data = []byte(f.data)
		}
		return e, command.OK
	case command.OpSet:
		if code := m.writable(o.Path); code != command.OK {
			return e, code
		}
		m.write(o.Path, string(o.Data))
	case command.OpCreate:
		switch code := m.writable(o.Path); {
		case o.Dir && len(o.Data) > 0 || o.Ephemeral && session == 0 || !validNames(o.ACL):
			return e, command.BadCommand
		case exists:
			return e, command.Exists
		case code != command.OK:
			return e, code
		}
		f = modelFile{data: string(o.Data), dir: o.Dir, ephemeral: o.Ephemeral, acl: o.ACL}
		if o.Ephemeral && session != handleMade {
			f.session = session
		}
		m.add(o.Path, f)
	case command.OpAdd:
		if _, code := m.count(o.Path, o.Number, o.Bound, false); code != command.OK {
			return e, code
		}
		e.Data = []byte(m.files[o.Path].data)
	case command.OpDelete:
		switch {
		case !exists:
			return e, command.NotFound
		case len(m.at(o.Path, true)) > 0:
			return e, command.LockHeld
		case len(m.children(o.Path)) > 0:
			return e, command.NotEmpty
		}
		m.remove(o.Path)
	}
	e.Stat = m.stat(o.Path)
	return e, command.OK
}

func (m *model) txn(c *command.Command) command.Result {
	ops, r := c.Then, command.Result{Succeeded: true}
	for _, cond := range c.If {
		if cond.Kind != command.CondHolds && !valid(cond.Path) {
			return command.Result{Code: command.BadCommand, Path: cond.Path}
		}
	}
	for _, cond := range c.If {
		if !m.mayAsk(c.Principal, cond, "") {
			return m.denied
		}
	}
	for _, cond := range c.If {
		if code := m.cond(cond, ""); code != command.OK {
			ops, r = c.Else, command.Result{Path: cond.Path}
			if cond.Kind == command.CondHolds {
				r.Path = cond.Sequencer.Path
			}
			break
		}
	}
	for _, o := range ops {
		at, right := o.Path, command.RightWrite
		switch o.Kind {
		case command.OpGet:
			right = command.RightRead
		case command.OpCreate:
			if valid(at) {
				at = parentOf(at)
			}
		}
		if valid(at) && !m.may(c.Principal, at, right) {
			m.denied.Succeeded = r.Succeeded
			return m.denied
		}
	}
	before, changed, opens := maps.Clone(m.files), m.changed, slices.Clone(m.opens)
	for _, o := range ops {
		e, code := m.op(o, c.Session)
		if code != command.OK {
			m.files, m.changed, m.opens = before, changed, opens
			return command.Result{Code: code, Path: o.Path, Succeeded: r.Succeeded}
		}
		r.Entries = append(r.Entries, e)
	}
	return r
}
