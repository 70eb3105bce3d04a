package chubby

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
)

func TestNewTransportAddress(t *testing.T) {
	net := memnet.New()
	for _, c := range []struct{ listen, advertise, want string }{
		{"n1:0", "", "n1:20001"},
		{"n1:5", "", "n1:5"},
		{":6", "", "n1:6"},
		{"n1:7", "public:0", "public:7"},
		{"n1:8", "public:9", "public:9"},
		{"", "", "n1.a"},
		{"", "public:1", "public:1"},
	} {
		x := newTestTransport(t, net, "n1", func(tc *transportConfig) { tc.Listen, tc.Advertise = c.listen, c.advertise })
		if got := x.addr(); got != c.want {
			t.Errorf("Listen %q, Advertise %q: got %q, want %q", c.listen, c.advertise, got, c.want)
		}
	}
	tc := testConfig(net, "n1")
	tc.Listen = "n1:5" // in use
	_, err := newTransport(tc)
	var e *Error
	if !errors.As(err, &e) || e.Path != "n1:5" || e.Op != "listen" {
		t.Errorf("port in use: got %v, want *Error with the address", err)
	}
	tc.Listen, tc.Advertise = "n1:0", "nonsense"
	if _, err := newTransport(tc); !errors.As(err, &e) || e.Path != "nonsense" {
		t.Errorf("bad Advertise: got %v, want *Error with the address", err)
	}
}

// descriptors counts the open files of this process, or gives -1 where that cannot be known.
func descriptors() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(list)
}

// Close leaves no goroutine and no descriptor, also with calls, handlers and streams of all purposes open.
func TestCloseLeavesNothing(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		_ = l.Close() // the first socket of a process opens its poller too
	}
	goroutines, files := runtime.NumGoroutine(), descriptors()
	c := newRaftCell(t, nil, 3, func(tc *transportConfig, _ *raft.Config) {
		tc.Security = mustSecurity(t, nil, testSecret, tc.ID)
	})
	l := c.leader()
	c.apply(l, "one")
	c.settle("one")
	var wg sync.WaitGroup
	began := make(chan struct{})
	for _, x := range c.others(l) {
		x.t.handle(kindHang, func(ctx context.Context, _ peerInfo, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})
		wg.Go(func() {
			if _, err := l.t.call(context.Background(), x.t.c.Server, kindHang, nil); err == nil {
				t.Error("a call outlived its transport")
			}
		})
		<-began
	}
	c.close()
	wg.Wait()
	for _, x := range c.nodes {
		if err := x.t.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
	// raft itself leaves timers and goroutines for a moment.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if runtime.NumGoroutine() <= goroutines && descriptors() <= files {
			return
		}
		if time.Now().After(end) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines and %d files before, %d and %d after:\n%s", goroutines, files,
				runtime.NumGoroutine(), descriptors(), buf[:runtime.Stack(buf, true)])
		}
	}
}

// Entries for a peer that is down wait; they return at once when nobody needs them any more.
func TestAppendToDeadPeerWaits(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(a *transport, view *fakeRaft)
		want error
		in   time.Duration // at most
	}{
		{"next term", func(a *transport, _ *fakeRaft) { a.leaderTerm(4) }, errTermOver, 0},
		{"leads no more", func(a *transport, _ *fakeRaft) { a.endReign(3) }, errTermOver, 0},
		{"removed", func(a *transport, _ *fakeRaft) { a.setPeers(nil) }, errNotMember, 0},
		{"closed", func(a *transport, _ *fakeRaft) { _ = a.Close() }, ErrClosed, 0},
		{"raft stepped down", func(_ *transport, v *fakeRaft) { v.set(raft.Follower, 3, "") }, errTermOver, testHeartbeat},
		{"raft shut down", func(_ *transport, v *fakeRaft) { v.set(raft.Shutdown, 3, "") }, errTermOver, testHeartbeat},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newTestTransport(t, memnet.New(), "n1", nil)
				a.setPeers([]raft.Server{{ID: "n2.a", Address: "n2:1"}})
				view := &fakeRaft{}
				view.set(raft.Leader, 3, "n1.a")
				a.attach(view)
				a.leaderTerm(3)
				done := make(chan error, 1)
				go func() {
					done <- a.AppendEntries("n2.a", "n2:1", appendFrom(a, 3, 0, 0, 0, 3), new(raft.AppendEntriesResponse))
				}()
				time.Sleep(time.Minute)
				select {
				case err := <-done:
					t.Fatalf("gave up within a minute: %v", err)
				default:
				}
				start := time.Now()
				c.end(a, view)
				err := <-done
				if d := time.Since(start); d > c.in {
					t.Errorf("returned after %v, want at most %v", d, c.in)
				}
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if c.want == errTermOver {
					if err := a.AppendEntries("n2.a", "n2:1", appendFrom(a, 3, 0, 0, 0, 3), new(raft.AppendEntriesResponse)); !errors.Is(err, errTermOver) {
						t.Errorf("another request of that term: got %v", err)
					}
				}
			})
		})
	}
}

