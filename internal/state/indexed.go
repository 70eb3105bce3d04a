package state

import "github.com/chubbygo/chubby/internal/index"

// The index in front of the tree. It holds the record of each path as it is in the newest state, or in one that is about
// to be published, and every state since the one that Indexed returned shares it. So it is a hint, and right by three
// rules:
//
//   - Publish writes it before anybody can have the new state. Hence what a state's reader finds there is at least as new
//     as that state: either the state's own record, or one that a later command made.
//   - A reader has its state first, and the index through it. Were it the other way round, what it found might be older
//     than its state.
//   - A record above the state's revision is of a later command, and one that is missing may have been deleted by one:
//     then the state's own tree tells. Every change of an entry takes the revision of its command, so a record at or below
//     the state's revision has not changed since that state.

// Indexed returns s with an index of this kind in front of its tree, nil index for index.None. It reads all of s. One
// Machine at a time may go on from what it returns.
func (s *State) Indexed(k index.Kind) *State {
	c := *s
	if c.hint = index.New[*entry](k); c.hint != nil {
		c.entries.all(func(_ string, e *entry) bool {
			c.hint.Store(e.path, e)
			return true
		})
	}
	return &c
}

// find is entry by way of the index.
func (s *State) find(path string) *entry {
	if s.hint != nil {
		if e, ok := s.hint.Load(path); ok && e.revision <= s.revision {
			return e
		}
	}
	return s.entry(path)
}

// touch notes that the record at path is not what it was in the last published state.
func (m *Machine) touch(path string) {
	if m.w.hint != nil {
		m.touched = append(m.touched, path)
	}
}

// reindex brings the index up to what is about to be published. What a Txn took back is looked up like the rest.
func (m *Machine) reindex() {
	for _, path := range m.touched {
		if e := m.w.entry(path); e != nil {
			m.w.hint.Store(path, e)
		} else {
			m.w.hint.Delete(path)
		}
	}
	clear(m.touched)
	m.touched = m.touched[:0]
}
