package chubby

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// TestWatchHubModel has watches begin, look and end at random while revisions of several events are published, the leader
// changes and snapshots come, with a history of a few events only. Each watch is compared with the list of everything: it
// gets exactly what concerns it, whole revisions at a time, or is told that it lagged, which it must have.
func TestWatchHubModel(t *testing.T) {
	for seed := range uint64(200) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { hubModel(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

// modelWatch is a watch and what it is to give.
type modelWatch struct {
	*watch
	next    uint64 // first revision that it has not given
	leaders int    // changes that it was not told of
	jumped  bool
}

func hubModel(t *testing.T, rng *rand.Rand) {
	const limit = 30 * (eventBytes + 8)
	h := newWatchHub(1, limit)
	paths := []string{"/", "/a", "/a/b", "/a/b/c", "/a/bb", "/ab", "/a/b/c/d"}
	var all []state.Event // everything since the last snapshot
	var base uint64       // its revision
	var watches []*modelWatch
	revision := uint64(1)

	// oldest gives the oldest revision that is remembered whole.
	oldest := func() uint64 {
		size, r := int64(0), revision+1
		for _, e := range slices.Backward(all) {
			if size += eventSize(&e); size > limit {
				return e.Revision + 1
			}
			r = e.Revision
		}
		return min(r, base+1)
	}
	want := func(w *modelWatch) (list []state.Event) {
		for _, e := range all {
			if e.Revision >= w.next && w.topic.key.covers(e.Path) {
				list = append(list, e)
			}
		}
		return list
	}
	look := func(w *modelWatch) (alive bool) {
		for {
			led, changed, _, err := w.look()
			switch due := want(w); {
			case err != nil:
				// It may lag only if something was forgotten that it was to give, or of the past that it had not looked through.
				forgotten := len(due) > 0 && due[0].Revision < oldest() || w.past < w.pastEnd && w.next < oldest()
				if !errors.Is(err, ErrLagged) || !w.jumped && !forgotten {
					t.Fatalf("watch of %+v at %d: %v; due %v, remembered from %d", w.topic.key, w.next, err, due, oldest())
				}
				return false
			case w.jumped:
				t.Fatalf("watch of %+v goes on after a snapshot", w.topic.key)
			case led:
				if w.leaders == 0 {
					t.Fatal("told of a leader without a change")
				}
				w.leaders = 0
			case len(w.found) > 0:
				r := w.found[0].Revision
				n := 0
				for n < len(due) && due[n].Revision == r {
					n++
				}
				if n != len(w.found) || due[0].Revision != r {
					t.Fatalf("watch of %+v found %v, due %v", w.topic.key, w.found, due)
				}
				for i, e := range w.found {
					if e.Path != due[i].Path || e.Kind != due[i].Kind {
						t.Fatalf("watch of %+v found %v, due %v", w.topic.key, w.found, due)
					}
				}
				if w.next = r + 1; w.done != r {
					t.Fatalf("done is %d after revision %d", w.done, r)
				}
			case changed != nil:
				if len(due) > 0 || w.leaders > 0 {
					t.Fatalf("watch of %+v found nothing, due %v and %d leaders", w.topic.key, due, w.leaders)
				}
				return true
			}
			if rng.IntN(4) == 0 {
				return true // the loop's body takes its time
			}
		}
	}
	for range 400 {
		switch n := rng.IntN(20); {
		case n < 9: // a batch of some revisions
			var batch []state.Event
			for range rng.IntN(4) {
				revision++
				for range rng.IntN(4) {
					e := state.Event{Kind: state.EventKind(1 + rng.IntN(6)), Path: paths[1+rng.IntN(len(paths)-1)], Revision: revision}
					e.Entry = command.Entry{Path: e.Path, Data: make([]byte, rng.IntN(8))}
					batch = append(batch, e)
				}
				if rng.IntN(2) == 0 {
					batch = append(batch, state.Event{Kind: state.SessionOpened, Revision: revision})
				}
			}
			h.publish(revision, batch)
			for _, e := range batch {
				if e.Kind <= state.LockContended {
					all = append(all, e)
				}
			}
		case n < 12:
			key := topicKey{paths[rng.IntN(len(paths))], rng.IntN(2) == 0}
			from := uint64(0)
			if rng.IntN(2) == 0 {
				from = max(1, revision-min(revision, uint64(rng.IntN(25)))) + uint64(rng.IntN(3))
			}
			w, err := h.register(key, from, revision, 10)
			if err != nil {
				full, past, future := len(watches) >= 10, from > 0 && from < oldest(), from > revision+1
				if errors.Is(err, ErrOverloaded) != full || !full && !past && !future {
					t.Fatalf("register from %d at %d with %d watches, remembered from %d: %v", from, revision, len(watches), oldest(), err)
				}
				break
			}
			if from == 0 {
				from = revision + 1
			}
			watches = append(watches, &modelWatch{watch: w, next: from})
		case n < 17 && len(watches) > 0:
			i := rng.IntN(len(watches))
			if !look(watches[i]) {
				watches[i].close()
				watches = slices.Delete(watches, i, i+1)
			}
		case n == 17 && len(watches) > 0:
			i := rng.IntN(len(watches))
			watches[i].close()
			watches[i].close() // the loop and its ctx may both end it
			watches = slices.Delete(watches, i, i+1)
		case n == 18:
			h.leaderChanged()
			for _, w := range watches {
				w.leaders++
			}
		case n == 19 && rng.IntN(4) == 0:
			revision += uint64(rng.IntN(10))
			h.jumped(revision)
			all, base = nil, revision
			for _, w := range watches {
				// One that has all up to the snapshot's revision missed nothing.
				w.jumped = w.jumped || w.done < revision
				if rng.IntN(3) == 0 { // an observer reads the state and goes on
					w.rejoin()
					w.next, w.jumped, w.leaders = revision+1, false, 0
				}
			}
		}
		if got := h.count(); got != len(watches) {
			t.Fatalf("%d watches, want %d", got, len(watches))
		}
	}
	for _, w := range watches {
		w.close()
	}
	if h.mu.recursive != 0 || len(h.mu.topics) != 0 || h.count() != 0 {
		t.Errorf("%d recursive topics, %d topics, %d watches are left", h.mu.recursive, len(h.mu.topics), h.count())
	}
}

// What is seen through the root may be ahead of what was published, for the moment between the two. A watch made in
// that moment is of what comes after the root, not of what is yet to be published of it.
func TestWatchHubAhead(t *testing.T) {
	h := newWatchHub(1, watchHistoryBytes)
	w, err := h.register(topicKey{"/", true}, 0, 3, 1)
	if err != nil {
		t.Fatal(err)
	}
	h.publish(3, []state.Event{{Kind: state.Created, Path: "/a", Revision: 2}, {Kind: state.Created, Path: "/b", Revision: 3}})
	if _, changed, _, err := w.look(); changed == nil || err != nil || len(w.found) > 0 {
		t.Errorf("found %v, %v, want nothing: it was readable before", w.found, err)
	}
	h.publish(4, []state.Event{{Kind: state.Created, Path: "/c", Revision: 4}})
	if _, _, _, err := w.look(); err != nil || len(w.found) != 1 || w.found[0].Path != "/c" {
		t.Errorf("found %v, %v, want /c", w.found, err)
	}
}

// The state is readable before its events are out: a watcher that is told of something finds it. Guards the order at the
// end of ApplyBatch.
func TestStateBeforeEvents(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.Set(t.Context(), "/x", nil); err != nil {
		t.Fatal(err)
	}
	before := n.fsm.root.Load().Revision()
	answered := make(chan error, 1)
	n.fsm.watches.mu.RLock() // holds the events up
	go func() {
		_, err := n.Set(t.Context(), "/x", nil)
		answered <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); n.fsm.root.Load().Revision() == before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Error("the state waits for its events")
			break
		}
	}
	n.fsm.watches.mu.RUnlock()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// However many changes there were and however long nobody looked, memory is what the history may hold: neither it, nor
// the topics, nor a watch that has delivered what it found keep anything older.
func TestWatchHubForgets(t *testing.T) {
	const limit = 100 * eventBytes
	h := newWatchHub(1, limit)
	var watches []*watch
	for _, key := range []topicKey{{"/", true}, {"/a", true}, {"/a", false}, {"/a/b", false}, {"/quiet", false}} {
		w, err := h.register(key, 0, 1, 10)
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	publish := func(revision uint64, path string) {
		h.publish(revision, []state.Event{{Kind: state.Created, Path: path, Revision: revision}})
	}
	publish(2, "/a/b")
	for _, w := range watches[:4] {
		if _, _, _, err := w.look(); err != nil || len(w.found) != 1 {
			t.Fatalf("found %v, %v", w.found, err)
		}
		if _, _, _, err := w.look(); err != nil || w.found[:1][0] != nil {
			t.Errorf("%+v keeps %v", w.topic.key, w.found[:1][0])
		}
	}
	for r := uint64(3); r < 1000; r++ {
		publish(r, "/a/b")
	}
	for r := uint64(1000); r < 2000; r++ {
		publish(r, "/elsewhere")
	}
	if n := len(h.mu.history.events); n > 100 || h.mu.bytes > limit {
		t.Errorf("the history has %d events, %d bytes", n, h.mu.bytes)
	}
	for key, topic := range h.mu.topics {
		if n := len(topic.log.events); n > len(h.mu.history.events) || key.path != "/" && n > 0 {
			t.Errorf("%+v has %d events", key, n)
		}
	}
	for _, w := range watches {
		_, _, _, err := w.look()
		if quiet := w.topic.key.path == "/quiet"; errors.Is(err, ErrLagged) == quiet {
			t.Errorf("%+v: %v", w.topic.key, err)
		}
	}
}

func BenchmarkWatchPublish(b *testing.B) {
	for _, watches := range []int{0, 1, 100_000} {
		b.Run(fmt.Sprintf("watches=%d", watches), func(b *testing.B) {
			h := newWatchHub(1, watchHistoryBytes)
			for i := range watches {
				if _, err := h.register(topicKey{[]string{"/a/b/c", "/a", "/"}[i%3], i%2 == 0}, 0, 1, watches); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			revision := uint64(1)
			for b.Loop() {
				revision++
				h.publish(revision, []state.Event{{Kind: state.Modified, Path: "/a/b/c", Revision: revision, Entry: command.Entry{Data: make([]byte, 100)}}})
			}
		})
	}
}

// A watch that is registered when a snapshot's state is readable, and before the hub knows of it, misses nothing.
func TestWatchHubJumpAfterRegistration(t *testing.T) {
	h := newWatchHub(1, 1<<20)
	register := func(seen uint64) *watch {
		w, err := h.register(topicKey{path: "/a"}, 0, seen, 10)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	early, late := register(1), register(20)
	h.jumped(20)
	h.publish(21, []state.Event{{Kind: state.Modified, Path: "/a", Revision: 21}})
	if _, _, _, err := early.look(); !errors.Is(err, ErrLagged) {
		t.Errorf("one that missed what led to the snapshot: %v", err)
	}
	if _, _, _, err := late.look(); err != nil || len(late.found) != 1 || late.found[0].Revision != 21 {
		t.Errorf("one that missed nothing: %v, %v", late.found, err)
	}
}
