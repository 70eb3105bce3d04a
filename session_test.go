package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/hook"
)

// jumpClock is a clock whose readings can be set forward, as by a suspend of the machine (boot) or a process that stood
// still while its clock went on (mono: what its timers should have done meanwhile comes late).
type jumpClock struct {
	hook.Clock
	boot, mono atomic.Int64
}

func (c *jumpClock) Boot() time.Duration { return c.Clock.Boot() + time.Duration(c.boot.Load()) }
func (c *jumpClock) Mono() time.Duration { return c.Clock.Mono() + time.Duration(c.mono.Load()) }

// inJumpBubble runs f on a cell of one with such a clock.
func inJumpBubble(t *testing.T, f func(t *testing.T, n *chubby.Node, clock *jumpClock)) {
	synctest.Test(t, func(t *testing.T) {
		clock := &jumpClock{Clock: hook.TimeClock()}
		n, err := chubby.Open(chubby.Options{Hooks: &hook.Hooks{Clock: clock}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		f(t, n, clock)
	})
}

// A machine that slept for longer than the lease: the holder knows the moment it asks, whatever timers did, and Done of
// the context comes within 100 ms. The session is saved if the cell still has it.
func TestSuspend(t *testing.T) {
	inJumpBubble(t, func(t *testing.T, n *chubby.Node, clock *jumpClock) {
		s, err := n.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l := mustLock(t, n, "/s")
		m := mustLock(t, n, "/m", chubby.MaxHold(10*time.Second))
		ctx, quiet := l.Context(), m.Context()
		clock.boot.Add(int64(13 * time.Second))
		if ctx.Err() == nil || !errors.Is(context.Cause(ctx), chubby.ErrLockLost) || l.Err() != nil {
			t.Errorf("at waking: %v, %v", context.Cause(ctx), l.Err())
		}
		if !errors.Is(m.Err(), chubby.ErrLockLost) {
			t.Errorf("MaxHold: %v", m.Err())
		}
		start := time.Now()
		<-quiet.Done()
		wantBetween(t, "Done", time.Since(start), 0, 100*time.Millisecond)
		time.Sleep(time.Second)
		if s.State() != chubby.SessionActive || l.Context().Err() != nil || ctx.Err() == nil {
			t.Errorf("a second later: %v", s.State())
		}
		clock.boot.Add(int64(time.Hour)) // longer than lease and grace period
		if s.State() != chubby.SessionExpired || !errors.Is(l.Err(), chubby.ErrSessionExpired) {
			t.Errorf("after an hour: %v, %v", s.State(), l.Err())
		}
	})
}

// A leader whose process stood still for an hour has not heard the KeepAlives of that hour. It gives every session the
// hour before it judges (etcd issue 15247).
func TestStalledLeaderExpiresNothing(t *testing.T) {
	inJumpBubble(t, func(t *testing.T, n *chubby.Node, clock *jumpClock) {
		l := mustLock(t, n, "/s")
		time.Sleep(time.Second)
		for range 20 {
			clock.mono.Add(int64(time.Hour))
			time.Sleep(10 * time.Second)
			if l.Err() != nil || l.Context().Err() != nil {
				t.Fatalf("the stall ended a session: %v", l.Err())
			}
		}
	})
}

// A leader that has been replaced and does not know it: its raft hangs in a write to the disk, its timers run. Sessions
// that renew at the new leader stay, the old one does not even decide to end them, and its own is not renewed by itself.
func TestStaleLeaderFreesNothing(t *testing.T) {
	var disks [3]struct {
		sync.Mutex
		stuck chan struct{}
	}
	var logs [3]logBuffer
	index := func(id string) int { return strings.Index("n0n1n2", id) / 2 }
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		old := cell.Index(cell.Leader())
		rest := others(3, old)
		l := mustLock(t, cell.Node(rest[0]), "/l")
		own := mustLock(t, cell.Node(old), "/own")
		time.Sleep(time.Second)
		ctx, ownCtx := l.Context(), own.Context()

		stuck := make(chan struct{})
		disks[old].Lock()
		disks[old].stuck = stuck
		disks[old].Unlock()
		go func() { _, _ = cell.Node(old).Set(context.Background(), "/x", nil) }()
		synctest.Wait()
		start := time.Now()
		cell.Partition([]int{old}, rest)
		time.AfterFunc(1500*time.Millisecond, cell.Heal)
		granted := make(chan time.Time, 1)
		go func() {
			if _, err := cell.Node(rest[1]).Lock(context.Background(), "/own"); err != nil {
				t.Error(err)
			}
			if ownCtx.Err() == nil {
				t.Error("two holders")
			}
			granted <- time.Now()
		}()
		time.Sleep(5 * time.Second) // more than the lease and its margins; after 10 s the watchdog stops the node
		if role := cell.Node(old).Status().Role; role != chubby.RoleLeader {
			t.Fatalf("the stuck node is %s: it was to believe that it leads", role)
		}
		if ownCtx.Err() == nil || !errors.Is(context.Cause(ownCtx), chubby.ErrLockLost) {
			t.Error("the stale leader renewed its own session")
		}
		select {
		case at := <-granted:
			// The new leader begins every lease after its barrier.
			wantBetween(t, "granted", at.Sub(start), 2*time.Second, 2*time.Second+220*time.Millisecond+2*time.Second)
		default:
			t.Error("the new leader did not end the stale leader's session")
		}
		close(stuck)
		time.Sleep(time.Minute)
		if ctx.Err() != nil || l.Err() != nil {
			t.Errorf("a session that renewed at the new leader: %v", context.Cause(ctx))
		}
		if n := logs[old].count("sessions expired"); n != 0 {
			t.Errorf("the stale leader decided %d times", n)
		}
	}, func(o *chubby.Options) {
		i := index(o.ID)
		o.SessionLease = 2 * time.Second
		o.Logger = slog.New(slog.NewTextHandler(&logs[i], nil))
		before := o.Hooks.Storage
		o.Hooks.Storage = func(op string) error {
			disks[i].Lock()
			stuck := disks[i].stuck
			disks[i].Unlock()
			if stuck != nil && op == "log" {
				<-stuck
			}
			return before(op)
		}
	})
}

