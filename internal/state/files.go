package state

import (
	"bytes"
	"math"
	"strconv"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/internal/command"
)

// Digests of changes, for the state hash.
const (
	noteEntry = iota + 1
	noteGone
	noteLock
	noteOwner
	noteLeft
	noteSession
	noteEnded
	noteSlot
	noteOpen
	noteShut
	noteKey
	noteACL
	noteLevel
)

func refuse(code command.Code) command.Result { return command.Result{Code: code} }

// fits reports whether path may be written or locked: canonical and not the root.
func fits(path string) bool { return path != "/" && canonical(path) }

// put gives an entry its new record. The caller has set its revision where it is due.
func (m *Machine) put(old, e *entry) {
	if old != nil {
		m.w.counts.Bytes -= old.bytes()
	} else {
		m.w.counts.Entries++
	}
	m.w.counts.Bytes += e.bytes()
	m.w.entries.set(treeKey(e.path), e)
	m.touch(e.path)
	if e.path == aclDir {
		m.w.guarded = e.dir
	}
	if e.acl != nil && (old == nil || old.acl != e.acl) {
		m.note(noteACL, e.acl.Read)
		m.note(noteACL, e.acl.Write)
		m.note(noteACL, e.acl.Change)
	}
	m.note(noteEntry, e.path, e.instance, e.generation, e.lockGen, e.aclGen, e.revision, e.checksum, uint64(e.children))
}

// parents tells whether path can have an entry: the nearest ancestor that exists must be a directory.
func (m *Machine) parents(path string) command.Code {
	for {
		path = parentOf(path)
		if e := m.w.entry(path); e != nil {
			if e.dir {
				return command.OK
			}
			return command.NotDir
		}
	}
}

// make makes an entry, and missing parents as permanent directories. It takes from its parent the ACL names that it is not
// given. The caller has asked parents.
func (m *Machine) make(e entry, given command.ACL) *entry {
	parent := m.w.entry(parentOf(e.path))
	if parent == nil {
		parent = m.make(entry{path: parentOf(e.path), dir: true}, command.ACL{})
	}
	p := *parent
	p.children++
	p.revision = m.now
	m.put(parent, &p)

	e.acl = inherit(given, p.acl)
	e.instance, e.revision = m.now, m.now
	if !e.dir {
		e.generation = m.now
		e.checksum = xxhash.Checksum64(e.data)
	}
	// The lock may be older than its entry.
	if l, ok := m.w.locks.get(e.path); ok {
		e.lockGen = l.generation
	}
	if e.session != 0 {
		m.w.ephemerals.set(key64(e.session)+e.path, e.path)
	}
	m.put(nil, &e)
	m.emit(Event{Kind: Created, Path: e.path, Entry: e.view()})
	return &e
}

// write puts data into the file at path and makes it if e, the present entry, is nil.
func (m *Machine) write(e *entry, path string, data []byte) *entry {
	if e == nil {
		return m.make(entry{path: path, data: data}, command.ACL{})
	}
	n := *e
	n.data, n.checksum = data, xxhash.Checksum64(data)
	n.generation, n.revision = m.now, m.now
	m.put(e, &n)
	m.emit(Event{Kind: Modified, Path: path, Entry: n.view()})
	return &n
}

// remove takes an entry without children out of the tree, with the handles on it, and with its last child a directory that
// waits for that.
func (m *Machine) remove(e *entry) {
	m.w.entries.delete(treeKey(e.path))
	m.touch(e.path)
	m.w.counts.Entries--
	m.w.counts.Bytes -= e.bytes()
	if e.session != 0 {
		m.w.ephemerals.delete(key64(e.session) + e.path)
	}
	if e.ephemeral {
		m.shutAll(e.path)
	}
	if e.path == aclDir {
		m.w.guarded = false
	}
	m.note(noteGone, e.path)
	m.emit(Event{Kind: Deleted, Path: e.path, Entry: command.Entry{Path: e.path}})

	parent := m.w.entry(parentOf(e.path))
	p := *parent
	p.children--
	p.revision = m.now
	m.put(parent, &p)
	if m.w.abandoned(&p) {
		m.remove(&p)
	}
}

