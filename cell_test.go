package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// inBubble runs f on a cell of n nodes in fake time.
func inBubble(t *testing.T, n int, f func(t *testing.T, cell *chubbytest.Cell), opts ...func(*chubby.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cell := chubbytest.NewCell(t, n, opts...)
		f(t, cell)
	})
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func mustSet(t *testing.T, n *chubby.Node, path, value string) {
	t.Helper()
	if _, err := n.Set(within(t, time.Minute), path, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func wantGet(t *testing.T, n *chubby.Node, path, want string) {
	t.Helper()
	e, err := n.Get(within(t, time.Minute), path)
	if err != nil || string(e.Data) != want {
		t.Fatalf("Get(%q) = %q, %v, want %q", path, e.Data, err, want)
	}
}

// others gives the indexes of all nodes of a cell of n but i.
func others(n, i int) []int {
	var list []int
	for j := range n {
		if j != i {
			list = append(list, j)
		}
	}
	return list
}

func TestEveryCallOnEveryNode(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for i, n := range cell.Nodes() {
			path := fmt.Sprintf("/from/n%d", i)
			mustSet(t, n, path, "x")
			for _, reader := range cell.Nodes() {
				wantGet(t, reader, path, "x")
			}
		}
		list, err := cell.Node(2).List(t.Context(), "/from")
		if err != nil || len(list) != 3 || list[1].Path != "/from/n1" {
			t.Fatalf("List = %v, %v", list, err)
		}
	})
}

// A write acknowledged on one node is in the memory of the others before anything else is written.
func TestFollowersHearOfCommitsAtOnce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for _, n := range cell.Nodes() {
			if err := n.WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		for i, n := range cell.Nodes() {
			value := fmt.Sprint("v", i)
			mustSet(t, n, "/x", value)
			acked := time.Now()
			for _, reader := range cell.Nodes() {
				for {
					e, err := reader.FastGet(t.Context(), "/x")
					if err == nil && string(e.Data) == value {
						break
					}
					if time.Since(acked) > 5*time.Millisecond {
						t.Fatalf("not readable after %v: %q, %v", time.Since(acked), e.Data, err)
					}
					time.Sleep(10 * time.Microsecond)
				}
			}
		}
	})
}

func TestLeaderCrash(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/before", "1")
		for range 3 {
			old := cell.Index(cell.Leader())
			cell.Crash(old)
			start := time.Now()
			mustSet(t, cell.Node(others(3, old)[0]), "/after", "2")
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("no write for %v after the leader crashed", d)
			}
			cell.Restart(old)
			wantGet(t, cell.Node(old), "/before", "1")
			wantGet(t, cell.Node(old), "/after", "2")
		}
	})
}

// Crash all nodes at once: what was acknowledged is there when they are back, whichever come back first.
func TestAllCrash(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for i := range 20 {
			mustSet(t, cell.Node(i%3), fmt.Sprintf("/k%d", i), "v")
		}
		for i := range 3 {
			cell.Crash(i)
		}
		cell.Restart(2)
		cell.Restart(1)
		for i := range 20 {
			wantGet(t, cell.Node(1+i%2), fmt.Sprintf("/k%d", i), "v")
		}
	})
}

func TestMinorityAnswersNothing(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		old := cell.Index(cell.Leader())
		cell.Partition([]int{old}, others(3, old))
		_, err := cell.Node(old).Get(within(t, 5*time.Second), "/x")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrNoLeader) && !errors.Is(err, chubby.ErrNoQuorum) {
			t.Errorf("Get in the minority: %v", err)
		}
		_, err = cell.Node(old).Set(within(t, 5*time.Second), "/x", []byte("2"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Set in the minority: %v", err)
		}
		mustSet(t, cell.Node(others(3, old)[0]), "/y", "majority")
		cell.Heal()
		wantGet(t, cell.Node(old), "/y", "majority")
	})
}

// The proof of leadership: a leader that was frozen while another was elected must not answer from its memory, however
// much it believes that it leads. Its raft does believe so: the goroutine that would step down hangs in a write to the
// disk, as that of a process whose disk or machine stands still does.
func TestReadDeposedLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		for round := range 5 {
			old := cell.Index(cell.Leader())
			cell.Pause(old)
			stuck := make(chan error, 1)
			go func() { _, err := cell.Node(old).Set(context.Background(), "/stuck", nil); stuck <- err }()
			value := fmt.Sprint("new", round)
			mustSet(t, cell.Node(others(3, old)[0]), "/x", value)
			if role := cell.Node(old).Status().Role; role != chubby.RoleLeader {
				t.Fatalf("the frozen node is %s: it was to believe that it leads", role)
			}
			type answer struct {
				data string
				err  error
			}
			answers := make(chan answer, 2)
			for range 2 { // both begin after the write was acknowledged elsewhere
				go func() {
					e, err := cell.Node(old).Get(context.Background(), "/x")
					answers <- answer{string(e.Data), err}
				}()
			}
			synctest.Wait()
			cell.Resume(old)
			for range 2 {
				if a := <-answers; a.err != nil || a.data != value {
					t.Fatalf("Get on the deposed leader = %q, %v, want %q", a.data, a.err, value)
				}
			}
			if err := <-stuck; err != nil {
				t.Errorf("the write that was stuck: %v", err)
			}
		}
	})
}

