package chubby_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/memnet"
)

// Leadership goes round under load, to a named member and to the best, and writes hardly notice.
func TestTransferUnderLoad(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for _, n := range cell.Nodes() {
			if err := n.WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		held := mustLock(t, cell.Node(0), "/held")
		l := newLoad(t)
		for i, n := range cell.Nodes() {
			l.on(fmt.Sprint("n", i), n)
		}
		for i := range 9 {
			time.Sleep(100 * time.Millisecond)
			old := cell.Index(cell.Leader())
			to, want := "", -1
			if i%3 > 0 {
				want = others(3, old)[i%2]
				to = fmt.Sprint("n", want)
			}
			if err := cell.Node(i%3).TransferLeadership(within(t, time.Minute), to); err != nil {
				t.Fatal(err)
			}
			if now := cell.Index(cell.Leader()); now == old || want >= 0 && now != want {
				t.Errorf("leadership went from n%d to n%d, want %q", old, now, to)
			}
		}
		leader := cell.Leader()
		if err := leader.TransferLeadership(within(t, time.Minute), leader.Status().ID); err != nil || cell.Leader() != leader {
			t.Errorf("transfer to the leader: %v", err)
		}
		if err := held.Err(); err != nil {
			t.Errorf("a lock after transfers: %v", err)
		}
		l.check(cell.Nodes()...)
		if l.worst > 100*time.Millisecond {
			t.Errorf("a write took %v", l.worst)
		}
		t.Logf("%d writes, the slowest took %v", len(l.acked), l.worst)
	})
}

// A transfer to who cannot lead is refused in bounded time, and the cell goes on as before.
func TestTransferRefused(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		nonvoter := cell.Node(cell.Add(func(o *chubby.Options) { o.Nonvoter = true }))
		if err := nonvoter.WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		leader := cell.Leader()
		rest := others(3, cell.Index(leader))
		refused := func(to string, want error, text string) {
			t.Helper()
			start := time.Now()
			err := leader.TransferLeadership(within(t, time.Minute), to)
			if !errors.Is(err, want) || !strings.Contains(err.Error(), text) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("transfer to %q: %v, want %v with %q", to, err, want, text)
			}
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("the refusal took %v", d)
			}
			mustSet(t, leader, "/x", to)
			if cell.Leader() != leader {
				t.Errorf("leadership is lost after a refusal of %q", to)
			}
		}
		refused("n9", chubby.ErrNotFound, "no such member")
		refused("n3", chubby.ErrConflict, "no vote")
		cell.StallDisk(rest[0])
		mustSet(t, leader, "/behind", "1")
		refused(fmt.Sprint("n", rest[0]), chubby.ErrConflict, "behind")
		cell.Resume(rest[0])
		cell.Crash(rest[0])
		time.Sleep(time.Second)
		refused(fmt.Sprint("n", rest[0]), chubby.ErrConflict, "does not answer")
		cell.Restart(rest[0])
	})
}

// In a cell of one there is nobody to hand over to.
func TestTransferAlone(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		if err := cell.Leader().TransferLeadership(within(t, time.Minute), ""); !errors.Is(err, chubby.ErrConflict) {
			t.Errorf("transfer without another voter: %v", err)
		}
		mustSet(t, cell.Node(0), "/x", "1")
	})
}

// A nonvoter can do all that a member can, has the whole state, and is no part of any majority.
func TestNonvoter(t *testing.T) {
	inBubble(t, 2, func(t *testing.T, cell *chubbytest.Cell) {
		for i := range 300 {
			mustSet(t, cell.Node(i%2), fmt.Sprintf("/k%d", i), strings.Repeat("x", 1<<10))
		}
		i := cell.Add(func(o *chubby.Options) { o.Nonvoter = true })
		n := cell.Node(i)
		wantGet(t, n, "/k299", strings.Repeat("x", 1<<10)) // by snapshot
		if s := n.Status(); s.Role != chubby.RoleNonvoter || s.SnapshotBytes == 0 || len(s.Members) != 3 {
			t.Errorf("status is %+v", s)
		}
		l := mustLock(t, n, "/lock")
		mustSet(t, n, "/own", "1")
		if e, err := n.FastGet(t.Context(), "/own"); err != nil || string(e.Data) != "1" {
			t.Errorf("FastGet = %q, %v", e.Data, err)
		}
		if err := l.Unlock(t.Context()); err != nil {
			t.Error(err)
		}
		if err := n.AddNonvoter(within(t, time.Minute), "n2", "n2:1"); err != nil {
			t.Errorf("AddNonvoter of a nonvoter: %v", err)
		}
		if err := n.AddNonvoter(within(t, time.Minute), "n0", "n0:1"); !errors.Is(err, chubby.ErrConflict) {
			t.Errorf("AddNonvoter of a voter: %v", err)
		}
		cell.Restart(i)
		n = cell.Node(i)
		wantGet(t, n, "/own", "1")
		cell.Crash(1)
		if _, err := cell.Node(0).Get(within(t, 10*time.Second), "/own"); !errors.Is(err, chubby.ErrNoLeader) && !errors.Is(err, chubby.ErrNoQuorum) {
			t.Errorf("Get with one of two voters and a nonvoter: %v", err)
		}
		cell.Restart(1)
		if err := cell.Node(0).AddVoter(within(t, time.Minute), "n2", "n2:1"); err != nil {
			t.Fatal(err)
		}
		cell.Crash(1)
		wantGet(t, n, "/own", "1")
		if s := n.Status(); s.Role == chubby.RoleNonvoter {
			t.Errorf("role of a voter: %v", s.Role)
		}
		cell.Restart(1)
	}, func(o *chubby.Options) { o.MaxLogBytes = 128 << 10 })
}

