package maps

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/index"
	"github.com/chubbygo/chubby/internal/state"
)

// BenchmarkStrategy compares what Options.Map offers, and a plain map under an RWMutex, in the mixes of ChubbyGo's
// MapPerformanceTest: put; get; a put and a get; a put and a delete. As there, ten goroutines for each processor work on
// one map, here of 100,000 entries. mix=serve is what a node does: gets, one in a hundred times a put.
//
// The strategies are measured whole, as the state machine has them: a put is a command, which is decoded, executed,
// hashed, and shared with others the publishing of a new state for each 32. A plain map does nothing of that: it has no
// states to look back to, no order and no snapshots. It stands here for what is left to gain.
//
// mix=memory reports the bytes of an entry beside its contents. The figures and what follows from them stand in
// bench/README.md.
func BenchmarkStrategy(b *testing.B) {
	const entries = 100_000
	paths := make([]string, entries)
	for i := range paths {
		paths[i] = fmt.Sprintf("/svc/directory-%04d/file-%02d", i/100, i%100)
	}
	value := make([]byte, 100)
	for _, s := range []struct {
		name string
		make func() store
	}{
		{"TreeMap", func() store { return newMachineStore(index.None) }},
		{"ConcurrentMap", func() store { return newMachineStore(index.Shards) }},
		{"SyncMap", func() store { return newMachineStore(index.Sync) }},
		{"RWMutex", func() store { return &plainStore{m: make(map[string][]byte)} }},
	} {
		before := heap()
		m := s.make()
		for _, path := range paths {
			m.put(path, value)
		}
		memory := float64(heap()-before)/entries - float64(len(value))
		run := func(mix string, op func(r *rand.Rand)) {
			b.Run(fmt.Sprintf("mix=%s/map=%s", mix, s.name), func(b *testing.B) {
				b.ReportAllocs()
				b.SetParallelism(10)
				var seed atomic.Uint64
				b.RunParallel(func(pb *testing.PB) {
					r := rand.New(rand.NewPCG(seed.Add(1), 0))
					for pb.Next() {
						op(r)
					}
				})
			})
		}
		some := func(r *rand.Rand) string { return paths[r.IntN(entries)] }
		get := func(r *rand.Rand) {
			if !m.get(some(r)) {
				panic("an entry is gone")
			}
		}
		run("get", get)
		run("put", func(r *rand.Rand) { m.put(some(r), value) })
		run("putget", func(r *rand.Rand) {
			m.put(some(r), value)
			get(r)
		})
		run("serve", func(r *rand.Rand) {
			if r.IntN(100) == 0 {
				m.put(some(r), value)
			} else {
				get(r)
			}
		})
		run("putdelete", func(r *rand.Rand) {
			path := some(r)
			m.put(path, value)
			m.delete(path)
		})
		b.Run("mix=memory/map="+s.name, func(b *testing.B) {
			for b.Loop() {
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(memory, "B/entry")
		})
		runtime.KeepAlive(m)
	}
}

type store interface {
	put(path string, value []byte)
	get(path string) bool
	delete(path string)
}

// machineStore is a state machine as a node uses it: one writer at a time, readers without a lock.
type machineStore struct {
	root atomic.Pointer[state.State]

	mu    sync.Mutex
	m     *state.Machine
	index uint64
	raw   []byte
}

func newMachineStore(k index.Kind) *machineStore {
	s := &machineStore{m: state.NewMachine(state.New("local", 1).Indexed(k))}
	s.root.Store(s.m.State())
	return s
}

func (s *machineStore) apply(c *command.Command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	s.raw = command.Append(s.raw[:0], c)
	if _, err := s.m.Apply(s.index, 1, s.raw); err != nil {
		panic(err)
	}
	if s.index%32 == 0 {
		root, _ := s.m.Publish()
		s.root.Store(root)
	}
}

func (s *machineStore) put(path string, value []byte) {
	s.apply(&command.Command{Kind: command.KindSet, Path: path, Data: value})
}

func (s *machineStore) get(path string) bool {
	_, ok := s.root.Load().Get(path)
	return ok
}

func (s *machineStore) delete(path string) {
	s.apply(&command.Command{Kind: command.KindDelete, Path: path})
}

type plainStore struct {
	mu sync.RWMutex
	m  map[string][]byte
}

func (s *plainStore) put(path string, value []byte) {
	value = append([]byte(nil), value...)
	s.mu.Lock()
	s.m[path] = value
	s.mu.Unlock()
}

func (s *plainStore) get(path string) bool {
	s.mu.RLock()
	_, ok := s.m[path]
	s.mu.RUnlock()
	return ok
}

func (s *plainStore) delete(path string) {
	s.mu.Lock()
	delete(s.m, path)
	s.mu.Unlock()
}
