package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby/internal/memnet"
)

// pair gives a stream from host a to host b: a's end, then b's.
func pair(t *testing.T, n *memnet.Net) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := n.Host("b").Listen(t.Context(), "b:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err := n.Host("a").Dial(t.Context(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func inBubble(t *testing.T, name string, f func(t *testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, f) })
}

func TestStream(t *testing.T) {
	body := func(t *testing.T) {
		a, b := pair(t, memnet.New())
		want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, more than is buffered
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := a.Write(want); err != nil {
				t.Error(err)
			}
			a.Close()
		})
		got, err := io.ReadAll(b)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes, %v, want %d", len(got), err, len(want))
		}
		wg.Wait()
		if _, err := b.Write([]byte("x")); !errors.Is(err, memnet.ErrReset) {
			t.Errorf("write to a closed end: got %v, want ErrReset", err)
		}
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read after Close: got %v, want ErrClosed", err)
		}
	}
	inBubble(t, "bubble", body)
	t.Run("real", body)
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		a, b := pair(t, n)
		n.Delay(10*time.Millisecond, 20*time.Millisecond)
		start := time.Now()
		for i := range 100 {
			if _, err := a.Write([]byte{byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		got := make([]byte, 100)
		if _, err := io.ReadFull(b, got); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d < 10*time.Millisecond || d > 20*time.Millisecond {
			t.Errorf("took %v, want 10 to 20 ms", d)
		}
		for i, x := range got {
			if x != byte(i) {
				t.Fatalf("byte %d is %d: a stream must keep its order", i, x)
			}
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _ := pair(t, memnet.New())
		start := time.Now()
		_ = a.SetDeadline(start.Add(time.Second))
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: got %v", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("read ended after %v, want 1 s", d)
		}
		_ = a.SetDeadline(time.Now().Add(time.Second))
		if n, err := a.Write(make([]byte, 1<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 {
			t.Errorf("write into a full buffer: got %d, %v", n, err)
		}
		// A deadline that is moved wakes who waits.
		_ = a.SetDeadline(time.Time{})
		time.AfterFunc(time.Second, func() { _ = a.SetReadDeadline(time.Now()) })
		if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("moved deadline: got %v", err)
		}
	})
}

func TestPartition(t *testing.T) {
	inBubble(t, "short", func(t *testing.T) {
		n := memnet.New()
		a, b := pair(t, n)
		n.Partition([]string{"a"})
		if _, err := a.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		time.AfterFunc(5*time.Second, n.Heal)
		if _, err := io.ReadFull(b, make([]byte, 1)); err != nil || time.Since(start) < 5*time.Second {
			t.Errorf("after %v: %v, want the byte after 5 s", time.Since(start), err)
		}
	})
	inBubble(t, "long", func(t *testing.T) {
		n := memnet.New()
		a, b := pair(t, n)
		n.Partition([]string{"a"}, []string{"b"})
		for name, c := range map[string]net.Conn{"a": a, "b": b} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, memnet.ErrTimeout) {
				t.Errorf("%s: got %v, want ErrTimeout", name, err)
			}
		}
		if _, err := n.Host("a").Dial(t.Context(), "b:1"); !errors.Is(err, memnet.ErrTimeout) {
			t.Errorf("dial: got %v, want ErrTimeout", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Host("a").Dial(ctx, "b:1"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: got %v, want DeadlineExceeded", err)
		}
	})
	inBubble(t, "one way", func(t *testing.T) {
		n := memnet.New()
		a, b := pair(t, n)
		n.Cut("a", "b")
		_, _ = a.Write([]byte("lost"))
		_, _ = b.Write([]byte("y"))
		if _, err := io.ReadFull(a, make([]byte, 1)); err != nil {
			t.Errorf("the other way: %v", err)
		}
		_ = b.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the cut way: got %v, want no byte", err)
		}
		// The end of a stream does not cross a cut either.
		a.Close()
		_ = b.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("close over the cut way: got %v, want nothing", err)
		}
	})
}

func TestListen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		h := n.Host("a")
		ln, err := h.Listen(t.Context(), "a:7")
		if err != nil {
			t.Fatal(err)
		}
		for addr, why := range map[string]string{"a:7": "taken", "b:7": "another host", "nonsense": "no port"} {
			if _, err := h.Listen(t.Context(), addr); err == nil {
				t.Errorf("Listen(%s), %s: no error", addr, why)
			}
		}
		c, err := n.Host("b").Dial(t.Context(), "a:7") // waits in the queue
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ln.Close()
		ln.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, memnet.ErrReset) {
			t.Errorf("never accepted: got %v, want ErrReset", err)
		}
		if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: got %v", err)
		}
		if _, err := n.Host("b").Dial(t.Context(), "a:7"); !errors.Is(err, memnet.ErrRefused) {
			t.Errorf("Dial after Close: got %v", err)
		}
		if ln, err = h.Listen(t.Context(), "a:7"); err != nil {
			t.Errorf("the port is free again: %v", err)
		} else {
			ln.Close()
		}
	})
}
