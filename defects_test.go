package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// What ChubbyGo got wrong, one test for each defect that no other test is about already. The list, with the numbers
// that stand in the names, is in docs/from-chubbygo.md.

// append1 appends to a file, whoever else does: the way of those who need what ChubbyGo's Append promised.
func append1(ctx context.Context, c *chubby.Client, path, text string) error {
	for {
		e, err := c.Get(ctx, path)
		if err != nil && !errors.Is(err, chubby.ErrNotFound) {
			return err
		}
		// The generation of what is not there is 0, and IfGeneration(0) means that it still is not.
		_, err = c.Set(ctx, path, append(e.Data, text...), chubby.IfGeneration(e.Stat.Generation))
		if !errors.Is(err, chubby.ErrConflict) && !errors.Is(err, chubby.ErrNotFound) {
			return err
		}
	}
}

// Append overwrote what was there. There is none here; whoever reads and then writes under a condition loses nothing.
func TestD1AppendKeepsWhatIsThere(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				for j := range 10 {
					if err := append1(within(t, time.Minute), cell.Node(i).Client, "/log", fmt.Sprintf("<%d.%d>", i, j)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		e, err := cell.Node(0).Get(t.Context(), "/log")
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			last := -1
			for j := range 10 {
				at := strings.Index(string(e.Data), fmt.Sprintf("<%d.%d>", i, j))
				if at <= last {
					t.Fatalf("<%d.%d> at %d after %d in %s", i, j, at, last, e.Data)
				}
				last = at
			}
		}
	})
}

// A lock with a timeout released whoever held it when the time was over, on each replica by itself. Here the end names
// the grant: it is over for that one, everywhere, and nobody else's.
func TestD3TimedLockFreesNoLaterHolder(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		const hold = time.Second
		for round := range 3 {
			timed := mustLock(t, cell.Node(round), "/l", chubby.MaxHold(hold))
			if round%2 == 0 {
				mustUnlock(t, timed) // in time
			} else {
				<-timed.Done() // by itself
			}
			next := mustLock(t, cell.Node((round+1)%3), "/l")
			ctx := next.Context()
			time.Sleep(10 * hold)
			if ctx.Err() != nil || next.Err() != nil {
				t.Fatalf("round %d: the next holder lost the lock: %v", round, next.Err())
			}
			for i := range 3 {
				info, err := cell.Node(i).LockInfo(t.Context(), "/l")
				if err != nil || len(info.Holders) != 1 || info.Generation != next.Sequencer().Generation {
					t.Fatalf("round %d: node %d says %+v, %v", round, i, info, err)
				}
			}
			mustUnlock(t, next)
		}
	})
}

// The snapshot had the values only: who restarted had forgotten all locks. Here all nodes but the holder's are restarted
// from snapshots, and lead after that, and the lock is still held under the same generation.
func TestD5SnapshotsKeepLocksAndSessions(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		holder := others(3, cell.Index(cell.Leader()))[0]
		l := mustLock(t, cell.Node(holder), "/l")
		shared := mustRLock(t, cell.Node(holder), "/r")
		ctx, session := l.Context(), sessionID(t, cell.Node(holder))
		for _, i := range others(3, holder) {
			if err := cell.Leader().Snapshot(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			cell.Stop(i)
			for k := range 40 { // so much that the others drop what the node has missed
				mustSet(t, cell.Node(holder), fmt.Sprint("/k", k%3), strings.Repeat("x", 16<<10))
			}
			cell.Restart(i)
			if err := cell.Node(i).WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if s := cell.Node(i).Status(); s.SnapshotBytes == 0 || s.Locks != 2 || s.Sessions < 1 {
				t.Fatalf("node %d after its restart: %+v", i, s)
			}
		}
		awayFrom(t, cell, holder) // so that it is one of the restarted ones that knows
		if ctx.Err() != nil || shared.Err() != nil {
			t.Fatalf("the holder lost its locks: %v, %v", context.Cause(ctx), shared.Err())
		}
		for _, i := range others(3, holder) {
			info, err := cell.Node(i).LockInfo(t.Context(), "/l")
			if err != nil || info.Generation != l.Sequencer().Generation || len(info.Holders) != 1 || info.Holders[0].Session != session {
				t.Errorf("node %d: %+v, %v", i, info, err)
			}
		}
		if _, err := cell.Node(others(3, holder)[0]).TryLock(t.Context(), "/l"); !errors.Is(err, chubby.ErrLockHeld) {
			t.Errorf("another gets the lock: %v", err)
		}
		mustUnlock(t, l)
		mustUnlock(t, shared)
	}, func(o *chubby.Options) { o.MaxLogBytes = 64 << 10 })
}

