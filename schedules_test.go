package chubby_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
)

var schedules = flag.Int("schedules", 0, "how many random schedules TestSchedules runs, from -seed on; 0 = a few, with -long thousands")

// TestSchedules runs cells of three and five nodes, each in a bubble of its own, while callers on every node take and
// give up exclusive and shared locks, and random faults are injected: partitions, crashes, stops, frozen and stopped
// processes, hanging disks, changes of the cell leader, slow messages, and clocks that run up to 1 % fast or slow. What
// must hold, whatever happens:
//
//   - Two contexts of one exclusive lock, or of an exclusive and a shared one, are never both alive. They are asked at
//     each grant, which is when it would begin, and at random instants; a bubble's time stands while they are.
//   - Sequencers of one path grow with each exclusive grant.
//   - A lock call that returns an error is certain.
//   - A process whose clock was frozen with it may be wrong, until a lease after it goes on. Then the fence refuses it.
//   - Once the faults are over, a lock is granted within the bound.
//
// A seed fixes workload and faults. How the goroutines inside a node interleave it does not fix, so a failure may need
// several runs of its seed to come back.
func TestSchedules(t *testing.T) {
	first, total := *histSeed, *schedules
	if total == 0 {
		switch {
		case first != 0:
			total = 1
		case *long:
			total = 2000
		default:
			total = 12
		}
	}
	first = max(first, 1)
	sum := make(tally)
	start := time.Now()
	for seed := first; seed < first+uint64(total); seed++ {
		r := &schedule{seed: seed}
		if !t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, r.run)
		}) {
			t.Logf("again: go test -run 'TestSchedules$' -seed=%d -schedules=1 .", seed)
		}
		for k, n := range r.tally {
			sum[k] += n
		}
	}
	t.Logf("%.0f schedules a minute: %s", float64(total)/time.Since(start).Minutes(), sum)
	if total < 200 {
		return
	}
	for _, k := range append(slices.Clone(faultKinds), "grant", "context lost", "session lost", "overlap excused", "stale write fenced") {
		if sum[k] == 0 {
			t.Errorf("no %q in %d schedules: they do not show what they are to show", k, total)
		}
	}
}

// faultKinds are the faults that a long run must have injected.
var faultKinds = []string{
	"isolate", "split", "bridge", "one-way", "latency", "clock rate",
	"crash", "stop", "pause", "stall", "disk stall", "leader stop", "leader stall", "leader pause", "leader cut",
}

// tally counts by kind.
type tally map[string]int

func (c tally) String() string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, c[k]))
	}
	return strings.Join(parts, ", ")
}

// schedule is one run of one cell.
type schedule struct {
	seed  uint64
	t     *testing.T
	nodes int
	lease time.Duration // of the nodes; sessions of their own have at most this
	cell  *chubbytest.Cell
	paths []string

	mu    sync.Mutex
	tally tally
	held  map[string][]holding // by path; given to a caller and not known to be gone for good
	// By path: the newest generations that callers were given.
	newest, newestExclusive map[string]uint64
	excused                 []time.Time // by node: until when its clock may lie, because it stood still
	guards                  map[string]*fence.Guard
	written                 map[string]chubby.Sequencer // by path: the newest that wrote to what has no guard
}

// holding is a Lock handle that a caller on a node was given.
type holding struct {
	lock *chubby.Lock
	ctx  context.Context // of the lock, the newest
	node int
}

const (
	scheduleLength = 20 * time.Second
	delayMost      = 2 * time.Second
)

// farFuture excuses a node that is frozen.
const farFuture = 1000 * time.Hour

