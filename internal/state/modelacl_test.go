package state

import (
	"maps"
	"slices"
	"strings"

	"github.com/chubbygo/chubby/internal/command"
)

// What the model says of handles and access control lists.

type modelOpen struct {
	session, seq uint64
	path         string
}

// handleMade stands for the session of an entry that was made through a handle, which has none.
const handleMade = ^uint64(0)

func validNames(a command.ACL) bool {
	for _, name := range []string{a.Read, a.Write, a.Change} {
		if strings.Contains(name, "/") || strings.Contains(name, "\x00") || len(name) > 255 {
			return false
		}
	}
	return true
}

func names(a command.ACL) []string { return []string{"", a.Read, a.Write, a.Change} }

// inherited fills the gaps in the names of an entry at path from its parent.
func (m *model) inherited(path string, a command.ACL) command.ACL {
	up := names(m.files[parentOf(path)].acl)
	own := names(a)
	for i := range own {
		if own[i] == "" {
			own[i] = up[i]
		}
	}
	return command.ACL{Read: own[1], Write: own[2], Change: own[3]}
}

// list gives the principals of the list that counts for path, the nearest one that is named.
func (m *model) list(path string, right command.Right) (list []string) {
	for ; ; path = parentOf(path) {
		if f, ok := m.files[path]; ok && names(f.acl)[right] != "" {
			for _, line := range strings.Split(m.files["/acl/"+names(f.acl)[right]].data, "\n") {
				if line = strings.Trim(line, " \t\r"); line != "" {
					list = append(list, line)
				}
			}
			return list
		}
		if path == "/" {
			return nil
		}
	}
}

func (m *model) may(who, path string, right command.Right) bool {
	m.denied = command.Result{Code: command.Permission, Path: path, Right: right}
	if !m.files["/acl"].dir {
		return true
	}
	on := func(list []string) bool { return slices.Contains(list, who) || slices.Contains(list, "*") }
	if on(m.list(path, right)) {
		return true
	}
	if right != command.RightChange {
		return false
	}
	if top := m.list("/", right); len(top) > 0 {
		return on(top)
	}
	return slices.Contains(m.nodes, who+".x")
}

func (m *model) mayAsk(who string, c command.Cond, path string) bool {
	switch {
	case c.Kind == command.CondHolds:
		path = c.Sequencer.Path
	case c.Path != "":
		path = c.Path
	}
	return c.Kind == command.CondInstance || !valid(path) || m.may(who, path, command.RightRead)
}

// tree lists path and what is below it, children first.
func (m *model) tree(path string) (list []string) {
	for _, p := range m.children(path) {
		list = append(list, m.tree(p)...)
	}
	return append(list, path)
}

func (m *model) isOpen(path string) bool {
	return slices.ContainsFunc(m.opens, func(o modelOpen) bool { return o.path == path })
}

// collect removes the ephemeral entry at path if nothing keeps it.
func (m *model) collect(path string) {
	f, ok := m.files[path]
	if ok && f.ephemeral && f.session == 0 && len(m.children(path)) == 0 && !m.isOpen(path) {
		m.remove(path)
	}
}

func (m *model) open(c *command.Command) command.Result {
	if !c.Create && (c.New || c.Dir || c.Ephemeral || len(c.Data) > 0 || c.ACL != command.ACL{}) {
		return command.Result{Code: command.BadCommand}
	}
	f, exists := m.files[c.Path]
	var rights []command.Right
	at := c.Path
	switch {
	case !exists && c.Create:
		rights, at = []command.Right{command.RightWrite}, parentOf(c.Path)
	case !c.Write && !c.ChangeACL:
		rights = []command.Right{command.RightRead}
	default:
		if c.Write {
			rights = append(rights, command.RightWrite)
		}
		if c.ChangeACL {
			rights = append(rights, command.RightChange)
		}
	}
	for _, right := range rights {
		if !m.may(c.Principal, at, right) {
			return m.denied
		}
	}
	for _, cond := range c.Conds {
		if !m.mayAsk(c.Principal, cond, c.Path) {
			return m.denied
		}
	}
	for _, cond := range c.Conds {
		if code := m.cond(cond, c.Path); code != command.OK {
			return command.Result{Code: code}
		}
	}
	switch {
	case !exists && !c.Create:
		return command.Result{Code: command.NotFound}
	case !exists:
		_, code := m.op(command.Op{Kind: command.OpCreate, Path: c.Path, Data: c.Data, Dir: c.Dir, Ephemeral: c.Ephemeral, ACL: c.ACL}, handleMade)
		if code != command.OK {
			return command.Result{Code: code}
		}
	case c.New:
		return command.Result{Code: command.Exists}
	case c.Dir && !f.dir:
		return command.Result{Code: command.NotDir}
	case c.Create && !c.Dir && f.dir:
		return command.Result{Code: command.IsDir}
	}
	if m.files[c.Path].ephemeral {
		m.opens, m.changed = append(m.opens, modelOpen{c.Session, c.Seq, c.Path}), true
	}
	return command.Result{Stat: m.stat(c.Path), Succeeded: !exists}
}

func (m *model) shut(c *command.Command) command.Result {
	if c.OpenSeq == 0 || c.OpenSeq == c.Seq {
		return command.Result{Code: command.BadCommand}
	}
	for _, o := range m.owners {
		if o.session == c.Session && o.seq == c.OpenSeq {
			return command.Result{Code: command.BadCommand}
		}
	}
	at := slices.IndexFunc(m.opens, func(o modelOpen) bool { return o.session == c.Session && o.seq == c.OpenSeq })
	s := m.sessions[c.Session]
	mark := command.Result{Code: command.Cancelled, Revision: m.revision}
	_, answered := s.answers[c.OpenSeq]
	if at >= 0 {
		if m.opens[at].path != c.Path {
			return command.Result{Code: command.BadCommand}
		}
		m.opens, m.changed = slices.Delete(m.opens, at, at+1), true
		m.collect(c.Path)
		mark.Revision, answered = m.now(), false
	}
	if !answered && c.OpenSeq >= s.acked {
		s.answers[c.OpenSeq] = mark
	}
	return command.Result{}
}

// compareHandles says where the handles, names and rights of the state differ from the model's.
func compareHandles(m *model, s *State) (why string) {
	if m.key != s.Key() {
		return "the key"
	}
	n := 0
	s.opens.all(func(_ string, o *open) bool {
		n++
		if !slices.Contains(m.opens, modelOpen{o.session, o.seq, o.path}) {
			why = "a handle on " + o.path
		}
		return true
	})
	if n != len(m.opens) {
		return "the number of handles"
	}
	for _, path := range slices.Sorted(maps.Keys(m.files)) {
		var acl command.ACL
		if e := s.entry(path); e.acl != nil {
			acl = *e.acl
		}
		if acl != m.files[path].acl {
			return "the names of " + path
		}
	}
	if m.revision%8 > 0 {
		return why
	}
	for _, who := range append(randomPrincipals, "n1") {
		for _, path := range randomPaths {
			for right := command.RightRead; right <= command.RightChange && valid(path); right++ {
				if s.Allowed(who, path, right) != m.may(who, path, right) {
					return "a right of " + who + " to " + path
				}
			}
		}
	}
	return why
}
