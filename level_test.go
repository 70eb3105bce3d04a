package chubby_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/hook"
)

// wantStopped waits until a node has stopped because the cell is beyond it, and tells the cell under test that this is right.
func wantStopped(t *testing.T, cell *chubbytest.Cell, i int) {
	t.Helper()
	n := cell.Node(i)
	select {
	case <-n.Done():
	case <-time.After(time.Minute):
		t.Fatalf("node %d goes on in a cell that is beyond it", i)
	}
	if err := n.Err(); errors.Is(err, chubby.ErrCorrupt) || err == nil || !strings.Contains(err.Error(), "open the node with the release that the other members run") {
		t.Errorf("node %d stopped with: %v", i, err)
	}
	cell.Break(i, n.Err())
}

// A cell of two releases, upgraded one node after the other. Commands of the new level are refused, on every node, until
// the last member has the new release, and while one is down. Then all use them. A node that goes back to the old release
// stops, and says why; so does one of the old release that is taken in.
func TestLevels(t *testing.T) {
	levels := map[string]uint32{}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		wantLevel := func(want uint32) {
			t.Helper()
			cell.Leader()
			time.Sleep(4 * time.Second) // the leader looks every second
			for _, n := range cell.Nodes() {
				mustSet(t, n, "/a", "x")
				if got := chubby.Level(n); got != want {
					t.Fatalf("%s is at level %d, want %d", n.Status().ID, got, want)
				}
				if err := chubby.Probe(within(t, time.Minute), n); (err == nil) != (want >= chubby.ProbeLevel) || err != nil && !errors.Is(err, chubby.ErrConflict) {
					t.Fatalf("a command of level 2 on %s in a cell of level %d: %v", n.Status().ID, want, err)
				}
			}
		}
		wantLevel(1)
		for i, id := range []string{"n0", "n1"} {
			levels[id] = 2
			cell.Restart(i)
			wantLevel(1)
		}
		if err := cell.Leader().TransferLeadership(within(t, time.Minute), "n0"); err != nil && cell.Leader() != cell.Node(0) {
			t.Fatal(err)
		}
		cell.Stop(2)
		wantLevel(1)
		levels["n2"] = 2
		cell.Restart(2)
		wantLevel(2)
		cell.Restart(1)
		wantLevel(2)

		// The level is in backups, and in the cells made of them.
		o := chubby.Options{ID: "r", Cell: "test", Hooks: &hook.Hooks{Disk: new(hook.Disk)}}
		if err := chubby.Restore(bytes.NewReader(mustBackup(t, cell.Leader())), o); err == nil || !strings.Contains(err.Error(), "feature level 2") {
			t.Errorf("Restore by an old release: %v", err)
		}

		// One of the old release is not taken in.
		i := cell.Add(func(o *chubby.Options) { o.Nonvoter = true })
		if err := cell.Node(i).WaitReady(within(t, 10*time.Second)); err == nil || !strings.Contains(err.Error(), "feature level 2") {
			t.Errorf("an old release joins: %v", err)
		}
		if m := cell.Leader().Status().Members; len(m) != 3 {
			t.Errorf("members are %+v", m)
		}
		cell.Stop(i)

		levels["n1"] = 1
		cell.Restart(1)
		wantStopped(t, cell, 1)
		cell.Stop(1)
		wantGet(t, cell.Leader(), "/a", "x")
	}, func(o *chubby.Options) { o.Hooks.Level = levels[o.ID] })
}

// Goal: a node that meets a command which it does not know stops, by itself and with the reason, and applies nothing more;
// those that know it go on. Method: the command is brought into the log of a mixed cell past the rule.
func TestUnknownCommandStops(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Leader()
		for cell.Leader() == cell.Node(2) {
			if err := cell.Leader().TransferLeadership(within(t, time.Minute), "n0"); err != nil {
				t.Fatal(err)
			}
		}
		if !chubby.ForceProbe(cell.Leader()) {
			t.Fatal("the command was not executed")
		}
		mustSet(t, cell.Leader(), "/a", "x")
		wantStopped(t, cell, 2)
		wantGet(t, cell.Leader(), "/a", "x")
		// It stays stopped: the command is in its log.
		cell.Restart(2)
		wantStopped(t, cell, 2)
	}, func(o *chubby.Options) {
		if o.ID != "n2" {
			o.Hooks.Level = 2
		}
	})
}

// A snapshot of a level beyond its own keeps a node from opening.
func TestNewerSnapshot(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, _ *chubbytest.Cell) {
		disk := new(hook.Disk)
		n := openNode(t, chubby.Options{Hooks: &hook.Hooks{Disk: disk, Level: 2}})
		for chubby.Level(n) < 2 {
			mustSet(t, n, "/a", "x")
			time.Sleep(time.Second)
		}
		if err := n.Snapshot(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		n.Close()
		if _, err := chubby.Open(chubby.Options{Hooks: &hook.Hooks{Disk: disk}}); err == nil || !strings.Contains(err.Error(), "feature level 2") {
			t.Errorf("Open by an old release: %v", err)
		}
		if err := chubby.RecoverDisk(disk); err == nil || !strings.Contains(err.Error(), "feature level 2") {
			t.Errorf("Recover by an old release: %v", err)
		}
		n = openNode(t, chubby.Options{Hooks: &hook.Hooks{Disk: disk, Level: 2}})
		wantGet(t, n, "/a", "x")
		n.Close()
	})
}
