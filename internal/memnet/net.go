// Package memnet is a network in memory: hosts with names, streams between them, and the faults of real networks
// (partitions, one-way cuts, delay). It works inside testing/synctest and outside: it starts no goroutine, and it blocks
// on channels and timers only.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

const (
	minDelay   = time.Microsecond // never zero, so that time in a synctest bubble advances and retries cannot spin
	breakAfter = 10 * time.Second // a stream or a dial that is cut for this long fails, as TCP's would in the end
	bufferSize = 256 << 10        // bytes on their way in one direction of a stream
	backlog    = 128              // dialled streams that wait to be accepted
	firstPort  = 20000            // ports given for port 0 start here
)

// Errors of dials and streams.
var (
	ErrRefused = errors.New("memnet: connection refused")
	ErrReset   = errors.New("memnet: connection reset")
	ErrTimeout = errors.New("memnet: connection timed out")
)

// Net is a network. The zero value is not usable, New makes one. Safe for concurrent use.
type Net struct {
	mu struct {
		sync.Mutex
		rand      *rand.Rand
		min, max  time.Duration
		listeners map[string]*listener // by "host:port"
		ports     map[string]int       // last port given, by host
		group     map[string]int       // by host; nil = no partition
		roams     map[string]struct{}  // hosts that are in every group
		cuts      map[link]struct{}
		since     map[link]time.Time // when a link that is down went down; asked for links only
		changed   chan struct{}      // closed and replaced when the topology changes
	}
}

type link struct{ from, to string }

// New gives a network without faults.
func New() *Net {
	n := &Net{}
	n.mu.rand = rand.New(rand.NewPCG(1, 2))
	n.mu.min, n.mu.max = minDelay, minDelay
	n.mu.listeners = make(map[string]*listener)
	n.mu.ports = make(map[string]int)
	n.mu.roams = make(map[string]struct{})
	n.mu.cuts = make(map[link]struct{})
	n.mu.since = make(map[link]time.Time)
	n.mu.changed = make(chan struct{})
	return n
}

// Host gives the view of the network that the machine of this name has. A name needs no registration; the same name is
// the same machine.
func (n *Net) Host(name string) *Host { return &Host{n: n, name: name} }

// Delay makes every message take between min and max from now on. Messages of one stream are not reordered.
func (n *Net) Delay(lo, hi time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.min = max(lo, minDelay)
	n.mu.max = max(hi, n.mu.min)
}

// Partition lets hosts reach only those in their own group. Hosts in no group form one more group.
// It replaces the last partition and leaves cuts alone. What is under way when a link goes down arrives when it is up
// again, or never if that takes longer than a stream lives.
func (n *Net) Partition(groups ...[]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.group = make(map[string]int)
	for i, g := range groups {
		for _, h := range g {
			n.mu.group[h] = i + 1
		}
	}
	n.topologyChanged()
}

// Roam puts a host into every group of every partition. Cuts concern it as any other.
func (n *Net) Roam(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.roams[host] = struct{}{}
	n.topologyChanged()
}

// Cut stops everything that travels from one host to another. The other direction is not touched.
func (n *Net) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.cuts[link{from, to}] = struct{}{}
	n.topologyChanged()
}

// Heal ends the partition and all cuts.
func (n *Net) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.group = nil
	clear(n.mu.cuts)
	n.topologyChanged()
}

// topologyChanged is called with n.mu held.
func (n *Net) topologyChanged() {
	for l := range n.mu.since {
		if n.isUp(l) {
			delete(n.mu.since, l)
		}
	}
	// Links without a stream get their entry when somebody asks, which is early enough: nothing waited on them before.
	close(n.mu.changed)
	n.mu.changed = make(chan struct{})
}

// isUp is called with n.mu held.
func (n *Net) isUp(l link) bool {
	if l.from == l.to {
		return true
	}
	if _, cut := n.mu.cuts[l]; cut {
		return false
	}
	for _, h := range []string{l.from, l.to} {
		if _, ok := n.mu.roams[h]; ok {
			return true
		}
	}
	return n.mu.group[l.from] == n.mu.group[l.to]
}

