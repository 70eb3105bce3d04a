package cache

import (
	"slices"
	"strings"
	"time"

	"github.com/tidwall/btree"
)

// Registry is the cell leader's side, in one term: who caches what, and which commands wait for whom. It is for one
// goroutine at a time. Times are the leader's Clock.Mono and are arguments.
//
// Invariant: while a client may hold an entry, it is registered for it; and a command that touches a registered entry is
// not proposed before each of its clients acknowledged that it dropped it or has lapsed. See docs/architecture.md.
type Registry struct {
	term uint64
	of   func(session uint64) []string

	clients map[uint64]*client
	paths   *btree.Map[string, []*registration]
	count   int // of registrations

	// What is between the beginning of a command and its outcome cannot be registered.
	busy      *btree.Map[string, int] // paths
	trees     map[string]int
	all       int
	untracked int            // batches that began while nobody cached
	inflight  map[uint64]int // commands, by session
	ending    map[uint64]int // sessions that commands are about to end
	drains    []*Touch       // of these commands, those that wait for the session's others

	flush      map[uint64]bool // caching sessions that may hold what a former leader registered
	flushUntil time.Duration

	lastLease uint64
	ready     []*Touch
	news      []uint64
}

// Bounds. A client that reaches one loses its cache, or does not get to cache.
const (
	clientMax      = 1 << 16 // registrations of one client
	registryMax    = 1 << 20 // of all
	outstandingMax = 1024    // invalidations that one client has not acknowledged
)

// client is a session that has a cache lease.
type client struct {
	session  uint64
	lease    uint64
	deadline time.Duration
	issued   uint64 // number of its newest invalidation
	held     map[string]*registration
	queue    []*invalidation // not acknowledged, by number
}

type registration struct {
	client *client
	path   string
	shared bool          // more than one fill stands on it
	out    *invalidation // that the client has not acknowledged
}

type invalidation struct {
	number  uint64
	at      time.Duration
	path    string // "" = everything
	dropped []*registration
	waiting []*Touch
}

// Invalidation is what a client is told to drop.
type Invalidation struct {
	Number uint64
	Path   string // "" = everything
}

// NewRegistry begins a term. of gives the paths of what a session holds: its entries, its locks and its places in queues,
// as of all commands that were decided.
func NewRegistry(term uint64, of func(session uint64) []string) *Registry {
	return &Registry{
		term: term, of: of,
		clients: make(map[uint64]*client), paths: btree.NewMap[string, []*registration](16),
		busy: btree.NewMap[string, int](16), trees: make(map[string]int),
		inflight: make(map[uint64]int), ending: make(map[uint64]int), flush: make(map[uint64]bool),
	}
}

// AwaitFlush begins the wait for the caching sessions that the term found: until each says that it holds nothing of a
// former term, or until until, when all that a former leader granted is over.
func (r *Registry) AwaitFlush(sessions []uint64, until time.Duration) {
	for _, s := range sessions {
		r.flush[s] = true
	}
	r.flushUntil = until
}

// Awaited reports whether the session is one of those. It has to be told of this term at once.
func (r *Registry) Awaited(session uint64) bool { return r.flush[session] }

// Flushed takes in under which term's lease the session says that it holds what it holds. If that is this one, it has
// dropped everything of earlier terms when it heard of it, and will take no answer of theirs. That it holds nothing at
// all, in no term, says less: an earlier term's answer may be on its way.
func (r *Registry) Flushed(session, term uint64) {
	if term == r.term {
		delete(r.flush, session)
	}
}

// Open reports whether commands may be proposed.
func (r *Registry) Open(now time.Duration) bool {
	if len(r.flush) > 0 && now >= r.flushUntil {
		clear(r.flush)
	}
	return len(r.flush) == 0
}

// Active reports whether commands must be tracked one by one: somebody caches, or a session is being ended, which its
// other commands must not overtake.
func (r *Registry) Active() bool { return len(r.clients) > 0 || len(r.ending) > 0 }

// BeginUntracked is Begin for a batch of commands whose touches nobody looked at. Nothing is registered until its end.
func (r *Registry) BeginUntracked() { r.untracked++ }

// EndUntracked is called once the outcome of the batch is applied or known to be none; never, if it is not known.
func (r *Registry) EndUntracked(now time.Duration) {
	r.untracked--
	r.drain(now)
}

