package chubby

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/chubbygo/chubby/internal/state"
)

// The way of an event:
//
//	fsm.ApplyBatch          raft's FSM goroutine: the new root is readable
//	  watchHub.publish        the events go into the history, and into the log of each topic that they concern
//	watchHub.run            one goroutine of the node: wakes those who wait for a topic
//	watch.next              the watcher's goroutine: takes what its topic's log has from its own place on
//
// Nothing is kept for one watch but its place, so a watcher that is slow, or never loops, costs nothing and holds up
// nobody. What it has not taken yet stands in the history that all share. When the history forgets it, the watch has
// lagged.

// watchHub has the watches of one node and the events of the node's recent past.
type watchHub struct {
	limit int64         // what the history may hold, in bytes
	news  chan struct{} // cap 1: dirty is not empty

	// Readers are watchers that take events. Only publish, registration and the end of a watch write.
	mu struct {
		sync.RWMutex
		revision  uint64 // every event up to it has been published
		forgotten uint64 // those up to it are not remembered
		era       uint64 // counts the states that came without their events
		jump      uint64 // revision of the last of these
		leaders   uint64 // counts the changes of the cell leader
		history   eventLog
		bytes     int64 // of history, about
		topics    map[topicKey]*topic
		recursive int // topics of recursive watches
		watches   int
		dirty     []*topic      // their watchers are to be woken
		all       chan struct{} // closed and replaced when era or leaders changed
	}
}

// watchHistoryBytes bounds what a node remembers of the past: some 40,000 changes of small entries. The contents count
// whole, though those that are still in the state take no memory of their own.
const watchHistoryBytes = 16 << 20

// eventBytes is about what an event takes beside its path and contents, with its places in the history and in topics.
const eventBytes = 256

func eventSize(e *state.Event) int64 {
	return eventBytes + int64(len(e.Path)) + int64(len(e.Entry.Data))
}

// eventLog is events in their order. They are numbered as they come; the oldest go first.
type eventLog struct {
	first  uint64 // number of events[0]
	events []*state.Event
}

func (l *eventLog) end() uint64 { return l.first + uint64(len(l.events)) }

func (l *eventLog) add(e *state.Event) { l.events = append(l.events, e) }

// drop forgets the oldest event.
func (l *eventLog) drop() {
	l.events[0] = nil // the array behind it stays
	l.events = l.events[1:]
	l.first++
	if len(l.events) == 0 {
		l.events = nil
	}
}

// clear forgets all events.
func (l *eventLog) clear() { l.first, l.events = l.end(), nil }

// from appends to buf the events of one revision, that of the event with number next, and gives the number after them.
func (l *eventLog) from(next uint64, buf []*state.Event) ([]*state.Event, uint64) {
	rest := l.events[next-l.first:]
	for _, e := range rest {
		if e.Revision != rest[0].Revision {
			break
		}
		buf = append(buf, e)
		next++
	}
	return buf, next
}

// topicKey is what one can watch.
type topicKey struct {
	path      string
	recursive bool // the entry and everything below; else the entry and its direct children
}

// covers reports whether an event at path belongs to the topic.
func (k topicKey) covers(path string) bool {
	if path == k.path {
		return true
	}
	if !k.recursive {
		return parentPath(path) == k.path
	}
	return k.path == "/" || strings.HasPrefix(path, k.path) && path[len(k.path)] == '/'
}

// parentPath is the directory that has the entry at path; the root is its own.
func parentPath(path string) string { return path[:max(1, strings.LastIndexByte(path, '/'))] }

// topic is what is being watched, by any number of watches. It begins with its first and ends with its last.
type topic struct {
	key     topicKey
	watches int
	log     eventLog      // what the history remembers and concerns the topic, since it began
	changed chan struct{} // closed by the hub's goroutine when there is more
	dirty   bool
}

// newWatchHub begins with the revision of a state to which no event has led.
func newWatchHub(revision uint64, limit int64) *watchHub {
	h := &watchHub{limit: limit, news: make(chan struct{}, 1)}
	h.mu.revision = revision
	h.mu.topics = make(map[topicKey]*topic)
	h.mu.all = make(chan struct{})
	return h
}

