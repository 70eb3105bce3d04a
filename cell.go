package chubby

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// cell is what a Client stands on: the Node in its own process, or a dialled Client's connections to members elsewhere.
// All methods are safe for concurrent use.
type cell interface {
	// propose brings one encoded command into the log and returns the state machine's answer. Its errors follow the rule of
	// three outcomes: without ErrUncertain in the chain, the command has not been and will not be executed. lost, if not
	// nil, is closed when the session that sends the command is gone.
	propose(ctx context.Context, raw []byte, urgent bool, lost <-chan struct{}) (command.Result, error)
	// establish opens a session of which c tells all but id, slot and node.
	establish(ctx context.Context, c *command.Command) (established, error)
	// renew carries one KeepAlive to the cell leader and gives its answer.
	renew(ctx context.Context, k *wire.KeepAlive) ([]byte, error)
	// query asks a state that has everything acknowledged, by anybody, before the call.
	query(ctx context.Context, q wire.Query) (wire.Answer, error)
	// peek asks the memory of the nearest member, which has revision seen at least. The entry of path alone is what FastGet
	// wants, and must cost nothing more.
	peek(ctx context.Context, q wire.Query, seen uint64) (wire.Answer, time.Duration, error)
	peekEntry(ctx context.Context, path string, seen uint64) (glimpse, error)
	// register begins a watch, after whatever was acknowledged before the call, which is up to revision now at least.
	register(ctx context.Context, key topicKey, from uint64) (w watcher, now uint64, err error)

	// spawn runs f in a goroutine that Close waits for. It reports false, and does not run f, when it is too late for that.
	spawn(f func()) bool
	life() context.Context   // ends when the Client's own goroutines must
	halted() <-chan struct{} // closed when calls must return
	stopCause() error        // what calls return then
	lostCause() error        // what a call returns when its session ended under it
	explain(err error) error // adds to a context's error what the call was waiting for
	Close() error
}

// established is a session that was opened.
type established struct {
	id       uint64
	epoch    uint64        // of the cell that it is a session of
	sent     time.Duration // Clock.Boot: before the first copy of its opening was sent
	revision uint64
}

// glimpse is an entry as a member's memory has it.
type glimpse struct {
	entry    command.Entry // Stat.Instance 0: there is none
	revision uint64
	age      time.Duration
}

// watcher is a registered watch. It belongs to the goroutine that loops over it, except for close.
type watcher interface {
	// next waits for the events of the next revision that has some for the watch, or for led: another node leads the cell.
	// It returns ErrLagged, the error of ctx, or why the node or client stopped.
	next(ctx context.Context) (sight, error)
	// rejoin goes on from the present, past all that was missed.
	rejoin(ctx context.Context) error
	close()
}

// sight is what a watcher was given at once.
type sight struct {
	led    bool
	done   uint64         // everything up to this revision has been given
	events []*state.Event // of one revision; valid until the next call
}

// terms are what a Client works by. They never change.
type terms struct {
	principal string // who asks, in each command
	cell      string // the cell's name
	name      string // of the default session
	limits    Limits
	lease     time.Duration
	grace     time.Duration
	heartbeat time.Duration
	clock     hook.Clock
	log       *slog.Logger
}

// The Node as a cell. What is missing here is in propose.go and chubby.go.
var _ cell = (*Node)(nil)

func (n *Node) life() context.Context   { return n.ctx }
func (n *Node) halted() <-chan struct{} { return n.stopping }

func (n *Node) query(ctx context.Context, q wire.Query) (wire.Answer, error) {
	root, err := n.read(ctx)
	if err != nil {
		return wire.Answer{}, err
	}
	if q.Kind == wire.QueryHandle && root.Key() == "" {
		// The first handle of the cell. Whoever brings a key first gives it to the cell.
		c := command.Command{Kind: command.KindCellKey}
		rand.Read(c.Key[:])
		if _, err := n.propose(ctx, command.Append(nil, &c), false, nil); err != nil {
			return wire.Answer{}, err
		}
		if root, err = n.read(ctx); err != nil {
			return wire.Answer{}, err
		}
	}
	return ask(root, q), nil
}

func (n *Node) peek(ctx context.Context, q wire.Query, seen uint64) (wire.Answer, time.Duration, error) {
	root, age, err := n.recent(ctx, seen)
	if err != nil {
		return wire.Answer{}, 0, err
	}
	return ask(root, q), age, nil
}

func (n *Node) peekEntry(ctx context.Context, path string, seen uint64) (glimpse, error) {
	root, age, err := n.recent(ctx, seen)
	if err != nil {
		return glimpse{}, err
	}
	if !root.Allowed(n.opts.ID, path, command.RightRead) {
		return glimpse{}, permissionError(n.opts.ID, path, command.RightRead)
	}
	g := glimpse{revision: root.Revision(), age: age}
	g.entry, _ = root.Get(path)
	return g, nil
}

