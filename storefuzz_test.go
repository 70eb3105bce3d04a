package chubby

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
)

// FuzzStoreRecords decodes every kind of record: no panic, and what decodes encodes back to itself.
func FuzzStoreRecords(f *testing.F) {
	f.Add(voteRecord{}.encode())
	f.Add(voteRecord{term: 2, voteTerm: 2, voted: true, candidate: []byte("n")}.encode())
	f.Add(markRecord{index: 1, chain: 2, snap: 3}.encode())
	f.Add(encodeDiskEntry(&raft.Log{Index: 1, Term: 2, Data: []byte("d"), Extensions: []byte("e")}))
	f.Add([]byte(`{"Format":1,"ID":"a","Index":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, ok := decodeVote(b); ok && !bytes.Equal(r.encode(), b) {
			t.Errorf("vote %x comes back as %x", b, r.encode())
		}
		if r, ok := decodeMark(b); ok && !bytes.Equal(r.encode(), b) {
			t.Errorf("mark %x comes back as %x", b, r.encode())
		}
		var e raft.Log
		if err := decodeDiskEntry(b, &e); err == nil && !bytes.Equal(encodeDiskEntry(&e), b) {
			t.Errorf("entry %x comes back as %x", b, encodeDiskEntry(&e))
		}
		if r, ok := openRecord(sealRecord(b)); !ok || !bytes.Equal(r, b) {
			t.Errorf("record %x comes back as %x", b, r)
		}
		_, _ = decodeSnapMeta(snapRecord{"a", sealRecord(b)})
	})
}

// FuzzBoltCheck checks files that are anything: it ends, and does not panic.
func FuzzBoltCheck(f *testing.F) {
	p := places(f)["dir"]
	s := p.founded(f)
	if err := s.close(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(p.Dir, logFileName))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:8*4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		visit, end := logFileChecker()
		if checkBoltPages(bytes.NewReader(b), int64(len(b)), logFileName, visit) == nil {
			_ = end()
		}
	})
}
