package chubby

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// Node is a member of a cell, running inside this process. It is also a Client whose reads and writes need no network
// hop where that is possible. All methods are safe for concurrent use.
type Node struct {
	*Client

	opts   Options // with defaults; Peers and Secret are copies
	log    *slog.Logger
	clock  hook.Clock
	gate   *hook.Gate
	server raft.ServerID // ID + "." + incarnation
	level  uint32        // feature level

	store     *store
	transport *transport
	fsm       *fsm                      // set before raft runs
	raft      atomic.Pointer[raft.Raft] // nil until the cell is founded
	proposer  *proposer
	reader    *reader
	compactor *compactor
	detector  *detector
	space     *space
	guests    *guests
	reload    sync.Mutex             // raft's reloadable configuration
	leases    atomic.Pointer[leases] // while this node leads the cell
	freshness freshness
	registrar registrar
	ids       sessionIDs
	slotKnown atomic.Uint64 // slot + 1; 0 = not asked yet
	founder   founder

	leaderNews chan struct{} // cap 1: raft's state or leader may have changed
	notify     chan bool     // raft.Config.NotifyCh
	running    chan struct{} // closed when raft runs
	raftEnded  chan struct{} // closed when raft has ended, or never ran and will not

	// ctx ends when the node's own goroutines must. It ends after stopping is closed, which is when calls must.
	ctx      context.Context
	cancel   context.CancelFunc
	stopping chan struct{}
	done     chan struct{}
	wg       sync.WaitGroup // the node's goroutines, except the proposer's
	proposes sync.WaitGroup // the proposer's

	mu struct {
		sync.Mutex
		noSpawn bool // wg is being waited for
		started bool // stop has begun
		closing bool // because of Close
		fault   error
	}
}

// Open starts a node. It does not wait for peers: WaitReady does.
//
// It returns ErrBadOptions with all that is wrong, ErrInsecureListen, ErrInUse, ErrWrongCell or ErrCorrupt for a
// directory that is not this node's or not what it wrote, ErrRemoved for that of a node that was removed from its cell,
// and the errors of listening. Whoever gets a node must Close it.
func Open(opts Options) (*Node, error) {
	o := opts.withDefaults()
	if err := o.validate(); err != nil {
		return nil, &Error{Op: "open", Path: opts.Dir, Err: err}
	}
	n, err := open(o)
	if err != nil {
		return nil, &Error{Op: "open", Path: opts.Dir, Err: err}
	}
	return n, nil
}

func open(o Options) (_ *Node, err error) {
	n := &Node{
		opts: o, log: o.Logger.With("node", o.ID), clock: o.Hooks.Clock, gate: o.Hooks.Gate,
		leaderNews: make(chan struct{}, 1), notify: make(chan bool, 1), running: make(chan struct{}),
		raftEnded: make(chan struct{}), stopping: make(chan struct{}), done: make(chan struct{}),
	}
	if n.level = o.Hooks.Level; n.level == 0 {
		n.level = featureLevel
	}
	if n.clock == nil {
		n.clock = hook.SystemClock()
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			n.cancel()
		}
	}()
	security, err := newSecurity(o.TLS, o.Secret, o.ID)
	if err != nil {
		return nil, err
	}
	if err := o.checkExposure(security != nil); err != nil {
		return nil, err
	}
	if n.store, err = openStore(storeConfig{
		Dir: o.Dir, Disk: o.Hooks.Disk, ID: o.ID, Cell: o.Cell, Sync: o.Sync, Boot: cmp.Or(o.Hooks.Boot, hook.MachineBoot()), Gate: o.Hooks.Gate, Fault: o.Hooks.Storage,
		Slow: max(2*o.HeartbeatTimeout, 500*time.Millisecond), Stop: 10 * time.Second, Fail: n.fail, Logger: n.log,
	}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.store.close())
		}
	}()
	id := n.store.identity()
	if id.Removed {
		return nil, errWasRemoved
	}
	n.detector = newDetector(n)
	n.guests = newGuests(n)
	n.registrar.init()
	// A wiped disk is another server: it may have forgotten a vote, or entries that others count on.
	n.server = raft.ServerID(o.ID + "." + id.Incarnation)
	network := o.Network
	if network == nil {
		network = tcpNetwork{}
	}
	if n.transport, err = newTransport(transportConfig{
		Server: n.server, ID: o.ID, Network: network, Listen: o.Listen, Advertise: o.Advertise, Security: security,
		Heartbeat: o.HeartbeatTimeout, Election: o.ElectionTimeout, Level: n.level, Gate: o.Hooks.Gate, Logger: n.log,
		Resolve: n.addresses, Stalled: n.stalled, Gone: n.detector.gone, Authorize: n.authorize, Guest: n.guests.admit,
	}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.transport.Close())
		}
	}()
	var origin [8]byte
	rand.Read(origin[:])
	n.proposer = newProposer(n, binary.LittleEndian.Uint64(origin[:]))
	n.reader = newReader(n)
	n.compactor = newCompactor(n)
	n.space = newSpace(n)
	n.Client = newClient(n, terms{
		principal: o.ID, cell: o.Cell, name: o.ID, limits: o.Limits, lease: o.SessionLease, grace: o.GracePeriod,
		heartbeat: o.HeartbeatTimeout, clock: n.clock, log: n.log,
	})
	n.transport.handle(wire.KindFound, n.answerFound)
	n.transport.handle(wire.KindConfirm, n.answerConfirm)
	n.transport.handle(wire.KindReadIndex, n.answerReadIndex)
	n.transport.handle(wire.KindForward, n.answerForward)
	n.transport.handle(wire.KindKeepAlive, n.answerKeepAlive)
	n.transport.handle(wire.KindMember, n.answerMember)
	n.transport.handle(wire.KindAsk, n.answerAsk)

	switch f, founded := n.store.founding(); {
	case founded:
		err = n.start(cellID(o.Cell, f), f.Epoch)
	case id.Joined:
		n.registrar.trust(n.store.takers())
		err = n.start(id.CellID, id.Epoch)
	case len(o.Join) > 0:
		n.wg.Go(n.join)
	case len(o.Peers) <= 1:
		err = n.foundAlone()
	default:
		n.wg.Go(n.found)
	}
	if err != nil {
		// start may have failed the node, whose stop closes what it has.
		if n.stopped() {
			<-n.done
		}
		return nil, err
	}
	return n, nil
}

