package chubby_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// fn's return while it leads ends RunLeader, with its error, and the leadership.
func TestRunLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		for name, run := range map[string]func(context.Context, string, []byte, func(context.Context, *chubby.Leadership) error, ...chubby.LockOption) error{
			"client": cell.Node(0).RunLeader, "session": s.RunLeader,
		} {
			for _, want := range []error{nil, boom} {
				err := run(t.Context(), "/e", []byte("me"), func(ctx context.Context, l *chubby.Leadership) error {
					info, err := cell.Node(1).Leader(ctx, "/e")
					if err != nil || string(info.Value) != "me" || info.Generation != l.Sequencer().Generation {
						t.Errorf("%s: Leader = %+v, %v", name, info, err)
					}
					return want
				})
				if err != want {
					t.Errorf("%s: fn's %v comes as %v", name, want, err)
				}
				if _, err := cell.Node(1).Leader(t.Context(), "/e"); !errors.Is(err, chubby.ErrNoLeader) {
					t.Errorf("%s: Leader afterwards: %v", name, err)
				}
			}
			// Resigning is the same as returning.
			runs := 0
			err := run(t.Context(), "/e", nil, func(ctx context.Context, l *chubby.Leadership) error {
				runs++
				if err := l.Resign(ctx); err != nil {
					t.Error(err)
				}
				if ctx.Err() == nil || !errors.Is(context.Cause(ctx), chubby.ErrNotHeld) {
					t.Errorf("%s: after Resign: %v", name, context.Cause(ctx))
				}
				return boom
			})
			if err != boom || runs != 1 {
				t.Errorf("%s: after Resign in fn: %v, %d runs", name, err, runs)
			}
		}
		if err := cell.Node(0).RunLeader(t.Context(), "/e", nil, nil, chubby.MaxHold(-1)); !errors.Is(err, chubby.ErrBadOptions) {
			t.Errorf("bad options: %v", err)
		}
	})
}

// Two candidates; whoever leads is cut off, again and again. No two contexts of fn are alive at once, no candidate runs fn
// twice at once although its fn is slow to return, each comes back, and later leaderships have greater generations.
func TestRunLeaderGoesOn(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		var mu sync.Mutex
		var alive context.Context
		var last chubby.Sequencer
		began := make(chan int, 100)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for i := range 2 {
			var running atomic.Bool
			wg.Go(func() {
				err := cell.Node(i).RunLeader(ctx, "/e", nil, func(ctx context.Context, l *chubby.Leadership) error {
					if running.Swap(true) {
						t.Errorf("candidate %d runs twice at once", i)
					}
					defer running.Store(false)
					mu.Lock()
					if alive != nil && alive.Err() == nil {
						t.Errorf("candidate %d begins while another's context is alive", i)
					}
					if l.Sequencer().Compare(last) <= 0 && last.Path != "" {
						t.Errorf("%v after %v", l.Sequencer(), last)
					}
					alive, last = ctx, l.Sequencer()
					mu.Unlock()
					began <- i
					<-ctx.Done()
					time.Sleep(30 * time.Second) // deaf
					return nil
				})
				if !errors.Is(err, context.Canceled) && err != nil {
					t.Errorf("candidate %d: %v", i, err)
				}
			})
		}
		i := <-began
		for range 5 {
			cell.Partition([]int{i}, others(3, i))
			next := <-began
			if next == i {
				t.Errorf("%d leads while it is cut off", i)
			}
			cell.Heal()
			time.Sleep(time.Minute) // the loser's fn has returned, and it campaigns again
			if len(began) > 0 {
				t.Fatalf("%d took over without need", <-began)
			}
			i = next
		}
		if info, err := cell.Node(2).LockInfo(t.Context(), "/e"); err != nil || info.Waiters != 1 {
			t.Errorf("LockInfo = %+v, %v: the other candidate should wait", info, err)
		}
		cancel()
		wg.Wait()
		if info, err := cell.Node(2).LockInfo(t.Context(), "/e"); err != nil || info.Waiters != 0 || len(info.Holders) != 0 {
			t.Errorf("left behind: %+v, %v", info, err)
		}
	})
}

