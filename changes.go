package chubby

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// settledBeats is for how many half heartbeats in a row a nonvoter must have had what was committed half a heartbeat
// earlier before it gets a vote. A voter that lags would be counted for the majority without being able to help it.
const settledBeats = 6

// changer is the cell leader's part in changes of members. There is one for each leadership, and it lets one change of the
// configuration begin at a time.
//
// Since the leadership's barrier is applied, everything in the log before it is committed; so as long as no change of
// this changer is under way, raft's latest configuration is committed.
type changer struct {
	lead *leadership
	mu   struct {
		sync.Mutex
		busy  string // what is under way; "" = nothing
		begun uint64 // counts what began
	}
}

// serve does what a call asks for. Its errors follow the rule of three outcomes, errNotLeader among those that mean
// "certainly not".
func (c *changer) serve(ctx context.Context, q *wire.MemberCall) (*wire.MemberAnswer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.lead.ctx, cancel)()
	var state uint8
	var err error
	switch q.Op {
	case wire.MemberList:
		err = c.lead.confirmer.confirm(ctx)
	case wire.MemberAdd:
		state, err = c.add(ctx, q)
	case wire.MemberRemove:
		state, err = c.remove(ctx, raft.ServerID(q.Server))
	case wire.MemberTransfer:
		if c.lead.node.server == raft.ServerID(q.ID) { // else it has been handed over already
			to := raft.ServerID(q.Server)
			if to == "" {
				best, _ := c.lead.node.successor()
				to = best.ID
			}
			if err = errNoRoom(to); c.lead.confirmer.room(to) <= roomEnough {
				err = c.transfer(ctx, raft.ServerID(q.Server))
			}
		}
	case wire.MemberAnnounce:
		state, err = c.announce(ctx, q)
	default:
		err = fmt.Errorf("%w: membership call %d", errBadMessage, q.Op)
	}
	if err != nil {
		if c.lead.ctx.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, ErrUncertain) {
			err = errNotLeader
		}
		return nil, err
	}
	return c.answer(state), nil
}

// answer tells how the cell stands.
func (c *changer) answer(state uint8) *wire.MemberAnswer {
	n := c.lead.node
	a := &wire.MemberAnswer{State: state, Cell: *n.transport.cell.Load(), Epoch: n.epoch()}
	for _, s := range n.configuration().Servers {
		m := wire.MemberServer{Server: string(s.ID), Addr: string(s.Address), Voter: s.Suffrage == raft.Voter}
		if s.ID == n.server {
			m.Leader, m.Index = true, n.fsm.root.Load().Index()
		} else {
			index, silent, _ := n.transport.matched(s.ID)
			m.Index, m.Silent = index, uint64(max(silent, 0))
		}
		a.Servers = append(a.Servers, m)
	}
	return a
}

func stateOf(s raft.Server) uint8 {
	if s.Suffrage == raft.Voter {
		return wire.MemberVoter
	}
	return wire.MemberNonvoter
}

// begin claims the one place for a change, or says who has it.
func (c *changer) begin(what string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.busy != "" {
		return fmt.Errorf("%w: one change of members at a time, and %s is under way", ErrConflict, c.mu.busy)
	}
	c.mu.busy = what
	c.mu.begun++
	return nil
}

func (c *changer) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.busy = ""
}

// settled gives the configuration, and reports whether it is committed.
func (c *changer) settled() (raft.Configuration, bool) {
	c.mu.Lock()
	busy, begun := c.mu.busy != "", c.mu.begun
	c.mu.Unlock()
	conf := c.lead.node.configuration()
	c.mu.Lock()
	defer c.mu.Unlock()
	return conf, !busy && c.mu.begun == begun
}

// offer is one change of the configuration, as raft takes it. timeout bounds how long raft may wait before it takes it.
type offer func(r *raft.Raft, timeout time.Duration) raft.IndexFuture

// change lets decide look at the configuration, offers raft what it decided, and returns when that is applied here. decide
// may decide on nothing.
func (c *changer) change(ctx context.Context, what string, decide func(raft.Configuration) (offer, error)) error {
	n := c.lead.node
	if err := c.begin(what); err != nil {
		return err
	}
	o, err := decide(n.configuration())
	if err == nil && o != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil || o == nil {
		c.end()
		return err
	}
	done := make(chan error, 1)
	if !n.offer(func() {
		err := n.promise(o(n.raft.Load(), n.opts.ElectionTimeout))
		c.end()
		done <- err
	}) {
		c.end()
		return errNotLeader
	}
	select {
	case err = <-done:
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUncertain, ctx.Err())
	}
	switch {
	case err == nil:
		n.log.Info("members changed", "by", what)
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errNotLeader
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: an earlier change of members is not committed yet", ErrNoQuorum)
	}
	return fmt.Errorf("%w: %w", ErrUncertain, err)
}

