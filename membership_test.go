package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
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
