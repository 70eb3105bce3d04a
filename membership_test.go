package chubby_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/memnet"
)

// load writes on a node until it is told to stop, and remembers what was acknowledged.
type load struct {
	t     *testing.T
	stop  chan struct{}
	wg    sync.WaitGroup
	mu    sync.Mutex
	acked []string
	worst time.Duration // that a write took
}

func newLoad(t *testing.T) *load { return &load{t: t, stop: make(chan struct{})} }

// on writes through n, one write after the other. Errors are the end of it only if n stops.
func (l *load) on(name string, n *chubby.Node) {
	l.wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-l.stop:
				return
			default:
			}
			path := fmt.Sprintf("/load/%s/%d", name, i)
			start := time.Now()
			_, err := n.Set(context.Background(), path, []byte(path))
			if errors.Is(err, chubby.ErrClosed) || errors.Is(err, chubby.ErrSessionExpired) {
				return // the node was removed or closed under it
			}
			if err != nil {
				l.t.Errorf("write of %s: %v", path, err)
				return
			}
			l.mu.Lock()
			l.acked = append(l.acked, path)
			l.worst = max(l.worst, time.Since(start))
			l.mu.Unlock()
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// check ends the load and wants everything that was acknowledged on each of the nodes.
func (l *load) check(nodes ...*chubby.Node) {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	if len(l.acked) == 0 {
		l.t.Error("nothing was written")
	}
	for _, n := range nodes {
		if err := n.WaitReady(within(l.t, time.Minute)); err != nil {
			l.t.Fatal(err)
		}
		for _, path := range l.acked {
			if e, err := n.FastGet(l.t.Context(), path); err != nil || string(e.Data) != path {
				l.t.Fatalf("%s on %s after it was acknowledged: %q, %v", path, n.Status().ID, e.Data, err)
			}
		}
	}
}

// votersOf waits until n's leader has exactly these voters.
func wantVoters(t *testing.T, n *chubby.Node, want ...string) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		list, err := n.Members(ctx)
		if err != nil {
			t.Fatalf("Members, when %v should vote: %v", want, err)
		}
		var have []string
		for _, m := range list {
			if m.Voter {
				have = append(have, m.ID)
			}
		}
		if sameIDs(have, want) {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("voters are %v, want %v", have, want)
		}
	}
}

func sameIDs(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for _, id := range b {
		if !strings.Contains(" "+strings.Join(a, " ")+" ", " "+id+" ") {
			return false
		}
	}
	return true
}

func wantRemoved(t *testing.T, n *chubby.Node) {
	t.Helper()
	select {
	case <-n.Done():
	case <-time.After(time.Minute):
		t.Fatalf("%s does not notice that it was removed", n.Status().ID)
	}
	if err := n.Err(); !errors.Is(err, chubby.ErrRemoved) {
		t.Errorf("Err of a removed node: %v", err)
	}
}

// A cell grows from one node to three and five and shrinks to three again, its leaders among those who go, while it is
// written to. Nothing that was acknowledged is lost.
func TestGrowAndShrinkUnderLoad(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		l := newLoad(t)
		l.on("n0", cell.Node(0))
		names := []string{"n0"}
		for i := 1; i < 5; i++ {
			cell.Add()
			names = append(names, fmt.Sprint("n", i))
			wantVoters(t, cell.Node(0), names...)
			l.on(names[i], cell.Node(i))
		}
		for range 2 {
			gone := cell.Index(cell.Leader())
			n := cell.Node(gone)
			via := cell.Node(gone)
			if err := via.RemoveMember(within(t, time.Minute), n.Status().ID); err != nil && !errors.Is(err, chubby.ErrClosed) {
				t.Fatal(err)
			}
			wantRemoved(t, n)
			cell.Stop(gone)
		}
		var left []string
		for _, n := range cell.Nodes() {
			left = append(left, n.Status().ID)
		}
		if len(left) != 3 {
			t.Fatalf("running: %v", left)
		}
		wantVoters(t, cell.Leader(), left...)
		l.check(cell.Nodes()...)
		t.Logf("%d writes, the slowest took %v", len(l.acked), l.worst)
	})
}