// recent gives the state in this node's memory, not older than revision seen, and how old it may be.
func (n *Node) recent(ctx context.Context, seen uint64) (*state.State, time.Duration, error) {
	if n.stopped() {
		return nil, 0, n.stopCause()
	}
	// The age is taken before the root, which can only be newer.
	age, err := n.age()
	if err != nil && seen > 0 {
		// Whoever asks has had an answer already, by a write or by another read, so the cell can be asked how far to be.
		asked := n.clock.Boot()
		if _, err = n.read(ctx); err == nil {
			age = n.clock.Boot() - asked
		}
	}
	if err != nil {
		return nil, 0, err
	}
	root := n.fsm.root.Load()
	if root.Revision() < seen {
		root, err = n.fsm.atRevision(ctx, seen)
	}
	return root, age, err
}

func (n *Node) establish(ctx context.Context, c *command.Command) (established, error) {
	slot, err := n.slot(ctx)
	if err != nil {
		return established{}, err
	}
	c.Slot, c.Node = slot, string(n.server)
	rand.Read(c.Nonce[:])
	for {
		if c.Session, err = n.ids.next(slot); err != nil {
			return established{}, err
		}
		// The lease counts from the first sending of this id: every copy of the command asks for the same promise.
		e := established{id: c.Session, epoch: n.epoch(), sent: n.clock.Boot()}
		r, err := n.propose(ctx, command.Append(nil, c), false, nil)
		if err != nil {
			return established{}, err
		}
		switch r.Code {
		case command.OK:
			e.revision = r.Revision
			return e, nil
		case command.SessionRefused:
			n.ids.raise(r.Floor) // ids up to there were used, by this clock before it went back or by a former run
		default:
			return established{}, codeError(r.Code)
		}
	}
}

// renew waits for a cell leader rather than fail: whoever asks would ask again and again, and thousands of clients that do
// so keep a busy cell from its election.
func (n *Node) renew(ctx context.Context, k *wire.KeepAlive) ([]byte, error) {
	to := n.proposer.route()
	for to.lead == nil && to.server == "" {
		select {
		case <-to.changed:
		case <-n.stopping:
			return nil, n.stopCause()
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", ErrNoLeader, ctx.Err())
		}
		to = n.proposer.route()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(to.ctx, cancel)()
	if to.lead != nil {
		return to.lead.leases.keepAlive(ctx, k)
	}
	return n.transport.call(ctx, to.server, wire.KindKeepAlive, wire.AppendKeepAlive(nil, k))
}

// answerKeepAlive is the leader's side, for other nodes.
func (n *Node) answerKeepAlive(ctx context.Context, _ peerInfo, question []byte) ([]byte, error) {
	lead := n.proposer.route().lead
	if lead == nil || n.stalled() {
		return nil, errNotLeader
	}
	k, err := wire.ParseKeepAlive(question)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadMessage, err)
	}
	return lead.leases.keepAlive(ctx, &k)
}

func (n *Node) register(ctx context.Context, key topicKey, from uint64) (watcher, uint64, error) {
	return n.registerFor(ctx, n.opts.ID, key, from)
}

func (n *Node) registerFor(ctx context.Context, principal string, key topicKey, from uint64) (watcher, uint64, error) {
	root, err := n.read(ctx)
	if err != nil {
		return nil, 0, err
	}
	if !root.Allowed(principal, key.path, command.RightRead) {
		return nil, 0, permissionError(principal, key.path, command.RightRead)
	}
	w, err := n.fsm.watches.register(key, from, root.Revision(), n.opts.Limits.Watchers)
	if err != nil {
		return nil, 0, err
	}
	return &nodeWatch{w, n, principal}, root.Revision(), nil
}

// nodeWatch is a watch on this node.
type nodeWatch struct {
	*watch
	node      *Node
	principal string // who is told
}

func (w *nodeWatch) next(ctx context.Context) (sight, error) {
	for {
		led, err := w.watch.next(ctx, w.node)
		s := sight{led: led, done: w.done, events: w.visible()}
		if err != nil || led || len(s.events) > 0 || len(w.found) == 0 {
			return s, err
		}
	}
}

// visible gives those of the events found whose entries the watcher may read, by the lists as they are now.
func (w *nodeWatch) visible() []*state.Event {
	root := w.node.fsm.root.Load()
	hidden := func(e *state.Event) bool { return !root.Allowed(w.principal, e.Path, command.RightRead) }
	if !root.Guarded() || !slices.ContainsFunc(w.found, hidden) {
		return w.found
	}
	return slices.DeleteFunc(slices.Clone(w.found), hidden)
}

func (w *nodeWatch) rejoin(context.Context) error {
	w.watch.rejoin()
	return nil
}
