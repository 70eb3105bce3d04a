package chubby

import (
	"fmt"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// house is what a member judges the calls of a dialled client by. A client is a program of its own, perhaps one of
// another release or one that lies, so everything that a Client of this release sees to is looked at again.
type house struct {
	principal string // who the client proved to be
	cell      string
	limits    Limits
}

// admits tells why a command must not come from this client, or whose session it is of. Only commands of a session may
// come, under the client's own name: those that the cell leader decides, and those that members make themselves, have
// other ways.
func (h *house) admits(raw []byte) (session uint64, err error) {
	if len(raw) > commandMax {
		return 0, fmt.Errorf("%w: a command of %d bytes, at most %d", ErrTooLarge, len(raw), commandMax)
	}
	var c command.Command
	if err := command.Decode(raw, &c); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrBadOptions, err)
	}
	if c.Principal != h.principal {
		return 0, fmt.Errorf("%w: this client is %q and may not speak for %q", ErrPermission, h.principal, c.Principal)
	}
	if c.Session == 0 || c.Seq == 0 && c.Kind != command.KindCloseSession {
		return 0, fmt.Errorf("%w: command %d without session or sequence", ErrPermission, c.Kind)
	}
	return c.Session, h.admitsCommand(&c)
}

func (h *house) admitsCommand(c *command.Command) error {
	switch c.Kind {
	case command.KindCloseSession:
		return nil
	case command.KindTxn:
		return h.admitsTxn(c)
	case command.KindLock:
		if err := h.admitsLock(c); err != nil {
			return err
		}
	case command.KindAdd, command.KindSub:
		if c.Number < 0 {
			return fmt.Errorf("%w: delta %d", ErrBadOptions, c.Number)
		}
	case command.KindUnlock:
		if c.Term != 0 {
			return fmt.Errorf("%w: an unlock of term %d", ErrPermission, c.Term)
		}
	case command.KindSet, command.KindCreate, command.KindCompareAndSwap, command.KindDelete, command.KindDeleteTree,
		command.KindCancelLock, command.KindCloseHandle, command.KindOpen, command.KindSetACL:
	default:
		return fmt.Errorf("%w: command %d is not for clients", ErrPermission, c.Kind)
	}
	// The root can be opened, and its ACL names can be changed.
	if err := h.path(c.Path, c.Kind == command.KindOpen || c.Kind == command.KindSetACL); err != nil {
		return err
	}
	if err := h.contents(c.Data, c.Old); err != nil {
		return err
	}
	return h.conds(c.Conds)
}

func (h *house) admitsLock(c *command.Command) error {
	if c.Mode != Exclusive && c.Mode != Shared {
		return fmt.Errorf("%w: lock mode %d", ErrBadOptions, c.Mode)
	}
	if c.Delay > uint64(lockDelayMax.Milliseconds()) || c.Hold > uint64(maxHoldMax.Milliseconds()) {
		return fmt.Errorf("%w: lock-delay of %d ms, longest holding %d ms", ErrBadOptions, c.Delay, c.Hold)
	}
	return nil
}

func (h *house) admitsTxn(c *command.Command) error {
	if n := len(c.If) + len(c.Then) + len(c.Else); n > txnMax {
		return fmt.Errorf("%w: a Txn of %d conditions and operations", ErrBadOptions, n)
	}
	if err := h.conds(c.If); err != nil {
		return err
	}
	for _, ops := range [][]command.Op{c.Then, c.Else} {
		for i := range ops {
			op := &ops[i]
			if err := h.path(op.Path, op.Kind == command.OpGet); err != nil {
				return err
			}
			if err := h.contents(op.Data); err != nil {
				return err
			}
			if op.Kind == command.OpAdd && op.Number < 0 {
				return fmt.Errorf("%w: delta %d", ErrBadOptions, op.Number)
			}
		}
	}
	return nil
}

func (h *house) conds(conds []command.Cond) error {
	if len(conds) > txnMax {
		return fmt.Errorf("%w: %d conditions", ErrBadOptions, len(conds))
	}
	for i := range conds {
		c := &conds[i]
		if c.Kind == command.CondHolds {
			continue // its path is compared and no more
		}
		if err := h.path(c.Path, true); err != nil {
			return err
		}
		if err := h.contents(c.Value); err != nil {
			return err
		}
	}
	return nil
}

func (h *house) contents(list ...[]byte) error {
	for _, data := range list {
		if len(data) > h.limits.ValueBytes {
			return tooLarge("contents", len(data), h.limits.ValueBytes)
		}
	}
	return nil
}

// path wants the one form of a path that the state knows.
func (h *house) path(path string, root bool) error {
	p, err := cleanPath(path, h.cell, h.limits)
	switch {
	case err != nil:
		return err
	case p != path:
		return badPath(path, fmt.Sprintf("%q is its form in the cell", p))
	case p == "/" && !root:
		return badPath(path, "the root can be listed and read, not written or locked")
	}
	return nil
}

// query judges what a client asks.
func (h *house) query(q *wire.Query) error {
	if q.Kind == wire.QueryHolds {
		return nil
	}
	return h.path(q.Path, true)
}