// Verdict is what becomes of a command.
type Verdict uint8

const (
	Go     Verdict = iota // it can be proposed
	Wait                  // it will be among Ready, after Arm
	Refuse                // its session is being ended: not now, and nothing was begun
)

// Begin makes uncacheable what t touches, until End, and invalidates it.
func (r *Registry) Begin(t *Touch, now time.Duration) Verdict {
	if r.ending[t.session] > 0 {
		return Refuse
	}
	for _, s := range t.ends {
		if r.ending[s] > 0 {
			return Refuse // another command is about to do it
		}
	}
	if t.session != 0 {
		r.inflight[t.session]++
	}
	for _, s := range t.ends {
		r.ending[s]++
	}
	t.missing = 1 // until Arm
	if len(t.ends) > 0 {
		t.missing++ // until drain has found what it touches
		r.drains = append(r.drains, t)
		r.drain(now)
	} else {
		r.mark(t, now)
	}
	if t.missing == 1 {
		t.missing = 0
		return Go
	}
	return Wait
}

// Arm says that the caller of Begin, which was told to Wait, is prepared to find t among Ready.
func (r *Registry) Arm(t *Touch) { r.arrived(t) }

// End says that what became of the command is applied here, or that nothing will: it was not proposed, or refused before
// the log. A command whose outcome is not known has no End in this term.
func (r *Registry) End(t *Touch, now time.Duration) {
	if t.session != 0 {
		if r.inflight[t.session]--; r.inflight[t.session] == 0 {
			delete(r.inflight, t.session)
		}
	}
	for _, s := range t.ends {
		if r.ending[s]--; r.ending[s] == 0 {
			delete(r.ending, s)
		}
	}
	if i := slices.Index(r.drains, t); i >= 0 {
		r.drains = slices.Delete(r.drains, i, i+1)
	} else {
		r.unmark(t)
	}
	r.drain(now)
}

// drain lets go on the commands that end sessions whose other commands are all decided.
func (r *Registry) drain(now time.Duration) {
	if len(r.drains) == 0 || r.untracked > 0 {
		return
	}
	r.drains = slices.DeleteFunc(r.drains, func(t *Touch) bool {
		for _, s := range t.ends {
			if r.inflight[s] > 0 {
				return false
			}
		}
		for _, s := range t.ends {
			for _, path := range r.of(s) {
				t.tree(path)
			}
		}
		r.mark(t, now)
		r.arrived(t)
		return true
	})
}

// arrived takes away one of the things that t waits for.
func (r *Registry) arrived(t *Touch) {
	if t.missing--; t.missing == 0 {
		r.ready = append(r.ready, t)
	}
}

// Ready gives the commands that were told to Wait and need not any longer.
func (r *Registry) Ready() []*Touch {
	list := r.ready
	r.ready = nil
	return list
}

// mark makes uncacheable what t touches, and has its registrations invalidated.
func (r *Registry) mark(t *Touch, now time.Duration) {
	if t.all {
		r.all++
	}
	for _, p := range t.paths {
		n, _ := r.busy.Get(p)
		r.busy.Set(p, n+1)
	}
	for _, p := range t.trees {
		r.trees[p]++
	}
	if r.count == 0 {
		return
	}
	var hit []*registration
	switch {
	case t.all:
		r.paths.Scan(func(_ string, list []*registration) bool {
			hit = append(hit, list...)
			return true
		})
	default:
		for _, p := range t.paths {
			hit = r.at(p, hit)
			ancestors(p, func(a string) bool {
				hit = r.at(a, hit)
				return true
			})
		}
		for _, p := range t.trees {
			r.below(p, func(list []*registration) bool {
				hit = append(hit, list...)
				return true
			})
		}
	}
	for _, reg := range hit {
		r.invalidate(reg, t, now)
	}
}

func (r *Registry) at(path string, into []*registration) []*registration {
	list, _ := r.paths.Get(path)
	return append(into, list...)
}

// below calls f for the registered paths below path until it returns false.
func (r *Registry) below(path string, f func([]*registration) bool) {
	path += "/"
	r.paths.Ascend(path, func(p string, list []*registration) bool { return strings.HasPrefix(p, path) && f(list) })
}

