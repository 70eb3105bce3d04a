package chubby

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// leadership is one term of this node as cell leader, from its barrier to its end. Its goroutines end with ctx; the
// tracker waits for them before it begins another.
type leadership struct {
	node      *Node
	term      uint64
	ctx       context.Context
	cancel    context.CancelFunc
	wg        sync.WaitGroup
	confirmer *confirmer
	leases    *leases
	changer   *changer
	caches    *caches
}

// track follows who leads the cell. It is the only goroutine that changes the proposer's route.
//
// raft's notifications only wake it; what it acts on is raft's state and term, so losing and regaining leadership
// between two looks is seen as another term.
func (n *Node) track() {
	var lead *leadership
	end := func() {
		if lead != nil {
			lead.cancel()
			lead.wg.Wait()
			lead = nil
		}
	}
	cancelRoute := context.CancelFunc(func() {})
	var known raft.ServerID // who led last, as far as this node knows
	setRoute := func(r route) {
		cancelRoute()
		r.ctx, cancelRoute = context.WithCancel(n.ctx)
		n.proposer.setRoute(r)
		leader := r.server
		if r.lead != nil {
			leader = n.server
		}
		if leader != "" && leader != known {
			if known != "" {
				n.fsm.watches.leaderChanged()
			}
			known = leader
		}
	}
	defer func() {
		setRoute(route{})
		cancelRoute()
		end()
	}()
	opened := make(chan *leadership, 1)
	var to raft.ServerID
	for {
		r := n.raft.Load()
		term := r.CurrentTerm()
		leading := r.State() == raft.Leader
		if lead != nil && (!leading || lead.term != term) {
			n.log.Info("no longer cell leader", "term", lead.term)
			setRoute(route{})
			to = ""
			// By its number: raft may be sending in a newer term of this node already.
			n.transport.endReign(lead.term)
			end()
		}
		switch {
		case leading && lead == nil:
			n.transport.leaderTerm(term)
			setRoute(route{})
			to = ""
			lead = n.newLeadership(term)
			l := lead
			l.wg.Go(func() {
				if l.open() {
					select {
					case opened <- l:
					case <-l.ctx.Done():
					}
				}
			})
		case !leading:
			_, id := r.LeaderWithID()
			if id == "" {
				id = n.registrar.lastLeader()
			}
			if id != to && id != n.server {
				to = id
				setRoute(route{server: id})
				if id == "" {
					n.log.Info("no cell leader", "term", term)
				} else {
					n.log.Info("cell leader", "leader", nodeID(id), "term", term)
				}
			}
		}
		select {
		case <-n.leaderNews:
		case l := <-opened:
			if l == lead && l.stands() {
				setRoute(route{lead: l})
				n.log.Info("cell leader is this node", "term", l.term)
			}
		case <-n.ctx.Done():
			return
		}
	}
}

func (n *Node) newLeadership(term uint64) *leadership {
	l := &leadership{node: n, term: term}
	l.ctx, l.cancel = context.WithCancel(n.ctx)
	l.confirmer = newConfirmer(l)
	l.leases = newLeases(l)
	l.changer = &changer{lead: l}
	l.caches = newCaches(l)
	return l
}

// stands reports whether this node leads in the leadership's term, as far as it knows itself.
func (l *leadership) stands() bool {
	r := l.node.raft.Load()
	return l.ctx.Err() == nil && r.State() == raft.Leader && r.CurrentTerm() == l.term
}

// open applies the term's barrier and starts the leader's duties. The barrier is a command rather than raft's own
// barrier because only commands and configurations reach the fsm: after it, every index up to the commit index does.
func (l *leadership) open() bool {
	for {
		if l.barrier() {
			break
		}
		select {
		case <-time.After(retryPause):
		case <-l.ctx.Done():
			return false
		}
		if !l.stands() {
			return false
		}
	}
	if !l.stands() {
		return false
	}
	l.leases.start()
	l.caches.start()
	l.wg.Go(l.confirmer.run)
	l.wg.Go(l.leases.tick)
	l.wg.Go(l.leases.run)
	l.wg.Go(l.caches.run)
	l.wg.Go(l.raise)
	return true
}

