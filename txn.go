package chubby

import (
	"context"
	"fmt"

	"github.com/chubbygo/chubby/internal/command"
)

// Cond is a condition under which a write happens. Conditions of Set and Delete are about the path written; in a Txn
// each needs a path, given by At, except IfHolds.
type Cond struct {
	c   command.Cond
	at  string
	set bool // at was given
}

// IfGeneration holds if the entry's Stat.Generation is g; 0 means that there is no entry. Else ErrConflict, or
// ErrNotFound if there is no entry.
func IfGeneration(g uint64) Cond {
	return Cond{c: command.Cond{Kind: command.CondGeneration, Generation: g}}
}

// IfAbsent holds if there is no entry. Else ErrExists.
func IfAbsent() Cond { return Cond{c: command.Cond{Kind: command.CondAbsent}} }

// IfExists holds if there is an entry. Else ErrNotFound.
func IfExists() Cond { return Cond{c: command.Cond{Kind: command.CondExists}} }

// IfValue holds if the entry's contents equal data. Else ErrConflict, or ErrNotFound if there is no entry.
func IfValue(data []byte) Cond {
	return Cond{c: command.Cond{Kind: command.CondValue, Value: data}}
}

// IfHolds holds if the lock is still held under s: a fenced write. Else ErrStaleSequencer. It is judged in the same
// step as the write, so no pause of the writer can come between. Shared holders have one sequencer: it holds while any of
// them does.
func IfHolds(s Sequencer) Cond {
	return Cond{c: command.Cond{Kind: command.CondHolds, Sequencer: s}}
}

// At makes c a condition on the entry at path, for a Txn.
func At(path string, c Cond) Cond {
	c.at, c.set = path, true
	return c
}

// Op is one operation of a Txn.
type Op struct {
	op  command.Op
	err error
}

// OpGet reads the entry at path; where there is none its result has Stat.Instance 0.
func OpGet(path string) Op { return Op{op: command.Op{Kind: command.OpGet, Path: path}} }

// OpSet writes the file at path, as Set does.
func OpSet(path string, data []byte) Op {
	return Op{op: command.Op{Kind: command.OpSet, Path: path, Data: data}}
}

// OpDelete removes the entry at path, as Delete does.
func OpDelete(path string) Op { return Op{op: command.Op{Kind: command.OpDelete, Path: path}} }

// OpCreate makes the entry at path, as Create does.
func OpCreate(path string, data []byte, o CreateOptions) Op {
	cmd, err := createCommand(data, o)
	if err != nil {
		return Op{err: err}
	}
	return Op{op: command.Op{Kind: command.OpCreate, Path: path, Data: data, Dir: o.Dir, Ephemeral: o.Ephemeral, ACL: cmd.ACL}}
}

// OpAdd adds delta, which must not be negative, to the number in the file at path unless the sum would pass max, as Add
// does.
func OpAdd(path string, delta, max int64) Op {
	op := Op{op: command.Op{Kind: command.OpAdd, Path: path, Number: delta, Bound: max}}
	if delta < 0 {
		op.err = fmt.Errorf("%w: OpAdd: delta %d: it must be at least 0", ErrBadOptions, delta)
	}
	return op
}

// Txn is several operations that happen together or not at all: Then if every condition of If holds, else Else.
// Operations see what earlier ones of the same Txn did.
type Txn struct {
	If         []Cond
	Then, Else []Op
}

// TxnResult tells what a Txn did.
type TxnResult struct {
	Succeeded bool    // Then was done
	Revision  uint64  // of the Txn; the cell's present one if it changed nothing
	Entries   []Entry // one for each operation: the entry as the operation left or found it; with Data only for OpGet and OpAdd
}

const txnMax = 256 // conditions and operations in one Txn

// Txn carries out t as one command, at one revision. An operation that cannot be done fails the whole with its own
// error, and nothing is changed. It returns ErrBadOptions for a condition without At, and the errors of Set.
func (c *Client) Txn(ctx context.Context, t Txn) (TxnResult, error) {
	cmd, err := c.txnCommand(t)
	if err != nil {
		return TxnResult{}, &Error{Op: "txn", Err: err}
	}
	r, err := c.do(ctx, cmd)
	if err == nil && r.Code != command.OK {
		err = resultError(c.principal, &r)
	}
	if err != nil {
		return TxnResult{}, &Error{Op: "txn", Path: r.Path, Err: err}
	}
	out := TxnResult{Succeeded: r.Succeeded, Revision: r.Revision, Entries: make([]Entry, len(r.Entries))}
	for i, e := range r.Entries {
		out.Entries[i] = publicEntry(e)
		if e.Stat.Size > len(e.Data) {
			out.Entries[i].Data = nil // a write's answer does not repeat what was written
		}
	}
	return out, nil
}

func (c *Client) txnCommand(t Txn) (*command.Command, error) {
	if n := len(t.If) + len(t.Then) + len(t.Else); n > txnMax {
		return nil, fmt.Errorf("%w: Txn: %d conditions and operations, at most %d", ErrBadOptions, n, txnMax)
	}
	cmd := &command.Command{Kind: command.KindTxn}
	var err error
	if cmd.If, err = c.commandConds(t.If, ""); err != nil {
		return nil, err
	}
	if cmd.Then, err = c.commandOps(t.Then); err != nil {
		return nil, err
	}
	if cmd.Else, err = c.commandOps(t.Else); err != nil {
		return nil, err
	}
	return cmd, nil
}

// commandConds turns conditions into their encoded form. path is what those without At are about; "" = a Txn, where
// they must have one.
func (c *Client) commandConds(conds []Cond, path string) ([]command.Cond, error) {
	if len(conds) > txnMax {
		return nil, fmt.Errorf("%w: %d conditions, at most %d", ErrBadOptions, len(conds), txnMax)
	}
	if len(conds) == 0 {
		return nil, nil
	}
	out := make([]command.Cond, len(conds))
	for i, cond := range conds {
		out[i] = cond.c
		if len(cond.c.Value) > c.terms.limits.ValueBytes {
			return nil, tooLarge("IfValue", len(cond.c.Value), c.terms.limits.ValueBytes)
		}
		switch {
		case cond.c.Kind == 0:
			return nil, fmt.Errorf("%w: condition %d is empty; use IfGeneration, IfAbsent, IfExists, IfValue or IfHolds", ErrBadOptions, i)
		case cond.c.Kind == command.CondHolds:
			continue // its sequencer has the path
		case !cond.set && path == "":
			return nil, fmt.Errorf("%w: Txn.If[%d] names no entry; wrap it in At(path, ...)", ErrBadOptions, i)
		case !cond.set:
			out[i].Path = path
		default:
			var err error
			if out[i].Path, err = cleanPath(cond.at, c.terms.cell, c.terms.limits); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (c *Client) commandOps(ops []Op) ([]command.Op, error) {
	out := make([]command.Op, len(ops))
	for i, op := range ops {
		if op.err != nil {
			return nil, op.err
		}
		if op.op.Kind == 0 {
			return nil, fmt.Errorf("%w: operation %d is empty; use OpGet, OpSet, OpDelete, OpCreate or OpAdd", ErrBadOptions, i)
		}
		out[i] = op.op
		var err error
		if op.op.Kind == command.OpGet {
			out[i].Path, err = cleanPath(op.op.Path, c.terms.cell, c.terms.limits)
		} else {
			out[i].Path, err = c.checkWrite(op.op.Path, op.op.Data)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
