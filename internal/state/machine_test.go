package state

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// apply executes c at the next index and fails the test if it cannot be decoded.
func apply(t testing.TB, m *Machine, c *command.Command) command.Result {
	t.Helper()
	r, err := m.Apply(m.w.index+1, 1, command.Append(nil, c))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func openSessions(t testing.TB, m *Machine, n int) {
	t.Helper()
	for i := range n {
		if r := apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: uint64(i + 1)}); r.Code != command.OK {
			t.Fatal(describe(&r))
		}
	}
}

// Purity: nothing in this package can see a clock, chance, the machine it runs on or the order of a Go map, and nothing
// runs beside Apply. The imports and the syntax show it.
func TestPurity(t *testing.T) {
	allowed := []string{
		"bufio", "bytes", "cmp", "crypto/hmac", "crypto/sha256", "encoding/binary", "errors", "fmt", "hash", "io", "iter", "math", "slices", "strconv", "strings",
		"github.com/OneOfOne/xxhash", "github.com/tidwall/btree", "github.com/chubbygo/chubby/fence", "github.com/chubbygo/chubby/internal/command",
		"github.com/chubbygo/chubby/internal/index",
	}
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		read++
		set := token.NewFileSet()
		tree, err := parser.ParseFile(set, f.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range tree.Imports {
			if path, _ := strconv.Unquote(i.Path.Value); !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s", f.Name(), path)
			}
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			switch n.(type) {
			case *ast.MapType: // ranging over one is where its order comes in; this package needs none
				t.Errorf("%v: a Go map", set.Position(n.Pos()))
			case *ast.GoStmt, *ast.SelectStmt, *ast.ChanType, *ast.SendStmt:
				t.Errorf("%v: concurrency", set.Position(n.Pos()))
			}
			if id, ok := n.(*ast.Ident); ok && (id.Name == "float64" || id.Name == "float32") {
				t.Errorf("%v: %s", set.Position(n.Pos()), id.Name)
			}
			return true
		})
	}
	if read < 10 {
		t.Errorf("only %d files read", read)
	}
}

