package chubby

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/wire"
)

// clientCache is the consistent cache of a dialled Client (Chubby §2.7). What is in it is answered without asking, and is
// what the cell would answer, because the cell leader has it dropped before it changes.
//
//	Client.readAt
//	  clientCache.look    from memory
//	  clientCache.fill    from the cell leader, which registers it; if that cannot be reached the Client asks its member
//	clientCache.run       one goroutine: finds the leader, waits there for what is to be dropped
//	  clientCache.renew     another: keeps the lease while the cache is used
type clientCache struct {
	client *Client
	liner  liner
	store  *cache.Store
	link   atomic.Pointer[cacheLink] // nil = no leader is asked
	used   atomic.Bool               // since renew looked last
	begin  sync.Once

	mu struct {
		sync.Mutex
		session *Session // under which the link was made
	}
}

// liner is a cell whose leader can be asked directly.
type liner interface {
	// line waits for a way to the member that leads the cell.
	line(ctx context.Context) (leaderLine, error)
}

type leaderLine interface {
	// call asks the member at the other end. An error that is not the context's means that it cannot be asked any more, or
	// does not lead.
	call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error)
}

// cacheLink is one leader that is asked, under one session.
type cacheLink struct {
	line    leaderLine
	session uint64
	peer    uint64 // of the store
	cancel  context.CancelFunc
}

const (
	cacheRenewals = 3                      // of the lease, in its time: one may be lost
	cacheIdle     = 20                     // renewals without use, after which the lease is left to end
	cachePause    = 20 * time.Millisecond  // before another leader is looked for; doubling
	cachePauseMax = 500 * time.Millisecond //
	cacheLost     = 2                      // renewals in a row without an answer, after which another leader is looked for
)

func newClientCache(c *Client, l liner, maxBytes int64) *clientCache {
	return &clientCache{client: c, liner: l, store: cache.NewStore(maxBytes)}
}

// entry answers what is asked about the entry at a clean path, from memory or from the cell leader. It reports false if
// that has to be asked in another way.
func (k *clientCache) entry(ctx context.Context, path string) (wire.Answer, bool, error) {
	if err := ctx.Err(); err != nil {
		return wire.Answer{}, false, err
	}
	if k.client.stopped() {
		return wire.Answer{}, false, k.client.cell.stopCause()
	}
	a, ok := k.look(path)
	if !ok {
		a, ok = k.fill(ctx, path)
	}
	return a, ok, nil
}

// look answers from memory. The clock is read after the store: see cache.Store.Get.
func (k *clientCache) look(path string) (wire.Answer, bool) {
	i, until, ok := k.store.Get(path)
	if !ok || k.client.terms.clock.Boot() >= until {
		return wire.Answer{}, false
	}
	if !k.used.Load() {
		k.used.Store(true)
	}
	return wire.Answer{Entry: i.Entry}, true
}

// fill asks the cell leader, and keeps the answer if it may. It reports false if that has to be asked in another way.
func (k *clientCache) fill(ctx context.Context, path string) (wire.Answer, bool) {
	k.begin.Do(func() { k.client.cell.spawn(k.run) })
	k.used.Store(true)
	l := k.link.Load()
	if l == nil {
		return wire.Answer{}, false
	}
	wish, h := k.store.Ask(path, l.peer)
	if wish == nil {
		return wire.Answer{}, false
	}
	bounded, cancel := context.WithTimeout(ctx, cache.ClientLease)
	defer cancel()
	a, err := k.ask(bounded, l, wire.KindCacheFill, h, path)
	if err != nil {
		k.store.Cancel(wish)
		if bounded.Err() == nil && !errors.Is(err, ErrOverloaded) {
			l.cancel()
		}
		return wire.Answer{}, false
	}
	if !a.Keep {
		k.store.Cancel(wish)
		return a.Answer, true
	}
	k.store.Fill(wish, leaseOf(&a), a.Number, cache.Item{Entry: a.Answer.Entry}, k.client.terms.clock.Boot())
	return a.Answer, true
}

func leaseOf(a *wire.CacheAnswer) cache.Lease { return cache.Lease{Term: a.Term, ID: a.Lease} }

