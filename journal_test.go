package chubby

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// A tape is a disk that remembers everything that was done to it, in order, so that a test can make each state that a
// power failure may leave. It holds the file of a journal and, beside it, log.db as a map whose changes are atomic and
// durable, which is what bolt promises.
type tape struct {
	mu    sync.Mutex
	steps []tapeStep
	image []byte            // the journal as the running process sees it
	logs  map[uint64][]byte // log.db
	conf  map[string][]byte

	relaxed, lossy bool // of the journal that is opened on it
}

type tapeStep struct {
	at      int64 // write of data at this place of the journal
	data    []byte
	sync    bool                                              // of the journal
	change  func(logs map[uint64][]byte, c map[string][]byte) // of log.db
	want    []map[uint64]string                               // from here on, a reader may find one of these logs
	safe    bool                                              // all before is on the disk, whatever the policy
	comment string
}

func newTape() *tape { return &tape{logs: map[uint64][]byte{}, conf: map[string][]byte{}} }

func (d *tape) do(s tapeStep) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.steps = append(d.steps, s)
	switch {
	case s.data != nil:
		if end := int(s.at) + len(s.data); end > len(d.image) {
			d.image = append(d.image, make([]byte, end-len(d.image))...)
		}
		copy(d.image[s.at:], s.data)
	case s.change != nil:
		s.change(d.logs, d.conf)
	}
}

// now gives the number of steps so far.
func (d *tape) now() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.steps)
}

// cut gives the disk as a power failure after n steps leaves it. tear decides which of the sectors that were written and
// not synced are on the disk.
func (d *tape) cut(t *testing.T, n int, tear func(write, sector int) bool) (*tape, []map[uint64]string) {
	c := newTape()
	var want []map[uint64]string
	var open []tapeStep
	put := func(at int64, b []byte) {
		if end := int(at) + len(b); end > len(c.image) {
			c.image = append(c.image, make([]byte, end-len(c.image))...)
		}
		copy(c.image[at:], b)
	}
	d.mu.Lock()
	steps := d.steps[:n:n]
	d.mu.Unlock()
	for _, s := range steps {
		switch {
		case s.data != nil:
			open = append(open, s)
		case s.sync:
			for _, w := range open {
				put(w.at, w.data)
			}
			open = nil
		case s.change != nil:
			s.change(c.logs, c.conf)
		case s.want != nil:
			want = s.want
		}
	}
	if len(open) > 1 && !d.relaxed {
		t.Fatalf("%d writes are not synced at step %d", len(open), n)
	}
	for i, w := range open {
		for off := 0; off < len(w.data); off += 512 {
			if tear(i, off/512) {
				put(w.at+int64(off), w.data[off:min(off+512, len(w.data))])
			}
		}
	}
	return c, want
}

// tapeFile is the journal's file on a tape.
type tapeFile struct{ d *tape }

func (f tapeFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return bytes.NewReader(f.d.image).ReadAt(p, off)
}

func (f tapeFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.do(tapeStep{at: off, data: slices.Clone(p)})
	return len(p), nil
}

func (f tapeFile) Sync() error  { f.d.do(tapeStep{sync: true}); return nil }
func (f tapeFile) Close() error { return nil }

// tapeLog is log.db on a tape.
type tapeLog struct {
	d   *tape
	err error // of StoreLogs
}

func (l *tapeLog) ends() (first, last uint64) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	for i := range l.d.logs {
		if first == 0 || i < first {
			first = i
		}
		last = max(last, i)
	}
	return first, last
}

func (l *tapeLog) FirstIndex() (uint64, error) { first, _ := l.ends(); return first, nil }
func (l *tapeLog) LastIndex() (uint64, error)  { _, last := l.ends(); return last, nil }

func (l *tapeLog) GetLog(index uint64, e *raft.Log) error {
	l.d.mu.Lock()
	b, ok := l.d.logs[index]
	l.d.mu.Unlock()
	if !ok {
		return raft.ErrLogNotFound
	}
	return decodeDiskEntry(b, e)
}

func (l *tapeLog) StoreLog(e *raft.Log) error { return l.StoreLogs([]*raft.Log{e}) }

func (l *tapeLog) StoreLogs(entries []*raft.Log) error {
	if l.err != nil {
		return l.err
	}
	list := make([][]byte, len(entries))
	for i, e := range entries {
		list[i] = encodeDiskEntry(e)
	}
	first := entries[0].Index
	l.d.do(tapeStep{change: func(logs map[uint64][]byte, _ map[string][]byte) {
		for i, b := range list {
			logs[first+uint64(i)] = b
		}
	}})
	return nil
}

