package chubby

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// Feature levels let members of different releases form one cell while it is upgraded, one node after the other. Every
// node says in the hello which level it has. The cell's level is part of the state: its leader raises it, by a command, to
// the lowest that all members have, while each of them answers. Only then are commands of that level proposed. A node that
// meets a level beyond its own stops: it could not execute what comes.

// featureLevel is that of this release. A release that adds a command, an operation or a condition, or another form of one,
// has the next level, and names it in command.LevelOf.
const featureLevel = 1

const newerRelease = "a newer release wrote it; open the node with the release that the other members run"

// errTooEarly is what a proposal of a command gets that not every member knows.
func errTooEarly(level uint32) error {
	return fmt.Errorf("%w: commands of feature level %d are used once every member has a release that knows them", ErrConflict, level)
}

// speaks returns an error if a node of the given level cannot execute what may follow a state.
func speaks(root *state.State, level uint32) error {
	if need := root.Level(); need > level {
		return fmt.Errorf("the cell uses feature level %d, this release knows those up to %d; open the node with the release that the other members run", need, level)
	}
	return nil
}

func (n *Node) speaks(root *state.State) error { return speaks(root, n.level) }

// understood executes a command of an entry if a node of the given level knows it.
func understood(m *state.Machine, l *raft.Log, raw []byte, level uint32) (command.Result, error) {
	if need := command.LevelOf(raw); need > level {
		return command.Result{}, fmt.Errorf("a command of feature level %d, this release knows those up to %d; %s", need, level, newerRelease)
	}
	r, err := m.Apply(l.Index, l.Term, raw)
	if err != nil {
		err = undecodable(err)
	}
	return r, err
}

// undecodable says whether an entry is of another release or damaged.
func undecodable(err error) error {
	if errors.Is(err, command.ErrKind) || errors.Is(err, command.ErrVersion) {
		return fmt.Errorf("%w; %s", err, newerRelease)
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// raise raises the cell's level as far as its members allow. It ends when nothing is left to raise.
func (l *leadership) raise() {
	n := l.node
	for n.fsm.root.Load().Level() < n.level {
		t := time.NewTimer(5 * n.opts.HeartbeatTimeout)
		select {
		case <-t.C:
		case <-l.ctx.Done():
			t.Stop()
			return
		}
		// Nobody is taken in meanwhile; see changer.add.
		if l.changer.begin("raising the feature level") != nil {
			continue
		}
		if level := l.lowest(); level > n.fsm.root.Load().Level() {
			if l.decide(&command.Command{Kind: command.KindRaiseLevel, Term: l.term, Level: level}) {
				n.log.Info("feature level raised", "level", level)
			}
		}
		l.changer.end()
	}
}

// lowest gives the lowest level of all members, 0 while one of them does not answer.
func (l *leadership) lowest() uint32 {
	n := l.node
	level := n.level
	for _, s := range n.configuration().Servers {
		if s.ID == n.server {
			continue
		}
		if _, silent, ok := n.transport.matched(s.ID); !ok || silent > 2*n.opts.HeartbeatTimeout {
			return 0
		}
		level = min(level, n.transport.level(s.ID))
	}
	return level
}
