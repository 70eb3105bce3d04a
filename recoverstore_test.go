package chubby

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/state"
)

// commands gives entries from first on, each of which sets /n to its index.
func commands(first, last, term uint64) []*raft.Log {
	var l []*raft.Log
	for i := first; i <= last; i++ {
		b := command.AppendEntryHeader(nil, 1, i, 1)
		b = command.AppendEntryCommand(b, command.Append(nil, &command.Command{Kind: command.KindSet, Path: "/n", Data: fmt.Append(nil, i)}))
		l = append(l, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: b})
	}
	return l
}

// survivor makes the store of one of three members: a snapshot up to entry 6, entries up to 12, the last of them perhaps
// never committed, and term 3, in which nobody led yet.
func survivor(t *testing.T, p *place) {
	t.Helper()
	s := p.founded(t)
	store1(t, s, commands(2, 8, 1))
	root, _, err := s.latest()
	if err != nil || root.Index() != 8 {
		t.Fatalf("the state at %d, %v", root.Index(), err)
	}
	_, members, _ := s.latest()
	sink, err := s.snapshots().Create(raft.SnapshotVersionMax, 8, 1, members, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := (rootSnapshot{root}).Persist(sink); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.logs().DeleteRange(1, 5), s.vote.setTerm(3)); err != nil {
		t.Fatal(err)
	}
	store1(t, s, commands(9, 11, 2))
	store1(t, s, []*raft.Log{{Index: 12, Term: 2, Type: raft.LogNoop}})
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// state of a store: its epoch and incarnation, its newest snapshot's state, the log.
type standing struct {
	identity
	snapIndex, first, last uint64
	value                  string
	servers                []raft.Server
}

func standingOf(t *testing.T, p *place) standing {
	t.Helper()
	s := p.open(t)
	root, conf, err := s.latest()
	if err != nil {
		t.Fatal(err)
	}
	g := standing{identity: s.identity(), snapIndex: s.snap.newest(), servers: conf.Servers}
	g.first, g.last = s.log.ends()
	e, _ := root.Get("/n")
	g.value = string(e.Data)
	if root.Epoch() != g.Epoch {
		t.Errorf("the state is of epoch %d, the node of %d", root.Epoch(), g.Epoch)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return g
}

// wantOld checks that nothing has happened to a survivor, wantRecovered that everything has.
func wantOld(t *testing.T, g standing) {
	t.Helper()
	if g.Epoch != 7 || g.snapIndex != 8 || g.first != 6 || g.last != 12 || g.value != "11" || len(g.servers) != 3 {
		t.Errorf("a survivor that was not recovered is %+v", g)
	}
}

func wantRecovered(t *testing.T, g standing) {
	t.Helper()
	if g.Epoch <= 7 || g.snapIndex != 13 || g.last != 0 || g.value != "11" || len(g.servers) != 1 ||
		string(g.servers[0].ID) != g.ID+"."+g.Incarnation || g.Incarnation == "x" || g.servers[0].Suffrage != raft.Voter {
		t.Errorf("a recovered survivor is %+v", g)
	}
}

// Goal: a Recover that is interrupted at any step has done nothing or everything, and can be repeated. Method: each write
// in turn fails, and on a memory disk what was not synced is lost; then the store is opened, then recovered again.
func TestRecoverInterrupted(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		done, undone := 0, 0
		for fail := 1; ; fail++ {
			p := places(t)[map[bool]string{true: "dir", false: "memory"}[p.Dir != ""]]
			survivor(t, p)
			boom := errors.New("boom")
			writes := 0
			c := p.config()
			c.Whoever, c.ID, c.Cell = true, "", ""
			c.Fault = func(string) error {
				if writes++; writes >= fail {
					return boom
				}
				return nil
			}
			err := recoverStore(c)
			if p.Disk != nil {
				p.Disk.Crash()
			}
			g := standingOf(t, p)
			if writes < fail {
				if err != nil {
					t.Fatal(err)
				}
				wantRecovered(t, g)
				break
			}
			if !errors.Is(err, boom) {
				t.Fatalf("write %d fails: %v", fail, err)
			}
			if g.Epoch == 7 {
				undone++
				wantOld(t, g)
			} else {
				done++
				wantRecovered(t, g)
				continue
			}
			c.Fault = nil
			if err := recoverStore(c); err != nil {
				t.Fatal(err)
			}
			wantRecovered(t, standingOf(t, p))
		}
		if done == 0 || undone < 2 {
			t.Errorf("of the interruptions %d came after it was done, %d before", done, undone)
		}
	})
}

// What cannot be recovered is refused and stays as it is.
func TestRecoverRefuses(t *testing.T) {
	fresh := &place{storeConfig: storeConfig{Disk: new(hook.Disk), ID: "n1", Cell: "c"}}
	if err := fresh.open(t).close(); err != nil {
		t.Fatal(err)
	}
	c := fresh.config()
	c.Whoever = true
	if err := recoverStore(c); !errors.Is(err, ErrWrongCell) {
		t.Errorf("a node of no cell: %v", err)
	}

	gone := places(t)["memory"]
	survivor(t, gone)
	s := gone.open(t)
	if err := errors.Join(s.removed(), s.close()); err != nil {
		t.Fatal(err)
	}
	c = gone.config()
	c.Whoever = true
	if err := recoverStore(c); !errors.Is(err, ErrRemoved) {
		t.Errorf("a node that was removed: %v", err)
	}

	for name, e := range map[string]*raft.Log{
		"no entry":         {Index: 13, Term: 2, Type: raft.LogCommand, Data: []byte("\x01x")},
		"no command":       {Index: 13, Term: 2, Type: raft.LogCommand, Data: command.AppendEntryCommand(command.AppendEntryHeader(nil, 1, 1, 1), []byte{command.Version, 200})},
		"no configuration": {Index: 13, Term: 2, Type: raft.LogConfiguration, Data: []byte("x")},
	} {
		p := places(t)["memory"]
		survivor(t, p)
		s := p.open(t)
		store1(t, s, []*raft.Log{e})
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		c := p.config()
		c.Whoever = true
		if err := recoverStore(c); err == nil || errors.Is(err, ErrCorrupt) == (name == "no command") {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A snapshot that is sound in itself and that of another cell.
	p := places(t)["memory"]
	s = p.founded(t)
	sink, err := s.snapshots().Create(raft.SnapshotVersionMax, 8, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := (rootSnapshot{state.New("c", 6)}).Persist(sink); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.latest(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("the state of another epoch: %v", err)
	}
	if sink, err = s.snapshots().Create(raft.SnapshotVersionMax, 9, 1, raft.Configuration{}, 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(sink, "no state"); err != nil {
		t.Fatal(err)
	}
	if err := sink.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.latest(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no state: %v", err)
	}
}
