// Package chubbytest runs a whole cell inside a test, without ports and without disk.
//
//	func TestFailover(t *testing.T) {
//		cell := chubbytest.NewCell(t, 3)
//		leader := cell.Leader()
//		...
//		cell.Partition([]int{0}, []int{1, 2})
//	}
//
// It works inside testing/synctest, where hours of a cell's life take seconds, and outside. When the test ends, the
// cell is healed, every node's state is checked (chubby.Node.Check), the states are compared, and everything is closed.
package chubbytest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/memnet"
)

// Cell is a cell under test. All methods are safe for concurrent use. Methods that cannot do what they are asked to end
// the test with Fatal.
type Cell struct {
	tb    testing.TB
	net   *memnet.Net
	opts  []func(*chubby.Options)
	peers map[string]string

	mu struct {
		sync.Mutex
		seats  []*seat
		closed bool
	}
}

// seat is what stays of a node when it is stopped.
type seat struct {
	id     string
	addr   string
	join   []string // addresses of those that were asked to take it in; nil = one of the first nodes
	opts   []func(*chubby.Options)
	disk   *hook.Disk
	gate   *hook.Gate
	writes *hook.Gate // what is written to the disk waits at it
	free   *atomic.Int64
	clock  *clock
	hooks  *hook.Hooks            // of the present node
	fault  *atomic.Pointer[error] // what every storage operation of the present node fails with
	node   *chubby.Node           // the last one, running or not
	up     bool
	broken bool // by Break: its node may stop by itself
}

const (
	settleTime = 30 * time.Second      // for a leader to be found, for states to become equal
	pollPause  = 10 * time.Millisecond // between two looks at nodes that do not tell of changes
)

// NewCell opens n nodes, "n0" to "n<n-1>", of a cell named "test". opts change each node's options before it is opened,
// now and at Restart; they must leave ID, Dir, Listen, Peers, Join, Network and Hooks alone. NewCell does not wait for a
// leader: calls do, and Leader does.
func NewCell(tb testing.TB, n int, opts ...func(*chubby.Options)) *Cell {
	tb.Helper()
	if n < 1 || n > 7 {
		tb.Fatalf("chubbytest: a cell of %d nodes; use 1 to 7", n)
	}
	c := &Cell{tb: tb, net: memnet.New(), opts: opts, peers: make(map[string]string)}
	for i := range n {
		s := newSeat(i)
		c.mu.seats = append(c.mu.seats, s)
		c.peers[s.id] = s.addr
	}
	tb.Cleanup(c.cleanup)
	for i := range n {
		c.Restart(i)
	}
	return c
}

func newSeat(i int) *seat {
	id := fmt.Sprintf("n%d", i)
	s := &seat{id: id, addr: id + ":1", disk: &hook.Disk{}, gate: &hook.Gate{}, writes: &hook.Gate{}, free: &atomic.Int64{}, clock: newClock()}
	s.free.Store(math.MaxInt64)
	return s
}

// Add opens one more node, which asks the running ones to take it in, and returns its index. opts change its options as
// those of NewCell do, after them. Add does not wait: WaitReady of the node does, and AddVoter for its vote.
func (c *Cell) Add(opts ...func(*chubby.Options)) int {
	c.tb.Helper()
	c.mu.Lock()
	i := len(c.mu.seats)
	s := newSeat(i)
	s.opts = opts
	for _, other := range c.mu.seats {
		if other.up {
			s.join = append(s.join, other.addr)
		}
	}
	c.mu.seats = append(c.mu.seats, s)
	c.mu.Unlock()
	if len(s.join) == 0 {
		c.tb.Fatal("chubbytest: no node runs that could take another one in")
	}
	c.Restart(i)
	return i
}

// Wipe stops node i and takes its disk away. At Restart it is a node that knows nothing; join has it ask the running ones
// to take it in, instead of taking its place among the first.
func (c *Cell) Wipe(i int, join bool) {
	c.tb.Helper()
	c.Crash(i)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	s.disk = &hook.Disk{}
	s.join = nil
	for _, other := range c.mu.seats {
		if join && other.up {
			s.join = append(s.join, other.addr)
		}
	}
}

// Node returns node i, from 0; after Restart the running one.
func (c *Cell) Node(i int) *chubby.Node {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seat(i).node
}

// Nodes returns the nodes that run.
func (c *Cell) Nodes() []*chubby.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*chubby.Node
	for _, s := range c.mu.seats {
		if s.up {
			list = append(list, s.node)
		}
	}
	return list
}

// seat is called with mu held.
func (c *Cell) seat(i int) *seat {
	c.tb.Helper()
	if i < 0 || i >= len(c.mu.seats) {
		c.tb.Fatalf("chubbytest: no node %d in a cell of %d", i, len(c.mu.seats))
	}
	return c.mu.seats[i]
}