func (r *Registry) unmark(t *Touch) {
	if t.all {
		r.all--
	}
	for _, p := range t.paths {
		if n, _ := r.busy.Get(p); n > 1 {
			r.busy.Set(p, n-1)
		} else {
			r.busy.Delete(p)
		}
	}
	for _, p := range t.trees {
		if r.trees[p]--; r.trees[p] == 0 {
			delete(r.trees, p)
		}
	}
}

// cacheable reports whether nothing between its beginning and its outcome touches path.
func (r *Registry) cacheable(path string) bool {
	if r.untracked > 0 || r.all > 0 || r.trees[path] > 0 {
		return false
	}
	if n, _ := r.busy.Get(path); n > 0 {
		return false
	}
	free := true
	if len(r.trees) > 0 {
		ancestors(path, func(a string) bool {
			free = r.trees[a] == 0
			return free
		})
	}
	// A write below makes what is missing on its way.
	path += "/"
	r.busy.Ascend(path, func(p string, _ int) bool {
		free = free && !strings.HasPrefix(p, path)
		return false
	})
	return free
}

// invalidate has t wait until reg's client has dropped what it is registered for. One invalidation serves all who wait.
func (r *Registry) invalidate(reg *registration, t *Touch, now time.Duration) {
	c := reg.client
	switch {
	case r.lapsed(c, now):
		return
	case reg.out == nil && (t.all || len(c.queue) >= outstandingMax):
		r.empty(c, now)
	case reg.out == nil:
		r.issue(c, reg.path, []*registration{reg}, now)
	}
	if last := len(reg.out.waiting) - 1; last >= 0 && reg.out.waiting[last] == t {
		return // by another of its paths
	}
	reg.out.waiting = append(reg.out.waiting, t)
	t.missing++
}

// issue adds an invalidation to what the client has to acknowledge.
func (r *Registry) issue(c *client, path string, regs []*registration, now time.Duration) {
	c.issued++
	inv := &invalidation{number: c.issued, at: now, path: path, dropped: regs}
	for _, reg := range regs {
		reg.out = inv
	}
	c.queue = append(c.queue, inv)
	r.news = append(r.news, c.session)
}

// empty has the client drop everything, so that it can begin anew.
func (r *Registry) empty(c *client, now time.Duration) {
	var regs []*registration
	for _, reg := range c.held {
		if reg.out == nil {
			regs = append(regs, reg)
		}
	}
	if len(regs) > 0 {
		r.issue(c, "", regs, now)
	}
}

// Acknowledge notes that the client has dropped what the invalidations up to number name.
func (r *Registry) Acknowledge(session uint64, lease Lease, number uint64, now time.Duration) {
	c := r.client(session, now)
	if c == nil || lease != (Lease{r.term, c.lease}) {
		return
	}
	n := 0
	for n < len(c.queue) && c.queue[n].number <= number {
		r.dropped(c.queue[n])
		n++
	}
	c.queue = slices.Delete(c.queue, 0, n)
}

// dropped ends an invalidation: nobody has what it names.
func (r *Registry) dropped(inv *invalidation) {
	for _, reg := range inv.dropped {
		r.remove(reg)
	}
	for _, t := range inv.waiting {
		r.arrived(t)
	}
}

func (r *Registry) remove(reg *registration) {
	delete(reg.client.held, reg.path)
	r.count--
	list, _ := r.paths.Get(reg.path)
	if len(list) == 1 {
		r.paths.Delete(reg.path)
		return
	}
	// A new list: mark may be walking over the old one.
	r.paths.Set(reg.path, slices.DeleteFunc(slices.Clone(list), func(x *registration) bool { return x == reg }))
}

// Pending gives the invalidations after number that the client has not acknowledged.
func (r *Registry) Pending(session uint64, lease Lease, number uint64) []Invalidation {
	c := r.clients[session]
	if c == nil || lease != (Lease{r.term, c.lease}) {
		return nil
	}
	var list []Invalidation
	for _, inv := range c.queue {
		if inv.number > number {
			list = append(list, Invalidation{inv.number, inv.path})
		}
	}
	return list
}

// News gives the sessions that have had invalidations since the last call, some more than once.
func (r *Registry) News() []uint64 {
	list := r.news
	r.news = nil
	return list
}

