package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Every workload runs on every system, for a moment: the baselines work, and their locks exclude.
func TestSystems(t *testing.T) {
	for _, op := range openers() {
		t.Run(op.name, func(t *testing.T) {
			t.Parallel() // Most of the time goes by waiting for elections.
			systems, err := open(t.Context(), []opener{op}, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			s := systems[0]
			defer func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}()
			for _, w := range workloads() {
				steps, cleanup, err := w.prepare(t.Context(), s, w.place(s.Leader()))
				if err != nil {
					t.Fatalf("%s: prepare: %v", w.name(), err)
				}
				// Not measure, which refuses a slow machine's lack of figures: every step still runs once.
				if _, err := run(t.Context(), steps, 0, 50*time.Millisecond); err != nil {
					t.Errorf("%s: %v", w.name(), err)
				}
				if err := cleanup(); err != nil {
					t.Errorf("%s: cleanup: %v", w.name(), err)
				}
			}
			if _, err := s.Get(t.Context(), 0, "missing"); err == nil {
				t.Error("Get of a missing key gave no error")
			}
			if got, err := s.StaleGet(t.Context(), 0, "missing"); got != "" || err != nil {
				t.Errorf("StaleGet of a missing key = %q, %v", got, err)
			}
		})
	}
}

// fake is a system in memory that takes a millisecond for everything and keeps no value.
type fake struct {
	mu   sync.Mutex
	puts map[int]int // by node
}

func newFake() *fake { return &fake{puts: make(map[int]int)} }

func (f *fake) Name() string { return "fake" }
func (f *fake) Leader() int  { return 1 }
func (f *fake) Close() error { return nil }

func (f *fake) Put(_ context.Context, node int, _, _ string) error {
	time.Sleep(time.Millisecond)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.puts[node]++
	return nil
}

func (f *fake) Get(context.Context, int, string) (string, error) {
	time.Sleep(time.Millisecond)
	return "short", nil
}

func (f *fake) StaleGet(context.Context, int, string) (string, error) { return "", nil }
func (f *fake) Watch(ctx context.Context, _ int, _ string) (func(func(string)) error, error) {
	return func(told func(string)) error {
		told("never written")
		<-ctx.Done()
		return nil
	}, nil
}
func (f *fake) NewLocker(context.Context, int) (locker, error) { return nil, errors.ErrUnsupported }

func TestMeasureCountsAfterWarmUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := workload{op: "put", callers: 2, at: atAll, prepare: each(put)}
		got := measure(t.Context(), newFake(), w, 80*time.Millisecond)
		if got.err != nil || got.ops != 2*80 || got.p50 != time.Millisecond || got.p99 != time.Millisecond {
			t.Errorf("got %+v, want 160 operations of 1 ms", got)
		}
	})
}

func TestMeasurePlacesCallers(t *testing.T) {
	for _, test := range []struct {
		at      string
		callers int
		want    [nodes]bool // which nodes have callers, while node 1 leads
	}{
		{atFollower, 1, [nodes]bool{2: true}},
		{atLeader, 1, [nodes]bool{1: true}},
		{atAll, 2, [nodes]bool{0: true, 2: true}},
		{atAll, 3, [nodes]bool{true, true, true}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake()
			measure(t.Context(), f, workload{op: "put", callers: test.callers, at: test.at, prepare: each(put)}, 10*time.Millisecond)
			for node, want := range test.want {
				if got := f.puts[node] > 0; got != want {
					t.Errorf("%d at %s: node %d has callers: %v, want %v", test.callers, test.at, node, got, want)
				}
			}
		})
	}
}