// A session that is saved from jeopardy still leads: fn is called again with the same leadership. One that is not ends a
// Session's RunLeader, after fn has returned.
func TestRunLeaderJeopardy(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var generations []uint64
		began, returned := make(chan struct{}), time.Time{}
		done := make(chan error)
		go func() {
			done <- s.RunLeader(context.Background(), "/e", nil, func(ctx context.Context, l *chubby.Leadership) error {
				generations = append(generations, l.Sequencer().Generation)
				began <- struct{}{}
				<-ctx.Done()
				if !errors.Is(context.Cause(ctx), chubby.ErrLockLost) || l.Err() != nil {
					t.Errorf("in jeopardy: cause %v, Err %v", context.Cause(ctx), l.Err())
				}
				time.Sleep(time.Second)
				returned = time.Now()
				return ctx.Err()
			})
		}()
		<-began
		cell.Partition([]int{0}, []int{1}, []int{2}) // nobody can expire anything
		time.Sleep(20 * time.Second)
		cell.Heal()
		<-began
		if len(generations) != 2 || generations[0] != generations[1] {
			t.Errorf("generations %v", generations)
		}
		cell.Partition([]int{0}, []int{1, 2})
		if err := <-done; !errors.Is(err, chubby.ErrSessionExpired) {
			t.Errorf("session lost: %v", err)
		}
		if returned.IsZero() || len(generations) != 2 {
			t.Error("it ended before fn, or ran fn again")
		}
	})
}

// ctx ends it, whether it leads, waits, or is in jeopardy.
func TestRunLeaderCtx(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		run := func(i int, fn func(context.Context) error) (cancel func(), done chan error, began chan struct{}) {
			ctx, cancel := context.WithCancel(context.Background())
			done, began = make(chan error, 1), make(chan struct{}, 10)
			go func() {
				done <- cell.Node(i).RunLeader(ctx, "/e", nil, func(ctx context.Context, _ *chubby.Leadership) error {
					began <- struct{}{}
					<-ctx.Done()
					return fn(ctx)
				})
			}()
			return cancel, done, began
		}
		cancel, done, began := run(0, func(context.Context) error { return nil })
		<-began
		cancelWaiter, doneWaiter, beganWaiter := run(1, func(context.Context) error { return nil })
		time.Sleep(time.Second)
		cancelWaiter()
		if err := <-doneWaiter; !errors.Is(err, context.Canceled) || len(beganWaiter) > 0 {
			t.Errorf("while it waits: %v", err)
		}
		cancel()
		if err := <-done; err != nil { // fn's, which returned while it led
			t.Errorf("while it leads: %v", err)
		}
		if info, err := cell.Node(2).LockInfo(t.Context(), "/e"); err != nil || len(info.Holders) != 0 || info.Waiters != 0 {
			t.Errorf("left behind: %+v, %v", info, err)
		}
		cancel, done, began = run(0, func(context.Context) error { return nil })
		<-began
		cell.Partition([]int{0}, []int{1}, []int{2})
		time.Sleep(20 * time.Second)
		cancel()
		start := time.Now()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("in jeopardy: %v", err)
		}
		wantBetween(t, "ended", time.Since(start), 0, 3*time.Second)
		cell.Heal()
		mustUnlock(t, mustLock(t, cell.Node(1), "/e")) // given back, not left to the session
	})
}

// A fn that panics, or ends its goroutine, leaves no leadership behind.
func TestRunLeaderPanic(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		for name, leave := range map[string]func(){
			"panic":  func() { panic("boom") },
			"goexit": runtime.Goexit,
		} {
			var caught any
			done := make(chan struct{})
			go func() {
				defer close(done)
				defer func() { caught = recover() }()
				_ = cell.Node(0).RunLeader(context.Background(), "/e", nil, func(context.Context, *chubby.Leadership) error {
					leave()
					return nil
				})
				t.Errorf("%s: RunLeader returns", name)
			}()
			<-done
			if name == "panic" && caught != "boom" {
				t.Errorf("%s comes as %v", name, caught)
			}
			if _, err := cell.Node(1).Leader(t.Context(), "/e"); !errors.Is(err, chubby.ErrNoLeader) {
				t.Errorf("%s: Leader afterwards: %v", name, err)
			}
		}
	})
}

