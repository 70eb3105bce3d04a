package chubby

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
)

// fakeRaft is a raftView that says what it is told.
type fakeRaft struct {
	mu     sync.Mutex
	state  raft.RaftState
	term   uint64
	leader raft.ServerID
}

func (f *fakeRaft) set(state raft.RaftState, term uint64, leader raft.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.state, f.term, f.leader = state, term, leader
}

func (f *fakeRaft) State() raft.RaftState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *fakeRaft) CurrentTerm() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.term
}

func (f *fakeRaft) LeaderWithID() (raft.ServerAddress, raft.ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "addr", f.leader
}

func headerOf(x *transport) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: 3, ID: []byte(x.c.Server), Addr: []byte(x.addr())}
}

// appendFrom makes a request as the leader behind x would: entries after prev, each "index@term".
func appendFrom(x *transport, term, prev, prevTerm, commit uint64, entryTerms ...uint64) *raft.AppendEntriesRequest {
	req := &raft.AppendEntriesRequest{RPCHeader: headerOf(x), Term: term, PrevLogEntry: prev, PrevLogTerm: prevTerm, LeaderCommitIndex: commit}
	for i, et := range entryTerms {
		index := prev + 1 + uint64(i)
		req.Entries = append(req.Entries, &raft.Log{Index: index, Term: et, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d@%d", index, et)})
	}
	return req
}

// A leader that gets the heartbeat of a newer term must not store a client's entry under that term: that is what raft's
// own heartbeat handler makes possible.
func TestHeartbeatDoesNotRaiseTermBesideRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newRaftCell(t, memnet.New(), 3)
		defer c.close()
		l := c.leader()
		c.apply(l, "one")
		other := c.others(l)[0]
		term := l.r.CurrentTerm()
		req := &raft.AppendEntriesRequest{RPCHeader: headerOf(other.t), Term: term + 5}
		var resp raft.AppendEntriesResponse
		if err := other.t.AppendEntries(l.t.c.Server, l.t.LocalAddr(), req, &resp); err != nil {
			t.Fatal(err)
		}
		_ = l.r.Apply([]byte("evil"), time.Second).Error()
		first, _ := l.store.FirstIndex()
		last, _ := l.store.LastIndex()
		for i := first; i <= last; i++ {
			var e raft.Log
			if err := l.store.GetLog(i, &e); err == nil && e.Term == term+5 {
				t.Errorf("entry %d %q is stored under term %d, in which nobody was elected", i, e.Data, e.Term)
			}
		}
	})
}

// Heartbeats are answered beside raft only where they change nothing; raft still gets to see one.
func TestHeartbeatGuard(t *testing.T) {
	for _, c := range []struct {
		name   string
		state  raft.RaftState
		term   uint64
		leader raft.ServerID
		inline bool
	}{
		{"follower of the sender", raft.Follower, 7, "n1.a", true},
		{"follower of another", raft.Follower, 7, "n3.a", false},
		{"follower of nobody", raft.Follower, 7, "", false},
		{"in an older term", raft.Follower, 6, "n1.a", false},
		{"in a newer term", raft.Follower, 8, "n1.a", false},
		{"candidate", raft.Candidate, 7, "n1.a", false},
		{"leader", raft.Leader, 7, "n1.a", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := memnet.New()
				a, b := newTestTransport(t, net, "n1", nil), newTestTransport(t, net, "n2", nil)
				meet(a, b)
				view := &fakeRaft{}
				view.set(c.state, c.term, c.leader)
				b.attach(view)
				hb := &raft.AppendEntriesRequest{RPCHeader: headerOf(a), Term: 7}
				var resp raft.AppendEntriesResponse
				for range 5 {
					err := a.AppendEntries("n2.a", b.LocalAddr(), hb, &resp)
					if inline := err == nil; inline != c.inline {
						t.Fatalf("answered without raft: %v (%v), want %v", inline, err, c.inline)
					}
					if !c.inline {
						break
					}
				}
				if c.inline && (!resp.Success || resp.Term != 7) {
					t.Errorf("answer %+v", resp)
				}
				seen := 0
				for {
					synctest.Wait()
					select {
					case rpc := <-b.Consumer():
						if got := rpc.Command.(*raft.AppendEntriesRequest); got.Term != 7 || string(got.ID) != "n1.a" {
							t.Errorf("raft sees %+v", got)
						}
						rpc.Respond(nil, errors.New("nobody waits for this"))
						seen++
						continue
					default:
					}
					break
				}
				if c.inline && (seen < 1 || seen > 2) {
					t.Errorf("raft saw %d copies of 5 heartbeats, want 1 or 2", seen)
				}
			})
		})
	}
}