// What went wrong ends the measurement and tells itself, instead of becoming a figure.
func TestMeasureReportsErrors(t *testing.T) {
	for _, test := range []struct {
		name string
		load workload
		want string
	}{
		{"wrong value", workload{callers: 3, at: atAll, prepare: each(get)}, "gave 5 bytes"},
		{"wrong event", workload{callers: 1, at: atAll, prepare: watch}, "the watch on node 0 told of"},
		{"no preparation", workload{callers: 1, at: atAll, prepare: lockCycle}, "unsupported"},
		{"never visible", workload{callers: 1, at: atAll, prepare: each(visible)}, "no answer within"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if test.name == "never visible" {
				// As patience does, without waiting for it: such a step spins, so no virtual clock advances.
				time.AfterFunc(50*time.Millisecond, func() { cancel(errors.New("no answer within it")) })
			}
			got := measure(ctx, newFake(), test.load, 10*time.Millisecond)
			if got.err == nil || !strings.Contains(got.err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", got.err, test.want)
			}
		})
	}
}

func TestBaton(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBaton()
		for i, test := range []struct {
			holder int
			want   time.Duration
		}{{1, uncounted}, {1, uncounted}, {0, time.Second}, {1, time.Second}} {
			time.Sleep(time.Second)
			if got, err := b.take(test.holder); got != test.want || err != nil {
				t.Errorf("take %d by %d = %v, %v, want %v", i, test.holder, got, err, test.want)
			}
			b.give()
		}
		if _, err := b.take(0); err != nil {
			t.Error(err)
		}
		if _, err := b.take(1); err == nil {
			t.Error("two holders went unnoticed")
		}
	})
}

func TestReport(t *testing.T) {
	w := workload{op: "put", callers: 1, at: atLeader}
	at := func(system string, ops int, p50 time.Duration) sample {
		return sample{system: system, workload: w.name(), ops: ops, elapsed: time.Second, p50: p50, p99: 2 * p50}
	}
	failed := at("a", 1, time.Hour)
	failed.err = errors.New("lost")
	rounds := [][]sample{
		{at("a", 100, time.Millisecond), at("b", 50, 4*time.Millisecond)},
		{at("b", 10, 20*time.Millisecond), at("a", 30, 2*time.Millisecond)},
		{failed, at("b", 40, 5*time.Millisecond)}, // No ratio: the reference is missing.
	}
	var got bytes.Buffer
	if err := report(&got, rounds, []workload{w}, []string{"a", "b"}); err != nil {
		t.Fatal(err)
	}
	want := `
put/callers=1/at=leader
   system   ops/s   p50 ms   p99 ms   a/this: ops/s    p50    p99
        a      65    1.500    3.000                              
        b      40    5.000   10.000            2.50   0.17   0.17
`
	if got.String() != want {
		t.Errorf("got %s\nwant %s", got.String(), want)
	}
	if err := failures(rounds); err == nil || !strings.HasPrefix(err.Error(), "1 ") {
		t.Errorf("failures: %v, want 1", err)
	}
}

func TestWriteBench(t *testing.T) {
	var got strings.Builder
	s := sample{system: "a", workload: "put/callers=1/at=leader", ops: 500, elapsed: time.Second, p50: 1000, p99: 3000}
	if err := writeBench(&got, s); err != nil {
		t.Fatal(err)
	}
	want := "BenchmarkCompare/workload=put/callers=1/at=leader/system=a\t500\t2000000 ns/op\t500.0 ops/s\t1000 p50-ns\t3000 p99-ns\n"
	if got.String() != want {
		t.Errorf("got %q\nwant %q", got.String(), want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, args := range []string{"-systems=nosuch", "-systems=etcd,etcd", "-workloads=nosuch", "-workloads=(", "-rounds=0", "-d=-1s", "stray"} {
		if _, err := parse([]string{args}); err == nil {
			t.Errorf("%s was accepted", args)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x07\x01ab"))
	f.Add([]byte("\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x07\x01ab"))
	f.Fuzz(func(t *testing.T, data []byte) {
		fr, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		near, far := net.Pipe()
		defer far.Close()
		ctx, cancel := context.WithCancel(t.Context())
		out := make(chan frame, 1)
		out <- fr
		done := make(chan error)
		go func() { done <- writeFrames(ctx, near, out) }()
		again := make([]byte, frameHeaderBytes+len(fr.body))
		if _, err := io.ReadFull(far, again); err != nil || !bytes.HasPrefix(data, again) {
			t.Errorf("frame %v was written as %q, %v", fr, again, err)
		}
		cancel()
		<-done
	})
}
