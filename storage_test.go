package chubby

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
)

// Small pieces make the same paths fast to walk.
const (
	testChunk  = 1 << 10
	testDelete = 50
)

// place is where a test's store lives: a directory or a memory disk.
type place struct {
	storeConfig
	failed chan error
}

// config gives the configuration for the next open, with a fresh failed channel.
func (p *place) config() storeConfig {
	p.failed = make(chan error, 1)
	c := p.storeConfig
	c.Fail = func(err error) { p.failed <- err }
	return c
}

func (p *place) open(t testing.TB) *store {
	t.Helper()
	s, err := openStore(p.config())
	if err != nil {
		t.Fatal(err)
	}
	s.snap.chunk, s.log.chunk = testChunk, testDelete
	t.Cleanup(func() { _ = s.close() }) // most tests have closed it; only the descriptors matter here
	return s
}

func (p *place) reopen(t testing.TB, s *store) *store {
	t.Helper()
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return p.open(t)
}

func places(t testing.TB) map[string]*place {
	return map[string]*place{
		"dir":    {storeConfig: storeConfig{Dir: filepath.Join(t.TempDir(), "a", "b"), ID: "n1", Cell: "c"}},
		"memory": {storeConfig: storeConfig{Disk: new(hook.Disk), ID: "n1", Cell: "c"}},
	}
}

// both runs a test over both kinds of place.
func both(t *testing.T, f func(t *testing.T, p *place)) {
	for name, p := range places(t) {
		t.Run(name, func(t *testing.T) { f(t, p) })
	}
}

func testFounding() founding {
	return founding{Epoch: 7, Servers: []raft.Server{
		{ID: "n2.x", Address: "h2:1"}, {ID: "n1.x", Address: "h1:1"}, {ID: "n3.x", Address: "h3:1"},
	}}
}

func (p *place) founded(t testing.TB) *store {
	t.Helper()
	s := p.open(t)
	if err := s.found(testFounding()); err != nil {
		t.Fatal(err)
	}
	return s
}

func entries(from, to, term uint64) []*raft.Log {
	var l []*raft.Log
	for i := from; i <= to; i++ {
		l = append(l, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term),
			AppendedAt: time.Unix(1e9, int64(i))})
	}
	return l
}

func store1(t testing.TB, s *store, l []*raft.Log) {
	t.Helper()
	if err := s.logs().StoreLogs(l); err != nil {
		t.Fatal(err)
	}
}

// wantLog checks that the log is exactly from..to, each entry with the data of the term given by terms.
func wantLog(t testing.TB, s *store, from, to uint64, term func(uint64) uint64) {
	t.Helper()
	first, err1 := s.logs().FirstIndex()
	last, err2 := s.logs().LastIndex()
	if err := errors.Join(err1, err2); err != nil || first != from || last != to {
		t.Fatalf("log is %d..%d (%v), want %d..%d", first, last, err, from, to)
	}
	var bytesWant int64
	for i := from; i <= to && i > 0; i++ {
		var e raft.Log
		if err := s.logs().GetLog(i, &e); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		bytesWant += int64(entryBytes(&e))
		if i == 1 {
			continue // the configuration
		}
		want := fmt.Sprintf("entry %d of term %d", i, term(i))
		if e.Index != i || e.Term != term(i) || string(e.Data) != want || !e.AppendedAt.Equal(time.Unix(1e9, int64(i))) || len(e.Extensions) != 8 {
			t.Fatalf("entry %d is %+v, want %q", i, e, want)
		}
	}
	for _, i := range []uint64{0, from - 1, to + 1} {
		if from > 0 && (i < from || i > to) {
			if err := s.logs().GetLog(i, new(raft.Log)); err != raft.ErrLogNotFound {
				t.Fatalf("entry %d: %v, want ErrLogNotFound", i, err)
			}
		}
	}
	if got := s.logBytes(); got != bytesWant {
		t.Fatalf("logBytes is %d, want %d", got, bytesWant)
	}
}

func constant(term uint64) func(uint64) uint64 { return func(uint64) uint64 { return term } }

