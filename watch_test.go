package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// puller takes events one by one.
type puller struct {
	t    *testing.T
	next func() (chubby.Event, error, bool)
}

func pull(t *testing.T, seq iter.Seq2[chubby.Event, error]) *puller {
	t.Helper()
	next, stop := iter.Pull2(seq)
	t.Cleanup(stop)
	return &puller{t, next}
}

// event wants one more event.
func (p *puller) event() chubby.Event {
	p.t.Helper()
	e, err, ok := p.next()
	if err != nil || !ok {
		p.t.Fatalf("no event: %v, %v", err, ok)
	}
	return e
}

// end wants the error want, and nothing after it.
func (p *puller) end(want error) error {
	p.t.Helper()
	_, err, ok := p.next()
	if !ok || !errors.Is(err, want) {
		p.t.Fatalf("the watch ended with %v, %v, want %v", err, ok, want)
	}
	var e *chubby.Error
	if !errors.As(err, &e) {
		p.t.Errorf("%T is no *chubby.Error", err)
	}
	if e, err, ok := p.next(); ok {
		p.t.Fatalf("after the error came %+v, %v", e, err)
	}
	return err
}

// brief writes an event as "modified /a@7=x", with "+" behind it when others of its revision follow.
func brief(e chubby.Event) string {
	s := fmt.Sprintf("%v %s@%d", e.Kind, e.Path, e.Revision)
	if e.Entry.Data != nil {
		s += "=" + string(e.Entry.Data)
	}
	if e.More {
		s += "+"
	}
	return s
}

// briefs takes n events and writes their revisions as distances from base.
func (p *puller) briefs(n int, base uint64) string {
	p.t.Helper()
	var list []string
	for range n {
		e := p.event()
		e.Revision -= base
		list = append(list, brief(e))
	}
	return strings.Join(list, ", ")
}

func watch(t *testing.T, n *chubby.Node, path string, o chubby.WatchOptions) *puller {
	t.Helper()
	return pull(t, n.Watch(within(t, time.Minute), path, o))
}

// Every call that changes something says so, to whom it concerns, in the order in which it happens, with the entry as it
// is afterwards; those of one revision are marked.
func TestWatchKinds(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n, ctx := cell.Node(0), t.Context()
		s, err := n.NewSession(ctx, chubby.SessionOptions{Name: "other"})
		if err != nil {
			t.Fatal(err)
		}
		mustSet(t, n, "/first", "") // the default session is open now
		flat := watch(t, n, "a", chubby.WatchOptions{})
		deep := watch(t, n, "/ls/local/a", chubby.WatchOptions{Recursive: true})
		all := watch(t, n, "/", chubby.WatchOptions{Recursive: true})
		root := watch(t, n, "/", chubby.WatchOptions{})
		base := n.Status().Revision

		do := func(what string, err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		}
		mustSet(t, n, "/a/b/c", "1")        // 1
		mustSet(t, n, "/a/b/c", "1")        // 2
		mustSet(t, n, "/a/n", "5")          // 3
		_, err = n.Add(ctx, "/a/n", 2, 100) // 4
		do("Add", err)
		_, err = n.CompareAndSwap(ctx, "/a/n", []byte("7"), []byte("8")) // 5
		do("CompareAndSwap", err)
		_, err = n.Txn(ctx, chubby.Txn{Then: []chubby.Op{ // 6
			chubby.OpAdd("/a/n", 1, 100), chubby.OpDelete("/a/b/c"), chubby.OpSet("/a/m", []byte("m")), chubby.OpSet("/z", nil), chubby.OpGet("/a/m"),
		}})
		do("Txn", err)
		_, err = n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet("/a/m", nil), chubby.OpAdd("/a/m", 1, 1)}}) // refused whole
		if !errors.Is(err, chubby.ErrNotNumber) {
			t.Fatal(err)
		}
		lead, err := n.Campaign(ctx, "/a/m", []byte("n0")) // 7
		do("Campaign", err)
		do("Publish", lead.Publish(ctx, []byte("n0b"))) // 8
		granted := make(chan error)
		go func() {
			l, err := s.Lock(ctx, "/a/m") // 9
			if err == nil {
				_, err = s.Create(ctx, "/a/e/f", nil, chubby.CreateOptions{Ephemeral: true}) // 11
			}
			_ = l
			granted <- err
		}()
		synctest.Wait()
		do("Resign", lead.Resign(ctx)) // 10
		do("Lock", <-granted)
		do("Close", s.Close(ctx))                 // 12
		do("DeleteTree", n.DeleteTree(ctx, "/a")) // 13
		free := mustLock(t, n, "/a")              // 14
		mustUnlock(t, free)                       // 15
		mustSet(t, n, "/ab", "not below /a")      // 16
		mustSet(t, n, "/a", "again")              // 17

		if got, want := flat.briefs(23, base), ""+
			"created /a@1+, created /a/b@1, created /a/n@3=5, modified /a/n@4=7, modified /a/n@5=8, "+
			"modified /a/n@6=9+, created /a/m@6=m, modified /a/m@7=n0+, lock acquired /a/m@7=n0, modified /a/m@8=n0b, "+
			"lock contended /a/m@9=n0b, lock released /a/m@10=n0b+, lock acquired /a/m@10=n0b, created /a/e@11, "+
			"lock released /a/m@12=n0b, deleted /a/b@13+, deleted /a/e@13+, deleted /a/m@13+, deleted /a/n@13+, deleted /a@13, "+
			"lock acquired /a@14, lock released /a@15, created /a@17=again"; got != want {
			t.Errorf("/a:\n got %s\nwant %s", got, want)
		}
		if got, want := deep.briefs(12, base), ""+
			"created /a@1+, created /a/b@1+, created /a/b/c@1=1, modified /a/b/c@2=1, created /a/n@3=5, modified /a/n@4=7, modified /a/n@5=8, "+
			"modified /a/n@6=9+, deleted /a/b/c@6+, created /a/m@6=m, modified /a/m@7=n0+, lock acquired /a/m@7=n0"; got != want {
			t.Errorf("/a and below:\n got %s\nwant %s", got, want)
		}
		// The same with what is elsewhere, and More is as this watch sees it.
		if got, want := all.briefs(11, base), ""+
			"created /a@1+, created /a/b@1+, created /a/b/c@1=1, modified /a/b/c@2=1, created /a/n@3=5, modified /a/n@4=7, modified /a/n@5=8, "+
			"modified /a/n@6=9+, deleted /a/b/c@6+, created /a/m@6=m+, created /z@6="; got != want {
			t.Errorf("everything:\n got %s\nwant %s", got, want)
		}
		if got, want := root.briefs(7, base), "created /a@1, created /z@6=, deleted /a@13, lock acquired /a@14, lock released /a@15, "+
			"created /ab@16=not below /a, created /a@17=again"; got != want {
			t.Errorf("the root:\n got %s\nwant %s", got, want)
		}
	})
}