// On a slow network the holder's lease counts from when it asked, not from when it heard the answer: wherever between two
// KeepAlives it is cut off, it knows a round trip earlier than the lease after the cut.
func TestLeaseCountsFromSending(t *testing.T) {
	const oneWay, lease = 200 * time.Millisecond, 12 * time.Second
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Delay(oneWay, oneWay)
		for i := range 12 {
			leader := cell.Index(cell.Leader())
			holder := others(3, leader)[0]
			l := mustLock(t, cell.Node(holder), "/l")
			time.Sleep(10*time.Second + time.Duration(i)*350*time.Millisecond)
			ctx, cut := l.Context(), time.Now()
			cell.Partition([]int{holder}, others(3, holder))
			<-ctx.Done()
			// A question and its answer, and a confirm round between them.
			wantBetween(t, "the holder knows", time.Since(cut), lease/3, lease-4*oneWay+100*time.Millisecond)
			cell.Heal()
			time.Sleep(20 * time.Second)
			if l.Err() == nil {
				mustUnlock(t, l)
			}
		}
	}, func(o *chubby.Options) { o.HeartbeatTimeout = time.Second })
}

// The shortest lease is kept, and what is shorter is refused.
func TestShortestLease(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{Lease: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		l := mustLock(t, s, "/l")
		time.Sleep(2 * time.Minute)
		if s.State() != chubby.SessionActive || l.Context().Err() != nil {
			t.Errorf("after two quiet minutes: %v", s.State())
		}
		for _, o := range []chubby.SessionOptions{
			{Lease: time.Second - 1}, {Lease: time.Hour + 1}, {Lease: time.Minute, Grace: time.Hour + 1}, {Name: strings.Repeat("x", 256)}, {Name: "a\nb"},
		} {
			if _, err := cell.Node(0).NewSession(t.Context(), o); !errors.Is(err, chubby.ErrBadOptions) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		mustUnlock(t, l)
	})
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		_, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{Lease: 4 * time.Second})
		if !errors.Is(err, chubby.ErrBadOptions) || !strings.Contains(err.Error(), "5 heartbeats") {
			t.Errorf("4 heartbeats: %v", err)
		}
		if _, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{Lease: 5 * time.Second}); err != nil {
			t.Errorf("5 heartbeats: %v", err)
		}
	}, func(o *chubby.Options) { o.HeartbeatTimeout = time.Second })
}

