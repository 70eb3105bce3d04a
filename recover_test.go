package chubby_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/hook"
)

// lostQuorum runs a cell of three until two are lost, gives the survivor everything, and returns its sequencer and revision.
func lostQuorum(t *testing.T, cell *chubbytest.Cell) (old fence.Sequencer, seen uint64, want map[string]chubby.Entry) {
	t.Helper()
	l := fill(t, cell.Leader())
	survivor := cell.Node(2)
	want = tree(t, survivor)
	old, seen = l.Sequencer(), survivor.Status().Revision
	for i := range 3 {
		cell.Crash(i)
	}
	return old, seen, want
}

// The survivor of a lost quorum goes on alone, with everything it had. The old members, should they come back, are another
// cell: nothing passes between them, and a resource tells the two apart.
func TestRecover(t *testing.T) {
	disks := make(map[string]*hook.Disk)
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		old, seen, want := lostQuorum(t, cell)
		if err := chubby.RecoverDisk(disks["n2"]); err != nil {
			t.Fatal(err)
		}
		cell.Restart(2)
		n := cell.Node(2)
		if err := n.WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		wantTree(t, tree(t, n), want)
		wantNewEpoch(t, n, old, seen)
		if m := n.Status().Members; len(m) != 1 || m[0].ID != "n2" || m[0].Addr != "n2:1" || !m[0].Voter {
			t.Errorf("members are %+v", m)
		}
		locked := mustLock(t, n, "/dir0/file1").Sequencer()

		cell.Restart(0)
		cell.Restart(1)
		was := cell.Node(0)
		mustSet(t, was, "/dir0/file0", "old cell")
		mustSet(t, n, "/dir0/file0", "new cell")
		time.Sleep(time.Minute)
		wantGet(t, was, "/dir0/file0", "old cell")
		wantGet(t, n, "/dir0/file0", "new cell")
		l := mustLock(t, was, "/dir0/file1")
		var guard fence.Guard
		if guard.Check(l.Sequencer()) != nil || guard.Check(locked) != nil || !errors.Is(guard.Check(l.Sequencer()), fence.ErrStale) {
			t.Errorf("%v of the old cell is not older than %v", l.Sequencer(), locked)
		}
		if e := n.Status().Epoch; e == was.Status().Epoch {
			t.Errorf("both cells have epoch %d", e)
		}
		// The two that were lost join with empty disks.
		for i := range 2 {
			cell.Wipe(i, false)
		}
		for i := range 2 {
			cell.Wipe(i, true)
			cell.Restart(i)
			if err := n.AddVoter(within(t, time.Minute), fmt.Sprint("n", i), fmt.Sprintf("n%d:1", i)); err != nil {
				t.Fatal(err)
			}
		}
		cell.Restart(2)
		for i := range 3 {
			wantGet(t, cell.Node(i), "/dir0/file0", "new cell")
			if err := cell.Node(i).CheckSequencer(within(t, time.Minute), old); !errors.Is(err, chubby.ErrStaleSequencer) {
				t.Errorf("the old sequencer on node %d: %v", i, err)
			}
			if m := cell.Node(i).Status().Members; len(m) != 3 {
				t.Errorf("members are %+v", m)
			}
		}
	}, func(o *chubby.Options) { disks[o.ID] = o.Hooks.Disk })
}

// A dialled client that meets the new epoch closes its sessions, and goes on with new ones. A watch of it that would go on
// from the old epoch ends.
func TestRecoverMeetsClient(t *testing.T) {
	disks := make(map[string]*hook.Disk)
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.Dial()
		s, err := c.NewSession(within(t, time.Minute), chubby.SessionOptions{Lease: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		l := mustLock(t, s, "/lock")
		watched := make(chan error, 1)
		events := c.Watch(within(t, time.Hour), "/", chubby.WatchOptions{})
		go func() {
			for _, err := range events {
				if err != nil {
					watched <- err
				}
			}
		}()
		for i := range 3 {
			cell.Crash(i)
		}
		if err := chubby.RecoverDisk(disks["n2"]); err != nil {
			t.Fatal(err)
		}
		cell.Restart(2)
		select {
		case <-s.Done():
		case <-time.After(10 * time.Minute): // much less than its lease
			t.Fatal("the session outlived its epoch")
		}
		if !errors.Is(s.Err(), chubby.ErrSessionExpired) || !errors.Is(l.Err(), chubby.ErrSessionExpired) {
			t.Errorf("session: %v, lock: %v", s.Err(), l.Err())
		}
		if err := <-watched; !errors.Is(err, chubby.ErrLagged) {
			t.Errorf("watch: %v", err)
		}
		now, err := c.Lock(within(t, time.Minute), "/lock")
		if err != nil {
			t.Fatal(err)
		}
		if now.Sequencer().Compare(l.Sequencer()) <= 0 {
			t.Errorf("%v after %v", now.Sequencer(), l.Sequencer())
		}
		if err := c.CheckSequencer(within(t, time.Minute), l.Sequencer()); !errors.Is(err, chubby.ErrStaleSequencer) {
			t.Errorf("the old sequencer: %v", err)
		}
	}, func(o *chubby.Options) { disks[o.ID] = o.Hooks.Disk })
}

// Recover of a real directory: not while the node runs, not of nothing, and any number of times.
func TestRecoverDir(t *testing.T) {
	dir := t.TempDir()
	if err := chubby.Recover(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an empty directory: %v", err)
	}
	wantNothing(t, dir)
	if err := chubby.Recover(""); err == nil {
		t.Error("of no directory")
	}
	inBubble(t, 1, func(t *testing.T, _ *chubbytest.Cell) {
		o := chubby.Options{ID: "a", Dir: dir}
		n := openNode(t, o)
		mustSet(t, n, "/count", "0")
		var e *chubby.Error
		if err := chubby.Recover(dir); !errors.Is(err, chubby.ErrInUse) || !errors.As(err, &e) || e.Op != "recover" {
			t.Errorf("of a node that runs: %v", err)
		}
		for i := range 3 {
			l := mustLock(t, n, fmt.Sprint("/lock", i))
			if i == 1 {
				if err := n.Snapshot(within(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				mustSet(t, n, "/after the snapshot", "x")
			}
			mustSet(t, n, "/count", fmt.Sprint(i+1))
			want, seen := tree(t, n), n.Status().Revision
			n.Close()
			if err := chubby.Recover(dir); err != nil {
				t.Fatal(err)
			}
			n = openNode(t, o)
			if err := n.WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			wantTree(t, tree(t, n), want)
			wantNewEpoch(t, n, l.Sequencer(), seen)
		}
		n.Close()
	})
	if err := os.WriteFile(filepath.Join(dir, "snap.db"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := chubby.Recover(dir); !errors.Is(err, chubby.ErrCorrupt) {
		t.Errorf("of a damaged directory: %v", err)
	}
}