// lone is a real raft server, n2, whose peers n1 and n3 are played by the test.
func lone(t *testing.T, net *memnet.Net) (*raftNode, func()) {
	t.Helper()
	x := &raftNode{id: "n2", fsm: &listFSM{}, store: &faultyStore{InmemStore: raft.NewInmemStore()}}
	x.t = newTestTransport(t, net, "n2", nil)
	rc := raft.DefaultConfig()
	rc.LocalID = x.t.c.Server
	rc.HeartbeatTimeout, rc.ElectionTimeout = time.Hour, time.Hour
	rc.Logger = hclog.NewNullLogger()
	snaps := raft.NewInmemSnapshotStore()
	conf := raft.Configuration{Servers: []raft.Server{{ID: "n1.a", Address: "n1:1"}, {ID: "n2.a", Address: x.t.LocalAddr()}, {ID: "n3.a", Address: "n3:1"}}}
	if err := raft.BootstrapCluster(rc, x.store, x.store, snaps, x.t, conf); err != nil {
		t.Fatal(err)
	}
	r, err := raft.NewRaft(rc, x.fsm, x.store, x.store, snaps, x.t)
	if err != nil {
		t.Fatal(err)
	}
	x.r = r
	x.t.attach(r)
	return x, func() { _ = r.Shutdown().Error() }
}

// A follower commits up to min(LeaderCommitIndex, its own last index). So neither an append nor a kick may tell a commit
// index above what it proves itself, or the suffix that a deposed leader left behind would be committed.
func TestNoCommitOfDivergentSuffix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		f, stop := lone(t, net)
		defer stop()
		send := func(x *transport, req *raft.AppendEntriesRequest) {
			t.Helper()
			var resp raft.AppendEntriesResponse
			if err := x.AppendEntries("n2.a", f.t.LocalAddr(), req, &resp); err != nil || !resp.Success {
				t.Fatalf("append: %+v, %v", resp, err)
			}
		}
		// The old leader of term 1 leaves 2, which is everybody's, and 3 and 4, which are nobody else's.
		old := newTestTransport(t, net, "n1", nil)
		send(old, appendFrom(old, 1, 1, 1, 1, 1, 1, 1))
		// The leader of term 2 has other entries at 3 and 4, committed with the help of n1, and finds that 2 matches.
		l := newTestTransport(t, net, "n3", nil)
		l.leaderTerm(2)
		l.kick(4)
		send(l, appendFrom(l, 2, 2, 1, 4))
		l.kick(5)
		time.Sleep(time.Second)
		if got := f.r.CommitIndex(); got > 2 {
			t.Fatalf("follower committed up to %d, applied %q: entries of a deposed leader", got, f.fsm.text())
		}
		// Once its own entries are acknowledged, the kick alone brings the commit.
		send(l, appendFrom(l, 2, 2, 1, 2, 2, 2))
		time.Sleep(time.Second)
		if got, want := f.fsm.text(), "2@1\n3@2\n4@2"; got != want {
			t.Errorf("applied %q, want %q", got, want)
		}
	})
}

func TestKickBound(t *testing.T) {
	for _, c := range []struct {
		own, commit, told uint64
		want              uint64
		send              bool
	}{
		{own: 0, commit: 9, told: 0, want: 0, send: false},
		{own: 5, commit: 9, told: 0, want: 5, send: true},
		{own: 5, commit: 9, told: 5, want: 5, send: false},
		{own: 9, commit: 7, told: 5, want: 7, send: true},
		{own: 9, commit: 7, told: 8, want: 7, send: false},
	} {
		if got, send := kickOf(&progress{own: c.own, match: 20}, c.commit, c.told); got != c.want || send != c.send {
			t.Errorf("own %d, commit %d, told %d: got %d, %v, want %d, %v", c.own, c.commit, c.told, got, send, c.want, c.send)
		}
	}
}

