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

// make makes an entry, and missing parents as permanent directories. The caller has asked parents.
func (m *Machine) make(e entry) *entry {
	parent := m.w.entry(parentOf(e.path))
	if parent == nil {
		parent = m.make(entry{path: parentOf(e.path), dir: true})
	}
	p := *parent
	p.children++
	p.revision = m.now
	m.put(parent, &p)

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
		return m.make(entry{path: path, data: data})
	}
	n := *e
	n.data, n.checksum = data, xxhash.Checksum64(data)
	n.generation, n.revision = m.now, m.now
	m.put(e, &n)
	m.emit(Event{Kind: Modified, Path: path, Entry: n.view()})
	return &n
}

// remove takes an entry without children out of the tree, and with its last child a directory that waits for that.
func (m *Machine) remove(e *entry) {
	m.w.entries.delete(treeKey(e.path))
	m.touch(e.path)
	m.w.counts.Entries--
	m.w.counts.Bytes -= e.bytes()
	if e.session != 0 {
		m.w.ephemerals.delete(key64(e.session) + e.path)
	}
	m.note(noteGone, e.path)
	m.emit(Event{Kind: Deleted, Path: e.path, Entry: command.Entry{Path: e.path}})

	parent := m.w.entry(parentOf(e.path))
	p := *parent
	p.children--
	p.revision = m.now
	m.put(parent, &p)
	if p.abandoned() {
		m.remove(&p)
	}
}

// abandoned reports whether e is an ephemeral directory whose session ended and whose last child is gone.
func (e *entry) abandoned() bool { return e.dir && e.ephemeral && e.session == 0 && e.children == 0 }

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
		at := conds[i].Path
		if at == "" {
			at = path
		}
		if conds[i].Kind == command.CondHolds {
			at = conds[i].Sequencer.Path
		}
		if code := m.holds(&conds[i], at); code != command.OK {
			return code, at
		}
	}
	return command.OK, ""
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
	if code, _ := m.holdsAll(c.Conds, c.Path); code != command.OK {
		return refuse(code)
	}
	e, code := m.doSet(c.Path, c.Data)
	if code != command.OK {
		return refuse(code)
	}
	return command.Result{Stat: e.stat()}
}

func (m *Machine) doSet(path string, data []byte) (*entry, command.Code) {
	e := m.w.entry(path)
	if code := m.writable(e, path); code != command.OK {
		return nil, code
	}
	return m.write(e, path, keep(data)), command.OK
}

func (m *Machine) create(c *command.Command) command.Result {
	e, code := m.doCreate(c.Path, c.Data, c.Dir, c.Ephemeral, c.Session)
	if code != command.OK {
		return refuse(code)
	}
	return command.Result{Stat: e.stat()}
}

func (m *Machine) doCreate(path string, data []byte, dir, ephemeral bool, session uint64) (*entry, command.Code) {
	if !fits(path) || dir && len(data) > 0 || ephemeral && session == 0 {
		return nil, command.BadCommand
	}
	if m.w.entry(path) != nil {
		return nil, command.Exists
	}
	if code := m.parents(path); code != command.OK {
		return nil, code
	}
	if !ephemeral {
		session = 0
	}
	return m.make(entry{path: path, data: keep(data), dir: dir, ephemeral: ephemeral, session: session}), command.OK
}

func (m *Machine) compareAndSwap(c *command.Command) command.Result {
	if !fits(c.Path) {
		return refuse(command.BadCommand)
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
	_, n, code := m.doAdd(c.Path, c.Number, c.Bound)
	return command.Result{Code: code, Number: n}
}

func (m *Machine) sub(c *command.Command) command.Result {
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
	if code, _ := m.holdsAll(c.Conds, c.Path); code != command.OK {
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
	e := m.w.entry(c.Path)
	switch {
	case e == nil:
		return refuse(command.NotFound)
	case m.heldWithin(c.Path, true):
		return refuse(command.LockHeld)
	}
	for _, e := range m.tree(e, nil) {
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
