package cache

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/command"
)

func nothing(uint64) []string { return nil }

// hold has the session cache path.
func hold(t *testing.T, r *Registry, session uint64, path string, now time.Duration) Lease {
	t.Helper()
	l, ok := r.Renew(session, now, now)
	f, registered := r.Register(session, path, now)
	if !ok || !registered || !r.Stands(f, now) {
		t.Fatalf("session %d cannot hold %s: %v %v", session, path, ok, registered)
	}
	return l
}

func set(path string) *Touch { return Of(&command.Command{Kind: command.KindSet, Path: path}) }

// A command waits for each client that holds what it touches, by acknowledgement or by the end of its lease, and nobody
// can register that before its end.
func TestRegistryWaits(t *testing.T) {
	r := NewRegistry(5, nothing)
	l1 := hold(t, r, 1, "/f", 0)
	hold(t, r, 2, "/f", time.Second)
	if v := r.Begin(set("/g"), time.Second); v != Go {
		t.Errorf("another path: %v", v)
	}
	w := set("/f")
	if v := r.Begin(w, time.Second); v != Wait {
		t.Fatalf("Begin = %v", v)
	}
	r.Arm(w)
	if got, want := r.News(), []uint64{1, 2}; !slices.Equal(got, want) {
		t.Errorf("news for %v, want %v", got, want)
	}
	if got, want := r.Pending(1, l1, 0), []Invalidation{{1, "/f"}}; !slices.Equal(got, want) {
		t.Errorf("pending %v, want %v", got, want)
	}
	for _, bad := range []Lease{{}, {4, l1.ID}, {5, l1.ID + 1}} {
		r.Acknowledge(1, bad, 1, time.Second)
	}
	if r.Acknowledge(1, l1, 0, time.Second); len(r.Ready()) > 0 {
		t.Fatal("ready without an acknowledgement")
	}
	r.Acknowledge(1, l1, 1, time.Second)
	if r.Tick(time.Second + LeaderLease - 1); len(r.Ready()) > 0 {
		t.Fatal("ready before the second lease ended")
	}
	r.Tick(time.Second + LeaderLease)
	if got := r.Ready(); !slices.Equal(got, []*Touch{w}) {
		t.Fatalf("ready: %v", got)
	}
	now := 10 * time.Second
	if _, ok := r.Renew(1, now, now); !ok {
		t.Fatal("no lease")
	}
	if _, ok := r.Register(1, "/f", now); ok {
		t.Error("registered between proposal and outcome")
	}
	r.End(w, now)
	if _, ok := r.Register(1, "/f", now); !ok {
		t.Error("not registered after the outcome")
	}
}

// Two commands on one entry share an invalidation and both wait for it.
func TestRegistryShares(t *testing.T) {
	r := NewRegistry(1, nothing)
	l := hold(t, r, 1, "/f", 0)
	a, b := set("/f"), Of(&command.Command{Kind: command.KindDeleteTree, Path: "/f"})
	for _, w := range []*Touch{a, b} {
		if r.Begin(w, 0) != Wait {
			t.Fatal("it need not wait")
		}
		r.Arm(w)
	}
	if list := r.Pending(1, l, 0); len(list) != 1 {
		t.Errorf("pending: %v", list)
	}
	r.Acknowledge(1, l, 1, 0)
	if got := r.Ready(); !slices.Equal(got, []*Touch{a, b}) {
		t.Errorf("ready: %v", got)
	}
	// One that was withdrawn leaves the path to the other.
	r.End(b, 0)
	if _, ok := r.Register(1, "/f", 0); ok {
		t.Error("registered while a command is on its way")
	}
}

// A client whose session has ended is waited for no longer, and what it asked before is not kept.
func TestRegistryEnded(t *testing.T) {
	r := NewRegistry(1, nothing)
	l := hold(t, r, 1, "/f", 0)
	f, _ := r.Register(1, "/g", 0)
	w := set("/f")
	if r.Begin(w, 0) != Wait {
		t.Fatal("it need not wait")
	}
	r.Arm(w)
	r.Ended(1)
	r.Ended(2)
	if got := r.Ready(); !slices.Equal(got, []*Touch{w}) {
		t.Errorf("ready: %v", got)
	}
	if r.Current(1, l, 0) || r.Stands(f, 0) || r.count != 0 || r.paths.Len() != 0 {
		t.Errorf("left: %v %v, %d registrations", r.Current(1, l, 0), r.Stands(f, 0), r.count)
	}
}

// A client that leaves an invalidation unacknowledged gets no longer lease, so a writer's wait is bounded.
func TestRegistryPatience(t *testing.T) {
	r := NewRegistry(1, nothing)
	l := hold(t, r, 1, "/f", 0)
	r.Begin(set("/f"), 0)
	if _, ok := r.Renew(1, patience, patience); !ok {
		t.Error("no lease while the invalidation is on its way")
	}
	late := patience + 1
	if _, ok := r.Renew(1, late, late); ok {
		t.Error("a lease for a client that does not acknowledge")
	}
	if r.Current(1, l, patience+LeaderLease) {
		t.Error("the lease lasts")
	}
	if again, ok := r.Renew(1, 5*time.Second, 5*time.Second); !ok || again.ID == l.ID {
		t.Errorf("a new lease: %v %v", again, ok)
	}
	if LeaderLease+patience > 2*time.Second {
		t.Errorf("a writer may wait for %v", LeaderLease+patience)
	}
}