// An event's entry has the numbers that it has afterwards, and its bytes are the watcher's own.
func TestWatchEntry(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		p, q := watch(t, n, "/x", chubby.WatchOptions{}), watch(t, n, "/x", chubby.WatchOptions{})
		stat, err := n.Set(t.Context(), "/x", []byte("data"))
		if err != nil {
			t.Fatal(err)
		}
		e := p.event()
		if e.Entry.Path != "/x" || e.Entry.Stat != stat || e.Revision != stat.Revision {
			t.Errorf("event %+v, want the entry with %+v", e, stat)
		}
		copy(e.Entry.Data, "****")
		wantGet(t, n, "/x", "data")
		if e := q.event(); string(e.Entry.Data) != "data" {
			t.Errorf("another watcher got %q", e.Entry.Data)
		}
		if err := n.Delete(t.Context(), "/x"); err != nil {
			t.Fatal(err)
		}
		if e := p.event(); e.Kind != chubby.EventDeleted || e.Entry.Path != "/x" || e.Entry.Data != nil || e.Entry.Stat != (chubby.Stat{}) {
			t.Errorf("event %+v, want a deletion with an empty entry", e)
		}
		mustUnlock(t, mustLock(t, n, "/x")) // a lock without an entry; and a deleted entry ends nothing
		if e := p.event(); e.Kind != chubby.EventLockAcquired || e.Entry.Path != "/x" || e.Entry.Data != nil {
			t.Errorf("event %+v, want a lock acquired with an empty entry", e)
		}
	})
}

// gather loops over a watch until the event at path, and gives what came before it and the changes of the leader apart.
// It wants revisions in order, More where it belongs, and what an event tells of readable when it comes.
func gather(t *testing.T, n *chubby.Node, seq iter.Seq2[chubby.Event, error], path string) (events []chubby.Event, led int) {
	more, last := false, uint64(0)
	for e, err := range seq {
		if err != nil {
			t.Errorf("watch: %v", err)
			return events, led
		}
		if r := n.Status().Revision; r < e.Revision {
			t.Errorf("%s came when the node was at %d", brief(e), r)
		}
		if e.Kind == chubby.EventLeaderChanged {
			if led++; more || e.Path != "" || e.Revision < last {
				t.Errorf("%s after revision %d, more to come: %v", brief(e), last, more)
			}
			continue
		}
		if e.Revision < last || (e.Revision == last) != more {
			t.Errorf("%s after revision %d, more to come: %v", brief(e), last, more)
		}
		if last, more = e.Revision, e.More; e.Path == path {
			return events, led
		}
		events = append(events, e)
	}
	return events, led
}

