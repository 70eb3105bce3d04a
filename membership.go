package chubby

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// The way of a change of members:
//
//	Node.AddVoter ...   the caller's goroutine
//	  Node.askLeader      again and again until the cell leader has answered
//	    changer.serve       on the cell leader: judge, offer one change of the configuration to raft, wait until it is applied
//
// Every change is named by its outcome (this server has a vote, that one is no member), and a raft server id never comes
// back once it was removed, so that asking twice is the same as asking once.

// votersMax is how many members may have a vote. More make each write slower and hardly safer.
const votersMax = 7

// errWasRemoved is what a node whose directory was removed from its cell ends with.
var errWasRemoved = fmt.Errorf("%w: it may come back as a new member only; remove the directory, and open the node with Join", ErrRemoved)

// errOtherDisk refuses a node that has the ID of a member without being that member.
func errOtherDisk(id string) error {
	return fmt.Errorf("%w: node %s is a member with another disk; this one is new or was wiped, and may have forgotten a vote or an acknowledged write; have a member call RemoveMember(%q), then open this node with Join", ErrWrongCell, id, id)
}

// Members returns the members of the cell as its leader has them at a moment after the call: linearizable, like Get. On
// each, AppliedIndex is what the leader knows it to have in its log, and LastContact how long ago it answered the leader.
// It waits for a leader until ctx ends.
func (n *Node) Members(ctx context.Context) ([]Member, error) {
	a, err := n.askLeader(ctx, &wire.MemberCall{Op: wire.MemberList})
	if err != nil {
		return nil, &Error{Op: "members", Err: err}
	}
	list := make([]Member, len(a.Servers))
	for i, s := range a.Servers {
		list[i] = Member{
			ID: nodeID(raft.ServerID(s.Server)), Addr: s.Addr, Voter: s.Voter, Leader: s.Leader,
			AppliedIndex: s.Index, LastContact: time.Duration(s.Silent),
		}
	}
	return list, nil
}

// AddVoter gives a member a vote, after taking it in if it is none yet: the node at addr must have been opened with
// Options.Join, and under this id. It learns first, as a nonvoter, and votes once it has caught up and stayed so; AddVoter
// waits for that. A node whose Nonvoter is not set asks for the same by itself, so that AddVoter is needed only to wait,
// or for one that joined as a nonvoter. For what is a voter already it returns nil.
//
// It returns ErrBadOptions, ErrConflict while another change of members is under way, ErrWrongCell if somebody else
// answers at addr or the id is a member with another disk, the error of reaching addr, or the error of ctx, with
// ErrUncertain if the node may have been taken in. A node that was taken in stays a nonvoter until it is asked for again.
func (n *Node) AddVoter(ctx context.Context, id, addr string) error {
	return n.add(ctx, "add voter", id, addr, true)
}

// AddNonvoter takes a node in that has no vote: full local state, full API. See [Node.AddVoter]. For what is a nonvoter
// already it returns nil, for a voter ErrConflict.
func (n *Node) AddNonvoter(ctx context.Context, id, addr string) error {
	return n.add(ctx, "add nonvoter", id, addr, false)
}

func (n *Node) add(ctx context.Context, op, id, addr string, vote bool) error {
	fail := func(err error) error { return &Error{Op: op, Path: id, Err: err} }
	if err := errors.Join(checkName(id), checkAddr(addr)); err != nil {
		return fail(fmt.Errorf("%w: %q at %q: %w", ErrBadOptions, id, addr, err))
	}
	taken := false
	for {
		a, err := n.askLeader(ctx, &wire.MemberCall{Op: wire.MemberAdd, ID: id, Addr: addr, Vote: vote})
		switch {
		case err == nil && a.State == wire.MemberVoter && !vote:
			return fail(fmt.Errorf("%w: it has a vote; RemoveMember first, and let it join again", ErrConflict))
		case err == nil && (a.State == wire.MemberVoter || a.State == wire.MemberNonvoter && !vote):
			return nil
		case err == nil:
			taken = true // and it is learning
		case taken && errors.Is(err, ErrConflict) && ctx.Err() == nil:
			if err := n.pause(ctx, retryPause); err != nil { // somebody else's change; this one is half done
				return fail(fmt.Errorf("%w: %w: it is a nonvoter", ErrUncertain, err))
			}
		case taken:
			return fail(fmt.Errorf("%w: it is a nonvoter that has not caught up: %w", ErrUncertain, err))
		default:
			return fail(err)
		}
	}
}