// What is for a server outside the configuration, and what raft must not wait for, fails fast.
func TestFailFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a := newTestTransport(t, net, "n1", nil)
		a.setPeers([]raft.Server{{ID: "n2.a", Address: "n2:1"}})
		net.Partition([]string{"n1"})
		for name, f := range map[string]func() error{
			"heartbeat": func() error {
				return a.AppendEntries("n2.a", "n2:1", &raft.AppendEntriesRequest{RPCHeader: headerOf(a), Term: 3}, new(raft.AppendEntriesResponse))
			},
			"entries for a removed server": func() error {
				return a.AppendEntries("n9.a", "n9:1", appendFrom(a, 3, 0, 0, 0, 3), new(raft.AppendEntriesResponse))
			},
			"vote": func() error {
				return a.RequestVote("n2.a", "n2:1", &raft.RequestVoteRequest{}, new(raft.RequestVoteResponse))
			},
			"pre-vote": func() error {
				return a.RequestPreVote("n2.a", "n2:1", &raft.RequestPreVoteRequest{}, new(raft.RequestPreVoteResponse))
			},
			"timeout now": func() error {
				return a.TimeoutNow("n2.a", "n2:1", &raft.TimeoutNowRequest{}, new(raft.TimeoutNowResponse))
			},
			"pipeline": func() error {
				_, err := a.AppendEntriesPipeline("n2.a", "n2:1")
				return err
			},
		} {
			start := time.Now()
			if err := f(); !errors.Is(err, errNotSent) {
				t.Errorf("%s: got %v, want errNotSent", name, err)
			}
			if d := time.Since(start); d > a.noticeTimeout {
				t.Errorf("%s: took %v", name, d)
			}
		}
	})
}

// While the leader's disk hangs it sends no heartbeats, so that another takes over.
func TestStalledLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stalled atomic.Value
		stalled.Store("")
		c := newRaftCell(t, memnet.New(), 3, func(tc *transportConfig, _ *raft.Config) {
			tc.Stalled = func() bool { return stalled.Load() == tc.ID }
		})
		defer c.close()
		l := c.leader()
		c.apply(l, "one")
		stalled.Store(l.id)
		l2 := c.leader(c.others(l)...)
		c.apply(l2, "two")
		stalled.Store("")
		c.settle("one\ntwo")
	})
}

// A paused node says nothing and hears nothing; when it goes on, it follows the new leader.
func TestPausedLeaderIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newRaftCell(t, memnet.New(), 3)
		defer c.close()
		l := c.leader()
		c.apply(l, "one")
		l.gate.Shut()
		l2 := c.leader(c.others(l)...)
		c.apply(l2, "two")
		time.Sleep(5 * time.Second)
		l.gate.Open()
		c.settle("one\ntwo")
		if l.r.State() == raft.Leader {
			t.Error("the paused node still leads")
		}
	})
}