// inScope says which events a watch is to get, and sets More as it is to see it.
func inScope(all []chubby.Event, path string, recursive bool) []chubby.Event {
	var list []chubby.Event
	for _, e := range all {
		rest, below := strings.CutPrefix(e.Path, strings.TrimSuffix(path, "/")+"/")
		if e.Path == path || below && (recursive || !strings.Contains(rest, "/")) {
			list = append(list, e)
		}
	}
	for i := range list {
		list[i].More = i+1 < len(list) && list[i+1].Revision == list[i].Revision
	}
	return list
}

func listBriefs(events []chubby.Event) []string {
	var list []string
	for _, e := range events {
		list = append(list, brief(e))
	}
	return list
}

// Callers on all nodes change a few files at random, and take locks there, while nodes are cut off and frozen and leaders
// change. Every watch on every node is to tell the same: what, done to an empty tree, gives the tree that there is in the
// end, each acknowledged revision once, and a narrower watch exactly its part of it.
func TestWatchModel(t *testing.T) {
	seeds := []uint64{1, 2}
	if *long {
		for s := range uint64(100) {
			seeds = append(seeds, 100+s)
		}
	}
	if *histSeed != 0 {
		seeds = []uint64{*histSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) { watchModel(t, cell, seed) })
		})
	}
}

func watchModel(t *testing.T, cell *chubbytest.Cell, seed uint64) {
	scopes := []struct {
		path      string
		recursive bool
	}{{"/", true}, {"/", false}, {"/d", true}, {"/d", false}, {"/d/1", true}, {"/d/1", false}, {"/d/1/2", false}}
	type result struct {
		events []chubby.Event
		led    int
	}
	got := make([][]result, 3)
	var watchers, callers sync.WaitGroup
	ctx := within(t, time.Hour)
	for i := range 3 {
		n := cell.Node(i)
		inner, cancel := context.WithCancel(ctx)
		var full sync.WaitGroup // the watches that see the end
		got[i] = make([]result, len(scopes))
		for j, s := range scopes {
			o := chubby.WatchOptions{Recursive: s.recursive}
			if s.path == "/" {
				seq := n.Watch(ctx, s.path, o)
				full.Go(func() { got[i][j].events, got[i][j].led = gather(t, n, seq, "/end") })
			} else {
				seq := untilCanceled(n.Watch(inner, s.path, o))
				watchers.Go(func() { got[i][j].events, got[i][j].led = gather(t, n, seq, "/end") })
			}
		}
		watchers.Go(func() {
			defer cancel()
			full.Wait()
			time.Sleep(time.Second)
		})
	}
	var acked sync.Map
	busy, done := context.WithCancel(ctx)
	for caller := range 6 {
		rng := rand.New(rand.NewPCG(seed, uint64(caller)))
		callers.Go(func() {
			for busy.Err() == nil {
				if r := someChange(busy, t, cell.Node(caller%3), rng); r != 0 {
					acked.Store(r, true)
				}
				time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
			}
		})
	}
	callers.Go(func() {
		defer done()
		rng := rand.New(rand.NewPCG(seed, 100))
		for range 8 {
			time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
			switch i := rng.IntN(3); rng.IntN(3) {
			case 0:
				cell.Partition([]int{i}, others(3, i))
			case 1:
				leader := cell.Index(cell.Leader())
				cell.Partition([]int{leader}, others(3, leader))
			case 2:
				cell.Pause(i)
				time.Sleep(time.Duration(rng.IntN(1000)) * time.Millisecond)
				cell.Resume(i)
			}
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			cell.Heal()
		}
	})
	callers.Wait()
	mustSet(t, cell.Node(0), "/end", "")
	watchers.Wait()

	all := got[0][0].events
	counts := make(map[uint64]int)
	tree := make(map[string]chubby.Entry)
	for _, e := range all {
		if !e.More {
			counts[e.Revision]++
		}
		switch e.Kind {
		case chubby.EventCreated:
			if _, ok := tree[e.Path]; ok {
				t.Errorf("%s: it was there", brief(e))
			}
			tree[e.Path] = e.Entry
		case chubby.EventModified:
			if _, ok := tree[e.Path]; !ok {
				t.Errorf("%s: it was not there", brief(e))
			}
			tree[e.Path] = e.Entry
		case chubby.EventDeleted:
			if _, ok := tree[e.Path]; !ok {
				t.Errorf("%s: it was not there", brief(e))
			}
			delete(tree, e.Path)
		}
	}
	for r, n := range counts {
		if n != 1 {
			t.Errorf("revision %d came %d times", r, n)
		}
	}
	acked.Range(func(r, _ any) bool {
		if counts[r.(uint64)] == 0 {
			t.Errorf("acknowledged revision %d did not come", r)
		}
		return true
	})
	compareTree(t, cell.Node(1), "/", tree)
	for path := range tree {
		t.Errorf("%s is not there", path)
	}
	led := 0
	for i := range got {
		for j, s := range scopes {
			led += got[i][j].led
			g, w := listBriefs(got[i][j].events), listBriefs(inScope(all, s.path, s.recursive))
			if !slices.Equal(g, w) {
				k := 0
				for k < len(g) && k < len(w) && g[k] == w[k] {
					k++
				}
				t.Errorf("node %d, %+v: %d events, want %d; from the %dth on got %q, want %q", i, s, len(g), len(w), k, g[k:min(k+5, len(g))], w[k:min(k+5, len(w))])
			}
		}
	}
	t.Logf("%d events, %d revisions, %d notices of a leader", len(all), len(counts), led)
}

