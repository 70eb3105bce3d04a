package state

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/chubbygo/chubby/internal/command"
)

// Handles (Chubby §2.3). An ephemeral entry that was made through a handle belongs to nobody's session: it stays while a
// session has it open, a directory also while it has children. One that was made without a handle goes with its session,
// whoever has it open besides; a directory then stays while it has children or is open.
//
// The state knows the handles of ephemeral entries only. Those of permanent ones change nothing.

// keySize is the length of the cell's key.
const keySize = len(command.Command{}.Key)

// opensMax bounds the handles of ephemeral entries that are open in the cell.
const opensMax = 1 << 20

// open is a handle on an ephemeral entry.
type open struct {
	session  uint64
	seq      uint64 // of the Open command
	path     string
	instance uint64 // of the entry
}

// openKey sorts the handles of one path together.
func openKey(o *open) string { return o.path + "\x00" + key128(o.session, o.seq) }

// isOpen reports whether a session has the entry at path open.
func (s *State) isOpen(path string) bool {
	_, ok := s.openers.first(path + "\x00")
	return ok
}

// abandoned reports whether e is an ephemeral entry that nothing keeps: no session, no child, no handle.
func (s *State) abandoned(e *entry) bool {
	return e.ephemeral && e.session == 0 && e.children == 0 && !s.isOpen(e.path)
}

func (m *Machine) putOpen(o *open) {
	m.w.opens.set(key128(o.session, o.seq), o)
	m.w.openers.set(openKey(o), o)
	m.note(noteOpen, o.path, o.session, o.seq, o.instance)
}

func (m *Machine) dropOpen(o *open) {
	m.w.opens.delete(key128(o.session, o.seq))
	m.w.openers.delete(openKey(o))
	m.note(noteShut, o.path, o.session, o.seq)
}

// open opens a handle and makes the entry where that is asked for.
func (m *Machine) open(c *command.Command) command.Result {
	if c.Session == 0 || !canonical(c.Path) || !c.Create && (c.New || c.Dir || c.Ephemeral || len(c.Data) > 0 || c.ACL != command.ACL{}) {
		return refuse(command.BadCommand)
	}
	e := m.w.entry(c.Path)
	if code := m.mayOpen(c, e); code != command.OK {
		return refuse(code)
	}
	if code := m.mayAsk(c.Conds, c.Path); code != command.OK {
		return refuse(code)
	}
	if code, _ := m.holdsAll(c.Conds, c.Path); code != command.OK {
		return refuse(code)
	}
	made := false
	switch {
	case e == nil && !c.Create:
		return refuse(command.NotFound)
	case e == nil:
		if c.Ephemeral && m.w.opens.len() >= opensMax {
			return refuse(command.Slots)
		}
		var code command.Code
		if e, code = m.doCreate(entry{path: c.Path, data: c.Data, dir: c.Dir, ephemeral: c.Ephemeral}, c.ACL); code != command.OK {
			return refuse(code)
		}
		made = true
	case c.New:
		return refuse(command.Exists)
	case c.Dir && !e.dir:
		return refuse(command.NotDir)
	case c.Create && !c.Dir && e.dir:
		return refuse(command.IsDir)
	case e.ephemeral && m.w.opens.len() >= opensMax:
		return refuse(command.Slots)
	}
	if e.ephemeral {
		m.putOpen(&open{session: c.Session, seq: c.Seq, path: e.path, instance: e.instance})
	}
	return command.Result{Stat: e.stat(), Succeeded: made, Seal: m.w.Seal(e.path, e.instance, c.Write, c.ChangeACL)}
}

// mayOpen judges the rights that the handle is to be used with, or to make what it is opened on.
func (m *Machine) mayOpen(c *command.Command, e *entry) command.Code {
	if e == nil && c.Create {
		return m.mayMake(c.Path)
	}
	for _, right := range command.OpenRights(c.Write, c.ChangeACL) {
		if code := m.may(c.Path, right); code != command.OK {
			return code
		}
	}
	return command.OK
}

// closeHandle closes a handle, and with the last one of an ephemeral entry that nothing else keeps the entry goes.
func (m *Machine) closeHandle(c *command.Command) command.Result {
	if !canonical(c.Path) || c.Session == 0 || c.OpenSeq == 0 || c.OpenSeq == c.Seq {
		return refuse(command.BadCommand)
	}
	o, ok := m.w.opens.get(key128(c.Session, c.OpenSeq))
	if _, waits := m.w.owners.get(key128(c.Session, c.OpenSeq)); waits || ok && o.path != c.Path {
		return refuse(command.BadCommand)
	}
	if ok {
		m.dropOpen(o)
		if e := m.w.entry(o.path); m.w.abandoned(e) {
			m.remove(e)
		}
	}
	// As after CancelLock: a copy of the Open may still come, the first one even.
	s := m.session(c.Session)
	if _, answered := s.search(c.OpenSeq); ok || !answered {
		s.remember(c.OpenSeq, &command.Result{Code: command.Cancelled, Revision: m.revision()})
	}
	return command.Result{}
}

// shutAll closes all handles on the entry at path, which is going.
func (m *Machine) shutAll(path string) {
	for {
		o, ok := m.w.openers.first(path + "\x00")
		if !ok {
			return
		}
		m.dropOpen(o)
	}
}

// setKey gives the cell the key under which the texts of handles are sealed. The first one stays.
func (m *Machine) setKey(c *command.Command) command.Result {
	if c.Key == ([len(c.Key)]byte{}) {
		return refuse(command.BadCommand)
	}
	if m.w.key == "" {
		m.w.key = string(c.Key[:])
		m.note(noteKey, m.w.key)
	}
	return command.Result{}
}

// Key is the cell's key, or "" while it has none.
func (s *State) Key() string { return s.key }

// sealSize is how much of an HMAC-SHA-256 a seal has: 128 bits cannot be guessed.
const sealSize = 16

// Seal gives the check digits of a handle's text: nobody without the cell's key can make them, or change what they vouch
// for. It is nil while the cell has no key.
func (s *State) Seal(path string, instance uint64, write, change bool) []byte {
	if s.key == "" {
		return nil
	}
	var modes byte
	if write {
		modes |= 1
	}
	if change {
		modes |= 2
	}
	b := append([]byte{1}, modes) // the version of what follows, in which no two handles look alike
	b = binary.BigEndian.AppendUint64(b, s.epoch)
	b = binary.BigEndian.AppendUint64(b, instance)
	b = append(binary.AppendUvarint(b, uint64(len(s.cell))), s.cell...)
	b = append(b, path...)
	h := hmac.New(sha256.New, []byte(s.key))
	_, _ = h.Write(b) // a hash takes everything
	return h.Sum(nil)[:sealSize]
}

// Sealed reports whether seal is that of such a handle.
func (s *State) Sealed(seal []byte, path string, instance uint64, write, change bool) bool {
	return s.key != "" && hmac.Equal(seal, s.Seal(path, instance, write, change))
}