// heldWithin reports whether the lock of path, or of anything below it, is held.
func (m *Machine) heldWithin(path string, below bool) bool {
	if l, ok := m.w.locks.get(path); ok && l.holders > 0 {
		return true
	}
	held := false
	if below {
		m.w.locks.prefix(path+"/", func(_ string, l *lock) bool {
			held = l.holders > 0
			return !held
		})
	}
	return held
}

// holdsAll judges the conditions in their order: OK, or the code and path of the first that fails.
func (m *Machine) holdsAll(conds []command.Cond, path string) (command.Code, string) {
	for i := range conds {
		at := about(&conds[i], path)
		if code := m.holds(&conds[i], at); code != command.OK {
			return code, at
		}
	}
	return command.OK, ""
}

// about is the path that a condition asks about, in a command about path.
func about(c *command.Cond, path string) string {
	switch {
	case c.Kind == command.CondHolds:
		return c.Sequencer.Path
	case c.Path != "":
		return c.Path
	}
	return path
}

func (m *Machine) holds(c *command.Cond, path string) command.Code {
	if c.Kind == command.CondHolds {
		if m.w.Holds(c.Sequencer) {
			return command.OK
		}
		return command.StaleSequencer
	}
	if !canonical(path) {
		return command.BadCommand
	}
	e := m.w.entry(path)
	var ok bool
	switch c.Kind {
	case command.CondAbsent:
		if e != nil {
			return command.Exists
		}
		return command.OK
	case command.CondExists:
		ok = true
	case command.CondGeneration:
		if c.Generation == 0 { // "no entry"
			if e != nil {
				return command.Conflict
			}
			return command.OK
		}
		ok = e != nil && c.Generation == e.generation
	case command.CondValue:
		ok = e != nil && !e.dir && bytes.Equal(c.Value, e.data)
	case command.CondInstance:
		if e == nil || e.instance != c.Generation {
			return command.Gone
		}
		return command.OK
	}
	switch {
	case e == nil:
		return command.NotFound
	case !ok:
		return command.Conflict
	}
	return command.OK
}

// writable tells whether contents can be written at path, where e is.
func (m *Machine) writable(e *entry, path string) command.Code {
	switch {
	case e == nil:
		return m.parents(path)
	case e.dir:
		return command.IsDir
	}
	return command.OK
}

func (m *Machine) set(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
	}
	if code := m.judge(c, command.RightWrite); code != command.OK {
		return refuse(code)
	}
	e, code := m.doSet(c.Path, c.Data)
	if code != command.OK {
		return refuse(code)
	}
	return command.Result{Stat: e.stat()}
}

// judge asks whether who asks has the right at the command's path, and then whether its conditions hold.
func (m *Machine) judge(c *command.Command, right command.Right) command.Code {
	if code := m.may(c.Path, right); code != command.OK {
		return code
	}
	if code := m.mayAsk(c.Conds, c.Path); code != command.OK {
		return code
	}
	code, _ := m.holdsAll(c.Conds, c.Path)
	return code
}

func (m *Machine) doSet(path string, data []byte) (*entry, command.Code) {
	e := m.w.entry(path)
	if code := m.writable(e, path); code != command.OK {
		return nil, code
	}
	return m.write(e, path, keep(data)), command.OK
}

func (m *Machine) create(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
	}
	if code := m.mayMake(c.Path); code != command.OK {
		return refuse(code)
	}
	e, code := m.createOwned(entry{path: c.Path, data: c.Data, dir: c.Dir, ephemeral: c.Ephemeral}, c.ACL)
	if code != command.OK {
		return refuse(code)
	}
	return command.Result{Stat: e.stat()}
}

// createOwned is doCreate of an entry that, if it is ephemeral, belongs to the session that asks.
func (m *Machine) createOwned(e entry, acl command.ACL) (*entry, command.Code) {
	if e.ephemeral {
		if e.session = m.cmd.Session; e.session == 0 {
			return nil, command.BadCommand
		}
	}
	return m.doCreate(e, acl)
}

func (m *Machine) doCreate(e entry, acl command.ACL) (*entry, command.Code) {
	if !fits(e.path) || e.dir && len(e.data) > 0 || !areListNames(acl) {
		return nil, command.BadCommand
	}
	if m.w.entry(e.path) != nil {
		return nil, command.Exists
	}
	if code := m.parents(e.path); code != command.OK {
		return nil, code
	}
	e.data = keep(e.data)
	return m.make(e, acl), command.OK
}

