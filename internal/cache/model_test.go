package cache

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/command"
)

// The whole protocol against the one thing that it promises: at no moment does a client whose lease stands hold anything
// but the state as it is. Leaders, clients, the log and the network are simulated with random delays, losses, pauses,
// deaths, changes of the leader, and clocks that differ by up to 2 %. And no command waits for longer than a lease and
// some patience.
func TestModel(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	var total tally
	for seed := range seeds {
		w := newWorld(seed)
		w.run(20 * time.Second)
		if w.failure != "" {
			t.Fatalf("seed %d, %v: %s", seed, w.now, w.failure)
		}
		total.add(w.tally)
	}
	t.Logf("%+v", total)
	// A world in which nothing happens shows nothing.
	for what, n := range map[string]int{
		"hits": total.Hits, "kept fills": total.Kept, "void fills": total.Void, "writes": total.Writes, "waits": total.Waited,
		"lapses": total.Lapsed, "ends of sessions": total.Ends, "changes of the leader": total.Terms, "early openings": total.Flushed,
	} {
		if n < 5 {
			t.Errorf("%s: only %d", what, n)
		}
	}
}

type tally struct{ Hits, Kept, Void, Writes, Waited, Lapsed, Ends, Terms, Flushed int }

func (a *tally) add(b tally) {
	a.Hits += b.Hits
	a.Kept += b.Kept
	a.Void += b.Void
	a.Writes += b.Writes
	a.Waited += b.Waited
	a.Lapsed += b.Lapsed
	a.Ends += b.Ends
	a.Terms += b.Terms
	a.Flushed += b.Flushed
}

// Time.

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any     { x := (*e)[len(*e)-1]; *e = (*e)[:len(*e)-1]; return x }

// skewed is a clock with a rate of its own.
type skewed struct {
	w    *world
	from time.Duration
	rate float64
}

func (w *world) clock() skewed {
	return skewed{w, time.Duration(w.rng.Int64N(int64(time.Hour))), 0.99 + 0.02*w.rng.Float64()}
}

func (c skewed) now() time.Duration { return c.from + time.Duration(float64(c.w.now)*c.rate) }

// world

type world struct {
	rng     *rand.Rand
	now     time.Duration
	seq     int
	queue   events
	failure string
	tally   tally

	version map[string]int    // of what is at each path; 0 = nothing ever was
	owner   map[string]uint64 // who takes it along
	ended   map[uint64]bool
	leaders []*leader  // the last one leads
	members [3]*leader // the last leadership of each
	clients []*modelClient
	paths   []string
	at      int           // which member leads
	slow    int           // one in so many messages is late
	busy    time.Duration // longest pause between writes
}

type leader struct {
	w       *world
	r       *Registry
	clock   skewed
	term    uint64
	deposed time.Duration // 0 = not
	held    map[*Touch]*proposal
	waiting []*proposal // for the gate
	offered []*proposal // in the log, not applied
}

type proposal struct {
	touch   *Touch
	apply   func()
	begun   time.Duration // leader's clock
	ends    bool
	command command.Command
}

func newWorld(seed uint64) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 1)), version: make(map[string]int), owner: make(map[string]uint64), ended: make(map[uint64]bool),
		paths: []string{"/a", "/b", "/b/c", "/b/d", "/e/f/g"},
	}
	w.slow, w.busy = 4+w.rng.IntN(40), time.Duration(10+w.rng.IntN(200))*time.Millisecond
	for i := range 1 + w.rng.IntN(4) {
		w.clients = append(w.clients, &modelClient{w: w, session: uint64(i + 1), store: NewStore(4 * (overhead + 20)), clock: w.clock()})
	}
	w.elect()
	for _, c := range w.clients {
		c.member = w.rng.IntN(len(w.members))
		w.after(0, c.live)
		w.after(0, c.keep)
		w.after(0, c.poll)
	}
	w.after(0, w.write)
	return w
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, do})
}

