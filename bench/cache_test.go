package bench

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
)

// dial connects a Client with a cache of so many bytes, 0 = none.
func dial(b *testing.B, nodes []*chubby.Node, cacheBytes int64) *chubby.Client {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	members, err := nodes[0].Members(ctx)
	if err != nil {
		b.Fatal(err)
	}
	o := chubby.DialOptions{CacheBytes: cacheBytes}
	for _, m := range members {
		o.Addrs = append(o.Addrs, m.Addr)
	}
	c, err := chubby.Dial(ctx, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return c
}

// warm reads what fill wrote until c answers all of it from memory.
func warm(b *testing.B, c *chubby.Client) {
	b.Helper()
	for range 100 {
		began := time.Now()
		for i := range 1000 {
			if _, err := c.Get(b.Context(), key(i)); err != nil {
				b.Fatal(err)
			}
		}
		if time.Since(began) < 10*time.Millisecond { // a thousandth of it would be fast for one call over TCP
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("the cache stays cold")
}

// A dialled Client's Get, from its cache and without one.
func BenchmarkCachedGet(b *testing.B) {
	nodes := openCell(b, 3)
	fill(b, nodes)
	for _, cached := range []bool{false, true} {
		c := dial(b, nodes, map[bool]int64{true: 1 << 24}[cached])
		if cached {
			warm(b, c)
		}
		for _, callers := range []int{1, 16} {
			b.Run(fmt.Sprintf("cached=%t/callers=%d", cached, callers), func(b *testing.B) {
				run(b, callers, func(_, i int) error {
					_, err := c.Get(b.Context(), key(i))
					return err
				})
			})
		}
	}
}

// Puts of entries that nobody caches, beside clients that cache a thousand others each and read them.
func BenchmarkPutBesideCaches(b *testing.B) {
	nodes := openCell(b, 3)
	fill(b, nodes)
	for _, clients := range []int{0, 10, 0, 10} { // twice: the disk's mood changes
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("caches=%d/callers=%d", clients, callers), func(b *testing.B) {
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				var wg sync.WaitGroup
				defer wg.Wait()
				defer cancel()
				for range clients {
					c := dial(b, nodes, 1<<24)
					warm(b, c)
					wg.Go(func() {
						for i := 0; ctx.Err() == nil; i++ {
							_, _ = c.Get(ctx, key(i))          // its end is the benchmark's
							time.Sleep(100 * time.Millisecond) // often enough to keep the lease; not to take the writer's core
						}
					})
				}
				run(b, callers, func(caller, i int) error {
					_, err := nodes[caller%len(nodes)].Set(b.Context(), fmt.Sprintf("/other/k%d", i%1000), value)
					return err
				})
			})
		}
	}
}

// Puts of one entry that so many clients cache: each waits for all of them.
func BenchmarkPutCached(b *testing.B) {
	nodes := openCell(b, 3)
	fill(b, nodes)
	for _, clients := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("caches=%d", clients), func(b *testing.B) {
			var caches []*chubby.Client
			for range clients {
				caches = append(caches, dial(b, nodes, 1<<24))
			}
			read := func() {
				for _, c := range caches {
					if _, err := c.Get(b.Context(), key(0)); err != nil {
						b.Fatal(err)
					}
				}
			}
			for range 100 { // until all have a lease
				read()
				time.Sleep(time.Millisecond)
			}
			run(b, 1, func(int, int) error {
				_, err := nodes[0].Set(b.Context(), key(0), value)
				b.StopTimer()
				read()
				b.StartTimer()
				return err
			})
		})
	}
}