// Leader waits for a node that leads the cell and reaches a majority, and returns it.
func (c *Cell) Leader() *chubby.Node {
	c.tb.Helper()
	deadline := time.Now().Add(settleTime)
	for time.Now().Before(deadline) {
		for _, n := range c.Nodes() {
			if s := n.Status(); s.Role != chubby.RoleLeader || !s.Ready {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := n.WaitReady(ctx)
			cancel()
			if err == nil && n.Status().Role == chubby.RoleLeader {
				return n
			}
		}
		time.Sleep(pollPause)
	}
	c.tb.Fatalf("chubbytest: no leader within %v:%s", settleTime, c.report())
	return nil
}

// Dial returns a Client of the cell, which is no member. It reaches all nodes, whatever Partition says; CutClients keeps
// it from one. It is closed when the test ends.
func (c *Cell) Dial() *chubby.Client {
	c.tb.Helper()
	return c.DialWith(func(*chubby.DialOptions) {})
}

// DialWith is Dial with options that change may change; it must leave Addrs, Cell and Network alone.
func (c *Cell) DialWith(change func(*chubby.DialOptions)) *chubby.Client {
	c.tb.Helper()
	c.net.Roam(clientHost)
	o := chubby.DialOptions{Cell: "test", Network: c.net.Host(clientHost)}
	for i := range len(c.peers) {
		o.Addrs = append(o.Addrs, c.peers[fmt.Sprintf("n%d", i)])
	}
	change(&o)
	ctx, cancel := context.WithTimeout(context.Background(), settleTime)
	defer cancel()
	client, err := chubby.Dial(ctx, o)
	if err != nil {
		c.tb.Fatalf("chubbytest: %v", err)
	}
	c.tb.Cleanup(func() {
		if err := client.Close(); err != nil {
			c.tb.Errorf("chubbytest: close a client: %v", err)
		}
	})
	return client
}

// clientHost is the machine of all dialled clients.
const clientHost = "client"

// CutClients stops what travels between node i and all dialled clients, until Heal.
func (c *Cell) CutClients(i int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.net.Cut(c.seat(i).id, clientHost)
	c.net.Cut(clientHost, c.seat(i).id)
}

// Index returns which node n is, -1 if it is none that runs.
func (c *Cell) Index(n *chubby.Node) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.mu.seats {
		if s.up && s.node == n {
			return i
		}
	}
	return -1
}

// Stop closes node i in good order. Its disk stays.
func (c *Cell) Stop(i int) {
	c.tb.Helper()
	if n := c.down(i); n != nil {
		if err := n.Close(); err != nil {
			c.tb.Errorf("chubbytest: close node %d: %v", i, err)
		}
	}
}

// Crash ends node i as a power cut would: nobody is told, and what its disk had not synced is lost. Under a relaxed
// Options.Sync that makes it a lost disk, and Restart fails with ErrCorrupt.
func (c *Cell) Crash(i int) {
	c.tb.Helper()
	c.mu.Lock()
	s := c.seat(i)
	c.mu.Unlock()
	if n := c.down(i); n != nil {
		s.hooks.Abrupt.Store(true)
		s.disk.Crash()
		if err := n.Close(); err != nil {
			c.tb.Errorf("chubbytest: close node %d: %v", i, err)
		}
	}
}

// down marks node i as stopped and returns it, or nil if it was. A paused node goes on first: frozen it could not stop.
func (c *Cell) down(i int) *chubby.Node {
	c.tb.Helper()
	c.Resume(i)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	if !s.up {
		return nil
	}
	s.up = false
	return s.node
}

// Restart opens node i again, on the disk it had. A running node is stopped first.
func (c *Cell) Restart(i int) {
	c.tb.Helper()
	c.Stop(i)
	c.mu.Lock()
	s := c.seat(i)
	c.mu.Unlock()
	fault := &atomic.Pointer[error]{}
	room := func() (int64, error) { return s.free.Load(), nil }
	hooks := &hook.Hooks{Clock: s.clock, Disk: s.disk, Gate: s.gate, Free: room, Storage: func(string) error {
		s.writes.Wait()
		if err := fault.Load(); err != nil {
			return *err
		}
		return nil
	}}
	o := chubby.Options{
		ID: s.id, Cell: "test", Listen: s.addr, Network: c.net.Host(s.id), Hooks: hooks,
	}
	if s.join == nil {
		o.Peers = c.peers
	} else {
		o.Join = s.join
	}
	for _, f := range c.opts {
		f(&o)
	}
	for _, f := range s.opts {
		f(&o)
	}
	n, err := chubby.Open(o)
	if err != nil {
		c.tb.Fatalf("chubbytest: open node %d: %v", i, err)
	}
	c.mu.Lock()
	s.hooks, s.fault, s.node, s.up, s.broken = hooks, fault, n, true, false
	c.mu.Unlock()
}

// Break makes every storage operation of node i fail with err from now on, which stops the node. Restart mends the disk.
func (c *Cell) Break(i int, err error) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	s.broken = true
	s.fault.Store(&err)
}

