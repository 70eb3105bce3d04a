package chubby

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
)

// blob gives n bytes that no two chunks share.
func blob(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func readSnapshot(s *store, id string) ([]byte, error) {
	_, r, err := s.snapshots().Open(id)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

func wantSnapshots(t testing.TB, s *store, want map[string][]byte, order ...string) {
	t.Helper()
	l, err := s.snapshots().List()
	if err != nil || len(l) != len(order) {
		t.Fatalf("%d snapshots, %v, want %d", len(l), err, len(order))
	}
	for i, m := range l {
		if m.ID != order[i] {
			t.Fatalf("snapshot %d is %s, want %s", i, m.ID, order[i])
		}
		if b, err := readSnapshot(s, m.ID); err != nil || !bytes.Equal(b, want[m.ID]) || m.Size != int64(len(b)) {
			t.Fatalf("snapshot %s of %d bytes: read %d, %v", m.ID, m.Size, len(b), err)
		}
		if len(m.Configuration.Servers) != 3 || m.ConfigurationIndex != 1 || m.Version != raft.SnapshotVersionMax {
			t.Fatalf("snapshot %s has meta %+v", m.ID, m)
		}
	}
}

func TestSnapshots(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		sizes := []int{0, 1, testChunk, testChunk + 1, (snapBatch+3)*testChunk + 5}
		want := make(map[string][]byte)
		var last []string
		for i, n := range sizes {
			b := blob(uint64(i), n)
			id := snapshot(t, s, uint64(10+i), 1, b)
			want[id] = b
			last = append([]string{id}, last...)
			last = last[:min(len(last), 2)]
			wantSnapshots(t, s, want, last...)
			if got := s.snapshotBytes(); got != int64(n) {
				t.Errorf("snapshotBytes is %d, want %d", got, n)
			}
		}
		s = p.reopen(t, s)
		wantSnapshots(t, s, want, last...)

		// Neither one that is being written nor one that was given up is seen, then or later.
		for _, end := range []string{"cancel", "leave"} {
			k, err := s.snapshots().Create(1, 99, 1, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := k.Write(blob(9, 20*testChunk)); err != nil {
				t.Fatal(err)
			}
			wantSnapshots(t, s, want, last...)
			if end == "cancel" {
				if err := errors.Join(k.Cancel(), k.Cancel()); err != nil {
					t.Fatal(err)
				}
				if _, err := k.Write([]byte("x")); err == nil {
					t.Error("write after cancel succeeded")
				}
				if err := k.Close(); err == nil {
					t.Error("close after cancel succeeded")
				}
			}
		}
		s = p.reopen(t, s)
		wantSnapshots(t, s, want, last...)
		records, err := s.snap.file.list()
		if err != nil || len(records) != 2 {
			t.Errorf("file holds %d snapshots, %v, want 2", len(records), err)
		}

		// One of the same index is newer if it was made later; one of a lower index is not.
		same := snapshot(t, s, 14, 1, []byte("same"))
		want[same] = []byte("same")
		wantSnapshots(t, s, want, same, last[0])
		if _, _, err := s.snapshots().Open(last[1]); !errors.Is(err, errSnapshotGone) {
			t.Errorf("removed one: %v, want errSnapshotGone", err)
		}
	})
}

// TestSnapshotReaderOutlived removes a snapshot under its reader, which must not end as if it were whole.
func TestSnapshotReaderOutlived(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		data := blob(1, 5*testChunk)
		_, r, err := s.snapshots().Open(snapshot(t, s, 10, 1, data))
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, testChunk+10)
		if _, err := io.ReadFull(r, head); err != nil || !bytes.Equal(head, data[:len(head)]) {
			t.Fatal("bad beginning", err)
		}
		snapshot(t, s, 11, 1, blob(2, 5*testChunk))
		snapshot(t, s, 12, 1, blob(3, 5*testChunk))
		rest, err := io.ReadAll(r)
		if !errors.Is(err, errSnapshotGone) || !bytes.HasPrefix(data[len(head):], rest) {
			t.Errorf("read %d more, %v, want errSnapshotGone", len(rest), err)
		}
		if err := s.err(); err != nil {
			t.Errorf("store failed: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestSnapshotFault lets each write of a snapshot fail in turn: the store goes on, the old snapshots stay, a concurrent
// sink notices that what it wrote is gone, and the next snapshot succeeds.
func TestSnapshotFault(t *testing.T) {
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		data := blob(1, 20*testChunk)
		id := snapshot(t, s, 10, 1, data)
		want := map[string][]byte{id: data}
		full := errors.New("no space left on device")
		for fail := 1; fail <= 4; fail++ { // three batches and the meta
			other, err := s.snapshots().Create(1, 98, 1, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := other.Write(blob(8, 9*testChunk)); err != nil {
				t.Fatal(err)
			}
			n := 0
			s.c.Fault = func(string) error {
				if n++; n == fail {
					return full
				}
				return nil
			}
			k, err := s.snapshots().Create(1, 99, 1, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			_, err = k.Write(data)
			if err == nil {
				err = k.Close()
			} else if cancel := k.Cancel(); cancel != nil {
				t.Error(cancel)
			}
			if !errors.Is(err, full) {
				t.Errorf("write %d: %v, want %v", fail, err, full)
			}
			s.c.Fault = nil
			wantSnapshots(t, s, want, id)
			next, err := s.snapshots().Create(1, 97, 1, raft.Configuration{}, 1, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := other.Close(); !errors.Is(err, errSinkLost) {
				t.Errorf("close of the other one: %v, want errSinkLost", err)
			}
			if err := next.Cancel(); err != nil {
				t.Error(err)
			}
		}
		if err := s.err(); err != nil {
			t.Errorf("store failed: %v", err)
		}
		id2 := snapshot(t, s, 11, 1, data)
		want[id2] = data
		s = p.reopen(t, s)
		wantSnapshots(t, s, want, id2, id)
	})
}

// TestSnapshotStaleLog opens a store that crashed after it installed a snapshot and before raft dropped its log.
func TestSnapshotStaleLog(t *testing.T) {
	for name, c := range map[string]struct {
		index, term uint64
		drop        bool
	}{
		"log ends before it":     {30, 2, true},
		"log went another way":   {15, 2, true},
		"log agrees":             {15, 1, false},
		"log ends with it":       {20, 1, false},
		"log ends with another":  {20, 2, true},
		"log ends just before":   {21, 1, true},
		"log begins with it":     {1, 1, false},
		"log's second is its":    {2, 1, false},
		"log's second is not it": {2, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, p *place) {
				s := p.founded(t)
				store1(t, s, entries(2, 20, 1))
				if err := s.stable().SetUint64([]byte("CurrentTerm"), 2); err != nil {
					t.Fatal(err)
				}
				snapshot(t, s, c.index, c.term, []byte("state"))
				for range 2 {
					s = p.reopen(t, s)
					if c.drop {
						wantLog(t, s, 0, 0, nil)
					} else {
						wantLog(t, s, 1, 20, constant(1))
					}
				}
				if c.drop {
					store1(t, s, entries(c.index+1, c.index+3, 2))
					s = p.reopen(t, s)
					wantLog(t, s, c.index+1, c.index+3, constant(2))
				}
			})
		})
	}
}
