package state

import (
	"slices"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// A caching session is its principal's, and only while it lives.
func TestCaches(t *testing.T) {
	m := NewMachine(New("c", 1))
	apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: 1, Principal: "p", Lease: 2000, Caching: true})
	apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: 2, Principal: "p", Lease: 2000})
	apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: 4, Principal: "p", Lease: 1999, Caching: true})
	s, _ := m.Publish()
	for _, tt := range []struct {
		name      string
		session   uint64
		principal string
		want      bool
	}{
		{"its own", 1, "p", true},
		{"another's", 1, "q", false},
		{"not caching", 2, "p", false},
		{"unknown", 3, "p", false},
		{"lease too short", 4, "p", false},
	} {
		if got := s.Caches(tt.session, tt.principal, 2000); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	var views []bool
	for v := range s.Sessions() {
		views = append(views, v.Caching)
	}
	if !slices.Equal(views, []bool{true, false, true}) {
		t.Errorf("Sessions say %v", views)
	}
	apply(t, m, &command.Command{Kind: command.KindCloseSession, Session: 1, Principal: "p"})
	if s, _ = m.Publish(); s.Caches(1, "p", 0) {
		t.Error("a session that was closed caches")
	}
}

// What the end of a session changes is among its belongings: entries, locks held, and locks waited for, which somebody
// may hand over before the end.
func TestBelongings(t *testing.T) {
	m := NewMachine(New("c", 1))
	for id := uint64(1); id <= 2; id++ {
		apply(t, m, &command.Command{Kind: command.KindOpenSession, Session: id})
	}
	seq := uint64(0)
	do := func(session uint64, c command.Command) {
		seq++
		c.Session, c.Seq = session, seq
		apply(t, m, &c)
	}
	do(1, command.Command{Kind: command.KindCreate, Path: "/mine", Ephemeral: true})
	do(1, command.Command{Kind: command.KindCreate, Path: "/stays"})
	do(1, command.Command{Kind: command.KindLock, Path: "/held", Mode: fence.Exclusive})
	do(2, command.Command{Kind: command.KindLock, Path: "/mine", Mode: fence.Exclusive})
	do(2, command.Command{Kind: command.KindLock, Path: "/other", Mode: fence.Exclusive})
	do(1, command.Command{Kind: command.KindLock, Path: "/other", Mode: fence.Exclusive})
	do(1, command.Command{Kind: command.KindOpen, Path: "/open", Create: true, Ephemeral: true})
	s, _ := m.Publish()
	if got, want := s.Belongings(1), []string{"/held", "/mine", "/open", "/other"}; !slices.Equal(got, want) {
		t.Errorf("Belongings(1) = %q, want %q", got, want)
	}
	if got := s.Belongings(3); len(got) > 0 {
		t.Errorf("Belongings of an unknown session: %q", got)
	}
}