// A follower applies soon after the leader, however long raft itself would take to tell it.
func TestKickIsFast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newRaftCell(t, memnet.New(), 3, func(_ *transportConfig, rc *raft.Config) { rc.CommitTimeout = time.Hour })
		defer c.close()
		l := c.leader()
		l.t.leaderTerm(l.r.CurrentTerm())
		c.apply(l, "one")
		l.t.kick(l.r.CommitIndex())
		time.Sleep(time.Millisecond)
		for _, x := range c.nodes {
			if got := x.fsm.text(); got != "one" {
				t.Errorf("%s applied %q 1 ms after the leader", x.id, got)
			}
		}
		for _, x := range c.others(l) {
			index, contact, ok := l.t.matched(x.t.c.Server)
			if last, _ := l.store.LastIndex(); !ok || index != last || contact > time.Second {
				t.Errorf("matched(%s) = %d, %v, %v, want %d", x.id, index, contact, ok, last)
			}
		}
	})
}

// Transient disk errors of a follower end its pipeline again and again; it must always catch up, and the leader must be
// able to shut down. raft's own transport loses the follower for good here.
func TestPipelineSurvivesRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		net.Delay(100*time.Microsecond, time.Millisecond)
		c := newRaftCell(t, net, 3)
		defer c.close()
		l := c.leader()
		f := c.others(l)[0]
		var mu sync.Mutex
		fail := false
		f.store.set(func() error {
			time.Sleep(200 * time.Microsecond)
			mu.Lock()
			defer mu.Unlock()
			if fail {
				fail = false
				return errors.New("disk hiccup")
			}
			return nil
		})
		end := time.Now().Add(time.Second)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for time.Now().Before(end) {
					_ = l.r.Apply([]byte("x"), time.Second).Error()
				}
			})
		}
		for time.Now().Before(end) {
			time.Sleep(50 * time.Millisecond)
			mu.Lock()
			fail = true
			mu.Unlock()
		}
		wg.Wait()
		f.store.set(nil)
		c.settle(l.fsm.text())
	})
}

// answers plays raft behind x: it answers every RPC with what f makes of it, until the test ends.
func answers(t *testing.T, x *transport, f func(req *raft.AppendEntriesRequest) *raft.AppendEntriesResponse) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	wg.Go(func() {
		for {
			select {
			case rpc := <-x.Consumer():
				rpc.Respond(f(rpc.Command.(*raft.AppendEntriesRequest)), nil)
			case <-ctx.Done():
				return
			}
		}
	})
}

