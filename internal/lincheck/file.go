// Package lincheck holds sequential models of what callers see, for checking histories of concurrent calls with
// porcupine. Only tests import it.
package lincheck

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// FileOp is what a call on one file was asked to do.
type FileOp int

const (
	Get            FileOp = iota + 1
	Set                   // to New
	CompareAndSwap        // from Old to New
	Add                   // Delta
	Delete
)

// FileCall is one call on one file.
type FileCall struct {
	Path     string
	Op       FileOp
	Old, New string
	Delta    int64
}

// FileAnswer is what came of it.
type FileAnswer struct {
	Unknown bool   // it may have happened, or may yet, at any time since the call
	Missing bool   // refused: there is no file
	Refused bool   // refused otherwise: the contents did not fit
	Value   string // Get, Add: the contents after the call
}

// fileState is one file: "" and false, or contents.
type fileState struct {
	there bool
	value string
}

// Files is the model of a set of files without conditions on each other, one partition per path.
func Files() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			return byPath(history, func(input any) string { return input.(FileCall).Path })
		},
		Init: func() []any { return []any{fileState{}} },
		Step: func(state, input, output any) []any {
			s, call, answer := state.(fileState), input.(FileCall), output.(FileAnswer)
			next, want := step(s, call)
			if answer.Unknown {
				if next == s {
					return []any{s}
				}
				return []any{s, next}
			}
			if answer != want {
				return nil
			}
			return []any{next}
		},
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%+v -> %+v", input, output)
		},
	}
	return m.ToModel()
}

// step is what a file does, and answers, when nothing else happens.
func step(s fileState, c FileCall) (fileState, FileAnswer) {
	if !s.there && c.Op != Set {
		return s, FileAnswer{Missing: true}
	}
	switch c.Op {
	case Get:
		return s, FileAnswer{Value: s.value}
	case Set:
		return fileState{true, c.New}, FileAnswer{}
	case CompareAndSwap:
		if s.value != c.Old {
			return s, FileAnswer{Refused: true}
		}
		return fileState{true, c.New}, FileAnswer{}
	case Add:
		var n int64
		if _, err := fmt.Sscan(s.value, &n); err != nil || fmt.Sprint(n) != s.value {
			return s, FileAnswer{Refused: true}
		}
		v := fmt.Sprint(n + c.Delta)
		return fileState{true, v}, FileAnswer{Value: v}
	case Delete:
		return fileState{}, FileAnswer{}
	}
	panic(fmt.Sprintf("lincheck: no operation %d", c.Op))
}

// byPath puts the calls of each path into a part of their own.
func byPath(history []porcupine.Operation, path func(input any) string) [][]porcupine.Operation {
	byPath := make(map[string][]porcupine.Operation)
	var order []string
	for _, op := range history {
		p := path(op.Input)
		if byPath[p] == nil {
			order = append(order, p)
		}
		byPath[p] = append(byPath[p], op)
	}
	parts := make([][]porcupine.Operation, 0, len(order))
	for _, p := range order {
		parts = append(parts, byPath[p])
	}
	return parts
}