// client gives the session's record, unless there is none or its lease is over.
func (r *Registry) client(session uint64, now time.Duration) *client {
	c := r.clients[session]
	if c == nil || r.lapsed(c, now) {
		return nil
	}
	return c
}

// lapsed reports whether the client's lease is over, and then forgets the client: it holds nothing.
func (r *Registry) lapsed(c *client, now time.Duration) bool {
	if now < c.deadline {
		return false
	}
	if r.clients[c.session] == c {
		r.forget(c)
	}
	return true
}

// Ended forgets the client whose session has ended: it has dropped everything before it ended that, or its lease was over
// before the cell did.
func (r *Registry) Ended(session uint64) {
	if c := r.clients[session]; c != nil {
		r.forget(c)
	}
}

func (r *Registry) forget(c *client) {
	delete(r.clients, c.session)
	c.deadline = 0
	for _, inv := range c.queue {
		r.dropped(inv)
	}
	for _, reg := range c.held {
		r.remove(reg)
	}
}

// Tick forgets the clients whose leases are over, and lets go on what waits for them.
func (r *Registry) Tick(now time.Duration) {
	for _, c := range r.clients {
		r.lapsed(c, now)
	}
}

// Renew extends the session's lease, or begins one, from the receipt of its wish. The caller tells the client only if
// this leader led after the receipt; counting longer than the client does is safe. A client that left an invalidation
// unacknowledged for too long gets nothing, so that nobody waits for it longer than a lease and patience.
func (r *Registry) Renew(session uint64, received, now time.Duration) (l Lease, ok bool) {
	c := r.client(session, now)
	switch {
	case c == nil:
		r.lastLease++
		c = &client{session: session, lease: r.lastLease, held: make(map[string]*registration)}
		r.clients[session] = c
	case len(c.queue) > 0 && now-c.queue[0].at > patience:
		return Lease{r.term, c.lease}, false
	}
	c.deadline = max(c.deadline, received+LeaderLease)
	return Lease{r.term, c.lease}, true
}

// Lease gives the session's lease, the number 0 of the term if it has none.
func (r *Registry) Lease(session uint64, now time.Duration) Lease {
	if c := r.client(session, now); c != nil {
		return Lease{r.term, c.lease}
	}
	return Lease{r.term, 0}
}

// Current reports whether the lease, once renewed, still stands. The answer to the client is built at that moment.
func (r *Registry) Current(session uint64, lease Lease, now time.Duration) bool {
	c := r.client(session, now)
	return c != nil && lease == Lease{r.term, c.lease}
}

// Fill is a registration on its way to the client.
type Fill struct {
	Number uint64 // of the client's newest invalidation when it was registered
	reg    *registration
}

// Register notes that the client is about to cache path. The caller reads the entry after that. It reports false if that
// may not be cached.
func (r *Registry) Register(session uint64, path string, now time.Duration) (Fill, bool) {
	c := r.client(session, now)
	if c == nil || !r.cacheable(path) || len(c.queue) >= outstandingMax {
		return Fill{}, false
	}
	reg := c.held[path]
	switch {
	case reg == nil && len(c.held) >= clientMax:
		r.empty(c, now)
		return Fill{}, false
	case reg == nil && r.count >= registryMax, reg != nil && reg.out != nil:
		return Fill{}, false
	case reg == nil:
		reg = &registration{client: c, path: path}
		c.held[path] = reg
		list, _ := r.paths.Get(path)
		r.paths.Set(path, append(list[:len(list):len(list)], reg))
		r.count++
	default:
		reg.shared = true
	}
	return Fill{Number: c.issued, reg: reg}, true
}

// Stands reports whether the registration is as good as when it was made: then the client may keep what was read since.
func (r *Registry) Stands(f Fill, now time.Duration) bool {
	return f.reg != nil && !r.lapsed(f.reg.client, now) && f.reg.out == nil && f.reg.client.held[f.reg.path] == f.reg
}

// Forget ends a registration whose entry is not given to the client, unless another fill stands on it: that may have been
// kept.
func (r *Registry) Forget(f Fill) {
	if f.reg != nil && !f.reg.shared && f.reg.out == nil && f.reg.client.held[f.reg.path] == f.reg {
		r.remove(f.reg)
	}
}
