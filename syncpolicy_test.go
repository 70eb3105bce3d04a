package chubby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby/internal/hook"
)

// tornWrites says which sectors of writes that were not synced a power failure has left on the disk, of writes of them.
// What it decides for a whole write follows from the seed.
func tornWrites(kind string, seed uint64, writes int) func(write, sector int) bool {
	r := rand.New(rand.NewPCG(seed, 0))
	whole := make([]bool, writes)
	for i := range whole {
		whole[i] = r.IntN(3) > 0
	}
	return map[string]func(write, sector int) bool{
		"nothing":       func(int, int) bool { return false },
		"all":           func(int, int) bool { return true },
		"some writes":   func(w, _ int) bool { return whole[w] },
		"not the first": func(w, _ int) bool { return w > 0 },
		"the last":      func(w, _ int) bool { return w == writes-1 },
		"some sectors":  func(int, int) bool { return r.IntN(2) == 0 },
		"newest torn":   func(w, s int) bool { return w < writes-1 || s == 0 },
	}[kind]
}

// TestPowerCutBySyncPolicy does what TestJournalPowerCut does, for a journal that syncs seldom: the power is cut after
// every step of a random history, and any of the writes that were not synced is on the disk, torn or not at all. Opened
// as lossy, what is left is the acknowledged log without some of its newest entries: none that was there at the last
// sync, and of those since then no more than a side of the journal holds. Nothing that was deleted comes back. The end of
// the process alone takes nothing. The log says how much was lost, which is what the policies differ in.
func TestPowerCutBySyncPolicy(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncEverySecond, SyncNever} {
		t.Run(fmt.Sprint("policy=", policy), func(t *testing.T) {
			t.Parallel()
			cuts, most, mostBytes := 0, 0, 0
			seeds := uint64(2)
			if policy == SyncAlways || testing.Short() {
				seeds = 1
			}
			for seed := range seeds {
				s := newScribe(t, seed)
				s.d.relaxed, s.j.relaxed = policy != SyncAlways, policy != SyncAlways
				for range 60 {
					s.step()
					if policy == SyncEverySecond && s.r.IntN(3) == 0 { // the second is over
						if err := s.j.Sync(); err != nil {
							t.Fatal(err)
						}
						s.d.do(tapeStep{safe: true})
					}
				}
				if err := s.j.Close(); err != nil {
					t.Fatal(err)
				}
				for n := 1; n <= len(s.d.steps); n++ {
					if s.d.steps[n-1].data == nil && n%5 > 0 {
						continue
					}
					c := s.d.at(n)
					for _, kind := range []string{"nothing", "all", "some writes", "not the first", "the last", "some sectors"} {
						d, want := s.d.cut(t, n, tornWrites(kind, uint64(n), c.writes))
						d.relaxed, d.lossy = s.d.relaxed, true
						j := d.open(t)
						got := contentsOf(t, j)
						lost, bytes := lostOf(got, want, c.safe)
						if lost < 0 || policy == SyncAlways && lost > 0 || bytes > tapeSide {
							t.Fatalf("seed %d, after step %d, torn %q: %d entries are left of %v, %d bytes lost", seed, n, kind, len(got), sizesOf(want), bytes)
						}
						cuts, most, mostBytes = cuts+1, max(most, lost), max(mostBytes, bytes)
						if kind == "some sectors" && n%3 == 0 {
							// It goes on strictly: what is left of what did not survive counts no more.
							d.relaxed, d.lossy, j.relaxed = false, false, false
							goOn(t, d, j, got)
						}
						if err := j.Close(); err != nil {
							t.Fatal(err)
						}
					}
					// Only the process ends: the kernel has everything, but perhaps for the write under way.
					d, want := s.d.cut(t, n, tornWrites("newest torn", uint64(n), c.writes))
					j := d.open(t)
					if got := contentsOf(t, j); c.writing && !slices.ContainsFunc(want, func(w map[uint64]string) bool { return maps.Equal(got, w) }) {
						t.Fatalf("seed %d, killed after step %d: the log has %d entries, want one of %v", seed, n, len(got), sizesOf(want))
					}
					if err := j.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Logf("%d cuts: at most %d acknowledged entries of %d bytes lost; a side has %d", cuts, most, mostBytes, tapeSide)
			if policy != SyncAlways && most == 0 {
				t.Error("nothing was ever lost: the cuts miss what they should hit")
			}
		})
	}
}

// moment is what a tape has come to after some steps.
type moment struct {
	writes  int               // that are not synced
	writing bool              // the last one may be under way: nothing says yet that it ended
	safe    map[uint64]string // the log at the last moment from which nothing may be lost; nil = there was none
}

func (d *tape) at(n int) (m moment) {
	var want []map[uint64]string
	for _, s := range d.steps[:n] {
		m.writing = false
		switch {
		case s.data != nil:
			m.writes++
			m.writing = true
		case s.sync:
			m.writes = 0
		case s.want != nil:
			want = s.want
		case s.safe:
			m.safe = want[0]
		}
	}
	return m
}

// lostOf says how many entries of one of the logs that were wanted are missing at the end of got, and their bytes; less
// than nothing if got is none of them, or one without an entry that was safe and is in it.
func lostOf(got map[uint64]string, want []map[uint64]string, safe map[uint64]string) (lost, bytes int) {
	lost = -1
	for _, w := range want {
		last := uint64(0)
		for i := range got {
			last = max(last, i)
		}
		missing, size, fits := 0, 0, true
		for i, e := range w {
			g, there := got[i]
			switch {
			case there:
				fits = fits && g == e
			case i < last || safe[i] == e:
				fits = false
			default:
				missing++
				size += len(e) / 2 // in hexadecimal
			}
		}
		if fits && len(got)+missing == len(w) && (lost < 0 || missing < lost) {
			lost, bytes = missing, size
		}
	}
	return lost, bytes
}

// kill gives a copy of a directory as the end of its process would leave it.
func kill(t *testing.T, p *place) *place {
	t.Helper()
	c := *p
	c.Dir = filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(c.Dir, os.DirFS(p.Dir)); err != nil {
		t.Fatal(err)
	}
	return &c
}

// TestSyncPolicyBoot opens directories after their process, or their machine, ended, under each policy. The end of a
// machine is another name for its run; the disk keeps what a real one might lose, so only the rule speaks.
func TestSyncPolicyBoot(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncEverySecond, SyncNever} {
		t.Run(fmt.Sprint("policy=", policy), func(t *testing.T) {
			p := places(t)["dir"]
			p.Sync, p.Boot = policy, "first"
			s := p.founded(t)
			store1(t, s, entries(2, 20, 1))
			want := func(q *place) *store {
				t.Helper()
				s := q.open(t)
				wantLog(t, s, 1, 20, constant(1))
				return s
			}
			refused := func(q *place, boot, why string) {
				t.Helper()
				q.Boot = boot
				if _, err := openStore(q.config()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), why) {
					t.Errorf("boot %q: %v, want ErrCorrupt with %q", boot, err, why)
				}
			}
			want(kill(t, p)) // its process ended
			if q := kill(t, p); policy == SyncAlways {
				q.Boot = "second"
				want(q)
			} else {
				refused(q, "second", "rejoin as a new member")
				refused(q, "", "does not tell")
				// Refused again, whatever is asked for now, and still there for whoever takes it as it is.
				q.Sync = SyncAlways
				refused(q, "second", "was started again")
				q.Lossy = true
				if err := want(q).close(); err != nil {
					t.Fatal(err)
				}
				q.Lossy = false
				refused(q, "second", "was started again") // nobody made another node of it
				q.Lossy = true
				s := want(q)
				if err := errors.Join(s.boot.forgive(), s.close()); err != nil {
					t.Fatal(err)
				}
				q.Lossy = false
				want(q)
			}
			// The end of a process, and another policy: what was in the kernel only is brought to the disk.
			q := kill(t, p)
			q.Sync = SyncAlways
			want(q)
			q = kill(t, q)
			q.Boot = "second"
			want(q)
			// Closed, it may go anywhere.
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
			p.Boot = "third"
			s = want(p)
			if policy != SyncAlways {
				refused(kill(t, p), "fourth", "was started again")
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestRecoverAfterPowerCut makes a new cell of a node whose machine went down under a relaxed policy.
func TestRecoverAfterPowerCut(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "n"), Sync: SyncNever, Hooks: &hook.Hooks{Boot: "first"}}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Set(t.Context(), "/a", []byte("1")); err != nil {
		t.Fatal(err)
	}
	p := kill(t, &place{storeConfig: storeConfig{Dir: o.Dir}})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Hooks = p.Dir, &hook.Hooks{Boot: "second"}
	if _, err := Open(o); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "was started again") {
		t.Fatalf("Open: %v, want ErrCorrupt", err)
	}
	if err := Recover(o.Dir); err != nil {
		t.Fatal(err)
	}
	if n, err = Open(o); err != nil {
		t.Fatal(err)
	}
	// On this disk nothing was really lost.
	if e, err := n.Get(t.Context(), "/a"); err != nil || string(e.Data) != "1" {
		t.Errorf("Get after Recover: %q, %v", e.Data, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

// Where the machine's runs have no names every policy is SyncAlways.
func TestSyncPolicyUnknownBoot(t *testing.T) {
	p := places(t)["dir"]
	p.Sync = SyncNever
	s := p.founded(t)
	store1(t, s, entries(2, 20, 1))
	if r, err := readBoot(s.file); r.state != bootClean || err != nil || s.file.(*journal).relaxed {
		t.Errorf("record %+v, %v; relaxed %v", r, err, s.file.(*journal).relaxed)
	}
	q := kill(t, p)
	q.Boot = "second"
	wantLog(t, q.open(t), 1, 20, constant(1))
}

// TestSyncPolicyMemory crashes a memory disk, which is a machine of its own, and takes it from a process that ended.
func TestSyncPolicyMemory(t *testing.T) {
	for _, policy := range []SyncPolicy{SyncAlways, SyncEverySecond, SyncNever} {
		t.Run(fmt.Sprint("policy=", policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, pause := range []time.Duration{0, 10 * syncInterval} {
					p := &place{storeConfig: storeConfig{Disk: new(hook.Disk), ID: "n1", Cell: "c", Sync: policy}}
					s := p.founded(t)
					store1(t, s, entries(2, 20, 1))
					time.Sleep(pause)
					synctest.Wait()
					if err := s.closeFiles(); err != nil { // the process ends
						t.Fatal(err)
					}
					again := p.open(t)
					wantLog(t, again, 1, 20, constant(1))
					store1(t, again, entries(21, 30, 1))
					time.Sleep(pause)
					synctest.Wait()
					p.Disk.Crash()
					_ = errors.Join(s.close(), again.close()) // the disk is gone
					last := uint64(30)
					if policy != SyncAlways {
						if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
							t.Fatalf("after a crash: %v, want ErrCorrupt", err)
						}
						p.Lossy = true
						if policy == SyncNever || pause == 0 {
							last = 0
						}
					}
					// What was synced by other writes, such as that of a vote, is there too.
					if s := p.open(t); s.lastIndex() < last || policy == SyncNever && s.lastIndex() == 30 {
						t.Errorf("after %v: the log ends at %d", pause, s.lastIndex())
					} else if err := s.close(); err != nil {
						t.Error(err)
					}
				}
			})
		})
	}
}

// A sync behind the acknowledgements that fails ends the node like any write.
func TestSyncFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &place{storeConfig: storeConfig{Disk: new(hook.Disk), ID: "n1", Cell: "c", Sync: SyncEverySecond}}
		s := p.founded(t)
		s.c.Fault = func(op string) error {
			if op == "sync" {
				return errInjected
			}
			return nil
		}
		store1(t, s, entries(2, 3, 1))
		if err := <-p.failed; !errors.Is(err, errInjected) {
			t.Errorf("Fail got %v", err)
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
		h, err := p.Disk.Open()
		if err != nil {
			t.Fatal(err)
		}
		if r, err := readBoot(&diskLogFile{h: h}); r.state != bootOpen || err != nil {
			t.Errorf("it counts as closed: %+v, %v", r, err)
		}
	})
}

