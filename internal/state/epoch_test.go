package state

import (
	"bytes"
	"math"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// A new epoch keeps the entries and the floors of session ids, ends everything that belongs to sessions, and begins with
// a revision that the old one never reached.
func TestNewEpoch(t *testing.T) {
	old := sample(t)
	before := snapshot(t, old)
	held := old.Lock("/a/b")
	next, err := old.NewEpoch(9, old.Term()+3)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(snapshot(t, old), before) {
		t.Error("the old state changed")
	}
	if next.Epoch() != 9 || next.Index() != old.Index()+1 || next.Term() != old.Term()+3 || next.Revision() != old.Revision()+EpochLeap {
		t.Errorf("epoch %d, index %d, term %d, revision %d", next.Epoch(), next.Index(), next.Term(), next.Revision())
	}
	if c := next.Counts(); c.Sessions != 0 || c.Locks != 0 || c.Waiters != 0 {
		t.Errorf("left: %+v", c)
	}
	for range next.Delays() {
		t.Error("a lock is shut")
	}
	if next.locks.len()+next.owners.len()+next.ephemerals.len()+next.opens.len() != 0 {
		t.Error("locks, owners, ephemeral entries or open handles are left")
	}
	if next.key != old.key || !next.guarded {
		t.Error("the cell's key or its access control lists are gone")
	}
	for _, path := range []string{"/e", "/d", "/h"} {
		if _, ok := next.Get(path); ok {
			t.Errorf("%s outlived its session", path)
		}
	}
	was, _ := old.Get("/a/b")
	if is, ok := next.Get("/a/b"); !ok || string(is.Data) != string(was.Data) || is.Stat != was.Stat {
		t.Errorf("/a/b is %+v, was %+v", is, was)
	}
	if next.Holds(fence.Sequencer{Cell: "local", Epoch: 7, Path: "/a/b", Mode: held.Mode, Generation: held.Generation}) {
		t.Error("an old sequencer is good")
	}
	again, err := Read(bytes.NewReader(snapshot(t, next)))
	if err != nil || !bytes.Equal(snapshot(t, again), snapshot(t, next)) {
		t.Errorf("the new state's snapshot: %v", err)
	}

	// A late copy of an old session's opening opens nothing, and its commands are nobody's.
	m := NewMachine(next)
	for id := range uint64(3) {
		r, err := m.Apply(next.Index()+1, next.Term(), commandBytes(&command.Command{Kind: command.KindOpenSession, Session: id + 1, Slot: uint32(id + 1)}))
		if err != nil || r.Code != command.SessionRefused || r.Floor < id+1 {
			t.Errorf("session %d again: %+v, %v", id+1, r, err)
		}
	}
	r, err := m.Apply(next.Index()+1, next.Term(), commandBytes(&command.Command{Kind: command.KindSet, Session: 1, Seq: 9, Path: "/a/b"}))
	if err != nil || r.Code != command.SessionExpired {
		t.Errorf("a command of an old session: %+v, %v", r, err)
	}
	// What is changed now has a number that nothing of the old epoch has, whatever that did since.
	r, err = m.Apply(next.Index()+1, next.Term(), commandBytes(&command.Command{Kind: command.KindOpenSession, Session: 100, Slot: 1}))
	if err != nil || r.Code != command.OK || r.Revision != old.Revision()+EpochLeap+1 {
		t.Errorf("after the leap: %+v, %v", r, err)
	}
}

// Nothing is left of a lock whose lost holder had company, and of one that was shut with somebody waiting.
func TestNewEpochOfDelays(t *testing.T) {
	s := &script{m: NewMachine(New("local", 7))}
	for _, line := range []string{
		"slot n", "open 1", "open 2", "open 3", "1/1 lock shared /s delay=9", "2/1 lock shared /s", "3/1 lock /s",
		"1/2 lock /z delay=4", "expire in=1 1", "2/2 lock /z",
	} {
		c, term, err := parseCommand(line)
		if err != nil {
			t.Fatal(err)
		}
		s.index++
		if r, err := s.m.Apply(s.index, term, commandBytes(c)); err != nil || r.Code != command.OK {
			t.Fatalf("%s: %v, %v", line, r, err)
		}
	}
	old, _ := s.m.Publish()
	if !old.Lock("/z").Delayed || old.Lock("/s").Waiters != 1 {
		t.Fatalf("/z is %+v, /s is %+v", old.Lock("/z"), old.Lock("/s"))
	}
	next, err := old.NewEpoch(8, old.Term())
	if err != nil {
		t.Fatal(err)
	}
	if next.locks.len() != 0 || next.delays.len() != 0 {
		t.Errorf("/s is %+v, /z is %+v", next.Lock("/s"), next.Lock("/z"))
	}
}

func TestNewEpochRefusals(t *testing.T) {
	s := sample(t)
	for name, f := range map[string]func() (*State, error){
		"same epoch": func() (*State, error) { return s.NewEpoch(7, s.Term()) },
		"no term":    func() (*State, error) { return New("local", 7).NewEpoch(8, 0) },
		"older term": func() (*State, error) { return s.NewEpoch(8, s.Term()-1) },
		"last epoch": func() (*State, error) { c := *s; c.epoch = math.MaxUint64; return c.NewEpoch(0, s.Term()) },
		"no revision": func() (*State, error) {
			c := *s
			c.revision = math.MaxUint64 - EpochLeap
			return c.NewEpoch(8, s.Term())
		},
		"no index":     func() (*State, error) { c := *s; c.index = math.MaxUint64; return c.NewEpoch(8, s.Term()) },
		"no term left": func() (*State, error) { return s.NewEpoch(8, math.MaxUint64) },
	} {
		if next, err := f(); err == nil {
			t.Errorf("%s: %v", name, next)
		}
	}
}

// Goal: whatever the old epoch was in the middle of, the new one is sound and has its permanent files. Method: random
// commands, and a new epoch after each.
func TestNewEpochRandom(t *testing.T) {
	random := newRandom(t)
	for range 10 {
		g, m := newGenerator(random.IntN), NewMachine(New("local", 7))
		for i := range 150 {
			raw, term := g.next(m.State())
			if _, err := m.Apply(uint64(i+1), term, raw); err != nil {
				t.Fatal(err)
			}
			old, _ := m.Publish()
			next, err := old.NewEpoch(8, old.Term()) // it checks its own invariants
			if err != nil {
				t.Fatal(err)
			}
			if next.sessions.len()+next.locks.len()+next.owners.len()+next.delays.len()+next.ephemerals.len()+next.opens.len() != 0 {
				t.Fatalf("after %d commands something of the sessions is left: %+v", i+1, next.Counts())
			}
			old.entries.all(func(_ string, e *entry) bool {
				if kept, ok := next.Get(e.path); !e.dir && !e.ephemeral && (!ok || kept.Stat != e.stat() || !bytes.Equal(kept.Data, e.data)) {
					t.Fatalf("%s was %+v, is %+v", e.path, e.stat(), kept)
				}
				return true
			})
		}
	}
}
