package chubby

import (
	"context"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
)

// RecoverDisk is Recover for a node whose state is in memory.
func RecoverDisk(d *hook.Disk) error { return recoverStore(storeConfig{Disk: d, Whoever: true}) }

// RestoreTemp is what a Restore that died leaves in a directory.
const RestoreTemp = restoreTemp

// ProbeLevel is the feature level of Probe's command.
const ProbeLevel = command.ProbeLevel

// Probe proposes a command of ProbeLevel, as a call of that level would.
func Probe(ctx context.Context, n *Node) error {
	_, err := n.propose(ctx, command.Append(nil, &command.Command{Kind: command.KindProbe}), false, nil)
	return err
}

// ForceProbe brings such a command into the log of the cell that n leads, whatever the cell's level is.
func ForceProbe(n *Node) bool {
	return n.proposer.route().lead.decide(&command.Command{Kind: command.KindProbe})
}

// Level is the cell's feature level as n knows it.
func Level(n *Node) uint32 { return n.fsm.root.Load().Level() }
