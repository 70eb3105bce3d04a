package chubby

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// HandleOptions says what a handle is opened for, and what entry is made if there is none.
type HandleOptions struct {
	Write     bool // for writing, deleting, locking, and making children
	ChangeACL bool // for SetACL
	Create    bool // make the entry if there is none; the fields below say how
	Dir       bool // a directory; without Create, the entry must be one
	Ephemeral bool // it goes when no session has it open, a directory when it is empty too
	Data      []byte
	ACL       ACLNames
}

// Handle is an open entry (Chubby §2.3 to §2.6). It is bound to its session and to the entry that it was opened on: when
// that is deleted, calls return ErrNotFound, also if another entry was made at the path. It outlives changes of the cell
// leader. All methods are safe for concurrent use.
//
// What it was opened for is checked then and again whenever it is used. An ephemeral entry that was made through a handle
// stays while any session has a handle on it; a session that ends closes its handles.
//
// Calls return the errors of the Client's calls that do the same; ErrPermission if the handle was not opened for that;
// ErrClosed after Close or Poison; ErrSessionExpired after the session's end; and ErrStaleSequencer if [Handle.SetSequencer]
// gave the handle a sequencer that is not held any more.
type Handle struct {
	session       *Session
	path          string
	instance      uint64
	dir           bool
	write, change bool
	openSeq       uint64 // of the Open command; 0 = the cell knows nothing of this handle, nor needs to
	text          string
	ctx           context.Context // ends with the handle
	cancel        context.CancelCauseFunc

	// Guarded by session.mu.
	err       error // not nil once calls fail
	closed    bool
	acquiring bool
	lock      *Lock     // the last acquired
	sequencer Sequencer // zero = none
}

var (
	errPoisoned     = fmt.Errorf("%w: the handle was poisoned", ErrClosed)
	errHandleClosed = fmt.Errorf("%w: the handle was closed", ErrClosed)
)

// OpenHandle opens the entry at path, the root too, in the default session. See [Session.OpenHandle].
func (c *Client) OpenHandle(ctx context.Context, path string, o HandleOptions) (*Handle, error) {
	return c.handle(ctx, path, func(s *Session) (*Handle, error) { return s.OpenHandle(ctx, path, o) })
}

// ParseHandle opens what [Handle.String] gave, in another process perhaps, in the default session. See
// [Session.ParseHandle].
func (c *Client) ParseHandle(ctx context.Context, text string) (*Handle, error) {
	return c.handle(ctx, "", func(s *Session) (*Handle, error) { return s.ParseHandle(ctx, text) })
}

func (c *Client) handle(ctx context.Context, path string, open func(*Session) (*Handle, error)) (*Handle, error) {
	for {
		s, err := c.session(ctx)
		if err != nil {
			return nil, &Error{Op: "open handle", Path: path, Err: err}
		}
		h, err := open(s)
		if err == nil || !retired(err) || ctx.Err() != nil {
			return h, err
		}
	}
}

// OpenHandle opens the entry at path, the root too. It returns ErrNotFound if there is none and Create is not set;
// ErrNotDir if Dir is set and the entry is a file, ErrIsDir if Create is set without Dir and it is a directory;
// ErrPermission if an ACL does not grant what the handle is for; and the errors of Set. Close the handle when done.
func (s *Session) OpenHandle(ctx context.Context, path string, o HandleOptions) (*Handle, error) {
	p, err := cleanPath(path, s.client.terms.cell, s.client.terms.limits)
	var h *Handle
	if err == nil {
		h, err = s.openHandle(ctx, &handleOpening{path: p, o: o})
	}
	if err != nil {
		return nil, &Error{Op: "open handle", Path: path, Err: err}
	}
	return h, nil
}

// ParseHandle opens what [Handle.String] gave, for this session: it is for the same entry and the same uses, holds
// nothing, and must be closed by itself. It returns ErrBadHandle if the text is not one that this cell gave in its present
// epoch, ErrNotFound if the entry is gone, and ErrPermission if this client may not use it so.
func (s *Session) ParseHandle(ctx context.Context, text string) (*Handle, error) {
	t, err := parseHandleText(text)
	if err == nil && (t.cell != s.client.terms.cell || t.epoch != s.epoch) {
		err = fmt.Errorf("%w: it is of cell %q in epoch %d; this is cell %q in epoch %d", ErrBadHandle, t.cell, t.epoch, s.client.terms.cell, s.epoch)
	}
	var h *Handle
	if err == nil {
		h, err = s.openHandle(ctx, &handleOpening{path: t.path, o: HandleOptions{Write: t.write, ChangeACL: t.change}, instance: t.instance, seal: t.seal})
	}
	if err != nil {
		return nil, &Error{Op: "parse handle", Path: t.path, Err: err}
	}
	return h, nil
}