// brokenFile takes writes and cannot bring them to the disk.
type brokenFile struct{ tapeFile }

func (brokenFile) Sync() error { return errInjected }

// A kernel that failed to write something acknowledged has forgotten it: the same run of the machine proves nothing.
func TestJournalSyncFails(t *testing.T) {
	d := newTape()
	d.relaxed = true
	j := d.open(t)
	j.file = brokenFile{tapeFile{d}}
	log := &tapeLog{d: d}
	var err error
	for i := uint64(1); err == nil; i++ { // until the first side is full
		err = j.StoreLog(journalEntry(i, 1, 3000))
	}
	if !errors.Is(err, errInjected) || int(d.now()) < tapeSide/journalPage {
		t.Errorf("after %d steps: %v", d.now(), err)
	}
	if _, err := checkBoot(log, "first", false); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "failed to take") {
		t.Errorf("the next open: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func FuzzBootRecord(f *testing.F) {
	for _, r := range []bootRecord{{}, {bootOpen, "run"}, {state: bootLost}} {
		f.Add(r.encode()[8:])
	}
	f.Add([]byte{storeFormat, 3})
	f.Add([]byte{storeFormat, bootClean, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		sealed := sealRecord(b)
		r, ok := decodeBoot(sealed)
		if ok && !slices.Equal(r.encode(), sealed) {
			t.Errorf("%x encodes as %x", sealed, r.encode())
		}
		log := &tapeLog{d: newTape()}
		_ = log.Set(keyBoot, sealed)
		if _, err := checkBoot(log, "run", false); !ok && !errors.Is(err, ErrCorrupt) {
			t.Errorf("%x: %v, want ErrCorrupt", b, err)
		}
		binary.BigEndian.PutUint64(sealed, binary.BigEndian.Uint64(sealed)+1)
		if _, ok := decodeBoot(sealed); ok {
			t.Error("a wrong checksum")
		}
	})
}
