package chubby

import (
	"fmt"
	"testing"

	"github.com/hashicorp/raft"
)

// All of these sync each write, on the disk that holds the temporary directory.

func BenchmarkStoreLogs(b *testing.B) {
	for _, c := range []struct{ entries, bytes int }{{1, 128}, {64, 128}, {1, 128 << 10}} {
		for name, p := range places(b) {
			b.Run(fmt.Sprintf("store=%s/entries=%d/bytes=%d", name, c.entries, c.bytes), func(b *testing.B) {
				s := p.founded(b)
				data := make([]byte, c.bytes)
				b.ReportAllocs()
				b.SetBytes(int64(c.entries * c.bytes))
				for b.Loop() {
					l := make([]*raft.Log, c.entries)
					for i := range l {
						l[i] = &raft.Log{Index: s.lastIndex() + 1 + uint64(i), Term: 1, Data: data}
					}
					store1(b, s, l)
				}
			})
		}
	}
}

func BenchmarkStoreVote(b *testing.B) {
	for name, p := range places(b) {
		b.Run("store="+name, func(b *testing.B) {
			s := p.founded(b)
			term := uint64(1)
			b.ReportAllocs()
			for b.Loop() {
				term++
				// As raft does to vote: a new term, then the vote in two calls.
				_ = s.stable().SetUint64([]byte(raftTerm), term)
				_ = s.stable().SetUint64([]byte(raftVoteTerm), term)
				_ = s.stable().Set([]byte(raftVoteCand), []byte("n1.x"))
			}
		})
	}
}

func BenchmarkGetLog(b *testing.B) {
	for _, ring := range []bool{true, false} {
		b.Run(fmt.Sprintf("store=dir/ring=%v", ring), func(b *testing.B) {
			p := places(b)["dir"]
			s := p.founded(b)
			store1(b, s, entries(2, 1000, 1))
			if !ring {
				s = p.reopen(b, s)
			}
			var e raft.Log
			b.ReportAllocs()
			for i := uint64(0); b.Loop(); i++ {
				if err := s.logs().GetLog(1+i%1000, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSnapshot(b *testing.B) {
	p := places(b)["dir"]
	s, err := openStore(p.config())
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.close() }()
	data := blob(1, 64<<20)
	b.SetBytes(int64(len(data)))
	for i := uint64(1); b.Loop(); i++ {
		snapshot(b, s, i, 1, data)
	}
}