func TestStoreIdentity(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.open(t)
		id := s.identity()
		if !id.Created || len(id.Incarnation) != 32 || id.ID != "n1" || id.Cell != "c" || id.Epoch != 0 || id.Joined {
			t.Errorf("identity is %+v", id)
		}
		if _, ok := s.founding(); ok {
			t.Error("founded from the start")
		}
		if _, err := openStore(p.config()); !errors.Is(err, ErrInUse) {
			t.Errorf("second open: %v, want ErrInUse", err)
		}
		s = p.reopen(t, s)
		id.Created = false
		if got := s.identity(); got != id {
			t.Errorf("identity is %+v, want %+v", got, id)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		for _, c := range []func(*storeConfig){func(c *storeConfig) { c.ID = "n2" }, func(c *storeConfig) { c.Cell = "d" }} {
			conf := p.config()
			c(&conf)
			_, err := openStore(conf)
			if !errors.Is(err, ErrWrongCell) || !strings.Contains(err.Error(), conf.ID) && !strings.Contains(err.Error(), conf.Cell) {
				t.Errorf("open as %s in %s: %v, want ErrWrongCell", conf.ID, conf.Cell, err)
			}
		}
		other := &place{storeConfig: storeConfig{ID: "n1", Cell: "c"}}
		if got := other.open(t).identity(); got.Incarnation == id.Incarnation {
			t.Error("two stores have one incarnation")
		}
	})
}

func TestStoreFound(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		check := func() {
			t.Helper()
			f, ok := s.founding()
			if !ok || f.Epoch != 7 || len(f.Servers) != 3 || f.Servers[0].ID != "n1.x" || f.Servers[2].Address != "h3:1" {
				t.Fatalf("founding is %+v, %v", f, ok)
			}
			var e raft.Log
			if err := s.logs().GetLog(1, &e); err != nil || e.Term != 1 || e.Type != raft.LogConfiguration {
				t.Fatalf("entry 1 is %+v, %v", e, err)
			}
			want := raft.EncodeConfiguration(raft.Configuration{Servers: f.Servers})
			if !bytes.Equal(e.Data, want) {
				t.Fatalf("entry 1 holds %x, want %x", e.Data, want)
			}
			if term, err := s.stable().GetUint64([]byte("CurrentTerm")); term != 1 || err != nil {
				t.Fatalf("term is %d, %v", term, err)
			}
			wantLog(t, s, 1, 1, constant(1))
		}
		check()
		if err := s.found(testFounding()); err != nil {
			t.Errorf("the same list again: %v", err)
		}
		f := testFounding()
		f.Servers = f.Servers[:2]
		if err := s.found(f); !errors.Is(err, ErrWrongCell) {
			t.Errorf("another list: %v, want ErrWrongCell", err)
		}
		if err := s.joined(joining{Epoch: 7, CellID: [16]byte{1}}); !errors.Is(err, ErrWrongCell) {
			t.Errorf("joined: %v, want ErrWrongCell", err)
		}
		check()
		s = p.reopen(t, s)
		check()
	})
}

func TestStoreFoundRefuses(t *testing.T) {
	s := (&place{storeConfig: storeConfig{ID: "n1", Cell: "c"}}).open(t)
	for name, f := range map[string]founding{
		"nobody":   {Epoch: 1},
		"no epoch": {Servers: testFounding().Servers},
		"nonvoter": {Epoch: 1, Servers: []raft.Server{{ID: "a", Address: "b", Suffrage: raft.Nonvoter}}},
		"twice":    {Epoch: 1, Servers: []raft.Server{{ID: "a", Address: "b"}, {ID: "a", Address: "c"}}},
		"no id":    {Epoch: 1, Servers: []raft.Server{{Address: "b"}}},
	} {
		if err := s.found(f); !errors.Is(err, ErrBadOptions) {
			t.Errorf("%s: %v, want ErrBadOptions", name, err)
		}
	}
}

func TestStoreJoined(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.open(t)
		if err := s.joined(joining{Epoch: 9, CellID: [16]byte{1, 2}}); err != nil {
			t.Fatal(err)
		}
		s = p.reopen(t, s)
		if id := s.identity(); !id.Joined || id.Epoch != 9 || id.CellID != [16]byte{1, 2} {
			t.Errorf("identity is %+v", id)
		}
		if err := s.joined(joining{Epoch: 9, CellID: [16]byte{1, 2}}); err != nil {
			t.Errorf("again: %v", err)
		}
		if err := s.found(testFounding()); !errors.Is(err, ErrWrongCell) {
			t.Errorf("found: %v, want ErrWrongCell", err)
		}
	})
}

