package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// Members crash one after the other, and with each a client's home may be gone: its session, its lock, its waiting call and
// its watch go on, and each write is done once.
func TestDialMembersCrash(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.Dial()
		s, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held, err := c.Lock(t.Context(), "/held")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Set(t.Context(), "/n", []byte("0")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		watched := make(chan uint64)
		events := c.Watch(ctx, "/n", chubby.WatchOptions{})
		go func() {
			seen := uint64(0)
			for e, err := range events {
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Errorf("watch: %v", err)
					}
					break
				}
				if e.Kind == chubby.EventModified {
					if seen++; string(e.Entry.Data) != fmt.Sprint(seen) {
						t.Errorf("event %d is of %q", seen, e.Entry.Data)
					}
				}
			}
			watched <- seen
		}()
		other := cell.Dial()
		blocked, err := other.Lock(t.Context(), "/wait")
		if err != nil {
			t.Fatal(err)
		}
		waited := make(chan error)
		go func() {
			l, err := c.Lock(t.Context(), "/wait")
			if err == nil {
				err = l.Unlock(t.Context())
			}
			waited <- err
		}()
		var wrote, stop atomic.Int64
		writing := make(chan error)
		go func() {
			for stop.Load() == 0 {
				n, err := c.Add(t.Context(), "/n", 1, 1<<60)
				if err == nil && n != wrote.Add(1) {
					err = fmt.Errorf("the %dth Add gave %d", wrote.Load(), n)
				}
				if err != nil {
					writing <- err
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
			writing <- nil
		}()
		for round := range 6 {
			time.Sleep(5 * time.Second)
			cell.Crash(round % 3)
			time.Sleep(5 * time.Second)
			cell.Restart(round % 3)
		}
		if err := blocked.Unlock(t.Context()); err != nil {
			t.Errorf("Unlock: %v", err)
		}
		if err := <-waited; err != nil {
			t.Errorf("the call that waited: %v", err)
		}
		stop.Store(1)
		if err := <-writing; err != nil {
			t.Error(err)
		}
		if s.Err() != nil || held.Err() != nil || held.Context().Err() != nil {
			t.Errorf("session: %v, lock: %v, its context: %v", s.Err(), held.Err(), held.Context().Err())
		}
		if err := c.CheckSequencer(t.Context(), held.Sequencer()); err != nil {
			t.Errorf("the lock: %v", err)
		}
		time.Sleep(time.Second)
		cancel()
		if n := <-watched; n != uint64(wrote.Load()) || n < 100 {
			t.Errorf("%d events of %d writes", n, wrote.Load())
		}
	})
}

// While all members are frozen in turn, or cut off from the client or from each other, a client has a home that answers
// most of the time, and a change of the cell leader loses no session of 50.
func TestDialLeaderChange(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		const clients = 20
		var held []*chubby.Lock
		for i := range clients {
			l, err := cell.Dial().Lock(t.Context(), fmt.Sprintf("/l%d", i))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, l)
		}
		probe := cell.Dial()
		for round := range 6 {
			i := cell.Index(cell.Leader())
			switch round % 3 {
			case 0:
				cell.Stop(i)
			case 1:
				cell.Partition([]int{i}, others(3, i))
			case 2:
				cell.CutClients(i)
			}
			start := time.Now()
			if _, err := probe.Set(within(t, time.Minute), "/probe", nil); err != nil || time.Since(start) > 8*time.Second {
				t.Errorf("round %d: a write took %v: %v", round, time.Since(start), err)
			}
			time.Sleep(20 * time.Second)
			if round%3 == 0 {
				cell.Restart(i)
			}
			cell.Heal()
			time.Sleep(5 * time.Second)
		}
		for i, l := range held {
			if l.Err() != nil || l.Context().Err() != nil {
				t.Errorf("client %d: %v, %v", i, l.Err(), l.Context().Err())
			}
		}
	})
}

// A grant whose news got lost with the connections is found when there are new ones.
func TestDialMissedGrant(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.DialWith(func(o *chubby.DialOptions) { o.SessionLease = time.Minute })
		l, err := cell.Node(0).Lock(t.Context(), "/l")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() {
			_, err := c.Lock(within(t, 10*time.Minute), "/l")
			got <- err
		}()
		time.Sleep(time.Second)
		for i := range 3 {
			cell.CutClients(i)
		}
		time.Sleep(time.Second)
		if err := l.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second) // connections do not outlive that
		cell.Heal()
		healed := time.Now()
		if err := <-got; err != nil || time.Since(healed) > 10*time.Second {
			t.Errorf("the lock came %v after the network: %v", time.Since(healed), err)
		}
	})
}

// While the cell has no leader, a client with a session, a watch and a waiting call says little, for there may be thousands
// of them, and what they say keeps a busy cell from its election.
func TestDialQuietWithoutLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		var said atomic.Int64
		c := cell.DialWith(func(o *chubby.DialOptions) { o.Network = countingNetwork{o.Network, &said} })
		l, err := cell.Node(0).Lock(t.Context(), "/l")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() {
			_, err := c.Lock(within(t, 10*time.Minute), "/l")
			got <- err
		}()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		events := c.Watch(ctx, "/l", chubby.WatchOptions{})
		go func() {
			for range events {
			}
		}()
		time.Sleep(time.Minute)
		cell.Partition([]int{0}, []int{1}, []int{2})
		time.Sleep(time.Second)
		before, start := said.Load(), time.Now()
		time.Sleep(20 * time.Second)
		if n := said.Load() - before; n > 200 {
			t.Errorf("%d messages in %v without a leader", n, time.Since(start))
		}
		cell.Heal()
		if err := l.Unlock(within(t, time.Minute)); err != nil {
			t.Errorf("Unlock: %v", err)
		}
		if err := <-got; err != nil {
			t.Errorf("the call that waited: %v", err)
		}
	})
}

