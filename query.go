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
	switch q.Kind {
	case wire.QueryEntry:
		a.Entry, _ = root.Get(q.Path)
	case wire.QueryList:
		a.Entries, a.Code = root.List(q.Path)
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
	case wire.QueryHolds:
		a.Holds = root.Holds(q.Sequencer)
	default:
		a.Code = command.BadCommand
	}
	return a
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