// A nonvoter that does not keep up gets no vote, and AddVoter says what it waited for.
func TestVoteOnlyWhenCaughtUp(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		i := cell.Add(func(o *chubby.Options) { o.Nonvoter = true })
		if err := cell.Node(i).WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		cell.StallDisk(i)
		l := newLoad(t)
		l.on("n0", cell.Node(0))
		err := cell.Node(0).AddVoter(within(t, 20*time.Second), "n1", "n1:1")
		if !errors.Is(err, chubby.ErrUncertain) || !strings.Contains(err.Error(), "not caught up") {
			t.Errorf("AddVoter of one that does not keep up: %v", err)
		}
		wantVoters(t, cell.Node(0), "n0")
		cell.Resume(i)
		if err := cell.Node(0).AddVoter(within(t, time.Minute), "n1", "n1:1"); err != nil {
			t.Error(err)
		}
		wantVoters(t, cell.Node(0), "n0", "n1")
		l.check(cell.Nodes()...)
		if l.worst > 100*time.Millisecond {
			t.Errorf("a write took %v", l.worst)
		}
	})
}

func TestAddRefused(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		stray := cell.Add(func(o *chubby.Options) { o.Join = nil })                          // founds a cell of its own
		other := cell.Add(func(o *chubby.Options) { o.Cell = "other" })                      // wants another cell
		both := cell.Add(func(o *chubby.Options) { o.Join = []string{"n4:1"} })              // asks one that is in no cell
		waits := cell.Add(func(o *chubby.Options) { o.Join = []string{"n3:1", "nobody:1"} }) // as well
		n := cell.Node(0)
		for _, c := range []struct {
			id, addr string
			want     error
		}{
			{"", "n1:1", chubby.ErrBadOptions},
			{"n1", "n1", chubby.ErrBadOptions},
			{"n1", "n1:1", chubby.ErrWrongCell},
			{"n2", "n2:1", chubby.ErrWrongCell},
			{"n9", "n3:1", chubby.ErrWrongCell},
			{"n9", "n0:1", chubby.ErrWrongCell},
			{"n9", "nobody:1", memnet.ErrRefused},
		} {
			if err := n.AddVoter(within(t, time.Minute), c.id, c.addr); !errors.Is(err, c.want) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("AddVoter(%q, %q): %v, want %v", c.id, c.addr, err, c.want)
			}
		}
		if err := cell.Node(other).WaitReady(within(t, 5*time.Second)); !errors.Is(err, chubby.ErrWrongCell) {
			t.Errorf("joining another cell: %v", err)
		}
		for _, i := range []int{both, waits} {
			if err := cell.Node(i).WaitReady(within(t, 5*time.Second)); !errors.Is(err, chubby.ErrNoLeader) || !strings.Contains(err.Error(), "not in a cell yet") {
				t.Errorf("joining nobody: %v", err)
			}
			if _, err := cell.Node(i).Members(within(t, time.Second)); !errors.Is(err, chubby.ErrNoLeader) {
				t.Errorf("Members in no cell: %v", err)
			}
		}
		// Whoever waits with Join may be fetched.
		if err := n.AddNonvoter(within(t, time.Minute), "n3", "n3:1"); err != nil {
			t.Error(err)
		}
		if list, err := n.Members(t.Context()); err != nil || len(list) != 2 {
			t.Errorf("Members = %+v, %v", list, err)
		}
		for _, i := range []int{stray, other, both, waits} {
			cell.Stop(i)
		}
	})
}
