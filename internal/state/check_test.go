package state

import (
	"slices"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// Check finds damage of every kind that a test can think of.
func TestCheckFinds(t *testing.T) {
	edit := func(s *State, path string, f func(*entry)) {
		e := *s.entry(path)
		f(&e)
		s.entries.set(treeKey(path), &e)
	}
	for name, damage := range map[string]func(*State){
		"count of entries":   func(s *State) { s.counts.Entries++ },
		"bytes":              func(s *State) { s.counts.Bytes-- },
		"sessions":           func(s *State) { s.counts.Sessions++ },
		"locks":              func(s *State) { s.counts.Locks++ },
		"waiters":            func(s *State) { s.counts.Waiters++ },
		"children":           func(s *State) { edit(s, "/a", func(e *entry) { e.children++ }) },
		"checksum":           func(s *State) { edit(s, "/a/b", func(e *entry) { e.checksum++ }) },
		"data":               func(s *State) { edit(s, "/a/b", func(e *entry) { e.data = []byte("y") }) },
		"revision to come":   func(s *State) { edit(s, "/a/b", func(e *entry) { e.revision = 1000 }) },
		"lock generation":    func(s *State) { edit(s, "/a/b", func(e *entry) { e.lockGen-- }) },
		"ephemeral":          func(s *State) { edit(s, "/e", func(e *entry) { e.session = 77 }) },
		"abandoned":          func(s *State) { edit(s, "/d", func(e *entry) { e.session = 0 }) },
		"orphan":             func(s *State) { s.entries.delete(treeKey("/a")) },
		"no root":            func(s *State) { s.entries.delete(treeKey("/")) },
		"wrong key":          func(s *State) { s.entries.set(treeKey("/q"), s.entry("/a/b")) },
		"session gone":       func(s *State) { s.sessions.delete(key64(1)) },
		"floor":              func(s *State) { s.floors.set(slotKey(1), 0) },
		"two holders":        func(s *State) { l := s.lockOf("/a/b"); l.holders = 2; s.locks.set("/a/b", &l) },
		"no holder":          func(s *State) { l := s.lockOf("/a/b"); l.holders = 0; s.locks.set("/a/b", &l) },
		"free lock":          func(s *State) { s.locks.set("/free", &lock{}) },
		"opened but awaited": func(s *State) { l := s.lockOf("/a/b"); l.mode = fence.Shared; s.locks.set("/a/b", &l) },
		"delay not indexed":  func(s *State) { s.delays.delete("/z") },
		"owner not indexed":  func(s *State) { s.owners.delete(key128(2, 1)) },
		"owner not listed":   func(s *State) { s.waiters.delete(ticketKey("/a/b", s.ticket(2, 1))) },
		"slot":               func(s *State) { s.nodes.set("n", 3) },
		"key":                func(s *State) { s.key = "short" },
		"level":              func(s *State) { s.level = 0 },
		"ACLs off":           func(s *State) { s.guarded = false },
		"empty names":        func(s *State) { edit(s, "/a/b", func(e *entry) { e.acl = new(command.ACL) }) },
		"bad names":          func(s *State) { edit(s, "/a/b", func(e *entry) { e.acl = &command.ACL{Write: "a/b"} }) },
		"handle not indexed": func(s *State) { s.openers.delete("/h\x00" + key128(2, 4)) },
		"handle of nobody":   func(s *State) { o, _ := s.opens.get(key128(2, 4)); o.session = 9 },
		"another's handle":   func(s *State) { o, _ := s.opens.get(key128(2, 4)); o.instance++ },
		"handle index":       func(s *State) { s.openers.set("/q", &open{}) },
		"not open any more":  func(s *State) { s.opens, s.openers = newOmap[*open](), newOmap[*open]() },
		"holder of instance": func(s *State) { o, _ := s.owners.get(key128(1, 2)); o.instance = 1 },
		"mark":               func(s *State) { s.mark.Index = 5000 },
		"window":             func(s *State) { v, _ := s.sessions.get(key64(1)); v.bytes++ },
		"answer":             func(s *State) { v, _ := s.sessions.get(key64(1)); v.answers[0].raw[0] = 9 },
		"order of answers":   func(s *State) { v, _ := s.sessions.get(key64(1)); slices.Reverse(v.answers) },
	} {
		t.Run(name, func(t *testing.T) {
			s := sample(t)
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
			damage(s)
			if s.Check() == nil {
				t.Error("Check finds nothing")
			}
		})
	}
}
