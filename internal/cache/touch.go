package cache

import (
	"strings"

	"github.com/chubbygo/chubby/internal/command"
)

// Touch is what one command may change of what clients may have cached, from before it is proposed until its outcome is
// applied or known to be none. It is more rather than less: whether a condition holds or a lock is free is not known
// before the command is executed.
type Touch struct {
	// Whose command it is, 0 = nobody's. While a session is being ended no other command of it begins.
	session uint64
	// ends are the sessions that the command ends. What goes with them is known only once all their other commands are
	// decided.
	ends []uint64

	paths []string // entries; with each the ancestors too, since a write makes those that are missing
	trees []string // all that is at or below
	all   bool     // everything: rights may change anywhere

	missing int // acknowledgements and other things still waited for
}

// aclDir is where the access control lists are; what happens there can change who may read what.
const aclDir = "/acl"

// Of tells what c touches. It reads c only during the call, except for its strings.
func Of(c *command.Command) *Touch {
	t := &Touch{session: c.Session}
	switch c.Kind {
	case command.KindBarrier, command.KindAssignSlot, command.KindOpenSession, command.KindRaiseLevel,
		command.KindCellKey:
	case command.KindCloseSession:
		t.session, t.ends = 0, []uint64{c.Session}
	case command.KindExpireSessions:
		t.ends = append(t.ends, c.Sessions...)
	case command.KindSet, command.KindCompareAndSwap, command.KindAdd, command.KindSub,
		// Grants change the entry's lock generation, and may publish; whoever gives a lock up hands it to the next.
		command.KindLock, command.KindUnlock, command.KindCancelLock, command.KindClearDelay:
		t.path(c.Path)
	case command.KindCreate, command.KindDelete, command.KindDeleteTree,
		// An ephemeral entry goes with the last handle on it.
		command.KindCloseHandle, command.KindSetACL:
		t.tree(c.Path)
	case command.KindOpen:
		if c.Create { // else it only notes that the entry is open
			t.tree(c.Path)
		}
	case command.KindTxn:
		for _, ops := range [][]command.Op{c.Then, c.Else} {
			for i := range ops {
				t.op(&ops[i])
			}
		}
	default:
		t.all = true
	}
	return t
}

func (t *Touch) op(o *command.Op) {
	switch o.Kind {
	case command.OpGet:
	case command.OpSet, command.OpAdd:
		t.path(o.Path)
	case command.OpDelete, command.OpCreate:
		t.tree(o.Path)
	default:
		t.all = true
	}
}

func (t *Touch) path(path string) {
	if path == aclDir || strings.HasPrefix(path, aclDir+"/") {
		t.all = true
		return
	}
	t.paths = append(t.paths, path)
}

// tree is path for what comes, goes, or gets other rights: an absent path below it takes those of its nearest ancestor.
func (t *Touch) tree(path string) {
	t.path(path)
	if t.all = t.all || path == "/"; !t.all {
		t.trees = append(t.trees, path)
	}
}

// ancestors calls f for the paths above path, the nearest first, without the root.
func ancestors(path string, f func(string) bool) {
	for {
		cut := strings.LastIndexByte(path, '/')
		if cut <= 0 {
			return
		}
		path = path[:cut]
		if !f(path) {
			return
		}
	}
}