// A published state never changes, whatever is executed after it, and publishing or forking it is no write to it.
// Readers of each state run beside the writer; the race detector watches.
func TestReadersBesideWriter(t *testing.T) {
	m := NewMachine(New("local", 7))
	openSessions(t, m, 2)
	for i := range 200 {
		apply(t, m, &command.Command{Kind: command.KindSet, Path: fmt.Sprintf("/d%d/f", i%10), Data: []byte("first")})
	}
	s, _ := m.Publish()
	var root atomic.Pointer[State]
	root.Store(s)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				s := root.Load()
				before := snapshot(t, s)
				if err := s.Check(); err != nil {
					t.Error(err)
				}
				if _, code := s.List("/"); code != command.OK {
					t.Error(code)
				}
				NewMachine(s).Publish() // another writer of the same root, as after a restore
				if !bytes.Equal(snapshot(t, s), before) {
					t.Error("a published state changed")
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	random := newRandom(t)
	g := newGenerator(random.IntN)
	for i := range 600 {
		raw, term := g.next(m.State())
		if _, err := m.Apply(m.w.index+1, term, raw); err != nil {
			t.Fatal(err)
		}
		if i%8 == 0 {
			s, _ := m.Publish()
			root.Store(s)
		}
	}
	close(done)
	wg.Wait()
}

// Nothing of a command's bytes, or of a result, is shared with the state.
func TestApplyKeepsNothing(t *testing.T) {
	m := NewMachine(New("local", 7))
	openSessions(t, m, 2)
	m.Publish()
	for _, c := range []*command.Command{
		{Kind: command.KindSet, Session: 1, Seq: 1, Path: "/a", Data: []byte("data")},
		{Kind: command.KindTxn, Session: 1, Seq: 2, Then: []command.Op{{Kind: command.OpCreate, Path: "/b", Data: []byte("data")}, {Kind: command.OpGet, Path: "/b"}}},
		{Kind: command.KindLock, Session: 1, Seq: 3, Path: "/l", Mode: fence.Exclusive, HasData: true, Data: []byte("data")},
		{Kind: command.KindLock, Session: 2, Seq: 1, Path: "/l", Mode: fence.Exclusive, HasData: true, Data: []byte("next")},
		{Kind: command.KindCloseSession, Session: 1},
	} {
		raw := command.Append(nil, c)
		if _, err := m.Apply(m.w.index+1, 1, raw); err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			raw[i] = '!'
		}
	}
	s, _ := m.Publish()
	for path, want := range map[string]string{"/a": "data", "/b": "data", "/l": "next"} {
		if e, _ := s.Get(path); string(e.Data) != want || e.Path != path {
			t.Errorf("%s: %+v", path, e)
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

func TestApplyUndecodable(t *testing.T) {
	m := NewMachine(New("local", 7))
	before := m.w
	for _, raw := range [][]byte{nil, {9, 1}, {1, 200}, {1, byte(command.KindSet)}} {
		if _, err := m.Apply(5, 1, raw); err == nil {
			t.Errorf("%x: no error", raw)
		}
	}
	if m.w.index != before.index || m.w.hash != before.hash {
		t.Error("a command that cannot be decoded left a trace")
	}
}

// The window holds 1024 answers; beyond it nothing is executed or remembered. Waiting commands have their places in the
// queue.
func TestWindowCount(t *testing.T) {
	m := NewMachine(New("local", 7))
	openSessions(t, m, 2)
	apply(t, m, &command.Command{Kind: command.KindLock, Session: 2, Seq: 1, Path: "/l", Mode: fence.Exclusive})
	set := func(seq, acked uint64) command.Result {
		return apply(t, m, &command.Command{Kind: command.KindSet, Session: 1, Seq: seq, AckedBelow: acked, Path: "/n", Data: []byte(fmt.Sprint(seq))})
	}
	for seq := uint64(1); seq <= 24; seq++ {
		c := &command.Command{Kind: command.KindLock, Session: 1, Seq: seq, Path: "/l", Mode: fence.Exclusive}
		if r := apply(t, m, c); !r.Queued {
			t.Fatal(describe(&r))
		}
	}
	for seq := uint64(25); seq < 25+1024; seq++ {
		if r := set(seq, 0); r.Code != command.OK {
			t.Fatal(seq, describe(&r))
		}
	}
	for range 2 {
		if r := set(2000, 0); r.Code != command.WindowFull {
			t.Fatal(describe(&r))
		}
	}
	if r := set(1000, 0); r.Code != command.OK || r.Stat.Size != 4 {
		t.Errorf("a copy of what was executed: %s", describe(&r))
	}
	// A grant is an answer too, however full the window is.
	apply(t, m, &command.Command{Kind: command.KindCloseSession, Session: 2})
	if r := set(2000, 2); r.Code != command.WindowFull { // the grant's was acknowledged
		t.Fatal(describe(&r))
	}
	if r := set(2000, 26); r.Code != command.OK { // and one more
		t.Fatal(describe(&r))
	}
	if s, _ := m.Publish(); s.Check() != nil {
		t.Error(s.Check())
	}
	// A waiting command's place is not freed by acknowledging beyond it.
	if r := set(3000, 3000); r.Code != command.OK {
		t.Fatal(describe(&r))
	}
	s, _ := m.Publish()
	if v, _ := s.sessions.get(key64(1)); len(v.answers)+v.waits != 1+23 {
		t.Errorf("%d answers, %d waiting", len(v.answers), v.waits)
	}
}

func TestWindowBytes(t *testing.T) {
	m := NewMachine(New("local", 7))
	openSessions(t, m, 1)
	apply(t, m, &command.Command{Kind: command.KindSet, Path: "/big", Data: make([]byte, 700<<10)})
	get := func(seq, acked uint64) command.Result {
		return apply(t, m, &command.Command{Kind: command.KindTxn, Session: 1, Seq: seq, AckedBelow: acked, Then: []command.Op{{Kind: command.OpGet, Path: "/big"}}})
	}
	for seq, want := range []command.Code{command.OK, command.OK, command.WindowFull} {
		if r := get(uint64(seq+1), 0); r.Code != want {
			t.Errorf("%d: %s", seq+1, codeName(r.Code))
		}
	}
	if r := get(3, 2); r.Code != command.OK {
		t.Error(codeName(r.Code))
	}
	// The lowest one is not held up: nothing above it can be acknowledged before.
	for _, c := range []struct {
		seq  uint64
		want command.Code
	}{{11, command.OK}, {12, command.OK}, {10, command.WindowFull}, {9, command.OK}} {
		if r := get(c.seq, 9); r.Code != c.want {
			t.Errorf("%d: %s", c.seq, codeName(r.Code))
		}
	}
}

// A Txn does not bring back more than fits into a frame.
func TestTxnBytes(t *testing.T) {
	m := NewMachine(New("local", 7))
	apply(t, m, &command.Command{Kind: command.KindSet, Path: "/big", Data: make([]byte, 400<<10)})
	get := command.Op{Kind: command.OpGet, Path: "/big"}
	set := command.Op{Kind: command.OpSet, Path: "/small"}
	if r := apply(t, m, &command.Command{Kind: command.KindTxn, Then: []command.Op{get, get}}); r.Code != command.OK {
		t.Error(codeName(r.Code))
	}
	if r := apply(t, m, &command.Command{Kind: command.KindTxn, Then: []command.Op{set, get, get, get}}); r.Code != command.BadCommand {
		t.Error(codeName(r.Code))
	}
	if s, _ := m.Publish(); s.entry("/small") != nil {
		t.Error("a refused Txn left an entry")
	}
}

// All 65,536 slots are given away: then the first one whose owner has no session.
func TestSlots(t *testing.T) {
	m := NewMachine(New("local", 7))
	assign := func(node string) command.Result {
		return apply(t, m, &command.Command{Kind: command.KindAssignSlot, Node: node})
	}
	for i := range 3 {
		if r := assign(fmt.Sprint("n", i)); r.Code != command.OK || r.Slot != uint32(i) {
			t.Fatal(describe(&r))
		}
	}
	for i := uint32(3); i < slotsMax; i++ { // the rest without commands, for speed
		node := fmt.Sprint("n", i)
		m.w.slots.set(slotKey(i), &slot{node: node, revision: m.w.revision})
		m.w.nodes.set(node, i)
	}
	apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: 10, Slot: 0})
	if r := assign("late"); r.Slot != 1 || r.Code != command.OK {
		t.Error(describe(&r))
	}
	if r := assign("n0"); r.Slot != 0 {
		t.Error(describe(&r))
	}
	if r := assign("n1"); r.Slot != 2 { // its own went to another
		t.Error(describe(&r))
	}
	s, _ := m.Publish()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	if again, err := Read(bytes.NewReader(snapshot(t, s))); err != nil || again.Check() != nil {
		t.Error(err)
	}
	for i := range uint32(slotsMax) {
		id := uint64(100 + i)
		m.w.sessions.set(key64(id), &session{id: id, slot: i})
	}
	if r := assign("too late"); r.Code != command.Slots {
		t.Error(describe(&r))
	}
	if r := apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: 1 << 40, Slot: slotsMax}); r.Code != command.BadCommand {
		t.Error(describe(&r))
	}
}