// add takes a node in as a nonvoter, or brings one that has been taken in to its vote. It may return before the node has
// what it is to get.
func (c *changer) add(ctx context.Context, q *wire.MemberCall) (uint8, error) {
	n := c.lead.node
	conf := n.configuration()
	m, known := findNode(conf, q.ID)
	server := raft.ServerID(q.Server)
	var level uint32 // of a node that is new
	if !known || server == "" {
		// Who is there? The answer also proves that the address is right, and that a certificate is a server's.
		there, fresh, has, err := c.inspect(ctx, q.ID, q.Addr)
		switch {
		case err != nil && known: // a member that is down stays what it is
		case err != nil:
			return 0, err
		case !known && server != "" && server != there:
			return 0, fmt.Errorf("%w: %s answers at %s, not %s", ErrWrongCell, there, q.Addr, server)
		case !known && !fresh:
			return 0, fmt.Errorf("%w: node %s at %s is not fresh, or was opened without Join; give it an empty directory and Join", ErrWrongCell, q.ID, q.Addr)
		default:
			server, level = there, has
		}
	}
	switch {
	case known && server != "" && server != m.ID:
		return 0, errOtherDisk(q.ID)
	case !known:
		addr := raft.ServerAddress(q.Addr)
		err := c.change(ctx, "taking in "+q.ID, func(conf raft.Configuration) (offer, error) {
			if s, ok := findNode(conf, q.ID); ok {
				if s.ID != server {
					return nil, errOtherDisk(q.ID)
				}
				return nil, nil
			}
			// The level is not raised while a change has its place, so this stays true.
			if need := n.fsm.root.Load().Level(); level < need {
				return nil, fmt.Errorf("%w: the cell uses feature level %d, and the release of %s knows those up to %d; open it with the release that the members run", ErrConflict, need, q.ID, level)
			}
			if other, ok := findAddr(conf, addr); ok {
				return nil, fmt.Errorf("%w: %s is the address of member %s; remove that first, if %s takes its place", ErrConflict, addr, nodeID(other.ID), q.ID)
			}
			return func(r *raft.Raft, timeout time.Duration) raft.IndexFuture {
				return r.AddNonvoter(server, addr, 0, timeout)
			}, nil
		})
		return wire.MemberNonvoter, err
	case !q.Vote || m.Suffrage == raft.Voter:
		return stateOf(m), nil
	}
	return c.promote(ctx, m)
}

// findAddr finds who has an address.
func findAddr(conf raft.Configuration, addr raft.ServerAddress) (raft.Server, bool) {
	for _, s := range conf.Servers {
		if s.Address == addr {
			return s, true
		}
	}
	return raft.Server{}, false
}

// inspect asks who listens at addr. It fails unless that is node id, of a cell of this name. fresh means that it belongs to
// no cell and waits to be taken in.
func (c *changer) inspect(ctx context.Context, id, addr string) (server raft.ServerID, fresh bool, level uint32, err error) {
	n := c.lead.node
	ctx, cancel := context.WithTimeout(ctx, n.callTimeout()/2)
	defer cancel()
	who, b, err := n.transport.callAddr(ctx, addr, wire.KindFound, nil)
	if err != nil {
		return "", false, 0, fmt.Errorf("node %s at %s: %w", id, addr, err)
	}
	a, err := parseFoundAnswer(b)
	switch {
	case err != nil:
		return "", false, 0, fmt.Errorf("node %s at %s: %w", id, addr, err)
	case a.Cell != n.opts.Cell:
		return "", false, 0, fmt.Errorf("%w: the node at %s belongs to cell %q, not %q", ErrWrongCell, addr, a.Cell, n.opts.Cell)
	case a.ID != id || who.ID != id || a.Server != who.Server || nodeID(a.Server) != id:
		return "", false, 0, fmt.Errorf("%w: node %q answers at %s, not %q", ErrWrongCell, a.ID, addr, id)
	}
	return a.Server, a.Joins, who.Level, nil
}