func (m *Machine) compareAndSwap(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
	}
	if code := m.may(c.Path, command.RightWrite); code != command.OK {
		return refuse(code)
	}
	e := m.w.entry(c.Path)
	switch {
	case e == nil && c.HasOld:
		return refuse(command.NotFound)
	case e != nil && e.dir:
		return refuse(command.IsDir)
	case e != nil && !(c.HasOld && bytes.Equal(c.Old, e.data)):
		return command.Result{Code: command.Conflict, Stat: e.stat()}
	}
	e, code := m.doSet(c.Path, c.Data)
	if code != command.OK {
		return refuse(code)
	}
	return command.Result{Stat: e.stat()}
}

func (m *Machine) add(c *command.Command) command.Result {
	if code := m.mayCount(c.Path); code != command.OK {
		return refuse(code)
	}
	_, n, code := m.doAdd(c.Path, c.Number, c.Bound)
	return command.Result{Code: code, Number: n}
}

// mayCount judges whether who asks may add to the number at path.
func (m *Machine) mayCount(path string) command.Code {
	if !fits(path) {
		return command.BadCommand
	}
	return m.may(path, command.RightWrite)
}

func (m *Machine) sub(c *command.Command) command.Result {
	if code := m.mayCount(c.Path); code != command.OK {
		return refuse(code)
	}
	e, n, code := m.number(c.Path, c.Number)
	switch {
	case code != command.OK:
		return refuse(code)
	case n < math.MinInt64+c.Number || n-c.Number < c.Bound:
		return refuse(command.Bound)
	}
	n -= c.Number
	m.write(e, c.Path, strconv.AppendInt(nil, n, 10))
	return command.Result{Number: n}
}

func (m *Machine) doAdd(path string, delta, bound int64) (*entry, int64, command.Code) {
	e, n, code := m.number(path, delta)
	switch {
	case code != command.OK:
		return nil, 0, code
	case n > math.MaxInt64-delta || n+delta > bound:
		return nil, 0, command.Bound
	}
	n += delta
	return m.write(e, path, strconv.AppendInt(nil, n, 10)), n, command.OK
}

// number reads the entry that Add and Sub change by delta, which is not negative.
func (m *Machine) number(path string, delta int64) (*entry, int64, command.Code) {
	if !fits(path) || delta < 0 {
		return nil, 0, command.BadCommand
	}
	e := m.w.entry(path)
	switch {
	case e == nil:
		return nil, 0, command.NotFound
	case e.dir:
		return nil, 0, command.IsDir
	}
	n, err := strconv.ParseInt(string(e.data), 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != string(e.data) {
		return nil, 0, command.NotNumber
	}
	return e, n, command.OK
}

func (m *Machine) delete(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
	}
	if code := m.judge(c, command.RightWrite); code != command.OK {
		return refuse(code)
	}
	return refuse(m.doDelete(c.Path))
}

func (m *Machine) doDelete(path string) command.Code {
	e := m.w.entry(path)
	switch {
	case e == nil:
		return command.NotFound
	case m.heldWithin(path, false):
		return command.LockHeld
	case e.children > 0:
		return command.NotEmpty
	}
	m.remove(e)
	return command.OK
}

func (m *Machine) deleteTree(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
	}
	if code := m.may(c.Path, command.RightWrite); code != command.OK {
		return refuse(code)
	}
	e := m.w.entry(c.Path)
	if e == nil {
		return refuse(command.NotFound)
	}
	tree := m.tree(e, nil)
	for i := range tree {
		if code := m.may(tree[i].path, command.RightWrite); code != command.OK {
			return refuse(code)
		}
	}
	if m.heldWithin(c.Path, true) {
		return refuse(command.LockHeld)
	}
	for _, e := range tree {
		// Its record has changed as its children went, and with the last of them an abandoned directory went by itself.
		if e = m.w.entry(e.path); e != nil {
			m.remove(e)
		}
	}
	return command.Result{}
}

// tree lists what is at and below e, children before their parents.
func (m *Machine) tree(e *entry, list []*entry) []*entry {
	if e.children > 0 {
		m.w.children(e.path, func(child *entry) { list = m.tree(child, list) })
	}
	return append(list, e)
}