// ask sends one call and takes in what the answer says about the lease, which counts from the sending.
func (k *clientCache) ask(ctx context.Context, l *cacheLink, kind wire.Kind, h cache.Holding, path string) (wire.CacheAnswer, error) {
	clock := k.client.terms.clock
	sent := clock.Boot()
	payload := wire.AppendCacheCall(nil, &wire.CacheCall{Session: l.session, Term: h.Lease.Term, Lease: h.Lease.ID, Dropped: h.Dropped, Path: path})
	b, err := l.line.call(ctx, kind, payload)
	if err != nil {
		return wire.CacheAnswer{}, err
	}
	a, err := wire.ParseCacheAnswer(b)
	if err == nil && a.Granted {
		k.store.Renew(h, leaseOf(&a), sent+cache.ClientLease, clock.Boot())
	}
	return a, err
}

// run finds the cell leader and stays with it as long as that goes, until the Client ends.
func (k *clientCache) run() {
	ctx := k.client.cell.life()
	pause := cachePause
	for ctx.Err() == nil {
		if k.attend(ctx) {
			pause = cachePause
		}
		select {
		case <-time.After(jitter(pause)):
		case <-ctx.Done():
		}
		pause = min(2*pause, cachePauseMax)
	}
}

// attend is one link from its beginning to its end. It reports whether the leader ever answered.
func (k *clientCache) attend(ctx context.Context) (answered bool) {
	s, err := k.client.session(ctx)
	if err != nil {
		return false
	}
	line, err := k.liner.line(ctx)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l := &cacheLink{line: line, session: uint64(s.id), cancel: cancel}
	if !k.enter(l, s) {
		return false
	}
	defer k.leave(l)
	renewed := make(chan struct{})
	go func() {
		defer close(renewed)
		k.renew(ctx, l)
	}()
	defer func() { <-renewed }()
	defer cancel()
	for {
		h, ok := k.store.Holding(l.peer)
		if !ok {
			return answered
		}
		// Its arrival tells the leader what is dropped, and a new leader that nothing of a former one is left.
		a, err := k.ask(ctx, l, wire.KindCachePoll, h, "")
		if err != nil {
			if ctx.Err() == nil && !errors.Is(err, errNotLeader) {
				k.client.terms.log.Debug("cache: the cell leader cannot be asked", "err", err)
			}
			return answered
		}
		answered = true
		list := make([]cache.Invalidation, len(a.Drop))
		for i, d := range a.Drop {
			list[i] = cache.Invalidation(d)
		}
		k.store.Invalidate(h, leaseOf(&a), list)
	}
}

// renew keeps the lease while the cache is used. An idle Client lets it end, and then no writer has to wait for it.
func (k *clientCache) renew(ctx context.Context, l *cacheLink) {
	ticks := make(chan struct{}, 1)
	idle, lost := cacheIdle, 0
	for {
		stop := k.client.terms.clock.AfterFunc(cache.ClientLease/cacheRenewals, func() { ticks <- struct{}{} }) // cap 1, one timer at a time
		select {
		case <-ticks:
		case <-ctx.Done():
			stop()
			return
		}
		if idle++; k.used.Swap(false) {
			idle = 0
		}
		h, ok := k.store.Holding(l.peer)
		if !ok || idle >= cacheIdle {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, cache.ClientLease/cacheRenewals)
		_, err := k.ask(bounded, l, wire.KindCacheRenew, h, "")
		late := bounded.Err() != nil
		cancel()
		switch {
		case err == nil:
			lost = 0
		case late && lost < cacheLost:
			lost++
		default:
			l.cancel() // ends the poll, which may wait at a leader that was deposed
			return
		}
	}
}

// enter makes l the link. It reports false if the session has ended.
func (k *clientCache) enter(l *cacheLink, s *Session) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-s.done:
		return false
	default:
	}
	k.mu.session = s
	l.peer = k.store.Leave()
	k.link.Store(l)
	return true
}

// leave ends the link, if it still is one.
func (k *clientCache) leave(l *cacheLink) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link.CompareAndSwap(l, nil) {
		k.mu.session = nil
		k.store.Leave()
	}
}

// ended drops everything that was cached under the session. It comes before the cell hears that the session ends: a cell
// leader that does not know the session will not wait for its cache.
func (k *clientCache) ended(s *Session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.session != s {
		return
	}
	if l := k.link.Swap(nil); l != nil {
		l.cancel()
	}
	k.mu.session = nil
	k.store.Leave()
}