// start runs raft on a store that belongs to a cell. It is called once.
func (n *Node) start(cell [16]byte, epoch uint64) error {
	n.transport.setCell(cell)
	first := state.New(n.opts.Cell, epoch)
	n.fsm = newFSM(n, first)
	inspect := func() (index, hash uint64) {
		root := n.fsm.root.Load()
		return root.Index(), root.Hash()
	}
	n.opts.Hooks.Inspect.Store(&inspect)
	var r *raft.Raft
	var err error
	if storeErr := n.store.run(func() {
		r, err = raft.NewRaft(n.raftConfig(), n.fsm, n.store.logs(), n.store.stable(), n.store.snapshots(), n.transport)
	}); storeErr != nil {
		err = storeErr
	}
	if fault := n.Err(); fault != nil {
		return fault // raft does not say why a snapshot could not be restored
	}
	if err != nil {
		return err
	}
	// A follower hears of a leader by observation; this node's own terms come by NotifyCh, on which raft blocks.
	observations := make(chan raft.Observation, 1)
	r.RegisterObserver(raft.NewObserver(observations, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	}))
	n.raft.Store(r)
	n.transport.attach(r)
	n.configured(n.configuration())
	close(n.running)
	n.wg.Go(func() {
		for {
			select {
			case <-n.notify:
			case <-observations:
			case <-n.ctx.Done():
				return
			}
			select {
			case n.leaderNews <- struct{}{}:
			default:
			}
		}
	})
	n.wg.Go(n.track)
	n.wg.Go(n.reader.run)
	n.wg.Go(n.refresh)
	n.wg.Go(n.compactor.run)
	n.wg.Go(n.detector.run)
	n.wg.Go(n.space.run)
	n.wg.Go(n.keeper)
	n.wg.Go(n.enrol)
	n.wg.Go(func() { n.fsm.watches.run(n.ctx) })
	for range proposers {
		n.proposes.Go(n.proposer.run)
	}
	return nil
}

// raftConfig is RAFT.md's, with the reasons there. BatchApplyCh stays false: with an unbuffered channel raft's main
// goroutine either takes an entry, and then answers it, or has ended, and then ApplyLog returns at Shutdown.
func (n *Node) raftConfig() *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = n.server
	c.HeartbeatTimeout = n.opts.HeartbeatTimeout
	c.ElectionTimeout = n.opts.ElectionTimeout
	c.LeaderLeaseTimeout = leaderLease(n.opts.HeartbeatTimeout)
	c.CommitTimeout = n.opts.HeartbeatTimeout / 4 // only for a kick that was lost with its stream
	c.MaxAppendEntries = 64
	c.ShutdownOnRemove = false
	c.SnapshotThreshold = math.MaxUint64 // the compactor counts bytes instead
	c.SnapshotInterval = time.Hour
	c.TrailingLogs = trailingMin
	c.NotifyCh = n.notify
	c.NoLegacyTelemetry = true
	c.Logger = hclog.New(&hclog.LoggerOptions{Name: "raft", Level: hclog.Warn, Output: logWriter{n.log}, DisableTime: true})
	return c
}