func (w *world) run(d time.Duration) {
	for w.queue.Len() > 0 && w.failure == "" {
		e := heap.Pop(&w.queue).(event)
		if e.at > d {
			return
		}
		w.now = e.at
		e.do()
		w.check()
	}
}

func (w *world) check() {
	for _, c := range w.clients {
		if c.clock.now() >= c.store.until {
			continue
		}
		for path, x := range c.store.items {
			if have := int(x.Entry.Stat.Revision); have != w.version[path] {
				w.failure = fmt.Sprintf("client %d holds version %d of %s, which is at %d", c.session, have, path, w.version[path])
			}
		}
	}
}

func (w *world) delay() time.Duration {
	if w.rng.IntN(w.slow) == 0 {
		return time.Duration(w.rng.Int64N(int64(3 * time.Second)))
	}
	return time.Duration(w.rng.Int64N(int64(30 * time.Millisecond)))
}

func (w *world) leader() *leader { return w.leaders[len(w.leaders)-1] }

func (w *world) elect() {
	if len(w.leaders) > 0 {
		old := w.leader()
		old.deposed = w.now
		w.tally.Terms++
		// Of what is in its log some is committed with the barrier of the next term.
		for _, p := range old.offered {
			if w.rng.IntN(2) == 0 {
				p.apply()
			}
		}
		old.offered = nil
	}
	l := &leader{w: w, clock: w.clock(), term: uint64(len(w.leaders) + 1), held: make(map[*Touch]*proposal)}
	l.r = NewRegistry(l.term, func(session uint64) (list []string) {
		for path, s := range w.owner {
			if s == session {
				list = append(list, path)
			}
		}
		slices.Sort(list)
		return list
	})
	var sessions []uint64
	for _, c := range w.clients {
		sessions = append(sessions, c.session)
	}
	l.r.AwaitFlush(sessions, l.clock.now()+LeaderLease)
	w.leaders = append(w.leaders, l)
	if len(w.leaders) == 1 || w.rng.IntN(2) == 0 {
		w.at = w.rng.IntN(len(w.members))
	}
	w.members[w.at] = l
	w.after(0, l.tick)
	w.after(time.Duration(w.rng.Int64N(int64(6*time.Second))), w.elect)
}

func (l *leader) tick() {
	clients := len(l.r.clients)
	l.r.Tick(l.clock.now())
	l.w.tally.Lapsed += clients - len(l.r.clients)
	l.settle()
	l.w.after(50*time.Millisecond, l.tick)
}

// settle does what every change of the registry may allow.
func (l *leader) settle() {
	if l.r.Open(l.clock.now()) {
		list := l.waiting
		l.waiting = nil
		for _, p := range list {
			l.begin(p)
		}
	}
	for ready := l.r.Ready(); len(ready) > 0; ready = l.r.Ready() {
		for _, t := range ready {
			if p := l.held[t]; p != nil {
				delete(l.held, t)
				// A tick may be late by 50 ms, and commands that end sessions wait for others first.
				if wait := l.clock.now() - p.begun; wait > LeaderLease+patience+60*time.Millisecond && !p.ends {
					l.w.failure = fmt.Sprintf("a command waited for %v", wait)
				}
				l.offer(p)
			}
		}
	}
	for _, s := range l.r.News() {
		l.w.clients[s-1].news(l)
	}
}

func (l *leader) propose(p *proposal) {
	if !l.r.Open(l.clock.now()) {
		l.waiting = append(l.waiting, p)
		return
	}
	l.begin(p)
	l.settle()
}

func (l *leader) begin(p *proposal) {
	p.begun = l.clock.now()
	if !l.r.Active() {
		l.r.BeginUntracked()
		l.offer(p)
		return
	}
	p.touch = Of(&p.command)
	switch l.r.Begin(p.touch, p.begun) {
	case Go:
		l.offer(p)
	case Wait:
		l.w.tally.Waited++
		l.held[p.touch] = p
		l.r.Arm(p.touch)
	case Refuse:
		p.touch = nil
	}
}

