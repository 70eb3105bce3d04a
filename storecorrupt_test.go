package chubby

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
)

var corruptions = flag.Int("corruptions", 20, "damages that TestStoreCorrupt does to each file, each in several ways")

// contents is all that a store gives back, for comparison.
func contents(s *store) (string, error) {
	var b bytes.Buffer
	id := s.identity()
	f, ok := s.founding()
	fmt.Fprintf(&b, "%+v %+v %v\n", id, f, ok)
	rec := s.vote.rec
	fmt.Fprintf(&b, "%+v\n", rec)
	first, last := s.log.ends()
	for i := first; i <= last; i++ {
		var e raft.Log
		if exits(func() { _ = s.logs().GetLog(i, &e) }) {
			return "", s.err()
		}
		fmt.Fprintf(&b, "%d %d %d %q %x\n", e.Index, e.Term, e.Type, e.Data, e.Extensions)
	}
	l, err := s.snapshots().List()
	if err != nil {
		return "", err
	}
	for _, m := range l {
		data, err := readSnapshot(s, m.ID)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%+v %x\n", m, data)
	}
	return b.String(), nil
}

// makeHistory fills a store with entries that were truncated, replaced and compacted, votes and snapshots, so that its
// files are full of old pages.
func makeHistory(t *testing.T, p *place) *store {
	s := p.founded(t)
	store1(t, s, entries(2, 60, 1))
	for round := uint64(2); round < 12; round++ {
		_ = s.stable().SetUint64([]byte("CurrentTerm"), round)
		_ = s.stable().SetUint64([]byte("LastVoteTerm"), round)
		_ = s.stable().Set([]byte("LastVoteCand"), fmt.Appendf(nil, "n%d.x", round))
		last := s.lastIndex()
		if err := s.logs().DeleteRange(last-3, last); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			store1(t, s, entries(s.lastIndex()+1, s.lastIndex()+2, round))
		}
		if round == 6 || round == 9 || round == 10 {
			// Of its own term, as raft's is: another would make the log look like one that it replaces.
			var e raft.Log
			if err := s.logs().GetLog(s.lastIndex()-20, &e); err != nil {
				t.Fatal(err)
			}
			snapshot(t, s, e.Index, e.Term, blob(round, 20*testChunk))
		}
		if round == 6 || round == 10 {
			if err := s.logs().DeleteRange(s.log.first.Load(), s.snap.newest()-30); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// TestStoreCorrupt damages the files of a closed directory in many places: opening or reading must say so, or give what
// was written. Every byte of a page's head and elements is in reach; one flipped bit is the hardest to see.
func TestStoreCorrupt(t *testing.T) {
	p := places(t)["dir"]
	s := makeHistory(t, p)
	s = p.reopen(t, s)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	whole := p.reopen(t, p.open(t))
	want, err := contents(whole)
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.close(); err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	used := make(map[string]int) // bytes in pages that were ever written
	for _, name := range []string{logFileName, snapFileName} {
		b, err := os.ReadFile(filepath.Join(p.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
		used[name] = (len(bytes.TrimRight(b, "\x00"))/4096 + 1) * 4096
	}
	// restore puts back what damage or a later open has changed.
	restore := func() {
		for name, b := range files {
			f, err := os.OpenFile(filepath.Join(p.Dir, name), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			n := used[name]
			_, err = f.WriteAt(b[:n], 0)
			if err := errors.Join(err, f.Truncate(int64(n)), f.Truncate(int64(len(b))), f.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	seed := uint64(1)
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	damages := map[string]func(b []byte, at int){
		"bit":    func(b []byte, at int) { b[at] ^= 1 << rng.IntN(8) },
		"head":   func(b []byte, at int) { b[at/4096*4096+rng.IntN(96)] ^= 1 << rng.IntN(8) },
		"byte":   func(b []byte, at int) { b[at] = byte(rng.Uint32()) },
		"sector": func(b []byte, at int) { clear(b[at/512*512 : min(at/512*512+512, len(b))]) },
		"page":   func(b []byte, at int) { copy(b[at/4096*4096:], b[rng.IntN(len(b)/4096)*4096:][:4096]) },
	}
	found, same := 0, 0
	for name, b := range files {
		used := used[name]
		for kind, damage := range damages {
			for range *corruptions {
				at := rng.IntN(used)
				damaged := bytes.Clone(b[:used])
				damage(damaged, at)
				restore()
				f, err := os.OpenFile(filepath.Join(p.Dir, name), os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, err = f.WriteAt(damaged, 0)
				if err := errors.Join(err, f.Close()); err != nil {
					t.Fatal(err)
				}
				s, err := openStore(p.config())
				var got string
				if err == nil {
					got, err = contents(s)
					if err := s.close(); err != nil {
						t.Fatal(err)
					}
				}
				switch {
				case err == nil && got == want:
					same++
				case errors.Is(err, ErrCorrupt):
					found++
				default:
					t.Errorf("%s: %s at %d: %v, silently different: %v", name, kind, at, err, err == nil)
				}
			}
		}
		for _, size := range []int64{0, 1, 4096, 8192, 20000, int64(used) - 4096, int64(used) / 2} {
			restore()
			if err := os.Truncate(filepath.Join(p.Dir, name), size); err != nil {
				t.Fatal(err)
			}
			s, err := openStore(p.config())
			if err == nil {
				err = s.close()
				t.Errorf("%s of %d bytes opens", name, size)
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s of %d bytes: %v, want ErrCorrupt", name, size, err)
			}
		}
	}
	t.Logf("%d found, %d harmless", found, same)
	restore()
	for _, name := range []string{snapFileName, logFileName} {
		if err := os.Rename(filepath.Join(p.Dir, name), filepath.Join(p.Dir, "away")); err != nil {
			t.Fatal(err)
		}
		if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("without %s: %v, want ErrCorrupt", name, err)
		}
		if err := os.Rename(filepath.Join(p.Dir, "away"), filepath.Join(p.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStoreCorruptLater damages what an open store reads from disk.
func TestStoreCorruptLater(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)-1] ^= 1; return b }
	gone := func([]byte) []byte { return nil }
	for name, f := range map[string]func([]byte) []byte{"flipped": flip, "gone": gone} {
		t.Run(name, func(t *testing.T) {
			p := places(t)["memory"]
			s := p.founded(t)
			store1(t, s, entries(2, 10, 1))
			id := snapshot(t, s, 5, 1, blob(1, 5*testChunk))
			s = p.reopen(t, s) // the ring is empty now
			if !p.Disk.Damage(diskLog, diskKey(4), f) {
				t.Fatal("no such entry")
			}
			if !exits(func() { _ = s.logs().GetLog(4, new(raft.Log)) }) {
				t.Error("GetLog returned")
			}
			if err := <-p.failed; !errors.Is(err, ErrCorrupt) {
				t.Errorf("failed with %v", err)
			}

			p = places(t)["memory"]
			s = p.founded(t)
			id = snapshot(t, s, 1, 1, blob(1, 5*testChunk))
			if !p.Disk.Damage(diskChunk, id+"\x00"+diskKey(3), f) {
				t.Fatal("no such chunk")
			}
			b, err := readSnapshot(s, id)
			if !errors.Is(err, ErrCorrupt) || !bytes.Equal(b, blob(1, 5*testChunk)[:3*testChunk]) {
				t.Errorf("read %d bytes, %v", len(b), err)
			}
			if err := <-p.failed; !errors.Is(err, ErrCorrupt) {
				t.Errorf("failed with %v", err)
			}
		})
	}
}

// TestStoreCorruptMemory damages each thing on a memory disk: what checksums cover, whatever holds the bytes.
func TestStoreCorruptMemory(t *testing.T) {
	for _, table := range []string{diskLog, diskConf, diskMeta, diskChunk} {
		for name, f := range map[string]func([]byte) []byte{
			"flip":  func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
			"first": func(b []byte) []byte { b[0] ^= 1; return b },
			"short": func(b []byte) []byte { return b[:len(b)-1] },
			"empty": func([]byte) []byte { return []byte{} },
			"gone":  func([]byte) []byte { return nil },
		} {
			t.Run(table+"/"+name, func(t *testing.T) {
				p := places(t)["memory"]
				s := makeHistory(t, p)
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
				h, err := p.Disk.Open()
				if err != nil {
					t.Fatal(err)
				}
				keys, err := h.Keys(table, "")
				if err := errors.Join(err, h.Close()); err != nil {
					t.Fatal(err)
				}
				if table == diskMeta || table == diskChunk {
					keys = keys[len(keys)-1:] // the newest snapshot's; the older one is not needed
				} else {
					keys = []string{keys[0], keys[len(keys)/2], keys[len(keys)-1]}
				}
				for i, k := range keys {
					var old []byte
					p.Disk.Damage(table, k, func(b []byte) []byte { old = bytes.Clone(b); return f(b) })
					s, err := openStore(p.config())
					if err == nil {
						_ = s.close()
					}
					// Without its first entry the log is shorter, but a snapshot covers what is lost.
					harmless := name == "gone" && table == diskLog && i == 0
					if !errors.Is(err, ErrCorrupt) && !harmless {
						t.Errorf("key %d: %v, want ErrCorrupt", i, err)
					}
					putBack(t, p.Disk, table, k, old)
				}
			})
		}
	}
}

func putBack(t *testing.T, d *hook.Disk, table, key string, value []byte) {
	t.Helper()
	h, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Write(true, hook.DiskChange{Table: table, Key: key, Value: value}), h.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestStoreMark rolls the log back to what it was, as a stale page would: every entry of it is valid.
func TestStoreMark(t *testing.T) {
	p := places(t)["memory"]
	s := p.founded(t)
	store1(t, s, entries(2, 10, 1))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	p.Disk.Damage(diskLog, diskKey(10), func([]byte) []byte { return nil })
	if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v, want ErrCorrupt", err)
	}

	// An entry of another history, valid in itself, in the middle.
	p = places(t)["memory"]
	s = p.founded(t)
	store1(t, s, entries(2, 10, 1))
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	other := places(t)["memory"]
	o := other.founded(t)
	l := entries(2, 10, 1)
	l[3].Data = []byte("another")
	store1(t, o, l)
	b, err := o.file.(*diskLogFile).h.Get(diskLog, diskKey(5))
	if err != nil {
		t.Fatal(err)
	}
	p.Disk.Damage(diskLog, diskKey(5), func([]byte) []byte { return b })
	if _, err := openStore(p.config()); !errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v, want ErrCorrupt", err)
	}
}
