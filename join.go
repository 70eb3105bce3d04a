package chubby

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// join asks the nodes of Options.Join to have this one taken in, again and again until it is, and starts raft.
func (n *Node) join() {
	try := n.opts.StartInterval / 4
	for {
		a, err := n.ask(n.opts.Join, &wire.MemberCall{Op: wire.MemberAdd})
		if err == nil && (a.Cell == wire.CellID{} || a.Epoch == 0 || len(a.Servers) == 0) {
			err = fmt.Errorf("%w: taken in by nobody", errBadMessage)
		}
		if err == nil {
			n.founder.setObstacle(nil)
			j := joining{Epoch: a.Epoch, CellID: a.Cell, Members: serversOf(a), Wish: !n.opts.Nonvoter}
			if err = n.store.joined(j); err == nil {
				n.registrar.trust(j.Members)
				err = n.start(j.CellID, j.Epoch)
			}
			if err != nil {
				n.fail(err)
			}
			return
		}
		if n.ctx.Err() != nil {
			return
		}
		n.founder.setObstacle(fmt.Errorf("asking to be taken in: %w", err))
		n.log.Debug("not taken in yet", "err", err)
		if n.pause(n.ctx, jitter(try)) != nil {
			return
		}
		try = min(2*try, intervalMax)
	}
}

func serversOf(a *wire.MemberAnswer) []raft.Server {
	list := make([]raft.Server, len(a.Servers))
	for i, s := range a.Servers {
		list[i] = raft.Server{ID: raft.ServerID(s.Server), Address: raft.ServerAddress(s.Addr)}
		if !s.Voter {
			list[i].Suffrage = raft.Nonvoter
		}
	}
	return list
}

// ask asks about this node itself, at one address after the other until somebody has brought the question to the cell
// leader and back.
func (n *Node) ask(addrs []string, q *wire.MemberCall) (*wire.MemberAnswer, error) {
	q.Name, q.ID, q.Server, q.Addr = n.opts.Cell, n.opts.ID, string(n.server), n.ownAddr()
	if cell := n.transport.cell.Load(); cell != nil {
		q.Cell = *cell
	}
	payload := wire.AppendMemberCall(nil, q)
	var errs []error
	for _, addr := range addrs {
		if addr == q.Addr {
			continue
		}
		ctx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
		_, b, err := n.transport.callAddr(ctx, addr, wire.KindAsk, payload)
		cancel()
		if err == nil {
			var a wire.MemberAnswer
			if a, err = wire.ParseMemberAnswer(b); err == nil {
				return &a, nil
			}
		}
		if n.ctx.Err() != nil {
			return nil, n.ctx.Err()
		}
		errs = append(errs, fmt.Errorf("%s: %w", addr, err))
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("%w: no address of another member is known", ErrNoLeader)
	}
	return nil, errors.Join(errs...)
}

// registrar is what a node knows about its own membership, beside raft's configuration.
type registrar struct {
	wake chan struct{} // cap 1: somebody whom this node does not know wants to speak raft to it
	mu   struct {
		sync.Mutex
		last  raft.ServerID // the leader that said that this node was removed
		trust []raft.Server // members, as the cell leader named them; while the log of this node may be too old to know
	}
}

func (r *registrar) init() { r.wake = make(chan struct{}, 1) }

// poke has the node ask the cell leader how it stands. It never blocks.
func (r *registrar) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// trust replaces the members that the cell leader named.
func (r *registrar) trust(list []raft.Server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.trust = list
}

// trusted finds a server among them; one without an ID means that it is not there.
func (r *registrar) trusted(id raft.ServerID) raft.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, _ := findServer(raft.Configuration{Servers: r.mu.trust}, id)
	return s
}

// lastLeader is whom a removed node tells that its sessions end, though raft has lost sight of it.
func (r *registrar) lastLeader() raft.ServerID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.last
}

func (r *registrar) servers() []raft.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.trust
}