func (l *leader) offer(p *proposal) {
	l.offered = append(l.offered, p)
	l.w.after(time.Duration(l.w.rng.Int64N(int64(10*time.Millisecond))), func() {
		if i := slices.Index(l.offered, p); i >= 0 && l.deposed == 0 {
			l.offered = slices.Delete(l.offered, i, i+1)
			p.apply()
			l.w.after(time.Duration(l.w.rng.Int64N(int64(time.Millisecond))), func() {
				if p.touch == nil {
					l.r.EndUntracked(l.clock.now())
				} else {
					l.r.End(p.touch, l.clock.now())
				}
				l.settle()
			})
		}
	})
}

// write is the life of those who write without caching, and of sessions that come, own, and go.
func (w *world) write() {
	p := &proposal{}
	c := &p.command
	c.Path = w.paths[w.rng.IntN(len(w.paths))]
	change := func(path string) {
		w.version[path]++
		w.tally.Writes++
	}
	switch w.rng.IntN(8) {
	case 0: // a tree goes
		c.Kind = command.KindDeleteTree
		p.apply = func() {
			for _, path := range w.paths {
				if path == c.Path || len(path) > len(c.Path) && path[:len(c.Path)+1] == c.Path+"/" {
					change(path)
				}
			}
		}
	case 1: // a session goes, with what it owns
		c.Kind, c.Session = command.KindCloseSession, 100+uint64(w.rng.IntN(3))
		p.ends = true
		p.apply = func() {
			for _, path := range w.paths {
				if w.owner[path] == c.Session {
					delete(w.owner, path)
					change(path)
					w.tally.Ends++
				}
			}
		}
	case 2, 3: // a session makes a thing its own
		c.Kind, c.Session = command.KindCreate, 100+uint64(w.rng.IntN(3))
		p.apply = func() {
			w.owner[c.Path] = c.Session
			change(c.Path)
		}
	default:
		c.Kind = command.KindSet
		p.apply = func() {
			change(c.Path)
			// What is missing above comes into being, and is no file.
			ancestors(c.Path, func(a string) bool {
				if slices.Contains(w.paths, a) && w.rng.IntN(4) == 0 {
					change(a)
				}
				return true
			})
		}
	}
	l := w.leader()
	if w.rng.IntN(10) == 0 && len(w.leaders) > 1 {
		l = w.leaders[len(w.leaders)-2] // it commits nothing
	}
	l.propose(p)
	w.after(time.Duration(w.rng.Int64N(int64(w.busy))), w.write)
}

// Clients.

type modelClient struct {
	w       *world
	session uint64
	store   *Store
	clock   skewed
	member  int // that it takes for the leader
	peer    uint64
	paused  time.Duration // until then nothing is done here
	polling int           // counts polls, so that only the newest is answered
	polled  func()        // answers it
}

// awake runs do here, when the client runs.
func (c *modelClient) awake(do func()) {
	if c.w.now < c.paused {
		c.w.after(c.paused-c.w.now, func() { c.awake(do) })
		return
	}
	do()
}

// live is reading, and what befalls a client.
func (c *modelClient) live() {
	w := c.w
	switch w.rng.IntN(100) {
	case 0:
		c.paused = w.now + time.Duration(w.rng.Int64N(int64(4*time.Second)))
	case 1, 2, 3:
		// Whoever leads, or led: a client may be wrong about that.
		c.peer = c.store.Leave()
		c.member = w.rng.IntN(len(w.members))
		c.poll()
	default:
		c.get(w.paths[w.rng.IntN(len(w.paths))])
	}
	w.after(time.Duration(w.rng.Int64N(int64(20*time.Millisecond))), func() { c.awake(c.live) })
}

