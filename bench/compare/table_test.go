package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Redis and ZooKeeper, where they are installed, take Sets from several callers.
func TestSetters(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	for _, o := range setOpeners()[1:] {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel() // Most of the time goes by waiting for servers.
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			s, err := o.open(ctx, t.TempDir())
			if errors.Is(err, errMissing) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}()
			if row, err := measureSets(ctx, s, 6, 60); err != nil || row.sets != 60 || row.total <= 0 || row.mean <= 0 {
				t.Errorf("%+v, %v", row, err)
			}
		})
	}
}

// fakeSetter fails from its nth Set on, if n is not 0.
type fakeSetter struct {
	name           string
	sets, failFrom atomic.Int64
	open           atomic.Int64
}

func (f *fakeSetter) Name() string { return f.name }
func (f *fakeSetter) Close() error { return nil }
func (f *fakeSetter) Caller(context.Context, int) (setCaller, error) {
	f.open.Add(1)
	return fakeCaller{f}, nil
}

type fakeCaller struct{ *fakeSetter }

func (c fakeCaller) Set(_ context.Context, key int, _ string) error {
	if n := c.sets.Add(1); key >= tableKeys || c.failFrom.Load() > 0 && n >= c.failFrom.Load() {
		return fmt.Errorf("set %d of key %d fails", n, key)
	}
	return nil
}
func (c fakeCaller) Close() error { c.open.Add(-1); return nil }

func TestTable(t *testing.T) {
	a, b := &fakeSetter{name: "a"}, &fakeSetter{name: "b"}
	openers := []setOpener{
		{"a", "the first", func(context.Context, string) (setter, error) { return a, nil }},
		{"b", "the second", func(context.Context, string) (setter, error) { return b, nil }},
		{"c", "", func(context.Context, string) (setter, error) { return nil, errMissing }},
	}
	var out strings.Builder
	if err := table(t.Context(), openers, t.TempDir(), 3000, &out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{"a: the first\n", "c is left out: not installed\n", "1000 Sets in each row\n", "3000 Sets in each row\n", "b: total ms", "x ChubbyGo"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	for _, row := range seedRows {
		if n := strings.Count(text, fmt.Sprintf("%7d  %12d", row.threads, row.tps)); n != 2 {
			t.Errorf("%d threads are %d times in it", row.threads, n)
		}
	}
	if want := int64(2*tableKeys + len(seedRows)*(seedSets+3000)); a.sets.Load() != want || b.sets.Load() != want || a.open.Load() != 0 {
		t.Errorf("%d and %d Sets, want %d; %d callers are open", a.sets.Load(), b.sets.Load(), want, a.open.Load())
	}
	if t.Failed() {
		t.Log(text)
	}
	b.failFrom.Store(b.sets.Load() + 2500)
	if err := table(t.Context(), openers, t.TempDir(), 1, &out); err == nil || !strings.Contains(err.Error(), "fails") || b.open.Load() != 0 {
		t.Errorf("a Set that fails: %v; %d callers are open", err, b.open.Load())
	}
	broken := []setOpener{{"d", "", func(context.Context, string) (setter, error) { return nil, errors.New("broken") }}}
	if err := table(t.Context(), broken, t.TempDir(), 1, &out); err == nil || !strings.Contains(err.Error(), "open d: broken") {
		t.Errorf("a product that does not start: %v", err)
	}
}

func TestReadRESP(t *testing.T) {
	for in, want := range map[string]string{
		"+OK\r\n": "OK", "$5\r\nhe\r\nl\r\n": "he\r\nl", "$0\r\n\r\n": "",
		"-ERR no\r\n": "error", "$-1\r\n": "error", "$9999999\r\n": "error", "$5\r\nhel": "error", "": "error", "*1\r\n": "error",
	} {
		got, err := readRESP(bufio.NewReader(strings.NewReader(in)))
		if (err != nil) != (want == "error") || err == nil && got != want {
			t.Errorf("%q gives %q, %v, want %q", in, got, err, want)
		}
	}
}

// The answers that a ZooKeeper server should not give.
func TestZooCallerRefuses(t *testing.T) {
	answer := func(xid, code uint32) []byte {
		b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 16}, xid)
		return binary.BigEndian.AppendUint32(append(b, make([]byte, 8)...), code)
	}
	refused := zooNodeExists
	for name, tt := range map[string]struct {
		answer []byte
		want   string
	}{
		"another request": {answer(2, 0), "another request"},
		"short":           {[]byte{0, 0, 0, 4, 0, 0, 0, 1}, "another request"},
		"huge":            {[]byte{255, 0, 0, 0}, "a frame of"},
		"refused":         {answer(1, uint32(int32(refused))), "error -110"},
		"good":            {answer(1, 0), ""},
	} {
		client, server := net.Pipe()
		c := &zooCaller{Conn: client}
		go func() {
			_, _ = server.Read(make([]byte, 1024)) // one request, in one write
			_, _ = server.Write(tt.answer)
			_ = server.Close()
		}()
		err := c.Set(t.Context(), 1, "x")
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		_ = client.Close()
	}
}