func (r *schedule) run(t *testing.T) {
	rng := rand.New(rand.NewPCG(r.seed, 0))
	r.open(t, rng)
	ctx, cancel := context.WithTimeout(context.Background(), scheduleLength)
	defer cancel()
	heal := r.inject(ctx, rng)
	var callers sync.WaitGroup
	for i := range r.nodes {
		for range 2 {
			own, rng := rng.IntN(2) == 0, rand.New(rand.NewPCG(rng.Uint64(), 0))
			callers.Go(func() { r.caller(ctx, rng, i, own) })
		}
	}
	looks := rand.New(rand.NewPCG(rng.Uint64(), 0))
	callers.Go(func() {
		for ctx.Err() == nil {
			pause(ctx, upTo(looks, 200*time.Millisecond))
			r.look()
		}
	})
	heal()
	healed, term := time.Now(), r.term()
	callers.Wait() // they unlock what they have
	r.recovers(healed, term)
}

// open makes a cell, and draws what kind of one.
func (r *schedule) open(t *testing.T, rng *rand.Rand) {
	r.t, r.nodes, r.lease = t, 3, time.Duration(1+rng.IntN(4))*time.Second
	if rng.IntN(5) == 0 {
		r.nodes = 5
	}
	grace := []time.Duration{-1, r.lease, 45 * time.Second}[rng.IntN(3)]
	r.tally = make(tally)
	r.held, r.guards = make(map[string][]holding), make(map[string]*fence.Guard)
	r.newest, r.newestExclusive = make(map[string]uint64), make(map[string]uint64)
	r.written = make(map[string]chubby.Sequencer)
	r.excused = make([]time.Time, r.nodes)
	for i := range 1 + rng.IntN(3) {
		path := fmt.Sprintf("/s/%d", i)
		r.paths = append(r.paths, path)
		r.guards[path] = new(fence.Guard)
	}
	r.cell = chubbytest.NewCell(t, r.nodes, func(o *chubby.Options) {
		o.SessionLease, o.GracePeriod, o.MaxLogBytes = r.lease, grace, 64<<10
	})
	r.cell.Leader()
}

// inject starts the faults. heal waits for ctx and for their end, and leaves everything whole but the clocks.
func (r *schedule) inject(ctx context.Context, rng *rand.Rand) (heal func()) {
	var wg sync.WaitGroup
	start := func(f func(*rand.Rand)) {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
		wg.Go(func() { f(rng) })
	}
	start(func(rng *rand.Rand) { r.networkFaults(ctx, rng) })
	start(func(rng *rand.Rand) { r.clockFaults(ctx, rng) })
	// Each breaks nodes of its own, so that two can be broken at once.
	breakers := 1 + min(rng.IntN(3), 1)
	for b := range breakers {
		start(func(rng *rand.Rand) { r.nodeFaults(ctx, rng, b, breakers) })
	}
	return func() {
		wg.Wait()
		r.cell.Heal()
		r.cell.Delay(0, 0)
	}
}

// recovers wants each lock within the bound: an election, the lease of a lost holder as the cell counts it by a clock
// that may be slow, once more for each change of the cell leader, and the lock-delay.
func (r *schedule) recovers(healed time.Time, term uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	for i, path := range r.paths {
		l, err := r.cell.Node(i%r.nodes).Lock(ctx, path)
		if err != nil {
			r.t.Errorf("Lock(%q), %v after the last fault: %v", path, time.Since(healed), err)
			continue
		}
		r.granted(l, i%r.nodes)
		took, changes := time.Since(healed), time.Duration(r.term()-term)
		counted := (r.lease*111/100 + 200*time.Millisecond) * 102 / 100
		if bound := 3*time.Second + (1+changes)*counted + delayMost*102/100; took > bound {
			r.t.Errorf("%s was granted %v after the last fault, bound %v; the cell leader changed %d times", path, took, bound, changes)
		}
		if err := l.Unlock(ctx); err != nil {
			r.t.Errorf("Unlock(%q): %v", path, err)
		}
		if info, err := r.cell.Node(0).LockInfo(ctx, path); err != nil || len(info.Holders) != 0 || info.Waiters != 0 {
			r.t.Errorf("left behind: %+v, %v", info, err)
		}
	}
}