// All three first members are replaced, one after the other, under load. No write is lost, and a session on a node that
// stays, with its lock, lives through all of it.
func TestRollingReplacement(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		app := cell.Node(cell.Add(func(o *chubby.Options) { o.Nonvoter = true }))
		held := mustLock(t, app, "/held")
		l := newLoad(t)
		l.on("app", app)
		for i := range 3 {
			fresh := cell.Node(cell.Add())
			l.on(fresh.Status().ID, fresh)
			if err := app.AddVoter(within(t, time.Minute), fresh.Status().ID, fresh.Status().ID+":1"); err != nil {
				t.Fatal(err)
			}
			if err := app.RemoveMember(within(t, time.Minute), fmt.Sprint("n", i)); err != nil {
				t.Fatal(err)
			}
			wantRemoved(t, cell.Node(i))
			cell.Stop(i)
		}
		wantVoters(t, app, "n4", "n5", "n6")
		if err := held.Err(); err != nil || held.Context().Err() != nil {
			t.Errorf("the lock of a node that stayed: %v, %v", err, held.Context().Err())
		}
		if s, err := app.Session(t.Context()); err != nil || s.State() != chubby.SessionActive {
			t.Errorf("its session: %v, %v", s.State(), err)
		}
		l.check(cell.Nodes()...)
		if l.worst > 2*time.Second {
			t.Errorf("a write took %v", l.worst)
		}
		t.Logf("%d writes, the slowest took %v", len(l.acked), l.worst)
	})
}

// A leader that is removed hands over first, so that writes go on at once.
func TestRemoveLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for range 2 {
			old := cell.Index(cell.Leader())
			leader := cell.Node(old)
			var other *chubby.Node
			for _, n := range cell.Nodes() {
				if n != leader {
					other = n
				}
			}
			mustSet(t, other, "/x", "1")
			l := newLoad(t)
			l.on("other", other)
			if err := other.RemoveMember(within(t, time.Minute), leader.Status().ID); err != nil {
				t.Fatal(err)
			}
			wantRemoved(t, leader)
			cell.Stop(old)
			l.check(other)
			if l.worst > 100*time.Millisecond {
				t.Errorf("a write took %v while the leader was removed", l.worst)
			}
		}
		last := cell.Nodes()[0]
		if err := last.RemoveMember(within(t, time.Minute), last.Status().ID); !errors.Is(err, chubby.ErrConflict) || !strings.Contains(err.Error(), "last voter") {
			t.Errorf("removal of the last voter: %v", err)
		}
		mustSet(t, last, "/x", "2")
	})
}

// A node that was down when it was removed learns of it when it comes back, and its directory knows from then on.
func TestRemoveDeadMember(t *testing.T) {
	var opts chubby.Options
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Crash(2)
		if err := cell.Node(0).RemoveMember(within(t, time.Minute), "n2"); err != nil {
			t.Fatal(err)
		}
		if err := cell.Node(1).RemoveMember(within(t, time.Minute), "n2"); !errors.Is(err, chubby.ErrNotFound) {
			t.Errorf("removal of one that was removed: %v", err)
		}
		wantVoters(t, cell.Node(0), "n0", "n1")
		cell.Restart(2)
		wantRemoved(t, cell.Node(2))
		cell.Stop(2)
		if n, err := chubby.Open(opts); !errors.Is(err, chubby.ErrRemoved) || !strings.Contains(err.Error(), "Join") {
			if err == nil {
				n.Close()
			}
			t.Errorf("Open of the directory of a removed node: %v", err)
		}
		// The ID may come back, on another disk.
		cell.Wipe(2, true)
		cell.Restart(2)
		wantVoters(t, cell.Node(0), "n0", "n1", "n2")
		wantGet(t, cell.Node(2), "/x", "1")
	}, func(o *chubby.Options) {
		if o.ID == "n2" {
			opts = *o
		}
	})
}

// A removed node ends its sessions, so that nobody waits for its leases.
func TestRemovedNodeEndsItsSessions(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		gone := others(3, cell.Index(cell.Leader()))[0]
		held := mustLock(t, cell.Node(gone), "/x")
		start := time.Now()
		if err := cell.Leader().RemoveMember(within(t, time.Minute), fmt.Sprint("n", gone)); err != nil {
			t.Fatal(err)
		}
		mustLock(t, cell.Leader(), "/x")
		if d := time.Since(start); d > 3*time.Second {
			t.Errorf("its lock was free after %v", d)
		}
		wantRemoved(t, cell.Node(gone))
		if err := held.Err(); err == nil {
			t.Error("its lock is held")
		}
	})
}

