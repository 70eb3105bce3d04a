package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/lincheck"
)

const cacheLease = 1500 * time.Millisecond // internal/cache.ClientLease

// caching dials a Client that caches.
func caching(cell *chubbytest.Cell) *chubby.Client {
	return cell.DialWith(func(o *chubby.DialOptions) { o.CacheBytes = 1 << 20 })
}

// atOnce reports whether c answers a Get of path without the network, which takes no time in a bubble.
func atOnce(c *chubby.Client, path string) bool {
	began := time.Now()
	_, err := c.Get(context.Background(), path)
	return (err == nil || errors.Is(err, chubby.ErrNotFound)) && time.Since(began) == 0
}

// cached waits until path is cached by c.
func cached(t *testing.T, c *chubby.Client, path string) {
	t.Helper()
	for range 1000 {
		if atOnce(c, path) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is never cached", path)
}

// wantNow wants that the next Get of path, cached or not, gives want; "" = there is none.
func wantNow(t *testing.T, c *chubby.Client, path, want string) {
	t.Helper()
	e, err := c.Get(within(t, 10*time.Second), path)
	switch {
	case want == "" && !errors.Is(err, chubby.ErrNotFound), want != "" && (err != nil || string(e.Data) != want):
		t.Fatalf("Get(%s) = %q, %v; want %q", path, e.Data, err, want)
	}
}

// Whatever changes an entry, and whoever does it, a caching client sees it with its next Get or Stat.
func TestCacheSeesEveryChange(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := t.Context()
		n := cell.Leader()
		c, other := caching(cell), cell.Dial()
		mustSet(t, n, "/d/f", "0")
		session, err := n.NewSession(ctx, chubby.SessionOptions{Lease: time.Second, Grace: -1})
		if err != nil {
			t.Fatal(err)
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		stat := func() chubby.Stat {
			t.Helper()
			s, err := c.Stat(ctx, "/d/f")
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		var handle *chubby.Handle
		var lock *chubby.Lock
		for _, step := range []struct {
			name string
			do   func()
			want string
		}{
			{"a node's Set", func() { mustSet(t, n, "/d/f", "1") }, "1"},
			{"the client's own Set", func() { _, err := c.Set(ctx, "/d/f", []byte("2")); must(err) }, "2"},
			{"another client's Add", func() { _, err := other.Add(ctx, "/d/f", 1, 100); must(err) }, "3"},
			{"compare and swap", func() { _, err := n.CompareAndSwap(ctx, "/d/f", []byte("3"), []byte("4")); must(err) }, "4"},
			{"a transaction", func() {
				_, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet("/x", nil), chubby.OpSet("/d/f", []byte("5"))}})
				must(err)
			}, "5"},
			{"deletion", func() { must(n.Delete(ctx, "/d/f")) }, ""},
			{"creation", func() { _, err := n.Create(ctx, "/d/f", []byte("6"), chubby.CreateOptions{}); must(err) }, "6"},
			{"deletion of a tree", func() { must(n.DeleteTree(ctx, "/d")) }, ""},
			{"an ephemeral entry", func() {
				_, err := session.Create(ctx, "/d/f", []byte("7"), chubby.CreateOptions{Ephemeral: true})
				must(err)
			}, "7"},
			{"the end of its session", func() { must(session.Close(ctx)) }, ""},
			{"a handle that makes the file", func() {
				handle, err = n.OpenHandle(ctx, "/d/f", chubby.HandleOptions{Write: true, Create: true, Ephemeral: true, Data: []byte("h")})
				must(err)
			}, "h"},
			{"a write through it", func() { _, err := handle.SetContents(ctx, []byte("i")); must(err) }, "i"},
			{"its end", func() { must(handle.Close(ctx)) }, ""},
			{"an election", func() {
				l, err := n.Campaign(ctx, "/d/f", []byte("8"))
				must(err)
				t.Cleanup(func() { _ = l.Resign(context.Background()) })
			}, "8"},
		} {
			cached(t, c, "/d/f")
			step.do()
			if step.want != "" {
				want, err := n.Stat(ctx, "/d/f")
				must(err)
				if got := stat(); got != want {
					t.Fatalf("%s: Stat = %+v, want %+v", step.name, got, want)
				}
			}
			wantNow(t, c, "/d/f", step.want)
		}
		// A grant changes the Stat, and absence ends for all that is made on the way to a new entry.
		mustSet(t, n, "/l", "x")
		cached(t, c, "/l")
		lock, err = n.Lock(ctx, "/l")
		must(err)
		if s, err := c.Stat(ctx, "/l"); err != nil || s.LockGeneration != lock.Sequencer().Generation {
			t.Errorf("Stat after Lock: %+v, %v", s, err)
		}
		cached(t, c, "/p/q")
		mustSet(t, n, "/p/q/r", "x")
		if s, err := c.Stat(ctx, "/p/q"); err != nil || !s.Dir {
			t.Errorf("Stat of a parent that was missing: %+v, %v", s, err)
		}
	})
}