// state tells whether a link is up, since when it is not, and gives a channel that is closed when that may change.
func (n *Net) state(l link) (up bool, since time.Time, changed <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.isUp(l) {
		return true, time.Time{}, n.mu.changed
	}
	since, ok := n.mu.since[l]
	if !ok {
		since = time.Now()
		n.mu.since[l] = since
	}
	return false, since, n.mu.changed
}

// latency draws how long the next message takes.
func (n *Net) latency() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.max == n.mu.min {
		return n.mu.min
	}
	return n.mu.min + time.Duration(n.mu.rand.Int64N(int64(n.mu.max-n.mu.min)+1))
}

// Host is one machine. It has the methods of chubby.Network.
type Host struct {
	n    *Net
	name string
}

// At gives the view that another machine of the same network has.
func (h *Host) At(name string) *Host { return h.n.Host(name) }

// Listen opens "host:port" for others to dial. The host must be this one's name or empty; port 0 gives a free port.
func (h *Host) Listen(_ context.Context, addr string) (net.Listener, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("memnet: %w", err)
	}
	if host != "" && host != h.name {
		return nil, fmt.Errorf("memnet: host %s cannot listen at %s", h.name, addr)
	}
	h.n.mu.Lock()
	defer h.n.mu.Unlock()
	if port == "0" {
		port = strconv.Itoa(h.n.freePort(h.name))
	}
	full := net.JoinHostPort(h.name, port)
	if h.n.mu.listeners[full] != nil {
		return nil, fmt.Errorf("memnet: listen %s: address already in use", full)
	}
	l := &listener{n: h.n, addr: Addr(full), queue: make(chan *conn, backlog), closed: make(chan struct{})}
	h.n.mu.listeners[full] = l
	return l, nil
}

// freePort is called with n.mu held.
func (n *Net) freePort(host string) int {
	for {
		if n.mu.ports[host] < firstPort {
			n.mu.ports[host] = firstPort
		}
		n.mu.ports[host]++
		p := n.mu.ports[host]
		if n.mu.listeners[net.JoinHostPort(host, strconv.Itoa(p))] == nil {
			return p
		}
	}
}

// Dial opens a stream to whoever listens at addr. While a link is cut it waits, for 10 s or until ctx ends.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("memnet: %w", err)
	}
	there, back := link{h.name, host}, link{host, h.name}
	timeout := time.NewTimer(breakAfter)
	defer timeout.Stop()
	for _, l := range []link{there, back} {
		if err := h.travel(ctx, l, timeout.C); err != nil {
			return nil, fmt.Errorf("dial %s: %w", addr, err)
		}
	}
	h.n.mu.Lock()
	l := h.n.mu.listeners[addr]
	h.n.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("dial %s: %w", addr, ErrRefused)
	}
	here := Addr(net.JoinHostPort(h.name, "0"))
	a, b := newPair(h.n, here, l.addr, there, back)
	select {
	case l.queue <- b:
	case <-l.closed:
		return nil, fmt.Errorf("dial %s: %w", addr, ErrRefused)
	case <-ctx.Done():
		return nil, fmt.Errorf("dial %s: %w", addr, ctx.Err())
	case <-timeout.C:
		return nil, fmt.Errorf("dial %s: %w", addr, ErrTimeout)
	}
	// The listener may have closed between the look-up and the send; then nobody takes b out of the queue.
	select {
	case <-l.closed:
		b.reset()
	default:
	}
	return a, nil
}

// travel takes as long as one message takes over l.
func (h *Host) travel(ctx context.Context, l link, timeout <-chan time.Time) error {
	arrived := time.NewTimer(h.n.latency())
	defer arrived.Stop()
	select {
	case <-arrived.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		up, _, changed := h.n.state(l)
		if up {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return ErrTimeout
		}
	}
}

// Addr is "host:port".
type Addr string

// Network is "mem".
func (Addr) Network() string  { return "mem" }
func (a Addr) String() string { return string(a) }

type listener struct {
	n      *Net
	addr   Addr
	queue  chan *conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Addr() net.Addr { return l.addr }

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and resets the streams that nobody accepted.
func (l *listener) Close() error {
	l.once.Do(func() {
		l.n.mu.Lock()
		delete(l.n.mu.listeners, string(l.addr))
		l.n.mu.Unlock()
		close(l.closed)
	})
	for {
		select {
		case c := <-l.queue:
			c.reset()
		default:
			return nil
		}
	}
}