// handleOpening is one handle to be opened.
type handleOpening struct {
	path     string
	o        HandleOptions
	instance uint64         // of the entry that must be there; 0 = any
	seal     []byte         // of the text that says so
	fresh    bool           // there must be no entry
	conds    []command.Cond // when it is made
}

// openHandle opens a handle. That of a permanent entry which is there costs a read and leaves nothing in the cell. Of an
// ephemeral one the cell must know, and making one is a command.
func (s *Session) openHandle(ctx context.Context, x *handleOpening) (*Handle, error) {
	c, o := s.client, &x.o
	cmd, err := c.openCommand(x)
	if err != nil {
		return nil, err
	}
	a, err := c.cell.query(ctx, wire.Query{
		Kind: wire.QueryHandle, Path: x.path, Write: o.Write, Change: o.ChangeACL, Instance: x.instance, Seal: x.seal, Principal: c.principal,
	})
	if err != nil {
		return nil, err
	}
	c.saw(a.Revision)
	if a.Code == command.Permission && o.Create {
		a = wire.Answer{} // what making it needs is for the command to say
	}
	if err := answerError(c.principal, &a); err != nil {
		return nil, err
	}
	st := &a.Entry.Stat
	switch {
	case x.instance != 0 && st.Instance != x.instance:
		return nil, errGone
	case st.Instance == 0 && !o.Create:
		return nil, ErrNotFound
	case st.Instance == 0 || st.Ephemeral || x.fresh:
		return s.openByCommand(ctx, x, cmd)
	case o.Dir && !st.Dir:
		return nil, ErrNotDir
	case o.Create && !o.Dir && st.Dir:
		return nil, ErrIsDir
	}
	return s.adopt(x, st, a.Seal, 0)
}

func (s *Session) openByCommand(ctx context.Context, x *handleOpening, cmd *command.Command) (*Handle, error) {
	t, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	r, err := s.send(ctx, t, cmd, false)
	t.end()
	shut := &command.Command{Kind: command.KindCloseHandle, Path: x.path, OpenSeq: t.seq}
	if err != nil {
		if errors.Is(err, ErrUncertain) {
			s.persist(shut) // what may have been opened is closed, and a copy on its way opens nothing
		}
		return nil, err
	}
	if r.Code != command.OK {
		return nil, resultError(s.client.principal, &r)
	}
	seq := uint64(0)
	if r.Stat.Ephemeral {
		seq = t.seq
	}
	if x.o.Dir && !r.Stat.Dir {
		s.persist(shut)
		return nil, ErrNotDir
	}
	return s.adopt(x, &r.Stat, r.Seal, seq)
}

// openCommand judges the options and makes the command that opens by them.
func (c *Client) openCommand(x *handleOpening) (*command.Command, error) {
	o := &x.o
	if !o.Create && (o.Ephemeral || len(o.Data) > 0 || o.ACL != (ACLNames{})) {
		return nil, fmt.Errorf("%w: HandleOptions: Ephemeral, Data and ACL say what to make; set Create too", ErrBadOptions)
	}
	if o.Dir && len(o.Data) > 0 {
		return nil, fmt.Errorf("%w: HandleOptions.Dir: a directory has no contents; pass no data", ErrBadOptions)
	}
	if limit := c.terms.limits.ValueBytes; len(o.Data) > limit {
		return nil, tooLarge("contents", len(o.Data), limit)
	}
	acl, err := commandACL("HandleOptions.ACL", o.ACL)
	if err != nil {
		return nil, err
	}
	cmd := &command.Command{
		Kind: command.KindOpen, Path: x.path, Data: o.Data, Dir: o.Dir && o.Create, Ephemeral: o.Ephemeral, ACL: acl,
		Create: o.Create, New: x.fresh, Write: o.Write, ChangeACL: o.ChangeACL, Conds: x.conds,
	}
	if x.instance != 0 {
		cmd.Conds = append(cmd.Conds, command.Cond{Kind: command.CondInstance, Path: x.path, Generation: x.instance})
	}
	return cmd, nil
}

// adopt makes the handle the session's.
func (s *Session) adopt(x *handleOpening, st *command.Stat, seal []byte, seq uint64) (*Handle, error) {
	h := &Handle{session: s, path: x.path, instance: st.Instance, dir: st.Dir, write: x.o.Write, change: x.o.ChangeACL, openSeq: seq}
	h.text = handleText{
		cell: s.client.terms.cell, epoch: s.epoch, path: h.path, instance: h.instance, write: h.write, change: h.change, seal: seal,
	}.String()
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.state == SessionExpired {
		h.cancel(nil)
		return nil, s.client.cell.lostCause()
	}
	s.mu.handles[h] = struct{}{}
	return h, nil
}