// promote gives a nonvoter its vote once it has caught up and stayed so. After about half a call's time it gives up for
// now.
func (c *changer) promote(ctx context.Context, m raft.Server) (uint8, error) {
	n := c.lead.node
	r := n.raft.Load()
	beat := time.NewTicker(n.opts.HeartbeatTimeout / 2)
	defer beat.Stop()
	enough := time.NewTimer(n.callTimeout() / 2)
	defer enough.Stop()
	due := r.CommitIndex()
	for settled := 0; settled < settledBeats; {
		select {
		case <-beat.C:
		case <-enough.C:
			return wire.MemberNonvoter, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		index, silent, ok := n.transport.matched(m.ID)
		if ok && index >= due && silent < n.opts.HeartbeatTimeout {
			settled++
		} else {
			settled = 0
		}
		due = r.CommitIndex()
	}
	err := c.change(ctx, "the vote of "+nodeID(m.ID), func(conf raft.Configuration) (offer, error) {
		now, ok := findServer(conf, m.ID)
		voters := 0
		for _, s := range conf.Servers {
			if s.Suffrage == raft.Voter {
				voters++
			}
		}
		switch {
		case !ok:
			return nil, fmt.Errorf("%w: it was removed meanwhile", ErrNotFound)
		case now.Suffrage == raft.Voter:
			return nil, nil
		case voters >= votersMax:
			return nil, fmt.Errorf("%w: the cell has %d voters, and more than %d only make it slow; it stays a nonvoter", ErrConflict, voters, votersMax)
		}
		return func(r *raft.Raft, timeout time.Duration) raft.IndexFuture {
			return r.AddVoter(now.ID, now.Address, 0, timeout)
		}, nil
	})
	return wire.MemberVoter, err
}

// remove removes a server, unless the rest could not decide anything any more.
func (c *changer) remove(ctx context.Context, server raft.ServerID) (uint8, error) {
	n := c.lead.node
	if server == n.server {
		// A leader that removes itself would leave the others to find out that it is gone.
		if voters := n.voters(); len(voters) == 1 && voters[0] == server {
			return 0, errLastVoter(server)
		}
		if err := c.transfer(ctx, ""); err != nil {
			return 0, fmt.Errorf("%s leads the cell and cannot hand over: %w", nodeID(server), err)
		}
		return 0, errNotLeader // the next one does it
	}
	err := c.change(ctx, "removing "+nodeID(server), func(conf raft.Configuration) (offer, error) {
		m, ok := findServer(conf, server)
		if !ok {
			return nil, nil
		}
		if m.Suffrage == raft.Voter {
			if err := c.spare(conf, server); err != nil {
				return nil, err
			}
		}
		return func(r *raft.Raft, timeout time.Duration) raft.IndexFuture {
			return r.RemoveServer(server, 0, timeout)
		}, nil
	})
	return wire.MemberRemoved, err
}

func errLastVoter(server raft.ServerID) error {
	return fmt.Errorf("%w: %s is the last voter; give another member a vote first, or close the node and remove its directory", ErrConflict, nodeID(server))
}

// spare judges whether the cell can do without a voter: of those that would be left, a majority must answer now.
func (c *changer) spare(conf raft.Configuration, server raft.ServerID) error {
	n := c.lead.node
	left, alive, silent := 0, 0, ""
	for _, s := range conf.Servers {
		if s.ID == server || s.Suffrage != raft.Voter {
			continue
		}
		left++
		if _, contact, ok := n.transport.matched(s.ID); s.ID == n.server || ok && contact < n.transport.streamTimeout {
			alive++
		} else {
			silent += " " + nodeID(s.ID)
		}
	}
	switch {
	case left == 0:
		return errLastVoter(server)
	case alive < left/2+1:
		return fmt.Errorf("%w: of the %d voters left without %s only %d would answer, which is no majority (silent:%s); bring one of those back or remove it first; if they are lost for good, close all nodes and use Recover on one", ErrNoQuorum, left, nodeID(server), alive, silent)
	}
	return nil
}

// announce tells a node whether it is a member, and notes a new address of it.
//
// "Removed" is final, so it must be true: the configuration was committed under this leader after the question came, and
// the confirm round proves that no later leader, which might have taken the node in, existed by then.
func (c *changer) announce(ctx context.Context, q *wire.MemberCall) (uint8, error) {
	n := c.lead.node
	if q.Cell != *n.transport.cell.Load() {
		return 0, fmt.Errorf("%w: cell %x, not %x", ErrWrongCell, *n.transport.cell.Load(), q.Cell)
	}
	conf, settled := c.settled()
	if err := c.lead.confirmer.confirm(ctx); err != nil {
		return 0, err
	}
	m, ok := findServer(conf, raft.ServerID(q.Server))
	switch {
	case !ok && settled:
		return wire.MemberRemoved, nil
	case !ok:
		return wire.MemberUnsettled, nil
	case q.Addr == "" || string(m.Address) == q.Addr:
		return stateOf(m), nil
	}
	there, _, _, err := c.inspect(ctx, nodeID(m.ID), q.Addr)
	if err != nil {
		return 0, err
	}
	if there != m.ID {
		return 0, errOtherDisk(nodeID(m.ID))
	}
	return stateOf(m), c.change(ctx, "the new address of "+nodeID(m.ID), func(conf raft.Configuration) (offer, error) {
		now, ok := findServer(conf, m.ID)
		if !ok || string(now.Address) == q.Addr {
			return nil, nil
		}
		to := raft.ServerAddress(q.Addr)
		if other, ok := findAddr(conf, to); ok {
			// This node has just answered there, so the other has moved too. Two that changed places would wait for each
			// other for ever; now it has no address until it tells the new one, and this one asks again.
			now, to = other, raft.ServerAddress("moved/"+other.ID)
		}
		return func(r *raft.Raft, timeout time.Duration) raft.IndexFuture {
			if now.Suffrage == raft.Voter {
				return r.AddVoter(now.ID, to, 0, timeout)
			}
			return r.AddNonvoter(now.ID, to, 0, timeout)
		}, nil
	})
}

// transfer hands leadership to a voter. raft can block for ever in a transfer whose target is not level (hashicorp/raft
// 696), so proposals are paused and the target's log is compared first; everything has its time.
func (c *changer) transfer(ctx context.Context, to raft.ServerID) error {
	n := c.lead.node
	if err := c.begin("a transfer of leadership"); err != nil {
		return err
	}
	defer c.end()
	r := n.raft.Load()
	bounded, cancel := context.WithTimeout(ctx, 2*n.opts.ElectionTimeout)
	defer cancel()
	// First with proposals going on, so that a target that is far behind delays nobody.
	target, err := c.level(bounded, to, r.CommitIndex)
	if err != nil {
		return err
	}
	n.proposer.pause(true)
	defer n.proposer.pause(false)
	for !n.proposer.resting() {
		if err := n.pause(bounded, retryPause/4); err != nil {
			return fmt.Errorf("%w: the last entries are not committed in time", ErrNoQuorum)
		}
	}
	if target, err = c.level(bounded, target.ID, r.LastIndex); err != nil {
		return err
	}
	ended := make(chan error, 1)
	if !n.offer(func() { ended <- n.promise(r.LeadershipTransferToServer(target.ID, target.Address)) }) {
		return errNotLeader
	}
	limit := time.NewTimer(2 * n.opts.ElectionTimeout)
	defer limit.Stop()
	select {
	case err = <-ended:
	case <-limit.C:
		err = errors.New("no answer in time")
	}
	if err != nil && c.lead.stands() {
		return fmt.Errorf("%w: %s did not take over: %w", ErrConflict, nodeID(target.ID), err)
	}
	return nil
}

// level waits until a voter, the best one if to is empty, has everything up to the index that due gave first.
func (c *changer) level(ctx context.Context, to raft.ServerID, due func() uint64) (raft.Server, error) {
	n := c.lead.node
	want := due()
	for {
		target, ok := findServer(n.configuration(), to)
		if to == "" {
			target, _ = n.successor()
			ok = true
		}
		index, silent, answers := n.transport.matched(target.ID)
		switch {
		case !ok:
			return target, fmt.Errorf("%w: no such member", ErrNotFound)
		case target.ID != "" && target.Suffrage != raft.Voter:
			return target, fmt.Errorf("%w: it has no vote; AddVoter gives it one", ErrConflict)
		case answers && silent < n.opts.ElectionTimeout && index >= want:
			return target, nil
		}
		if err := n.pause(ctx, retryPause/4); err != nil {
			switch {
			case c.lead.ctx.Err() != nil:
				return target, errNotLeader
			case target.ID == "":
				return target, fmt.Errorf("%w: no other voter answers", ErrConflict)
			case !answers || silent >= n.opts.ElectionTimeout:
				return target, fmt.Errorf("%w: %s does not answer", ErrConflict, nodeID(target.ID))
			}
			return target, fmt.Errorf("%w: %s is %d entries behind", ErrConflict, nodeID(target.ID), want-min(want, index))
		}
	}
}