// Who may not read any longer is not answered from the cache either: new names on an entry or above it, another list,
// and the lists' being turned on.
func TestCacheFollowsRights(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		n := cell.Leader()
		c := caching(cell)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		names := func(path string, acl chubby.ACLNames) {
			t.Helper()
			_, err := openHandle(t, n.Client, path, forAll).SetACL(ctx, acl)
			must(err)
		}
		may := func(what string, want bool) {
			t.Helper()
			for _, path := range []string{"/d/f", "/d/none"} {
				_, err := c.Get(ctx, path)
				if got := !errors.Is(err, chubby.ErrPermission); got != want {
					t.Errorf("%s: Get(%s) gives %v", what, path, err)
				}
				if want {
					cached(t, c, path)
				}
			}
		}
		names("/", chubby.ACLNames{Read: "readers", Write: "admins", ChangeACL: "admins"})
		mustSet(t, n, "/d/f", "x")
		may("lists are off", true)
		set := func(list, who string) { mustSet(t, n, "/acl/"+list, who) }
		_, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{
			chubby.OpCreate("/acl/admins", []byte(n.Status().ID), chubby.CreateOptions{}),
			chubby.OpCreate("/acl/readers", nil, chubby.CreateOptions{}),
		}})
		must(err)
		may("lists are on", false)
		set("readers", "client")
		may("on the list", true)
		set("readers", "somebody")
		may("off the list", false)
		set("readers", "*")
		may("everybody", true)
		for _, path := range []string{"/d/f", "/d"} {
			names(path, chubby.ACLNames{Read: "admins", Write: "admins", ChangeACL: "admins"})
		}
		may("other names", false)
	})
}

// A client that cannot be reached answers from its cache for a lease, not longer, and costs a writer that long at most.
// Writers to other entries notice nothing.
func TestCacheOfUnreachableClient(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Leader()
		mustSet(t, n, "/f", "old")
		c := caching(cell)
		cached(t, c, "/f")
		cut := time.Now()
		for i := range 3 {
			cell.CutClients(i)
		}
		written := make(chan time.Time, 1)
		go func() {
			mustSet(t, n, "/f", "new")
			written <- time.Now()
		}()
		for range 20 {
			began := time.Now()
			mustSet(t, n, "/other", "x")
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("a write to another entry took %v", took)
			}
		}
		var last time.Time // when the cache answered last
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			e, err := c.Get(ctx, "/f")
			cancel()
			if err != nil {
				break
			}
			if string(e.Data) != "old" {
				t.Fatalf("Get = %q without a connection", e.Data)
			}
			last = time.Now()
			time.Sleep(10 * time.Millisecond)
		}
		at := <-written
		if at.Before(last) {
			t.Errorf("written %v before the last answer of the cache", last.Sub(at))
		}
		if took := at.Sub(cut); took < cacheLease/2 || took > 2*time.Second {
			t.Errorf("the write took %v", took)
		}
		cell.Heal()
		wantNow(t, c, "/f", "new")
		cached(t, c, "/f")
	})
}

// A new leader hears from living caches at once, and waits for dead ones no longer than a lease. Nobody reads the past.
func TestCacheAcrossLeaders(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := t.Context()
		n := cell.Leader()
		mustSet(t, n, "/f", "0")
		c := caching(cell)
		for i := range 6 {
			cached(t, c, "/f")
			dead := i%2 == 1
			if dead {
				for m := range 3 {
					cell.CutClients(m)
				}
			}
			old := cell.Leader()
			if err := old.TransferLeadership(ctx, ""); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			value := fmt.Sprint(i)
			mustSet(t, old, "/f", value)
			took := time.Since(began)
			if !dead && took > time.Second || dead && (took < cacheLease/2 || took > 3*time.Second) {
				t.Errorf("round %d: the first write under a new leader took %v", i, took)
			}
			cell.Heal()
			wantNow(t, c, "/f", value)
		}
	})
}

// A leader that was deposed renews nothing and fills nothing, though its client reaches nobody else.
func TestCacheOfDeposedLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Leader()
		mustSet(t, n, "/f", "old")
		c := caching(cell)
		cached(t, c, "/f")
		old := cell.Index(n)
		for _, i := range others(3, old) {
			cell.CutClients(i)
		}
		cell.Partition([]int{old}, others(3, old))
		var written atomic.Bool
		go func() {
			mustSet(t, cell.Node((old+1)%3), "/f", "new")
			written.Store(true)
		}()
		answers := 0
		for after := 0; after < 300; {
			if written.Load() {
				after++
			}
			late := written.Load()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			e, err := c.Get(ctx, "/f")
			cancel()
			if err == nil && late && string(e.Data) == "old" {
				t.Fatal("a cached entry of a deposed leader is used after the write of its successor")
			}
			if err == nil {
				answers++
			}
			time.Sleep(10 * time.Millisecond)
		}
		if answers < 10 {
			t.Errorf("only %d answers from the cache before its lease ended", answers)
		}
		cell.Heal()
		wantNow(t, c, "/f", "new")
	})
}

