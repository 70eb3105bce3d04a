package state

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/index"
)

func eachIndex(t *testing.T, f func(t *testing.T, k index.Kind)) {
	for name, k := range map[string]index.Kind{"tree": index.None, "concurrent": index.Shards, "sync": index.Sync} {
		t.Run(name, func(t *testing.T) { f(t, k) })
	}
}

// misled says where a point read of s differs from its tree, which never changes.
func misled(s *State) error {
	paths := slices.Clone(randomPaths)
	s.entries.all(func(_ string, e *entry) bool {
		paths = append(paths, e.path)
		return true
	})
	for _, path := range paths {
		got, ok := s.Get(path)
		e := s.entry(path)
		if ok != (e != nil) || ok && (got.Stat != e.stat() || !bytes.Equal(got.Data, e.data)) {
			return fmt.Errorf("%s at revision %d: got %+v, %v, the tree has %+v", path, s.revision, got, ok, e)
		}
	}
	return nil
}

// Goal: whatever the index, a point read of any state, new or old, is one of its tree. Method: random commands in random
// batches, through snapshots; after each batch the newest state and some of the older ones are read.
func TestIndexContract(t *testing.T) {
	eachIndex(t, func(t *testing.T, k index.Kind) {
		random := newRandom(t)
		for range 10 {
			g, m := newGenerator(random.IntN), NewMachine(New("local", 7).Indexed(k))
			o, old := newModel(), []*State{m.State()}
			for i := range uint64(250) {
				raw, term := g.next(m.State())
				var c command.Command
				if err := command.Decode(raw, &c); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Apply(i+1, term, raw); err != nil {
					t.Fatal(err)
				}
				o.apply(term, &c)
				if random.IntN(3) == 0 {
					continue
				}
				s, _ := m.Publish()
				if err := compare(o, s); err != nil {
					t.Fatal(err)
				}
				old = append(old, m.State())
				for range 3 {
					if err := misled(old[random.IntN(len(old))]); err != nil {
						t.Fatal(err)
					}
				}
				if err := misled(m.State()); err != nil {
					t.Fatal(err)
				}
				if err := old[random.IntN(len(old))].Check(); err != nil {
					t.Fatal(err)
				}
				if random.IntN(50) == 0 {
					s, err := Read(bytes.NewReader(snapshot(t, m.State())))
					if err != nil {
						t.Fatal(err)
					}
					m = NewMachine(s.Indexed(k))
				}
			}
		}
	})
}

// Goal: the same beside a writer that publishes as fast as it can. A reader that meets an index older than its state, or
// newer without noticing, sees another entry than its tree has.
func TestIndexRace(t *testing.T) {
	eachIndex(t, func(t *testing.T, k index.Kind) {
		m := NewMachine(New("local", 7).Indexed(k))
		var root atomic.Pointer[State]
		root.Store(m.State())
		var wg sync.WaitGroup
		done := make(chan struct{})
		for range 3 {
			wg.Go(func() {
				var old *State
				for n := 0; ; n++ {
					s := root.Load()
					if n%16 == 0 {
						old = s
					}
					for _, s := range []*State{s, old} {
						if err := misled(s); err != nil {
							t.Error(err)
							return
						}
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		for i := range 1500 {
			c := &command.Command{Kind: command.KindSet, Path: randomPaths[i%3], Data: fmt.Append(nil, i)}
			if i%5 == 4 {
				c = &command.Command{Kind: command.KindDeleteTree, Path: randomPaths[i/5%3]}
			}
			apply(t, m, c)
			if i%3 != 1 {
				s, _ := m.Publish()
				root.Store(s)
			}
		}
		close(done)
		wg.Wait()
	})
}

// Check finds what would mislead readers.
func TestCheckIndex(t *testing.T) {
	for name, plant := range map[string]func(s *State){
		"another record": func(s *State) { e := *s.entry("/a"); s.hint.Store("/a", &e) },
		"not there":      func(s *State) { s.hint.Store("/b", &entry{path: "/b", revision: 1}) },
	} {
		m := NewMachine(New("local", 7).Indexed(index.Shards))
		apply(t, m, &command.Command{Kind: command.KindSet, Path: "/a"})
		s, _ := m.Publish()
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		if plant(s); s.Check() == nil {
			t.Errorf("%s: not found", name)
		}
	}
}
