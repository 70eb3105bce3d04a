package chubby_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

const (
	floor   = 64 << 20 // the default of Limits.MinFreeDisk
	reserve = 8 << 20
	looked  = 2 * time.Second // after which every node has looked at its disk
)

// setFree changes what is left on the disks of some nodes, and waits until they know, and the cell leader of them.
func setFree(cell *chubbytest.Cell, bytes int64, nodes ...int) {
	for _, i := range nodes {
		cell.SetFree(i, bytes)
	}
	time.Sleep(looked)
}

// Below the floor nothing is added, and everything that gives something back goes on. Above it all goes on by itself.
func TestNoSpace(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Leader()
		mustSet(t, n, "/n", "1")
		mustSet(t, n, "/a/b", "x")
		mustSet(t, n, "/c", "x")
		mustSet(t, n, "/cas", "x")
		l := mustLock(t, n, "/l")
		s, err := n.NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		adding := map[string]func(context.Context) error{
			"Set": func(ctx context.Context) error { _, err := n.Set(ctx, "/n", []byte("1")); return err },
			"Create": func(ctx context.Context) error {
				_, err := s.Create(ctx, "/new", nil, chubby.CreateOptions{})
				return err
			},
			"CompareAndSwap": func(ctx context.Context) error {
				_, err := n.CompareAndSwap(ctx, "/cas", []byte("x"), []byte("x"))
				return err
			},
			"Campaign": func(ctx context.Context) error {
				l, err := n.Campaign(ctx, "/e", []byte("me"))
				if err == nil {
					err = l.Resign(ctx)
				}
				return err
			},
			"Txn": func(ctx context.Context) error {
				_, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpDelete("/c"), chubby.OpSet("/c", nil)}})
				return err
			},
		}
		setFree(cell, floor-1, 0)
		for name, add := range adding {
			if err := add(within(t, time.Minute)); !errors.Is(err, chubby.ErrNoSpace) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("%s below the floor: %v", name, err)
			}
		}
		wantGet(t, n, "/n", "1")
		if got, err := n.Add(t.Context(), "/n", 1, math.MaxInt64); err != nil || got != 2 {
			t.Errorf("Add below the floor = %d, %v: it makes nothing larger", got, err)
		}
		mustUnlock(t, l)
		mustUnlock(t, mustLock(t, n, "/l"))
		if err := errors.Join(n.Delete(t.Context(), "/a/b"), n.DeleteTree(t.Context(), "/a"), s.Close(t.Context()), n.Snapshot(t.Context())); err != nil {
			t.Errorf("below the floor: %v", err)
		}
		if s, err = n.NewSession(t.Context(), chubby.SessionOptions{}); err != nil {
			t.Errorf("a session to delete in: %v", err)
		}
		setFree(cell, floor, 0)
		for name, add := range adding {
			if err := add(within(t, time.Minute)); err != nil {
				t.Errorf("%s above the floor again: %v", name, err)
			}
		}
	})
}

// Below the reserve nothing is written. What gives something back waits, and is done when there is room.
func TestNoSpaceReserve(t *testing.T) {
	const lease = 2 * time.Second
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		const holder = 0
		awayFrom(t, cell, holder)
		n := cell.Leader()
		mustSet(t, n, "/x", "1")
		l := mustLock(t, n, "/l")
		lost := mustLock(t, cell.Node(holder), "/lost")
		setFree(cell, reserve-1, 0, 1, 2)
		if err := n.Delete(within(t, time.Minute), "/x"); !errors.Is(err, chubby.ErrNoSpace) || errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("Delete below the reserve: %v", err)
		}
		wantGet(t, n, "/x", "1")
		unlocked := make(chan error, 1)
		go func() { unlocked <- l.Unlock(within(t, time.Minute)) }()
		cell.Crash(holder) // its session is over while nothing can be written
		time.Sleep(3 * lease)
		select {
		case err := <-unlocked:
			t.Errorf("Unlock below the reserve: %v", err)
		default:
		}
		if err := n.CheckSequencer(t.Context(), lost.Sequencer()); err != nil {
			t.Errorf("a session was ended below the reserve: %v", err)
		}
		setFree(cell, reserve, 0, 1, 2)
		if err := <-unlocked; err != nil {
			t.Errorf("Unlock when there is room again: %v", err)
		}
		mustLock(t, n, "/lost")
		if err := n.Delete(t.Context(), "/x"); err != nil {
			t.Errorf("Delete above the reserve: %v", err)
		}
		cell.Restart(holder)
	}, func(o *chubby.Options) { o.SessionLease = lease })
}