func mustRLock(t *testing.T, n *chubby.Node, path string) *chubby.Lock {
	t.Helper()
	l, err := n.RLock(within(t, time.Minute), path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func sessionID(t *testing.T, n *chubby.Node) chubby.SessionID {
	t.Helper()
	s, err := n.Session(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	return s.ID()
}

// Everything was global, so a process could have one server of one cell. Here it has two cells of five, in which the
// same paths, locks and node names mean different things.
func TestD6CellsShareNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cells := []*chubbytest.Cell{chubbytest.NewCell(t, 5), chubbytest.NewCell(t, 5)}
		var locks []*chubby.Lock
		for i, cell := range cells {
			mustSet(t, cell.Node(i), "/name", fmt.Sprint(i))
			locks = append(locks, mustLock(t, cell.Node(i), "/l"))
		}
		cells[0].Partition([]int{0, 1, 2, 3, 4}) // that cell's network, and nothing else
		cells[0].Stop(4)
		for i, cell := range cells {
			for k := range 4 {
				wantGet(t, cell.Node(k), "/name", fmt.Sprint(i))
			}
			mustUnlock(t, locks[i])
		}
	})
}

// A holder that crashed with timeout 0 kept its lock for ever. Here its session ends, and the lock goes on.
func TestD11CrashedHolderFreesItsLock(t *testing.T) {
	const lease = 2 * time.Second
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		crashed := others(3, cell.Index(cell.Leader()))[0]
		mustLock(t, cell.Node(crashed), "/l")
		cell.Crash(crashed)
		start := time.Now()
		mustLock(t, cell.Leader(), "/l")
		wantBetween(t, "the lock went on", time.Since(start), 0, 2*lease)
	}, func(o *chubby.Options) { o.SessionLease = lease })
}

// FastGet on a leader that had been deposed gave old values without a word. It may give them here too, and says how old.
func TestD13OldReadsCarryTheirAge(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "old")
		deposed := cell.Index(cell.Leader())
		cell.Partition([]int{deposed}, others(3, deposed))
		cut := time.Now()
		mustSet(t, cell.Node(others(3, deposed)[0]), "/x", "new")
		changed := time.Now()
		time.Sleep(10 * time.Second)
		e, err := cell.Node(deposed).FastGet(t.Context(), "/x")
		if err != nil || string(e.Data) != "old" {
			t.Fatalf("FastGet on the deposed leader = %q, %v: it was to have the old value", e.Data, err)
		}
		if least := time.Since(changed); e.Age < least {
			t.Errorf("the value was replaced %v ago, and Age is %v", least, e.Age)
		}
		if most := time.Since(cut) + time.Second; e.Age > most {
			t.Errorf("Age is %v, after %v without contact", e.Age, most)
		}
		cell.Heal()
		if err := cell.Node(deposed).WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if e, err := cell.Node(deposed).FastGet(t.Context(), "/x"); err != nil || string(e.Data) != "new" {
			t.Errorf("FastGet after it came back = %q, %v", e.Data, err)
		}
	})
}