func (l *tapeLog) DeleteRange(from, to uint64) error {
	l.d.do(tapeStep{change: func(logs map[uint64][]byte, _ map[string][]byte) {
		for i := from; i <= to; i++ {
			delete(logs, i)
		}
	}})
	return nil
}

func (l *tapeLog) Get(key []byte) ([]byte, error) {
	l.d.mu.Lock()
	defer l.d.mu.Unlock()
	if b, ok := l.d.conf[string(key)]; ok {
		return b, nil
	}
	return nil, keyNotFound
}

func (l *tapeLog) Set(key, value []byte) error {
	value = slices.Clone(value)
	l.d.do(tapeStep{change: func(_ map[uint64][]byte, c map[string][]byte) { c[string(key)] = value }})
	return nil
}

func (l *tapeLog) Sync() error  { return nil }
func (l *tapeLog) Close() error { return nil }

const tapeSide = 16 * journalPage

// open opens the journal on the tape, which openJournalFile would make if there were none.
func (d *tape) open(t *testing.T) *journal {
	t.Helper()
	j, err := d.tryOpen(&tapeLog{d: d})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func (d *tape) tryOpen(log *tapeLog) (*journal, error) {
	record, err := log.Get(keyJournal)
	o := journalOptions{relaxed: d.relaxed, lossy: d.lossy, fail: func(error) {}}
	if err != nil {
		return newJournal(tapeFile{d}, log, tapeSide, o, func() error { return nil })
	}
	return openJournal(tapeFile{d}, log, record, o)
}

func journalEntry(index, term uint64, size int) *raft.Log {
	data := bytes.Repeat([]byte{byte(index), byte(term), byte(size)}, size/3+1)[:size]
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: data, Extensions: binary.BigEndian.AppendUint64(nil, index*term)}
}

func describe(e *raft.Log) string {
	return fmt.Sprintf("%d %d %d %x %x", e.Index, e.Term, e.Type, e.Data, e.Extensions)
}

// contentsOf reads a whole log through a journal.
func contentsOf(t *testing.T, j *journal) map[uint64]string {
	t.Helper()
	first, err := j.FirstIndex()
	if err != nil {
		t.Fatal(err)
	}
	last, err := j.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	log := map[uint64]string{}
	for i := first; i <= last && last > 0; i++ {
		var e raft.Log
		if err := j.GetLog(i, &e); err != nil {
			t.Fatalf("entry %d of %d to %d: %v", i, first, last, err)
		}
		log[i] = describe(&e)
	}
	return log
}

// scribe writes to a journal what raft may, and tells the tape what a reader may find after each step.
type scribe struct {
	t           *testing.T
	r           *rand.Rand
	d           *tape
	j           *journal
	model       map[uint64]string
	first, last uint64 // of the model, 0 = empty
	next, term  uint64
}

func newScribe(t *testing.T, seed uint64) *scribe {
	d := newTape()
	s := &scribe{t: t, r: rand.New(rand.NewPCG(seed, 1)), d: d, model: map[uint64]string{}, next: 1, term: 1}
	s.d.do(tapeStep{want: []map[uint64]string{{}}})
	s.j = d.open(t)
	return s
}

// change runs f, which turns the model into after. Until it has returned, both are right.
func (s *scribe) change(after map[uint64]string, f func() error) {
	s.t.Helper()
	s.d.do(tapeStep{want: []map[uint64]string{s.model, after}})
	if err := f(); err != nil {
		s.t.Fatal(err)
	}
	s.d.do(tapeStep{want: []map[uint64]string{after}})
	s.model = after
}

func (s *scribe) append(n, size int) {
	s.t.Helper()
	after := maps.Clone(s.model)
	var list []*raft.Log
	for range n {
		e := journalEntry(s.next, s.term, s.r.IntN(size+1))
		list = append(list, e)
		after[s.next] = describe(e)
		s.last = s.next
		if s.first == 0 {
			s.first = s.next
		}
		s.next++
	}
	s.change(after, func() error { return s.j.StoreLogs(list) })
	for _, e := range list { // the caller's bytes are the caller's
		clear(e.Data)
	}
}

func (s *scribe) delete(from, to uint64) {
	s.t.Helper()
	after := maps.Clone(s.model)
	for i := from; i <= to; i++ {
		delete(after, i)
	}
	s.change(after, func() error { return s.j.DeleteRange(from, to) })
}