// A cache whose Client closes, or whose default session is closed, holds up nobody, now or under the next leader.
func TestCacheEndsWithSession(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := t.Context()
		n := cell.Leader()
		mustSet(t, n, "/f", "0")
		c := caching(cell)
		cached(t, c, "/f")
		s, err := c.Session(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
		if atOnce(c, "/f") {
			t.Error("cached after the session was closed")
		}
		began := time.Now()
		mustSet(t, n, "/f", "1")
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("a write after the session was closed took %v", took)
		}
		wantNow(t, c, "/f", "1")
		cached(t, c, "/f") // under a new session
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Get(ctx, "/f"); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Get after Close: %v", err)
		}
		if err := cell.Leader().TransferLeadership(ctx, ""); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		mustSet(t, cell.Leader(), "/f", "2")
		if took := time.Since(began); took > time.Second {
			t.Errorf("a write after the client closed took %v", took)
		}
	})
}

// TestCacheHistory has clients with and without a cache, and nodes, work on a few files, while members and clients are cut
// off, frozen and crashed and leaders change. Everything must fit into one order: a cached Get of the past would not.
func TestCacheHistory(t *testing.T) {
	seeds := []uint64{1, 2}
	length := 40 * time.Second
	if *long {
		seeds, length = nil, 3*time.Minute
		for s := range uint64(200) {
			seeds = append(seeds, s+100)
		}
	}
	if *histSeed != 0 {
		seeds = []uint64{*histSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := &history{}
			var hits atomic.Int64
			synctest.Test(t, func(t *testing.T) { runCacheHistory(t, h, &hits, seed, length) })
			switch r, _ := porcupine.CheckOperationsVerbose(lincheck.Files(), h.ops, time.Minute); r {
			case porcupine.Illegal:
				t.Errorf("seed %d: %d calls cannot be put in one order", seed, len(h.ops))
			case porcupine.Unknown:
				t.Errorf("seed %d: undecided after a minute; shorten the history", seed)
			default:
				t.Logf("%d calls, %d answers from caches", len(h.ops), hits.Load())
			}
			if hits.Load() < 100 {
				t.Errorf("only %d answers from caches", hits.Load())
			}
		})
	}
}

func runCacheHistory(t *testing.T, h *history, hits *atomic.Int64, seed uint64, length time.Duration) {
	cell := chubbytest.NewCell(t, 3)
	cell.Leader()
	clients := []*chubby.Client{caching(cell), caching(cell), caching(cell), cell.Dial()}
	h.start = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var wg sync.WaitGroup
	for i, c := range clients {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for k := 0; ctx.Err() == nil; k++ {
				// Reading most of the time, as a cache is for.
				if rng.IntN(5) > 0 {
					began := time.Now()
					getCall(h, c, fmt.Sprintf("/h/%d", rng.IntN(3)), time.Duration(1+rng.IntN(2000))*time.Millisecond)
					if time.Since(began) == 0 {
						hits.Add(1)
					}
				} else {
					oneCall(h, c, rng, fmt.Sprintf("%d.%d", i, k))
				}
				time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			}
		})
	}
	rng := rand.New(rand.NewPCG(seed, 500))
	wg.Go(func() {
		for k := 0; ctx.Err() == nil; k++ {
			oneCall(h, cell.Node(rng.IntN(3)).Client, rng, fmt.Sprintf("n.%d", k))
			time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		}
	})
	wg.Go(func() { cacheFaults(ctx, cell, rand.New(rand.NewPCG(seed, 1000))) })
	wg.Wait()
}

func getCall(h *history, c *chubby.Client, path string, timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	h.record(lincheck.FileCall{Path: path, Op: lincheck.Get}, func() lincheck.FileAnswer {
		e, err := c.Get(ctx, path)
		if err != nil && !errors.Is(err, chubby.ErrNotFound) {
			return lincheck.FileAnswer{Unknown: true}
		}
		return answerOf(err, string(e.Data))
	})
}

// cacheFaults is faults with what befalls clients, and leaders that change in peace.
func cacheFaults(ctx context.Context, cell *chubbytest.Cell, rng *rand.Rand) {
	for ctx.Err() == nil {
		i := rng.IntN(3)
		switch rng.IntN(7) {
		case 0:
			cell.Partition([]int{i}, others(3, i))
		case 1:
			cell.Pause(i)
			pause(ctx, upTo(rng, 2*time.Second))
			cell.Resume(i)
		case 2:
			cell.Crash(i)
			pause(ctx, upTo(rng, time.Second))
			cell.Restart(i)
		case 3:
			for m := range 3 {
				cell.CutClients(m)
			}
		case 4:
			cell.CutClients(i)
		case 5:
			cell.Delay(0, upTo(rng, 50*time.Millisecond))
		case 6:
			short, cancel := context.WithTimeout(ctx, time.Second)
			_ = cell.Node(i).TransferLeadership(short, "") // there may be nobody to take it
			cancel()
		}
		pause(ctx, upTo(rng, 3*time.Second))
		cell.Delay(0, 0)
		cell.Heal()
		pause(ctx, upTo(rng, 1500*time.Millisecond))
	}
}
