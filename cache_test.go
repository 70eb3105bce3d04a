package chubby

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/wire"
)

// selfLine lets a node's own Client cache at the node itself. What is cut gets no answer.
type selfLine struct {
	node     *Node
	cut      bool
	answered func(k wire.Kind) // if not nil, called before an answer is given
}

func (l *selfLine) line(context.Context) (leaderLine, error) { return l, nil }

func (l *selfLine) call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error) {
	if l.cut {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if l.answered != nil {
		defer l.answered(k)
	}
	return l.node.answerCache(ctx, &house{principal: l.node.opts.ID, cell: l.node.opts.Cell, limits: l.node.opts.Limits}, k, payload)
}

// inCached runs f on a cell of one whose own Client caches.
func inCached(t *testing.T, f func(t *testing.T, n *Node, clock *jumpClock, l *selfLine)) {
	t.Helper()
	inOne(t, func(t *testing.T, n *Node, clock *jumpClock) {
		l := &selfLine{node: n}
		n.Client.cache = newClientCache(n.Client, l, 1<<20)
		f(t, n, clock, l)
	})
}

// warm reads path until it is cached.
func warm(t *testing.T, n *Node, path string) {
	t.Helper()
	for range 1000 {
		if _, err := n.Get(t.Context(), path); err != nil && !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if _, ok := n.Client.cache.look(path); ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is never cached", path)
}

// Contents, absence and Stat come from memory, and the next write is seen at once.
func TestCachedGet(t *testing.T) {
	inCached(t, func(t *testing.T, n *Node, _ *jumpClock, _ *selfLine) {
		ctx := t.Context()
		warm(t, n, "/f")
		if _, err := n.Get(ctx, "/f"); !errors.Is(err, ErrNotFound) {
			t.Errorf("cached absence: %v", err)
		}
		for _, data := range []string{"one", "two", ""} {
			stat, err := n.Set(ctx, "/f", []byte(data))
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := n.Client.cache.look("/f"); ok {
				t.Fatal("cached after a write")
			}
			warm(t, n, "/f")
			e, err := n.Get(ctx, "f")
			if err != nil || !bytes.Equal(e.Data, []byte(data)) || e.Stat != stat || e.Path != "/f" {
				t.Fatalf("Get = %+v, %v; want %q, %+v", e, err, data, stat)
			}
			if s, err := n.Stat(ctx, "/f"); err != nil || s != stat {
				t.Fatalf("Stat = %+v, %v; want %+v", s, err, stat)
			}
			if len(e.Data) > 0 {
				e.Data[0] = 'x' // it is the caller's
			}
			if e, _ = n.Get(ctx, "/f"); string(e.Data) != data {
				t.Fatalf("the cache holds %q after a caller changed its copy", e.Data)
			}
		}
		if err := n.Delete(ctx, "/f"); err != nil {
			t.Fatal(err)
		}
		if _, err := n.Get(ctx, "/f"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get after Delete: %v", err)
		}
	})
}

// The clock is looked at when the answer is given: a client that slept through its lease uses nothing of it.
func TestCacheLeaseIsChecked(t *testing.T) {
	inCached(t, func(t *testing.T, n *Node, clock *jumpClock, l *selfLine) {
		if _, err := n.Set(t.Context(), "/f", []byte("x")); err != nil {
			t.Fatal(err)
		}
		warm(t, n, "/f")
		synctest.Wait() // nobody is about to renew it
		clock.jump(cache.ClientLease)
		if _, ok := n.Client.cache.look("/f"); ok {
			t.Error("an entry is used after the lease")
		}
	})
}

// The lease counts from the sending: an answer that took long has little left of it.
func TestCacheLeaseCountsFromSending(t *testing.T) {
	inCached(t, func(t *testing.T, n *Node, clock *jumpClock, l *selfLine) {
		warm(t, n, "/f")
		l.answered = func(k wire.Kind) {
			if k == wire.KindCacheFill {
				clock.jump(cache.ClientLease - 10*time.Millisecond)
			}
		}
		if _, err := n.Get(t.Context(), "/g"); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if _, ok := n.Client.cache.look("/g"); !ok {
			t.Error("not cached within the lease")
		}
		synctest.Wait()
		clock.jump(10 * time.Millisecond)
		if _, ok := n.Client.cache.look("/g"); ok {
			t.Error("cached for longer than a lease from the sending")
		}
	})
}

// Without a confirm round that ends well after its receipt no call is granted anything.
func TestCacheGrantIsConfirmed(t *testing.T) {
	inCached(t, func(t *testing.T, n *Node, _ *jumpClock, l *selfLine) {
		warm(t, n, "/f")
		n.proposer.route().lead.cancel()
		session := n.Client.cache.link.Load().session
		for _, k := range []wire.Kind{wire.KindCacheFill, wire.KindCacheRenew, wire.KindCachePoll} {
			_, err := l.call(t.Context(), k, wire.AppendCacheCall(nil, &wire.CacheCall{Session: session, Path: "/f"}))
			if !errors.Is(err, errNotLeader) {
				t.Errorf("kind %d: %v", k, err)
			}
		}
	})
}

// A client that is gone costs a writer no more than a lease, and other writers nothing.
func TestDeadCacheCostsALease(t *testing.T) {
	inCached(t, func(t *testing.T, n *Node, _ *jumpClock, l *selfLine) {
		ctx := t.Context()
		warm(t, n, "/f")
		l.cut = true
		n.Client.cache.link.Load().cancel() // its poll too
		began := time.Now()
		done := make(chan time.Duration, 1)
		go func() {
			if _, err := n.Set(ctx, "/f", []byte("x")); err != nil {
				t.Error(err)
			}
			done <- time.Since(began)
		}()
		synctest.Wait()
		if _, err := n.Set(ctx, "/g", nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 50*time.Millisecond {
			t.Errorf("a write to another entry took %v", took)
		}
		if took := <-done; took < cache.ClientLease/2 || took > 2*time.Second {
			t.Errorf("the write took %v", took)
		}
	})
}
