package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/OneOfOne/xxhash"
)

const (
	dumpTimeout = time.Minute
	dumpersMax  = 8 // directories read from one node at once
	// settleRounds is how often nodes are compared before they count as different. A write with an uncertain outcome may
	// still happen between two looks; that ends soon, a real difference does not.
	settleRounds = 5
	settlePause  = time.Second
)

// verify reads everything back from every node. It returns what became of the writes and every violation. The writers
// must have stopped and all nodes be ready.
func (w *writers) verify() (tally, []string) {
	var bad []string
	for _, id := range w.cell.ids {
		if err := w.cell.ask(id, request{Call: callCheck, Timeout: dumpTimeout}, nil); err != nil {
			bad = append(bad, err.Error())
		}
	}
	for round := 1; ; round++ {
		t, lost, different := w.compare()
		bad = append(bad, lost...)
		if len(different) == 0 || round == settleRounds {
			return t, append(bad, different...)
		}
		time.Sleep(settlePause) // The nodes do not tell when what is late has come.
	}
}

// compare reads every chain from every node once. lost is what no write may leave behind; different is what may be
// nodes seen at different moments.
func (w *writers) compare() (t tally, lost, different []string) {
	type result struct {
		tally           tally
		lost, different []string
	}
	results := make([]result, len(w.mu.chains))
	next := make(chan int)
	var wg sync.WaitGroup
	for range dumpersMax {
		wg.Go(func() {
			for i := range next {
				r := &results[i]
				r.tally, r.lost, r.different = w.compareChain(w.mu.chains[i])
			}
		})
	}
	for i := range results {
		next <- i
	}
	close(next)
	wg.Wait()
	for _, r := range results {
		t.add(r.tally)
		lost = append(lost, r.lost...)
		different = append(different, r.different...)
	}
	return t, append(lost, w.strangers()...), different
}

// compareChain reads one chain from every node.
func (w *writers) compareChain(c *chain) (t tally, lost, different []string) {
	var first []entry
	for i, id := range w.cell.ids {
		entries, err := w.dump(id, c.dir)
		if err != nil {
			lost = append(lost, err.Error())
			continue
		}
		var bad []string
		t, bad = c.judge(entries)
		for _, b := range bad {
			lost = append(lost, fmt.Sprintf("node %s: %s", id, b))
		}
		for j, e := range entries {
			if e.Fast == nil || e.Fast.Instance != e.Instance || e.Fast.Generation != e.Generation || e.Fast.Checksum != e.Checksum || xxhash.ChecksumString64(e.Data) != e.Checksum {
				different = append(different, fmt.Sprintf("node %s: %s: its own reads differ: %q, %+v by FastGet, %+v by List", id, e.Path, e.Data, e.Fast, e))
			}
			entries[j].Fast = nil // It is compared, and points elsewhere on each node.
		}
		if i == 0 {
			first = entries
		} else if !slices.Equal(first, entries) {
			different = append(different, fmt.Sprintf("%s: %d entries on node %s and %d on node %s are not equal", c.dir, len(first), w.cell.ids[0], len(entries), id))
		}
	}
	return t, lost, different
}

// strangers finds directories that no chain has.
func (w *writers) strangers() []string {
	known := make(map[string]bool)
	for _, c := range w.mu.chains {
		known[c.dir] = true
	}
	parents := []string{"/"}
	for i := range w.opts.writers {
		known["/"+writerName(i)] = true
		parents = append(parents, "/"+writerName(i))
	}
	var bad []string
	for _, id := range w.cell.ids {
		for _, dir := range parents {
			entries, err := w.dump(id, dir)
			if err != nil {
				bad = append(bad, err.Error())
			}
			for _, e := range entries {
				if !known[e.Path] || !e.Dir {
					bad = append(bad, fmt.Sprintf("node %s: %s is there, and nobody wrote it", id, e.Path))
				}
			}
		}
	}
	return bad
}

func (w *writers) dump(id, dir string) ([]entry, error) {
	var a response
	err := w.cell.ask(id, request{Call: callDump, Path: dir, Timeout: dumpTimeout}, &a)
	return a.Entries, err
}
