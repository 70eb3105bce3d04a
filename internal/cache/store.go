package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/command"
)

// Store is the client's side: what it may read without asking. It is safe for concurrent use. Times are the client's
// Clock.Boot and are arguments.
type Store struct {
	max int64 // bytes

	mu      sync.RWMutex
	items   map[string]*item
	ring    item // ring.next is the newest, ring.prev the oldest
	bytes   int64
	lease   Lease
	until   time.Duration      // the lease's end
	dropped uint64             // number of the newest invalidation that was done under lease
	peer    uint64             // counts changes of the leader that is asked; answers of a former one are void
	asked   map[string][]*Wish // fills on their way
}

// Item is what is cached about a path.
type Item struct {
	Entry  command.Entry // Data must not be changed
	Exists bool
}

type item struct {
	Item
	path       string
	read       atomic.Bool // since it was the oldest, or since it came: it gets a second chance
	prev, next *item
}

// overhead is about what an item costs besides path and contents.
const overhead = 256

func (i *item) bytes() int64 { return int64(len(i.path)+len(i.Entry.Data)) + overhead }

// NewStore makes a store of at most max bytes.
func NewStore(max int64) *Store {
	s := &Store{max: max, items: make(map[string]*item), asked: make(map[string][]*Wish)}
	s.ring.prev, s.ring.next = &s.ring, &s.ring
	return s
}

// Get gives what is cached about path. It may be used if the clock, read after Get returned, is before until: then the
// lease stood when Get looked, and the leader would have had it dropped had anything changed.
func (s *Store) Get(path string) (i Item, until time.Duration, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	x := s.items[path]
	if x == nil {
		return Item{}, 0, false
	}
	if !x.read.Load() {
		x.read.Store(true)
	}
	return x.Item, s.until, true
}

// Wish is a fill that was asked for.
type Wish struct {
	path  string
	peer  uint64
	dirty uint64 // number of the newest invalidation of path since
}

// Ask notes that the client is about to ask the peer for path. Every Wish ends with Fill or Cancel. h is what the question
// must carry. w is nil if another peer is asked by now.
func (s *Store) Ask(path string, peer uint64) (w *Wish, h Holding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if peer != s.peer {
		return nil, Holding{}
	}
	w = &Wish{path: path, peer: s.peer}
	s.asked[path] = append(s.asked[path], w)
	return w, s.holding()
}

// Cancel ends a wish without an answer.
func (s *Store) Cancel(w *Wish) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(w)
}

func (s *Store) forget(w *Wish) {
	list := s.asked[w.path]
	for i, x := range list {
		if x == w {
			list[i] = list[len(list)-1]
			list = list[:len(list)-1]
			break
		}
	}
	if len(list) == 0 {
		delete(s.asked, w.path)
	} else {
		s.asked[w.path] = list
	}
}

// Holding is what the leader has to know of the client with every question: under which lease it holds things, and what
// it has dropped.
type Holding struct {
	Lease   Lease
	Dropped uint64 // all invalidations up to this number
	Peer    uint64 // who is asked
}

// Holding gives the present one. It reports false if another peer is asked by now.
func (s *Store) Holding(peer uint64) (Holding, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holding(), peer == s.peer
}

func (s *Store) holding() Holding { return Holding{s.lease, s.dropped, s.peer} }

// Renew notes that the leader, asked as h.Peer, granted the lease until until.
func (s *Store) Renew(h Holding, lease Lease, until, now time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.Peer != s.peer || !s.adopt(lease) {
		return
	}
	if now >= s.until {
		s.clear() // the old one ended first, and with it what was held under it
	}
	s.until = max(s.until, until)
}

// adopt makes lease the present one, with nothing held, if it is newer. It reports whether it is the present one then.
func (s *Store) adopt(lease Lease) bool {
	if lease.newer(s.lease) {
		s.clear()
		s.lease, s.until, s.dropped = lease, 0, 0
		for _, list := range s.asked {
			for _, w := range list {
				w.dirty = 0
			}
		}
	}
	return lease == s.lease
}

// Fill ends a wish with what the leader answered: i, registered under lease when the client's newest invalidation was
// number. It reports whether that is kept.
func (s *Store) Fill(w *Wish, lease Lease, number uint64, i Item, now time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(w)
	// An invalidation that is newer than the registration came first: the answer may be older than what made it.
	if w.peer != s.peer || lease != s.lease || now >= s.until || w.dirty > number {
		return false
	}
	x := &item{Item: i, path: w.path}
	if x.bytes() > s.max {
		return false
	}
	if old := s.items[w.path]; old != nil {
		s.remove(old)
	}
	s.items[w.path] = x
	x.linkAfter(&s.ring)
	s.bytes += x.bytes()
	for s.bytes > s.max {
		if old := s.ring.prev; old.read.Swap(false) || old == x {
			old.unlink()
			old.linkAfter(&s.ring)
		} else {
			s.remove(old)
		}
	}
	return true
}

// Invalidate drops what the leader names. Only then may it be told of that, by Holding.
func (s *Store) Invalidate(h Holding, lease Lease, list []Invalidation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.Peer != s.peer || !s.adopt(lease) {
		return
	}
	for _, inv := range list {
		if inv.Number > s.dropped+1 {
			s.clear() // one is missing, and may have named anything
			for _, list := range s.asked {
				for _, w := range list {
					w.dirty = inv.Number
				}
			}
		}
		if inv.Path == "" {
			s.clear()
			for _, list := range s.asked {
				for _, w := range list {
					w.dirty = max(w.dirty, inv.Number)
				}
			}
		} else {
			if x := s.items[inv.Path]; x != nil {
				s.remove(x)
			}
			for _, w := range s.asked[inv.Path] {
				w.dirty = max(w.dirty, inv.Number)
			}
		}
		s.dropped = max(s.dropped, inv.Number)
	}
}

// Leave drops everything, because another leader will be asked, or nobody: what was asked before is void. peer names who
// is asked from now on.
func (s *Store) Leave() (peer uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.lease, s.until, s.dropped = Lease{}, 0, 0
	s.peer++
	return s.peer
}

// Len is how many items there are.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.items)
}

func (s *Store) clear() {
	clear(s.items)
	s.ring.prev, s.ring.next = &s.ring, &s.ring
	s.bytes = 0
}

func (s *Store) remove(x *item) {
	delete(s.items, x.path)
	x.unlink()
	s.bytes -= x.bytes()
}

func (x *item) unlink() { x.prev.next, x.next.prev = x.next, x.prev }

func (x *item) linkAfter(at *item) {
	x.prev, x.next = at, at.next
	at.next.prev = x
	at.next = x
}