func TestStoreMembership(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.open(t)
		takers := []raft.Server{{ID: "a.x", Address: "h:1"}, {ID: "b.y", Address: "h:2"}}
		if err := s.joined(joining{Epoch: 9, CellID: [16]byte{1}, Members: takers, Wish: true}); err != nil {
			t.Fatal(err)
		}
		s = p.reopen(t, s)
		if id := s.identity(); !id.Wish || id.Removed || !slices.Equal(s.takers(), takers) {
			t.Errorf("after joining: %+v, %v", id, s.takers())
		}
		if err := errors.Join(s.granted(), s.granted()); err != nil {
			t.Fatal(err)
		}
		s = p.reopen(t, s)
		if id := s.identity(); id.Wish || id.Removed {
			t.Errorf("after the vote: %+v", id)
		}
		if err := s.removed(); err != nil {
			t.Fatal(err)
		}
		s = p.reopen(t, s)
		if id := s.identity(); !id.Removed {
			t.Errorf("after removal: %+v", id)
		}
	})
}

func TestStoreModes(t *testing.T) {
	p := places(t)["dir"]
	p.founded(t)
	for name, want := range map[string]os.FileMode{".": 0o700, "log.db": 0o600, "snap.db": 0o600, "journal": 0o600} {
		info, err := os.Stat(filepath.Join(p.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %v, want %v", name, got, want)
		}
	}
	l, err := os.ReadDir(p.Dir)
	if err != nil || len(l) != 3 {
		t.Errorf("directory holds %v, %v", l, err)
	}
}

func TestStoreVote(t *testing.T) {
	term, voteTerm, cand := []byte("CurrentTerm"), []byte("LastVoteTerm"), []byte("LastVoteCand")
	both(t, func(t *testing.T, p *place) {
		s := p.open(t)
		for _, k := range [][]byte{term, voteTerm} {
			if v, err := s.stable().GetUint64(k); v != 0 || err == nil || err.Error() != "not found" {
				t.Errorf("%s is %d, %v", k, v, err)
			}
		}
		if v, err := s.stable().Get(cand); v != nil || err == nil || err.Error() != "not found" {
			t.Errorf("candidate is %q, %v", v, err)
		}
		if err := s.joined(joining{Epoch: 1, CellID: [16]byte{}}); err != nil {
			t.Fatal(err)
		}
		want := func(wantTerm, wantVote uint64, wantCand string) {
			t.Helper()
			a, err1 := s.stable().GetUint64(term)
			b, err2 := s.stable().GetUint64(voteTerm)
			c, err3 := s.stable().Get(cand)
			if a != wantTerm || b != wantVote || string(c) != wantCand || errors.Join(err1, err2, err3) != nil {
				t.Fatalf("vote is %d %d %q, %v %v %v", a, b, c, err1, err2, err3)
			}
		}
		set := func(n uint64, c string) {
			t.Helper()
			if err := errors.Join(s.stable().SetUint64(term, n), s.stable().SetUint64(voteTerm, n), s.stable().Set(cand, []byte(c))); err != nil {
				t.Fatal(err)
			}
		}
		set(3, "alice")
		want(3, 3, "alice")
		s = p.reopen(t, s)
		want(3, 3, "alice")
		// A crash between raft's two writes must not give the old candidate the new vote.
		if err := errors.Join(s.stable().SetUint64(term, 4), s.stable().SetUint64(voteTerm, 4)); err != nil {
			t.Fatal(err)
		}
		want(4, 3, "alice")
		s = p.reopen(t, s)
		want(4, 3, "alice")
		set(4, "bob")
		s = p.reopen(t, s)
		want(4, 4, "bob")
	})
}

func TestStoreLog(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		store1(t, s, entries(2, 50, 1))
		wantLog(t, s, 1, 50, constant(1))
		terms := func(i uint64) uint64 {
			if i >= 31 {
				return 2
			}
			return 1
		}
		if err := s.stable().SetUint64([]byte("CurrentTerm"), 2); err != nil {
			t.Fatal(err)
		}
		if err := s.logs().DeleteRange(31, 50); err != nil {
			t.Fatal(err)
		}
		wantLog(t, s, 1, 30, constant(1))
		store1(t, s, entries(31, 40, 2))
		wantLog(t, s, 1, 40, terms)
		s = p.reopen(t, s)
		wantLog(t, s, 1, 40, terms)
		snapshot(t, s, 35, 2, []byte("x"))
		if err := s.logs().DeleteRange(1, 20); err != nil {
			t.Fatal(err)
		}
		wantLog(t, s, 21, 40, terms)
		s = p.reopen(t, s)
		wantLog(t, s, 21, 40, terms)
		if got, want := s.trailing(s.logBytes()), uint64(20); got != want {
			t.Errorf("trailing is %d, want %d", got, want)
		}
		if got, want := s.trailing(s.logBytes()-1), uint64(19); got != want {
			t.Errorf("trailing is %d, want %d", got, want)
		}
		if got := s.trailing(0); got != 0 {
			t.Errorf("trailing is %d, want 0", got)
		}
		// All of it goes when a snapshot from elsewhere is installed.
		snapshot(t, s, 100, 2, []byte("y"))
		if err := s.logs().DeleteRange(21, 40); err != nil {
			t.Fatal(err)
		}
		wantLog(t, s, 0, 0, nil)
		s = p.reopen(t, s)
		wantLog(t, s, 0, 0, nil)
		store1(t, s, entries(101, 105, 2))
		s = p.reopen(t, s)
		wantLog(t, s, 101, 105, constant(2))
	})
}