// Goal: HashAt does not depend on how commands lie in entries and batches. Method: the same entries, published in
// different places, with entries without commands in between.
func TestHashAt(t *testing.T) {
	set := command.Append(nil, &command.Command{Kind: command.KindSet, Path: "/a"})
	at := map[string]uint64{}
	var hashes []uint64
	for range 3 {
		m := NewMachine(New("local", 7))
		must := func(index uint64) {
			if _, err := m.Apply(index, 1, set); err != nil {
				t.Fatal(err)
			}
		}
		check := func(name string, index uint64) {
			s, _ := m.Publish()
			i, h := s.HashAt()
			if i != index {
				t.Errorf("%s: index %d, want %d", name, i, index)
			}
			if old, ok := at[name]; ok && old != h {
				t.Errorf("%s: another hash", name)
			}
			at[name] = h
		}
		must(999)
		if len(hashes)%2 == 0 {
			check("before", 0)
		}
		must(1000)
		must(1000) // the second command of the same entry
		if len(hashes) > 0 {
			check("at 1000", 1000)
		}
		want := m.w.hash
		m.Advance(1001, 1)
		check("after 1000", 1000)
		must(1002)
		if _, h := func() (uint64, uint64) { s, _ := m.Publish(); return s.HashAt() }(); h != want {
			t.Error("not the hash after the last command of 1000")
		}
		want = m.w.hash
		must(4500) // 2000, 3000 and 4000 passed without a command
		check("after 4000", 4000)
		if s, _ := m.Publish(); s.mark.Hash != want {
			t.Error("not the hash after the last command below 4000")
		}
		s, err := Read(bytes.NewReader(snapshot(t, m.State())))
		if err != nil {
			t.Fatal(err)
		}
		if i, h := s.HashAt(); i != 4000 || h != want {
			t.Error("the snapshot has another")
		}
		hashes = append(hashes, m.w.hash)
	}
	if hashes[0] != hashes[1] || hashes[1] != hashes[2] {
		t.Error(hashes)
	}
}