// publish takes in the events that led to a revision, all of them at once. The fsm calls it when that revision is
// readable. What it costs depends on the depth of the paths and not on the number of watches.
func (h *watchHub) publish(revision uint64, events []state.Event) {
	h.mu.Lock()
	for i := range events {
		if events[i].Kind > state.ACLChanged {
			continue // the cell's own affair
		}
		// Each on its own: a pointer into the batch would keep all of it, for a watcher that is slow with one of them.
		e := new(state.Event)
		*e = events[i]
		h.mu.history.add(e)
		h.mu.bytes += eventSize(e)
		h.concerned(e.Path, func(t *topic) {
			t.log.add(e)
			if !t.dirty {
				t.dirty = true
				h.mu.dirty = append(h.mu.dirty, t)
			}
		})
	}
	h.mu.revision = revision
	for h.mu.bytes > h.limit {
		e := h.mu.history.events[0]
		h.concerned(e.Path, func(t *topic) {
			if len(t.log.events) > 0 && t.log.events[0] == e { // else the topic is younger than the event
				t.log.drop()
			}
		})
		h.mu.history.drop()
		h.mu.bytes -= eventSize(e)
		h.mu.forgotten = e.Revision
	}
	tell := len(h.mu.dirty) > 0
	h.mu.Unlock()
	if tell {
		select {
		case h.news <- struct{}{}:
		default:
		}
	}
}

// concerned calls f for each topic to which an event at path belongs. Called with mu held.
func (h *watchHub) concerned(path string, f func(*topic)) {
	if len(h.mu.topics) == 0 {
		return
	}
	if t := h.mu.topics[topicKey{path, false}]; t != nil {
		f(t)
	}
	if t := h.mu.topics[topicKey{parentPath(path), false}]; t != nil {
		f(t)
	}
	if h.mu.recursive == 0 {
		return
	}
	for {
		if t := h.mu.topics[topicKey{path, true}]; t != nil {
			f(t)
		}
		if path == "/" {
			return
		}
		path = parentPath(path)
	}
}

// run wakes watchers until ctx ends. It is a goroutine of its own because one topic may have thousands of them, and
// waking them would keep the fsm from the next entry.
func (h *watchHub) run(ctx context.Context) {
	var wake []chan struct{}
	for {
		select {
		case <-h.news:
		case <-ctx.Done():
			return
		}
		h.mu.Lock()
		for i, t := range h.mu.dirty {
			wake = append(wake, t.changed)
			t.changed, t.dirty = make(chan struct{}), false
			h.mu.dirty[i] = nil
		}
		h.mu.dirty = h.mu.dirty[:0]
		h.mu.Unlock()
		for i, c := range wake {
			close(c)
			wake[i] = nil
		}
		wake = wake[:0]
	}
}

// jumped is called by the fsm when a state has become readable whose events this node never saw. It ends the watches that
// wanted some of them and forgets the past. One that was registered meanwhile, at the new state, goes on.
func (h *watchHub) jumped(revision uint64) {
	h.mu.Lock()
	h.mu.era++
	h.mu.jump, h.mu.revision, h.mu.forgotten = revision, revision, revision
	h.mu.history.clear()
	h.mu.bytes = 0
	for _, t := range h.mu.topics {
		t.log.clear()
	}
	all := h.renewAll()
	h.mu.Unlock()
	close(all)
}

// leaderChanged tells every watch that another node leads the cell.
func (h *watchHub) leaderChanged() {
	h.mu.Lock()
	h.mu.leaders++
	all := h.renewAll()
	h.mu.Unlock()
	close(all)
}

// renewAll gives the channel on which all watchers wait, to be closed without mu. Called with mu held.
func (h *watchHub) renewAll() chan struct{} {
	all := h.mu.all
	h.mu.all = make(chan struct{})
	return all
}

func (h *watchHub) count() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.mu.watches
}

// watch is a place in the log of a topic. It belongs to the goroutine that loops over it, except for close.
type watch struct {
	hub   *watchHub
	topic *topic
	once  sync.Once // of close

	from    uint64 // events of earlier revisions are not for it
	done    uint64 // next has given out all that concerns it up to this revision
	era     uint64 // those of the hub that it knows
	leaders uint64
	past    uint64 // numbers in the hub's history: what came before the registration, and is wanted, lies between
	pastEnd uint64
	place   uint64         // number in the topic's log
	found   []*state.Event // what next found
}

