package chubby

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkCall measures the round trip of a call with 100 bytes each way between two transports of one process over
// TCP loopback.
func BenchmarkCall(b *testing.B) {
	for _, tls := range []bool{false, true} {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("tls=%v/callers=%d", tls, callers), func(b *testing.B) {
				secure := func(tc *transportConfig) {
					if tls {
						tc.Security = mustSecurity(b, nil, testSecret, tc.ID)
					}
				}
				x, y := newTestTransport(b, nil, "n1", secure), newTestTransport(b, nil, "n2", secure)
				meet(x, y)
				y.handle(kindEcho, echo)
				payload := make([]byte, 100)
				if _, err := x.call(context.Background(), "n2.a", kindEcho, payload); err != nil {
					b.Fatal(err)
				}
				b.ReportAllocs()
				b.ResetTimer()
				var wg sync.WaitGroup
				for i := range callers {
					n := b.N / callers
					if i < b.N%callers {
						n++
					}
					wg.Go(func() {
						for range n {
							if _, err := x.call(context.Background(), "n2.a", kindEcho, payload); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
			})
		}
	}
}

// BenchmarkPipeline measures pipelined AppendEntries of one entry each over TCP loopback, answered at once.
func BenchmarkPipeline(b *testing.B) {
	for _, size := range []int{128, 128 << 10} {
		b.Run(fmt.Sprintf("entry=%d", size), func(b *testing.B) {
			x, y := newTestTransport(b, nil, "n1", nil), newTestTransport(b, nil, "n2", nil)
			meet(x, y)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				for {
					select {
					case rpc := <-y.Consumer():
						rpc.Respond(&raft.AppendEntriesResponse{Term: 3, Success: true}, nil)
					case <-stop:
						return
					}
				}
			})
			p, err := x.AppendEntriesPipeline("n2.a", y.LocalAddr())
			if err != nil {
				b.Fatal(err)
			}
			data := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for range b.N {
					<-p.Consumer()
				}
			}()
			for i := range uint64(b.N) {
				req := &raft.AppendEntriesRequest{RPCHeader: headerOf(x), Term: 3, PrevLogEntry: i, PrevLogTerm: 3,
					Entries: []*raft.Log{{Index: i + 1, Term: 3, Data: data}}}
				if _, err := p.AppendEntries(req, new(raft.AppendEntriesResponse)); err != nil {
					b.Fatal(err)
				}
			}
			<-done
			b.StopTimer()
			close(stop)
			wg.Wait()
			_ = p.Close()
		})
	}
}
