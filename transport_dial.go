package chubby

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// peer is another server as this node's streams know it.
type peer struct {
	t      *transport
	id     raft.ServerID
	ctx    context.Context // ends when the server leaves the configuration, and with the transport
	cancel context.CancelFunc
	links  [wire.Found]*link // by purpose; Found has none
	snap   chan struct{}     // held by the one who sends a snapshot

	mu struct {
		sync.Mutex
		recorded raft.ServerAddress // as raft's configuration has it
		listed   bool               // in the latest configuration, as far as told
		progress progress
		level    uint32 // feature level that it claimed last; 0 = not known yet
	}
}

// peer gives the record of a server, made if missing. recorded may be empty.
func (t *transport) peer(id raft.ServerID, recorded raft.ServerAddress) *peer {
	t.mu.Lock()
	p := t.mu.peers[id]
	if p == nil {
		p = &peer{t: t, id: id, snap: make(chan struct{}, 1)}
		p.ctx, p.cancel = context.WithCancel(t.ctx)
		for _, pp := range []purpose{wire.Control, wire.Append, wire.Snapshot, wire.RPC} {
			p.links[pp] = &link{t: t, p: p, purpose: pp}
			p.links[pp].mu.changed = make(chan struct{})
		}
		p.mu.recorded, p.mu.listed = t.mu.listed[id]
		p.mu.listed = p.mu.listed || t.mu.listed == nil
		t.mu.peers[id] = p
	}
	t.mu.Unlock()
	if recorded != "" {
		p.mu.Lock()
		p.mu.recorded = recorded
		p.mu.Unlock()
	}
	return p
}

// setPeers tells the latest configuration. Streams to servers that left it are closed, and what waits for them returns.
// Sends to a server outside the configuration fail fast; raft's last words to a removed server must not wait for it.
func (t *transport) setPeers(list []raft.Server) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.listed = make(map[raft.ServerID]raft.ServerAddress, len(list))
	for _, s := range list {
		t.mu.listed[s.ID] = s.Address
		if p := t.mu.peers[s.ID]; p != nil {
			p.mu.Lock()
			p.mu.listed, p.mu.recorded = true, s.Address
			p.mu.Unlock()
		}
	}
	for id, p := range t.mu.peers {
		if _, ok := t.mu.listed[id]; ok {
			continue
		}
		p.mu.Lock()
		was := p.mu.listed
		p.mu.Unlock()
		if was {
			p.cancel()
			delete(t.mu.peers, id)
		}
	}
}

func (p *peer) isListed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.listed
}

// addrs gives the addresses to try, in order.
func (p *peer) addrs() []string {
	p.mu.Lock()
	recorded := p.mu.recorded
	p.mu.Unlock()
	if p.t.c.Resolve != nil {
		return p.t.c.Resolve(p.id, recorded)
	}
	if recorded == "" {
		return nil
	}
	return []string{string(recorded)}
}

// link keeps the dialled stream of one purpose to one server: dials when somebody wants to send, again and again while
// somebody does.
type link struct {
	t       *transport
	p       *peer
	purpose purpose
	mu      struct {
		sync.Mutex
		s       *stream // nil: none is open
		running bool    // run is
		waiters int
		fails   uint64 // attempts that failed so far
		err     error  // why the last one did
		delay   time.Duration
		next    time.Time     // no attempt before it
		changed chan struct{} // closed and replaced at each change
	}
}