// untilCanceled leaves out the error of a watch that is cancelled.
func untilCanceled(seq iter.Seq2[chubby.Event, error]) iter.Seq2[chubby.Event, error] {
	return func(yield func(chubby.Event, error) bool) {
		for e, err := range seq {
			if errors.Is(err, context.Canceled) || !yield(e, err) {
				return
			}
		}
	}
}

// compareTree wants what is below dir to be as in tree, and takes it out of there. What only directories and locks
// change in an entry's numbers has no event of its own.
func compareTree(t *testing.T, n *chubby.Node, dir string, tree map[string]chubby.Entry) {
	t.Helper()
	list, err := n.List(within(t, time.Minute), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Path == "/end" {
			continue
		}
		want, ok := tree[e.Path]
		delete(tree, e.Path)
		if !ok || want.Stat.Instance != e.Stat.Instance || want.Stat.Generation != e.Stat.Generation || want.Stat.Checksum != e.Stat.Checksum {
			t.Errorf("%s is %+v, by the events %+v, %v", e.Path, e.Stat, want.Stat, ok)
		}
		if e.Stat.Dir {
			compareTree(t, n, e.Path, tree)
		}
	}
}

// someChange makes one random change and gives its revision, 0 if that is not known.
func someChange(ctx context.Context, t *testing.T, n *chubby.Node, rng *rand.Rand) uint64 {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	path := fmt.Sprintf("/d/%d", rng.IntN(3))
	if rng.IntN(2) == 0 {
		path += fmt.Sprintf("/%d", rng.IntN(3))
	}
	value := []byte(fmt.Sprint(rng.IntN(1000)))
	switch rng.IntN(7) {
	case 0, 1:
		stat, err := n.Set(ctx, path, value)
		if err == nil {
			return stat.Revision
		}
	case 2:
		stat, err := n.Create(ctx, path, value, chubby.CreateOptions{Ephemeral: true})
		if err == nil {
			return stat.Revision
		}
	case 3:
		_ = n.Delete(ctx, path) // whether it was done is not the question here
	case 4:
		_ = n.DeleteTree(ctx, path)
	case 5:
		r, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet(path, value), chubby.OpSet("/e/x", value), chubby.OpSet("/d/f", value)}})
		if err == nil {
			return r.Revision
		}
	case 6:
		l, err := n.Lock(ctx, path)
		if err == nil {
			generation := l.Sequencer().Generation
			if err := l.Unlock(context.WithoutCancel(ctx)); err != nil && !errors.Is(err, chubby.ErrNotHeld) {
				t.Errorf("Unlock: %v", err)
			}
			return generation
		}
	}
	return 0
}