// A node whose disk was wiped may have acknowledged a write, or given a vote, that it does not remember. Were it taken for
// the one that it was, it would make a majority with a member that missed the write.
func TestWipedDiskLosesNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "old")
		leader := cell.Index(cell.Leader())
		wiped, away := others(3, leader)[0], others(3, leader)[1]
		cell.Partition([]int{away}, []int{leader, wiped})
		mustSet(t, cell.Node(leader), "/x", "new")
		cell.Crash(leader)
		cell.Wipe(wiped, false)
		cell.Heal()
		cell.Restart(wiped)
		e, err := cell.Node(away).Get(within(t, time.Minute), "/x")
		if !errors.Is(err, chubby.ErrNoLeader) {
			t.Errorf("Get without the leader and with a wiped disk: %q, %v", e.Data, err)
		}
		if err := cell.Node(wiped).WaitReady(within(t, time.Second)); !errors.Is(err, chubby.ErrWrongCell) ||
			!strings.Contains(err.Error(), fmt.Sprintf(`RemoveMember("n%d")`, wiped)) || !strings.Contains(err.Error(), "Join") {
			t.Errorf("the wiped node: %v", err)
		}
		cell.Restart(leader)
		wantGet(t, cell.Node(away), "/x", "new")
		cell.Stop(wiped)
	})
}

// The two commands that the error names cure a wiped disk.
func TestWipedDiskCured(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Wipe(1, true)
		cell.Restart(1)
		err := cell.Node(1).WaitReady(within(t, 5*time.Second))
		if !errors.Is(err, chubby.ErrWrongCell) || !strings.Contains(err.Error(), `RemoveMember("n1")`) {
			t.Errorf("a wiped member that joins: %v", err)
		}
		if err := cell.Node(0).AddVoter(within(t, time.Minute), "n1", "n1:1"); !errors.Is(err, chubby.ErrWrongCell) {
			t.Errorf("AddVoter of a wiped member: %v", err)
		}
		if err := cell.Node(0).RemoveMember(within(t, time.Minute), "n1"); err != nil {
			t.Fatal(err)
		}
		wantVoters(t, cell.Node(0), "n0", "n1", "n2")
		wantGet(t, cell.Node(1), "/x", "1")
	})
}

// All nodes change their addresses at once. Peers, or for one of them Join, tell where to look for the others, and the
// cell notes the new addresses.
func TestAllAddressesChange(t *testing.T) {
	port := "1"
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		joined := cell.Add()
		wantVoters(t, cell.Node(0), "n0", "n1", "n2", "n3")
		mustSet(t, cell.Node(0), "/x", "1")
		for _, port = range []string{"2", "3"} {
			for i := range 4 {
				cell.Stop(i)
			}
			for i := range 4 {
				cell.Restart(i)
			}
			wantGet(t, cell.Node(joined), "/x", "1")
			wantAddrs(t, cell.Node(0), port)
		}
	}, func(o *chubby.Options) {
		o.Listen = o.ID + ":" + port
		if len(o.Peers) > 0 {
			o.Peers = map[string]string{"n0": "n0:" + port, "n1": "n1:" + port, "n2": "n2:" + port}
		} else {
			o.Join = []string{"n0:" + port, "n1:" + port}
		}
	})
}

func wantAddrs(t *testing.T, n *chubby.Node, port string) {
	t.Helper()
	ctx := within(t, time.Minute)
	for {
		list, err := n.Members(ctx)
		if err != nil {
			t.Fatal(err)
		}
		wrong := 0
		for _, m := range list {
			if m.Addr != m.ID+":"+port {
				wrong++
			}
		}
		if wrong == 0 {
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("addresses are %+v, want port %s", list, port)
		}
	}
}

// namedNet is a network with a name service: where tells at which host a name is now.
type namedNet struct {
	chubby.Network
	host  string // this one
	where func(name string) (host string)
}

func (n namedNet) Listen(ctx context.Context, addr string) (net.Listener, error) {
	_, port, _ := net.SplitHostPort(addr)
	return n.Network.Listen(ctx, n.host+":"+port)
}

