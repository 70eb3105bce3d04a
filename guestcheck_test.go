package chubby

import (
	"errors"
	"strings"
	"testing"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// A client that lies gets nowhere: what a Client of this release would never send is refused before the log.
func TestGuestCommands(t *testing.T) {
	h := &house{principal: "alice", cell: "test", limits: Limits{ValueBytes: 10, PathBytes: 20, Depth: 3}.withDefaults()}
	set := command.Command{Kind: command.KindSet, Session: 1, Seq: 1, AckedBelow: 1, Principal: "alice", Path: "/a"}
	with := func(change func(c *command.Command)) *command.Command {
		c := set
		change(&c)
		return &c
	}
	big := make([]byte, 11)
	for name, x := range map[string]struct {
		c    *command.Command
		want error
	}{
		"a write": {&set, nil},
		"a lock":  {with(func(c *command.Command) { c.Kind, c.Mode, c.Delay = command.KindLock, Shared, 1000 }), nil},
		"a close": {&command.Command{Kind: command.KindCloseSession, Session: 1, Principal: "alice"}, nil},
		"a read in a Txn": {with(func(c *command.Command) {
			c.Kind, c.Then = command.KindTxn, []command.Op{{Kind: command.OpGet, Path: "/"}}
		}), nil},
		"a handle on the root": {with(func(c *command.Command) { c.Kind, c.Path = command.KindOpen, "/" }), nil},
		"the root's names":     {with(func(c *command.Command) { c.Kind, c.Path = command.KindSetACL, "/" }), nil},
		"a handle's close":     {with(func(c *command.Command) { c.Kind, c.OpenSeq = command.KindCloseHandle, 7 }), nil},
		"a handle and a lot of contents": {with(func(c *command.Command) {
			c.Kind, c.Create, c.Data = command.KindOpen, true, big
		}), ErrTooLarge},
		"a handle elsewhere":     {with(func(c *command.Command) { c.Kind, c.Path = command.KindOpen, "/ls/test/a" }), ErrBadPath},
		"the cell's key":         {&command.Command{Kind: command.KindCellKey, Key: [32]byte{1}}, ErrPermission},
		"of another":             {with(func(c *command.Command) { c.Principal = "bob" }), ErrPermission},
		"of nobody":              {with(func(c *command.Command) { c.Session = 0 }), ErrPermission},
		"without a sequence":     {with(func(c *command.Command) { c.Seq = 0 }), ErrPermission},
		"a close of no session":  {&command.Command{Kind: command.KindCloseSession, Principal: "alice"}, ErrPermission},
		"a barrier":              {&command.Command{Kind: command.KindBarrier}, ErrPermission},
		"an expiry":              {&command.Command{Kind: command.KindExpireSessions, Term: 1, Sessions: []uint64{1}}, ErrPermission},
		"a delay's end":          {&command.Command{Kind: command.KindClearDelay, Term: 1, Path: "/a"}, ErrPermission},
		"a slot":                 {&command.Command{Kind: command.KindAssignSlot, Node: "n"}, ErrPermission},
		"an opening":             {&command.Command{Kind: command.KindOpenSession, Session: 9, Principal: "alice"}, ErrPermission},
		"the leader's unlock":    {with(func(c *command.Command) { c.Kind, c.Seq, c.Term = command.KindUnlock, 0, 3 }), ErrPermission},
		"an unlock of a term":    {with(func(c *command.Command) { c.Kind, c.Term = command.KindUnlock, 3 }), ErrPermission},
		"the root":               {with(func(c *command.Command) { c.Path = "/" }), ErrBadPath},
		"another form of a path": {with(func(c *command.Command) { c.Path = "/ls/test/a" }), ErrBadPath},
		"a path without a slash": {with(func(c *command.Command) { c.Path = "a" }), ErrBadPath},
		"no path":                {with(func(c *command.Command) { c.Path = "" }), ErrBadPath},
		"a long path":            {with(func(c *command.Command) { c.Path = "/" + strings.Repeat("x", 20) }), ErrBadPath},
		"a deep path":            {with(func(c *command.Command) { c.Path = "/a/b/c/d" }), ErrBadPath},
		"large contents":         {with(func(c *command.Command) { c.Data = big }), ErrTooLarge},
		"large old contents":     {with(func(c *command.Command) { c.Kind, c.HasOld, c.Old = command.KindCompareAndSwap, true, big }), ErrTooLarge},
		"a large value":          {with(func(c *command.Command) { c.Conds = []command.Cond{{Kind: command.CondValue, Path: "/a", Value: big}} }), ErrTooLarge},
		"a condition's path":     {with(func(c *command.Command) { c.Conds = []command.Cond{{Kind: command.CondAbsent, Path: "/a//"}} }), ErrBadPath},
		"less than nothing":      {with(func(c *command.Command) { c.Kind, c.Number = command.KindAdd, -1 }), ErrBadOptions},
		"a mode":                 {with(func(c *command.Command) { c.Kind, c.Mode = command.KindLock, 7 }), ErrBadOptions},
		"a delay":                {with(func(c *command.Command) { c.Kind, c.Mode, c.Delay = command.KindLock, Shared, 60_001 }), ErrBadOptions},
		"a holding":              {with(func(c *command.Command) { c.Kind, c.Mode, c.Hold = command.KindLock, Shared, 1<<40 }), ErrBadOptions},
		"a Txn that writes /": {with(func(c *command.Command) {
			c.Kind, c.Else = command.KindTxn, []command.Op{{Kind: command.OpSet, Path: "/"}}
		}), ErrBadPath},
		"a Txn that adds less": {with(func(c *command.Command) {
			c.Kind, c.Then = command.KindTxn, []command.Op{{Kind: command.OpAdd, Path: "/a", Number: -1}}
		}), ErrBadOptions},
		"a Txn of large contents": {with(func(c *command.Command) {
			c.Kind, c.Then = command.KindTxn, []command.Op{{Kind: command.OpSet, Path: "/a", Data: big}}
		}), ErrTooLarge},
		"a Txn that is long": {with(func(c *command.Command) { c.Kind, c.If = command.KindTxn, make([]command.Cond, 257) }), ErrBadOptions},
	} {
		for i := range x.c.If {
			x.c.If[i] = command.Cond{Kind: command.CondExists, Path: "/a"}
		}
		session, err := h.admits(command.Append(nil, x.c))
		if !errors.Is(err, x.want) || x.want == nil && (err != nil || session != 1) {
			t.Errorf("%s: session %d, %v, want %v", name, session, err, x.want)
		}
	}
	for name, raw := range map[string][]byte{"nothing": nil, "a part": command.Append(nil, &set)[:5], "more": append(command.Append(nil, &set), 0)} {
		if _, err := h.admits(raw); !errors.Is(err, ErrBadOptions) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.admits(make([]byte, commandMax+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a command above the limit: %v", err)
	}
	if err := h.query(&wire.Query{Kind: wire.QueryEntry, Path: "a"}); !errors.Is(err, ErrBadPath) {
		t.Errorf("a query by another form of a path: %v", err)
	}
}
