package lease_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/lease"
)

// The queue against a map that is searched from end to end.
func TestQueueAgainstMap(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var q lease.Queue[int]
		want := map[int]time.Duration{}
		for range 500 {
			key, at := rng.IntN(40), time.Duration(rng.IntN(1000))
			switch rng.IntN(6) {
			case 0, 1:
				q.Set(key, at)
				want[key] = at
			case 2:
				if _, ok := want[key]; ok != q.Extend(key, at) {
					t.Fatalf("seed %d: Extend(%d) reports %v", seed, key, !ok)
				} else if ok {
					want[key] = max(want[key], at)
				}
			case 3:
				q.Remove(key)
				delete(want, key)
			case 4:
				d := time.Duration(rng.IntN(50))
				q.Shift(d)
				for k := range want {
					want[k] += d
				}
			case 5:
				var due []int
				for k, d := range want {
					if d <= at {
						due = append(due, k)
					}
				}
				got := q.Due(at, 1000)
				if !slices.IsSortedFunc(got, func(a, b int) int { return int(want[a] - want[b]) }) {
					t.Fatalf("seed %d: Due(%d) = %v, not in order of %v", seed, at, got, want)
				}
				if limited := q.Due(at, 2); len(limited) != min(2, len(got)) {
					t.Fatalf("seed %d: Due(%d, 2) = %v", seed, at, limited)
				}
				slices.Sort(got)
				slices.Sort(due)
				if !slices.Equal(got, due) {
					t.Fatalf("seed %d: Due(%d) = %v, want %v", seed, at, got, due)
				}
			}
			if d, ok := q.Deadline(key); ok != (want[key] != 0 || has(want, key)) || ok && d != want[key] {
				t.Fatalf("seed %d: Deadline(%d) = %v, %v, want %v", seed, key, d, ok, want[key])
			}
			if q.Len() != len(want) {
				t.Fatalf("seed %d: Len %d, want %d", seed, q.Len(), len(want))
			}
		}
	}
}

func has(m map[int]time.Duration, k int) bool { _, ok := m[k]; return ok }