func TestPipeline(t *testing.T) {
	setup := func(t *testing.T, f func(*raft.AppendEntriesRequest) *raft.AppendEntriesResponse) (*memnet.Net, *transport, raft.AppendPipeline) {
		net := memnet.New()
		a, b := newTestTransport(t, net, "n1", nil), newTestTransport(t, net, "n2", nil)
		meet(a, b)
		answers(t, b, f)
		p, err := a.AppendEntriesPipeline("n2.a", b.LocalAddr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return net, a, p
	}
	yes := func(req *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
		return &raft.AppendEntriesResponse{Term: req.Term, Success: true, LastLog: req.PrevLogEntry + uint64(len(req.Entries))}
	}
	inBubble := func(name string, f func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
	}
	inBubble("answers come in order, each with its request", func(t *testing.T) {
		_, a, p := setup(t, yes)
		const n = 500
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range uint64(n) {
				if _, err := p.AppendEntries(appendFrom(a, 3, i, 3, 0, 3), new(raft.AppendEntriesResponse)); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for i := range uint64(n) {
			f := <-p.Consumer()
			if err := f.Error(); err != nil || f.Request().PrevLogEntry != i || f.Response().LastLog != i+1 {
				t.Fatalf("future %d: request after %d, answer %+v, %v", i, f.Request().PrevLogEntry, f.Response(), err)
			}
		}
		wg.Wait()
		if index, _, ok := a.matched("n2.a"); index != n || !ok {
			t.Errorf("matched %d, want %d", index, n)
		}
	})
	inBubble("nobody takes futures after a refusal", func(t *testing.T) {
		_, a, p := setup(t, func(req *raft.AppendEntriesRequest) *raft.AppendEntriesResponse {
			return &raft.AppendEntriesResponse{Term: req.Term, Success: req.PrevLogEntry < 50}
		})
		var err error
		for i := uint64(0); err == nil && i < 1000; i++ {
			_, err = p.AppendEntries(appendFrom(a, 3, i, 3, 0, 3), new(raft.AppendEntriesResponse))
		}
		if !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Errorf("got %v, want ErrPipelineShutdown", err)
		}
	})
	inBubble("Close frees who waits", func(t *testing.T) {
		_, a, p := setup(t, yes)
		time.AfterFunc(time.Minute, func() { _ = p.Close() })
		start := time.Now()
		var err error
		for i := uint64(0); err == nil && i < 1000; i++ {
			_, err = p.AppendEntries(appendFrom(a, 3, i, 3, 0, 3), new(raft.AppendEntriesResponse))
		}
		if !errors.Is(err, raft.ErrPipelineShutdown) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
	inBubble("requests without an answer are no contact", func(t *testing.T) {
		net, a, p := setup(t, yes)
		net.Cut("n2", "n1")
		f, err := p.AppendEntries(appendFrom(a, 3, 0, 0, 0, 3), new(raft.AppendEntriesResponse))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Error(); err == nil {
			t.Error("a lost answer is no error")
		}
		select {
		case <-p.Consumer():
			t.Error("raft takes this future for a contact")
		default:
		}
		if _, err := p.AppendEntries(appendFrom(a, 3, 1, 3, 0, 3), new(raft.AppendEntriesResponse)); err == nil {
			t.Error("the pipeline outlived its stream")
		}
	})
	inBubble("the end of the term frees who waits", func(t *testing.T) {
		_, a, p := setup(t, yes)
		time.AfterFunc(time.Minute, func() { a.leaderTerm(4) })
		var err error
		for i := uint64(0); err == nil && i < 1000; i++ {
			_, err = p.AppendEntries(appendFrom(a, 3, i, 3, 0, 3), new(raft.AppendEntriesResponse))
		}
		if !errors.Is(err, errTermOver) {
			t.Errorf("got %v, want errTermOver", err)
		}
	})
}

// Requests above the size of a frame travel in parts, each truthful by itself.
func TestSplitAppend(t *testing.T) {
	a := &transport{}
	for _, c := range []struct {
		name    string
		entries int
		max     int
		want    []int // entries of each part
	}{
		{"empty", 0, 100, []int{0}},
		{"fits", 3, 1000, []int{3}},
		{"two parts", 3, 90, []int{2, 1}},
		{"each alone", 3, 1, []int{1, 1, 1}},
	} {
		terms := make([]uint64, c.entries)
		for i := range terms {
			terms[i] = 2
		}
		req := appendFrom(a, 2, 5, 1, 100, terms...)
		prev, prevTerm := uint64(5), uint64(1)
		var got []int
		for _, p := range splitAppend(req, c.max) {
			got = append(got, len(p.Entries))
			if p.PrevLogEntry != prev || p.PrevLogTerm != prevTerm {
				t.Errorf("%s: part after (%d, %d), want (%d, %d)", c.name, p.PrevLogEntry, p.PrevLogTerm, prev, prevTerm)
			}
			if n := len(p.Entries); n > 0 {
				prev, prevTerm = p.Entries[n-1].Index, p.Entries[n-1].Term
			}
			if p.LeaderCommitIndex != prev {
				t.Errorf("%s: part tells commit %d, its last entry is %d", c.name, p.LeaderCommitIndex, prev)
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: parts of %v entries, want %v", c.name, got, c.want)
		}
	}
}