// logWriter gives raft's lines to the node's logger.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	w.log.Warn(strings.TrimSpace(string(p)))
	return len(p), nil
}

// WaitReady waits until a leader is known and this node has caught up with everything that was acknowledged before the
// call. With Options.StartAttempts it gives up after so many tries. It returns ErrNoLeader or ErrNoQuorum with what
// founding the cell waits for, ErrClosed, the node's fault, or the error of ctx.
func (n *Node) WaitReady(ctx context.Context) error {
	try := n.opts.StartInterval
	for attempt := 1; ; attempt++ {
		bounded, cancel := ctx, context.CancelFunc(func() {})
		if n.opts.StartAttempts > 0 {
			bounded, cancel = context.WithTimeout(ctx, jitter(try))
		}
		err := n.ready(bounded)
		cancel()
		switch {
		case err == nil:
			return nil
		case n.stopped():
			return &Error{Op: "wait ready", Path: n.opts.ID, Err: n.stopCause()}
		case ctx.Err() != nil, attempt == n.opts.StartAttempts:
			return &Error{Op: "wait ready", Path: n.opts.ID, Err: errors.Join(err, n.founder.obstacle())}
		}
		try = min(2*try, intervalMax)
	}
}

func (n *Node) ready(ctx context.Context) error {
	select {
	case <-n.running:
	case <-n.stopping:
		return n.stopCause()
	case <-ctx.Done():
		return fmt.Errorf("%w: the cell is not founded: %w", ErrNoLeader, ctx.Err())
	}
	_, err := n.read(ctx)
	return err
}

// Done returns a channel that is closed when the node has stopped, by Close or by a fault.
func (n *Node) Done() <-chan struct{} { return n.done }

// Err returns why the node stopped by itself. It is nil before that, and after Close.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.fault
}

// Close stops the node: its sessions end, so that others need not wait for their leases; leadership of the cell goes to
// the member that has caught up best; then everything is closed. It takes at most a few seconds, and leaves no goroutine
// and no file open. Calling it again, from anywhere, waits for the first call. Calls in flight return ErrClosed, with
// ErrUncertain if they may have taken effect.
func (n *Node) Close() error {
	n.mu.Lock()
	first := !n.mu.closing && !n.mu.started
	n.mu.closing = true
	n.mu.Unlock()
	if first {
		if !n.opts.Hooks.Abrupt.Load() {
			n.Client.closeSessions()
			n.handOver()
		}
		n.stop()
	}
	<-n.done // a second caller must not cut the first one's good-bye short
	return nil
}

// fail stops the node because of err. It may be called from any goroutine, raft's too, and does not block.
func (n *Node) fail(err error) {
	n.mu.Lock()
	if n.mu.fault == nil && !n.mu.closing {
		n.mu.fault = err
		n.log.Error("node stops", "err", err)
	}
	n.mu.Unlock()
	n.stop()
}

// stop begins the node's end, once, in a goroutine that Done waits for.
func (n *Node) stop() {
	n.mu.Lock()
	begun := n.mu.started
	n.mu.started = true
	n.mu.Unlock()
	if begun {
		return
	}
	close(n.stopping)
	go n.shutdown()
}

// shutdown ends everything, callers first and storage last. The proposer's goroutines are given the time to learn what
// became of their entries before raft is shut down, after which it forgets some of them. They always can: what cannot
// commit is answered when the leader steps down, which it does within its lease of losing its quorum.
func (n *Node) shutdown() {
	defer close(n.done)
	n.proposer.close()
	n.Client.close()
	// After a fault raft's main goroutine may have ended, and only Shutdown answers then.
	if n.Err() == nil && !waitFor(&n.proposes, 2*n.opts.ElectionTimeout+time.Second) {
		n.log.Warn("raft does not answer; shutting it down all the same")
	}
	n.cancel()
	var shut raft.Future
	if r := n.raft.Load(); r != nil {
		shut = r.Shutdown()
	}
	if err := n.transport.Close(); err != nil {
		n.log.Warn("closing the transport", "err", err)
	}
	if shut != nil {
		if err := shut.Error(); err != nil {
			n.log.Warn("shutting raft down", "err", err)
		}
	}
	close(n.raftEnded)
	n.mu.Lock()
	n.mu.noSpawn = true
	n.mu.Unlock()
	n.wg.Wait()
	n.proposes.Wait()
	if err := n.store.close(); err != nil {
		n.log.Warn("closing the store", "err", err)
	}
}