// term is the newest that a node knows.
func (r *schedule) term() (term uint64) {
	for _, n := range r.cell.Nodes() {
		term = max(term, n.Status().Term)
	}
	return term
}

// caller takes and gives up locks on one node, or what stands in its place after a restart.
func (r *schedule) caller(ctx context.Context, rng *rand.Rand, node int, own bool) {
	var s *chubby.Session
	for ; ctx.Err() == nil; pause(ctx, upTo(rng, 300*time.Millisecond)) {
		n := r.cell.Node(node)
		wait, cancel := context.WithTimeout(ctx, upTo(rng, 6*time.Second))
		if own && (s == nil || s.Err() != nil) {
			lease := max(time.Second, upTo(rng, r.lease))
			s, _ = n.NewSession(wait, chubby.SessionOptions{Lease: lease}) // nil when the node is down or alone
		}
		if !own || s != nil {
			r.lockOnce(wait, rng, node, n, s)
		}
		cancel()
	}
	if s != nil {
		if err := s.Close(context.Background()); err != nil && !gone(err) {
			r.t.Errorf("Session.Close: %v", err)
		}
	}
}

// locker is what a node and a session have in common.
type locker interface {
	Lock(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error)
	RLock(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error)
	TryLock(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error)
	TryRLock(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error)
}

// lockOnce makes one lock call and holds what it gets for a while. s is nil for the default session.
func (r *schedule) lockOnce(ctx context.Context, rng *rand.Rand, node int, n *chubby.Node, s *chubby.Session) {
	var by locker = n
	if s != nil {
		by = s
	}
	call := []func(context.Context, string, ...chubby.LockOption) (*chubby.Lock, error){
		by.Lock, by.Lock, by.Lock, by.RLock, by.TryLock, by.TryRLock,
	}[rng.IntN(6)]
	var opts []chubby.LockOption
	if rng.IntN(3) == 0 {
		opts = append(opts, chubby.LockDelay(upTo(rng, delayMost)))
	}
	l, err := call(ctx, r.paths[rng.IntN(len(r.paths))], opts...)
	if err != nil {
		if errors.Is(err, chubby.ErrUncertain) {
			r.t.Errorf("a lock call leaves its caller in doubt: %v", err)
		}
		return
	}
	r.granted(l, node)
	until := time.Now().Add(upTo(rng, r.lease/2))
	if rng.IntN(4) == 0 {
		until = until.Add(2 * r.lease) // long enough to be lost
	}
	lost := false
	for time.Now().Before(until) && ctx.Err() == nil && l.Err() == nil {
		r.write(l, node)
		pause(ctx, upTo(rng, 300*time.Millisecond))
		if l.Context().Err() != nil && !lost {
			lost = true
			r.count("context lost")
			if rng.IntN(2) == 0 {
				break // the others wait to be saved
			}
		}
		r.look()
	}
	if errors.Is(l.Err(), chubby.ErrSessionExpired) {
		r.count("session lost")
	}
	if s != nil && rng.IntN(10) == 0 {
		if err := s.Close(context.Background()); err != nil && !gone(err) {
			r.t.Errorf("Session.Close: %v", err)
		}
		return
	}
	// Some are impatient; the library goes on for them.
	patience, cancel := context.WithTimeout(context.Background(), upTo(rng, 5*time.Second))
	defer cancel()
	if err := l.Unlock(patience); err != nil && !gone(err) && !errors.Is(err, chubby.ErrUncertain) {
		r.t.Errorf("Unlock: %v", err)
	}
}

// gone reports whether err says that there is nothing left to give up.
func gone(err error) bool {
	return errors.Is(err, chubby.ErrNotHeld) || errors.Is(err, chubby.ErrSessionExpired) || errors.Is(err, chubby.ErrClosed)
}

func (r *schedule) count(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally[kind]++
}

