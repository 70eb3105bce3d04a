package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report prints a block per workload: the median of each figure over the rounds, and how the reference, the first system,
// compares. A ratio is the median of the ratios within each round, since what disturbs a round disturbs all systems in it.
func report(out io.Writer, rounds [][]sample, workloads []workload, systems []string) error {
	reference := systems[0]
	for _, load := range workloads {
		fmt.Fprintf(out, "\n%s\n", load.name())
		w := tabwriter.NewWriter(out, 0, 0, 3, ' ', tabwriter.AlignRight)
		fmt.Fprint(w, "system\tops/s\tp50 ms\tp99 ms\t")
		if len(systems) > 1 {
			fmt.Fprintf(w, "%s/this: ops/s\tp50\tp99\t", reference)
		}
		fmt.Fprintln(w)
		for _, name := range systems {
			var ops, p50, p99, opsRatio, p50Ratio, p99Ratio []float64
			for _, round := range rounds {
				s, ok := find(round, name, load.name())
				if !ok {
					continue
				}
				ops = append(ops, s.opsPerSecond())
				p50 = append(p50, milliseconds(s.p50))
				p99 = append(p99, milliseconds(s.p99))
				if ref, ok := find(round, reference, load.name()); ok && name != reference {
					opsRatio = append(opsRatio, ref.opsPerSecond()/s.opsPerSecond())
					p50Ratio = append(p50Ratio, float64(ref.p50)/float64(s.p50))
					p99Ratio = append(p99Ratio, float64(ref.p99)/float64(s.p99))
				}
			}
			fmt.Fprintf(w, "%s\t%.0f\t%.3f\t%.3f\t%s\t%s\t%s\t\n", name, median(ops), median(p50), median(p99),
				ratio(opsRatio), ratio(p50Ratio), ratio(p99Ratio))
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// find gives the sample of a system and workload, unless it failed.
func find(round []sample, system, workload string) (sample, bool) {
	i := slices.IndexFunc(round, func(s sample) bool {
		return s.system == system && s.workload == workload && s.err == nil
	})
	if i < 0 {
		return sample{}, false
	}
	return round[i], true
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// ratio gives two digits behind the point, or two digits at all where the first would be zeros.
func ratio(rs []float64) string {
	switch m := median(rs); {
	case len(rs) == 0:
		return ""
	case m < 0.1:
		return fmt.Sprintf("%.2g", m)
	default:
		return fmt.Sprintf("%.2f", m)
	}
}

// median is NaN of nothing.
func median(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	xs = slices.Sorted(slices.Values(xs))
	return (xs[(len(xs)-1)/2] + xs[len(xs)/2]) / 2
}

// writeBench writes a sample as a line of go test -bench, for benchstat -col /system. The time per operation is the
// inverse of the throughput; p50-ns and p99-ns are what one caller waits.
func writeBench(out io.Writer, s sample) error {
	_, err := fmt.Fprintf(out, "BenchmarkCompare/workload=%s/system=%s\t%d\t%.0f ns/op\t%.1f ops/s\t%d p50-ns\t%d p99-ns\n",
		s.workload, s.system, s.ops, float64(s.elapsed)/float64(s.ops), s.opsPerSecond(), s.p50, s.p99)
	return err
}

// environment describes what the figures depend on. Those of the lines that benchstat takes for configuration are equal
// in two runs on the same machine and code, because it compares nothing across different configurations.
func environment(fsync time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: %s\ngoarch: %s\npkg: github.com/chubbygo/chubby/bench/compare\n", runtime.GOOS, runtime.GOARCH)
	fmt.Fprintf(&b, "go: %s\ncpus: %d\nmedian fsync of 4 KiB: %v\n", runtime.Version(), runtime.GOMAXPROCS(0), fsync)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b.String()
	}
	for _, m := range info.Deps {
		switch m.Path {
		case "go.etcd.io/etcd/server/v3", "github.com/hashicorp/raft", "github.com/hashicorp/raft-boltdb/v2", "go.etcd.io/bbolt":
			fmt.Fprintf(&b, "%s: %s\n", m.Path, m.Version)
		}
	}
	return b.String()
}