// get gives the open stream. If there is none it waits for one until ctx ends or the server leaves the configuration; an
// impatient caller also gives up when the next attempt to dial fails. Its errors match errNotSent.
func (l *link) get(ctx context.Context, patient bool) (*stream, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fails := l.mu.fails
	for {
		if s := l.mu.s; s != nil && s.ctx.Err() == nil {
			return s, nil
		}
		if l.mu.fails > fails && !patient {
			return nil, fmt.Errorf("%w: %w", errNotSent, l.mu.err)
		}
		if err := l.waitErr(ctx); err != nil {
			return nil, fmt.Errorf("%w: %w", errNotSent, err)
		}
		if !l.mu.running {
			if l.mu.running = l.t.spawn(l.run); !l.mu.running {
				return nil, fmt.Errorf("%w: %w", errNotSent, ErrClosed)
			}
		}
		changed := l.mu.changed
		l.mu.waiters++
		l.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		case <-l.p.ctx.Done():
		}
		l.mu.Lock()
		l.mu.waiters--
	}
}

// waitErr tells why nobody should wait any more. Called with l.mu held.
func (l *link) waitErr(ctx context.Context) error {
	var err error
	switch {
	case l.t.ctx.Err() != nil:
		return ErrClosed
	case l.p.ctx.Err() != nil:
		return errNotMember
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	default:
		return nil
	}
	if l.mu.err != nil {
		// What went wrong with the stream tells more than that time ran out.
		return fmt.Errorf("%w (%w)", err, l.mu.err)
	}
	return err
}

// change is called with l.mu held.
func (l *link) change() {
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
}

// run dials and reads while somebody waits for a stream.
func (l *link) run() {
	for {
		if !l.pause() {
			return
		}
		s, err := l.p.open(l.purpose)
		if err != nil {
			if !l.failed(err) {
				return
			}
			continue
		}
		s.wg.Go(s.write)
		opened := time.Now()
		l.mu.Lock()
		l.mu.s = s
		l.mu.err = nil
		l.change()
		l.mu.Unlock()
		s.readAnswers()
		s.wg.Wait()
		if !l.closed(s, time.Since(opened)) {
			return
		}
	}
}

// pause waits until the next attempt is due. It reports false if run must end.
func (l *link) pause() bool {
	l.mu.Lock()
	d := time.Until(l.mu.next)
	l.mu.Unlock()
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-l.p.ctx.Done():
		}
	}
	if l.p.ctx.Err() == nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.running = false
	l.change()
	return false
}

