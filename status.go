package chubby

import (
	"context"
	"time"

	"github.com/hashicorp/raft"
)

// Role is a node's part in its cell.
type Role string

// What a node can be.
const (
	RoleLeader    Role = "leader"
	RoleFollower  Role = "follower"
	RoleCandidate Role = "candidate"
	RoleNonvoter  Role = "nonvoter"
	RoleStopped   Role = "stopped"
)

// Status is what a node knows about itself and its cell without asking anybody.
type Status struct {
	ID, Cell string
	Role     Role
	LeaderID string // "" = none is known

	Term, CommitIndex, AppliedIndex uint64
	Revision                        uint64 // of the state applied here
	Epoch                           uint64

	Sessions, Locks, Waiters, Entries int // in the state applied here; Locks are the held ones
	Watchers                          int // on this node

	LogBytes      int64         // live log entries
	SnapshotBytes int64         // the newest snapshot
	LastContact   time.Duration // since this node last heard from the leader; 0 on the leader
	Ready         bool          // a leader is known and this node has caught up with it since its start
	Members       []Member
}

// Member is one node of the cell as another sees it.
type Member struct {
	ID, Addr     string
	Voter        bool
	Leader       bool
	AppliedIndex uint64        // on the leader: what the member is known to have in its log; of this node: applied
	LastContact  time.Duration // on the leader: since the member last answered
}

// Status returns what this node knows. It is cheap, never waits for anybody, and works on a stopped node too.
func (n *Node) Status() Status {
	s := Status{ID: n.opts.ID, Cell: n.opts.Cell, Role: RoleFollower}
	select {
	case <-n.running:
	default:
		if n.stopped() {
			s.Role = RoleStopped
		}
		return s
	}
	r := n.raft.Load()
	route := n.proposer.route()
	root := n.fsm.root.Load()
	counts := root.Counts()
	s.Term, s.CommitIndex, s.AppliedIndex = r.CurrentTerm(), r.CommitIndex(), root.Index()
	s.Revision, s.Epoch = root.Revision(), root.Epoch()
	s.Sessions, s.Locks, s.Waiters, s.Entries = counts.Sessions, counts.Locks, counts.Waiters, counts.Entries
	s.Watchers = n.fsm.watches.count()
	s.LogBytes, s.SnapshotBytes = n.store.logBytes(), n.store.snapshotBytes()
	leader := route.server
	if route.lead != nil {
		leader = n.server
	}
	s.LeaderID = nodeID(leader)
	_, err := n.age()
	s.Ready = leader != "" && err == nil
	if last := r.LastContact(); leader != n.server && !last.IsZero() {
		s.LastContact = time.Since(last)
	}
	voter := false
	for _, m := range n.configuration().Servers {
		member := Member{ID: nodeID(m.ID), Addr: string(m.Address), Voter: m.Suffrage == raft.Voter, Leader: m.ID == leader}
		if m.ID == n.server {
			voter = member.Voter
			member.AppliedIndex = root.Index()
		} else if route.lead != nil {
			member.AppliedIndex, member.LastContact, _ = n.transport.matched(m.ID)
		}
		s.Members = append(s.Members, member)
	}
	switch {
	case n.stopped():
		s.Role, s.Ready = RoleStopped, false
	case r.State() == raft.Leader:
		s.Role = RoleLeader
	case r.State() == raft.Candidate:
		s.Role = RoleCandidate
	case !voter:
		s.Role = RoleNonvoter
	}
	return s
}

// Check verifies every invariant that the state applied on this node can name, and names each violation. It waits until
// the cell is founded, and returns ErrClosed or the error of ctx otherwise.
func (n *Node) Check(ctx context.Context) error {
	var err error
	select {
	case <-n.running:
	case <-n.stopping:
	case <-ctx.Done():
	}
	switch { // of several that are so, always the same one counts
	case n.stopped():
		err = n.stopCause()
	case ctx.Err() != nil:
		err = ctx.Err()
	default:
		err = n.fsm.root.Load().Check()
	}
	if err != nil {
		return &Error{Op: "check", Path: n.opts.ID, Err: err}
	}
	return nil
}