// TestStoreLogChunks deletes more than one transaction's worth from both ends.
func TestStoreLogChunks(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		const n = 3*testDelete + 10
		store1(t, s, entries(2, n, 1))
		var ops int
		s.c.Fault = func(op string) error {
			if op == "delete" {
				ops++
			}
			return nil
		}
		if err := s.logs().DeleteRange(testDelete+5, n); err != nil {
			t.Fatal(err)
		}
		if ops != 3 {
			t.Errorf("suffix took %d writes, want 3", ops)
		}
		wantLog(t, s, 1, testDelete+4, constant(1))
		snapshot(t, s, n, 1, nil)
		ops = 0
		if err := s.logs().DeleteRange(1, testDelete+1); err != nil {
			t.Fatal(err)
		}
		if ops != 3 { // the mark, two chunks
			t.Errorf("prefix took %d writes, want 3", ops)
		}
		wantLog(t, s, testDelete+2, testDelete+4, constant(1))
	})
}

func snapshot(t testing.TB, s *store, index, term uint64, data []byte) string {
	t.Helper()
	k, err := s.snapshots().Create(raft.SnapshotVersionMax, index, term, raft.Configuration{Servers: testFounding().Servers}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := k.Write(data); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	return k.ID()
}

// TestStoreRace lets several openers make one directory: one gets it, the others learn that it is in use.
func TestStoreRace(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		if p.Dir != "" {
			// What a crash left does not disturb, and goes.
			if err := os.MkdirAll(p.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(p.Dir, "log.db.1.tmp"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		type result struct {
			s   *store
			err error
		}
		results := make(chan result)
		const n = 5
		for range n {
			go func() {
				s, err := openStore(p.storeConfig)
				results <- result{s, err}
			}()
		}
		var won *store
		for range n {
			r := <-results
			switch {
			case r.err == nil && won == nil:
				won = r.s
			case !errors.Is(r.err, ErrInUse):
				t.Errorf("open: %v, want one success and ErrInUse", r.err)
			}
		}
		if won == nil {
			t.Fatal("nobody got it")
		}
		if p.Dir != "" {
			if l, err := filepath.Glob(filepath.Join(p.Dir, "*.tmp")); err != nil || len(l) > 0 {
				t.Errorf("left over: %v, %v", l, err)
			}
		}
		if err := won.close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStoreDirCrash makes a directory as crashes leave it while it is made.
func TestStoreDirCrash(t *testing.T) {
	p := places(t)["dir"]
	s := p.open(t)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	// snap.db was there, log.db not yet.
	if err := os.Remove(filepath.Join(p.Dir, logFileName)); err != nil {
		t.Fatal(err)
	}
	s = p.open(t)
	if !s.identity().Created {
		t.Error("the directory was not new")
	}
	if err := s.found(testFounding()); err != nil {
		t.Fatal(err)
	}
	snapshot(t, s, 1, 1, []byte("x"))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	// With a snapshot in it, it is not new any more.
	if err := os.Remove(filepath.Join(p.Dir, logFileName)); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v, want ErrCorrupt", err)
	}
}