func (c *modelClient) get(path string) {
	if _, until, ok := c.store.Get(path); ok && c.clock.now() < until {
		c.w.tally.Hits++ // check has compared it
		return
	}
	wish, h := c.store.Ask(path, c.peer)
	sent := c.clock.now()
	c.send(h, func(l *leader) {
		lease, granted := l.r.Renew(c.session, l.clock.now(), l.clock.now())
		fill, ok := l.r.Register(c.session, path, l.clock.now())
		c.confirm(l, func() {
			version := l.w.version[path]
			c.w.after(time.Duration(c.w.rng.Int64N(int64(5*time.Millisecond))), func() {
				ok := ok && l.r.Stands(fill, l.clock.now())
				if c.w.rng.IntN(20) == 0 {
					ok = false
					l.r.Forget(fill)
				}
				granted := granted && l.r.Current(c.session, lease, l.clock.now())
				l.settle()
				c.answer(func() {
					if granted {
						c.store.Renew(h, lease, sent+ClientLease, c.clock.now())
					}
					if !ok {
						c.store.Cancel(wish)
						return
					}
					var i Item
					i.Entry.Stat.Revision = uint64(version)
					if c.store.Fill(wish, lease, fill.Number, i, c.clock.now()) {
						c.w.tally.Kept++
					} else {
						c.w.tally.Void++
					}
				})
			})
		}, func() { c.store.Cancel(wish) })
	}, func() { c.store.Cancel(wish) })
}

// keep renews the lease.
func (c *modelClient) keep() {
	h, _ := c.store.Holding(c.peer)
	sent := c.clock.now()
	c.send(h, func(l *leader) {
		lease, granted := l.r.Renew(c.session, l.clock.now(), l.clock.now())
		c.confirm(l, func() {
			if granted && l.r.Current(c.session, lease, l.clock.now()) {
				c.answer(func() { c.store.Renew(h, lease, sent+ClientLease, c.clock.now()) })
			}
		}, func() {})
	}, func() {})
	c.w.after(ClientLease/3, func() { c.awake(c.keep) })
}

// poll waits for invalidations, acknowledging those before.
func (c *modelClient) poll() {
	h, _ := c.store.Holding(c.peer)
	c.polling++
	mine := c.polling
	again := func() {
		if c.polling == mine {
			c.poll()
		}
	}
	c.send(h, func(l *leader) {
		c.polled = func() {
			lease := l.r.Lease(c.session, l.clock.now())
			after := h.Dropped
			if lease != h.Lease {
				after = 0
			}
			list := l.r.Pending(c.session, lease, after)
			if len(list) == 0 && !l.r.Awaited(c.session) {
				return
			}
			c.polled = nil
			c.answer(func() {
				c.store.Invalidate(h, lease, list)
				again()
			})
		}
		c.polled()
	}, func() {})
	c.w.after(300*time.Millisecond, func() { c.awake(again) }) // whatever got lost
}

func (c *modelClient) news(l *leader) {
	if c.polled != nil && c.w.members[c.member] == l {
		c.polled()
	}
}

// send brings a question to the leader that c asks; it may get lost, and then lost is called.
func (c *modelClient) send(h Holding, arrive func(*leader), lost func()) {
	to := c.member
	if c.w.rng.IntN(50) == 0 {
		c.w.after(time.Second, func() { c.awake(lost) })
		return
	}
	c.w.after(c.w.delay(), func() {
		l := c.w.members[to]
		if l == nil {
			c.answer(lost)
			return
		}
		open := l.r.Open(l.clock.now())
		l.r.Flushed(c.session, h.Lease.Term)
		if !open && l.r.Open(l.clock.now()) {
			c.w.tally.Flushed++
		}
		l.r.Acknowledge(c.session, h.Lease, h.Dropped, l.clock.now())
		arrive(l)
		l.settle()
	})
}

// confirm is a round that begins now: it ends well if l was not deposed before.
func (c *modelClient) confirm(l *leader, yes, no func()) {
	led := l.deposed == 0
	c.w.after(c.w.delay(), func() {
		if led {
			yes()
		} else {
			c.answer(no)
		}
	})
}

func (c *modelClient) answer(do func()) {
	c.w.after(c.w.delay(), func() { c.awake(do) })
}