func (s *scribe) step() {
	s.t.Helper()
	n := s.last - s.first + 1
	switch k := s.r.IntN(20); {
	case k < 14 || s.first == 0:
		s.append(1+s.r.IntN(4), 3000)
	case k < 15: // too large for the journal
		s.append(3, 3*tapeSide/4)
	case k < 17 && n > 2: // compaction
		to := s.first + s.r.Uint64N(n-1)
		s.delete(s.first, to)
		s.first = to + 1
	case k < 18: // another leader
		from := s.last - s.r.Uint64N(min(n, 5))
		s.delete(from, s.last)
		s.next, s.last = from, from-1
		if from == s.first {
			s.first, s.last = 0, 0
		}
		s.term++
	case k < 19: // a snapshot takes the log's place
		s.delete(s.first, s.last)
		s.next = s.last + 10
		s.first, s.last = 0, 0
	default:
		if err := s.j.Close(); err != nil {
			s.t.Fatal(err)
		}
		if got := len(s.d.logs); got != len(s.model) {
			s.t.Fatalf("log.db holds %d of %d entries after Close", got, len(s.model))
		}
		s.j = s.d.open(s.t)
	}
}

// TestJournalPowerCut cuts the power after every single step that a random history takes on the disk, with each sort of
// torn write, and looks whether exactly the acknowledged log is there: with or without the one append or deletion that
// was under way, whole. What was there then goes on: it is cut a second time, a few steps later.
func TestJournalPowerCut(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			s := newScribe(t, seed)
			for range 60 {
				s.step()
			}
			if err := s.j.Close(); err != nil {
				t.Fatal(err)
			}
			tears := map[string]func(write, sector int) bool{
				"nothing": func(int, int) bool { return false },
				"all":     func(int, int) bool { return true },
				"first":   func(_, sector int) bool { return sector < 1 },
				"last":    func(_, sector int) bool { return sector > 0 },
				"pages":   func(_, sector int) bool { return sector/8%2 == 1 },
				"random":  func(int, int) bool { return s.r.IntN(2) == 0 },
			}
			for n := 1; n <= len(s.d.steps); n++ {
				// Only a cut after a write leaves something to tear.
				kinds := []string{"nothing"}
				if s.d.steps[n-1].data != nil {
					kinds = []string{"nothing", "all", "first", "last", "pages", "random"}
				}
				for _, kind := range kinds {
					d, want := s.d.cut(t, n, tears[kind])
					j := d.open(t)
					got := contentsOf(t, j)
					if !slices.ContainsFunc(want, func(w map[uint64]string) bool { return maps.Equal(got, w) }) {
						t.Fatalf("after step %d, torn %q: the log has %d entries, want one of %v", n, kind, len(got), sizesOf(want))
					}
					if kind == "random" || n%7 == 0 {
						goOn(t, d, j, got)
					}
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func sizesOf(logs []map[uint64]string) (n []int) {
	for _, l := range logs {
		n = append(n, len(l))
	}
	return n
}

// goOn appends to a log that was found after a power failure, and cuts the power again.
func goOn(t *testing.T, d *tape, j *journal, log map[uint64]string) {
	t.Helper()
	next := uint64(1)
	for i := range log {
		next = max(next, i+1)
	}
	d.steps = []tapeStep{{data: slices.Clone(d.image)}, {sync: true}}
	logs, conf := maps.Clone(d.logs), maps.Clone(d.conf)
	d.steps = append(d.steps, tapeStep{change: func(l map[uint64][]byte, c map[string][]byte) {
		maps.Copy(l, logs)
		maps.Copy(c, conf)
	}})
	s := &scribe{t: t, r: rand.New(rand.NewPCG(1, 1)), d: d, j: j, model: log, next: next, term: 100}
	s.first = next
	for range 3 {
		s.append(2, 2000)
	}
	again, want := d.cut(t, d.now(), nil)
	k := again.open(t)
	if got := contentsOf(t, k); !maps.Equal(got, want[0]) {
		t.Fatalf("after a second power failure the log has %d entries, want %d", len(got), len(want[0]))
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestJournalDamage flips bits in journals that were left without a close. The log may be whole, because the damage hit
// what is in log.db or counts no more; or it lacks the newest record, which is what a torn write would look like; or it
// is refused. It never lacks anything else.
func TestJournalDamage(t *testing.T) {
	var whole, short, refused int
	for seed := range uint64(10) {
		s := newScribe(t, seed)
		var before map[uint64]string // without the newest record
		for range 40 {
			before = s.model
			s.append(1+s.r.IntN(3), 3000)
		}
		for range 40 {
			d, _ := s.d.cut(t, s.d.now(), nil)
			at := s.r.IntN(len(d.image))
			d.image[at] ^= 1 << s.r.IntN(8)
			j, err := d.tryOpen(&tapeLog{d: d})
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			switch got := contentsOf(t, j); {
			case maps.Equal(got, s.model):
				whole++
			case maps.Equal(got, before):
				short++
			default:
				t.Fatalf("seed %d, byte %d: the log has %d of %d entries", seed, at, len(got), len(s.model))
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d whole, %d without the newest record, %d refused", whole, short, refused)
	if whole == 0 || refused == 0 {
		t.Error("the damage never hit what it should")
	}
}

// TestJournalOldRecords leaves records of an entry that was deleted on pages that no later record happened to cover, while
// the reset that followed them is gone. They must not count.
func TestJournalOldRecords(t *testing.T) {
	s := newScribe(t, 1)
	one := func(n int) { // records of n pages with one entry
		t.Helper()
		e := journalEntry(s.next, s.term, (n-1)*journalPage+1)
		after := maps.Clone(s.model)
		after[s.next] = describe(e)
		s.next++
		s.change(after, func() error { return s.j.StoreLog(e) })
	}
	for range 2 * tapeSide / journalPage { // both sides
		one(1)
	}
	s.delete(5, s.next-1)
	s.next, s.term = 5, 2
	for range 3 + 4 + 3 { // the first side but for its end, the second, and again the first
		one(4)
	}
	d, want := s.d.cut(t, s.d.now(), nil)
	k := d.open(t)
	if got := contentsOf(t, k); !maps.Equal(got, want[0]) {
		t.Errorf("the log has %d entries, want %d", len(got), len(want[0]))
	}
	if err := errors.Join(k.Close(), s.j.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestJournalMissing takes the journal of a directory away, or gives it another's: it holds what was acknowledged.
func TestJournalMissing(t *testing.T) {
	p, q := places(t)["dir"], places(t)["dir"]
	q.Dir = filepath.Join(t.TempDir(), "q")
	for _, x := range []*place{p, q} {
		s := x.founded(t)
		store1(t, s, entries(2, 10, 1))
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(p.Dir, journalFileName)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("without its journal: %v, want ErrCorrupt", err)
	}
	if err := os.Rename(filepath.Join(q.Dir, journalFileName), path); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("with another's journal: %v, want ErrCorrupt", err)
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	wantLog(t, p.open(t), 1, 10, constant(1))
}

// TestJournalMoveFails lets log.db refuse what the journal brings: the node must hear of it although its appends were
// acknowledged, and nothing may be acknowledged that has no place any more.
func TestJournalMoveFails(t *testing.T) {
	d := newTape()
	log := &tapeLog{d: d}
	failed := make(chan error, 1)
	j, err := newJournal(tapeFile{d}, log, tapeSide, journalOptions{fault: func(op string) error {
		if op != "move" {
			t.Errorf("operation %q", op)
		}
		return errInjected
	}, fail: func(err error) { failed <- err }}, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	for i := uint64(1); ; i++ {
		if err = j.StoreLog(journalEntry(i, 1, 3000)); err != nil {
			break
		}
		if i > 2*tapeSide/journalPage {
			t.Fatal("the journal takes more than it can hold")
		}
	}
	if !errors.Is(err, errInjected) || !errors.Is(<-failed, errInjected) {
		t.Errorf("the append returned %v", err)
	}
	if err := j.DeleteRange(1, 2); !errors.Is(err, errInjected) {
		t.Errorf("DeleteRange: %v", err)
	}
	if err := j.Close(); !errors.Is(err, errInjected) {
		t.Errorf("Close: %v", err)
	}
}

// FuzzJournal opens journals whose records hold what the fuzzer made, under a right checksum.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(nil), byte(journalReset))
	f.Add(wire.AppendLogs(nil, []*raft.Log{journalEntry(1, 1, 10), journalEntry(2, 1, 0)}), byte(journalEntries))
	f.Add(wire.AppendLogs(nil, []*raft.Log{journalEntry(1, 1, 10), journalEntry(3, 1, 0)}), byte(journalEntries))
	f.Add([]byte{255, 255, 255, 255}, byte(journalEntries))
	f.Fuzz(func(t *testing.T, payload []byte, kind byte) {
		if len(payload) > tapeSide-journalHeader {
			t.Skip()
		}
		d := newTape()
		if err := d.open(t).Close(); err != nil {
			t.Fatal(err)
		}
		record := append(make([]byte, journalHeader), payload...)
		sealJournalRecord(record, binary.BigEndian.Uint64(d.conf[string(keyJournal)][8:]), 1, kind)
		copy(d.image[journalPage:], record)
		j, err := d.tryOpen(&tapeLog{d: d})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if n := len(contentsOf(t, j)); n > 0 {
			logs, _ := wire.DecodeLogs(payload)
			if n != len(logs) || !bytes.Equal(wire.AppendLogs(nil, logs), payload) {
				t.Errorf("%d entries of a record with %d", n, len(logs))
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
