// Package index holds maps of strings that many goroutines may use at once. The state machine puts one in front of its
// tree, as a hint for point reads: see state.State.Indexed.
package index

import (
	"iter"
	"sync"

	"github.com/OneOfOne/xxhash"
)

// Kind says how a map is made.
type Kind uint8

const (
	None   Kind = iota // no map at all
	Shards             // Go maps, each under its own lock, chosen by the key's hash
	Sync               // sync.Map
)

// Map is a map of strings. All methods are safe for concurrent use. Who loads a key sees what the last Store or Delete
// that ended before left there, or what one that runs meanwhile does.
type Map[V any] interface {
	Load(key string) (V, bool)
	Store(key string, v V)
	Delete(key string)
	// All gives what is there, in no order. What changes meanwhile may be missing or not.
	All() iter.Seq2[string, V]
}

// New returns an empty map, nil for None.
func New[V any](k Kind) Map[V] {
	switch k {
	case Shards:
		m := new(shards[V])
		for i := range m {
			m[i].m = make(map[string]V)
		}
		return m
	case Sync:
		return new(syncMap[V])
	}
	return nil
}

// shardCount is a power of two, many times the number of processors, so that readers seldom meet the writer.
const shardCount = 128

type shards[V any] [shardCount]shard[V]

// shard has two cache lines of its own: readers write to the lock, and should not slow the neighbours' readers.
type shard[V any] struct {
	mu sync.RWMutex
	m  map[string]V
	_  [128 - 32]byte
}

func (s *shards[V]) of(key string) *shard[V] {
	return &s[xxhash.ChecksumString64(key)%shardCount]
}

func (s *shards[V]) Load(key string) (V, bool) {
	h := s.of(key)
	h.mu.RLock()
	v, ok := h.m[key]
	h.mu.RUnlock()
	return v, ok
}

func (s *shards[V]) Store(key string, v V) {
	h := s.of(key)
	h.mu.Lock()
	h.m[key] = v
	h.mu.Unlock()
}

func (s *shards[V]) Delete(key string) {
	h := s.of(key)
	h.mu.Lock()
	delete(h.m, key)
	h.mu.Unlock()
}

func (s *shards[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		type pair struct {
			key string
			v   V
		}
		var list []pair // of one shard: yield may use the map
		for i := range s {
			h := &s[i]
			list = list[:0]
			h.mu.RLock()
			for k, v := range h.m {
				list = append(list, pair{k, v})
			}
			h.mu.RUnlock()
			for _, p := range list {
				if !yield(p.key, p.v) {
					return
				}
			}
		}
	}
}

type syncMap[V any] struct{ m sync.Map }

func (s *syncMap[V]) Load(key string) (v V, ok bool) {
	x, ok := s.m.Load(key)
	if ok {
		v = x.(V)
	}
	return v, ok
}

func (s *syncMap[V]) Store(key string, v V) { s.m.Store(key, v) }
func (s *syncMap[V]) Delete(key string)     { s.m.Delete(key) }

func (s *syncMap[V]) All() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		s.m.Range(func(k, v any) bool { return yield(k.(string), v.(V)) })
	}
}