// String returns a text that [Client.ParseHandle] makes a handle of in another process. It names entry and uses, and
// carries check digits that nobody can make without the cell's key. It is no secret: whoever parses it needs the rights.
func (h *Handle) String() string { return h.text }

// call does one call of the handle: not at all when the handle has ended, and no longer than until it ends.
func (h *Handle) call(ctx context.Context, op string, f func(ctx context.Context) error) error {
	s := h.session
	s.mu.Lock()
	err := h.err
	s.mu.Unlock()
	if err == nil {
		inner, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(h.ctx, cancel)
		err = f(inner)
		stop()
		cancel()
		if err != nil && h.ctx.Err() != nil && ctx.Err() == nil {
			cause := context.Cause(h.ctx)
			if errors.Is(err, ErrUncertain) {
				cause = fmt.Errorf("%w: %w", ErrUncertain, cause)
			}
			err = cause
		}
	}
	if err != nil {
		return &Error{Op: op, Path: h.path, Err: err}
	}
	return nil
}

// conds are the conditions of everything that the handle changes: its entry is the one that it was opened on, and its
// sequencer is held.
func (h *Handle) conds() []command.Cond {
	list := []command.Cond{{Kind: command.CondInstance, Path: h.path, Generation: h.instance}}
	if q := h.guard(); q != (Sequencer{}) {
		list = append(list, command.Cond{Kind: command.CondHolds, Sequencer: q})
	}
	return list
}

func (h *Handle) guard() Sequencer {
	h.session.mu.Lock()
	defer h.session.mu.Unlock()
	return h.sequencer
}

// read asks about the entry, and in the same moment whether it is still the handle's and the sequencer is held.
func (h *Handle) read(ctx context.Context, kind wire.QueryKind) (wire.Answer, error) {
	c, guard := h.session.client, h.guard()
	a, err := c.cell.query(ctx, wire.Query{Kind: kind, Path: h.path, Sequencer: guard, Principal: c.principal})
	if err != nil {
		return a, err
	}
	c.saw(a.Revision)
	switch {
	case a.Code == command.Permission:
		return a, answerError(c.principal, &a)
	case guard != (Sequencer{}) && !a.Holds:
		return a, ErrStaleSequencer
	case a.Entry.Stat.Instance != h.instance:
		return a, errGone
	}
	return a, answerError(c.principal, &a)
}

// send sends a command about the entry.
func (h *Handle) send(ctx context.Context, cmd *command.Command) (Stat, error) {
	s := h.session
	cmd.Path, cmd.Conds = h.path, append(h.conds(), cmd.Conds...)
	r, err := s.do(ctx, cmd, false)
	if err == nil && r.Code != command.OK {
		err = resultError(s.client.principal, &r)
	}
	return Stat(r.Stat), err
}

func (h *Handle) forWriting() error {
	if !h.write {
		return fmt.Errorf("%w: the handle was opened without HandleOptions.Write", ErrPermission)
	}
	return nil
}

// GetContentsAndStat returns the contents and the Stat of a file, as of one moment. It is linearizable.
func (h *Handle) GetContentsAndStat(ctx context.Context) (e Entry, err error) {
	err = h.call(ctx, "get contents", func(ctx context.Context) error {
		a, err := h.read(ctx, wire.QueryEntry)
		if err == nil {
			e, err = fileEntry(a.Entry)
		}
		return err
	})
	return e, err
}

// GetStat returns the entry's Stat. It is linearizable.
func (h *Handle) GetStat(ctx context.Context) (st Stat, err error) {
	err = h.call(ctx, "get stat", func(ctx context.Context) error {
		a, err := h.read(ctx, wire.QueryEntry)
		if err == nil {
			st = Stat(a.Entry.Stat)
		}
		return err
	})
	return st, err
}

// ReadDir returns the children of a directory as List does.
func (h *Handle) ReadDir(ctx context.Context) (list []Entry, err error) {
	err = h.call(ctx, "read dir", func(ctx context.Context) error {
		a, err := h.read(ctx, wire.QueryList)
		if err != nil {
			return err
		}
		list = make([]Entry, len(a.Entries))
		for i, e := range a.Entries {
			list[i] = Entry{Path: e.Path, Stat: Stat(e.Stat)}
		}
		return nil
	})
	return list, err
}