// A key that was not there looked like one with an empty value.
func TestD14AbsentIsNotEmpty(t *testing.T) {
	n := openOne(t)
	mustSet(t, n, "/empty", "")
	for name, read := range map[string]func(context.Context, string) (chubby.Entry, error){"Get": n.Get, "FastGet": n.FastGet} {
		if e, err := read(t.Context(), "/empty"); err != nil || e.Data == nil || len(e.Data) != 0 || e.Stat.Instance == 0 {
			t.Errorf("%s of an empty file = %+v, %v", name, e, err)
		}
		if e, err := read(t.Context(), "/absent"); !errors.Is(err, chubby.ErrNotFound) || e.Stat.Instance != 0 {
			t.Errorf("%s of nothing = %+v, %v", name, e, err)
		}
	}
	if _, err := n.CompareAndSwap(t.Context(), "/absent", []byte{}, nil); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("CompareAndSwap of empty contents where there is no file: %v", err)
	}
	if _, err := n.CompareAndSwap(t.Context(), "/empty", nil, nil); !errors.Is(err, chubby.ErrExists) && !errors.Is(err, chubby.ErrConflict) {
		t.Errorf("CompareAndSwap of no file where there is one: %v", err)
	}
}

// The bound of an Add was lost on the wire, so followers computed another value than the leader, and an Add could
// subtract. That the states are equal is compared by their hashes when the cell is closed.
func TestD15BoundsAreTheSameEverywhere(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/n", "5")
		var wg sync.WaitGroup
		var up, down atomic.Int64
		for i := range 3 {
			for range 4 {
				wg.Go(func() {
					c := cell.Node(i).Client
					for range 15 {
						n, err := c.Add(within(t, time.Minute), "/n", 3, 10)
						switch {
						case err == nil && n <= 10:
							up.Add(3)
						case !errors.Is(err, chubby.ErrBound):
							t.Errorf("Add = %d, %v", n, err)
						}
						n, err = c.Sub(within(t, time.Minute), "/n", 2, 0)
						switch {
						case err == nil && n >= 0:
							down.Add(2)
						case !errors.Is(err, chubby.ErrBound):
							t.Errorf("Sub = %d, %v", n, err)
						}
					}
				})
			}
		}
		wg.Wait()
		want := strconv.FormatInt(5+up.Load()-down.Load(), 10)
		for i := range 3 {
			wantGet(t, cell.Node(i), "/n", want)
		}
		// A bound below what is there refuses; it does not subtract.
		mustSet(t, cell.Node(0), "/n", "10")
		if n, err := cell.Node(1).Add(t.Context(), "/n", 1, 7); !errors.Is(err, chubby.ErrBound) {
			t.Errorf("Add 1 to 10 with the bound 7 = %d, %v", n, err)
		}
		wantGet(t, cell.Node(2), "/n", "10")
	})
}

