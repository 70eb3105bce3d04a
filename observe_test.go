package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// observer takes what ObserveLeader tells one by one.
type observer struct {
	t    *testing.T
	next func() (chubby.LeaderInfo, error, bool)
	last chubby.LeaderInfo
}

func observe(t *testing.T, n *chubby.Node, path string) *observer {
	t.Helper()
	next, stop := iter.Pull2(n.ObserveLeader(within(t, time.Hour), path))
	t.Cleanup(stop)
	return &observer{t: t, next: next}
}

// want takes one more state: value leads, or nobody where value is empty.
func (o *observer) want(value string) chubby.LeaderInfo {
	o.t.Helper()
	info, err, ok := o.next()
	if err != nil || !ok || string(info.Value) != value || (info.Generation == 0) != (value == "") {
		o.t.Fatalf("observed %+v (%q), %v, %v; want %q", info, info.Value, err, ok, value)
	}
	if info.Generation == 0 && (info.Value != nil || info.Session != 0 || info.Revision != 0 || info.Name != "") {
		o.t.Errorf("nobody is %+v", info)
	}
	if info.Generation != 0 && o.last.Generation > info.Generation {
		o.t.Errorf("generation %d after %d", info.Generation, o.last.Generation)
	}
	o.last = info
	return info
}

func mustCampaign(t *testing.T, c interface {
	Campaign(context.Context, string, []byte, ...chubby.LockOption) (*chubby.Leadership, error)
}, path, value string) *chubby.Leadership {
	t.Helper()
	l, err := c.Campaign(within(t, time.Minute), path, []byte(value))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestObserveLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		a, b, c := cell.Node(0), cell.Node(1), cell.Node(2)
		o := observe(t, c, "svc/leader")
		if info := o.want(""); info.Path != "/svc/leader" {
			t.Errorf("Path = %q", info.Path)
		}
		lead := mustCampaign(t, a, "/svc/leader", "a")
		info := o.want("a")
		asked, err := c.Leader(t.Context(), "/svc/leader")
		if err != nil || fmt.Sprint(info) != fmt.Sprint(asked) || info.Generation != lead.Sequencer().Generation || info.Name != "n0" {
			t.Errorf("observed %+v, Leader says %+v, %v", info, asked, err)
		}
		copy(info.Value, "*") // its own
		if err := lead.Publish(t.Context(), []byte("a2")); err != nil {
			t.Fatal(err)
		}
		o.want("a2")

		// Who waits, who watches, and what happens beside it are no changes of the leader.
		waits := make(chan *chubby.Leadership, 1)
		go func() {
			l, err := b.Campaign(context.Background(), "/svc/leader", []byte("b"))
			if err != nil {
				t.Error(err)
			}
			waits <- l
		}()
		for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) {
			info, err := a.LockInfo(t.Context(), "/svc/leader")
			if err != nil {
				t.Fatal(err)
			}
			waiting = info.Waiters
		}
		mustSet(t, a, "/svc/other", "x")
		observe(t, b, "/svc/leader").want("a2") // one that comes later begins with what is

		// Resignation hands over in one step: nobody was never the case.
		if err := lead.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.want("b")
		lead = <-waits
		if err := lead.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.want("")
		mustSet(t, a, "/svc/leader", "whatever the file holds") // nobody still

		// A session's end is an end of the leadership.
		s, err := a.NewSession(t.Context(), chubby.SessionOptions{Lease: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		mustCampaign(t, s, "/svc/leader", "mortal")
		o.want("mortal")
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.want("")
	})
}

// A leader whose node is cut off loses its session, and is told to be gone where the cell is; where it is cut off, nothing
// is told before the news can come, and then the newest.
func TestObserveLeaderLost(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for range 3 {
			lost := cell.Index(cell.Leader())
			near, far := observe(t, cell.Node(lost), "/lead"), observe(t, cell.Node(others(3, lost)[0]), "/lead")
			near.want("")
			far.want("")
			mustCampaign(t, cell.Node(lost), "/lead", "lost")
			near.want("lost")
			far.want("lost")
			cell.Partition([]int{lost}, others(3, lost))
			far.want("") // after an election and the end of the lease
			lead := mustCampaign(t, cell.Node(others(3, lost)[1]), "/lead", "new")
			far.want("new")
			cell.Heal()
			for info := (chubby.LeaderInfo{}); string(info.Value) != "new"; { // the states in between may be merged, or not
				var err error
				if info, err, _ = near.next(); err != nil || string(info.Value) == "lost" {
					t.Fatalf("observed %+v (%q), %v", info, info.Value, err)
				}
			}
			if err := lead.Resign(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			near.want("")
			far.want("")
		}
	})
}

