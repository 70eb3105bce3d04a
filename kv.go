package chubby

import (
	"context"
	"fmt"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// Entry is a named thing in the cell. Data belongs to the caller.
type Entry struct {
	Path string        // "/a/b"
	Data []byte        // nil for a directory
	Stat Stat          // as of the same moment as Data
	Age  time.Duration // FastGet: the entry is the newest there was at most so long ago; 0 for linearizable reads
}

// Stat describes an entry. The four numbers are cell-wide revisions, so they grow for ever, also when a path is deleted
// and made again (Chubby §2.4).
type Stat struct {
	Instance       uint64 // revision of the creation
	Generation     uint64 // revision of the last write of the contents
	LockGeneration uint64 // revision of the grant to the last exclusive holder or first shared one; 0 = never
	ACLGeneration  uint64 // revision of the last change of the ACL names
	Revision       uint64 // revision of the last change of any kind
	Checksum       uint64 // xxhash64 of the contents
	Size           int    // bytes of the contents
	Children       int    // of a directory
	Dir            bool
	Ephemeral      bool // goes with its session
}

// CreateOptions says what Create makes.
type CreateOptions struct {
	Dir       bool // a directory; data must be empty
	Ephemeral bool // it goes when the creating session ends; an ephemeral directory goes then once it is empty
	ACL       ACLNames
}

// Get returns the entry at path, contents included. It is linearizable on every node. It returns ErrNotFound, ErrIsDir,
// ErrBadPath, ErrClosed, or the error of ctx with ErrNoLeader or ErrNoQuorum in its chain.
func (c *Client) Get(ctx context.Context, path string) (Entry, error) {
	p, a, err := c.readAt(ctx, wire.QueryEntry, path)
	if err != nil {
		return Entry{}, &Error{Op: "get", Path: path, Err: err}
	}
	e, err := fileEntry(a.Entry)
	if err != nil {
		return Entry{}, &Error{Op: "get", Path: p, Err: err}
	}
	return e, nil
}

// FastGet returns the entry at path as this node's memory has it, without asking anybody. Age bounds how old that is:
// it counts from when this node last learned from the cell leader how far it should be, and had come that far. FastGet
// never goes back in time within one Client, and sees the Client's own acknowledged writes, for which it may have to
// wait a moment.
//
// A node that has not caught up since it started answers ErrNoLeader. Other errors are those of Get.
func (c *Client) FastGet(ctx context.Context, path string) (Entry, error) {
	e, err := c.fastGet(ctx, path)
	if err != nil {
		return Entry{}, &Error{Op: "fastget", Path: path, Err: err}
	}
	return e, nil
}

func (c *Client) fastGet(ctx context.Context, path string) (Entry, error) {
	if err := ctx.Err(); err != nil {
		return Entry{}, err
	}
	p, err := cleanPath(path, c.terms.cell, c.terms.limits)
	if err != nil {
		return Entry{}, err
	}
	g, err := c.cell.peekEntry(ctx, p, c.last.Load())
	if err != nil {
		return Entry{}, err
	}
	c.saw(g.revision)
	e, err := fileEntry(g.entry)
	e.Age = g.age
	return e, err
}

// Stat describes the entry at path; the root and directories too. It is linearizable. Its errors are those of Get.
func (c *Client) Stat(ctx context.Context, path string) (Stat, error) {
	_, a, err := c.readAt(ctx, wire.QueryEntry, path)
	if err == nil && a.Entry.Stat.Instance == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Stat{}, &Error{Op: "stat", Path: path, Err: err}
	}
	return Stat(a.Entry.Stat), nil
}

// List returns the children of a directory, sorted by name and all of one moment, without their contents. It is
// linearizable. It returns ErrNotFound, ErrNotDir, and the errors of Get.
func (c *Client) List(ctx context.Context, dir string) ([]Entry, error) {
	_, a, err := c.readAt(ctx, wire.QueryList, dir)
	if err != nil {
		return nil, &Error{Op: "list", Path: dir, Err: err}
	}
	list := make([]Entry, len(a.Entries))
	for i, e := range a.Entries {
		list[i] = Entry{Path: e.Path, Stat: Stat(e.Stat)}
	}
	return list, nil
}

// Set writes the contents of the file at path, which it makes if there is none, with missing parents as permanent
// directories. With conditions it writes only if all of them hold. It returns the entry's new Stat, or ErrIsDir,
// ErrNotDir, ErrTooLarge, ErrNoSpace, the error of a condition that fails, and the errors of every write: ErrBadPath,
// ErrClosed, ErrOverloaded, ErrSessionExpired, ErrUncertain, or the error of ctx.
func (c *Client) Set(ctx context.Context, path string, data []byte, conds ...Cond) (Stat, error) {
	r, err := c.write(ctx, "set", path, &command.Command{Kind: command.KindSet, Data: data}, conds)
	return Stat(r.Stat), err
}