// Bounds: one client's registrations, and its invalidations on the way.
func TestRegistryBounds(t *testing.T) {
	r := NewRegistry(1, nothing)
	l, _ := r.Renew(1, 0, 0)
	for i := range clientMax {
		if _, ok := r.Register(1, fmt.Sprintf("/f%d", i), 0); !ok {
			t.Fatalf("no place for %d", i)
		}
	}
	if _, ok := r.Register(1, "/g", 0); ok {
		t.Error("a place too many")
	}
	if got, want := r.Pending(1, l, 0), []Invalidation{{1, ""}}; !slices.Equal(got, want) {
		t.Errorf("pending %v, want %v", got, want)
	}
	r.Acknowledge(1, l, 1, 0)
	if r.count != 0 || r.paths.Len() != 0 {
		t.Errorf("%d registrations of %d paths are left", r.count, r.paths.Len())
	}
	for i := range outstandingMax + 100 {
		r.Register(1, fmt.Sprintf("/f%d", i), 0)
	}
	for i := range outstandingMax + 100 {
		r.Begin(set(fmt.Sprintf("/f%d", i)), 0)
	}
	if n := len(r.Pending(1, l, 1)); n != outstandingMax+1 {
		t.Errorf("%d invalidations are on their way", n)
	}
	if _, ok := r.Register(1, "/h", 0); ok {
		t.Error("registered while too many invalidations are on their way")
	}
}

// A command that ends a session waits until its other commands are decided, and keeps new ones from beginning; only then
// does it look for what the session has.
func TestRegistryEndsSessions(t *testing.T) {
	var has []string
	r := NewRegistry(1, func(uint64) []string { return has })
	l := hold(t, r, 1, "/e", 0)
	mine := Of(&command.Command{Kind: command.KindSet, Path: "/x", Session: 9})
	if r.Begin(mine, 0) != Go {
		t.Fatal("the session's command waits")
	}
	end := Of(&command.Command{Kind: command.KindExpireSessions, Sessions: []uint64{8, 9}})
	if r.Begin(end, 0) != Wait {
		t.Fatal("the end does not wait")
	}
	r.Arm(end)
	for _, c := range []command.Command{
		{Kind: command.KindSet, Path: "/y", Session: 9}, {Kind: command.KindCloseSession, Session: 8},
	} {
		if v := r.Begin(Of(&c), 0); v != Refuse {
			t.Errorf("%v begins: %v", c, v)
		}
	}
	has = []string{"/e"} // made by the command that was on its way
	if r.End(mine, 0); len(r.Ready()) > 0 {
		t.Fatal("ready before the client has dropped what goes with the session")
	}
	r.Acknowledge(1, l, 1, 0)
	if got := r.Ready(); !slices.Equal(got, []*Touch{end}) {
		t.Fatalf("ready: %v", got)
	}
	r.End(end, 0)
	if v := r.Begin(Of(&command.Command{Kind: command.KindSet, Path: "/y", Session: 9}), 0); v != Go {
		t.Errorf("after the end: %v", v)
	}
	// One that is withdrawn before it could look, and what nobody looked at meanwhile: it may touch anything.
	r.BeginUntracked()
	if _, ok := r.Register(1, "/z", 0); ok {
		t.Error("registered while nobody knows what is on its way")
	}
	r.Begin(end, 0)
	r.End(end, 0)
	if r.EndUntracked(0); len(r.drains) > 0 || len(r.ending) > 0 || len(r.trees) > 0 {
		t.Errorf("left: %v %v %v", r.drains, r.ending, r.trees)
	}
}

// The wait of a new leader: for each session that it found, or for as long as a lease.
func TestRegistryFlush(t *testing.T) {
	r := NewRegistry(2, nothing)
	r.AwaitFlush(nil, time.Second)
	if !r.Open(0) {
		t.Error("a wait for nobody")
	}
	r.AwaitFlush([]uint64{1, 2}, time.Second)
	r.Flushed(1, 2)
	r.Flushed(3, 2)
	r.Flushed(2, 0) // nothing, in no term: an answer of term 1 may be on its way
	r.Flushed(2, 1)
	if r.Open(time.Second-1) || !r.Awaited(2) || r.Awaited(1) {
		t.Error("open before session 2 has answered")
	}
	if r.Flushed(2, 2); !r.Open(0) {
		t.Error("not open when all have answered")
	}
	r.AwaitFlush([]uint64{1}, time.Second)
	if !r.Open(time.Second) {
		t.Error("not open when all leases are over")
	}
}
