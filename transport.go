package chubby

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/wire"
)

const (
	helloTimeout     = 5 * time.Second  // TLS handshake and hello, both sides
	maxPendingHello  = 256              // accepted connections that have not yet said who they are
	maxAccepted      = 4096             // accepted streams
	maxStreamCalls   = 256              // calls that one accepted stream may have running
	maxCalls         = 4096             // calls running on all accepted streams
	maxGuests        = 10_000           // accepted streams of dialled clients; they count apart, and so do their calls
	guestTimeout     = 20 * time.Second // silence after which a client's stream is dead: there are thousands, and calls notice sooner
	minStreamTimeout = time.Second
	minBackoff       = 10 * time.Millisecond
	noticeTimeout    = time.Second // answers to raft's short questions when Heartbeat and Election are tiny
)

// purpose is what a stream is for.
type purpose = wire.Purpose

// transportConfig tells a transport who it is and whom it serves. Functions may be called concurrently and must not
// call back into the transport.
type transportConfig struct {
	Server    raft.ServerID // raft server id of this node; empty for a client
	ID        string        // node id; empty for a client
	Network   Network       // never nil
	Listen    string        // "" = do not listen
	Advertise string        // "" = Listen, with the bound port for port 0
	Security  *security     // nil = plain
	Heartbeat time.Duration // raft's heartbeat timeout
	Election  time.Duration // raft's election timeout
	Level     uint32        // feature level, told in the hello
	Gate      *hook.Gate    // waited for before each message out and after each message in
	Logger    *slog.Logger  // never nil

	// Resolve gives the addresses to try for a server, in order. nil = only the recorded one, which may be empty.
	Resolve func(id raft.ServerID, recorded raft.ServerAddress) []string
	// Stalled reports that this node's disk hangs. While it does, heartbeats fail and appends wait, so that others can
	// take over. nil = never.
	Stalled func() bool
	// Gone is told when a control stream that a server had opened broke. It must not block. nil = nobody cares.
	Gone func(id raft.ServerID)
	// Guest takes the accepted stream of a dialled client; what it gives answers the stream's calls. nil = refuse them all.
	Guest func(s *stream) (guest, error)
	// Authorize judges a stream after TLS and hello. Its error, with its sentinels, reaches the dialler. nil = all.
	Authorize func(from peerInfo, p purpose) error
}

// peerInfo is what is known about the other end of a stream.
type peerInfo struct {
	Server raft.ServerID // raft server id; empty for a client
	ID     string        // node id; empty for a client. Proved when the streams are secured
	Level  uint32        // feature level
	Names  []string      // what its certificate proves: DNS names, addresses, URIs, node id; nil on plain streams
	Node   bool          // its certificate, if it has one, may be a node's
	Addr   string        // its network address
}

// raftView is the part of raft that the transport looks at.
type raftView interface {
	State() raft.RaftState
	CurrentTerm() uint64
	LeaderWithID() (raft.ServerAddress, raft.ServerID)
}

