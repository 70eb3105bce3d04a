// Package lease keeps deadlines in order. It has no clock: the present is an argument.
package lease

import (
	"cmp"
	"container/heap"
	"slices"
	"time"
)

// Queue holds one deadline for each key, on whatever clock its caller reads. The zero value is empty and ready.
// It is not safe for concurrent use.
type Queue[K comparable] struct {
	items map[K]*item[K]
	order order[K]
	shift time.Duration // added to every stored deadline
}

type item[K comparable] struct {
	key K
	at  time.Duration // without shift
	pos int           // in order
}

// Len is the number of keys.
func (q *Queue[K]) Len() int { return len(q.items) }

// Set gives key a deadline, new or instead of its old one.
func (q *Queue[K]) Set(key K, at time.Duration) {
	at -= q.shift
	if it := q.items[key]; it != nil {
		it.at = at
		heap.Fix(&q.order, it.pos)
		return
	}
	if q.items == nil {
		q.items = make(map[K]*item[K])
	}
	it := &item[K]{key: key, at: at}
	q.items[key] = it
	heap.Push(&q.order, it)
}

// Extend moves a known key's deadline, only ever to a later time. It reports whether the key is known.
func (q *Queue[K]) Extend(key K, at time.Duration) bool {
	it := q.items[key]
	if it == nil {
		return false
	}
	if at-q.shift > it.at {
		it.at = at - q.shift
		heap.Fix(&q.order, it.pos)
	}
	return true
}

// Deadline returns key's deadline.
func (q *Queue[K]) Deadline(key K) (time.Duration, bool) {
	if it := q.items[key]; it != nil {
		return it.at + q.shift, true
	}
	return 0, false
}

// Remove forgets key.
func (q *Queue[K]) Remove(key K) {
	if it := q.items[key]; it != nil {
		heap.Remove(&q.order, it.pos)
		delete(q.items, key)
	}
}

// Due returns the keys whose deadline is at or before now, earliest first, at most limit of them. They stay in the
// queue.
func (q *Queue[K]) Due(now time.Duration, limit int) []K {
	var due []*item[K]
	var walk func(pos int)
	walk = func(pos int) { // The due items of a heap are a tree at its root.
		if pos < len(q.order) && q.order[pos].at+q.shift <= now {
			due = append(due, q.order[pos])
			walk(2*pos + 1)
			walk(2*pos + 2)
		}
	}
	walk(0)
	slices.SortFunc(due, func(a, b *item[K]) int { return cmp.Compare(a.at, b.at) })
	keys := make([]K, 0, min(len(due), limit))
	for _, it := range due[:cap(keys)] {
		keys = append(keys, it.key)
	}
	return keys
}

// Shift adds d to every deadline.
func (q *Queue[K]) Shift(d time.Duration) { q.shift += d }

// order is a heap of items by time.
type order[K comparable] []*item[K]

func (o order[K]) Len() int           { return len(o) }
func (o order[K]) Less(i, j int) bool { return o[i].at < o[j].at }
func (o order[K]) Swap(i, j int) {
	o[i], o[j] = o[j], o[i]
	o[i].pos, o[j].pos = i, j
}
func (o *order[K]) Push(x any) {
	it := x.(*item[K])
	it.pos = len(*o)
	*o = append(*o, it)
}
func (o *order[K]) Pop() any {
	last := len(*o) - 1
	it := (*o)[last]
	(*o)[last] = nil
	*o = (*o)[:last]
	return it
}
