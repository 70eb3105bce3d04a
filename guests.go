package chubby

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// The way of a dialled client's call through its member:
//
//	stream.serveCalls      the goroutine of the client's stream
//	  guestConn.call         a goroutine of its own, one of a bounded number
//	    house.admits           the command is looked at: a client is not trusted
//	    Node.propose           as for the node's own callers, but for answerTime at most
//	    Node.read              the same
//
// and of what happens in the cell to the client:
//
//	fsm.ApplyBatch         raft's FSM goroutine
//	  guests.happened        finds the streams of the sessions concerned
//	    stream.push            into their buffers; a stream whose buffer is full is closed

const (
	// answerTime is how long a member tries for a client before it says that it has no answer yet. The client then asks
	// again, here or elsewhere, so it knows within a little more than this whether its member is alive.
	answerTime    = time.Second
	establishTime = 5 * time.Second  // for an opening, which makes another session each time it is repeated
	watchTime     = 20 * time.Second // how long a watch may have nothing to tell before it says so
	watchBytes    = 64 << 10         // what one answer to a watch gathers
	guestSessions = 16384            // sessions of which one client is told
	guestName     = "client"         // the principal of a client without a certificate
)

// guests are the dialled clients of this node.
type guests struct {
	node  *Node
	relay relay
	count atomic.Int64 // sessions that somebody is told of

	mu struct {
		sync.RWMutex
		conns    map[*guestConn]struct{}
		sessions map[uint64][]*guestConn // whom to tell of a session: more than one while its client moves
	}
}

func newGuests(n *Node) *guests {
	g := &guests{node: n, relay: relay{node: n}}
	g.mu.conns = make(map[*guestConn]struct{})
	g.mu.sessions = make(map[uint64][]*guestConn)
	return g
}

// guestConn is one stream of one dialled client.
type guestConn struct {
	guests *guests
	node   *Node
	stream *stream
	house  house

	mu struct {
		sync.Mutex
		attached bool                  // it has named the cell
		watches  map[uint64]*nodeWatch // by the client's numbers; nil = being registered
		left     bool
	}
	sessions map[uint64]struct{} // it is told of these; under guests.mu
}

var _ guest = (*guestConn)(nil)

// admit takes a stream that was let in.
func (g *guests) admit(s *stream) (guest, error) {
	principal := guestName
	if g.node.opts.TLS != nil && len(s.peer.Names) > 0 {
		principal = s.peer.Names[0]
	}
	if err := checkName(principal); err != nil {
		return nil, fmt.Errorf("%w: the first name of the certificate, %q: %w", ErrPermission, principal, err)
	}
	c := &guestConn{
		guests: g, node: g.node, stream: s, sessions: make(map[uint64]struct{}),
		house: house{principal: principal, cell: g.node.opts.Cell, limits: g.node.opts.Limits},
	}
	c.mu.watches = make(map[uint64]*nodeWatch)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.conns[c] = struct{}{}
	return c, nil
}

func (c *guestConn) leave() {
	c.mu.Lock()
	watches := c.mu.watches
	c.mu.watches, c.mu.left = nil, true
	c.mu.Unlock()
	for _, w := range watches {
		if w != nil {
			w.close()
		}
	}
	g := c.guests
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.mu.conns, c)
	for id := range c.sessions {
		g.untrack(c, id)
	}
}

// untrack is called with g.mu held.
func (g *guests) untrack(c *guestConn, id uint64) {
	delete(c.sessions, id)
	list := g.mu.sessions[id]
	for i, other := range list {
		if other == c {
			list = append(list[:i:i], list[i+1:]...)
			g.count.Add(-1)
			break
		}
	}
	if len(list) == 0 {
		delete(g.mu.sessions, id)
	} else {
		g.mu.sessions[id] = list
	}
}