// logBuffer is a slog sink that may be read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// While fn does not listen, nothing is released, and the log says so, less and less often.
func TestRunLeaderNags(t *testing.T) {
	var log logBuffer
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		ctx, cancel := context.WithCancel(context.Background())
		began, stop, done := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() {
			done <- cell.Node(0).RunLeader(ctx, "/e", nil, func(context.Context, *chubby.Leadership) error {
				close(began)
				<-stop
				return nil
			})
		}()
		<-began
		time.Sleep(time.Hour)
		const text = "goes on although its context has ended"
		if n := log.count(text); n != 0 {
			t.Errorf("%d warnings although nothing ended", n)
		}
		cancel()
		for i, at := range []time.Duration{1, 3, 7, 15, 31, 63} { // seconds since the end
			time.Sleep(time.Until(time.Now()) + at*time.Second - (at/2)*time.Second)
			synctest.Wait()
			if n := log.count(text); n != i+1 {
				t.Errorf("%d warnings after %ds, want %d", n, at, i+1)
			}
		}
		if _, err := cell.Node(0).Leader(t.Context(), "/e"); err != nil {
			t.Errorf("released under fn: %v", err)
		}
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if n := log.count(text); n != 6 {
			t.Errorf("%d warnings in the end", n)
		}
	}, func(o *chubby.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
}

// What the cell refuses for the moment is asked for again.
func TestRunLeaderOverloaded(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		n := cell.Node(0)
		e, l := mustLock(t, n, "/e"), mustLock(t, n, "/other")
		next, _ := lockSoon(t, n, "/other") // the one waiter that the cell allows
		done := make(chan error)
		go func() {
			done <- n.RunLeader(context.Background(), "/e", nil, func(context.Context, *chubby.Leadership) error { return nil })
		}()
		time.Sleep(time.Minute)
		mustUnlock(t, l)
		mustUnlock(t, <-next)
		time.Sleep(time.Minute)
		mustUnlock(t, e)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}, func(o *chubby.Options) { o.Limits.Waiters = 1 })
}

// A campaign, or another Lock call, whose session ends while it waits is told so and leaves nothing in the queue. A call
// on the Client does not slip into a new session, at the end of the queue, unnoticed.
func TestWaitEndsWithSession(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		first := mustLock(t, cell.Node(1), "/e")
		s, err := cell.Node(0).NewSession(t.Context(), chubby.SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		errs := make(chan error, 4)
		go func() { _, err := s.Campaign(ctx, "/e", nil); errs <- err }()
		go func() { _, err := s.Lock(ctx, "/e"); errs <- err }()
		go func() { _, err := cell.Node(0).Campaign(ctx, "/e", nil); errs <- err }()
		go func() { _, err := cell.Node(0).Lock(ctx, "/e"); errs <- err }()
		time.Sleep(time.Second)
		if info, err := cell.Node(2).LockInfo(t.Context(), "/e"); err != nil || info.Waiters != 4 {
			t.Fatalf("LockInfo = %+v, %v", info, err)
		}
		cell.Partition([]int{0}, []int{1, 2})
		start := time.Now()
		for range 4 {
			if err := <-errs; !errors.Is(err, chubby.ErrSessionExpired) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("wait in a session that ended: %v", err)
			}
		}
		wantBetween(t, "told", time.Since(start), 50*time.Second, 58*time.Second) // lease and grace period
		cell.Heal()
		time.Sleep(time.Second)
		if info, err := cell.Node(2).LockInfo(t.Context(), "/e"); err != nil || info.Waiters != 0 || len(info.Holders) != 1 {
			t.Errorf("left behind: %+v, %v", info, err)
		}
		mustUnlock(t, first)
	})
}
