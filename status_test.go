package chubby_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// Every field of Status is what the calls before it made it, on every node, and stays so when the node has stopped.
func TestStatusTells(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		mustSet(t, cell.Node(0), "/d/a", "1")
		mustSet(t, cell.Node(1), "/d/b", "1")
		mustLock(t, cell.Node(0), "/l")
		shared := mustRLock(t, cell.Node(1), "/r")
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			if l, err := cell.Node(2).Lock(ctx, "/l"); err == nil {
				t.Errorf("Lock: %v is held by two", l.Sequencer())
			}
		}()
		synctest.Wait()
		events := cell.Node(2).Watch(ctx, "/d", chubby.WatchOptions{})
		time.Sleep(time.Second)
		first := cell.Leader().Status()
		check := func(when string, want chubby.Status) {
			t.Helper()
			for i := range 3 {
				s := cell.Node(i).Status()
				if s.Entries != want.Entries || s.Locks != want.Locks || s.Waiters != want.Waiters || s.Sessions != want.Sessions {
					t.Errorf("%s, node %d: %+v, want counts of %+v", when, i, s, want)
				}
				if s.Revision != first.Revision || s.Epoch != first.Epoch || s.Epoch == 0 || s.Term != first.Term || s.AppliedIndex != s.CommitIndex {
					t.Errorf("%s, node %d: %+v, want as on the leader %+v", when, i, s, first)
				}
				if s.LeaderID != first.ID || !s.Ready || len(s.Members) != 3 || s.LogBytes == 0 || s.SnapshotBytes != 0 || s.Cell != "test" {
					t.Errorf("%s, node %d: %+v", when, i, s)
				}
				role := chubby.RoleFollower
				if i == leader {
					role = chubby.RoleLeader
				}
				if s.Role != role || (s.LastContact == 0) != (i == leader) && s.LastContact > time.Second {
					t.Errorf("%s, node %d: role %s, last contact %v", when, i, s.Role, s.LastContact)
				}
				for _, m := range s.Members {
					if !m.Voter || m.Leader != (m.ID == first.ID) || m.Addr == "" {
						t.Errorf("%s, node %d: member %+v", when, i, m)
					}
				}
			}
		}
		check("with all of it", chubby.Status{Entries: 3, Locks: 2, Waiters: 1, Sessions: 3})
		if got := cell.Node(2).Status().Watchers; got != 1 {
			t.Errorf("%d watchers, want 1", got)
		}
		cancel()
		<-gone
		for range events { // ends with ctx
		}
		mustUnlock(t, shared)
		if err := cell.Node(0).DeleteTree(t.Context(), "/d"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		first = cell.Leader().Status()
		check("afterwards", chubby.Status{Locks: 1, Sessions: 3})
		if got := cell.Node(2).Status().Watchers; got != 0 {
			t.Errorf("%d watchers, want none", got)
		}

		stopped := others(3, leader)[0]
		before := cell.Node(stopped).Status()
		cell.Crash(stopped)
		s := cell.Node(stopped).Status()
		if s.Role != chubby.RoleStopped || s.Ready || s.LeaderID != "" {
			t.Errorf("stopped: %+v", s)
		}
		if s.ID != before.ID || s.Revision < before.Revision || s.Locks != 1 || s.Epoch != before.Epoch || len(s.Members) != 3 || s.AppliedIndex < before.AppliedIndex {
			t.Errorf("what a stopped node knew: %+v, before that %+v", s, before)
		}
		if err := cell.Node(stopped).Check(t.Context()); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Check of a stopped node: %v", err)
		}
		done, cancel := context.WithCancel(t.Context())
		cancel()
		if err := cell.Node(leader).Check(done); !errors.Is(err, context.Canceled) {
			t.Errorf("Check with a ctx that is done: %v", err)
		}
		cell.Restart(stopped)
	})
}

// A node of a cell that is not founded yet has a Status too, and so has one that was stopped then.
func TestStatusBeforeFounding(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for i := range 3 {
			cell.Stop(i)
		}
		cell.Restart(0)
		time.Sleep(time.Second)
		if s := cell.Node(0).Status(); s.ID != "n0" || s.Cell != "test" || s.Ready || s.LeaderID != "" || s.Role != chubby.RoleFollower && s.Role != chubby.RoleCandidate {
			t.Errorf("Status %+v", s)
		}
		cell.Stop(0)
		if s := cell.Node(0).Status(); s.ID != "n0" || s.Role != chubby.RoleStopped || s.Ready {
			t.Errorf("Status once stopped: %+v", s)
		}
		for i := range 3 {
			cell.Restart(i)
		}
		cell.Leader()
	})
}