// A follower that lacks more than the log holds gets a snapshot of several chunks, with the partition in its way.
func TestInstallSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		c := newRaftCell(t, net, 3, func(_ *transportConfig, rc *raft.Config) { rc.TrailingLogs = 1 })
		defer c.close()
		l := c.leader()
		f := c.others(l)[0]
		net.Partition([]string{f.id})
		time.Sleep(5 * time.Second) // until the streams broke
		want := make([]string, 20)
		for i := range want {
			want[i] = fmt.Sprintf("%d%s", i, strings.Repeat("x", 100_000))
			c.apply(l, want[i])
		}
		if err := l.r.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		net.Delay(time.Millisecond, 2*time.Millisecond)
		net.Heal()
		c.settle(strings.Join(want, "\n"))
		if got := f.r.Stats()["last_snapshot_index"]; got == "0" {
			t.Error("the follower got entries, not the snapshot")
		}
		want = append(want, "more")
		c.apply(l, "more")
		c.settle(strings.Join(want, "\n"))
	})
}

// A snapshot whose sender falls silent holds up the follower's raft no longer than a stream's time-out.
func TestSnapshotSenderVanishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		f, stop := lone(t, net)
		defer stop()
		a := newTestTransport(t, net, "n1", nil)
		req := &raft.InstallSnapshotRequest{RPCHeader: headerOf(a), SnapshotVersion: 1, Term: 2, LastLogIndex: 9, LastLogTerm: 1, Size: 10 << 20,
			Configuration: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n2.a", Address: "x"}}}), ConfigurationIndex: 1}
		src := &stuckReader{left: 1 << 20, stuck: make(chan struct{}), free: make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			done <- a.InstallSnapshot("n2.a", f.t.LocalAddr(), req, new(raft.InstallSnapshotResponse), src)
		}()
		<-src.stuck
		net.Partition([]string{"n1"})
		start := time.Now()
		c := newTestTransport(t, net, "n3", nil)
		var resp raft.AppendEntriesResponse
		if err := c.AppendEntries("n2.a", f.t.LocalAddr(), appendFrom(c, 3, 1, 1, 0, 3), &resp); err != nil || !resp.Success {
			t.Errorf("next leader: %+v, %v", resp, err)
		}
		if d := time.Since(start); d > 2*f.t.streamTimeout {
			t.Errorf("raft was held up for %v", d)
		}
		close(src.free)
		if err := <-done; err == nil {
			t.Error("the snapshot arrived")
		}
	})
}

// stuckReader gives some bytes, then waits to be freed.
type stuckReader struct {
	left        int
	stuck, free chan struct{}
}

func (r *stuckReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		close(r.stuck)
		<-r.free
		return 0, errors.New("nothing more")
	}
	n := min(len(p), r.left)
	r.left -= n
	return n, nil
}

// What would make raft panic is refused before raft sees it.
func TestDecodeRPCRefusesPoison(t *testing.T) {
	a := &transport{}
	for name, change := range map[string]func(*raft.AppendEntriesRequest){
		"unknown type":      func(m *raft.AppendEntriesRequest) { m.Entries[0].Type = 77 },
		"deprecated type":   func(m *raft.AppendEntriesRequest) { m.Entries[0].Type = raft.LogAddPeerDeprecated },
		"bad configuration": func(m *raft.AppendEntriesRequest) { m.Entries[0].Type = raft.LogConfiguration },
		"gap":               func(m *raft.AppendEntriesRequest) { m.Entries[1].Index++ },
	} {
		m := appendFrom(a, 2, 5, 1, 0, 2, 2)
		if err := checkEntries(m); err != nil {
			t.Fatal(err)
		}
		change(m)
		if err := checkEntries(m); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// One-way cuts and partitions that come and go must not lose the cell.
func TestFlakyNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		net.Delay(100*time.Microsecond, 5*time.Millisecond)
		c := newRaftCell(t, net, 3)
		defer c.close()
		var want []string
		for i := range 6 {
			l := c.leader()
			switch i % 3 {
			case 0:
				net.Cut(l.id, c.others(l)[0].id)
			case 1:
				net.Cut(c.others(l)[0].id, l.id)
			case 2:
				net.Partition([]string{l.id})
			}
			time.Sleep(time.Duration(i) * time.Second / 2)
			net.Heal()
			time.Sleep(3 * time.Second)
			text := fmt.Sprint(i)
			want = append(want, text)
			c.apply(c.leader(), text)
			c.settle(strings.Join(want, "\n"))
		}
	})
}