func (l *leadership) barrier() bool {
	return l.decide(&command.Command{Kind: command.KindBarrier}) && l.node.fsm.root.Load().Term() == l.term
}

// decide brings a command of the leader's own into the log and reports whether it was executed here.
func (l *leadership) decide(c *command.Command) bool {
	x := &proposal{raw: command.Append(nil, c), wake: make(chan struct{}, 1)}
	l.node.proposer.apply(&batch{props: []*proposal{x}}, l)
	<-x.wake // apply has completed it
	return x.status == statusApplied
}

// admit drops from a batch what the cell's limits do not allow. The limits are the leader's to judge, before the log:
// Apply reads no Options. Commands in flight may overshoot them.
func (l *leadership) admit(b *batch) {
	limits, root := l.node.opts.Limits, l.node.fsm.root.Load()
	counts := root.Counts()
	left := l.node.space.left()
	full := counts.Entries >= limits.Entries || counts.Bytes >= limits.TotalBytes || left != roomEnough
	crowded := counts.Sessions >= limits.Sessions || counts.Waiters >= limits.Waiters
	wide := counts.Entries >= limits.Children // else no directory can have so many
	if !full && !crowded && !wide {
		return
	}
	kept := b.props[:0]
	for _, x := range b.props {
		var c command.Command
		s := statusApplied
		if err := command.Decode(x.raw, &c); err != nil {
			s = statusRefused
		} else if left == roomNone && x.urgent {
			s = statusRefused // what gives something back is tried again until there is room
		} else if left == roomNone && c.Kind != command.KindBarrier || full && adds(&c) || wide && widens(root, &c, limits.Children) {
			s = statusNoSpace
		} else if counts.Sessions >= limits.Sessions && c.Kind == command.KindOpenSession || counts.Waiters >= limits.Waiters && c.Kind == command.KindLock && !c.Try {
			s = statusOverloaded
		}
		if s == statusApplied {
			kept = append(kept, x)
		} else {
			if x.caches == l.caches {
				l.caches.withdrawn(x.touch)
			}
			x.complete(s, nil)
		}
	}
	b.props = kept
}

// widens reports whether a command would make an entry in a directory that has as many as it may.
func widens(root *state.State, c *command.Command, limit int) bool {
	in := func(path string) bool {
		if _, ok := root.Get(path); ok {
			return false
		}
		for path != "/" { // of the directories that are missing on the way, only the first is new in one that is there
			path = parentPath(path)
			if dir, ok := root.Get(path); ok {
				return dir.Stat.Children >= limit
			}
		}
		return false
	}
	switch {
	case !adds(c):
		return false
	case c.Kind != command.KindTxn:
		return in(c.Path)
	}
	for _, ops := range [][]command.Op{c.Then, c.Else} {
		for _, op := range ops {
			if (op.Kind == command.OpSet || op.Kind == command.OpCreate) && in(op.Path) {
				return true
			}
		}
	}
	return false
}

// adds reports whether a command can make the state larger.
func adds(c *command.Command) bool {
	switch c.Kind {
	case command.KindSet, command.KindCreate, command.KindCompareAndSwap:
		return true
	case command.KindLock:
		return c.HasData
	case command.KindOpen:
		return c.Create
	case command.KindTxn:
		for _, ops := range [][]command.Op{c.Then, c.Else} {
			for _, op := range ops {
				if op.Kind == command.OpSet || op.Kind == command.OpCreate {
					return true
				}
			}
		}
	}
	return false
}

// voters are the ServerIDs of the latest configuration, committed or not, that have a vote.
func (n *Node) voters() []raft.ServerID {
	f := n.raft.Load().GetConfiguration()
	if f.Error() != nil {
		return nil
	}
	servers := f.Configuration().Servers
	ids := make([]raft.ServerID, 0, len(servers))
	for _, s := range servers {
		if s.Suffrage == raft.Voter {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// errNotLeader means that this node does not lead the cell, or no longer; whatever was asked has not been done.
var errNotLeader = errors.New("not the cell leader")

// errBadMessage means that a member sent what this version cannot read.
var errBadMessage = errors.New("bad message")
