package chubby_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

func TestDialOptions(t *testing.T) {
	some := []string{"localhost:1"}
	for name, c := range map[string]struct {
		o     chubby.DialOptions
		want  error
		texts []string
	}{
		"nothing":       {chubby.DialOptions{}, chubby.ErrBadOptions, []string{"Addrs: empty"}},
		"everything":    {chubby.DialOptions{Addrs: []string{"x", "a:1", "a:1"}, Cell: "a/b", Secret: []byte("short"), MaxRetries: -1, CacheBytes: -1, SessionLease: time.Millisecond, GracePeriod: 2 * time.Hour}, chubby.ErrBadOptions, []string{`Addrs[0] "x"`, `Addrs[2] "a:1"`, `Cell "a/b"`, "Secret: 5 bytes", "MaxRetries -1", "CacheBytes -1", "SessionLease 1ms", "grace period 2h"}},
		"many":          {chubby.DialOptions{Addrs: manyAddrs(17)}, chubby.ErrBadOptions, []string{"17 addresses"}},
		"not loopback":  {chubby.DialOptions{Addrs: []string{"localhost:1", "10.0.0.1:1"}}, chubby.ErrInsecureListen, []string{"Addrs[1]", "10.0.0.1"}},
		"TLS, no certs": {chubby.DialOptions{Addrs: some, TLS: &tls.Config{}}, chubby.ErrBadOptions, []string{"TLS"}},
	} {
		_, err := chubby.Dial(t.Context(), c.o)
		var e *chubby.Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Op != "dial" {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
			continue
		}
		for _, text := range c.texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q is not in %v", name, text, err)
			}
		}
	}
}

func manyAddrs(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("localhost:%d", i+1))
	}
	return list
}

// A cell without enough members, of another name, or of another secret, is told at once or when time or tries are over.
func TestDialRefused(t *testing.T) {
	secret := []byte(strings.Repeat("s", 32))
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Leader()
		var network chubby.Network
		cell.DialWith(func(o *chubby.DialOptions) { o.Secret, network = secret, o.Network })
		dial := func(ctx context.Context, change func(*chubby.DialOptions)) (time.Duration, error) {
			o := chubby.DialOptions{Cell: "test", Secret: secret, Network: network, Addrs: []string{"n0:1", "n1:1", "n2:1"}}
			change(&o)
			start := time.Now()
			c, err := chubby.Dial(ctx, o)
			if err == nil {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
			return time.Since(start), err
		}
		if _, err := dial(t.Context(), func(*chubby.DialOptions) {}); err != nil {
			t.Errorf("a good one: %v", err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Cell = "other" }); !errors.Is(err, chubby.ErrWrongCell) || d > time.Second {
			t.Errorf("another cell: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Secret = []byte(strings.Repeat("x", 32)) }); !errors.Is(err, chubby.ErrPermission) || d > time.Second {
			t.Errorf("another secret: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.SessionLease = time.Second; o.GracePeriod = -1 }); err != nil || d > time.Second {
			t.Errorf("a lease of five heartbeats: after %v: %v", d, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := dial(ended, func(*chubby.DialOptions) {}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		cell.Stop(0)
		if _, err := dial(t.Context(), func(*chubby.DialOptions) {}); err != nil {
			t.Errorf("two of three: %v", err)
		}
		cell.Stop(1)
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if d, err := dial(short, func(*chubby.DialOptions) {}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrNoQuorum) || d != 10*time.Second || !strings.Contains(err.Error(), "n0:1") {
			t.Errorf("one of three: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.MaxRetries = 5 }); !errors.Is(err, chubby.ErrNoQuorum) || d > 10*time.Second {
			t.Errorf("one of three, with 5 retries: after %v: %v", d, err)
		}
		if _, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Addrs = o.Addrs[2:] }); err != nil {
			t.Errorf("one of one: %v", err)
		}
	}, func(o *chubby.Options) { o.Secret = secret })
}

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

// TestDialTCP dials real sockets, with TLS from the cell's secret, and leaves nothing open.
func TestDialTCP(t *testing.T) {
	before := openFiles(t)
	secret := []byte(strings.Repeat("s", 32))
	n, err := chubby.Open(chubby.Options{ID: "a", Listen: "127.0.0.1:0", Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	members, err := n.Members(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c, err := chubby.Dial(within(t, time.Minute), chubby.DialOptions{Addrs: []string{members[0].Addr}, Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Set(within(t, time.Minute), "/x", []byte("1")); err != nil {
		t.Error(err)
	}
	wantGet(t, n, "/x", "1")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if after := openFiles(t); before >= 0 && after > before {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

// TestSeedCellAndClient: the three server files and the client file of the original, as its documentation prints them, make a cell and a client.
func TestSeedCellAndClient(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("Persister", 0o700); err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 3)
	load := func(name, text string) string {
		for i, p := range []string{"8900", "8901", "8902"} {
			text = strings.ReplaceAll(text, p, ports[i])
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	var nodes []*chubby.Node
	for i, text := range seedServers {
		o, err := chubby.LoadServerConfig(load(fmt.Sprintf("server%d.json", i), text))
		if err != nil {
			t.Fatal(err)
		}
		n, err := chubby.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		nodes = append(nodes, n)
	}
	o, err := chubby.LoadClientConfig(load("client_config.json", seedClient))
	if err != nil {
		t.Fatal(err)
	}
	c, err := chubby.Dial(within(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Set(within(t, time.Minute), "/x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		wantGet(t, n, "/x", "1")
	}
	if list, err := filepath.Glob("Persister/*"); err != nil || len(list) != 3 {
		t.Errorf("data directories: %q, %v", list, err)
	}
}

var seedServers = []string{`{
  "servers_address": ["localhost:8900","localhost:8901"],
  "myport" : ":8902",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot1.hdb",
  "raftstatefilename" : "Persister/raftstate1.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`, `{
  "servers_address": ["localhost:8900","localhost:8902"],
  "myport" : ":8901",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot2.hdb",
  "raftstatefilename" : "Persister/raftstate2.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`, `{
  "servers_address": ["localhost:8901","localhost:8902"],
  "myport" : ":8900",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot3.hdb",
  "raftstatefilename" : "Persister/raftstate3.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`}

const seedClient = `{
  "client_address" : ["localhost:8900","localhost:8901","localhost:8902"],
  "maxreries" : 13
}`

// freePorts gives ports that nobody listens at just now.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}