// Close ends contexts before it asks the cell, frees locks without lock-delay, and takes ephemeral entries with it. It
// goes on in the background when its ctx ends.
func TestSessionClose(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for round := range 2 {
			s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
			if err != nil {
				t.Fatal(err)
			}
			path := fmt.Sprint("/l", round)
			l := mustLock(t, s, path, chubby.LockDelay(time.Minute))
			if _, err := s.Create(t.Context(), "/e", nil, chubby.CreateOptions{Ephemeral: true}); err != nil {
				t.Fatal(err)
			}
			start, late := time.Now(), time.Duration(0)
			if round == 0 {
				if err := s.Close(t.Context()); err != nil {
					t.Error(err)
				}
			} else {
				late = 3 * time.Second
				cell.Partition([]int{0}, []int{1, 2})
				if err := s.Close(within(t, time.Second)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrUncertain) {
					t.Errorf("Close without a quorum: %v", err)
				}
				time.AfterFunc(2*time.Second, cell.Heal)
			}
			if !errors.Is(s.Err(), chubby.ErrClosed) || !errors.Is(l.Err(), chubby.ErrClosed) || l.Context().Err() == nil || s.State() != chubby.SessionExpired {
				t.Errorf("after Close: %v, %v, %v", s.Err(), l.Err(), s.State())
			}
			mustUnlock(t, mustLock(t, cell.Node(1), path))
			wantBetween(t, "granted", time.Since(start), 0, late+time.Second)
			if _, err := cell.Node(1).Stat(t.Context(), "/e"); !errors.Is(err, chubby.ErrNotFound) {
				t.Errorf("its ephemeral entry: %v", err)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Errorf("second Close: %v", err)
			}
			if _, err := s.Lock(t.Context(), path); !errors.Is(err, chubby.ErrSessionExpired) {
				t.Errorf("Lock in a closed session: %v", err)
			}
		}
	})
}

// States ends with its ctx, and begins with what is.
func TestStates(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		collect := func(ctx context.Context) (list []chubby.SessionState) {
			for st := range s.States(ctx) {
				list = append(list, st)
			}
			return list
		}
		if got := fmt.Sprint(collect(within(t, time.Minute))); got != "[active]" {
			t.Errorf("a minute of a session's life: %v", got)
		}
		for range s.States(t.Context()) {
			break
		}
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(collect(t.Context())); got != "[expired]" {
			t.Errorf("after Close: %v", got)
		}
	})
}

// The default session is replaced after it expired; a lock of the old one is gone.
func TestDefaultSessionIsReplaced(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		s, err := n.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := n.Session(t.Context()); err != nil || again != s {
			t.Errorf("asked twice: %v and %v, %v", s.ID(), again.ID(), err)
		}
		l := mustLock(t, n, "/l")
		cell.Partition([]int{0}, []int{1, 2})
		<-s.Done()
		cell.Heal()
		next := mustLock(t, n, "/l")
		if now, err := n.Session(t.Context()); err != nil || now.ID() <= s.ID() {
			t.Errorf("session %v after %v, %v", now.ID(), s.ID(), err)
		}
		if next.Sequencer().Compare(l.Sequencer()) <= 0 {
			t.Errorf("%v after %v", next.Sequencer(), l.Sequencer())
		}
	})
}
