package cache

import (
	"slices"
	"testing"

	"github.com/chubbygo/chubby/internal/command"
)

// What each command touches. A kind that nobody thought of touches everything.
func TestOf(t *testing.T) {
	a := []string{"/a/b"}
	for _, tt := range []struct {
		name         string
		c            command.Command
		paths, trees []string
		ends         []uint64
		all          bool
	}{
		{name: "barrier", c: command.Command{Kind: command.KindBarrier}},
		{name: "slot", c: command.Command{Kind: command.KindAssignSlot, Node: "n"}},
		{name: "open session", c: command.Command{Kind: command.KindOpenSession, Session: 3}},
		{name: "close session", c: command.Command{Kind: command.KindCloseSession, Session: 3}, ends: []uint64{3}},
		{name: "expire sessions", c: command.Command{Kind: command.KindExpireSessions, Sessions: []uint64{3, 4}}, ends: []uint64{3, 4}},
		{name: "clear delay", c: command.Command{Kind: command.KindClearDelay, Path: "/a/b"}, paths: a},
		{name: "set", c: command.Command{Kind: command.KindSet, Path: "/a/b"}, paths: a},
		{name: "compare and swap", c: command.Command{Kind: command.KindCompareAndSwap, Path: "/a/b"}, paths: a},
		{name: "add", c: command.Command{Kind: command.KindAdd, Path: "/a/b"}, paths: a},
		{name: "sub", c: command.Command{Kind: command.KindSub, Path: "/a/b"}, paths: a},
		{name: "lock", c: command.Command{Kind: command.KindLock, Path: "/a/b"}, paths: a},
		{name: "unlock", c: command.Command{Kind: command.KindUnlock, Path: "/a/b"}, paths: a},
		{name: "cancel", c: command.Command{Kind: command.KindCancelLock, Path: "/a/b"}, paths: a},
		{name: "create", c: command.Command{Kind: command.KindCreate, Path: "/a/b"}, paths: a, trees: a},
		{name: "delete", c: command.Command{Kind: command.KindDelete, Path: "/a/b"}, paths: a, trees: a},
		{name: "delete tree", c: command.Command{Kind: command.KindDeleteTree, Path: "/a/b"}, paths: a, trees: a},
		{name: "transaction", c: command.Command{
			Kind: command.KindTxn, If: []command.Cond{{Kind: command.CondExists, Path: "/if"}},
			Then: []command.Op{{Kind: command.OpSet, Path: "/s"}, {Kind: command.OpGet, Path: "/g"}, {Kind: command.OpCreate, Path: "/c"}},
			Else: []command.Op{{Kind: command.OpAdd, Path: "/n"}, {Kind: command.OpDelete, Path: "/d"}},
		}, paths: []string{"/s", "/c", "/n", "/d"}, trees: []string{"/c", "/d"}},
		{name: "an operation of the future", c: command.Command{Kind: command.KindTxn, Then: []command.Op{{Kind: 99}}}, all: true},
		{name: "rights", c: command.Command{Kind: command.KindSet, Path: "/acl/staff"}, all: true},
		{name: "all rights", c: command.Command{Kind: command.KindDeleteTree, Path: "/acl"}, all: true},
		{name: "cell key", c: command.Command{Kind: command.KindCellKey}},
		{name: "open", c: command.Command{Kind: command.KindOpen, Path: "/a/b"}},
		{name: "open and make", c: command.Command{Kind: command.KindOpen, Path: "/a/b", Create: true}, paths: a, trees: a},
		{name: "close handle", c: command.Command{Kind: command.KindCloseHandle, Path: "/a/b"}, paths: a, trees: a},
		{name: "names", c: command.Command{Kind: command.KindSetACL, Path: "/a/b"}, paths: a, trees: a},
		{name: "names of the root", c: command.Command{Kind: command.KindSetACL, Path: "/"}, paths: []string{"/"}, all: true},
		{name: "not rights", c: command.Command{Kind: command.KindSet, Path: "/aclx"}, paths: []string{"/aclx"}},
		{name: "a command of the future", c: command.Command{Kind: 250, Path: "/a/b"}, all: true},
		{name: "none", all: true},
	} {
		got := Of(&tt.c)
		if !slices.Equal(got.paths, tt.paths) || !slices.Equal(got.trees, tt.trees) || !slices.Equal(got.ends, tt.ends) || got.all != tt.all {
			t.Errorf("%s: %q %q %v %v, want %q %q %v %v", tt.name, got.paths, got.trees, got.ends, got.all, tt.paths, tt.trees, tt.ends, tt.all)
		}
	}
}