// A watch can begin at every revision of the past that the node remembers, and goes on with what is new without a seam.
func TestWatchFrom(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		rng := rand.New(rand.NewPCG(1, 1))
		for range 100 {
			someChange(t.Context(), t, cell.Node(rng.IntN(3)), rng)
		}
		n := cell.Node(1)
		full := n.Watch(within(t, time.Minute), "/", chubby.WatchOptions{Recursive: true, From: 1})
		wantGet(t, n, mustSetAt(t, n, "/mid"), "")
		mid := n.Status().Revision
		part := make([]iter.Seq2[chubby.Event, error], mid+2)
		for from := range part[2:] {
			part[from+2] = n.Watch(within(t, time.Minute), "/d", chubby.WatchOptions{From: uint64(from + 2)})
		}
		for range 20 {
			someChange(t.Context(), t, cell.Node(rng.IntN(3)), rng)
		}
		mustSet(t, n, "/d/end", "")
		all, _ := gather(t, n, full, "/d/end")
		if last := all[len(all)-1].Revision; last <= mid {
			t.Fatalf("nothing happened after the watches were made at %d", mid)
		}
		for from, seq := range part {
			if from < 2 {
				continue
			}
			got, _ := gather(t, n, seq, "/d/end")
			i := slices.IndexFunc(all, func(e chubby.Event) bool { return e.Revision >= uint64(from) })
			if g, w := listBriefs(got), listBriefs(inScope(all[i:], "/d", false)); !slices.Equal(g, w) {
				t.Errorf("from %d: got %q, want %q", from, g, w)
			}
		}

		// What nobody can have seen is of another epoch, and must not be waited for.
		now := n.Status().Revision
		watch(t, n, "/", chubby.WatchOptions{From: now + 2}).end(chubby.ErrLagged)
		p := watch(t, n, "/", chubby.WatchOptions{From: now + 1})
		mustSet(t, n, "/next", "")
		if e := p.event(); e.Path != "/next" || e.Revision != now+1 {
			t.Errorf("from the next revision on: %s", brief(e))
		}

		// A node that restarts reads its log again, and with it remembers.
		cell.Restart(1)
		if err := cell.Node(1).WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		again, _ := gather(t, cell.Node(1), cell.Node(1).Watch(within(t, time.Minute), "/", chubby.WatchOptions{Recursive: true, From: 1}), "/d/end")
		if g, w := listBriefs(again), listBriefs(all); !slices.Equal(g, w) {
			t.Errorf("after a restart: got %q, want %q", g, w)
		}
	})
}

// mustSetAt writes nothing to path and gives path.
func mustSetAt(t *testing.T, n *chubby.Node, path string) string {
	t.Helper()
	mustSet(t, n, path, "")
	return path
}

// A watch whose loop does not take its events is told that it lost some, once they are more than the node remembers, and
// has held up nobody until then. Others that keep up, or have nothing to take, do not notice.
func TestWatchLagged(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		mustSet(t, n, "/first", "")
		slow, idle := watch(t, n, "/big", chubby.WatchOptions{}), watch(t, n, "/quiet", chubby.WatchOptions{})
		prompt := watch(t, n, "/", chubby.WatchOptions{Recursive: true})
		stuck := n.Watch(within(t, time.Hour), "/", chubby.WatchOptions{}) // never looped over
		mustSet(t, n, "/big/0", "small")
		if e := slow.event(); e.Path != "/big" || !e.More { // the rest of this revision is safe already
			t.Errorf("got %s", brief(e))
		}
		prompt.event()
		prompt.event()
		last := n.Status().Revision
		value := make([]byte, 256<<10)
		for i := range 80 {
			if _, err := n.Set(within(t, 5*time.Second), fmt.Sprintf("/big/%d", 1+i%3), value); err != nil {
				t.Fatal(err)
			}
			prompt.event()
		}
		if e := slow.event(); e.Path != "/big/0" || e.More {
			t.Errorf("got %s, want the rest of the revision that was begun", brief(e))
		}
		if err := slow.end(chubby.ErrLagged); !strings.Contains(err.Error(), fmt.Sprintf("those from revision %d on", last+1)) {
			t.Errorf("%v: does not name revision %d", err, last+1)
		}
		pull(t, stuck).end(chubby.ErrLagged)
		watch(t, n, "/big", chubby.WatchOptions{From: last + 1}).end(chubby.ErrLagged)
		now := n.Status().Revision
		again := watch(t, n, "/big", chubby.WatchOptions{From: now})
		mustSet(t, n, "/big/0", "again")
		mustSet(t, n, "/quiet", "now")
		if got, want := again.event().Revision, now; got != want {
			t.Errorf("from revision %d: %d", want, got)
		}
		if got := again.event(); string(got.Entry.Data) != "again" {
			t.Errorf("got %s", brief(got))
		}
		if got := idle.event(); string(got.Entry.Data) != "now" {
			t.Errorf("got %s", brief(got))
		}
	})
}