// failed notes that an attempt failed. It reports false if run must end.
func (l *link) failed(err error) bool {
	l.mu.Lock()
	news := l.mu.err == nil || l.mu.err.Error() != err.Error()
	l.mu.Unlock()
	if news {
		l.t.c.Logger.Info("no stream", "peer", string(l.p.id), "purpose", l.purpose.String(), "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.fails++
	l.mu.err = err
	l.backOff()
	l.change()
	l.mu.running = l.mu.waiters > 0 && l.p.ctx.Err() == nil
	return l.mu.running
}

// closed notes that a stream broke after the given time. It reports false if run must end.
func (l *link) closed(s *stream, lived time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.s = nil
	l.mu.err = s.reason()
	if lived > l.t.streamTimeout || l.purpose == wire.Snapshot {
		l.mu.delay = 0 // snapshot streams close after each snapshot, which is no fault
	} else {
		// Whoever accepts and closes at once must not be dialled in a circle.
		l.backOff()
	}
	l.change()
	l.mu.running = l.mu.waiters > 0 && l.p.ctx.Err() == nil
	return l.mu.running
}

// backOff is called with l.mu held.
func (l *link) backOff() {
	l.mu.delay = min(max(2*l.mu.delay, minBackoff), l.t.maxBackoff)
	l.mu.next = time.Now().Add(l.mu.delay/2 + rand.N(l.mu.delay/2+1))
}

// open tries the peer's addresses in order.
func (p *peer) open(purpose purpose) (*stream, error) {
	addrs := p.addrs()
	if len(addrs) == 0 {
		return nil, fmt.Errorf("no address of %s is known", p.id)
	}
	var faults []error
	for _, addr := range addrs {
		s, err := p.t.open(p.ctx, addr, purpose, p.id)
		if err == nil {
			p.mu.Lock()
			p.mu.level = s.peer.Level
			p.mu.Unlock()
			if purpose == wire.Append {
				s.compose = func(b []byte) []byte { return p.composeKick(s, b) }
			}
			return s, nil
		}
		faults = append(faults, fmt.Errorf("%s: %w", addr, err))
		if p.ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(faults...)
}

// open dials addr and goes through TLS and hello. to may be empty for Found only. Nobody reads or writes the stream yet.
func (t *transport) open(ctx context.Context, addr string, p purpose, to raft.ServerID) (*stream, error) {
	hello := wire.Hello{Purpose: p, Server: string(t.c.Server), ID: t.c.ID, To: string(to), Level: t.c.Level}
	if p != wire.Found && p != wire.Client {
		cell := t.cell.Load()
		if cell == nil {
			return nil, errNotFounded
		}
		hello.Cell = *cell
	}
	t.c.Gate.Wait()
	dialCtx, cancel := context.WithTimeout(ctx, t.dialTimeout)
	raw, err := t.c.Network.Dial(dialCtx, addr)
	cancel()
	if err != nil {
		return nil, err
	}
	if !t.track(raw) {
		_ = raw.Close()
		return nil, ErrClosed
	}
	s, err := t.greet(ctx, raw, &hello)
	if err != nil {
		t.drop(raw)
		return nil, err
	}
	return s, nil
}

// greet is the dialler's side of handshake and hello.
func (t *transport) greet(ctx context.Context, raw net.Conn, hello *wire.Hello) (*stream, error) {
	if err := raw.SetDeadline(time.Now().Add(helloTimeout)); err != nil {
		return nil, err
	}
	// Reads do not watch ctx; closing the connection is what they notice.
	var abort sync.WaitGroup
	abort.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer abort.Done()
		_ = raw.Close()
	})
	defer func() {
		if stop() {
			abort.Done()
		}
		abort.Wait()
	}()
	conn, cert, err := t.c.Security.handshake(raw, true)
	if err != nil {
		return nil, err
	}
	b, err := wire.AppendHello(nil, hello)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(b); err != nil {
		return nil, err
	}
	w, err := wire.ReadWelcome(conn)
	if err != nil {
		return nil, err
	}
	t.c.Gate.Wait()
	if w.Fault != nil {
		return nil, faultError(w.Fault)
	}
	other := peerInfo{Server: raft.ServerID(w.Server), ID: w.ID, Level: w.Level, Names: certificateNames(cert), Node: fitsNode(cert), Addr: raw.RemoteAddr().String()}
	if hello.To != "" && w.Server != hello.To {
		return nil, fmt.Errorf("%w: %s answered, not %s", ErrWrongCell, w.Server, hello.To)
	}
	if err := t.proved(other); err != nil {
		return nil, err
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	return newStream(ctx, t, raw, conn, other, hello.Purpose), nil
}

// proved checks that the certificate of the other side is that of the node it claims to be. Who claims to be nobody needs
// no proof; plain streams have none.
func (t *transport) proved(p peerInfo) error {
	if nodeOf(p.Server) != p.ID {
		return fmt.Errorf("%w: server %q is not of node %q", ErrPermission, p.Server, p.ID)
	}
	switch {
	case t.c.Security == nil || p.ID == "":
		return nil
	case !p.Node:
		return fmt.Errorf("%w: the certificate of %q is for clients only; nodes need one with the extended key usage serverAuth", ErrPermission, p.Names)
	case slices.Contains(p.Names, p.ID):
		return nil
	}
	return fmt.Errorf("%w: the certificate is for %q, not for node %q", ErrPermission, p.Names, p.ID)
}

// nodeOf is the node id in a server id, which is the node id, a dot and the incarnation.
func nodeOf(s raft.ServerID) string {
	if i := strings.LastIndexByte(string(s), '.'); i >= 0 {
		return string(s[:i])
	}
	return string(s)
}
