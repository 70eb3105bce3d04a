package lincheck_test

import (
	"testing"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby/internal/lincheck"
)

// The checker must find what a lying store would do.
func TestFiles(t *testing.T) {
	op := func(call, ret int64, c lincheck.FileCall, a lincheck.FileAnswer) porcupine.Operation {
		c.Path = "/x"
		return porcupine.Operation{ClientId: int(call), Input: c, Call: call, Output: a, Return: ret}
	}
	set := func(v string) lincheck.FileCall { return lincheck.FileCall{Op: lincheck.Set, New: v} }
	get := lincheck.FileCall{Op: lincheck.Get}
	add := lincheck.FileCall{Op: lincheck.Add, Delta: 1}
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		ok   bool
	}{
		{"read what was written", []porcupine.Operation{op(1, 2, set("a"), lincheck.FileAnswer{}), op(3, 4, get, lincheck.FileAnswer{Value: "a"})}, true},
		{"stale read", []porcupine.Operation{op(1, 2, set("a"), lincheck.FileAnswer{}), op(3, 4, set("b"), lincheck.FileAnswer{}), op(5, 6, get, lincheck.FileAnswer{Value: "a"})}, false},
		{"lost write", []porcupine.Operation{op(1, 2, set("a"), lincheck.FileAnswer{}), op(3, 4, get, lincheck.FileAnswer{Missing: true})}, false},
		{"uncertain write seen", []porcupine.Operation{op(1, 99, set("a"), lincheck.FileAnswer{Unknown: true}), op(3, 4, get, lincheck.FileAnswer{Value: "a"})}, true},
		{"uncertain write not seen", []porcupine.Operation{op(1, 99, set("a"), lincheck.FileAnswer{Unknown: true}), op(3, 4, get, lincheck.FileAnswer{Missing: true})}, true},
		{"uncertain write undone", []porcupine.Operation{
			op(1, 99, set("a"), lincheck.FileAnswer{Unknown: true}), op(3, 4, get, lincheck.FileAnswer{Value: "a"}), op(5, 6, get, lincheck.FileAnswer{Missing: true}),
		}, false},
		{"applied twice", []porcupine.Operation{
			op(1, 2, set("0"), lincheck.FileAnswer{}), op(3, 4, add, lincheck.FileAnswer{Value: "1"}), op(5, 6, get, lincheck.FileAnswer{Value: "2"}),
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := porcupine.CheckOperations(lincheck.Files(), c.ops); got != c.ok {
				t.Errorf("linearizable: %v, want %v", got, c.ok)
			}
		})
	}
}