func TestFastGet(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		follower := others(3, cell.Index(cell.Leader()))[0]
		n := cell.Node(follower)
		cell.Delay(0, 5*time.Millisecond) // so that an answer can be here before what it tells of
		for i := range 50 {
			value := fmt.Sprint(i)
			mustSet(t, n, "/own", value)
			if e, err := n.FastGet(t.Context(), "/own"); err != nil || string(e.Data) != value {
				t.Fatalf("FastGet after own write = %q, %v, want %q", e.Data, err, value)
			}
		}
		cell.Delay(0, 0)
		time.Sleep(time.Minute) // nobody reads
		e, err := n.FastGet(t.Context(), "/own")
		if err != nil || e.Age > time.Second {
			t.Errorf("Age on an idle node in touch with its leader = %v, %v", e.Age, err)
		}
		cell.Partition([]int{follower}, others(3, follower))
		cut := time.Now()
		time.Sleep(time.Minute)
		e, err = n.FastGet(t.Context(), "/own")
		if err != nil || e.Age < time.Since(cut) || e.Age > time.Since(cut)+2*time.Second {
			t.Errorf("Age after %v without contact = %v, %v", time.Since(cut), e.Age, err)
		}
	})
}

func TestFastGetAfterRestart(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Partition([]int{0}, []int{1, 2})
		cell.Restart(0)
		if _, err := cell.Node(0).FastGet(t.Context(), "/x"); !errors.Is(err, chubby.ErrNoLeader) {
			t.Errorf("FastGet before catching up: %v", err)
		}
		cell.Heal()
		if err := cell.Node(0).WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if e, err := cell.Node(0).FastGet(t.Context(), "/x"); err != nil || string(e.Data) != "1" {
			t.Errorf("FastGet after catching up = %q, %v", e.Data, err)
		}
	})
}

// A leader that closes hands over instead of leaving the others to find out.
func TestCloseHandsOver(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		for range 3 {
			old := cell.Index(cell.Leader())
			other := cell.Node(others(3, old)[0])
			mustSet(t, other, "/x", "2")
			term := other.Status().Term
			cell.Stop(old)
			start := time.Now()
			mustSet(t, other, "/x", "3")
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("no write for %v after the leader was closed", d)
			}
			if got := other.Status().Term; got != term+1 {
				t.Errorf("term went from %d to %d, want one election", term, got)
			}
			cell.Restart(old)
			if err := cell.Node(old).WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestCloseEndsCalls(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Partition([]int{0}, []int{1}, []int{2})
		errs := make(chan error, 3)
		go func() { _, err := cell.Node(0).Set(context.Background(), "/x", nil); errs <- err }()
		go func() { _, err := cell.Node(0).Get(context.Background(), "/x"); errs <- err }()
		go func() { _, err := cell.Node(0).Lock(context.Background(), "/x"); errs <- err }()
		synctest.Wait()
		start := time.Now()
		cell.Stop(0)
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("Close without a quorum took %v", d)
		}
		for range 3 {
			if err := <-errs; !errors.Is(err, chubby.ErrClosed) {
				t.Errorf("call in flight at Close: %v", err)
			}
		}
		if _, err := cell.Node(0).Get(t.Context(), "/x"); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Get on a closed node: %v", err)
		}
		if err := cell.Node(0).Err(); err != nil {
			t.Errorf("Err after Close: %v", err)
		}
	})
}

// The log stays below its limit while much more than that is written, and a node that was away for all of it comes back
// by snapshot.
func TestLogStaysBounded(t *testing.T) {
	const limit = 256 << 10
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		away := others(3, cell.Index(cell.Leader()))[0]
		cell.Stop(away)
		n := cell.Leader()
		value := make([]byte, 4<<10)
		var most int64
		for i := range 1000 {
			if _, err := n.Set(t.Context(), fmt.Sprintf("/k%d", i%10), value); err != nil {
				t.Fatal(err)
			}
			most = max(most, n.Status().LogBytes)
		}
		if most > limit*5/4 {
			t.Errorf("the log reached %d bytes of %d", most, limit)
		}
		mustSet(t, n, "/last", "1")
		cell.Restart(away)
		wantGet(t, cell.Node(away), "/last", "1")
		if s := cell.Node(away).Status(); s.SnapshotBytes == 0 {
			t.Errorf("it came back without a snapshot: %+v", s)
		}
	}, func(o *chubby.Options) { o.MaxLogBytes = limit })
}

// The log is compacted when it has reached 85 % of MaxLogBytes, and not before: the seed's rule.
func TestCompactionThreshold(t *testing.T) {
	const limit = 1 << 20
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Leader()
		value := make([]byte, 4<<10)
		for i := 0; ; i++ {
			before := n.Status().LogBytes
			if _, err := n.Set(t.Context(), fmt.Sprintf("/k%d", i%10), value); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // for a compaction, if one has begun
			s := n.Status()
			if s.SnapshotBytes == 0 && s.LogBytes < limit*85/100 {
				continue
			}
			// This write has crossed the border, and the log is small again.
			if before+int64(len(value))+1024 < limit*85/100 || s.SnapshotBytes == 0 || s.LogBytes > limit/2 {
				t.Errorf("after %d writes: %d bytes before the last, %d after it, snapshot of %d", i+1, before, s.LogBytes, s.SnapshotBytes)
			}
			return
		}
	}, func(o *chubby.Options) { o.MaxLogBytes = limit })
}
