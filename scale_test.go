package chubby_test

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// A queue of thousands, spread over the nodes, is served in the order of asking. A hand-over is one log entry, the release
// that makes it; one from the middle that gives up is one more, and the others do not notice.
func TestLongQueueOfCalls(t *testing.T) {
	waiters, step := 1200, 100
	if *long {
		waiters, step = 10_000, 500
	}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for i := range 3 {
			if _, err := cell.Node(i).Session(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		first := mustLock(t, cell.Node(0), "/q")
		var order []int // which step each one served came in
		var wg sync.WaitGroup
		var gaveUp atomic.Int64
		middle, leave := context.WithCancel(t.Context())
		for i := range waiters {
			ctx := t.Context()
			if i%10 == 5 {
				ctx = middle
			}
			wg.Go(func() {
				l, err := cell.Node(i%3).Lock(ctx, "/q")
				if err != nil {
					gaveUp.Add(1)
					return
				}
				order = append(order, i/step) // the lock guards it
				mustUnlock(t, l)
			})
			if i%step == step-1 {
				for cell.Node(0).Status().Waiters != i+1 {
					time.Sleep(time.Millisecond)
				}
			}
		}
		leave()
		for cell.Node(0).Status().Waiters != waiters-waiters/10 {
			time.Sleep(time.Millisecond)
		}
		before := cell.Leader().Status().CommitIndex
		mustUnlock(t, first)
		wg.Wait()
		served := waiters - waiters/10
		if len(order) != served || gaveUp.Load() != int64(waiters/10) {
			t.Errorf("%d served, %d gave up, want %d and %d", len(order), gaveUp.Load(), served, waiters/10)
		}
		for i := 1; i < len(order); i++ {
			if order[i] < order[i-1] {
				t.Fatalf("one of step %d was served after one of step %d", order[i], order[i-1])
			}
		}
		// Each one unlocks after it was granted, so no two releases share an entry.
		if entries := int(cell.Leader().Status().CommitIndex - before); entries != served+1 {
			t.Errorf("%d log entries for %d hand-overs", entries, served+1)
		}
	})
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// Thousands of sessions, most of them on one node, with many locks, live through the loss of the cell leader. With
// -long they are more than the 8,190 that fit into one frame of a KeepAlive.
func TestFailoverWithManySessions(t *testing.T) {
	sessions, each := 1000, 3
	if *long {
		sessions, each = 10_000, 10
	}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		rest := others(3, leader)
		before := heap()
		locks, all := make([]*chubby.Lock, sessions*each), make([]*chubby.Session, sessions)
		var wg sync.WaitGroup
		for i := range sessions {
			n := cell.Node(rest[0])
			if i%100 == 99 {
				n = cell.Node(rest[1])
			}
			wg.Go(func() {
				s, err := n.NewSession(t.Context(), chubby.SessionOptions{Name: fmt.Sprint("s", i)})
				if err != nil {
					t.Error(err)
					return
				}
				all[i] = s
				for j := range each {
					if locks[i*each+j], err = s.Lock(t.Context(), fmt.Sprintf("/l/%d/%d", i, j)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		t.Logf("%d bytes of heap for each lock with 1/%d of a session, on three nodes and with the callers' handles", (heap()-before)/uint64(len(locks)), each)
		cell.Crash(leader)
		cell.Leader()
		time.Sleep(45 * time.Second) // more than three leases
		if s := cell.Leader().Status(); s.Sessions != sessions || s.Locks != sessions*each {
			t.Errorf("%d sessions and %d locks, want %d and %d", s.Sessions, s.Locks, sessions, sessions*each)
		}
		for i, l := range locks {
			if l.Context().Err() != nil || all[i/each].State() != chubby.SessionActive {
				t.Fatalf("lock %d: %v, session %v", i, context.Cause(l.Context()), all[i/each].State())
			}
		}
		if err := cell.Node(rest[0]).CheckSequencer(t.Context(), locks[0].Sequencer()); err != nil {
			t.Error(err)
		}
	})
}