// granted notes a handle at the instant at which a caller gets it, and looks at once.
func (r *schedule) granted(l *chubby.Lock, node int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tally["grant"]++
	path, generation := l.Path(), l.Sequencer().Generation
	// An excused node may hand out what was lost while it stood still.
	if !r.excusesLocked(node) {
		newest := r.newestExclusive[path]
		if l.Mode() == chubby.Exclusive {
			newest = r.newest[path]
		}
		if generation <= newest || generation < r.newest[path] {
			r.t.Errorf("%v grant of %s on node %d has generation %d, after %d", l.Mode(), path, node, generation, r.newest[path])
		}
	}
	r.newest[path] = max(r.newest[path], generation)
	if l.Mode() == chubby.Exclusive {
		r.newestExclusive[path] = max(r.newestExclusive[path], generation)
	}
	r.held[path] = append(r.held[path], holding{l, l.Context(), node})
	r.lookLocked()
}

// look asks all handles, at one instant, whether they are alive.
func (r *schedule) look() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lookLocked()
}

func (r *schedule) lookLocked() {
	// Contexts that callers have go first: asking a Lock anything makes its session look at the clock, which a context
	// must do for itself.
	kept := make(map[*chubby.Lock]bool)
	for _, list := range r.held {
		for _, h := range list {
			kept[h.lock] = h.ctx.Err() == nil
		}
	}
	for path, list := range r.held {
		var alive []holding
		exclusive, excused := false, false
		for i := range list {
			h := &list[i]
			if h.lock.Err() == nil {
				h.ctx = h.lock.Context() // a new one if the session was saved
			}
			if !kept[h.lock] && h.ctx.Err() != nil {
				continue
			}
			alive = append(alive, *h)
			exclusive = exclusive || h.lock.Mode() == chubby.Exclusive
			excused = excused || r.excusesLocked(h.node)
		}
		r.held[path] = slices.DeleteFunc(list, func(h holding) bool { return h.lock.Err() != nil })
		switch {
		case len(alive) < 2 || !exclusive:
		case excused:
			r.tally["overlap excused"]++
		default:
			for _, h := range alive {
				r.t.Errorf("alive at once: %v on node %d", h.lock.Sequencer(), h.node)
			}
		}
	}
}

func (r *schedule) excusesLocked(node int) bool { return time.Now().Before(r.excused[node]) }

// write acts on two resources that the lock protects, if the lock's context is alive: one checks the sequencer, and one
// takes what comes. Asking and acting are one instant here. Only a frozen clock can make the second one wrong.
func (r *schedule) write(l *chubby.Lock, node int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.Context().Err() != nil {
		return
	}
	s, path := l.Sequencer(), l.Path()
	last, any := r.written[path]
	stale := any && s.Compare(last) < 0
	refused := r.guards[path].Check(s)
	switch {
	case stale && refused == nil:
		r.t.Errorf("the fence lets %v pass after %v", s, last)
	case stale && !r.excusesLocked(node):
		r.t.Errorf("node %d believes in %v after %v wrote", node, s, last)
	case stale:
		r.tally["stale write fenced"]++
	case refused != nil:
		r.t.Errorf("the fence refuses the newest holder: %v", refused)
	default:
		r.written[path] = s
	}
}