// A leader without room hands over to a voter with room that has caught up, and to no other. If there is none it stays.
func TestNoSpaceHandsOver(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		old := cell.Index(cell.Leader())
		low, ample := others(3, old)[0], others(3, old)[1]
		l := mustLock(t, cell.Node(low), "/l")
		setFree(cell, floor-1, low)
		if leader := cell.Index(cell.Leader()); leader != old {
			t.Fatalf("node %d leads, because a follower's disk is full", leader)
		}
		mustSet(t, cell.Node(low), "/x", "1") // that is the leader's to judge
		if err := cell.Node(0).TransferLeadership(within(t, time.Minute), cell.Node(low).Status().ID); !errors.Is(err, chubby.ErrNoSpace) {
			t.Errorf("TransferLeadership to a node without room: %v", err)
		}
		setFree(cell, floor-1, old)
		time.Sleep(looked)
		if leader := cell.Index(cell.Leader()); leader != ample {
			t.Fatalf("node %d leads, want %d, the only one with room", leader, ample)
		}
		mustSet(t, cell.Node(old), "/x", "2")

		term := cell.Leader().Status().Term
		setFree(cell, floor-1, ample)
		time.Sleep(time.Minute)
		if s := cell.Leader().Status(); s.Term != term {
			t.Errorf("with no room anywhere leadership moved: term %d, then %d", term, s.Term)
		}
		if _, err := cell.Node(old).Set(within(t, time.Minute), "/x", nil); !errors.Is(err, chubby.ErrNoSpace) {
			t.Errorf("Set without room anywhere: %v", err)
		}
		if err := cell.Node(0).TransferLeadership(within(t, time.Minute), ""); !errors.Is(err, chubby.ErrNoSpace) {
			t.Errorf("TransferLeadership with no room anywhere: %v", err)
		}
		// Members still change, also when it is the leader that goes.
		leader := cell.Leader().Status().ID
		err := cell.Node(low).RemoveMember(within(t, time.Minute), leader)
		for try := 0; errors.Is(err, chubby.ErrNoQuorum) && try < 10; try++ { // a new leader has not heard from all yet
			time.Sleep(time.Second)
			err = cell.Node(low).RemoveMember(within(t, time.Minute), leader)
		}
		if err != nil {
			t.Errorf("RemoveMember of the leader: %v", err)
		}
		setFree(cell, floor, 0, 1, 2)
		mustSet(t, cell.Node(low), "/x", "3")
		mustUnlock(t, l)
	})
}

// A voter with room that is behind does not get the leadership before it has caught up.
func TestNoSpaceWaitsForTheLagging(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		old := cell.Index(cell.Leader())
		low, lagging := others(3, old)[0], others(3, old)[1]
		mustSet(t, cell.Node(old), "/x", "1")
		cell.StallDisk(lagging)
		mustSet(t, cell.Node(old), "/x", "2")
		setFree(cell, floor-1, low)
		setFree(cell, floor-1, old)
		mustUnlock(t, mustLock(t, cell.Node(old), "/l"))
		time.Sleep(time.Minute)
		if leader := cell.Index(cell.Leader()); leader != old {
			t.Fatalf("node %d leads instead of %d; %d is low and %d lags", leader, old, low, lagging)
		}
		cell.Resume(lagging)
		time.Sleep(10 * time.Second)
		if leader := cell.Index(cell.Leader()); leader != lagging {
			t.Errorf("node %d leads, want %d, which has room and has caught up", leader, lagging)
		}
	})
}

// The floor is looked up on a real disk; negative turns it off.
func TestNoSpaceOnDisk(t *testing.T) {
	for name, c := range map[string]struct {
		floor int64
		want  error
	}{"a floor that no disk reaches": {math.MaxInt64, chubby.ErrNoSpace}, "no floor": {-1, nil}} {
		t.Run(name, func(t *testing.T) {
			n, err := chubby.Open(chubby.Options{Dir: t.TempDir(), Limits: chubby.Limits{MinFreeDisk: c.floor}})
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			if _, err := n.Set(within(t, time.Minute), "/x", nil); !errors.Is(err, c.want) {
				t.Errorf("Set: %v, want %v", err, c.want)
			}
		})
	}
}