func (n namedNet) Dial(ctx context.Context, addr string) (net.Conn, error) {
	_, port, _ := net.SplitHostPort(addr)
	return n.Network.Dial(ctx, n.where(addr)+":"+port)
}

// The cell keeps names and dials names, so that a node may move to another host under its name.
func TestNamesAreResolvedAtEachDial(t *testing.T) {
	var mu sync.Mutex
	hosts := map[string]string{"a:1": "n0", "b:1": "n1", "c:1": "n2"}
	where := func(name string) string {
		mu.Lock()
		defer mu.Unlock()
		return hosts[name]
	}
	var n2 chubby.Options
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Stop(2)
		mu.Lock()
		hosts["c:1"] = "elsewhere"
		mu.Unlock()
		n2.Network = namedNet{n2.Network.(namedNet).Network.(interface{ At(string) *memnet.Host }).At("elsewhere"), "elsewhere", where}
		moved, err := chubby.Open(n2)
		if err != nil {
			t.Fatal(err)
		}
		defer moved.Close()
		wantGet(t, moved, "/x", "1")
		list, err := moved.Members(t.Context())
		if err != nil || len(list) != 3 || list[2].Addr != "c:1" {
			t.Errorf("Members = %+v, %v", list, err)
		}
	}, func(o *chubby.Options) {
		o.Network = namedNet{o.Network, o.ID, where}
		o.Listen = map[string]string{"n0": "a:1", "n1": "b:1", "n2": "c:1"}[o.ID]
		o.Peers = map[string]string{"n0": "a:1", "n1": "b:1", "n2": "c:1"}
		if o.ID == "n2" {
			n2 = *o
		}
	})
}

// Two nodes that swap their addresses do not wait for each other.
func TestAddressesSwap(t *testing.T) {
	swapped := false
	at := func(id string) string {
		if swapped && id != "n2" {
			return "h:" + map[string]string{"n0": "11", "n1": "10"}[id]
		}
		return "h:1" + id[1:]
	}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Stop(0)
		cell.Stop(1)
		swapped = true
		cell.Restart(0)
		cell.Restart(1)
		ctx := within(t, time.Minute)
		for {
			list, err := cell.Node(2).Members(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if list[0].Addr == at(list[0].ID) && list[1].Addr == at(list[1].ID) && list[2].Addr == at(list[2].ID) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}, func(o *chubby.Options) {
		o.Network = namedNet{o.Network, o.ID, func(name string) string {
			for id := range o.Peers {
				if at(id) == name {
					return id
				}
			}
			return "nobody"
		}}
		o.Listen = at(o.ID)
		o.Peers = map[string]string{"n0": at("n0"), "n1": at("n1"), "n2": at("n2")}
	})
}

// Whoever asks to join while there is no leader is taken in when there is one; asking again changes nothing, also after a
// crash between the asking and the answer.
func TestJoinIsRetried(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		i := cell.Add()
		cell.Partition([]int{0, i}, []int{1}, []int{2})
		n := cell.Node(i)
		if err := n.WaitReady(within(t, 5*time.Second)); !errors.Is(err, chubby.ErrNoLeader) || !strings.Contains(err.Error(), "taken in") {
			t.Errorf("joining a cell without quorum: %v", err)
		}
		cell.Heal()
		for d := time.Millisecond; d < 40*time.Millisecond; d *= 2 {
			time.Sleep(d)
			cell.Crash(i)
			cell.Restart(i)
		}
		errs := make(chan error, 6)
		for j := range 6 {
			go func() { errs <- cell.Node(j%3).AddVoter(context.Background(), "n3", "n3:1") }()
		}
		for range 6 {
			if err := <-errs; err != nil && !errors.Is(err, chubby.ErrConflict) {
				t.Errorf("AddVoter at the same time: %v", err)
			}
		}
		wantVoters(t, cell.Node(0), "n0", "n1", "n2", "n3")
		wantGet(t, cell.Node(i), "/x", "1")
		if list, err := cell.Node(i).Members(t.Context()); err != nil || len(list) != 4 {
			t.Errorf("Members = %+v, %v", list, err)
		}
	})
}

