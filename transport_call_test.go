package chubby

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
	"github.com/chubbygo/chubby/internal/wire"
)

const (
	kindEcho    = wire.FirstRPCKind + 50
	kindHang    = wire.FirstRPCKind + 51
	kindFail    = wire.FirstRPCKind + 52
	kindLarge   = wire.FirstRPCKind + 53
	kindNobody  = wire.FirstRPCKind + 54
	kindControl = wire.FirstControlKind + 50
	kindFound   = wire.FirstFoundKind + 20
)

// newTestTransport starts a transport of a founded cell that is closed with the test.
func newTestTransport(tb testing.TB, net *memnet.Net, id string, change func(*transportConfig)) *transport {
	tb.Helper()
	c := testConfig(net, id)
	if change != nil {
		change(&c)
	}
	x, err := newTransport(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = x.Close() })
	x.setCell([16]byte{1})
	return x
}

func echo(_ context.Context, _ peerInfo, payload []byte) ([]byte, error) { return payload, nil }

// meet tells both transports of each other.
func meet(list ...*transport) {
	var servers []raft.Server
	for _, x := range list {
		servers = append(servers, raft.Server{ID: x.c.Server, Address: raft.ServerAddress(x.addr())})
	}
	for _, x := range list {
		for _, s := range servers {
			x.peer(s.ID, s.Address)
		}
		x.setPeers(servers)
	}
}

func TestCall(t *testing.T) {
	for _, name := range []string{"tcp", "mem"} {
		t.Run(name, func(t *testing.T) {
			run := func(t *testing.T, net *memnet.Net) {
				a, b := newTestTransport(t, net, "n1", nil), newTestTransport(t, net, "n2", nil)
				meet(a, b)
				b.handle(kindEcho, func(ctx context.Context, from peerInfo, p []byte) ([]byte, error) {
					if from.Server != "n1.a" || from.ID != "n1" || from.Level != 1 {
						t.Errorf("call came from %+v", from)
					}
					return p, nil
				})
				b.handle(kindControl, echo)
				b.handle(kindFail, func(context.Context, peerInfo, []byte) ([]byte, error) {
					return nil, &Error{Op: "lock", Path: "/a", Err: errors.Join(ErrUncertain, context.DeadlineExceeded)}
				})
				b.handle(kindLarge, func(context.Context, peerInfo, []byte) ([]byte, error) {
					return make([]byte, wire.MaxRPCPayload+1), nil
				})
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				var wg sync.WaitGroup
				for i := range 100 {
					wg.Go(func() {
						kind := []wire.Kind{kindEcho, kindControl}[i%2]
						want := fmt.Sprintf("%d", i)
						if got, err := a.call(ctx, "n2.a", kind, []byte(want)); string(got) != want || err != nil {
							t.Errorf("got %q, %v, want %q", got, err, want)
						}
					})
				}
				wg.Wait()
				big := bytes.Repeat([]byte("x"), wire.MaxRPCPayload-1)
				if got, err := a.call(ctx, "n2.a", kindEcho, big); !bytes.Equal(got, big) || err != nil {
					t.Errorf("4 MiB: %d bytes, %v", len(got), err)
				}
				if _, err := a.call(ctx, "n2.a", kindEcho, append(big, 0)); !errors.Is(err, ErrTooLarge) || !errors.Is(err, errNotSent) {
					t.Errorf("above 4 MiB: got %v, want ErrTooLarge, not sent", err)
				}
				if _, err := a.call(ctx, "n2.a", kindLarge, nil); !errors.Is(err, ErrTooLarge) || errors.Is(err, errNotSent) {
					t.Errorf("large answer: got %v, want ErrTooLarge", err)
				}
				_, err := a.call(ctx, "n2.a", kindFail, nil)
				if !errors.Is(err, ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "chubby: lock /a:") {
					t.Errorf("remote error: got %v", err)
				}
				if _, err := a.call(ctx, "n2.a", kindNobody, nil); !errors.Is(err, errNoHandler) {
					t.Errorf("no handler: got %v", err)
				}
				if _, err := a.call(ctx, "n2.a", kindFound, nil); !errors.Is(err, errNotSent) {
					t.Errorf("found kind by call: got %v", err)
				}
			}
			if name == "tcp" {
				run(t, nil)
				return
			}
			synctest.Test(t, func(t *testing.T) { run(t, memnet.New()) })
		})
	}
}

// What certainly did not reach the peer matches errNotSent, what may have does not.
func TestCallOutcomes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a, b := newTestTransport(t, net, "n1", nil), newTestTransport(t, net, "n2", nil)
		meet(a, b)
		began, ended := make(chan struct{}, 10), make(chan struct{}, 10)
		b.handle(kindHang, func(ctx context.Context, _ peerInfo, _ []byte) ([]byte, error) {
			began <- struct{}{}
			<-ctx.Done()
			ended <- struct{}{}
			return nil, ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := a.call(ctx, "n2.a", kindHang, nil)
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errNotSent) {
			t.Errorf("caller gave up: got %v", err)
		}
		<-began
		<-ended // the handler heard of it
		if _, err = a.call(t.Context(), "n9.a", kindHang, nil); !errors.Is(err, errNotSent) {
			t.Errorf("unknown server: got %v", err)
		}

		net.Partition([]string{"n1"})
		start := time.Now()
		if _, err = a.call(t.Context(), "n2.a", kindHang, nil); errors.Is(err, errNotSent) || err == nil {
			t.Errorf("partition on an open stream: got %v, want an error that leaves it open", err)
		}
		if d := time.Since(start); d > 2*a.streamTimeout {
			t.Errorf("broken stream noticed after %v", d)
		}
		if _, err = a.call(t.Context(), "n2.a", kindHang, nil); !errors.Is(err, errNotSent) {
			t.Errorf("no stream: got %v, want errNotSent", err)
		}
		net.Heal()
		go func() { _ = b.Close() }()
		synctest.Wait()
		if _, err = a.call(t.Context(), "n2.a", kindHang, nil); !errors.Is(err, errNotSent) {
			t.Errorf("closed peer: got %v, want errNotSent", err)
		}
		_ = a.Close()
		if _, err = a.call(t.Context(), "n2.a", kindHang, nil); !errors.Is(err, errNotSent) || !errors.Is(err, ErrClosed) {
			t.Errorf("closed transport: got %v, want errNotSent and ErrClosed", err)
		}
	})
}