// countingNetwork counts what is written to the streams that it dials.
type countingNetwork struct {
	chubby.Network
	writes *atomic.Int64
}

func (n countingNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := n.Network.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return countingConn{c, n.writes}, nil
}

type countingConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countingConn) Write(b []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(b)
}

// What a call that got no answer tells: certainly nothing happened, or perhaps.
func TestDialOutcomes(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c, few, closing := cell.Dial(), cell.DialWith(func(o *chubby.DialOptions) { o.MaxRetries = 3 }), cell.Dial()
		for _, c := range []*chubby.Client{c, few, closing} {
			if _, err := c.Set(t.Context(), "/x", []byte("0")); err != nil {
				t.Fatal(err)
			}
		}
		cell.Partition([]int{0}, []int{1}, []int{2})
		time.Sleep(time.Second)
		_, err := c.Get(within(t, 5*time.Second), "/x")
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrNoLeader) && !errors.Is(err, chubby.ErrNoQuorum) || errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("Get without a majority: %v", err)
		}
		if _, err := few.Get(t.Context(), "/x"); !errors.Is(err, chubby.ErrNoLeader) && !errors.Is(err, chubby.ErrNoQuorum) || errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("Get, retries used up: %v", err)
		}
		flight := make(chan error)
		go func() { _, err := closing.Set(context.Background(), "/x", []byte("1")); flight <- err }()
		time.Sleep(100 * time.Millisecond)
		start := time.Now()
		if err := closing.Close(); err != nil || time.Since(start) > 5*time.Second {
			t.Errorf("Close took %v: %v", time.Since(start), err)
		}
		if err := <-flight; !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Set in flight at Close: %v", err)
		}
		if _, err := closing.Get(t.Context(), "/x"); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Get after Close: %v", err)
		}
		if _, err := closing.FastGet(t.Context(), "/x"); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("FastGet after Close: %v", err)
		}
		if err := firstError(closing.Watch(t.Context(), "/x", chubby.WatchOptions{})); !errors.Is(err, chubby.ErrClosed) {
			t.Errorf("Watch after Close: %v", err)
		}
		if err := closing.Close(); err != nil {
			t.Errorf("Close again: %v", err)
		}
		cell.Heal()
		cell.Leader()
		for i := range 3 {
			cell.CutClients(i)
		}
		_, err = c.Set(within(t, 10*time.Second), "/x", []byte("2"))
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("Set whose answer gets lost: %v", err)
		}
		time.Sleep(time.Minute)
		_, err = few.Set(t.Context(), "/x", []byte("2"))
		if err == nil || errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("Set that cannot leave, retries used up: %v", err)
		}
		cell.Heal()
		if _, err := c.Set(within(t, time.Minute), "/x", []byte("3")); err != nil {
			t.Errorf("Set when all is well again: %v", err)
		}
	})
}

// A client that was cut off for longer than its lease knows by its own clock that its locks are not to be relied on, before
// the cell gives them away, and its session is over when it is back.
func TestDialLease(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.DialWith(func(o *chubby.DialOptions) { o.SessionLease, o.GracePeriod = 2*time.Second, time.Minute })
		l, err := c.Lock(t.Context(), "/l")
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			cell.CutClients(i)
		}
		start := time.Now()
		got := make(chan time.Duration)
		go func() {
			next, err := cell.Node(0).Lock(within(t, time.Minute), "/l")
			if err != nil {
				t.Error(err)
			} else if l.Context().Err() == nil {
				t.Error("the old holder's context is alive when the new one has the lock")
			} else if next.Sequencer().Generation <= l.Sequencer().Generation {
				t.Error("the generation did not grow")
			}
			got <- time.Since(start)
		}()
		<-l.Context().Done()
		if d := time.Since(start); d > 2*time.Second || s.State() != chubby.SessionJeopardy {
			t.Errorf("jeopardy after %v, state %v", d, s.State())
		}
		if d := <-got; d < 2*time.Second || d > 4*time.Second {
			t.Errorf("the next holder has it after %v", d)
		}
		cell.Heal()
		<-s.Done()
		if !errors.Is(s.Err(), chubby.ErrSessionExpired) || !errors.Is(l.Err(), chubby.ErrSessionExpired) {
			t.Errorf("session: %v, lock: %v", s.Err(), l.Err())
		}
	})
}

// A watch of many clients at a tree that is deleted at once is told of each entry, though the answer takes many frames.
func TestDialLargeAnswers(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.Dial()
		const files, size = 40, 200 << 10
		var wg sync.WaitGroup
		for i := range files {
			wg.Go(func() {
				if _, err := c.Set(t.Context(), fmt.Sprintf("/t/%02d", i), make([]byte, size)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		st, err := c.Stat(t.Context(), "/t")
		if err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for e, err := range c.Watch(t.Context(), "/t", chubby.WatchOptions{From: st.Instance}) {
			if err != nil {
				t.Fatal(err)
			}
			if bytes += len(e.Entry.Data); bytes == files*size {
				break
			}
		}
		var ops []chubby.Op
		for i := range files {
			ops = append(ops, chubby.OpGet(fmt.Sprintf("/t/%02d", i)))
		}
		for i := range 1500 { // names of 200 bytes: a list of more than one frame's part
			wg.Go(func() {
				if _, err := c.Set(t.Context(), fmt.Sprintf("/l/%s%d", strings.Repeat("x", 200), i), nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		list, err := c.List(t.Context(), "/l")
		if err != nil || len(list) != 1500 {
			t.Errorf("List: %d entries, %v", len(list), err)
		}
	})
}