// A node that missed what happened, and is sent a snapshot instead, tells its observers how it ended. Those to whom
// nothing happened hear nothing. Guards watch.rejoin.
func TestObserveLeaderSnapshot(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		away := others(3, cell.Index(cell.Leader()))[0]
		n, other := cell.Node(away), cell.Node(others(3, away)[0])
		won, lost, same := observe(t, n, "/won"), observe(t, n, "/lost"), observe(t, n, "/same")
		won.want("")
		lost.want("")
		same.want("")
		resigns := mustCampaign(t, other, "/lost", "resigns")
		lost.want("resigns")
		mustCampaign(t, other, "/same", "stays")
		same.want("stays")
		cell.Partition([]int{away}, others(3, away))
		outgrow(t, other)
		leads := mustCampaign(t, other, "/won", "unseen")
		if err := resigns.Resign(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		outgrow(t, other)
		from := n.Status().Revision
		cell.Heal()
		won.want("unseen")
		lost.want("")
		for _, err := range n.Watch(within(t, time.Minute), "/", chubby.WatchOptions{From: from + 1}) {
			if !errors.Is(err, chubby.ErrLagged) {
				t.Fatalf("%v: the node was to be sent a snapshot", err)
			}
		}
		if err := leads.Resign(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		won.want("")
		mustCampaign(t, n, "/lost", "again")
		lost.want("again")
		mustCampaign(t, n, "/won", "again")
		won.want("again")
		mustSet(t, n, "/same", "no longer what was published")
		same.want("no longer what was published")
	}, func(o *chubby.Options) { o.MaxLogBytes = 64 << 10 })
}

// Many observers begin while leaderships change, on all nodes, and all of them learn of the last one. Guards that the
// watch is registered before the state is read, and that the root is readable before its events are published.
func TestObserveLeaderNeverMissesTheLast(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		mustSet(t, n, "/x", "")
		rounds := 300
		if *long {
			rounds = 10_000
		}
		for i := range rounds {
			path, last := fmt.Sprintf("/lead/%d", i%7), fmt.Sprintf("%d.last", i)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for info, err := range n.ObserveLeader(ctx, path) {
						if err != nil {
							t.Errorf("round %d: the last leader was missed: %v", i, err)
						}
						if string(info.Value) == last {
							return
						}
					}
				})
			}
			lead := mustCampaign(t, n, path, fmt.Sprintf("%d.first", i))
			if err := lead.Publish(ctx, []byte(last)); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			if err := lead.Resign(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
			if t.Failed() {
				return
			}
		}
	})
}

func TestObserveLeaderEnds(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		mustCampaign(t, n, "/lead", "me")
		end := func(seq iter.Seq2[chubby.LeaderInfo, error], infos int, want error) {
			t.Helper()
			got, failed := 0, 0
			for _, err := range seq {
				if err == nil {
					got++
				} else if failed++; !errors.Is(err, want) {
					t.Errorf("ended with %v, want %v", err, want)
				}
			}
			if got != infos || failed != 1 || n.Status().Watchers != 0 {
				t.Errorf("%d states and %d errors, want %d and 1; %d watchers left", got, failed, infos, n.Status().Watchers)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		seq := n.ObserveLeader(ctx, "/lead")
		end(seq, 1, context.DeadlineExceeded)
		end(seq, 0, context.DeadlineExceeded)
		end(n.ObserveLeader(context.Background(), "/lead/../x"), 0, chubby.ErrBadPath)
		for range n.ObserveLeader(context.Background(), "/lead") {
			break
		}
		if got := n.Status().Watchers; got != 0 {
			t.Errorf("%d watchers after break", got)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			end(n.ObserveLeader(context.Background(), "/free"), 1, chubby.ErrClosed)
		}()
		synctest.Wait()
		cell.Stop(0)
		<-ended
	})
}
