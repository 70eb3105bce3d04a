package bench

import (
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
)

var entries = flag.Int("entries", 100_000, "entries in the cell for BenchmarkSnapshot; the recorded results have 1,000,000")

// BenchmarkSnapshot takes snapshots of a large cell of one while somebody writes, and then opens it again.
//
// usual-max-ms and max-ms are the longest a write took without and with a snapshot under way; ready-ms is from Open to
// ready on the directory with that snapshot.
func BenchmarkSnapshot(b *testing.B) {
	b.Run(fmt.Sprintf("nodes=1/store=bolt/entries=%d", *entries), func(b *testing.B) {
		opts := chubby.Options{ID: "n0", Dir: filepath.Join(b.TempDir(), "n0"), Limits: chubby.Limits{Children: -1}}
		n, err := chubby.Open(opts)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { n.Close() }()
		many(b, n, *entries)
		if err := n.Snapshot(b.Context()); err != nil {
			b.Fatal(err)
		}
		usual, during := time.Duration(0), time.Duration(0)
		for b.Loop() {
			usual = max(usual, writes(b, n, func() error { time.Sleep(2 * time.Second); return nil }))
			during = max(during, writes(b, n, func() error { return n.Snapshot(b.Context()) }))
		}
		b.ReportMetric(float64(usual.Microseconds())/1000, "usual-max-ms")
		b.ReportMetric(float64(during.Microseconds())/1000, "max-ms")
		if err := n.Close(); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if n, err = chubby.Open(opts); err != nil {
			b.Fatal(err)
		}
		if err := n.WaitReady(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ready-ms")
		if got := n.Status().Entries; got < *entries {
			b.Fatalf("%d entries after the restart", got)
		}
	})
}

// many makes small entries in directories of a thousand, in transactions.
func many(b *testing.B, n *chubby.Node, count int) {
	b.Helper()
	const each = 250
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for failed.Load() == nil {
				from := int(next.Add(each)) - each
				if from >= count {
					return
				}
				var t chubby.Txn
				for i := from; i < min(from+each, count); i++ {
					t.Then = append(t.Then, chubby.OpSet(fmt.Sprintf("/many/%d/%d", i/1000, i), []byte("0123456789abcdef")))
				}
				if _, err := n.Txn(context.Background(), t); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
}

// writes has one caller write until f returns, and gives the longest time a write took.
func writes(b *testing.B, n *chubby.Node, f func() error) time.Duration {
	b.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	var times []time.Duration
	for i := 0; ; i++ {
		select {
		case err := <-done:
			if err != nil {
				b.Fatal(err)
			}
			return slices.Max(times)
		default:
		}
		start := time.Now()
		if _, err := n.Set(b.Context(), key(i), value); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
}