// Calls above the limit of a stream are refused, not queued, and hold up no other stream.
func TestCallLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a, b := newTestTransport(t, net, "n1", nil), newTestTransport(t, net, "n2", nil)
		meet(a, b)
		b.handle(kindHang, func(ctx context.Context, _ peerInfo, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		b.handle(kindControl, echo)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range maxStreamCalls {
			wg.Go(func() { _, _ = a.call(ctx, "n2.a", kindHang, nil) })
		}
		time.Sleep(time.Second)
		if _, err := a.call(t.Context(), "n2.a", kindHang, nil); !errors.Is(err, ErrOverloaded) {
			t.Errorf("call %d: got %v, want ErrOverloaded", maxStreamCalls+1, err)
		}
		if _, err := a.call(t.Context(), "n2.a", kindControl, nil); err != nil {
			t.Errorf("control stream: %v", err)
		}
		cancel()
		wg.Wait()
		time.Sleep(time.Second)
		if n := len(b.lanes.node.places); n != 0 {
			t.Errorf("%d places still taken", n)
		}
	})
}

// A call by address works before the cell is known; nothing else does.
func TestFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a, err := newTransport(testConfig(net, "n1"))
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := newTransport(testConfig(net, "n2"))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		meet(a, b)
		b.handle(kindFound, echo)
		b.handle(kindEcho, echo)
		who, got, err := a.callAddr(t.Context(), b.addr(), kindFound, []byte("hi"))
		if err != nil || string(got) != "hi" || who.Server != "n2.a" || who.ID != "n2" {
			t.Errorf("got %+v, %q, %v", who, got, err)
		}
		if _, err := a.call(t.Context(), "n2.a", kindEcho, nil); !errors.Is(err, errNotFounded) || !errors.Is(err, errNotSent) {
			t.Errorf("this side has no cell: got %v", err)
		}
		a.setCell([16]byte{1})
		if _, err := a.call(t.Context(), "n2.a", kindEcho, nil); !errors.Is(err, errNotFounded) {
			t.Errorf("the other side has no cell: got %v", err)
		}
		b.setCell([16]byte{1})
		if _, err := a.call(t.Context(), "n2.a", kindEcho, nil); err != nil {
			t.Errorf("both have it: %v", err)
		}
		if _, _, err := a.callAddr(t.Context(), "n3:1", kindFound, nil); !errors.Is(err, errNotSent) {
			t.Errorf("nobody there: got %v", err)
		}
		if _, _, err := a.callAddr(t.Context(), b.addr(), kindEcho, nil); !errors.Is(err, errNotSent) {
			t.Errorf("rpc kind by address: got %v", err)
		}
		// The transport's end, too, ends a call by address.
		net.Partition([]string{"n1"})
		done := make(chan error, 1)
		go func() {
			_, _, err := a.callAddr(context.Background(), b.addr(), kindFound, nil)
			done <- err
		}()
		synctest.Wait()
		_ = a.Close()
		if err := <-done; !errors.Is(err, errNotSent) {
			t.Errorf("closed: got %v", err)
		}
	})
}

// Addresses are tried in order, and the one who answers must be the one meant.
func TestResolve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		b, c := newTestTransport(t, net, "n2", nil), newTestTransport(t, net, "n3", nil)
		b.handle(kindEcho, echo)
		a := newTestTransport(t, net, "n1", func(tc *transportConfig) {
			tc.Resolve = func(raft.ServerID, raft.ServerAddress) []string { return []string{"n9:1", c.addr(), b.addr()} }
		})
		if _, err := a.call(t.Context(), "n2.a", kindEcho, nil); err != nil {
			t.Errorf("third address: %v", err)
		}
		if _, err := a.call(t.Context(), "n2.wiped", kindEcho, nil); !errors.Is(err, ErrWrongCell) || !strings.Contains(err.Error(), "this is n2.a, not n2.wiped") {
			t.Errorf("another incarnation: got %v", err)
		}
	})
}

func TestFaultCodes(t *testing.T) {
	for code, sentinel := range faultCodes {
		if sentinel == nil {
			continue
		}
		f := faultOf(fmt.Errorf("deep: %w", sentinel))
		if err := faultError(f); !errors.Is(err, sentinel) || err.Error() != "deep: "+sentinel.Error() {
			t.Errorf("code %d: %v came back as %v", code, sentinel, err)
		}
	}
	if err := faultError(&wire.Fault{Codes: []byte{255}, Text: "newer"}); err.Error() != "newer" {
		t.Errorf("unknown code: got %v", err)
	}
	if f := faultOf(errors.New(strings.Repeat("x", 1<<20))); len(f.Text) != maxFaultText {
		t.Errorf("text of %d bytes", len(f.Text))
	}
}
