package state

import (
	"encoding/binary"
	"strings"

	"github.com/tidwall/btree"
)

// omap is an ordered map of strings with one writer, whose published copies are immutable and read without locks.
//
// The B-tree copies the nodes that a write meets once after each publish, so a publish costs the same at any size. Its
// Copy gives both sides a new identity, which is a write to the original: so only the writer's own handle is ever copied
// with it, never one that a reader may hold (see fork).
type omap[V any] struct {
	m     *btree.Map[string, V]
	dirty bool // written since the last publish
}

// degree 16 makes nodes of up to 31 keys: smaller ones cost memory, larger ones cost copying. See BenchmarkOmap.
const degree = 16

func newOmap[V any]() omap[V] { return omap[V]{m: btree.NewMap[string, V](degree)} }

func (o *omap[V]) len() int                   { return o.m.Len() }
func (o *omap[V]) get(key string) (V, bool)   { return o.m.Get(key) }
func (o *omap[V]) set(key string, v V)        { o.m.Set(key, v); o.dirty = true }
func (o *omap[V]) has(key string) bool        { _, ok := o.m.Get(key); return ok }
func (o *omap[V]) load(key string, v V)       { o.m.Load(key, v); o.dirty = true }
func (o *omap[V]) delete(key string)          { o.m.Delete(key); o.dirty = true }
func (o *omap[V]) all(f func(string, V) bool) { o.m.Scan(f) }

// prefix calls f for the keys that begin with p, in order, until it returns false. f must not write to o.
func (o *omap[V]) prefix(p string, f func(key string, v V) bool) {
	o.m.Ascend(p, func(key string, v V) bool { return strings.HasPrefix(key, p) && f(key, v) })
}

// first gives the first key that begins with p.
func (o *omap[V]) first(p string) (value V, ok bool) {
	o.prefix(p, func(_ string, v V) bool {
		value, ok = v, true
		return false
	})
	return value, ok
}

// last gives the last key of all.
func (o *omap[V]) last() (key string, v V, ok bool) { return o.m.Max() }

// publish gives readers what the writer has now; old is what it gave them before.
func (o *omap[V]) publish(old omap[V]) omap[V] {
	if !o.dirty {
		return old
	}
	o.dirty = false
	return omap[V]{m: o.m.Copy()}
}

// fork gives a new writer its handle on a published map. It copies a copy of the handle, because others may do the same
// at the same moment.
func (o *omap[V]) fork() omap[V] {
	handle := *o.m
	return omap[V]{m: handle.Copy()}
}

// Keys. Numbers are big endian, so that they sort like numbers.

func key64(n uint64) string {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	return string(b[:])
}

func key128(hi, lo uint64) string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], hi)
	binary.BigEndian.PutUint64(b[8:], lo)
	return string(b[:])
}

// ticketKey sorts the owners of one path by ticket. No path has a NUL, so no path's keys lie among another's.
func ticketKey(path string, ticket uint64) string {
	return path + "\x00" + key64(ticket)
}

// treeKey is the parent's path, a NUL, and the name: so the children of one directory stand side by side, and apart from
// their own children. The root's is the NUL alone.
func treeKey(path string) string {
	cut := strings.LastIndexByte(path, '/')
	return path[:cut] + "\x00" + path[cut+1:]
}

// isTreeKey reports whether key is path's, without making it.
func isTreeKey(key, path string) bool {
	cut := strings.LastIndexByte(path, '/')
	return len(key) == len(path) && key[:cut] == path[:cut] && key[cut] == 0 && key[cut+1:] == path[cut+1:]
}

// childPrefix begins the treeKeys of all children of dir, and for the root its own too.
func childPrefix(dir string) string {
	if dir == "/" {
		return "\x00"
	}
	return dir + "\x00"
}

func parentOf(path string) string {
	if cut := strings.LastIndexByte(path, '/'); cut > 0 {
		return path[:cut]
	}
	return "/"
}

// canonical reports whether path has the form "/a/b". Callers clean paths before they propose; the state machine looks
// again because a path out of form would break the tree.
func canonical(path string) bool {
	if path == "/" {
		return true
	}
	if len(path) < 2 || len(path) > pathMax || path[0] != '/' || path[len(path)-1] == '/' || strings.IndexByte(path, 0) >= 0 {
		return false
	}
	return !strings.Contains(path, "//")
}

// pathMax bounds what one command can make of missing parents, each of which has its own path.
const pathMax = 4096
