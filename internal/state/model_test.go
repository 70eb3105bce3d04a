package state

import (
	"maps"
	"math/big"
	"slices"
	"strings"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// model is the state machine once more, as stupid as possible: plain maps, one list of all owners in the order of their
// commands, everything found by looking at everything, and a Txn on a copy of it all.
type model struct {
	revision uint64
	changed  bool
	files    map[string]modelFile
	sessions map[uint64]*modelSession
	floors   map[uint32]uint64
	owners   []*modelOwner
	locks    map[string]modelLock
	nodes    []string
	opens    []modelOpen
	key      string
	level    uint32
	denied   command.Result
}

type modelFile struct {
	data                                             string
	instance, generation, lockGen, revision, session uint64
	aclGen                                           uint64
	acl                                              command.ACL
	dir, ephemeral                                   bool
}

type modelSession struct {
	nonce   [16]byte
	by      string
	opened  uint64
	acked   uint64
	answers map[uint64]command.Result
}

type modelOwner struct {
	session, seq, ticket, delay, hold uint64
	path, data                        string
	mode                              fence.Mode
	publish, held                     bool
	instance                          uint64
}

type modelLock struct{ generation, delay uint64 }

func newModel() *model {
	return &model{
		revision: 1, files: map[string]modelFile{"/": {instance: 1, revision: 1, dir: true}}, sessions: map[uint64]*modelSession{},
		floors: map[uint32]uint64{}, locks: map[string]modelLock{},
	}
}

func (m *model) now() uint64 { return m.revision + 1 }

func (m *model) apply(term uint64, c *command.Command) command.Result {
	m.changed = false
	r, stored := m.answer(term, c)
	if !stored {
		r.Revision = m.revision
		if m.changed {
			r.Revision = m.now()
		}
		if s := m.sessions[c.Session]; s != nil && c.Seq > 0 && c.Kind >= command.KindSet && r.Code != command.WindowFull && r.Code != command.Old && !r.Queued && c.Seq >= s.acked {
			s.answers[c.Seq] = r
		}
	}
	if m.changed {
		m.revision = m.now()
	}
	return r
}

// answer reports whether the result is one that was given before.
func (m *model) answer(term uint64, c *command.Command) (r command.Result, stored bool) {
	switch c.Kind {
	case command.KindBarrier:
		return r, false
	case command.KindAssignSlot:
		i := slices.Index(m.nodes, c.Node)
		if i < 0 {
			i = len(m.nodes)
			m.nodes, m.changed = append(m.nodes, c.Node), true
		}
		return command.Result{Slot: uint32(i)}, false
	case command.KindOpenSession:
		if c.Session == 0 {
			return command.Result{Code: command.BadCommand}, false
		}
		floor := m.floors[c.Slot]
		switch s := m.sessions[c.Session]; {
		case s != nil && s.nonce == c.Nonce && s.by == c.Principal:
			return command.Result{Revision: s.opened}, true
		case s != nil:
			return command.Result{Code: command.SessionRefused, Floor: max(floor, c.Session)}, false
		case c.Session <= floor:
			return command.Result{Code: command.SessionRefused, Floor: floor}, false
		}
		m.floors[c.Slot] = c.Session
		m.sessions[c.Session] = &modelSession{nonce: c.Nonce, by: c.Principal, opened: m.now(), answers: map[uint64]command.Result{}}
		m.changed = true
		return r, false
	case command.KindCloseSession:
		if s := m.sessions[c.Session]; s != nil && s.by != c.Principal {
			return command.Result{Code: command.Permission}, false
		}
		m.end([]uint64{c.Session}, false)
		return r, false
	case command.KindExpireSessions:
		if c.Term != term {
			return command.Result{Code: command.Void}, false
		}
		m.end(c.Sessions, true)
		return r, false
	case command.KindClearDelay:
		l := m.locks[c.Path]
		if c.Term != term || l.delay == 0 || l.generation != c.Generation || len(m.at(c.Path, true)) > 0 {
			return command.Result{Code: command.Void}, false
		}
		delete(m.locks, c.Path)
		m.changed = true
		m.settle()
		return r, false
	case command.KindRaiseLevel:
		if c.Term != term {
			return command.Result{Code: command.Void}, false
		}
		if c.Level > max(m.level, 1) {
			m.level, m.changed = c.Level, true
		}
		return r, false
	case command.KindProbe:
		return r, false
	case command.KindCellKey:
		if c.Key == [32]byte{} {
			return command.Result{Code: command.BadCommand}, false
		}
		if m.key == "" {
			m.key, m.changed = string(c.Key[:]), true
		}
		return r, false
	}
	if c.Session == 0 || c.Kind == command.KindUnlock && c.Seq == 0 {
		return m.execute(term, c), false
	}
	s := m.sessions[c.Session]
	if s == nil {
		return command.Result{Code: command.SessionExpired}, false
	}
	if s.by != c.Principal {
		return command.Result{Code: command.Permission, Revision: m.revision}, true // which is not remembered
	}
	if c.Seq == 0 {
		return command.Result{Code: command.BadCommand}, false
	}
	s.acked = max(s.acked, c.AckedBelow)
	maps.DeleteFunc(s.answers, func(seq uint64, _ command.Result) bool { return seq < s.acked })
	for _, o := range m.owners {
		if o.session == c.Session && o.seq == c.Seq && !o.held {
			return command.Result{Revision: o.ticket, Queued: true}, true
		}
	}
	if r, ok := s.answers[c.Seq]; ok {
		return r, true
	}
	if c.Seq < s.acked {
		return command.Result{Code: command.Old}, false
	}
	places, size := len(s.answers), 0
	for _, r := range s.answers {
		size += len(command.AppendResult(nil, &r))
	}
	if (places >= 1024 || size >= 1<<20) && c.Seq > s.acked {
		return command.Result{Code: command.WindowFull}, false
	}
	return m.execute(term, c), false
}

// valid says what a path looks like, in other words than canonical.
func valid(path string) bool {
	parts := strings.Split(path, "/")
	return path == "/" || len(parts) > 1 && parts[0] == "" && !slices.Contains(parts[1:], "") && !strings.Contains(path, "\x00") && len(path) <= 4096
}

func (m *model) execute(term uint64, c *command.Command) command.Result {
	bad := command.Result{Code: command.BadCommand}
	if c.Kind == command.KindTxn {
		return m.txn(c)
	}
	rootToo := c.Kind == command.KindOpen || c.Kind == command.KindSetACL || c.Kind == command.KindCloseHandle
	if c.Path == "/" && !rootToo || !valid(c.Path) {
		return bad
	}
	if !validNames(c.ACL) && c.Kind == command.KindSetACL {
		return bad
	}
	if c.Kind == command.KindLock && (c.Session == 0 || c.Mode != fence.Exclusive && c.Mode != fence.Shared) {
		return bad
	}
	switch c.Kind {
	case command.KindSet, command.KindCompareAndSwap, command.KindAdd, command.KindSub, command.KindDelete, command.KindLock, command.KindDeleteTree:
		if !m.may(c.Principal, c.Path, command.RightWrite) {
			return m.denied
		}
	case command.KindCreate:
		if !m.may(c.Principal, parentOf(c.Path), command.RightWrite) {
			return m.denied
		}
	case command.KindSetACL:
		if !m.may(c.Principal, c.Path, command.RightChange) {
			return m.denied
		}
	}
	if c.Kind != command.KindOpen {
		for _, cond := range c.Conds {
			if !m.mayAsk(c.Principal, cond, c.Path) {
				return m.denied
			}
		}
	}
	if c.Kind == command.KindLock || c.Kind == command.KindSetACL {
		for _, cond := range c.Conds {
			if code := m.cond(cond, c.Path); code != command.OK {
				return command.Result{Code: code}
			}
		}
	}
	switch c.Kind {
	case command.KindSet, command.KindDelete:
		for _, cond := range c.Conds {
			if code := m.cond(cond, c.Path); code != command.OK {
				return command.Result{Code: code}
			}
		}
		op := command.Op{Kind: command.OpSet, Path: c.Path, Data: c.Data}
		if c.Kind == command.KindDelete {
			op.Kind = command.OpDelete
		}
		e, code := m.op(op, c.Session)
		if code != command.OK {
			return command.Result{Code: code}
		}
		return command.Result{Stat: e.Stat}
	case command.KindCreate:
		e, code := m.op(command.Op{Kind: command.OpCreate, Path: c.Path, Data: c.Data, Dir: c.Dir, Ephemeral: c.Ephemeral, ACL: c.ACL}, c.Session)
		return command.Result{Code: code, Stat: e.Stat}
	case command.KindCompareAndSwap:
		f, ok := m.files[c.Path]
		if !ok && c.HasOld {
			return command.Result{Code: command.NotFound}
		}
		if ok && !f.dir && (!c.HasOld || string(c.Old) != f.data) {
			return command.Result{Code: command.Conflict, Stat: m.stat(c.Path)}
		}
		e, code := m.op(command.Op{Kind: command.OpSet, Path: c.Path, Data: c.Data}, c.Session)
		return command.Result{Code: code, Stat: e.Stat}
	case command.KindAdd, command.KindSub:
		n, code := m.count(c.Path, c.Number, c.Bound, c.Kind == command.KindSub)
		return command.Result{Code: code, Number: n}
	case command.KindDeleteTree:
		if _, ok := m.files[c.Path]; !ok {
			return command.Result{Code: command.NotFound}
		}
		for _, p := range m.tree(c.Path) {
			if !m.may(c.Principal, p, command.RightWrite) {
				return m.denied
			}
		}
		for _, o := range m.owners {
			if o.held && (o.path == c.Path || strings.HasPrefix(o.path, c.Path+"/")) {
				return command.Result{Code: command.LockHeld}
			}
		}
		for _, p := range m.tree(c.Path) {
			if _, ok := m.files[p]; ok {
				m.remove(p)
			}
		}
		return command.Result{}
	case command.KindLock:
		if c.HasData {
			if code := m.writable(c.Path); code != command.OK {
				return command.Result{Code: code}
			}
		}
		o := &modelOwner{session: c.Session, seq: c.Seq, ticket: m.now(), delay: c.Delay, hold: c.Hold, path: c.Path, data: string(c.Data), mode: c.Mode, publish: c.HasData}
		for _, cond := range c.Conds {
			if cond.Kind == command.CondInstance && (cond.Path == "" || cond.Path == c.Path) {
				o.instance = cond.Generation
			}
		}
		if len(m.at(c.Path, false)) > 0 || !m.admits(o) {
			if c.Try {
				return command.Result{Code: command.LockHeld}
			}
			m.owners = append(m.owners, o)
			m.changed = true
			return command.Result{Queued: true}
		}
		m.owners = append(m.owners, o)
		m.grant(o)
		return command.Result{Generation: m.locks[c.Path].generation}
	case command.KindUnlock:
		if c.Session == 0 || c.Seq == 0 && c.Term == 0 {
			return bad
		}
		if c.Seq == 0 && c.Term != term {
			return command.Result{Code: command.Void}
		}
		for _, o := range m.at(c.Path, true) {
			if o.session == c.Session && o.seq == c.LockSeq && m.locks[c.Path].generation == c.Generation {
				m.leave(o, false)
				m.settle()
				return command.Result{}
			}
		}
		return command.Result{Code: command.NotHeld}
	case command.KindCancelLock:
		if c.Session == 0 || c.LockSeq == 0 || c.LockSeq == c.Seq {
			return bad
		}
		s := m.sessions[c.Session]
		mark := command.Result{Code: command.Cancelled, Revision: m.revision}
		for _, o := range m.owners {
			if o.session == c.Session && o.seq == c.LockSeq {
				if o.path != c.Path {
					return bad
				}
				m.leave(o, false)
				m.settle()
				mark.Revision = m.now()
				if c.LockSeq >= s.acked {
					s.answers[c.LockSeq] = mark
				}
				return command.Result{}
			}
		}
		if _, ok := s.answers[c.LockSeq]; !ok && c.LockSeq >= s.acked {
			s.answers[c.LockSeq] = mark
		}
		return command.Result{}
	case command.KindOpen, command.KindCloseHandle:
		if c.Session == 0 {
			return bad
		}
		if c.Kind == command.KindOpen {
			return m.open(c)
		}
		return m.shut(c)
	case command.KindSetACL:
		f, ok := m.files[c.Path]
		if !ok {
			return command.Result{Code: command.NotFound}
		}
		f.acl, f.aclGen = c.ACL, m.now()
		if c.Path != "/" {
			f.acl = m.inherited(c.Path, c.ACL)
		}
		m.files[c.Path] = f
		m.touch(c.Path)
		return command.Result{Stat: m.stat(c.Path)}
	}
	return bad
}

func (m *model) children(dir string) (list []string) {
	for p := range m.files {
		if p != "/" && parentOf(p) == dir {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	return list
}

func (m *model) stat(path string) command.Stat {
	f, ok := m.files[path]
	if !ok {
		return command.Stat{}
	}
	s := command.Stat{
		Instance: f.instance, Generation: f.generation, LockGeneration: f.lockGen, ACLGeneration: f.aclGen, Revision: f.revision, Size: len(f.data),
		Children: len(m.children(path)), Dir: f.dir, Ephemeral: f.ephemeral,
	}
	if !f.dir {
		s.Checksum = xxhash.Checksum64([]byte(f.data))
	}
	return s
}

func (m *model) touch(path string) {
	f := m.files[path]
	f.revision = m.now()
	m.files[path] = f
	m.changed = true
}

func (m *model) writable(path string) command.Code {
	if f, ok := m.files[path]; ok {
		if f.dir {
			return command.IsDir
		}
		return command.OK
	}
	for p := parentOf(path); ; p = parentOf(p) {
		if f, ok := m.files[p]; ok {
			if f.dir {
				return command.OK
			}
			return command.NotDir
		}
	}
}

func (m *model) add(path string, f modelFile) {
	if _, ok := m.files[parentOf(path)]; !ok {
		m.add(parentOf(path), modelFile{dir: true})
	}
	m.touch(parentOf(path))
	f.acl = m.inherited(path, f.acl)
	f.instance, f.revision, f.lockGen = m.now(), m.now(), m.locks[path].generation
	if !f.dir {
		f.generation = m.now()
	}
	m.files[path] = f
}

func (m *model) remove(path string) {
	delete(m.files, path)
	m.opens = slices.DeleteFunc(m.opens, func(o modelOpen) bool { return o.path == path })
	up := parentOf(path)
	m.touch(up)
	m.collect(up)
}

func (m *model) write(path, data string) {
	f, ok := m.files[path]
	if !ok {
		m.add(path, modelFile{data: data})
		return
	}
	f.data, f.generation = data, m.now()
	m.files[path] = f
	m.touch(path)
}

func (m *model) count(path string, delta, bound int64, down bool) (int64, command.Code) {
	if delta < 0 {
		return 0, command.BadCommand
	}
	f, ok := m.files[path]
	if !ok {
		return 0, command.NotFound
	}
	if f.dir {
		return 0, command.IsDir
	}
	n, ok := new(big.Int).SetString(f.data, 10)
	if !ok || !n.IsInt64() || n.String() != f.data {
		return 0, command.NotNumber
	}
	if down {
		n.Sub(n, big.NewInt(delta))
		ok = n.Cmp(big.NewInt(bound)) >= 0
	} else {
		n.Add(n, big.NewInt(delta))
		ok = n.Cmp(big.NewInt(bound)) <= 0
	}
	if !ok || !n.IsInt64() {
		return 0, command.Bound
	}
	m.write(path, n.String())
	return n.Int64(), command.OK
}
