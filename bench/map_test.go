package bench

import (
	"fmt"
	"testing"

	"github.com/chubbygo/chubby"
)

// BenchmarkMap reads from one node in memory, which holds 100,000 entries, as users do: what Options.Map is worth to them.
// bench/maps compares the strategies by themselves.
func BenchmarkMap(b *testing.B) {
	const entries = 100_000
	for name, m := range map[string]chubby.MapStrategy{
		"TreeMap": chubby.TreeMap, "ConcurrentMap": chubby.ConcurrentMap, "SyncMap": chubby.SyncMap,
	} {
		n, err := chubby.Open(chubby.Options{Map: m})
		if err != nil {
			b.Fatal(err)
		}
		defer n.Close()
		paths := make([]string, entries)
		for i := range paths {
			paths[i] = fmt.Sprintf("/svc/directory-%04d/file-%02d", i/100, i%100)
		}
		for i := 0; i < entries; i += 250 {
			var t chubby.Txn
			for _, path := range paths[i : i+250] {
				t.Then = append(t.Then, chubby.OpSet(path, value))
			}
			if _, err := n.Txn(b.Context(), t); err != nil {
				b.Fatal(err)
			}
		}
		for _, op := range []struct {
			name string
			get  func(path string) error
		}{
			{"get", func(path string) error { _, err := n.Get(b.Context(), path); return err }},
			{"fastget", func(path string) error { _, err := n.FastGet(b.Context(), path); return err }},
		} {
			b.Run(fmt.Sprintf("op=%s/callers=64/map=%s", op.name, name), func(b *testing.B) {
				run(b, 64, func(_, i int) error { return op.get(paths[i*7919%entries]) })
			})
		}
	}
}
