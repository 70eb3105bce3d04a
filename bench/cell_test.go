// Package bench measures cells as users have them: nodes in one process that talk TCP over the loopback and keep their
// data in bolt files with fsync. See README.md for how to run and compare.
package bench

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
)

// openCell opens n nodes on free ports and waits until all are ready. The cell leader comes first.
func openCell(b *testing.B, n int) []*chubby.Node {
	b.Helper()
	dir := b.TempDir()
	peers := make(map[string]string)
	for i := range n {
		peers[fmt.Sprintf("n%d", i)] = freeAddr(b)
	}
	var nodes []*chubby.Node
	for id, addr := range peers {
		node, err := chubby.Open(chubby.Options{ID: id, Dir: filepath.Join(dir, id), Listen: addr, Peers: peers})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { node.Close() })
		nodes = append(nodes, node)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, node := range nodes {
		if err := node.WaitReady(ctx); err != nil {
			b.Fatal(err)
		}
	}
	slices.SortFunc(nodes, func(x, y *chubby.Node) int {
		if x.Status().Role == chubby.RoleLeader {
			return -1
		}
		return 1
	})
	return nodes
}

func freeAddr(b *testing.B) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// run has callers do b.N operations in all and reports the times of single ones beside the rate.
func run(b *testing.B, callers int, op func(caller, i int) error) {
	b.Helper()
	b.ReportAllocs()
	var next atomic.Int64
	times := make([][]time.Duration, callers)
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	b.ResetTimer()
	for caller := range callers {
		wg.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) || failed.Load() != nil {
					return
				}
				start := time.Now()
				if err := op(caller, int(i)); err != nil {
					failed.Store(&err)
					return
				}
				times[caller] = append(times[caller], time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	if err := failed.Load(); err != nil {
		b.Fatal(*err)
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	b.ReportMetric(float64(all[len(all)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(all[len(all)*99/100].Nanoseconds()), "p99-ns")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

// each runs a workload for every size of cell and number of callers, spread over the nodes.
func each(b *testing.B, workload func(b *testing.B, nodes []*chubby.Node, callers int)) {
	for _, n := range []int{1, 3} {
		b.Run(fmt.Sprintf("nodes=%d/store=bolt/net=tcp", n), func(b *testing.B) {
			nodes := openCell(b, n)
			for _, callers := range []int{1, 16, 64, 256} {
				b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) { workload(b, nodes, callers) })
			}
		})
	}
}

var value = make([]byte, 100)

func key(i int) string { return fmt.Sprintf("/bench/k%d", i%1000) }

func BenchmarkPut(b *testing.B) {
	each(b, func(b *testing.B, nodes []*chubby.Node, callers int) {
		before := nodes[0].Status().CommitIndex
		run(b, callers, func(caller, i int) error {
			_, err := nodes[caller%len(nodes)].Set(b.Context(), key(i), value)
			return err
		})
		b.ReportMetric(float64(b.N)/float64(nodes[0].Status().CommitIndex-before), "cmds/entry")
	})
}

func BenchmarkGet(b *testing.B) {
	each(b, func(b *testing.B, nodes []*chubby.Node, callers int) {
		fill(b, nodes)
		run(b, callers, func(caller, i int) error {
			_, err := nodes[caller%len(nodes)].Get(b.Context(), key(i))
			return err
		})
	})
}

func BenchmarkFastGet(b *testing.B) {
	each(b, func(b *testing.B, nodes []*chubby.Node, callers int) {
		fill(b, nodes)
		run(b, callers, func(caller, i int) error {
			_, err := nodes[caller%len(nodes)].FastGet(b.Context(), key(i))
			return err
		})
	})
}

// fill makes all keys and has each node catch up with them.
func fill(b *testing.B, nodes []*chubby.Node) {
	b.Helper()
	for i := range 1000 {
		if _, err := nodes[0].Set(b.Context(), key(i), value); err != nil {
			b.Fatal(err)
		}
	}
	for _, n := range nodes {
		if _, err := n.Get(b.Context(), key(0)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLockCycle locks and unlocks; every caller has a lock of its own.
func BenchmarkLockCycle(b *testing.B) {
	each(b, func(b *testing.B, nodes []*chubby.Node, callers int) {
		run(b, callers, func(caller, i int) error {
			l, err := nodes[caller%len(nodes)].Lock(b.Context(), fmt.Sprintf("/bench/lock%d", caller))
			if err != nil {
				return err
			}
			return l.Unlock(b.Context())
		})
	})
}

// BenchmarkVisible measures from the acknowledgement of a write on one node until FastGet shows it on another.
func BenchmarkVisible(b *testing.B) {
	b.Run("nodes=3/store=bolt/net=tcp/callers=1", func(b *testing.B) {
		nodes := openCell(b, 3)
		var lags []time.Duration
		for i := 0; b.Loop(); i++ {
			want := fmt.Sprint(i)
			if _, err := nodes[i%3].Set(b.Context(), "/bench/visible", []byte(want)); err != nil {
				b.Fatal(err)
			}
			acked := time.Now()
			for {
				e, err := nodes[(i+1)%3].FastGet(b.Context(), "/bench/visible")
				if err == nil && string(e.Data) == want {
					break
				}
			}
			lags = append(lags, time.Since(acked))
		}
		slices.Sort(lags)
		b.ReportMetric(float64(lags[len(lags)/2].Nanoseconds()), "p50-ns")
		b.ReportMetric(float64(lags[len(lags)*99/100].Nanoseconds()), "p99-ns")
	})
}

// BenchmarkWatch measures from the call of a write on one node until a watch on another tells of it, and reports what of
// that comes after the acknowledgement. Other watches of the same file, on all nodes, are told at the same time.
func BenchmarkWatch(b *testing.B) {
	for _, others := range []int{0, 10_000} {
		b.Run(fmt.Sprintf("nodes=3/store=bolt/net=tcp/callers=1/others=%d", others), func(b *testing.B) {
			nodes := openCell(b, 3)
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			arrivals := make([]chan time.Time, len(nodes)) // of every write at every node, in order
			for i, node := range nodes {
				arrivals[i] = make(chan time.Time, 1)
				follow(b, ctx, cancel, &wg, node, func() { arrivals[i] <- time.Now() })
			}
			for i := range others {
				follow(b, ctx, cancel, &wg, nodes[i%3], func() {})
			}
			var times, late []time.Duration
			for i := 0; b.Loop(); i++ {
				start := time.Now()
				if _, err := nodes[i%3].Set(ctx, "/bench/watch", value); err != nil {
					b.Fatal(err)
				}
				acked := time.Now()
				for k := range nodes {
					select {
					case at := <-arrivals[k]:
						if k == (i+1)%3 {
							times, late = append(times, at.Sub(start)), append(late, max(0, at.Sub(acked)))
						}
					case <-ctx.Done():
						b.Fatal("a watch has ended")
					}
				}
			}
			slices.Sort(times)
			slices.Sort(late)
			b.ReportMetric(float64(times[len(times)/2].Nanoseconds()), "p50-ns")
			b.ReportMetric(float64(times[len(times)*99/100].Nanoseconds()), "p99-ns")
			b.ReportMetric(float64(late[len(late)/2].Nanoseconds()), "after-ack-p50-ns")
		})
	}
}

// follow watches the file that BenchmarkWatch writes, until ctx ends. It cancels ctx if the watch ends before.
func follow(b *testing.B, ctx context.Context, cancel func(), wg *sync.WaitGroup, node *chubby.Node, told func()) {
	events := node.Watch(ctx, "/bench/watch", chubby.WatchOptions{})
	wg.Go(func() {
		defer cancel()
		for e, err := range events {
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				b.Error(err)
			case e.Path == "/bench/watch":
				told()
			}
		}
	})
}