// The hash tells apart what snapshots would, and also a command that only got another answer.
func TestHashDiffers(t *testing.T) {
	seen := map[uint64]string{}
	for _, line := range []string{"set /a x", "set /a y", "set /b x", "add /n 1 2", "add /n 1 3", "barrier", "open 1", "open 2", "slot n"} {
		s := newScript(t)
		s.run(line)
		h := s.m.State().Hash()
		if other, ok := seen[h]; ok {
			t.Errorf("%q and %q have the same hash", line, other)
		}
		seen[h] = line
	}
}

// 10,000 calls wait for one lock. Hand-overs go in the order of the calls; cancelling in the middle and ending sessions
// are no slower for the length of the queue.
func TestLongQueue(t *testing.T) {
	const sessions, each = 20, 500
	m := NewMachine(New("local", 7))
	openSessions(t, m, sessions+1)
	apply(t, m, &command.Command{Kind: command.KindLock, Session: sessions + 1, Seq: 1, Path: "/l", Mode: fence.Exclusive})
	for i := range sessions * each {
		c := &command.Command{Kind: command.KindLock, Session: uint64(i%sessions + 1), Seq: uint64(i/sessions + 1), Path: "/l", Mode: fence.Exclusive}
		if r := apply(t, m, c); !r.Queued {
			t.Fatal(describe(&r))
		}
	}
	s, _ := m.Publish()
	if s.Counts().Waiters != sessions*each {
		t.Fatal(s.Counts())
	}
	// Every fifth leaves from the middle.
	for i := 4; i < sessions*each; i += 5 {
		apply(t, m, &command.Command{Kind: command.KindCancelLock, Session: uint64(i%sessions + 1), Seq: uint64(1000 + i), LockSeq: uint64(i/sessions + 1), AckedBelow: uint64(i/sessions + 1), Path: "/l"})
	}
	holder := Holder{Session: sessions + 1, Seq: 1}
	var last uint64
	for n := range sessions * each {
		if n%5 == 4 {
			continue
		}
		generation := m.w.revision
		if n > 0 {
			generation = last
		} else {
			generation = m.w.Lock("/l").Generation
		}
		r := apply(t, m, &command.Command{Kind: command.KindUnlock, Session: holder.Session, Seq: 0, Term: 1, LockSeq: holder.Seq, Path: "/l", Generation: generation})
		if r.Code != command.OK {
			t.Fatal(n, describe(&r))
		}
		_, events := m.Publish()
		if len(events) != 2 || events[0].Kind != LockReleased {
			t.Fatalf("%d: a hand-over wakes its waiter alone, this one told of %+v", n, events)
		}
		got := events[1]
		holder = Holder{Session: uint64(n%sessions + 1), Seq: uint64(n/sessions + 1)}
		if got.Kind != LockAcquired || got.Session != holder.Session || got.Seq != holder.Seq || got.Generation <= last {
			t.Fatalf("%d: %+v", n, got)
		}
		last = got.Generation
	}
	s, _ = m.Publish()
	if err := s.Check(); err != nil || s.Counts().Waiters != 0 {
		t.Error(s.Counts(), err)
	}
}

