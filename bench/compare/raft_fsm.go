package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// command is hraftd's, in JSON as there. Op is "set", "delete" or "setnx" (set if absent).
type command struct {
	Op    string `json:"op,omitempty"`
	Key   string `json:"key,omitempty"`
	Value string `json:"value,omitempty"`
}

// mapFSM is hraftd's state machine, a map under a mutex, with set-if-absent and subscribers added.
type mapFSM struct {
	mu   sync.Mutex
	m    map[string]string
	subs map[string][]chan string
}

func newMapFSM() *mapFSM {
	return &mapFSM{m: make(map[string]string), subs: make(map[string][]chan string)}
}

// subscribe gives the values that key is set to. Apply does not wait for a subscriber: one that is far behind misses some.
func (f *mapFSM) subscribe(key string) chan string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan string, 64)
	f.subs[key] = append(f.subs[key], c)
	return c
}

func (f *mapFSM) unsubscribe(key string, c chan string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[key] = slices.DeleteFunc(f.subs[key], func(other chan string) bool { return other == c })
}

// Apply gives whether the command did what it asks for: a bool, never an error.
func (f *mapFSM) Apply(l *raft.Log) any {
	var c command
	if err := json.Unmarshal(l.Data, &c); err != nil {
		panic(fmt.Sprintf("entry %d: %v", l.Index, err)) // This program wrote it: a broken invariant.
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_, exists := f.m[c.Key]
	switch c.Op {
	case "set":
		f.m[c.Key] = c.Value
		for _, sub := range f.subs[c.Key] {
			select {
			case sub <- c.Value:
			default:
			}
		}
		return true
	case "setnx":
		if !exists {
			f.m[c.Key] = c.Value
		}
		return !exists
	case "delete":
		delete(f.m, c.Key)
		return exists
	}
	panic(fmt.Sprintf("entry %d: op %q", l.Index, c.Op))
}

func (f *mapFSM) get(key string) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	value, ok := f.m[key]
	return value, ok
}

func (f *mapFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return mapSnapshot(maps.Clone(f.m)), nil
}

func (f *mapFSM) Restore(r io.ReadCloser) error {
	defer r.Close()
	m := make(map[string]string)
	if err := json.NewDecoder(r).Decode(&m); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.m = m
	return nil
}

type mapSnapshot map[string]string

func (s mapSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := json.NewEncoder(sink).Encode(s); err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

func (s mapSnapshot) Release() {}