// A node that was away for longer than the log goes back is sent a snapshot. What happened in between it never sees, so its
// watches must end, even those that had nothing to take: they cannot know. Guards watchHub.jumped.
func TestWatchSnapshot(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		away := others(3, cell.Index(cell.Leader()))[0]
		n := cell.Node(away)
		mustSet(t, n, "/x", "before")
		waiting, idle := watch(t, n, "/x", chubby.WatchOptions{}), watch(t, n, "/y", chubby.WatchOptions{})
		inLoop := make(chan error, 1)
		seq := n.Watch(within(t, time.Hour), "/", chubby.WatchOptions{Recursive: true})
		go func() {
			for _, err := range seq {
				if err != nil {
					inLoop <- err
				}
			}
		}()
		mustSet(t, n, "/x", "seen")
		before := n.Status().Revision
		synctest.Wait()

		cell.Partition([]int{away}, others(3, away))
		other := cell.Node(others(3, away)[0])
		outgrow(t, other)
		mustSet(t, other, "/x", "before snapshot")
		cell.Heal()
		wantGet(t, n, "/x", "before snapshot")
		waiting.end(chubby.ErrLagged)
		idle.end(chubby.ErrLagged)
		if err := <-inLoop; !errors.Is(err, chubby.ErrLagged) {
			t.Errorf("a loop that waited: %v", err)
		}
		watch(t, n, "/x", chubby.WatchOptions{From: before + 1}).end(chubby.ErrLagged)
		p := watch(t, n, "/x", chubby.WatchOptions{})
		mustSet(t, other, "/x", "after")
		if e := p.event(); string(e.Entry.Data) != "after" {
			t.Errorf("got %s", brief(e))
		}
		// A node that starts from a snapshot of its own remembers what came after it.
		cell.Restart(away)
		n = cell.Node(away)
		if err := n.WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		watch(t, n, "/x", chubby.WatchOptions{From: 1}).end(chubby.ErrLagged)
	}, func(o *chubby.Options) { o.MaxLogBytes = 64 << 10 })
}

// outgrow writes so much that the log no longer goes back to where it was.
func outgrow(t *testing.T, n *chubby.Node) {
	t.Helper()
	value := strings.Repeat("x", 8<<10)
	for range 100 {
		mustSet(t, n, "/fill", value)
	}
}

// Watches go on through changes of the cell's leader, which they are told of, and through times in which their node is
// cut off: what happened meanwhile comes later, and nothing is missing.
func TestWatchLeaderChange(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/count", "0")
		var watches []iter.Seq2[chubby.Event, error]
		for _, n := range cell.Nodes() {
			wantGet(t, n, "/count", "0")
			watches = append(watches, n.Watch(within(t, time.Hour), "/", chubby.WatchOptions{}))
		}
		base := cell.Node(0).Status().Revision
		const rounds = 5
		for range rounds {
			old := cell.Index(cell.Leader())
			cell.Partition([]int{old}, others(3, old))
			for range 10 {
				if _, err := cell.Node(others(3, old)[0]).Add(within(t, time.Minute), "/count", 1, 1000); err != nil {
					t.Fatal(err)
				}
			}
			cell.Heal()
			wantGet(t, cell.Node(old), "/count", string(mustGet(t, cell.Node(others(3, old)[0]), "/count")))
		}
		mustSet(t, cell.Node(0), "/end", "")
		for i, n := range cell.Nodes() {
			events, led := gather(t, n, watches[i], "/end")
			if led == 0 || led > rounds {
				t.Errorf("node %d was told of %d changes of the leader, want 1 to %d", i, led, rounds)
			}
			if len(events) != 10*rounds {
				t.Errorf("node %d got %d events, want %d", i, len(events), 10*rounds)
			}
			for k, e := range events {
				if string(e.Entry.Data) != fmt.Sprint(k+1) || e.Revision <= base {
					t.Fatalf("node %d: event %d is %s", i, k, brief(e))
				}
			}
		}
		// They are not of the past: a watch that begins there is not told.
		events, led := gather(t, cell.Node(1), cell.Node(1).Watch(within(t, time.Hour), "/", chubby.WatchOptions{From: base + 1}), "/end")
		if led != 0 || len(events) != 10*rounds {
			t.Errorf("from the past: %d changes of the leader, %d events", led, len(events))
		}
	})
}

// Without a leader nothing can be registered: the loop tells why.
func TestWatchWithoutLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		away := others(3, cell.Index(cell.Leader()))[0]
		cell.Partition([]int{away}, others(3, away))
		time.Sleep(time.Second)
		p := pull(t, cell.Node(away).Watch(within(t, 5*time.Second), "/x", chubby.WatchOptions{}))
		if err := p.end(context.DeadlineExceeded); !errors.Is(err, chubby.ErrNoLeader) {
			t.Errorf("Watch without a leader: %v", err)
		}
		for _, err := range cell.Node(away).ObserveLeader(within(t, 5*time.Second), "/x") {
			if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrNoLeader) {
				t.Errorf("ObserveLeader without a leader: %v", err)
			}
		}
	})
}