// queueOf gives a machine with so many waiters, of sessions with 500 of them each, behind one holder.
func queueOf(t testing.TB, waiters int) *Machine {
	m := NewMachine(New("local", 7))
	openSessions(t, m, waiters/500+2)
	for i := range waiters + 1 {
		apply(t, m, queuedLock(i))
	}
	m.Publish()
	return m
}

func queuedLock(i int) *command.Command {
	return &command.Command{Kind: command.KindLock, Session: uint64(i/500 + 1), Seq: uint64(i%500 + 1), Path: "/l", Mode: fence.Exclusive}
}

// handOver unlocks the i-th of queueOf's, which is the holder, and cancelQueued takes it out of the queue.
func handOver(t testing.TB, m *Machine, i int) {
	l := m.w.lockOf("/l")
	r := apply(t, m, &command.Command{Kind: command.KindUnlock, Session: uint64(i/500 + 1), LockSeq: uint64(i%500 + 1), Term: 1, Path: "/l", Generation: l.generation})
	if r.Code != command.OK {
		t.Fatal(i, describe(&r))
	}
	m.Publish()
}

func cancelQueued(t testing.TB, m *Machine, i int) {
	waiters := m.w.counts.Waiters
	r := apply(t, m, &command.Command{Kind: command.KindCancelLock, Session: uint64(i/500 + 1), Seq: uint64(1000 + i%500), AckedBelow: uint64(1000 + i%500), LockSeq: uint64(i%500 + 1), Path: "/l"})
	if r.Code != command.OK || m.w.counts.Waiters != waiters-1 {
		t.Fatal(i, describe(&r), m.w.counts)
	}
	m.Publish()
}

// The cost of a hand-over, and of one that leaves the middle of the queue, must not grow with the queue: it would with a
// list that is copied. Memory shows it without a clock. The trees of a long queue are two levels higher, no more.
func TestHandOverIsCheap(t *testing.T) {
	for name, step := range map[string]func(m *Machine, waiters, i int){
		"hand-over": func(m *Machine, _, i int) { handOver(t, m, i) },
		"cancel":    func(m *Machine, waiters, i int) { cancelQueued(t, m, waiters/2+i) },
	} {
		cost := func(waiters int) uint64 {
			m := queueOf(t, waiters)
			const n = 100
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for i := range n {
				step(m, waiters, i)
			}
			runtime.ReadMemStats(&after)
			return (after.TotalAlloc - before.TotalAlloc) / n
		}
		few, some, many := cost(500), cost(10_000), cost(100_000)
		if many > 4*few {
			t.Errorf("a %s allocates %d bytes with 500 waiters, %d with 10,000 and %d with 100,000", name, few, some, many)
		}
		t.Logf("a %s allocates %d bytes with 500 waiters, %d with 10,000 and %d with 100,000", name, few, some, many)
	}
}

