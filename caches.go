package chubby

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// caches is the cell leader's side of the client cache, in one term: it registers what clients cache, and keeps commands
// from being proposed before every cache has dropped what they touch. The rules are in internal/cache; the argument is in
// docs/architecture.md.
//
//	proposer.apply
//	  caches.admit       what touches a cached entry leaves the batch and waits in proposer.mu.aside
//	caches.call          of a client: a fill, the renewal of its lease, or the wait for something to drop
//	caches.run           leases that end
//	  caches.settle        what need not wait any longer goes back into the proposer's queue
type caches struct {
	lead *leadership
	open atomic.Bool // commands may be proposed: nothing is left of what former leaders let clients cache

	mu struct {
		sync.Mutex
		registry *cache.Registry
		polls    map[uint64]chan struct{} // of sessions: closed when there is something to drop, or a newer poll
	}
}

const (
	cacheTick = 50 * time.Millisecond // how late the end of a cache lease may be noticed
	pollTime  = 20 * time.Second      // how long a client may have nothing to drop before it hears so
)

func newCaches(l *leadership) *caches {
	d := &caches{lead: l}
	d.mu.registry = cache.NewRegistry(l.term, func(session uint64) []string {
		return l.node.fsm.root.Load().Belongings(session)
	})
	d.mu.polls = make(map[uint64]chan struct{})
	return d
}

