package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/OneOfOne/xxhash"
)

// chain is a sequence of writes, one after the other, in a directory that nothing else writes to: a counter and files.
// It ends with the first write whose outcome is uncertain, so at most its last one is. That makes its final state exact:
//
//   - Each addition has a random delta. The counter is the sum of those acknowledged, and of the uncertain one if that
//     happened. An addition lost, or done twice, would leave a sum that no choice about the uncertain one explains; with
//     deltas of 1 it could hide behind that.
//   - Each acknowledged addition must also have returned exactly the sum so far.
//   - A file is set once, or created by a Txn that moves the counter too. Its content is a function of its path. Set a second
//     time, its Generation is no longer its Instance; created a second time, the call fails with ErrExists, which is no
//     outcome that it may have. A Txn done by half shows in the sum.
//   - The counter begins by a Set to 0. Done once more later, that would take the sum back.
//   - What was refused must not be there, nor anything that was never written.
type chain struct {
	dir string
	ops []op
}

// op is one write of a chain, and what its caller knows of it. The first one sets the counter to 0.
type op struct {
	kind    call // callSet, callAdd or callTxn
	delta   int64
	outcome outcome
}

const (
	chainMax   = 500     // writes in one chain: a directory is listed in one piece
	deltaMax   = 1 << 40 // so that no two sums of a chain are likely to be equal
	counterMax = chainMax * deltaMax
)

func (c *chain) counter() string { return c.dir + "/" + counterName }

// file is the path of the file that op i sets or creates.
func (c *chain) file(i int) string { return fmt.Sprintf("%s/f%03d", c.dir, i) }

// content is what a file at path holds: some 100 bytes that no other file has.
func content(path string) string {
	return path + " " + strings.Repeat(strconv.FormatUint(xxhash.ChecksumString64(path), 16)+" ", 5)
}

// request is the call that op i makes.
func (c *chain) request(i int) request {
	switch o := c.ops[i]; {
	case i == 0:
		return request{Call: callSet, Path: c.counter(), Data: "0"}
	case o.kind == callAdd:
		return request{Call: callAdd, Path: c.counter(), Delta: o.delta}
	case o.kind == callTxn:
		return request{Call: callTxn, Path: c.file(i), Data: content(c.file(i)), Counter: c.counter(), Delta: o.delta}
	default:
		return request{Call: callSet, Path: c.file(i), Data: content(c.file(i))}
	}
}

// sum is the counter's value after all acknowledged additions.
func (c *chain) sum() int64 {
	var sum int64
	for _, o := range c.ops {
		if o.outcome == done {
			sum += o.delta
		}
	}
	return sum
}

// tally counts a chain's writes by what became of them.
type tally struct {
	done, refused, uncertain int
	happened                 int // of the uncertain ones
}

func (t *tally) add(u tally) {
	t.done += u.done
	t.refused += u.refused
	t.uncertain += u.uncertain
	t.happened += u.happened
}

// judge compares what a node has in the chain's directory with what the chain's writes may have left there. It returns
// every violation.
func (c *chain) judge(entries []entry) (tally, []string) {
	var t tally
	var bad []string
	fail := func(format string, args ...any) { bad = append(bad, c.dir+": "+fmt.Sprintf(format, args...)) }
	found := make(map[string]entry, len(entries))
	for _, e := range entries {
		found[e.Path] = e
	}

	sums := []int64{c.sum()}
	for i, o := range c.ops {
		path := c.file(i)
		if i == 0 {
			path = c.counter()
		}
		e, present := found[path]
		happened := present
		switch {
		case i == 0:
			// The counter's content is judged below.
		case o.kind == callAdd:
			happened = false // nobody can tell but by the sum
			if o.outcome == uncertain {
				sums = append(sums, sums[0]+o.delta)
			}
		case present && e.Data != content(path):
			fail("write %d (%s, %s): %s holds %q", i, o.kind, o.outcome, path, e.Data)
		case present && e.Generation != e.Instance:
			fail("write %d (%s, %s): applied twice: %s was made at revision %d and written again at %d", i, o.kind, o.outcome, path, e.Instance, e.Generation)
		case present && o.kind == callTxn && o.outcome == uncertain:
			sums[0] += o.delta // it happened, so it happened whole
		}
		if o.kind != callAdd || i == 0 {
			delete(found, path)
		}
		switch o.outcome {
		case done:
			t.done++
			if !present && (i == 0 || o.kind != callAdd) {
				fail("write %d (%s): acknowledged and lost: there is no %s", i, o.kind, path)
			}
		case refused:
			t.refused++
			if happened {
				fail("write %d (%s): refused, yet %s is there", i, o.kind, path)
			}
		case uncertain:
			t.uncertain++
			if happened {
				t.happened++
			}
			if i != len(c.ops)-1 {
				fail("write %d of %d is uncertain: the driver went on with the chain", i, len(c.ops))
			}
		default:
			fail("write %d (%s) ended in an error that it cannot have", i, o.kind)
		}
	}
	for _, e := range entries {
		if e.Path == c.counter() {
			n, err := strconv.ParseInt(e.Data, 10, 64)
			if i := slices.Index(sums, n); err != nil || i < 0 {
				fail("the counter is %s, want one of %d: an addition was lost or applied twice", e.Data, sums)
			} else if i > 0 {
				t.happened++
			}
		}
	}
	for path := range found {
		fail("%s is there, and nobody wrote it", path)
	}
	return t, bad
}

func (o outcome) String() string {
	return [...]string{"wrong", "acknowledged", "refused", "uncertain"}[o]
}