// A compare-and-swap whose answer was lost was tried again and done twice. Here cell leaders crash after they executed
// what was asked and before they could say so.
func TestD16RetriesAreDoneOnce(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/n", "0")
		const rounds, callers = 5, 4
		for round := range rounds {
			leader := awayFrom(t, cell, 0)
			sessionID(t, cell.Node(0))
			cell.Cut(leader, 0)
			errs := make(chan error, callers)
			for range callers {
				go func() {
					_, err := cell.Node(0).Add(within(t, time.Minute), "/n", 1, math.MaxInt64)
					errs <- err
				}()
			}
			time.Sleep(20 * time.Millisecond)
			if e, err := cell.Node(leader).Get(within(t, time.Minute), "/n"); err != nil || string(e.Data) == strconv.Itoa(round*callers) {
				t.Fatalf("%s, %v: nothing was executed", e.Data, err)
			}
			if len(errs) > 0 {
				t.Fatal("answered through a link that was cut")
			}
			cell.Crash(leader)
			for range callers {
				if err := <-errs; err != nil {
					t.Fatal(err)
				}
			}
			cell.Heal() // not before, or what the leader sent would arrive
			wantGet(t, cell.Node(0), "/n", strconv.Itoa((round+1)*callers))
			cell.Restart(leader)
			if err := cell.Node(leader).WaitReady(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// awayFrom makes another node than i lead the cell, as i knows, and returns it. No session is lost.
func awayFrom(t *testing.T, cell *chubbytest.Cell, i int) (leader int) {
	t.Helper()
	for leader = cell.Index(cell.Leader()); leader == i; leader = cell.Index(cell.Leader()) {
		cell.Partition([]int{i}, others(3, i))
		time.Sleep(time.Second)
		cell.Heal()
	}
	if err := cell.Node(i).WaitReady(within(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	return leader
}

// An Acquire whose answer was lost was answered with Duplicate when it was tried again, which counted as a failure; and
// nobody ever released the lock. Here the second copy gets the first one's grant.
func TestD17LostAnswerOfAGrant(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		const caller = 0
		leader := awayFrom(t, cell, caller)
		sessionID(t, cell.Node(caller)) // open already
		cell.Cut(leader, caller)
		type outcome struct {
			lock *chubby.Lock
			err  error
		}
		got := make(chan outcome, 1)
		go func() {
			l, err := cell.Node(caller).TryLock(within(t, time.Minute), "/l")
			got <- outcome{l, err}
		}()
		time.Sleep(20 * time.Millisecond)
		info, err := cell.Node(leader).LockInfo(within(t, time.Minute), "/l")
		if err != nil || len(info.Holders) == 0 {
			t.Fatalf("%+v, %v: it was not granted", info, err)
		}
		select {
		case o := <-got:
			t.Fatalf("it was answered through a link that was cut: %v", o.err)
		default:
		}
		cell.Crash(leader)
		o := <-got
		cell.Heal() // not before, or what the leader sent would arrive
		if o.err != nil || o.lock.Sequencer().Generation != info.Generation {
			t.Fatalf("TryLock: %v; its grant was at %d", o.err, info.Generation)
		}
		mustUnlock(t, o.lock)
		if info, err := cell.Leader().LockInfo(t.Context(), "/l"); err != nil || len(info.Holders) != 0 {
			t.Errorf("after Unlock: %+v, %v", info, err)
		}
		cell.Restart(leader)
	})
}

// What the cell remembered of commands was kept for ever, by ids that could collide. It belongs to sessions here, and
// goes with them.
func TestD19WhatIsRememberedGoes(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Leader()
		size := func() int64 {
			if err := n.Snapshot(within(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			return n.Status().SnapshotBytes
		}
		seen := make(map[chubby.SessionID]bool)
		turn := func(times int) {
			for range times {
				s, err := n.NewSession(t.Context(), chubby.SessionOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if seen[s.ID()] {
					t.Fatalf("session %d twice", s.ID())
				}
				seen[s.ID()] = true
				for range 5 {
					l, err := s.Lock(t.Context(), "/l")
					if err != nil {
						t.Fatal(err)
					}
					mustUnlock(t, l)
				}
				if err := s.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				mustSet(t, n, "/x", "1") // in the default session, which stays
			}
		}
		turn(20)
		few := size()
		turn(200)
		if many := size(); many > few+64 { // numbers take a byte more when they are larger
			t.Errorf("the state takes %d bytes after 20 rounds and %d after 220", few, many)
		}
	})
}

// Every call gave up after 200 ms, whatever its caller wanted. Here its ctx says for how long: not shorter, not longer.
func TestD20CallsLastAsLongAsTheirContext(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		cell.Delay(150*time.Millisecond, 150*time.Millisecond) // 300 ms to the leader and back, and as much to a majority
		follower := cell.Node(others(3, cell.Index(cell.Leader()))[0])
		start := time.Now()
		mustSet(t, follower, "/x", "2")
		wantBetween(t, "a slow Set was done", time.Since(start), 300*time.Millisecond, 5*time.Second)
		cell.Delay(0, 0)
		cell.Partition([]int{0}, []int{1}, []int{2})
		time.Sleep(10 * time.Second) // there is no leader, and everybody knows
		for _, d := range []time.Duration{30 * time.Millisecond, 3 * time.Second} {
			for name, call := range map[string]func(context.Context) error{
				"Get":  func(ctx context.Context) error { _, err := follower.Get(ctx, "/x"); return err },
				"Set":  func(ctx context.Context) error { _, err := follower.Set(ctx, "/x", nil); return err },
				"Lock": func(ctx context.Context) error { _, err := follower.Lock(ctx, "/l"); return err },
			} {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				start := time.Now()
				err := call(ctx)
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s without a leader: %v", name, err)
				}
				wantBetween(t, name+" ended", time.Since(start), d, d+time.Millisecond)
			}
		}
	}, func(o *chubby.Options) { o.HeartbeatTimeout, o.SessionLease = 2*time.Second, time.Minute })
}