// RemoveMember removes a node from the cell, whether it runs or not. One that runs notices, ends its sessions and stops
// with ErrRemoved. Its directory is of no further use: to come back it needs an empty one, and Join. The cell leader hands
// leadership over before it is removed.
//
// It returns ErrNotFound if there is no such member; ErrConflict while another change is under way, and for the last
// voter; ErrNoQuorum if too few of the voters that would be left answer, because the cell would stand still: bring one of
// them back first, or, if they are lost for good, stop the rest and use Recover; or the error of ctx, with ErrUncertain if
// the node may have been removed.
func (n *Node) RemoveMember(ctx context.Context, id string) error {
	fail := func(err error) error { return &Error{Op: "remove member", Path: id, Err: err} }
	a, err := n.askLeader(ctx, &wire.MemberCall{Op: wire.MemberList})
	if err != nil {
		return fail(err)
	}
	// The id may be given to a new node as soon as the old one is gone. A repeated request must not remove that.
	for _, s := range a.Servers {
		if nodeID(raft.ServerID(s.Server)) == id {
			if _, err := n.askLeader(ctx, &wire.MemberCall{Op: wire.MemberRemove, Server: s.Server}); err != nil {
				return fail(err)
			}
			return nil
		}
	}
	return fail(fmt.Errorf("%w: no such member", ErrNotFound))
}

// TransferLeadership hands leadership of the cell to a voter, or with "" to the one that has caught up best. Proposals
// wait meanwhile, a few milliseconds if all is well. It returns nil once this node follows another leader, or nothing is
// to be done; ErrNotFound; ErrConflict for a nonvoter, while another change is under way, and, after about two
// ElectionTimeouts, if the target does not answer, has not caught up or did not take over: leadership then stays where it
// is, or the cell has elected somebody else; ErrNoSpace if the target's disk has less free than its Limits.MinFreeDisk; or
// the error of ctx.
func (n *Node) TransferLeadership(ctx context.Context, to string) error {
	fail := func(err error) error { return &Error{Op: "transfer leadership", Path: to, Err: err} }
	a, err := n.askLeader(ctx, &wire.MemberCall{Op: wire.MemberList})
	if err != nil {
		return fail(err)
	}
	call := &wire.MemberCall{Op: wire.MemberTransfer}
	for _, s := range a.Servers {
		if to != "" && nodeID(raft.ServerID(s.Server)) == to {
			call.Server = s.Server
		}
		if s.Leader {
			call.ID = s.Server // from this one: a repeated request must not hand over twice
		}
	}
	if to != "" && call.Server == "" {
		return fail(fmt.Errorf("%w: no such member", ErrNotFound))
	}
	if call.Server == call.ID {
		return nil
	}
	if _, err := n.askLeader(ctx, call); err != nil {
		return fail(err)
	}
	for {
		r := n.proposer.route()
		now := r.server
		if r.lead != nil {
			now = n.server
		}
		switch {
		case now == "" || now == raft.ServerID(call.ID):
		case call.Server == "" || now == raft.ServerID(call.Server):
			return nil
		default:
			return fail(fmt.Errorf("%w: the cell elected %s instead", ErrConflict, nodeID(now)))
		}
		select {
		case <-r.changed:
		case <-ctx.Done():
			return fail(n.explain(ctx.Err()))
		case <-n.stopping:
			return fail(n.stopCause())
		}
	}
}

