package chubby

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
	"github.com/chubbygo/chubby/internal/wire"
)

// announceOf asks a leadership about a server, as that server does.
func announceOf(lead *leadership, server raft.ServerID, d time.Duration) (*wire.MemberAnswer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return lead.changer.serve(ctx, &wire.MemberCall{
		Op: wire.MemberAnnounce, Cell: *lead.node.transport.cell.Load(), ID: nodeID(server), Server: string(server),
	})
}

// A leader that was deposed without knowing it may not know a node that its successor took in. It must not tell that node
// that it was removed, which would be final.
func TestOnlyALeaderSaysRemoved(t *testing.T) {
	inThree(t, func(t *testing.T, net *memnet.Net, nodes []*Node, lead *Node) {
		l := lead.proposer.route().lead
		if a, err := announceOf(l, "n9.gone", time.Minute); err != nil || a.State != wire.MemberRemoved {
			t.Fatalf("of a stranger, asked in good order: %+v, %v", a, err)
		}
		net.Partition([]string{lead.opts.ID})
		if a, err := announceOf(l, "n9.new", time.Minute); !errors.Is(err, errNotLeader) {
			t.Errorf("a leader without a majority says %+v, %v", a, err)
		}
		net.Heal()
	})
}

// While a change is under way its outcome is open: a removal may yet be lost with its leader.
func TestRemovedOnlyWhenCommitted(t *testing.T) {
	inThree(t, func(t *testing.T, _ *memnet.Net, _ []*Node, lead *Node) {
		l := lead.proposer.route().lead
		if err := l.changer.begin("a test"); err != nil {
			t.Fatal(err)
		}
		if a, err := announceOf(l, "n9.gone", time.Minute); err != nil || a.State != wire.MemberUnsettled {
			t.Errorf("while a change is under way: %+v, %v", a, err)
		}
		l.changer.end()
		if a, err := announceOf(l, "n9.gone", time.Minute); err != nil || a.State != wire.MemberRemoved {
			t.Errorf("after it: %+v, %v", a, err)
		}
		if _, err := l.changer.serve(t.Context(), &wire.MemberCall{Op: wire.MemberAnnounce, Server: "n0.x"}); !errors.Is(err, ErrWrongCell) {
			t.Errorf("of another cell: %v", err)
		}
	})
}

// Changes of members are for members. Who passes the handshake and is none may ask about itself, and about nobody else.
func TestMembersAreChangedByMembers(t *testing.T) {
	inThree(t, func(t *testing.T, _ *memnet.Net, nodes []*Node, lead *Node) {
		remove := wire.AppendMemberCall(nil, &wire.MemberCall{Op: wire.MemberRemove, Server: string(nodes[0].server)})
		for _, from := range []peerInfo{{}, {ID: "n9", Server: "n9.x"}, {ID: "n0", Server: "n0.x"}} {
			if _, err := lead.answerMember(t.Context(), from, remove); !errors.Is(err, ErrPermission) {
				t.Errorf("asked by %q: %v", from.Server, err)
			}
		}
		about := func(op wire.MemberOp, server, name string) []byte {
			return wire.AppendMemberCall(nil, &wire.MemberCall{Op: op, ID: nodeID(raft.ServerID(server)), Server: server, Addr: "n9:1", Name: name})
		}
		n9 := peerInfo{ID: "n9", Server: "n9.x"}
		for _, c := range []struct {
			what  string
			from  peerInfo
			frame []byte
			want  error
		}{
			{"another operation", n9, about(wire.MemberRemove, "n9.x", "local"), ErrPermission},
			{"for another node", n9, about(wire.MemberAdd, "n8.x", "local"), ErrPermission},
			{"a client", peerInfo{}, about(wire.MemberAdd, "", "local"), ErrPermission},
			{"another cell", n9, about(wire.MemberAdd, "n9.x", "other"), ErrWrongCell},
			{"another disk", peerInfo{ID: "n0", Server: "n0.x"}, about(wire.MemberAdd, "n0.x", "local"), ErrWrongCell},
			{"no message", n9, []byte{1}, wire.ErrMessage},
		} {
			if _, err := lead.answerAsk(t.Context(), c.from, c.frame); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.what, err, c.want)
			}
		}
		if _, err := lead.answerMember(t.Context(), n9, []byte{1}); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("no message of a member: %v", err)
		}
		for _, n := range nodes {
			if n != lead {
				if _, err := n.answerMember(t.Context(), peerInfo{ID: "n0", Server: nodes[0].server}, remove); !errors.Is(err, errNotLeader) {
					t.Errorf("asked of a follower: %v", err)
				}
			}
		}
	})
}

// What this node says of its own address is what others can dial.
func TestOwnAddr(t *testing.T) {
	for _, c := range []struct {
		o          Options
		addr, want string
	}{
		{Options{}, "a.x", ""},
		{Options{Listen: "h:1"}, "h:1", "h:1"},
		{Options{Listen: ":1"}, "[::]:1", ""},
		{Options{Listen: "0.0.0.0:1", Peers: map[string]string{"a": "name:1"}}, "0.0.0.0:1", "name:1"},
		{Options{Listen: "10.0.0.1:1", Peers: map[string]string{"a": "name:1"}}, "10.0.0.1:1", "name:1"},
		{Options{Listen: "10.0.0.1:2", Peers: map[string]string{"a": "name:1"}}, "10.0.0.1:2", "10.0.0.1:2"},
		{Options{Listen: ":2", Advertise: "b:3", Peers: map[string]string{"a": "name:3"}}, "b:3", "b:3"},
	} {
		c.o.ID = "a"
		n := &Node{opts: c.o, transport: &transport{address: c.addr}}
		if got := n.ownAddr(); got != c.want {
			t.Errorf("%+v: %q, want %q", c, got, c.want)
		}
	}
}