// track has the client told of what happens to sessions. It comes before whatever the client wants to be told of: what is
// offered afterwards is applied here afterwards.
func (c *guestConn) track(ids ...uint64) error {
	g := c.guests
	g.mu.RLock()
	known := 0
	for _, id := range ids {
		if _, ok := c.sessions[id]; ok {
			known++
		}
	}
	g.mu.RUnlock()
	if known == len(ids) {
		return nil
	}
	root := c.node.fsm.root.Load()
	for _, id := range ids {
		if v, ok := root.Session(id); ok && v.Principal != c.house.principal {
			return fmt.Errorf("%w: session %d is not %q's", ErrPermission, id, c.house.principal)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, here := g.mu.conns[c]; !here {
		return ErrClosed
	}
	for _, id := range ids {
		if _, ok := c.sessions[id]; ok {
			continue
		}
		if len(c.sessions) >= guestSessions {
			return fmt.Errorf("%w: %d sessions of one client", ErrOverloaded, guestSessions)
		}
		c.sessions[id] = struct{}{}
		g.mu.sessions[id] = append(g.mu.sessions[id], c)
		g.count.Add(1)
	}
	return nil
}

// happened tells clients what the state machine did to their sessions and waiters. The fsm calls it after each batch; it
// never blocks.
func (g *guests) happened(events []state.Event) {
	if g.count.Load() == 0 {
		return
	}
	// Ended sessions first: their locks were released with them, and what they tell is that the session ended.
	for i := range events {
		if e := &events[i]; e.Kind == state.SessionEnded {
			g.ended(e.Session)
		}
	}
	for i := range events {
		e := &events[i]
		o := wire.Owner{Session: e.Session, Seq: e.Seq, Generation: e.Generation}
		switch e.Kind {
		case state.LockAcquired:
			o.Kind = wire.OwnerGranted
		case state.LockRefused:
			o.Kind = wire.OwnerRefused
		case state.LockReleased:
			o.Kind = wire.OwnerReleased
		default:
			continue
		}
		for _, c := range g.told(e.Session) {
			c.stream.push(wire.PushOwner, func(b []byte) []byte { return wire.AppendOwner(b, &o) })
		}
	}
}

// told gives those who are told of a session. The list is never changed in place.
func (g *guests) told(session uint64) []*guestConn {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.mu.sessions[session]
}

// ended tells of the end of a session, the last thing that happens to it.
func (g *guests) ended(session uint64) {
	conns := g.told(session)
	for _, c := range conns {
		c.stream.push(wire.PushEnded, func(b []byte) []byte { return wire.AppendNumber(b, session) })
	}
	if len(conns) == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range conns {
		g.untrack(c, session)
	}
}

// jumped is called by the fsm when a state came without its events: clients look after their waiters themselves.
func (g *guests) jumped() {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for c := range g.mu.conns {
		if len(c.sessions) > 0 {
			c.stream.push(wire.PushReview, func(b []byte) []byte { return b })
		}
	}
}

// call is the member's side of everything that a dialled client asks.
func (c *guestConn) call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error) {
	select {
	case <-c.node.running:
	default:
		return nil, errNotFounded
	}
	c.mu.Lock()
	attached := c.mu.attached
	c.mu.Unlock()
	if k != wire.KindAttach && !attached {
		return nil, fmt.Errorf("%w: a client names its cell first", ErrWrongCell)
	}
	switch k {
	case wire.KindAttach:
		return c.attach(payload)
	case wire.KindTouch:
		touch := c.node.touch()
		return wire.AppendTouch(nil, &touch), nil
	case wire.KindPropose, wire.KindUrgent:
		return c.propose(ctx, payload, k == wire.KindUrgent)
	case wire.KindEstablish:
		return c.establish(ctx, payload)
	case wire.KindRenew, wire.KindTrack:
		return c.renew(ctx, payload, k == wire.KindTrack)
	case wire.KindQuery:
		return c.query(ctx, payload)
	case wire.KindPeek:
		return c.peek(ctx, payload)
	case wire.KindWatch:
		return c.watch(ctx, payload)
	case wire.KindNext:
		return c.next(ctx, payload)
	case wire.KindEnd:
		return nil, c.end(payload)
	case wire.KindCacheFill, wire.KindCacheRenew, wire.KindCachePoll:
		return c.node.answerCache(ctx, &c.house, k, payload)
	}
	return nil, fmt.Errorf("%w: kind %d", errNoHandler, k)
}

// touch says whether this node is in touch with the cell leader, as far as it knows.
func (n *Node) touch() wire.Touch {
	r := n.proposer.route()
	if r.lead != nil {
		return wire.Touch{InTouch: true, Leader: string(n.server)}
	}
	return wire.Touch{InTouch: r.server != "", Leader: string(r.server)}
}

func (c *guestConn) attach(name []byte) ([]byte, error) {
	n := c.node
	if string(name) != n.opts.Cell {
		return nil, fmt.Errorf("%w: this is cell %q, not %q", ErrWrongCell, n.opts.Cell, name)
	}
	c.mu.Lock()
	c.mu.attached = true
	c.mu.Unlock()
	l := n.opts.Limits
	return wire.AppendAttached(nil, &wire.Attached{
		Touch: n.touch(), Epoch: n.epoch(), Principal: c.house.principal, Heartbeat: n.opts.HeartbeatTimeout,
		ValueBytes: uint32(l.ValueBytes), PathBytes: uint32(l.PathBytes), Depth: uint32(l.Depth),
	}), nil
}

// propose makes one attempt. What the client is told has the meanings of status.
func (c *guestConn) propose(ctx context.Context, raw []byte, urgent bool) ([]byte, error) {
	session, err := c.house.admits(raw)
	if err != nil {
		return nil, err
	}
	if err := c.track(session); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	r, err := c.node.propose(ctx, raw, urgent, nil)
	s := statusApplied
	switch {
	case err == nil:
	case errors.Is(err, ErrUncertain):
		s = statusUnknown
	case errors.Is(err, ErrOverloaded):
		s = statusOverloaded
	case errors.Is(err, ErrNoSpace):
		s = statusNoSpace
	default:
		s = statusRefused
	}
	return appendOutcome(make([]byte, 0, 64), s, &r), nil
}

// establish opens a session for the client, under an id of this node's slot.
func (c *guestConn) establish(ctx context.Context, payload []byte) ([]byte, error) {
	o, err := wire.ParseOpening(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if o.Name != "" {
		if err := checkName(o.Name); err != nil {
			return nil, fmt.Errorf("%w: the session's name: %w", ErrBadOptions, err)
		}
	}
	if o.Lease > uint64(leaseMax.Milliseconds()) || o.Grace > uint64(graceMax.Milliseconds()) {
		return nil, fmt.Errorf("%w: a lease of %d ms, a grace period of %d ms", ErrBadOptions, o.Lease, o.Grace)
	}
	if err := checkLease("SessionLease", millis(o.Lease), millis(o.Grace), c.node.opts.HeartbeatTimeout); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, establishTime)
	defer cancel()
	e, err := c.node.establish(ctx, &command.Command{
		Kind: command.KindOpenSession, Principal: c.house.principal, Name: o.Name, Lease: o.Lease, Grace: o.Grace, Caching: o.Caching,
	})
	if err != nil {
		return nil, err
	}
	if err := c.track(e.id); err != nil {
		return nil, err
	}
	return wire.AppendOpened(nil, &wire.Opened{Session: e.id, Revision: e.revision}), nil
}

// renew relays a KeepAlive to the cell leader, who alone can promise something. With tell alone, it only has the client
// told of its sessions.
func (c *guestConn) renew(ctx context.Context, payload []byte, tell bool) ([]byte, error) {
	k, err := wire.ParseKeepAlive(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if err := c.track(k.Sessions...); err != nil {
		return nil, err
	}
	if tell {
		return nil, nil
	}
	for _, h := range k.Holds {
		if err := c.track(h.Session); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return c.guests.relay.renew(ctx, k)
}

func (c *guestConn) query(ctx context.Context, payload []byte) ([]byte, error) {
	q, err := wire.ParseQuery(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if err := c.house.query(&q); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	q.Principal = c.house.principal
	a, err := c.node.query(ctx, q)
	if err != nil {
		return nil, err
	}
	return wire.AppendAnswer(nil, &a), nil
}

func (c *guestConn) peek(ctx context.Context, payload []byte) ([]byte, error) {
	p, err := wire.ParsePeek(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if err := c.house.query(&p.Query); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var out wire.Peeked
	p.Query.Principal = c.house.principal
	if out.Answer, out.Age, err = c.node.peek(ctx, p.Query, p.Seen); err != nil {
		return nil, err
	}
	return wire.AppendPeeked(nil, &out), nil
}