// networkFaults breaks the network and heals it again.
func (r *schedule) networkFaults(ctx context.Context, rng *rand.Rand) {
	all := rng.Perm(r.nodes)
	for pause(ctx, upTo(rng, 3*time.Second)); ctx.Err() == nil; pause(ctx, upTo(rng, 3*time.Second)) {
		kind := []string{"isolate", "split", "bridge", "one-way", "latency", "leader cut"}[rng.IntN(6)]
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		most := 2 * r.lease
		switch kind {
		case "isolate":
			r.cell.Partition(all[:1], all[1:])
		case "split": // with three nodes nobody has a majority
			if r.nodes == 3 {
				r.cell.Partition(all[:1], all[1:2], all[2:])
			} else {
				r.cell.Partition(all[:2], all[2:])
			}
		case "bridge": // all[0] reaches both sides, which do not reach each other
			for _, a := range all[1 : 1+r.nodes/2] {
				for _, b := range all[1+r.nodes/2:] {
					r.cell.Cut(a, b)
					r.cell.Cut(b, a)
				}
			}
		case "one-way":
			r.cell.Cut(all[0], all[1])
		case "latency":
			r.cell.Delay(0, upTo(rng, 50*time.Millisecond))
		case "leader cut": // for less than a lease: there is a new leader, and nothing is lost by it
			leader := r.leader()
			if leader < 0 {
				continue
			}
			r.cell.Partition([]int{leader}, others(r.nodes, leader))
			most = r.lease
		}
		r.count(kind)
		pause(ctx, upTo(rng, most))
		r.cell.Heal()
		r.cell.Delay(0, 0)
	}
}

// clockFaults makes clocks run fast and slow, mostly as much as is allowed.
func (r *schedule) clockFaults(ctx context.Context, rng *rand.Rand) {
	const most = 10_000
	rate := func() int64 {
		switch rng.IntN(3) {
		case 0:
			return -most
		case 1:
			return most
		}
		return rng.Int64N(2*most+1) - most
	}
	for i := range r.nodes {
		r.cell.Skew(i, rate())
	}
	for ; ctx.Err() == nil; pause(ctx, upTo(rng, 8*time.Second)) {
		r.count("clock rate")
		r.cell.Skew(rng.IntN(r.nodes), rate())
	}
}

// nodeFaults breaks one node at a time of those that leave remainder part when divided by parts.
func (r *schedule) nodeFaults(ctx context.Context, rng *rand.Rand, part, parts int) {
	for pause(ctx, upTo(rng, 3*time.Second)); ctx.Err() == nil; pause(ctx, upTo(rng, 3*time.Second)) {
		i, who := rng.IntN(r.nodes), ""
		if leader := r.leader(); leader >= 0 && rng.IntN(2) == 0 {
			i, who = leader, "leader "
		}
		if i%parts != part {
			continue
		}
		most := 2 * r.lease
		switch rng.IntN(5) {
		case 0:
			r.count("crash")
			r.cell.Crash(i)
		case 1:
			r.count(who + "stop")
			r.cell.Stop(i)
		case 2:
			r.count(who + "pause")
			r.excuse(i, farFuture)
			r.cell.Pause(i)
		case 3:
			r.count(who + "stall")
			r.cell.Stall(i)
		case 4:
			r.count("disk stall")
			r.cell.StallDisk(i)
			most = r.lease
		}
		pause(ctx, upTo(rng, most))
		if r.cell.Index(r.cell.Node(i)) < 0 {
			r.cell.Restart(i)
			continue
		}
		r.cell.Resume(i)
		if r.excuses(i) {
			// By its own clock, all that was promised before it stood still is over after a lease.
			r.excuse(i, r.lease*102/100)
		}
	}
}

// excuse lets the node's clock lie for d from now.
func (r *schedule) excuse(node int, d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.excused[node] = time.Now().Add(d)
}

// excuses reports whether the node's clock may lie.
func (r *schedule) excuses(node int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.excusesLocked(node)
}

// leader is a node that leads the cell or believes so, -1 if there is none.
func (r *schedule) leader() int {
	for _, n := range r.cell.Nodes() {
		if n.Status().Role == chubby.RoleLeader {
			return r.cell.Index(n)
		}
	}
	return -1
}

// pause sleeps for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// upTo draws a duration, at least a microsecond and at most d.
func upTo(rng *rand.Rand, d time.Duration) time.Duration {
	return time.Microsecond + time.Duration(rng.Int64N(int64(d)))
}
