package lincheck_test

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby/internal/lincheck"
)

// The checker must find what a lying lock service would do, and nothing else.
func TestLocks(t *testing.T) {
	op := func(call, ret int64, c lincheck.LockCall, a lincheck.LockAnswer) porcupine.Operation {
		c.Path = "/l"
		return porcupine.Operation{ClientId: int(call), Input: c, Call: call, Output: a, Return: ret}
	}
	lock := func(call, ret int64, owner uint32, generation uint64) porcupine.Operation {
		return op(call, ret, lincheck.LockCall{Op: lincheck.Acquire, Owner: owner}, lincheck.LockAnswer{Generation: generation})
	}
	rlock := func(call, ret int64, owner uint32, generation uint64) porcupine.Operation {
		return op(call, ret, lincheck.LockCall{Op: lincheck.Acquire, Owner: owner, Shared: true}, lincheck.LockAnswer{Generation: generation})
	}
	shaky := func(call, ret int64, owner uint32, generation uint64) porcupine.Operation {
		return op(call, ret, lincheck.LockCall{Op: lincheck.Acquire, Owner: owner}, lincheck.LockAnswer{Generation: generation, Shaky: true})
	}
	unlock := func(call, ret int64, owner uint32, refused bool) porcupine.Operation {
		return op(call, ret, lincheck.LockCall{Op: lincheck.Release, Owner: owner}, lincheck.LockAnswer{Refused: refused})
	}
	lose := func(call int64, owner uint32) porcupine.Operation {
		return op(call, call+1, lincheck.LockCall{Op: lincheck.Lose, Owner: owner}, lincheck.LockAnswer{})
	}
	giveUp := func(call int64, shared bool) porcupine.Operation {
		return op(call, call+1, lincheck.LockCall{Op: lincheck.GiveUp, Shared: shared}, lincheck.LockAnswer{})
	}
	check := func(call int64, generation uint64, stale bool) porcupine.Operation {
		return op(call, call+1, lincheck.LockCall{Op: lincheck.Check, Generation: generation}, lincheck.LockAnswer{Refused: stale})
	}
	inspect := func(call int64, shared bool, generation uint64) porcupine.Operation {
		return op(call, call+1, lincheck.LockCall{Op: lincheck.Inspect}, lincheck.LockAnswer{Shared: shared, Generation: generation})
	}
	put := func(call, ret int64, generation uint64, value string, a lincheck.LockAnswer) porcupine.Operation {
		return op(call, ret, lincheck.LockCall{Op: lincheck.FencedPut, Generation: generation, New: value}, a)
	}
	read := func(call int64, value string) porcupine.Operation {
		return op(call, call+1, lincheck.LockCall{Op: lincheck.Read}, lincheck.LockAnswer{Value: value})
	}
	done, stale, unknown := lincheck.LockAnswer{}, lincheck.LockAnswer{Refused: true}, lincheck.LockAnswer{Unknown: true}
	const never = 1000
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		ok   bool
	}{
		{"one after the other", []porcupine.Operation{lock(1, 2, 1, 5), unlock(3, 4, 1, false), lock(5, 6, 2, 7)}, true},
		{"waited for it", []porcupine.Operation{lock(1, 2, 1, 5), lock(3, 8, 2, 7), unlock(4, 6, 1, false)}, true},
		{"two holders", []porcupine.Operation{lock(1, 2, 1, 5), lock(3, 4, 2, 7), unlock(5, 6, 1, false)}, false},
		{"a reader beside a writer", []porcupine.Operation{lock(1, 2, 1, 5), rlock(3, 4, 2, 7), unlock(5, 6, 1, false)}, false},
		{"a writer beside a reader", []porcupine.Operation{rlock(1, 2, 1, 5), lock(3, 4, 2, 7), unlock(5, 6, 1, false)}, false},
		{"readers share a generation", []porcupine.Operation{rlock(1, 2, 1, 5), rlock(3, 4, 2, 5), unlock(5, 6, 1, false), rlock(7, 8, 3, 5)}, true},
		{"a reader with a generation of its own", []porcupine.Operation{rlock(1, 2, 1, 5), rlock(3, 4, 2, 6)}, false},
		{"generation used again", []porcupine.Operation{lock(1, 2, 1, 5), unlock(3, 4, 1, false), lock(5, 6, 2, 5)}, false},
		{"readers' generation used again", []porcupine.Operation{rlock(1, 2, 1, 5), unlock(3, 4, 1, false), rlock(5, 6, 2, 5)}, false},
		{"kept going by a reader that gave up", []porcupine.Operation{giveUp(0, true), rlock(1, 2, 1, 5), unlock(3, 4, 1, false), rlock(5, 6, 2, 5)}, true},
		{"lost, then another's", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), lock(3, 6, 2, 7)}, true},
		{"another's, then lost", []porcupine.Operation{lock(1, 2, 1, 5), lock(3, 4, 2, 7), lose(5, 1)}, false},
		{"lost and kept", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), check(5, 5, false), unlock(7, 8, 1, false)}, true},
		{"lost for good", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), check(5, 5, true), unlock(7, 8, 1, true)}, true},
		{"lost for good and back", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), check(5, 5, true), check(7, 5, false)}, false},
		{"lost before its holder knew", []porcupine.Operation{shaky(1, 6, 1, 5), lock(2, 3, 2, 7)}, true},
		{"taken from a holder", []porcupine.Operation{lock(1, 2, 1, 5), unlock(3, 4, 1, true)}, false},
		{"freed by the one before", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), lock(5, 6, 2, 7), unlock(7, 8, 1, false)}, false},
		{"stale while held", []porcupine.Operation{lock(1, 2, 1, 5), check(3, 5, true), unlock(5, 6, 1, false)}, false},
		{"held under an old generation", []porcupine.Operation{lock(1, 2, 1, 5), unlock(3, 4, 1, false), lock(5, 6, 2, 7), check(7, 5, false)}, false},
		{"held by nobody", []porcupine.Operation{lock(1, 2, 1, 5), unlock(3, 4, 1, false), check(7, 5, false)}, false},
		{"info", []porcupine.Operation{inspect(0, false, 0), lock(2, 3, 1, 5), inspect(4, false, 5), unlock(6, 7, 1, false), inspect(8, false, 0)}, true},
		{"info of nobody", []porcupine.Operation{inspect(1, false, 5)}, false},
		{"info of one that gave up", []porcupine.Operation{giveUp(0, false), inspect(1, false, 5), inspect(3, false, 5), lock(5, 6, 1, 7)}, true},
		{"info of one that gave up, held beside it", []porcupine.Operation{
			giveUp(0, false), lock(1, 2, 1, 4), inspect(3, false, 5), unlock(5, 6, 1, false),
		}, false},
		{"info says free", []porcupine.Operation{lock(2, 3, 1, 5), inspect(4, false, 0), unlock(6, 7, 1, false)}, false},
		{"fenced write", []porcupine.Operation{lock(1, 2, 1, 5), put(3, 4, 5, "a", done), read(5, "a")}, true},
		{"fenced write lost", []porcupine.Operation{lock(1, 2, 1, 5), put(3, 4, 5, "a", done), read(5, "")}, false},
		{"fenced write of a former holder", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), lock(5, 6, 2, 7), put(7, 8, 5, "a", done)}, false},
		{"and refused", []porcupine.Operation{lock(1, 2, 1, 5), lose(3, 1), lock(5, 6, 2, 7), put(7, 8, 5, "a", stale), read(9, "")}, true},
		{"fenced write refused to the holder", []porcupine.Operation{lock(1, 2, 1, 5), put(3, 4, 5, "a", stale), unlock(5, 6, 1, false)}, false},
		{"uncertain write seen", []porcupine.Operation{lock(1, 2, 1, 5), put(3, never, 5, "a", unknown), read(5, ""), read(7, "a")}, true},
		{"uncertain write seen too late", []porcupine.Operation{
			lock(1, 2, 1, 5), put(3, never, 5, "a", unknown), unlock(4, 5, 1, false), read(6, ""), read(8, "a"),
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := porcupine.CheckOperations(lincheck.Locks(), c.ops); got != c.ok {
				t.Errorf("linearizable: %v, want %v", got, c.ok)
			}
		})
	}
}