// A node that was cut off and finds the same leader again has nothing to tell.
func TestWatchSameLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Leader()
		away := others(3, cell.Index(leader))[0]
		p := watch(t, cell.Node(away), "/x", chubby.WatchOptions{})
		cell.Partition([]int{away}, others(3, away))
		time.Sleep(10 * time.Second)
		if got := cell.Node(away).Status().LeaderID; got != "" {
			t.Fatalf("a node that is cut off follows %q", got)
		}
		cell.Heal()
		mustSet(t, cell.Node(away), "/x", "")
		if cell.Leader() != leader {
			t.Fatal("another leader was elected all the same")
		}
		if e := p.event(); e.Kind != chubby.EventCreated {
			t.Errorf("got %s", brief(e))
		}
	})
}

func mustGet(t *testing.T, n *chubby.Node, path string) []byte {
	t.Helper()
	e, err := n.Get(within(t, time.Minute), path)
	if err != nil {
		t.Fatal(err)
	}
	return e.Data
}

// A watch is of what comes after its call. A node that lags knows only by asking what came before: without the read index
// it would tell of writes that had been acknowledged when Watch was called. Guards the read in Client.watch.
func TestWatchStartsAtReadIndex(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		lagging := others(3, cell.Index(cell.Leader()))[0]
		n, other := cell.Node(lagging), cell.Node(others(3, lagging)[0])
		for i := range 5 {
			mustSet(t, n, "/x", "known")
			cell.Partition([]int{lagging}, others(3, lagging))
			mustSet(t, other, "/x", "acknowledged")
			watches := make(chan iter.Seq2[chubby.Event, error])
			ctx := within(t, time.Minute)
			go func() { watches <- n.Watch(ctx, "/x", chubby.WatchOptions{}) }()
			time.Sleep(time.Second)
			select {
			case <-watches:
				t.Fatal("Watch returned on a node that is cut off")
			default:
			}
			cell.Heal()
			p := pull(t, <-watches)
			value := fmt.Sprint("new", i)
			mustSet(t, other, "/x", value)
			e := p.event()
			for e.Kind == chubby.EventLeaderChanged {
				e = p.event()
			}
			if string(e.Entry.Data) != value {
				t.Fatalf("first event %s, want %q", brief(e), value)
			}
		}
	})
}

// Once Watch has returned nothing is missed, whichever node acknowledges it; and what an event tells of is readable.
func TestWatchMissesNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Delay(0, 3*time.Millisecond)
		for i := range 200 {
			writer, n := cell.Node(i%3), cell.Node((i+1+i/3%2)%3)
			p := watch(t, n, "/x", chubby.WatchOptions{})
			value := fmt.Sprint(i)
			mustSet(t, writer, "/x", value)
			e := p.event()
			if string(e.Entry.Data) != value {
				t.Fatalf("round %d: %s", i, brief(e))
			}
			if r := n.Status().Revision; r < e.Revision {
				t.Fatalf("%s came when the node was at %d", brief(e), r)
			}
			if got, err := n.FastGet(t.Context(), "/x"); err != nil || string(got.Data) != value {
				t.Fatalf("FastGet after the event: %q, %v", got.Data, err)
			}
		}
	})
}

