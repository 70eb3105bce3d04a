package chubby

import (
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
)

// TestLogRing appends, truncates and clears at random, beside a map that remembers all.
func TestLogRing(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	r := new(logRing)
	log := make(map[uint64]uint64) // index -> term
	next, term := uint64(1), uint64(1)
	for step := range 20000 {
		switch n := rng.IntN(1000); {
		case n < 10:
			from := next - min(next-1, uint64(rng.IntN(20)))
			r.truncate(from, next-1)
			for i := from; i < next; i++ {
				delete(log, i)
			}
			next = from
			term++
		case n == 10:
			r.clear()
			clear(log)
			next += uint64(rng.IntN(10000))
		default:
			size := rng.IntN(20000)
			if n == 11 {
				size = ringBytes + 1
			}
			r.put(&ringEntry{raft.Log{Index: next, Term: term, Data: make([]byte, size)}})
			log[next] = term
			next++
		}
		if step%50 != 0 {
			continue
		}
		var held, bytes int64
		for i := next - min(next, 2*ringEntries); i < next+10; i++ {
			var e raft.Log
			if !r.get(i, &e) {
				continue
			}
			if log[i] != e.Term || e.Index != i {
				t.Fatalf("step %d: entry %d is of term %d, want %d", step, i, e.Term, log[i])
			}
			held++
			bytes += int64(entryBytes(&e))
		}
		if bytes != r.bytes || bytes > ringBytes || held > ringEntries {
			t.Fatalf("step %d: holds %d entries of %d bytes, counts %d", step, held, bytes, r.bytes)
		}
	}
}

// TestLogRingKeepsNewest fills the ring beyond each of its bounds.
func TestLogRingKeepsNewest(t *testing.T) {
	for _, size := range []int{0, 64 << 10} {
		r := new(logRing)
		const n = ringEntries + 100
		for i := uint64(1); i <= n; i++ {
			r.put(&ringEntry{raft.Log{Index: i, Data: make([]byte, size)}})
		}
		keep := min(uint64(ringEntries), uint64(ringBytes/(size+entryOverhead)))
		for i := uint64(1); i <= n; i++ {
			if got, want := r.get(i, new(raft.Log)), i > n-keep; got != want {
				t.Fatalf("%d bytes: entry %d is there: %v, want %v", size, i, got, want)
			}
		}
	}
}