// A session that does nothing is small: at most 1 KiB in a snapshot and in memory.
func TestIdleSessionIsSmall(t *testing.T) {
	const n = 10_000
	m := NewMachine(New("local", 7))
	empty := len(snapshot(t, m.State()))
	heap := func() uint64 {
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	before := heap()
	name, node := strings.Repeat("n", 64), strings.Repeat("s", 64)
	for i := range uint64(n) {
		apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: i + 1, Slot: 1, Name: name, Node: node, Lease: 12000, Grace: 45000, Nonce: [16]byte{byte(i), byte(i >> 8)}})
		if i%100 == 99 {
			m.Publish()
		}
	}
	s, _ := m.Publish()
	inMemory := (heap() - before) / n
	inSnapshot := (len(snapshot(t, s)) - empty) / n
	if inMemory > 1024 || inSnapshot > 1024 {
		t.Errorf("an idle session takes %d bytes of memory and %d of a snapshot", inMemory, inSnapshot)
	}
	t.Logf("an idle session takes %d bytes of memory and %d of a snapshot", inMemory, inSnapshot)
	runtime.KeepAlive(m)
}

func (s *State) lockOf(path string) lock {
	if l, ok := s.locks.get(path); ok {
		return *l
	}
	return lock{}
}

func TestHolds(t *testing.T) {
	m := NewMachine(New("local", 7))
	openSessions(t, m, 1)
	r := apply(t, m, &command.Command{Kind: command.KindLock, Session: 1, Seq: 1, Path: "/l", Mode: fence.Exclusive})
	s, _ := m.Publish()
	good := fence.Sequencer{Cell: "local", Epoch: 7, Path: "/l", Mode: fence.Exclusive, Generation: r.Generation}
	if !s.Holds(good) {
		t.Error("the holder's own sequencer is stale")
	}
	for name, change := range map[string]func(*fence.Sequencer){
		"cell": func(q *fence.Sequencer) { q.Cell = "other" }, "epoch": func(q *fence.Sequencer) { q.Epoch++ }, "path": func(q *fence.Sequencer) { q.Path = "/m" },
		"mode": func(q *fence.Sequencer) { q.Mode = fence.Shared }, "generation": func(q *fence.Sequencer) { q.Generation-- }, "zero": func(q *fence.Sequencer) { *q = fence.Sequencer{} },
	} {
		q := good
		if change(&q); s.Holds(q) {
			t.Errorf("another %s holds", name)
		}
	}
	apply(t, m, &command.Command{Kind: command.KindCloseSession, Session: 1})
	if after, _ := m.Publish(); after.Holds(good) || !s.Holds(good) {
		t.Error("a released lock is held, or an old state changed")
	}
}

func TestViews(t *testing.T) {
	s := sample(t)
	if s.Cell() != "local" || s.Epoch() != 7 || s.Index() != 21 || s.Term() != 1 || s.Revision() == 0 {
		t.Errorf("%s %d %d %d %d", s.Cell(), s.Epoch(), s.Index(), s.Term(), s.Revision())
	}
	for _, path := range []string{"", "x", "/none", "//"} {
		if _, ok := s.Get(path); ok {
			t.Errorf("Get(%q) found something", path)
		}
	}
	if _, code := s.List(""); code != command.NotFound {
		t.Error(code)
	}
	if _, ok := s.Session(99); ok {
		t.Error("session 99")
	}
	for range s.Sessions() {
		break // a loop may end early
	}
	for d := range s.Delays() {
		if d.Path != "/z" || d.Delay != 7 {
			t.Error(d)
		}
	}
}

func (s *State) ticket(session, seq uint64) uint64 {
	o, _ := s.owners.get(key128(session, seq))
	return o.ticket
}

func TestErrorsAreTyped(t *testing.T) {
	if _, err := Read(bytes.NewReader([]byte(snapshotMagic + "\x07"))); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "7") {
		t.Error(err)
	}
	if _, err := Read(bytes.NewReader([]byte("something else"))); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}