// SetFree makes the disk of node i say that it has so many bytes left, from now on and over restarts. The node looks once
// a second. What it writes does not count.
func (c *Cell) SetFree(i int, bytes int64) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seat(i).free.Store(bytes)
}

// Partition lets nodes reach only those in their own group. Nodes in no group form one more. It replaces the last one.
func (c *Cell) Partition(groups ...[]int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	named := make([][]string, len(groups))
	for i, g := range groups {
		for _, node := range g {
			named[i] = append(named[i], c.seat(node).id)
		}
	}
	c.net.Partition(named...)
}

// Cut stops what travels from one node to another; the other direction goes on.
func (c *Cell) Cut(from, to int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.net.Cut(c.seat(from).id, c.seat(to).id)
}

// Delay makes every message between nodes take between min and max from now on.
func (c *Cell) Delay(min, max time.Duration) { c.net.Delay(min, max) }

// Heal ends the partition and all cuts.
func (c *Cell) Heal() { c.net.Heal() }

// Pause freezes node i: no message goes in or out, no storage call returns, nothing is applied, its clock and timers
// stand. raft's own timers run on, into those gates.
func (c *Cell) Pause(i int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	s.clock.pause()
	s.gate.Shut()
}

// Stall is Pause with a clock that goes on, as that of a stopped process does. The node's timers fire at Resume.
func (c *Cell) Stall(i int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	s.clock.hold()
	s.gate.Shut()
}

// StallDisk keeps node i from writing to its disk until Resume. It answers what needs no write, and its watchdog, which
// looks at writes that have begun, does not see it.
func (c *Cell) StallDisk(i int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seat(i).writes.Shut()
}

// Resume ends Pause, Stall and StallDisk.
func (c *Cell) Resume(i int) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.seat(i)
	// The clock first: it is what everything that waits at the gates will look at.
	s.clock.resume()
	s.writes.Open()
	s.gate.Open()
}

// Skew makes the clock of node i run by ppm millionths faster than the test's, slower if negative, from now on and over
// restarts. Guarantees that depend on clocks assume rates within 1 %: 10,000.
func (c *Cell) Skew(i int, ppm int64) {
	c.tb.Helper()
	if ppm < -500_000 || ppm > 500_000 {
		c.tb.Fatalf("chubbytest: Skew by %d ppm; use -500,000 to 500,000", ppm)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seat(i).clock.skew(ppm)
}

// cleanup ends the faults, compares the nodes, and closes them.
func (c *Cell) cleanup() {
	c.tb.Helper()
	c.Heal()
	c.mu.Lock()
	seats := append([]*seat(nil), c.mu.seats...)
	c.mu.Unlock()
	for i := range seats {
		c.Resume(i)
	}
	running := c.Nodes()
	members := 0
	for i, s := range seats {
		err := s.node.Err()
		if errors.Is(err, chubby.ErrRemoved) {
			continue
		}
		members++
		if err != nil && !s.broken {
			c.tb.Errorf("chubbytest: node %d stopped by itself: %v", i, err)
		}
	}
	running = slices.DeleteFunc(running, isDone)
	if len(running) > members/2 {
		c.compare(seats)
	}
	for _, n := range running {
		if n.Err() != nil || isDone(n) {
			continue
		}
		if err := n.Check(context.Background()); err != nil {
			c.tb.Errorf("chubbytest: %v", err)
		}
	}
	var wg sync.WaitGroup
	for i := range seats {
		wg.Go(func() { c.Stop(i) })
	}
	wg.Wait()
}

func isDone(n *chubby.Node) bool {
	select {
	case <-n.Done():
		return true
	default:
		return false
	}
}

// compare waits until all running nodes have applied the same, and wants equal hashes of it.
func (c *Cell) compare(seats []*seat) {
	c.tb.Helper()
	deadline := time.Now().Add(settleTime)
	for {
		var first, last, hash uint64
		equal, n := true, 0
		for _, s := range seats {
			if !s.up || isDone(s.node) {
				continue
			}
			inspect := s.hooks.Inspect.Load()
			if inspect == nil {
				return // the cell was never founded
			}
			index, h := (*inspect)()
			if n == 0 {
				first, last, hash = index, index, h
			} else if first, last = min(first, index), max(last, index); index == last && first == last && h != hash {
				equal = false
			}
			n++
		}
		if first == last {
			if !equal {
				c.tb.Errorf("chubbytest: nodes have different states at index %d:%s", first, c.report())
			}
			return
		}
		if time.Now().After(deadline) {
			c.tb.Errorf("chubbytest: nodes did not catch up with each other within %v:%s", settleTime, c.report())
			return
		}
		time.Sleep(pollPause)
	}
}

// report says how each node stands.
func (c *Cell) report() string {
	out := ""
	for _, n := range c.Nodes() {
		s := n.Status()
		out += fmt.Sprintf("\n  %s: %s, term %d, leader %q, commit %d, applied %d, ready %v, err %v", s.ID, s.Role, s.Term, s.LeaderID, s.CommitIndex, s.AppliedIndex, s.Ready, n.Err())
	}
	return out
}