// While one change is under way another one is refused, with what it waits for.
func TestOneChangeAtATime(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(cell.Add(func(o *chubby.Options) { o.Nonvoter = true }))
		if err := n.WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		leader := cell.Leader()
		rest := others(3, cell.Index(leader))
		for _, i := range rest {
			cell.StallDisk(i) // they answer what needs no write, so the change is not committed
		}
		first := make(chan error, 1)
		go func() { first <- leader.RemoveMember(context.Background(), "n3") }()
		time.Sleep(50 * time.Millisecond)
		gone := rest[0]
		if err := leader.TransferLeadership(within(t, time.Minute), fmt.Sprint("n", gone)); !errors.Is(err, chubby.ErrConflict) || !strings.Contains(err.Error(), "removing n3 is under way") {
			t.Errorf("a second change: %v", err)
		}
		for _, i := range rest {
			cell.Resume(i)
		}
		if err := <-first; err != nil {
			t.Errorf("the first change: %v", err)
		}
		wantRemoved(t, n)
	})
}

// Removing a voter that is needed for a majority is refused, and what is not needed can go.
func TestRemovalKeepsQuorum(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Leader()
		rest := others(3, cell.Index(leader))
		cell.Crash(rest[0])
		time.Sleep(5 * time.Second)
		for _, i := range []int{rest[1], cell.Index(leader)} {
			err := leader.RemoveMember(within(t, time.Minute), fmt.Sprint("n", i))
			if !errors.Is(err, chubby.ErrNoQuorum) && !errors.Is(err, chubby.ErrConflict) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("removal of n%d, without which there is no majority: %v", i, err)
			}
			if i == rest[1] && !strings.Contains(err.Error(), "Recover") {
				t.Errorf("no word of Recover: %v", err)
			}
		}
		wantVoters(t, leader, "n0", "n1", "n2")
		if err := cell.Leader().RemoveMember(within(t, time.Minute), fmt.Sprint("n", rest[0])); err != nil {
			t.Errorf("removal of the dead one: %v", err)
		}
		cell.Restart(rest[0])
		wantRemoved(t, cell.Node(rest[0]))
	})
}

// Members that a node knew were all replaced while it was down. Its log names nobody who is left, but Join does, and the
// leader tells it whom to listen to.
func TestComesBackToStrangers(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Stop(2)
		for i := range 2 {
			fresh := cell.Add()
			id := fmt.Sprint("n", fresh)
			if err := cell.Node(fresh).WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if err := cell.Node(fresh).AddVoter(within(t, time.Minute), id, id+":1"); err != nil {
				t.Fatal(err)
			}
			if err := cell.Node(fresh).RemoveMember(within(t, time.Minute), fmt.Sprint("n", i)); err != nil {
				t.Fatal(err)
			}
			wantRemoved(t, cell.Node(i))
			cell.Stop(i)
		}
		mustSet(t, cell.Node(3), "/x", "2")
		cell.Restart(2)
		wantGet(t, cell.Node(2), "/x", "2")
		wantVoters(t, cell.Node(2), "n2", "n3", "n4")
	}, func(o *chubby.Options) {
		if o.ID == "n2" {
			o.Join = []string{"n3:1", "n4:1"}
		}
	})
}

// Under TLS a node joins with a server's certificate for its ID. One that is good for clients only makes nobody a member.
func TestJoinUnderTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, pool := newCA(t)
		with := func(id string, usage ...x509.ExtKeyUsage) func(o *chubby.Options) {
			return func(o *chubby.Options) {
				o.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, id, usage...)}, RootCAs: pool}
			}
		}
		cell := chubbytest.NewCell(t, 1, with("n0"))
		mustSet(t, cell.Node(0), "/x", "1")
		good := cell.Add(with("n1"))
		wantGet(t, cell.Node(good), "/x", "1")
		wantVoters(t, cell.Node(0), "n0", "n1")
		client := cell.Add(with("n2", x509.ExtKeyUsageClientAuth))
		another := cell.Add(with("n9"))
		for _, i := range []int{client, another} {
			if err := cell.Node(i).WaitReady(within(t, 10*time.Second)); !errors.Is(err, chubby.ErrNoLeader) {
				t.Errorf("n%d joined: %v", i, err)
			}
			cell.Stop(i)
		}
		if list, err := cell.Node(0).Members(t.Context()); err != nil || len(list) != 2 {
			t.Errorf("Members = %+v, %v", list, err)
		}
	})
}