// waitFor waits for wg, but not longer than d.
func waitFor(wg *sync.WaitGroup, d time.Duration) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// handOver gives leadership of the cell to the voter that has caught up best, if this node has it. Proposals are
// paused first: raft can block for ever in a transfer whose target is not level (hashicorp/raft 696).
func (n *Node) handOver() {
	r := n.raft.Load()
	if r == nil || n.proposer.route().lead == nil {
		return
	}
	n.proposer.close()
	if !waitFor(&n.proposes, 2*n.opts.ElectionTimeout) {
		return
	}
	best, bestIndex := n.successor()
	if best.ID == "" || bestIndex < r.LastIndex() {
		return
	}
	transfer := r.LeadershipTransferToServer(best.ID, best.Address)
	ended := make(chan error, 1)
	n.spawn(func() { ended <- n.promise(transfer) })
	t := time.NewTimer(2 * n.opts.ElectionTimeout)
	defer t.Stop()
	select {
	case err := <-ended:
		if err != nil {
			n.log.Warn("leadership of the cell was not handed over", "err", err)
		}
	case <-t.C:
	}
}

// successor is the voter that could lead best, and what it has in its log; without an ID if none answers. One whose disk
// is nearly full leads only if there is no other.
func (n *Node) successor() (best raft.Server, index uint64) {
	if l := n.proposer.route().lead; l != nil {
		defer func() {
			if best.ID == "" || l.confirmer.room(best.ID) <= roomEnough {
				return
			}
			if id := n.roomier(l); id != "" {
				best, _ = findServer(n.configuration(), id)
				index, _, _ = n.transport.matched(id)
			}
		}()
	}
	for _, s := range n.configuration().Servers {
		if s.ID == n.server || s.Suffrage != raft.Voter {
			continue
		}
		if i, contact, ok := n.transport.matched(s.ID); ok && contact < n.opts.ElectionTimeout && (best.ID == "" || i > index) {
			best, index = s, i
		}
	}
	return best, index
}

// offer runs f, which waits for what raft makes of an offer, among the proposer's goroutines, which shutdown gives the
// time to learn that. It reports false, and does not run f, when that has begun.
func (n *Node) offer(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.started || n.mu.closing {
		return false
	}
	n.proposes.Go(f)
	return true
}

// spawn runs f in a goroutine that stop waits for. It reports false, and does not run f, when the node has stopped.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.noSpawn || n.ctx.Err() != nil {
		return false
	}
	n.wg.Go(f)
	return true
}

// stopped reports whether calls must return.
func (n *Node) stopped() bool {
	select {
	case <-n.stopping:
		return true
	default:
		return false
	}
}

// stopCause is what calls on a node that stops return: ErrClosed, with the fault if there was one.
func (n *Node) stopCause() error {
	if err := n.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return ErrClosed
}

// lostCause is what a call returns when its session ended under it: ErrClosed if that is because the node is closed.
func (n *Node) lostCause() error {
	n.mu.Lock()
	closing := n.mu.closing || n.mu.started
	n.mu.Unlock()
	if closing {
		return n.stopCause()
	}
	return ErrSessionExpired
}

// stalled reports whether the disk has kept a write for so long that this node should not lead.
func (n *Node) stalled() bool { return n.store.stalled() }

// epoch is the cell's. It is asked for only after the cell was founded.
func (n *Node) epoch() uint64 { return n.fsm.root.Load().Epoch() }

// callTimeout bounds one call to a member that is silent but not known to be gone.
func (n *Node) callTimeout() time.Duration { return max(5*time.Second, 10*n.opts.HeartbeatTimeout) }

// configuration is raft's latest.
func (n *Node) configuration() raft.Configuration {
	f := n.raft.Load().GetConfiguration()
	if f.Error() != nil {
		return raft.Configuration{}
	}
	return f.Configuration()
}

// configured is called when a configuration has been applied.
func (n *Node) configured(c raft.Configuration) { n.transport.setPeers(c.Servers) }

// kick lets the followers know of a commit at once.
func (n *Node) kick(index uint64) { n.transport.kick(index) }

// happened is called by the fsm when root has become readable.
func (n *Node) happened(root *state.State, events []state.Event) {
	n.aged(root)
	if len(events) == 0 {
		return
	}
	if l := n.leases.Load(); l != nil {
		l.happened(root, events)
		l.lead.caches.happened(events)
	}
	n.Client.happened(events)
	n.guests.happened(events)
}

// jumped is called by the fsm when a snapshot's root has become readable.
func (n *Node) jumped(root *state.State) {
	n.aged(root)
	n.Client.jumped(root)
	n.guests.jumped()
}

// nodeID is the part of a raft ServerID that people gave.
func nodeID(id raft.ServerID) string {
	if i := strings.LastIndexByte(string(id), '.'); i >= 0 {
		return string(id[:i])
	}
	return string(id)
}
