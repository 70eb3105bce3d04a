package chubby

import (
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// detector makes this node's raft notice a dead cell leader in time.
//
// By itself a follower of raft looks at its last contact when a random timer of one to two HeartbeatTimeouts fires, and
// when the contact is younger than that, not again before another one: up to three in all. And because followers that
// have not noticed refuse pre-votes, a cell waits for the last of them. So the detector looks when the contact is
// HeartbeatTimeout old, and already at three quarters of that, the leader's own lease, when the leader's control stream
// broke, as it does at once when a process dies. Then it has raft look, by a reloaded timeout, which raft answers by
// letting its timer fire.
//
// A follower that is wrong disturbs nobody: the others still have their leader and refuse it a pre-vote.
type detector struct {
	node *Node
	lost chan raft.ServerID // cap 8: whose control stream broke; more are dropped, the timeout remains
}

func newDetector(n *Node) *detector {
	return &detector{node: n, lost: make(chan raft.ServerID, 8)}
}

// gone is called by the transport when a server's control stream to this node broke. It never blocks.
func (d *detector) gone(id raft.ServerID) {
	select {
	case d.lost <- id:
	default:
	}
}

// run looks until the node stops. It sleeps until the last contact would be too old.
func (d *detector) run() {
	n := d.node
	r := n.raft.Load()
	full := n.opts.HeartbeatTimeout
	short := leaderLease(full)
	var broken raft.ServerID // the leader whose stream broke
	for {
		wait := full
		_, leader := r.LeaderWithID()
		if leader != "" && leader != n.server && r.State() == raft.Follower {
			limit := full
			if leader == broken {
				limit = short
			}
			limit += d.rank(leader) * full / 20
			wait = limit - time.Since(r.LastContact())
			if wait <= 0 {
				n.reloadRaft(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout = full })
				n.reloadRaft(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout = short })
				wait = full
			} else if wait > full/2 {
				n.reloadRaft(func(c *raft.ReloadableConfig) { c.HeartbeatTimeout = full })
			}
		}
		t := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-t.C:
		case broken = <-d.lost:
		case <-n.ctx.Done():
			t.Stop()
			return
		}
		t.Stop()
	}
}

// rank gives followers different moments to look, so that they do not all stand for election in the same one.
func (d *detector) rank(leader raft.ServerID) time.Duration {
	ids := d.node.voters()
	slices.Sort(ids)
	rank := 0
	for _, id := range ids {
		if id == d.node.server {
			break
		}
		if id != leader {
			rank++
		}
	}
	return time.Duration(rank)
}

// leaderLease is how long a leader goes on without hearing from a majority.
func leaderLease(heartbeat time.Duration) time.Duration { return heartbeat * 3 / 4 }

// reloadRaft changes what raft can change while it runs. Several goroutines do.
func (n *Node) reloadRaft(change func(*raft.ReloadableConfig)) {
	n.reload.Lock()
	defer n.reload.Unlock()
	r := n.raft.Load()
	old := r.ReloadableConfig()
	c := old
	change(&c)
	if c == old {
		return
	}
	if err := r.ReloadConfig(c); err != nil {
		n.log.Warn("raft refuses a configuration", "err", err)
	}
}
