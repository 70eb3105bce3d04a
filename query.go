package chubby

import (
	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// ask answers a query from a state. It is what every read comes down to, on a node for its own callers and on a member
// for dialled clients. Contents in the answer alias the state.
func ask(root *state.State, q wire.Query) wire.Answer {
	a := wire.Answer{Revision: root.Revision()}
	if !permits(root, &q, &a) {
		return a
	}
	if q.Sequencer != (Sequencer{}) {
		a.Holds = root.Holds(q.Sequencer)
	}
	switch q.Kind {
	case wire.QueryEntry:
		a.Entry, _ = root.Get(q.Path)
	case wire.QueryList:
		a.Entries, a.Code = root.List(q.Path)
		a.Entry, _ = root.Get(q.Path)
		a.Entry.Data = nil
	case wire.QueryLock:
		a.Lock = lockState(root, q.Path)
	case wire.QueryLeader:
		a.Lock = lockState(root, q.Path)
		a.Entry, _ = root.Get(q.Path)
	case wire.QueryGrant:
		g := &a.Grant
		g.Generation, g.Held, g.Waiting = root.Grant(q.Session, q.Seq, q.Path)
		_, g.Live = root.Session(q.Session)
		a.Entry, _ = root.Get(q.Path)
		a.Entry.Data = nil
	case wire.QueryHolds: // that is answered already
	case wire.QueryHandle:
		if len(q.Seal) > 0 && !root.Sealed(q.Seal, q.Path, q.Instance, q.Write, q.Change) {
			a.Code = command.BadSeal
			return a
		}
		a.Entry, _ = root.Get(q.Path)
		a.Entry.Data = nil
		a.Seal = root.Seal(q.Path, a.Entry.Stat.Instance, q.Write, q.Change)
	default:
		a.Code = command.BadCommand
	}
	return a
}

// permits judges whether who asks may know the answer. If not, it says in a what is not granted.
func permits(root *state.State, q *wire.Query, a *wire.Answer) bool {
	if !root.Guarded() || q.Kind == wire.QueryGrant { // a session's own, and told to those who have it
		return true
	}
	rights, path := []command.Right{command.RightRead}, q.Path
	switch q.Kind {
	case wire.QueryHandle:
		rights = command.OpenRights(q.Write, q.Change)
	case wire.QueryHolds:
		path = q.Sequencer.Path
	}
	for _, right := range rights {
		if !root.Allowed(q.Principal, path, right) {
			a.Code, a.Right = command.Permission, right
			a.Entry.Path = path
			return false
		}
	}
	if q.Sequencer.Path != "" && !root.Allowed(q.Principal, q.Sequencer.Path, command.RightRead) {
		a.Code, a.Right = command.Permission, command.RightRead
		a.Entry.Path = q.Sequencer.Path
		return false
	}
	return true
}

func lockState(root *state.State, path string) wire.LockState {
	v := root.Lock(path)
	s := wire.LockState{Mode: v.Mode, Generation: v.Generation, Waiters: v.Waiters, Delayed: v.Delayed}
	if len(v.Holders) > 0 {
		s.Holders = make([]wire.LockHolder, len(v.Holders))
		for i, h := range v.Holders {
			s.Holders[i] = wire.LockHolder{Session: h.Session, Name: h.Name, Since: h.Since}
		}
	}
	return s
}
