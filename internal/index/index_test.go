package index_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/chubbygo/chubby/internal/index"
)

func kinds(t *testing.T, f func(t *testing.T, m index.Map[*int])) {
	for name, k := range map[string]index.Kind{"shards": index.Shards, "sync": index.Sync} {
		t.Run(name, func(t *testing.T) { f(t, index.New[*int](k)) })
	}
}

// Beside a plain map, at random.
func TestContract(t *testing.T) {
	kinds(t, func(t *testing.T, m index.Map[*int]) {
		const seed = 1
		r := rand.New(rand.NewPCG(seed, seed))
		want := map[string]*int{}
		for range 5000 {
			k := fmt.Sprint("/k", r.IntN(500))
			switch r.IntN(3) {
			case 0:
				m.Delete(k)
				delete(want, k)
			case 1:
				v := new(int)
				m.Store(k, v)
				want[k] = v
			}
			v, ok := m.Load(k)
			if w, there := want[k]; v != w || ok != there {
				t.Fatalf("%s is %p, %v, want %p", k, v, ok, w)
			}
		}
		if got := maps.Collect(m.All()); !maps.Equal(got, want) {
			t.Errorf("All gives %d, want %d", len(got), len(want))
		}
		for k := range m.All() {
			m.Delete(k) // a loop may use the map
		}
		for k := range m.All() {
			t.Errorf("%s is left", k)
		}
	})
	if index.New[int](index.None) != nil {
		t.Error("None is a map")
	}
}

// A loop that ends early, and readers beside a writer, for the race detector.
func TestConcurrent(t *testing.T) {
	kinds(t, func(t *testing.T, m index.Map[*int]) {
		var wg sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			wg.Go(func() {
				for last := 0; ; {
					if v, ok := m.Load("/counter"); ok {
						if *v < last {
							t.Errorf("%d after %d", *v, last)
						}
						last = *v
					}
					for range m.All() {
						break
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		for i := range 5000 {
			m.Store("/counter", &i)
			m.Store(fmt.Sprint("/", i%100), &i)
			m.Delete(fmt.Sprint("/", (i+50)%100))
		}
		close(done)
		wg.Wait()
	})
}