// register makes a watch for revisions from the given one on; 0 means what comes after seen, a revision that is readable
// here. With fewer watches than limit, it fails only if the past that it should begin with is not remembered.
func (h *watchHub) register(key topicKey, from, seen uint64, limit int) (*watch, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.watches >= limit {
		return nil, fmt.Errorf("%w: %d watches on this node; end some, or raise Limits.Watchers", ErrOverloaded, h.mu.watches)
	}
	// The root is readable before its events are published, so seen may be ahead.
	now := max(seen, h.mu.revision)
	switch {
	case from == 0:
		from = now + 1
	case from <= h.mu.forgotten:
		return nil, fmt.Errorf("%w: revision %d is wanted, and those up to %d are not remembered here; read the state, which is at %d, and watch from %d",
			ErrLagged, from, h.mu.forgotten, now, now+1)
	case from > now+1:
		// Whoever has watched this epoch has seen the present revision at most. One that has seen more comes from before a
		// restore, and waiting until the cell is there again would hide from it what happened since.
		return nil, fmt.Errorf("%w: revision %d is wanted, and the cell is at %d, so that one is of another epoch; read the state, and watch from %d",
			ErrLagged, from, now, now+1)
	}
	t := h.mu.topics[key]
	if t == nil {
		t = &topic{key: key, changed: make(chan struct{})}
		h.mu.topics[key] = t
		if key.recursive {
			h.mu.recursive++
		}
	}
	t.watches++
	h.mu.watches++
	w := &watch{hub: h, topic: t, from: from, done: from - 1, era: h.mu.era, leaders: h.mu.leaders, place: t.log.end()}
	past := h.mu.history.events
	i := sort.Search(len(past), func(i int) bool { return past[i].Revision >= from })
	w.past, w.pastEnd = h.mu.history.first+uint64(i), h.mu.history.end()
	return w, nil
}

// close ends the registration.
func (w *watch) close() {
	w.once.Do(func() {
		h, t := w.hub, w.topic
		h.mu.Lock()
		defer h.mu.Unlock()
		h.mu.watches--
		if t.watches--; t.watches == 0 {
			delete(h.mu.topics, t.key)
			if t.key.recursive {
				h.mu.recursive--
			}
		}
	})
}

// rejoin goes on from now, past all that was missed.
func (w *watch) rejoin() {
	h := w.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	w.from, w.done = h.mu.revision+1, h.mu.revision
	w.era, w.leaders = h.mu.era, h.mu.leaders
	w.past, w.pastEnd = 0, 0
	w.place = w.topic.log.end()
}

// scanMax is how many revisions of the past a watcher looks through before it lets others at the hub.
const scanMax = 256

// foundMax is the most events for which a watch keeps room; one revision can have a whole tree of them.
const foundMax = 256

// next waits for what concerns the watch: the events of one revision, in found until the next call, or led: the leader of
// the cell changed. It returns ErrLagged, the error of ctx, or why the node stopped.
func (w *watch) next(ctx context.Context, n *Node) (led bool, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if n.stopped() {
			return false, n.stopCause()
		}
		led, changed, all, err := w.look()
		if err != nil || led || len(w.found) > 0 {
			return led, err
		}
		if changed == nil {
			continue // the past is long
		}
		select {
		case <-changed:
		case <-all:
		case <-ctx.Done():
		case <-n.stopping:
		}
	}
}

// look is next without waiting. If it finds nothing it gives what to wait for, or nil where it should go on looking.
func (w *watch) look() (led bool, changed, all <-chan struct{}, err error) {
	// What was found last time must not stay in memory while nothing happens.
	clear(w.found)
	if w.found = w.found[:0]; cap(w.found) > foundMax {
		w.found = nil
	}
	h := w.hub
	h.mu.RLock()
	defer h.mu.RUnlock()
	history, log := &h.mu.history, &w.topic.log
	if w.done >= h.mu.jump {
		w.era = h.mu.era
	}
	if w.era != h.mu.era || w.past < w.pastEnd && w.past < history.first || w.place < log.first {
		return false, nil, nil, fmt.Errorf("%w: those from revision %d on; read the state, which is at %d, and watch from %d",
			ErrLagged, w.done+1, h.mu.revision, h.mu.revision+1)
	}
	if w.past == w.pastEnd && w.place == log.end() {
		w.done = max(w.done, h.mu.revision)
	}
	if w.leaders != h.mu.leaders {
		w.leaders = h.mu.leaders
		return true, nil, nil, nil
	}
	for i := 0; w.past < w.pastEnd && len(w.found) == 0; i++ {
		if i == scanMax {
			return false, nil, nil, nil
		}
		w.found, w.past = history.from(w.past, w.found)
		w.done = w.found[0].Revision
		w.found = slices.DeleteFunc(w.found, func(e *state.Event) bool { return !w.topic.key.covers(e.Path) })
	}
	for w.place < log.end() && len(w.found) == 0 {
		w.found, w.place = log.from(w.place, w.found)
		w.done = max(w.done, w.found[0].Revision)
		if w.found[0].Revision < w.from { // readable when the watch was made, and published since
			w.found = w.found[:0]
		}
	}
	return false, w.topic.changed, h.mu.all, nil
}