// SetContents writes the whole file, if the conditions hold: IfGeneration for a compare-and-swap as in the paper.
func (h *Handle) SetContents(ctx context.Context, data []byte, conds ...Cond) (st Stat, err error) {
	err = h.call(ctx, "set contents", func(ctx context.Context) error {
		c := h.session.client
		if err := h.forWriting(); err != nil {
			return err
		}
		if h.dir {
			return ErrIsDir
		}
		if _, err := c.checkWrite(h.path, data); err != nil {
			return err
		}
		list, err := c.commandConds(conds, h.path)
		if err == nil {
			st, err = h.send(ctx, &command.Command{Kind: command.KindSet, Data: data, Conds: list})
		}
		return err
	})
	return st, err
}

// SetACL changes the entry's ACL names. Empty ones become those that its parent has now.
func (h *Handle) SetACL(ctx context.Context, acl ACLNames) (st Stat, err error) {
	err = h.call(ctx, "set ACL", func(ctx context.Context) error {
		if !h.change {
			return fmt.Errorf("%w: the handle was opened without HandleOptions.ChangeACL", ErrPermission)
		}
		names, err := commandACL("ACLNames", acl)
		if err == nil {
			st, err = h.send(ctx, &command.Command{Kind: command.KindSetACL, ACL: names})
		}
		return err
	})
	return st, err
}

// Delete removes the entry as Client.Delete does. Other handles on it find out when they are used.
func (h *Handle) Delete(ctx context.Context) error {
	return h.call(ctx, "delete", func(ctx context.Context) error {
		if err := h.forWriting(); err != nil {
			return err
		}
		if _, err := h.session.client.entryPath(h.path); err != nil {
			return err
		}
		_, err := h.send(ctx, &command.Command{Kind: command.KindDelete})
		return err
	})
}

// Create makes a child of the directory and returns it opened. It returns ErrExists if there is one of that name. The name
// is one part of a path; Create need not be set in o.
func (h *Handle) Create(ctx context.Context, name string, o HandleOptions) (child *Handle, err error) {
	err = h.call(ctx, "create", func(ctx context.Context) error {
		if err := h.forWriting(); err != nil {
			return err
		}
		if !h.dir {
			return ErrNotDir
		}
		if name == "" || strings.Contains(name, "/") {
			return badPath(name, "the name of a child is one part of a path")
		}
		c := h.session.client
		p, err := cleanPath(strings.TrimSuffix(h.path, "/")+"/"+name, c.terms.cell, c.terms.limits)
		if err != nil {
			return err
		}
		o.Create = true
		child, err = h.session.openHandle(ctx, &handleOpening{path: p, o: o, fresh: true, conds: h.conds()})
		return err
	})
	return child, err
}

// endLocked makes calls fail from now on, and ends those in flight. Called with session.mu held.
func (h *Handle) endLocked(why error) {
	if h.err == nil {
		h.err = why
		h.cancel(why)
		delete(h.session.mu.handles, h)
	}
}

// Poison makes all calls of the handle fail, those in flight too, and gives back the lock that was acquired through it, whose
// Context ends first. It waits for nothing. The handle still has to be closed. See Chubby §2.6.
func (h *Handle) Poison() {
	s := h.session
	s.mu.Lock()
	h.endLocked(errPoisoned)
	l := h.giveUpLocked()
	s.mu.Unlock()
	if l != nil {
		s.persist(l.unlockCommand())
	}
}

// giveUpLocked ends the handle's lock here. It returns it if the cell has to be told. Called with session.mu held.
func (h *Handle) giveUpLocked() *Lock {
	l := h.lock
	h.lock = nil
	if l == nil || l.err != nil {
		return nil
	}
	l.endLocked(ErrNotHeld)
	return l
}

// Close ends the handle. A lock acquired through it is given back, its Context first, and an ephemeral entry goes if nothing
// else keeps it. If ctx ends before the cell has answered it returns ErrUncertain, and closing goes on in the background
// while the session lives. Closing twice is allowed.
func (h *Handle) Close(ctx context.Context) error {
	s := h.session
	s.mu.Lock()
	first := !h.closed
	h.closed = true
	h.endLocked(errHandleClosed)
	l := h.giveUpLocked()
	over := s.mu.state == SessionExpired
	s.mu.Unlock()
	if !first || over {
		return nil
	}
	var rest []*command.Command
	if l != nil {
		rest = append(rest, l.unlockCommand())
	}
	if h.openSeq != 0 {
		rest = append(rest, &command.Command{Kind: command.KindCloseHandle, Path: h.path, OpenSeq: h.openSeq})
	}
	for i, cmd := range rest {
		_, err := s.do(ctx, cmd, true)
		if err == nil {
			continue
		}
		if s.Err() != nil {
			return nil // everything of the session's is gone, or will be with its lease
		}
		for _, cmd := range rest[i:] {
			s.persist(cmd)
		}
		if !errors.Is(err, ErrUncertain) {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return &Error{Op: "close handle", Path: h.path, Err: err}
	}
	return nil
}
