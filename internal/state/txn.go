package state

import (
	"github.com/chubbygo/chubby/internal/command"
)

// txnBytesMax bounds the contents that one Txn may bring back: an answer is kept in the session's window and has to fit
// into a frame.
const txnBytesMax = 1 << 20

// checkpoint is what an operation of a Txn can change.
type checkpoint struct {
	entries    omap[*entry]
	ephemerals omap[string]
	opens      omap[*open]
	openers    omap[*open]
	guarded    bool
	counts     Counts
	events     int
	changed    bool
	changes    int
}

func (m *Machine) checkpoint() checkpoint {
	// The copies are of the writer's own handles, and nobody but the writer sees them.
	return checkpoint{
		entries: omap[*entry]{m.w.entries.m.Copy(), m.w.entries.dirty}, ephemerals: omap[string]{m.w.ephemerals.m.Copy(), m.w.ephemerals.dirty},
		opens: omap[*open]{m.w.opens.m.Copy(), m.w.opens.dirty}, openers: omap[*open]{m.w.openers.m.Copy(), m.w.openers.dirty},
		guarded: m.w.guarded, counts: m.w.counts, events: len(m.events), changed: m.changed, changes: len(m.changes),
	}
}

func (m *Machine) rollback(c checkpoint) {
	m.w.entries, m.w.ephemerals, m.w.counts = c.entries, c.ephemerals, c.counts
	m.w.opens, m.w.openers, m.w.guarded = c.opens, c.openers, c.guarded
	clear(m.events[c.events:])
	m.events, m.changed, m.changes = m.events[:c.events], c.changed, m.changes[:c.changes]
}

func (m *Machine) txn(c *command.Command) command.Result {
	for i := range c.If {
		if cond := &c.If[i]; cond.Kind != command.CondHolds && !canonical(cond.Path) {
			return command.Result{Code: command.BadCommand, Path: cond.Path}
		}
	}
	if code := m.mayAsk(c.If, ""); code != command.OK {
		return refuse(code)
	}
	ops, r := c.Then, command.Result{Succeeded: true}
	if code, path := m.holdsAll(c.If, ""); code != command.OK {
		ops, r = c.Else, command.Result{Path: path}
	}
	if len(ops) == 0 {
		return r
	}
	for i := range ops {
		if code := m.mayOp(&ops[i]); code != command.OK {
			return command.Result{Code: code, Succeeded: r.Succeeded}
		}
	}
	// Each operation is done whole or not at all. So one alone needs no way back, and the common Txn no copy.
	var back checkpoint
	if len(ops) > 1 {
		back = m.checkpoint()
	}
	r.Entries = make([]command.Entry, 0, len(ops))
	size := 0
	for i := range ops {
		e, code := m.op(&ops[i])
		size += len(e.Data)
		if size > txnBytesMax && code == command.OK {
			code = command.BadCommand
		}
		if code != command.OK {
			if len(ops) > 1 {
				m.rollback(back)
			}
			return command.Result{Code: code, Path: ops[i].Path, Succeeded: r.Succeeded}
		}
		r.Entries = append(r.Entries, e)
	}
	return r
}

// op does one operation and returns the entry as it left or found it; without data except where that is the answer.
func (m *Machine) op(o *command.Op) (command.Entry, command.Code) {
	gone := command.Entry{Path: o.Path}
	var e *entry
	var code command.Code
	switch o.Kind {
	case command.OpGet:
		if !canonical(o.Path) {
			return gone, command.BadCommand
		}
		if e = m.w.entry(o.Path); e == nil {
			return gone, command.OK
		}
		return e.view(), command.OK
	case command.OpSet:
		if !fits(o.Path) {
			return gone, command.BadCommand
		}
		e, code = m.doSet(o.Path, o.Data)
	case command.OpDelete:
		if !fits(o.Path) {
			return gone, command.BadCommand
		}
		return gone, m.doDelete(o.Path)
	case command.OpCreate:
		e, code = m.createOwned(entry{path: o.Path, data: o.Data, dir: o.Dir, ephemeral: o.Ephemeral}, o.ACL)
	case command.OpAdd:
		if e, _, code = m.doAdd(o.Path, o.Number, o.Bound); code == command.OK {
			return e.view(), code
		}
	}
	if code != command.OK {
		return gone, code
	}
	v := e.view()
	v.Data = nil
	return v, command.OK
}
