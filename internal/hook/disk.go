package hook

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// Errors of a Disk and its handles.
var (
	ErrDiskInUse = errors.New("disk is in use") // somebody else has it open
	ErrDiskGone  = errors.New("disk is gone")   // this handle was closed, or the disk crashed under it
	ErrDiskUsed  = errors.New("disk is not empty")
)

// Disk is a disk in memory, which outlives the nodes that use it. It holds tables of ordered keys. One handle at a time
// owns it. The zero value is an empty disk. Safe for concurrent use.
type Disk struct {
	mu      sync.Mutex
	tables  map[string]*diskTable
	journal []diskUndo // how to take back what was written since the last sync, oldest first
	owner   *DiskHandle
	crashes int
}

type diskTable struct {
	keys   []string // ascending
	values map[string][]byte
}

type diskUndo struct {
	table, key string
	value      []byte
	existed    bool
}

// DiskChange is one step of a batch. A nil Value deletes Key.
type DiskChange struct {
	Table, Key string
	Value      []byte
}

// Open makes the caller the owner. It returns ErrDiskInUse while there is another.
func (d *Disk) Open() (*DiskHandle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != nil {
		return nil, ErrDiskInUse
	}
	d.owner = &DiskHandle{d, fmt.Sprint("memory ", d.crashes)}
	return d.owner, nil
}

// Crash drops what was not synced and takes the disk from its owner, whose calls return ErrDiskGone from now on.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.owner = nil
	d.crashes++
	for _, u := range slices.Backward(d.journal) {
		if u.existed {
			d.table(u.table).put(u.key, u.value)
		} else {
			d.table(u.table).remove(u.key)
		}
	}
	d.journal = nil
}

// Become gives d, which must be empty and nobody's, what from has, which must not be used again.
func (d *Disk) Become(from *Disk) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.owner != nil {
		return ErrDiskInUse
	}
	for _, t := range d.tables {
		if len(t.keys) > 0 {
			return ErrDiskUsed
		}
	}
	from.mu.Lock()
	defer from.mu.Unlock()
	d.tables, d.journal = from.tables, from.journal
	return nil
}

// Damage replaces a stored value by what f makes of a copy of it, behind the owner's back and at once durable. Nil
// removes it. It reports whether there was such a key.
func (d *Disk) Damage(table, key string, f func([]byte) []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.table(table)
	v, ok := t.values[key]
	if !ok {
		return false
	}
	if v = f(slices.Clone(v)); v == nil {
		t.remove(key)
	} else {
		t.put(key, v)
	}
	return true
}

// table needs d.mu.
func (d *Disk) table(name string) *diskTable {
	t := d.tables[name]
	if t == nil {
		if d.tables == nil {
			d.tables = make(map[string]*diskTable)
		}
		t = &diskTable{values: make(map[string][]byte)}
		d.tables[name] = t
	}
	return t
}

func (t *diskTable) put(key string, value []byte) {
	if _, ok := t.values[key]; !ok {
		// Logs grow at the end: look there before searching.
		if n := len(t.keys); n == 0 || t.keys[n-1] < key {
			t.keys = append(t.keys, key)
		} else {
			i, _ := slices.BinarySearch(t.keys, key)
			t.keys = slices.Insert(t.keys, i, key)
		}
	}
	t.values[key] = value
}

func (t *diskTable) remove(key string) {
	if _, ok := t.values[key]; !ok {
		return
	}
	delete(t.values, key)
	// Logs shrink at their ends, which must not cost a move of all keys for each.
	if t.keys[0] == key {
		t.keys[0] = ""
		t.keys = t.keys[1:]
		return
	}
	i, _ := slices.BinarySearch(t.keys, key)
	t.keys = slices.Delete(t.keys, i, i+1)
}

// DiskHandle is the ownership of a Disk. Safe for concurrent use.
type DiskHandle struct {
	d    *Disk
	boot string
}

// Boot is what MachineBoot is for a real disk: it differs after each Crash.
func (h *DiskHandle) Boot() string { return h.boot }

// Close gives the disk up. What was written stays, synced or not, as it does when a process ends. Idempotent.
func (h *DiskHandle) Close() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.owner == h {
		h.d.owner = nil
	}
	return nil
}

// Write makes all changes or, when it returns an error, none. With sync they and all earlier ones survive a Crash. The
// values belong to the disk from now on.
func (h *DiskHandle) Write(sync bool, changes ...DiskChange) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.owner != h {
		return ErrDiskGone
	}
	for _, c := range changes {
		t := h.d.table(c.Table)
		if !sync {
			old, ok := t.values[c.Key]
			h.d.journal = append(h.d.journal, diskUndo{c.Table, c.Key, old, ok})
		}
		if c.Value == nil {
			t.remove(c.Key)
		} else {
			t.put(c.Key, c.Value)
		}
	}
	if sync {
		h.d.journal = nil
	}
	return nil
}

// Get gives the value of key, nil if there is none. The caller must not change it.
func (h *DiskHandle) Get(table, key string) ([]byte, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.owner != h {
		return nil, ErrDiskGone
	}
	return h.d.table(table).values[key], nil
}

// Ends gives the first and the last key of a table, "" if it is empty.
func (h *DiskHandle) Ends(table string) (first, last string, err error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.owner != h {
		return "", "", ErrDiskGone
	}
	if keys := h.d.table(table).keys; len(keys) > 0 {
		return keys[0], keys[len(keys)-1], nil
	}
	return "", "", nil
}

// Keys gives the keys of a table that start with prefix, in order.
func (h *DiskHandle) Keys(table, prefix string) ([]string, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.owner != h {
		return nil, ErrDiskGone
	}
	keys := h.d.table(table).keys
	i, _ := slices.BinarySearch(keys, prefix)
	j := i
	for j < len(keys) && strings.HasPrefix(keys[j], prefix) {
		j++
	}
	return slices.Clone(keys[i:j]), nil
}
