package chubby

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/memnet"
	"github.com/chubbygo/chubby/internal/wire"
)

// inThree runs f on a cell of three in a bubble; lead is its leader.
func inThree(t *testing.T, f func(t *testing.T, net *memnet.Net, nodes []*Node, lead *Node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		peers := map[string]string{"n0": "n0:1", "n1": "n1:1", "n2": "n2:1"}
		var nodes []*Node
		for i := range 3 {
			id := fmt.Sprint("n", i)
			n, err := Open(Options{ID: id, Listen: peers[id], Peers: peers, Network: net.Host(id), Hooks: &hook.Hooks{Disk: new(hook.Disk)}})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			nodes = append(nodes, n)
		}
		for {
			for _, n := range nodes {
				if err := n.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n.proposer.route().lead != nil {
					f(t, net, nodes, n)
					return
				}
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// Another node may forward what callers ask for, but not decide in the leader's place. What it sends beside that is done.
func TestForwardedDecisionsAreRefused(t *testing.T) {
	inThree(t, func(t *testing.T, _ *memnet.Net, _ []*Node, lead *Node) {
		id := openSilent(t, lead)
		frame := wire.AppendCommand(nil, true, command.Append(nil, &command.Command{
			Kind: command.KindExpireSessions, Term: lead.proposer.route().lead.term, Sessions: []uint64{id},
		}))
		frame = wire.AppendCommand(frame, true, command.Append(nil, &command.Command{Kind: command.KindAssignSlot, Node: "n9.x"}))
		answer, err := lead.answerForward(t.Context(), peerInfo{}, frame)
		if err != nil {
			t.Fatal(err)
		}
		first, _, rest, err := parseOutcome(answer)
		if err != nil {
			t.Fatal(err)
		}
		second, _, _, err := parseOutcome(rest)
		if err != nil || first != statusRefused || second != statusApplied {
			t.Errorf("outcomes are %d and %d, %v", first, second, err)
		}
		if !lead.hasSession(id) {
			t.Error("a session was expired by somebody who does not lead")
		}
	})
}

// Streams between nodes are for members, also to those who pass the handshake.
func TestRaftStreamsAreForMembers(t *testing.T) {
	inThree(t, func(t *testing.T, net *memnet.Net, nodes []*Node, lead *Node) {
		for _, p := range []purpose{wire.Control, wire.Append, wire.Snapshot, wire.RPC} {
			for _, c := range []struct {
				id     string
				server raft.ServerID
			}{{"n9", "n9.x"}, {"n0", "n0.x"}, {"n0", nodes[0].server}} {
				if nodes[0] == lead && c.id == "n0" {
					c.id, c.server = "n1", nodes[1].server
				}
				w := introduce(t, stranger(t, net, lead.transport), p, func(h *wire.Hello) {
					h.Cell, h.To, h.ID, h.Server = *lead.transport.cell.Load(), string(lead.server), c.id, string(c.server)
				})
				member := c.server == nodes[0].server || c.server == nodes[1].server
				if accepted := w.Fault == nil; accepted != member {
					t.Errorf("%s stream of %s: %+v", p, c.server, w.Fault)
				}
			}
		}
	})
}