// However a watch ends, it ends with one error and is off the node's books.
func TestWatchEnds(t *testing.T) {
	const limit = 3
	watchers := func(t *testing.T, n *chubby.Node, want int) {
		t.Helper()
		synctest.Wait()
		if got := n.Status().Watchers; got != want {
			t.Errorf("Status.Watchers = %d, want %d", got, want)
		}
	}
	for name, f := range map[string]func(t *testing.T, cell *chubbytest.Cell, n *chubby.Node){
		"bad path": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			seq := n.Watch(t.Context(), "/a//b", chubby.WatchOptions{})
			pull(t, seq).end(chubby.ErrBadPath)
			pull(t, seq).end(chubby.ErrBadPath)
		},
		"break": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			seq := n.Watch(t.Context(), "/x", chubby.WatchOptions{})
			watchers(t, n, 1)
			mustSet(t, n, "/x", "")
			for e, err := range seq {
				if err != nil || e.Path != "/x" {
					t.Errorf("%+v, %v", e, err)
				}
				break
			}
			watchers(t, n, 0)
			pull(t, seq).end(chubby.ErrBadOptions)
		},
		"panic": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			seq := n.Watch(t.Context(), "/x", chubby.WatchOptions{})
			mustSet(t, n, "/x", "")
			func() {
				defer func() { _ = recover() }()
				for range seq {
					panic("in the body")
				}
			}()
			watchers(t, n, 0)
		},
		"ctx": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			ctx, cancel := context.WithCancel(t.Context())
			unlooped := n.Watch(ctx, "/x", chubby.WatchOptions{Recursive: true})
			p := pull(t, n.Watch(ctx, "/", chubby.WatchOptions{}))
			for range 3 {
				mustSet(t, n, "/x", "")
			}
			p.event()
			watchers(t, n, 2)
			cancel()
			watchers(t, n, 0)
			p.end(context.Canceled)
			pull(t, unlooped).end(context.Canceled)
			pull(t, n.Watch(ctx, "/x", chubby.WatchOptions{})).end(context.Canceled)
		},
		"ctx while it waits": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			pull(t, n.Watch(ctx, "/x", chubby.WatchOptions{})).end(context.DeadlineExceeded)
		},
		"limit": func(t *testing.T, _ *chubbytest.Cell, n *chubby.Node) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for range limit {
				n.Watch(ctx, "/x", chubby.WatchOptions{})
			}
			pull(t, n.Watch(ctx, "/x", chubby.WatchOptions{})).end(chubby.ErrOverloaded)
			watchers(t, n, limit)
			cancel()
			watchers(t, n, 0)
			seq := n.Watch(t.Context(), "/x", chubby.WatchOptions{})
			mustSet(t, n, "/x", "")
			for _, err := range seq {
				if err != nil {
					t.Error(err)
				}
				break
			}
		},
		"close": func(t *testing.T, cell *chubbytest.Cell, n *chubby.Node) {
			waits, unlooped := make(chan error, 2), n.Watch(context.Background(), "/x", chubby.WatchOptions{})
			seq := n.Watch(context.Background(), "/x", chubby.WatchOptions{})
			go func() {
				for _, err := range seq {
					waits <- err
				}
			}()
			synctest.Wait()
			cell.Stop(0)
			if err := <-waits; !errors.Is(err, chubby.ErrClosed) {
				t.Errorf("a watch of a node that was closed: %v", err)
			}
			pull(t, unlooped).end(chubby.ErrClosed)
			pull(t, n.Watch(context.Background(), "/x", chubby.WatchOptions{})).end(chubby.ErrClosed)
		},
		"fault": func(t *testing.T, cell *chubbytest.Cell, n *chubby.Node) {
			p := watch(t, n, "/x", chubby.WatchOptions{})
			broken := errors.New("broken disk")
			cell.Break(0, broken)
			if _, err := n.Set(within(t, time.Minute), "/x", nil); err == nil {
				t.Error("a write on a broken disk")
			}
			if err := p.end(chubby.ErrClosed); !errors.Is(err, broken) {
				t.Errorf("the watch ended with %v, want the cause too", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
				n := cell.Node(0)
				mustSet(t, n, "/x", "")
				f(t, cell, n)
				if name != "close" && name != "fault" {
					watchers(t, n, 0)
				}
			}, func(o *chubby.Options) { o.Limits.Watchers = limit })
		})
	}
}

// Ten thousand watches of one file, a hundred of which nobody loops over, get every change of it; and writes are
// acknowledged meanwhile as if there were none.
func TestWatchMany(t *testing.T) {
	const many, changes = 10_000, 10
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		mustSet(t, n, "/hot", "0")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg, registered sync.WaitGroup
		var bad atomic.Int64
		registered.Add(many)
		for i := range many {
			wg.Go(func() {
				seq := n.Watch(ctx, "/hot", chubby.WatchOptions{})
				registered.Done()
				if i%100 == 0 {
					return
				}
				seen := 0
				for e, err := range seq {
					if seen++; err != nil || string(e.Entry.Data) != fmt.Sprint(seen) {
						bad.Add(1)
					}
					if seen == changes || err != nil {
						break
					}
				}
			})
		}
		registered.Wait()
		if got := n.Status().Watchers; got != many {
			t.Errorf("Status.Watchers = %d, want %d", got, many)
		}
		for i := range changes {
			start := time.Now()
			mustSet(t, cell.Node(i%3), "/hot", fmt.Sprint(i+1))
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("a write took %v of the cell's time", d)
			}
		}
		wg.Wait()
		if bad.Load() > 0 {
			t.Errorf("%d wrong events", bad.Load())
		}
		if got := n.Status().Watchers; got != many/100 {
			t.Errorf("Status.Watchers = %d, want %d", got, many/100)
		}
	})
}