// transport carries raft and calls between nodes. It is a raft.Transport; its other methods are safe for concurrent use
// as well.
//
// Streams are dialled when something is to be sent, one for each server and purpose, and stay until they break. On each,
// both sides say so when they have nothing else to say: a stream that is silent for streamTimeout is dead.
//
// Goroutines: one accepts; each accepted stream has one that reads and one that writes (append streams a third, which
// answers), and one for each call that runs; each dialled stream has one that dials and then reads and one that writes;
// one hands heartbeats to raft; while this node leads, one watches its term. Close ends and awaits them all.
type transport struct {
	c             transportConfig
	streamTimeout time.Duration // silence after which a stream is dead
	dialTimeout   time.Duration // to connect to one address
	noticeTimeout time.Duration // for raft's short questions
	maxBackoff    time.Duration // between attempts to dial

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	ln       net.Listener // nil: does not listen
	address  string
	consumer chan raft.RPC
	touches  chan *raft.AppendEntriesRequest // heartbeats answered already, which raft is still to see
	pending  chan struct{}                   // a place for each accepted connection before its hello
	accepted chan struct{}                   // a place for each accepted stream
	guests   chan struct{}                   // a place for each accepted stream of a dialled client
	lanes    lanes                           // places for running calls
	handlers [256]atomic.Pointer[handler]    // by kind
	cell     atomic.Pointer[wire.CellID]     // nil: not known yet
	view     atomic.Pointer[raftView]        // nil: raft does not run yet
	leads    atomic.Uint64                   // term of mu.reign; 0 = none
	commit   atomic.Uint64                   // what the leader last told kick

	mu struct {
		sync.Mutex
		closed bool
		conns  map[net.Conn]struct{} // everything accepted and dialled, so that Close can close it
		peers  map[raft.ServerID]*peer
		listed map[raft.ServerID]raft.ServerAddress // latest configuration; nil = not told yet
		reign  *reign                               // the term in which this node sends entries
		over   uint64                               // terms up to this one are over
	}
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

var (
	// errNotSent means that a request certainly did not reach the other side.
	errNotSent = errors.New("not sent")
	// errTermOver means that raft sends in a term that this node does not lead any more.
	errTermOver = errors.New("term is over")
	// errStalled means that this node's disk hangs.
	errStalled = errors.New("disk stalled")
	// errNotMember means that the server is not in the latest configuration.
	errNotMember = errors.New("server left the configuration")
)

// newTransport binds the port and starts to accept. Found streams work at once, the others after setCell. It returns an
// *Error that names the address if it cannot be bound.
func newTransport(c transportConfig) (*transport, error) {
	t := &transport{
		c:             c,
		streamTimeout: max(5*c.Heartbeat, minStreamTimeout),
		dialTimeout:   min(max(5*c.Heartbeat, minStreamTimeout), helloTimeout),
		noticeTimeout: max(c.Heartbeat, c.Election),
		maxBackoff:    max(c.Heartbeat/2, minBackoff),
		consumer:      make(chan raft.RPC),
		touches:       make(chan *raft.AppendEntriesRequest, 1),
		pending:       make(chan struct{}, maxPendingHello),
		accepted:      make(chan struct{}, maxAccepted),
		guests:        make(chan struct{}, maxGuests),
		lanes:         newLanes(),
	}
	if t.noticeTimeout <= 0 {
		t.noticeTimeout = noticeTimeout
	}
	t.mu.conns = make(map[net.Conn]struct{})
	t.mu.peers = make(map[raft.ServerID]*peer)
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.address = c.Advertise
	if c.Listen != "" {
		ln, err := c.Network.Listen(t.ctx, c.Listen)
		if err != nil {
			t.cancel()
			return nil, &Error{Op: "listen", Path: c.Listen, Err: err}
		}
		t.ln = ln
		if t.address, err = advertised(c.Advertise, c.Listen, ln.Addr().String()); err != nil {
			t.cancel()
			return nil, errors.Join(err, ln.Close())
		}
		t.spawn(t.accept)
	}
	if t.address == "" {
		// raft takes an empty address of the leader for "no leader".
		t.address = string(c.Server)
	}
	t.spawn(t.touch)
	return t, nil
}

// advertised is the address that peers dial: as the user wrote it, because names may be resolved elsewhere, but with
// the bound port instead of 0.
func advertised(advertise, listen, bound string) (string, error) {
	a := advertise
	if a == "" {
		a = listen
	}
	host, port, err := net.SplitHostPort(a)
	if err != nil {
		return "", &Error{Op: "listen", Path: a, Err: err}
	}
	boundHost, boundPort, err := net.SplitHostPort(bound)
	if err != nil {
		return "", &Error{Op: "listen", Path: bound, Err: err}
	}
	if host == "" {
		host = boundHost
	}
	if port == "0" {
		port = boundPort
	}
	return net.JoinHostPort(host, port), nil
}

// addr is the address that peers dial.
func (t *transport) addr() string { return t.address }

// setCell opens the way for all purposes. Called once, when the cell is known.
func (t *transport) setCell(id [16]byte) {
	c := wire.CellID(id)
	t.cell.Store(&c)
}

// attach lets the transport see raft, once it runs. Before, heartbeats all go through Consumer, and the end of a term
// is known from leaderTerm only.
func (t *transport) attach(r raftView) { t.view.Store(&r) }

// raft gives what attach was given, or nil.
func (t *transport) raft() raftView {
	if v := t.view.Load(); v != nil {
		return *v
	}
	return nil
}

// spawn runs f in a goroutine that Close awaits. It reports false, and f does not run, when the transport is closed.
func (t *transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// track registers a connection that Close must close. It reports false if it is too late for that.
func (t *transport) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return false
	}
	t.mu.conns[c] = struct{}{}
	return true
}

// drop closes and forgets a connection.
func (t *transport) drop(c net.Conn) {
	t.mu.Lock()
	delete(t.mu.conns, c)
	t.mu.Unlock()
	_ = c.Close() // nothing is lost with it that the other side was promised
}

// Close closes everything accepted and dialled, ends all goroutines and waits for them. Calls return, running handlers
// see their ctx end and are awaited, so Close must not be called from one. While Gate is shut it waits for it to open.
// Idempotent and safe for concurrent use; each call returns when all is closed.
func (t *transport) Close() error {
	t.mu.Lock()
	first := !t.mu.closed
	t.mu.closed = true
	t.mu.Unlock()
	var err error
	if first {
		// The listener goes first, so that nobody comes in while the rest is closed. The connections go before the
		// waiting, because reads and writes do not watch ctx.
		if t.ln != nil {
			err = t.ln.Close()
		}
		t.cancel()
		t.mu.Lock()
		conns := t.mu.conns
		t.mu.conns = nil
		t.mu.Unlock()
		for c := range conns {
			_ = c.Close()
		}
	}
	t.wg.Wait()
	if err != nil {
		return fmt.Errorf("closing listener: %w", err)
	}
	return nil
}

// accept takes connections until the listener is closed.
func (t *transport) accept() {
	delay := time.Duration(0)
	for {
		conn, err := t.ln.Accept()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, most likely: it passes.
			delay = min(max(2*delay, 5*time.Millisecond), time.Second)
			t.c.Logger.Warn("cannot accept", "error", err, "retry", delay)
			select {
			case <-time.After(delay):
			case <-t.ctx.Done():
				return
			}
			continue
		}
		delay = 0
		select {
		case t.pending <- struct{}{}:
		default:
			// Strangers who say nothing must not use up memory and descriptors.
			_ = conn.Close()
			continue
		}
		if !t.track(conn) || !t.spawn(func() { t.admit(conn) }) {
			_ = conn.Close()
			<-t.pending
		}
	}
}

// touch hands heartbeats that were answered already to raft, so that it knows of the contact.
func (t *transport) touch() {
	for {
		select {
		case req := <-t.touches:
			t.deliver(t.ctx, raft.RPC{Command: req, RespChan: make(chan raft.RPCResponse, 1)})
		case <-t.ctx.Done():
			return
		}
	}
}

// deliver hands an RPC to raft. It reports false if ctx ended first; raft may have stopped consuming for good.
func (t *transport) deliver(ctx context.Context, rpc raft.RPC) bool {
	select {
	case t.consumer <- rpc:
		return true
	case <-ctx.Done():
		return false
	}
}