// askLeader brings a call to the cell leader, whoever that is by then, and gives its answer. Errors follow the rule of
// three outcomes.
func (n *Node) askLeader(ctx context.Context, q *wire.MemberCall) (*wire.MemberAnswer, error) {
	offered := false
	fail := func(err error) (*wire.MemberAnswer, error) {
		if offered && !errors.Is(err, ErrUncertain) {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return nil, err
	}
	select {
	case <-n.running:
	case <-n.stopping:
		return fail(n.stopCause())
	case <-ctx.Done():
		return fail(fmt.Errorf("%w: the node is in no cell yet: %w", ErrNoLeader, ctx.Err()))
	}
	for {
		if err := ctx.Err(); err != nil {
			return fail(n.explain(err))
		}
		r := n.proposer.route()
		a, err := n.askOnce(ctx, r, q)
		var remote *remoteError
		switch {
		case err == nil:
			return a, nil
		case n.stopped():
			return fail(n.stopCause())
		case errors.Is(err, ErrUncertain):
			offered = true
		case errors.Is(err, errNotLeader), errors.Is(err, ErrNoLeader):
		case r.lead == nil && errors.Is(err, errNotSent): // on the leader this is about the node in question
		case r.lead == nil && !errors.As(err, &remote):
			offered = true // the stream broke, or the leader did not answer in time
		case offered && errors.Is(err, ErrConflict) && ctx.Err() == nil:
			// The change that is under way may be the first copy of this one.
		case ctx.Err() != nil:
		default:
			return fail(err)
		}
		select { // The leader is changing, or busy: a moment, unless news of it comes first.
		case <-r.changed:
		case <-time.After(retryPause):
		case <-ctx.Done():
			return fail(n.explain(ctx.Err()))
		case <-n.stopping:
			return fail(n.stopCause())
		}
	}
}

// askOnce asks the leader that r names.
func (n *Node) askOnce(ctx context.Context, r route, q *wire.MemberCall) (*wire.MemberAnswer, error) {
	switch {
	case r.lead != nil:
		return r.lead.changer.serve(ctx, q)
	case r.server == "":
		return nil, ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, n.callTimeout())
	defer cancel()
	b, err := n.transport.call(ctx, r.server, wire.KindMember, wire.AppendMemberCall(nil, q))
	if err != nil {
		return nil, err
	}
	a, err := wire.ParseMemberAnswer(b)
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// pause waits for d, or for the end of ctx or of the node.
func (n *Node) pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.stopping:
		return n.stopCause()
	}
}

// answerMember is the leader's side of askLeader. Only members may ask: who merely passed the handshake could otherwise
// make itself one.
func (n *Node) answerMember(ctx context.Context, from peerInfo, b []byte) ([]byte, error) {
	q, err := wire.ParseMemberCall(b)
	if err != nil {
		return nil, err
	}
	if n.raft.Load() == nil {
		return nil, errNotFounded
	}
	if _, ok := findServer(n.configuration(), from.Server); !ok {
		return nil, fmt.Errorf("%w: %q is no member of the cell", ErrPermission, from.Server)
	}
	lead := n.proposer.route().lead
	if lead == nil || n.stalled() {
		return nil, errNotLeader
	}
	a, err := lead.changer.serve(ctx, &q)
	if err != nil {
		return nil, err
	}
	return wire.AppendMemberAnswer(nil, a), nil
}

// answerAsk serves nodes that ask about themselves: to be taken in, or whether they still belong. It is for everybody who
// proved to be the node in question, and passes the question on to the cell leader, once.
func (n *Node) answerAsk(ctx context.Context, from peerInfo, b []byte) ([]byte, error) {
	q, err := wire.ParseMemberCall(b)
	switch {
	case err != nil:
		return nil, err
	case q.Op != wire.MemberAdd && q.Op != wire.MemberAnnounce:
		return nil, fmt.Errorf("%w: membership call %d is for members", ErrPermission, q.Op)
	case from.ID == "" || from.ID != q.ID || string(from.Server) != q.Server:
		return nil, fmt.Errorf("%w: %q asks for %q", ErrPermission, from.Server, q.Server)
	case q.Name != n.opts.Cell:
		return nil, fmt.Errorf("%w: %s belongs to cell %q, not %q; check Options.Cell and Join", ErrWrongCell, n.opts.ID, n.opts.Cell, q.Name)
	case n.raft.Load() == nil:
		return nil, errNotFounded
	}
	q.Vote = false // it learns first, and asks for its vote as a member
	a, err := n.askOnce(ctx, n.proposer.route(), &q)
	if err != nil {
		return nil, err
	}
	return wire.AppendMemberAnswer(nil, a), nil
}

// findServer finds a server in a configuration.
func findServer(c raft.Configuration, id raft.ServerID) (raft.Server, bool) {
	for _, s := range c.Servers {
		if s.ID == id {
			return s, true
		}
	}
	return raft.Server{}, false
}

// findNode finds the server of a node.
func findNode(c raft.Configuration, id string) (raft.Server, bool) {
	for _, s := range c.Servers {
		if nodeID(s.ID) == id {
			return s, true
		}
	}
	return raft.Server{}, false
}
