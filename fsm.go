package chubby

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// fsm is the raft.FSM: it decodes entries, hands their commands to the state machine, and tells those who wait. It has
// no rules of its own.
type fsm struct {
	node    *Node
	machine *state.Machine // used by raft's FSM goroutine only
	root    atomic.Pointer[state.State]
	watches *watchHub
	failed  atomic.Bool // an entry could not be applied: nothing more is

	mu struct {
		sync.Mutex
		changed chan struct{} // closed and replaced when root changes; nil = nobody waits
	}
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(n *Node, first *state.State) *fsm {
	first = first.Indexed(n.opts.Map.index())
	f := &fsm{node: n, machine: state.NewMachine(first), watches: newWatchHub(first.Revision(), watchHistoryBytes)}
	f.root.Store(first)
	return f
}

// Apply is never called by raft, which prefers ApplyBatch.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch executes committed entries. The order at its end is a promise: first the new state is readable, then those
// who wait for an index, then events, then the results of the commands.
//
// It never leaves raft's goroutine by runtime.Goexit, as storage does: the futures behind it would hang and with them
// the proposer. A node that cannot apply an entry fails, and swallows what follows until raft is shut down.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	out := make([]any, len(logs))
	if f.failed.Load() {
		return out
	}
	f.node.gate.Wait()
	// The entries are committed: the followers may hear of it while this node executes them.
	f.node.kick(logs[len(logs)-1].Index)
	type answer struct {
		origin, number uint64
		results        []command.Result
	}
	var answers []answer
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			f.machine.Advance(l.Index, l.Term)
			if l.Type == raft.LogConfiguration {
				f.node.configured(raft.DecodeConfiguration(l.Data))
			}
			continue
		}
		origin, number, results, err := f.applyEntry(l)
		if err != nil {
			f.fail(fmt.Errorf("entry %d of term %d: %w", l.Index, l.Term, err))
			break
		}
		if results != nil {
			answers = append(answers, answer{origin, number, results})
		}
	}
	if f.failed.Load() {
		return out
	}
	root, events := f.machine.Publish()
	if err := f.node.speaks(root); err != nil {
		f.fail(err)
		return out
	}
	f.publish(root)
	f.node.happened(root, events)
	f.watches.publish(root.Revision(), events)
	for _, a := range answers {
		f.node.proposer.settle(a.origin, a.number, a.results)
	}
	f.node.compactor.grew()
	return out
}

// applyEntry executes the commands of one entry. It keeps results only where this process waits for them.
func (f *fsm) applyEntry(l *raft.Log) (origin, number uint64, results []command.Result, err error) {
	defer func() {
		// A panic here is a broken invariant of the state machine. It must stop this node, not the application.
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: the state machine panicked: %v", ErrCorrupt, r)
		}
	}()
	e, err := command.ParseEntry(l.Data)
	if err != nil {
		return 0, 0, nil, undecodable(err)
	}
	ours := e.Origin == f.node.proposer.origin
	if ours {
		results = make([]command.Result, 0, e.N)
	}
	for {
		raw, ok, err := e.Next()
		if err != nil {
			return 0, 0, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if !ok {
			return e.Origin, e.Number, results, nil
		}
		r, err := understood(f.machine, l, raw, f.node.level)
		if err != nil {
			return 0, 0, nil, err
		}
		if ours {
			results = append(results, r)
		}
	}
}

func (f *fsm) fail(err error) {
	f.failed.Store(true)
	f.node.fail(err)
}

// publish makes a root readable and wakes those who wait for it.
func (f *fsm) publish(root *state.State) {
	f.root.Store(root)
	f.mu.Lock()
	if f.mu.changed != nil {
		close(f.mu.changed)
		f.mu.changed = nil
	}
	f.mu.Unlock()
}

// at waits until everything up to index is applied here and returns a root that has it.
func (f *fsm) at(ctx context.Context, index uint64) (*state.State, error) {
	return f.wait(ctx, func(root *state.State) bool { return root.Index() >= index })
}

// atRevision waits for a revision instead.
func (f *fsm) atRevision(ctx context.Context, revision uint64) (*state.State, error) {
	return f.wait(ctx, func(root *state.State) bool { return root.Revision() >= revision })
}

func (f *fsm) wait(ctx context.Context, has func(*state.State) bool) (*state.State, error) {
	for {
		if root := f.root.Load(); has(root) {
			return root, nil
		}
		f.mu.Lock()
		if f.mu.changed == nil {
			f.mu.changed = make(chan struct{})
		}
		changed := f.mu.changed
		f.mu.Unlock()
		// Once more: the root may have changed before there was a channel to close.
		if root := f.root.Load(); has(root) {
			return root, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-f.node.stopping:
			return nil, f.node.stopCause()
		}
	}
}

// Snapshot takes the root, in O(1) at any size.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.failed.Load() {
		return nil, errors.New("the state machine has failed")
	}
	return rootSnapshot{f.root.Load()}, nil
}

// Restore replaces the state by a snapshot's. Readers keep the old root until the new one is whole.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	root, err := state.Read(r)
	switch {
	case errors.Is(err, state.ErrVersion):
		err = fmt.Errorf("snapshot: %w; %s", err, newerRelease)
	case err != nil:
		err = fmt.Errorf("%w: snapshot: %w", ErrCorrupt, err)
	default:
		err = f.node.speaks(root)
	}
	if err != nil {
		f.fail(err)
		return err
	}
	if old := f.root.Load(); root.Cell() != old.Cell() || root.Epoch() != old.Epoch() {
		err = fmt.Errorf("%w: the snapshot is of cell %q, epoch %d; this node is of %q, epoch %d", ErrWrongCell, root.Cell(), root.Epoch(), old.Cell(), old.Epoch())
		f.fail(err)
		return err
	}
	root = root.Indexed(f.node.opts.Map.index())
	f.machine = state.NewMachine(root)
	if list, err := f.node.store.snapshots().List(); err == nil && len(list) > 0 {
		f.node.configured(list[0].Configuration) // no entry will tell of it
	}
	f.publish(root)
	f.node.jumped(root)
	f.watches.jumped(root.Revision())
	return nil
}

// rootSnapshot is a root on its way to disk.
type rootSnapshot struct{ root *state.State }

// Persist writes it; entries applied meanwhile do not touch it.
func (s rootSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.root.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Release frees nothing: the root is collected when nobody has it.
func (s rootSnapshot) Release() {}
