package state

import (
	"strings"

	"github.com/chubbygo/chubby/internal/command"
)

// Who may do what. Each entry names three access control lists: who may read it, write it, and change these names. A name
// X stands for the file /acl/X, which lists principals. A new entry takes the names that it was not given from its parent,
// as they are at that moment (Chubby §2.3).
//
// Nothing is checked until the directory /acl exists. From then on what is not granted is refused.
//
// Rights are judged when a command is executed, by the state before it: within one Txn nothing is granted by what its
// earlier operations did. A path without an entry has the names of its nearest ancestor. An entry that has no name of its
// own, because it was made when there was nothing to inherit, has its nearest ancestor's too.
//
// Two rules keep a cell from locking everybody out for ever. Whoever may change the names of the root may change those
// of every entry. And while the root's list is missing or empty, so that nobody may, each node of the cell may: nodes have
// the whole state on their disks in any case.

// aclDir is where the lists are, and what turns them on.
const aclDir = "/acl"

// everybody is the line of a list that stands for all principals.
const everybody = "*"

// aclNameMax bounds a list's name, in bytes.
const aclNameMax = 255

// isListName reports whether name can be that of a file in /acl, or is empty.
func isListName(name string) bool {
	return len(name) <= aclNameMax && !strings.ContainsAny(name, "/\x00")
}

func areListNames(a command.ACL) bool {
	return isListName(a.Read) && isListName(a.Write) && isListName(a.Change)
}

// inherit gives a new entry's names: those it was given, and its parent's where it was given none. Entries with equal
// names share them, nil for none.
func inherit(given command.ACL, parent *command.ACL) *command.ACL {
	if parent != nil {
		if given.Read == "" {
			given.Read = parent.Read
		}
		if given.Write == "" {
			given.Write = parent.Write
		}
		if given.Change == "" {
			given.Change = parent.Change
		}
		if given == *parent {
			return parent
		}
	}
	if given == (command.ACL{}) {
		return nil
	}
	return &given
}

func listName(a *command.ACL, right command.Right) string {
	switch {
	case a == nil:
		return ""
	case right == command.RightRead:
		return a.Read
	case right == command.RightWrite:
		return a.Write
	case right == command.RightChange:
		return a.Change
	}
	return ""
}

// Guarded reports whether ACLs are on.
func (s *State) Guarded() bool { return s.guarded }

// Allowed reports whether principal has the right at path, a canonical one.
func (s *State) Allowed(principal, path string, right command.Right) bool {
	if !s.guarded || s.allowed(principal, path, right) {
		return true
	}
	return right == command.RightChange && s.administers(principal)
}

func (s *State) allowed(principal, path string, right command.Right) bool {
	for {
		if e := s.entry(path); e != nil {
			if name := listName(e.acl, right); name != "" {
				listed, _ := s.listed(name, principal)
				return listed
			}
		}
		if path == "/" {
			return false
		}
		path = parentOf(path)
	}
}

// administers reports whether principal may change the names of the root, and so of everything.
func (s *State) administers(principal string) bool {
	listed, any := s.listed(listName(s.entry("/").acl, command.RightChange), principal)
	return listed || !any && s.isNode(principal)
}

// listed looks a principal up in a list: one on a line, spaces around it do not count. any reports whether the list has
// anybody on it.
func (s *State) listed(name, principal string) (listed, any bool) {
	if name == "" {
		return false, false
	}
	e, ok := s.entries.get(aclDir + "\x00" + name)
	if !ok {
		return false, false
	}
	for line := range strings.Lines(string(e.data)) {
		switch line = strings.TrimSpace(line); line {
		case "":
			continue
		case everybody, principal:
			return true, true
		}
		any = true
	}
	return false, any
}

// isNode reports whether principal is a node that had sessions in this cell. Their server ids are in the state: the
// node's ID, a dot, and what tells its incarnation, without a dot.
func (s *State) isNode(principal string) bool {
	found := false
	s.nodes.prefix(principal+".", func(server string, _ uint32) bool {
		found = strings.IndexByte(server[len(principal)+1:], '.') < 0
		return !found
	})
	return found
}

// may judges a right of who asks, and notes what was refused for the result.
func (m *Machine) may(path string, right command.Right) command.Code {
	if m.w.Allowed(m.cmd.Principal, path, right) {
		return command.OK
	}
	m.denied.path, m.denied.right = path, right
	return command.Permission
}

// mayMake judges whether who asks may make an entry at path.
func (m *Machine) mayMake(path string) command.Code {
	return m.may(parentOf(path), command.RightWrite)
}

// mayOp judges an operation of a Txn.
func (m *Machine) mayOp(o *command.Op) command.Code {
	switch {
	case !canonical(o.Path):
		return command.OK // it will be refused for that
	case o.Kind == command.OpGet:
		return m.may(o.Path, command.RightRead)
	case o.Kind == command.OpCreate:
		return m.mayMake(o.Path)
	}
	return m.may(o.Path, command.RightWrite)
}

// mayAsk judges the conditions: whoever learns whether they hold reads. That an entry has a given instance tells nothing
// to a holder of a handle that it could not ask otherwise.
func (m *Machine) mayAsk(conds []command.Cond, path string) command.Code {
	if !m.w.guarded {
		return command.OK
	}
	for i := range conds {
		at := about(&conds[i], path)
		if conds[i].Kind == command.CondInstance || !canonical(at) {
			continue
		}
		if code := m.may(at, command.RightRead); code != command.OK {
			return code
		}
	}
	return command.OK
}

func (m *Machine) setACL(c *command.Command) command.Result {
	if !canonical(c.Path) || !areListNames(c.ACL) {
		return refuse(command.BadCommand)
	}
	if code := m.judge(c, command.RightChange); code != command.OK {
		return refuse(code)
	}
	e := m.w.entry(c.Path)
	if e == nil {
		return refuse(command.NotFound)
	}
	var parent *command.ACL
	if c.Path != "/" {
		parent = m.w.entry(parentOf(c.Path)).acl
	}
	n := *e
	n.acl = inherit(c.ACL, parent)
	n.aclGen, n.revision = m.now, m.now
	m.put(e, &n)
	m.emit(Event{Kind: ACLChanged, Path: n.path, Entry: n.view()})
	return command.Result{Stat: n.stat()}
}
