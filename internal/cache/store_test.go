package cache

import (
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/command"
)

var one = Lease{1, 1}

// keep puts path into the store under lease.
func keep(t *testing.T, s *Store, peer uint64, lease Lease, path string) {
	t.Helper()
	w, h := s.Ask(path, peer)
	s.Renew(h, lease, time.Second, 0)
	if !s.Fill(w, lease, h.Dropped, Item{Entry: command.Entry{Path: path}}, 0) {
		t.Fatalf("%s is not kept", path)
	}
}

func has(s *Store, path string) bool {
	_, _, ok := s.Get(path)
	return ok
}

// What was not read since it came goes first, and what is too large never comes.
func TestStoreBound(t *testing.T) {
	s := NewStore(3*(overhead+2) + 1)
	for _, p := range []string{"/a", "/b", "/c"} {
		keep(t, s, 0, one, p)
	}
	s.Get("/a")
	keep(t, s, 0, one, "/d")
	for p, want := range map[string]bool{"/a": true, "/b": false, "/c": true, "/d": true} {
		if has(s, p) != want {
			t.Errorf("%s: %v, want %v", p, !want, want)
		}
	}
	keep(t, s, 0, one, "/a") // again: in the place of the old
	if s.Len() != 3 || s.bytes != 3*(overhead+2) {
		t.Errorf("%d items of %d bytes", s.Len(), s.bytes)
	}
	w, h := s.Ask("/big", 0)
	if s.Fill(w, one, h.Dropped, Item{Entry: command.Entry{Data: make([]byte, 4*overhead)}}, 0) || s.Len() != 3 {
		t.Error("an item larger than the store is kept")
	}
	if s.Leave(); s.Len() != 0 || s.bytes != 0 {
		t.Error("Leave leaves something")
	}
}

// A fill is kept only if nothing that came since it was asked tells against it.
func TestStoreFill(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(s *Store, h Holding)
		want bool
	}{
		{"nothing happened", func(*Store, Holding) {}, true},
		{"its path was invalidated later", func(s *Store, h Holding) { s.Invalidate(h, one, []Invalidation{{1, "/x"}, {2, "/f"}}) }, false},
		{"everything was", func(s *Store, h Holding) { s.Invalidate(h, one, []Invalidation{{1, "/x"}, {2, ""}}) }, false},
		{"before it was registered", func(s *Store, h Holding) { s.Invalidate(h, one, []Invalidation{{1, "/f"}}) }, true},
		{"an invalidation is missing", func(s *Store, h Holding) { s.Invalidate(h, one, []Invalidation{{3, "/x"}}) }, false},
		{"another lease began", func(s *Store, h Holding) { s.Renew(h, Lease{1, 2}, time.Second, 0) }, false},
		{"another leader is asked", func(s *Store, _ Holding) { s.Leave() }, false},
		{"of an invalidation to another peer", func(s *Store, h Holding) {
			h.Peer++
			s.Invalidate(h, one, []Invalidation{{1, "/x"}, {2, "/f"}})
		}, true},
	} {
		s := NewStore(1 << 20)
		w, h := s.Ask("/f", 0)
		s.Renew(h, one, time.Second, 0)
		tt.do(s, h)
		if got := s.Fill(w, one, 1, Item{}, 0); got != tt.want || has(s, "/f") != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if len(s.asked) > 0 {
			t.Errorf("%s: a wish is left", tt.name)
		}
	}
	s := NewStore(1 << 20)
	w, h := s.Ask("/f", 0)
	s.Renew(h, one, time.Second, 0)
	if s.Fill(w, one, 0, Item{}, time.Second) {
		t.Error("kept after the lease")
	}
	if w, _ := s.Ask("/f", 7); w != nil {
		t.Error("a wish to a peer that is not asked")
	}
	if _, ok := s.Holding(7); ok {
		t.Error("a holding for a peer that is not asked")
	}
}

// Dropping comes before the acknowledgement, which is the next Holding; and a lease that ended takes everything along.
func TestStoreDrops(t *testing.T) {
	s := NewStore(1 << 20)
	for _, p := range []string{"/a", "/b", "/c"} {
		keep(t, s, 0, one, p)
	}
	h, _ := s.Holding(0)
	s.Invalidate(h, one, []Invalidation{{1, "/a"}})
	if h, _ = s.Holding(0); has(s, "/a") || !has(s, "/b") || h.Dropped != 1 || h.Lease != one {
		t.Errorf("after one: /a %v, /b %v, %+v", has(s, "/a"), has(s, "/b"), h)
	}
	s.Invalidate(h, Lease{0, 9}, []Invalidation{{2, ""}}) // of an older lease
	if !has(s, "/b") {
		t.Error("an older lease's invalidation counts")
	}
	if s.Renew(h, one, 3*time.Second, time.Second); s.Len() != 0 {
		t.Error("the lease ended before it was renewed, and something is left")
	}
	keep(t, s, 0, Lease{2, 1}, "/d")
	if h, _ = s.Holding(0); h.Dropped != 0 {
		t.Errorf("a new lease begins with %d dropped", h.Dropped)
	}
	s.Invalidate(h, Lease{2, 1}, []Invalidation{{2, "/x"}})
	if has(s, "/d") {
		t.Error("an invalidation is missing, and something is left")
	}
	if _, until, _ := s.Get("/d"); until != 0 {
		t.Error("the end of a lease for what is not there")
	}
}