// Create makes the entry at path and returns ErrExists if there is one. Otherwise it is like Set. The entry belongs to
// the Client's default session if it is ephemeral.
func (c *Client) Create(ctx context.Context, path string, data []byte, o CreateOptions) (Stat, error) {
	cmd, err := createCommand(data, o)
	if err != nil {
		return Stat{}, &Error{Op: "create", Path: path, Err: err}
	}
	r, err := c.write(ctx, "create", path, cmd, nil)
	return Stat(r.Stat), err
}

// Create is [Client.Create] in this session, to which an ephemeral entry then belongs.
func (s *Session) Create(ctx context.Context, path string, data []byte, o CreateOptions) (Stat, error) {
	cmd, err := createCommand(data, o)
	if err == nil {
		cmd.Path, err = s.client.checkWrite(path, data)
	}
	var r command.Result
	if err == nil {
		r, err = s.do(ctx, cmd, false)
	}
	if err == nil && r.Code != command.OK {
		err = resultError(s.client.principal, &r)
	}
	if err != nil {
		return Stat{}, &Error{Op: "create", Path: path, Err: err}
	}
	return Stat(r.Stat), nil
}

func createCommand(data []byte, o CreateOptions) (*command.Command, error) {
	acl, err := commandACL("CreateOptions.ACL", o.ACL)
	if err != nil {
		return nil, err
	}
	if o.Dir && len(data) > 0 {
		return nil, fmt.Errorf("%w: CreateOptions.Dir: a directory has no contents; pass no data", ErrBadOptions)
	}
	return &command.Command{Kind: command.KindCreate, Data: data, Dir: o.Dir, Ephemeral: o.Ephemeral, ACL: acl}, nil
}

// CompareAndSwap writes new if the contents equal old. A nil old means that there must be no entry; an empty one that is
// not nil means empty contents. If they differ it returns ErrConflict and the Stat of the entry as it is; ErrNotFound
// if there is no entry and old is not nil. Otherwise it is like Set.
func (c *Client) CompareAndSwap(ctx context.Context, path string, old, new []byte) (Stat, error) {
	if len(old) > c.terms.limits.ValueBytes {
		return Stat{}, &Error{Op: "compare-and-swap", Path: path, Err: tooLarge("old", len(old), c.terms.limits.ValueBytes)}
	}
	r, err := c.write(ctx, "compare-and-swap", path, &command.Command{Kind: command.KindCompareAndSwap, Data: new, Old: old, HasOld: old != nil}, nil)
	return Stat(r.Stat), err
}

// Add adds delta, which must not be negative, to the decimal number that the file at path holds, unless the sum would
// pass max, and returns it. It returns ErrBound (also when the sum does not fit an int64), ErrNotNumber, ErrNotFound,
// and the errors of Set. Pass math.MaxInt64 for no bound.
func (c *Client) Add(ctx context.Context, path string, delta, max int64) (int64, error) {
	return c.count(ctx, "add", path, &command.Command{Kind: command.KindAdd, Number: delta, Bound: max})
}

// Sub subtracts delta, which must not be negative, unless the difference would fall below min. It is otherwise like Add.
// Pass math.MinInt64 for no bound.
func (c *Client) Sub(ctx context.Context, path string, delta, min int64) (int64, error) {
	return c.count(ctx, "sub", path, &command.Command{Kind: command.KindSub, Number: delta, Bound: min})
}

func (c *Client) count(ctx context.Context, op, path string, cmd *command.Command) (int64, error) {
	if cmd.Number < 0 {
		return 0, &Error{Op: op, Path: path, Err: fmt.Errorf("%w: delta %d: use Add for more and Sub for less, with a delta of at least 0", ErrBadOptions, cmd.Number)}
	}
	r, err := c.write(ctx, op, path, cmd, nil)
	return r.Number, err
}

// Delete removes the entry at path. It returns ErrNotFound, ErrNotEmpty for a directory with children, ErrLockHeld if
// the lock at path is held, and the errors of Set.
func (c *Client) Delete(ctx context.Context, path string, conds ...Cond) error {
	_, err := c.write(ctx, "delete", path, &command.Command{Kind: command.KindDelete}, conds)
	return err
}

// DeleteTree removes the entry at path and everything below it, at one revision. It returns ErrLockHeld, and removes
// nothing, if a lock inside is held; ErrNotFound; and the errors of Set.
func (c *Client) DeleteTree(ctx context.Context, path string) error {
	_, err := c.write(ctx, "delete tree", path, &command.Command{Kind: command.KindDeleteTree}, nil)
	return err
}