// enrol looks after this node's own membership until it stops. Every heartbeat it compares what raft knows with what
// should be, which costs no message while all is well. When the recorded address is an old one, when no leader speaks to
// this node or a stranger does, or when the configuration does not have this node, it asks the cell leader. Only the
// leader's word makes a node stop: its own log may be older than its membership, or newer than what is committed.
func (n *Node) enrol() {
	tick := time.NewTicker(n.opts.HeartbeatTimeout)
	defer tick.Stop()
	var due time.Time // not earlier
	pause := n.opts.HeartbeatTimeout
	poked := false
	for {
		select {
		case <-tick.C:
		case <-n.registrar.wake:
			poked = true
		case <-n.ctx.Done():
			return
		}
		me, known := findServer(n.configuration(), n.server)
		if known && me.Suffrage == raft.Voter && n.store.identity().Wish {
			if n.store.granted() != nil {
				return // the node is failing
			}
		}
		wish := known && me.Suffrage != raft.Voter && n.store.identity().Wish
		own := n.ownAddr()
		well := known && n.inTouch() && (own == "" || own == string(me.Address))
		if well && !poked {
			n.registrar.trust(nil) // the log knows better
		}
		if well && !wish && !poked {
			pause = n.opts.HeartbeatTimeout
			continue
		}
		if time.Now().Before(due) {
			continue
		}
		var err error
		if !well || poked {
			poked = false
			err = n.announce()
		}
		if wish && err == nil && n.inTouch() {
			err = n.askVote()
		}
		if n.ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrRemoved) {
			n.leave()
			return
		}
		if err != nil {
			n.log.Info("membership of this node is not settled", "err", err)
			pause = min(2*pause, max(intervalMax, n.opts.HeartbeatTimeout))
		} else {
			pause = n.opts.HeartbeatTimeout
		}
		due = time.Now().Add(jitter(pause))
	}
}

// ownAddr is where this node says it is. "" = nowhere, or it cannot tell.
func (n *Node) ownAddr() string {
	o := n.opts
	addr := n.transport.addr()
	if o.Listen == "" {
		return ""
	}
	if o.Advertise == "" {
		// Peers may give the host a better name than Listen does, unless they are of a time when this node was elsewhere.
		_, port, _ := net.SplitHostPort(addr)
		if _, p, err := net.SplitHostPort(o.Peers[o.ID]); err == nil && p == port {
			return o.Peers[o.ID]
		}
	}
	if everywhere(addr) {
		return ""
	}
	return addr
}

// inTouch reports whether this node leads, or has heard from its leader lately.
func (n *Node) inTouch() bool {
	r := n.raft.Load()
	if r.State() == raft.Leader {
		return true
	}
	last := r.LastContact()
	return !last.IsZero() && time.Since(last) < n.transport.streamTimeout
}

// announce asks the cell leader whether this node is a member, and tells it where it is. It returns ErrRemoved if it is
// none any more.
func (n *Node) announce() error {
	var a *wire.MemberAnswer
	var err error
	q := &wire.MemberCall{Op: wire.MemberAnnounce}
	if lead := n.proposer.route().lead; lead != nil {
		q.ID, q.Server, q.Addr, q.Cell = n.opts.ID, string(n.server), n.ownAddr(), *n.transport.cell.Load()
		ctx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
		a, err = lead.changer.serve(ctx, q)
		cancel()
	} else {
		a, err = n.ask(n.memberAddrs(), q)
	}
	if err != nil {
		return err
	}
	if a.State == wire.MemberRemoved {
		for _, s := range a.Servers {
			if s.Leader {
				n.registrar.mu.Lock()
				n.registrar.mu.last = raft.ServerID(s.Server)
				n.registrar.mu.Unlock()
			}
		}
		return ErrRemoved
	}
	n.registrar.trust(serversOf(a))
	return nil
}

// memberAddrs is where members may be, the leader first.
func (n *Node) memberAddrs() []string {
	var list []string
	add := func(s raft.Server) {
		for _, addr := range n.addresses(s.ID, s.Address) {
			if s.ID != n.server && !slices.Contains(list, addr) {
				list = append(list, addr)
			}
		}
	}
	servers := append(n.configuration().Servers, n.registrar.servers()...)
	_, leader := n.raft.Load().LeaderWithID()
	for _, s := range servers {
		if s.ID == leader {
			add(s)
		}
	}
	for _, s := range servers {
		add(s)
	}
	for _, id := range sortedKeys(n.opts.Peers) {
		if addr := n.opts.Peers[id]; id != n.opts.ID && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	for _, addr := range n.opts.Join {
		if !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	return list
}

// askVote asks for this node's vote, and waits for a while until it has caught up.
func (n *Node) askVote() error {
	ctx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
	defer cancel()
	_, err := n.askOnce(ctx, n.proposer.route(), &wire.MemberCall{
		Op: wire.MemberAdd, Vote: true, Cell: *n.transport.cell.Load(), Name: n.opts.Cell,
		ID: n.opts.ID, Server: string(n.server), Addr: n.ownAddr(),
	})
	return err
}

// leave ends a node that was removed. The directory says so first: whatever happens then, it never comes back.
func (n *Node) leave() {
	if n.store.removed() != nil {
		return // the node is failing
	}
	n.log.Warn("this node was removed from the cell")
	select {
	case n.leaderNews <- struct{}{}: // there is a last leader
	default:
	}
	n.Client.closeSessions()
	n.fail(errWasRemoved)
}