// start is called after the term's barrier, and before the first command can be proposed. Until every session that may
// have cached under a former leader has said that nothing of it is left, or so much time has passed, no command is.
func (d *caches) start() {
	var sessions []uint64
	for v := range d.lead.node.fsm.root.Load().Sessions() {
		if v.Caching {
			sessions = append(sessions, v.ID)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.lead.node.clock.Mono()
	d.mu.registry.AwaitFlush(sessions, now+cache.LeaderLease)
	d.open.Store(d.mu.registry.Open(now))
}

// run notices leases that end, until the leadership does.
func (d *caches) run() {
	ticks := make(chan struct{}, 1)
	for {
		stop := d.lead.node.clock.AfterFunc(cacheTick, func() { ticks <- struct{}{} }) // cap 1, one timer at a time
		select {
		case <-ticks:
		case <-d.lead.ctx.Done():
			stop()
			return
		}
		d.with(func(r *cache.Registry, now time.Duration) { r.Tick(now) })
	}
}

// happened is called by the fsm after each batch while this node leads.
func (d *caches) happened(events []state.Event) {
	for _, e := range events {
		if e.Kind == state.SessionEnded {
			d.with(func(r *cache.Registry, _ time.Duration) { r.Ended(e.Session) })
		}
	}
}

// with does something to the registry, and what follows from it.
func (d *caches) with(f func(r *cache.Registry, now time.Duration)) {
	now := d.lead.node.clock.Mono()
	d.mu.Lock()
	f(d.mu.registry, now)
	opened := !d.open.Load() && d.mu.registry.Open(now)
	if opened {
		d.open.Store(true)
	}
	d.tell()
	ready := d.mu.registry.Ready()
	d.mu.Unlock()
	if opened {
		d.lead.node.proposer.stir()
	}
	if len(ready) > 0 {
		d.lead.node.proposer.resume(ready)
	}
}

// tell ends the polls of clients that have something to drop. Called with mu held.
func (d *caches) tell() {
	for _, session := range d.mu.registry.News() {
		if poll := d.mu.polls[session]; poll != nil {
			close(poll)
			delete(d.mu.polls, session)
		}
	}
}

// admit takes out of a batch the commands that have to wait for caches; they come back by resume. What stays in the batch
// is uncacheable until decided.
func (d *caches) admit(b *batch) {
	d.mu.Lock()
	if !d.mu.registry.Active() {
		// Nobody caches, and nobody will before these commands are decided.
		d.mu.registry.BeginUntracked()
		b.untracked = true
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	touches := make([]*cache.Touch, len(b.props))
	var decoded command.Command
	for i, x := range b.props {
		if x.caches != d {
			touches[i] = touchOf(x.raw, &decoded)
		}
	}
	var aside, refused []*proposal
	now := d.lead.node.clock.Mono()
	d.mu.Lock()
	kept := b.props[:0]
	for i, x := range b.props {
		if touches[i] == nil {
			kept = append(kept, x) // it has waited already
			continue
		}
		verdict := d.mu.registry.Begin(touches[i], now)
		if verdict == cache.Refuse {
			refused = append(refused, x)
			continue
		}
		x.caches, x.touch = d, touches[i]
		if verdict == cache.Wait {
			aside = append(aside, x)
		} else {
			kept = append(kept, x)
		}
	}
	b.props = kept
	d.tell()
	d.mu.Unlock()
	for _, x := range refused {
		x.complete(statusRefused, nil)
	}
	if len(aside) == 0 {
		return
	}
	full := d.lead.node.proposer.setAside(b, aside)
	d.with(func(r *cache.Registry, now time.Duration) {
		for _, x := range aside {
			if slices.Contains(full, x) {
				r.End(x.touch, now)
			} else {
				r.Arm(x.touch)
			}
		}
	})
	for _, x := range full {
		x.complete(statusOverloaded, nil)
	}
}

// touchOf tells what a command touches; everything, if it cannot be decoded.
func touchOf(raw []byte, c *command.Command) *cache.Touch {
	if err := command.Decode(raw, c); err != nil {
		*c = command.Command{}
	}
	return cache.Of(c)
}

// decided makes cacheable again what the batch touched: its outcome is applied here, or there will be none.
func (d *caches) decided(b *batch) {
	d.with(func(r *cache.Registry, now time.Duration) {
		if b.untracked {
			r.EndUntracked(now)
		}
		for _, x := range b.props {
			if x.caches == d {
				r.End(x.touch, now)
			}
		}
	})
}

// withdrawn is decided for one command that is in no batch.
func (d *caches) withdrawn(t *cache.Touch) {
	d.with(func(r *cache.Registry, now time.Duration) { r.End(t, now) })
}

// answerCache is the leader's side of what a caching client asks, one that h judges.
func (n *Node) answerCache(ctx context.Context, h *house, k wire.Kind, question []byte) ([]byte, error) {
	lead := n.proposer.route().lead
	if lead == nil || n.stalled() {
		return nil, errNotLeader
	}
	c, err := wire.ParseCacheCall(question)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	// No session may end for its silence while its client caches: see confirm.
	if !n.fsm.root.Load().Caches(c.Session, h.principal, uint64(cache.ClientLease.Milliseconds())) {
		return nil, fmt.Errorf("%w: %q has no session %d that caches", ErrSessionExpired, h.principal, c.Session)
	}
	var a wire.CacheAnswer
	switch k {
	case wire.KindCacheFill:
		if err = h.path(c.Path, true); err == nil {
			a, err = lead.caches.fill(ctx, h.principal, &c)
		}
	case wire.KindCacheRenew:
		a, err = lead.caches.renew(ctx, &c)
	case wire.KindCachePoll:
		a, err = lead.caches.poll(ctx, &c)
	default:
		err = errNoHandler
	}
	if err != nil {
		return nil, err
	}
	return wire.AppendCacheAnswer(nil, &a), nil
}

// hear takes in what every call of a client says.
func hear(r *cache.Registry, c *wire.CacheCall, now time.Duration) {
	r.Flushed(c.Session, c.Term)
	r.Acknowledge(c.Session, cache.Lease{Term: c.Term, ID: c.Lease}, c.Dropped, now)
}

// renew extends a client's lease, or begins one. It counts from receipt here, and is told to the client only if this node
// led after that.
func (d *caches) renew(ctx context.Context, c *wire.CacheCall) (a wire.CacheAnswer, err error) {
	var lease cache.Lease
	var granted bool
	d.with(func(r *cache.Registry, now time.Duration) {
		hear(r, c, now)
		lease, granted = r.Renew(c.Session, now, now)
	})
	if err := d.confirm(ctx, c.Session); err != nil {
		return a, err
	}
	d.with(func(r *cache.Registry, now time.Duration) {
		a.Term, a.Lease, a.Granted = lease.Term, lease.ID, granted && r.Current(c.Session, lease, now)
	})
	return a, nil
}

// confirm proves that this node led at a moment after the call, and keeps the session alive for longer than the cache
// lease that it is about to get: so no session that may cache is ever ended for its silence.
func (d *caches) confirm(ctx context.Context, session uint64) error {
	answer, err := d.lead.leases.keepAlive(ctx, &wire.KeepAlive{Sessions: []uint64{session}})
	switch {
	case err != nil:
		return errNotLeader
	case answer[0] == wire.RenewEnded:
		return ErrSessionExpired
	case answer[0] != wire.RenewAlive:
		return errNotLeader // its end has been decided and may come
	}
	return nil
}

// fill is renew, and reads an entry that the client may keep if it can be registered. Registration comes before the read.
func (d *caches) fill(ctx context.Context, principal string, c *wire.CacheCall) (a wire.CacheAnswer, err error) {
	n := d.lead.node
	var lease cache.Lease
	var granted, keep bool
	var f cache.Fill
	d.with(func(r *cache.Registry, now time.Duration) {
		hear(r, c, now)
		lease, granted = r.Renew(c.Session, now, now)
		if granted {
			f, keep = r.Register(c.Session, c.Path, now)
		}
	})
	index := n.raft.Load().CommitIndex()
	if err := d.confirm(ctx, c.Session); err != nil {
		d.with(func(r *cache.Registry, _ time.Duration) { r.Forget(f) })
		return a, err
	}
	root, err := n.fsm.at(ctx, index)
	if err != nil {
		d.with(func(r *cache.Registry, _ time.Duration) { r.Forget(f) })
		return a, err
	}
	a.Answer = ask(root, wire.Query{Kind: wire.QueryEntry, Path: c.Path, Principal: principal})
	d.with(func(r *cache.Registry, now time.Duration) {
		if keep && !cacheable(root, c.Path, &a.Answer) {
			keep = false
			r.Forget(f)
		}
		a.Keep = keep && r.Stands(f, now)
		a.Number = f.Number
		a.Term, a.Lease, a.Granted = lease.Term, lease.ID, granted && r.Current(c.Session, lease, now)
	})
	return a, nil
}

// cacheable reports whether the answer to a fill may be kept. Directories are not: whatever comes or goes in one changes
// it. Nor is absence below a directory that goes by itself when it is empty, for the rights to what is absent are those of
// the nearest ancestor, and nobody's command names that one when it goes.
func cacheable(root interface {
	Get(path string) (command.Entry, bool)
}, path string, a *wire.Answer) bool {
	if a.Code != command.OK || a.Entry.Stat.Dir {
		return false
	}
	if a.Entry.Stat.Instance != 0 {
		return true
	}
	for {
		path = parentPath(path)
		if e, ok := root.Get(path); ok {
			return !e.Stat.Ephemeral
		}
	}
}

// poll waits until the client has something to drop, or must hear of this term. Its arrival acknowledges what came before.
func (d *caches) poll(ctx context.Context, c *wire.CacheCall) (a wire.CacheAnswer, err error) {
	timeout := time.NewTimer(pollTime)
	defer timeout.Stop()
	pending := func(r *cache.Registry, now time.Duration) (cache.Lease, []cache.Invalidation) {
		lease, after := r.Lease(c.Session, now), c.Dropped
		if lease != (cache.Lease{Term: c.Term, ID: c.Lease}) {
			after = 0
		}
		return lease, r.Pending(c.Session, lease, after)
	}
	var mine chan struct{}
	d.with(func(r *cache.Registry, now time.Duration) {
		hear(r, c, now)
		if poll := d.mu.polls[c.Session]; poll != nil {
			close(poll)
		}
		mine = make(chan struct{})
		d.mu.polls[c.Session] = mine
		if _, list := pending(r, now); len(list) > 0 || r.Awaited(c.Session) {
			close(mine)
			delete(d.mu.polls, c.Session)
		}
	})
	select {
	case <-mine:
	case <-timeout.C:
	case <-ctx.Done():
		err = ctx.Err()
	case <-d.lead.ctx.Done():
		err = errNotLeader
	}
	d.with(func(r *cache.Registry, now time.Duration) {
		if d.mu.polls[c.Session] == mine {
			delete(d.mu.polls, c.Session)
		}
		lease, list := pending(r, now)
		a.Term, a.Lease = lease.Term, lease.ID
		for _, i := range list {
			a.Drop = append(a.Drop, wire.Invalidation(i))
		}
	})
	return a, err
}