// write sends a command about one path in the default session.
func (c *Client) write(ctx context.Context, op, path string, cmd *command.Command, conds []Cond) (command.Result, error) {
	var err error
	if cmd.Path, err = c.checkWrite(path, cmd.Data); err == nil {
		cmd.Conds, err = c.commandConds(conds, cmd.Path)
	}
	var r command.Result
	if err == nil {
		r, err = c.do(ctx, cmd)
	}
	if err == nil && r.Code != command.OK {
		err = resultError(c.principal, &r)
	}
	if err != nil {
		return r, &Error{Op: op, Path: path, Err: err}
	}
	return r, nil
}

// do sends a command in the default session. If that had ended, so that the command certainly did nothing, it is sent
// again in a new one.
func (c *Client) do(ctx context.Context, cmd *command.Command) (command.Result, error) {
	for {
		s, err := c.session(ctx)
		if err != nil {
			return command.Result{}, err
		}
		r, err := s.do(ctx, cmd, false)
		if err == nil && r.Code == command.SessionExpired {
			continue
		}
		if err == nil || !retired(err) {
			return r, err
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
	}
}

// checkWrite judges a path to be written and its contents, before anything is proposed.
func (c *Client) checkWrite(path string, data []byte) (string, error) {
	p, err := c.entryPath(path)
	if err != nil {
		return "", err
	}
	if limit := c.terms.limits.ValueBytes; len(data) > limit {
		return "", tooLarge("contents", len(data), limit)
	}
	return p, nil
}

func tooLarge(what string, size, limit int) error {
	return fmt.Errorf("%w: %s of %d bytes, at most %d (Limits.ValueBytes)", ErrTooLarge, what, size, limit)
}

// entryPath cleans a path that must not be the root.
func (c *Client) entryPath(path string) (string, error) {
	p, err := cleanPath(path, c.terms.cell, c.terms.limits)
	if err == nil && p == "/" {
		err = badPath(path, "the root can be listed and read, not written or locked")
	}
	return p, err
}

// readAt cleans a path and asks a state that has everything acknowledged before the call about it.
func (c *Client) readAt(ctx context.Context, kind wire.QueryKind, path string) (string, wire.Answer, error) {
	p, err := cleanPath(path, c.terms.cell, c.terms.limits)
	if err != nil {
		return "", wire.Answer{}, err
	}
	var a wire.Answer
	cached := false
	if c.cache != nil && kind == wire.QueryEntry {
		if a, cached, err = c.cache.entry(ctx, p); err != nil {
			return "", wire.Answer{}, err
		}
	}
	if !cached {
		if a, err = c.cell.query(ctx, wire.Query{Kind: kind, Path: p, Principal: c.principal}); err != nil {
			return "", wire.Answer{}, err
		}
	}
	c.saw(a.Revision)
	if err := answerError(c.principal, &a); err != nil {
		return "", wire.Answer{}, err
	}
	return p, a, nil
}

// fileEntry gives a file that was asked for by its path.
func fileEntry(e command.Entry) (Entry, error) {
	switch {
	case e.Stat.Instance == 0:
		return Entry{}, ErrNotFound
	case e.Stat.Dir:
		return Entry{}, ErrIsDir
	}
	return publicEntry(e), nil
}

// publicEntry copies the contents: the state's own bytes are shared by all readers.
func publicEntry(e command.Entry) Entry {
	out := Entry{Path: e.Path, Stat: Stat(e.Stat)}
	if !e.Stat.Dir && e.Stat.Instance != 0 {
		out.Data = append(make([]byte, 0, len(e.Data)), e.Data...) // not nil, even if empty
	}
	return out
}

// codeError is the sentinel for the code of a refused command.
func codeError(c command.Code) error {
	switch c {
	case command.NotFound:
		return ErrNotFound
	case command.Exists:
		return ErrExists
	case command.Conflict:
		return ErrConflict
	case command.Bound:
		return ErrBound
	case command.NotNumber:
		return ErrNotNumber
	case command.NotEmpty:
		return ErrNotEmpty
	case command.IsDir:
		return ErrIsDir
	case command.NotDir:
		return ErrNotDir
	case command.LockHeld:
		return ErrLockHeld
	case command.NotHeld, command.Cancelled:
		return ErrNotHeld
	case command.StaleSequencer:
		return ErrStaleSequencer
	case command.SessionExpired:
		return ErrSessionExpired
	case command.WindowFull, command.Slots:
		return ErrOverloaded
	case command.Permission:
		return ErrPermission
	case command.Gone:
		return errGone
	case command.BadSeal:
		return ErrBadHandle
	case command.BadCommand:
		return ErrBadOptions
	}
	return fmt.Errorf("the cell refused the command with code %d", c)
}
