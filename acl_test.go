package chubby_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// Goal: with ACLs nobody does what the lists do not grant. Method: a node that may everything sets a tree up, turns the
// lists on in one Txn, and another node, then a dialled Client, tries each call.
func TestACLs(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		admin, guest := cell.Node(0), cell.Node(1)
		name := func(n *chubby.Node) string { return n.Status().ID }
		if _, err := admin.OpenHandle(ctx, "/", chubby.HandleOptions{Create: true}); !errors.Is(err, chubby.ErrIsDir) {
			t.Error(err)
		}
		root := openHandle(t, admin.Client, "/", forAll)
		if _, err := root.SetACL(ctx, chubby.ACLNames{Read: "all", Write: "admins", ChangeACL: "admins"}); err != nil {
			t.Fatal(err)
		}
		for path, acl := range map[string]chubby.ACLNames{
			"/open": {Write: "all"}, "/readable": {}, "/secret": {Read: "admins"},
		} {
			if _, err := admin.Create(ctx, path, nil, chubby.CreateOptions{Dir: true, ACL: acl}); err != nil {
				t.Fatal(err)
			}
		}
		mustSet(t, admin, "/open/f", "1")
		mustSet(t, admin, "/readable/f", "1")
		mustSet(t, admin, "/secret/f", "1")
		early := openHandle(t, guest.Client, "/readable/f", forAll)
		if _, err := early.SetContents(ctx, []byte("2")); err != nil {
			t.Error("off, but", err)
		}
		watch := guest.Watch(ctx, "/", chubby.WatchOptions{Recursive: true})
		if _, err := admin.Txn(ctx, chubby.Txn{Then: []chubby.Op{
			chubby.OpCreate("/acl/all", []byte("*"), chubby.CreateOptions{}),
			chubby.OpCreate("/acl/admins", []byte("somebody\n  "+name(admin)+"\n"), chubby.CreateOptions{}),
		}}); err != nil {
			t.Fatal(err)
		}
		dialled := cell.Dial()
		for who, c := range map[string]*chubby.Client{name(guest): guest.Client, "client": dialled} {
			denied := func(what, right, path string, err error) {
				t.Helper()
				wantErr(t, who+": "+what, err, chubby.ErrPermission)
				if err != nil && (!strings.Contains(err.Error(), `"`+who+`"`) || !strings.Contains(err.Error(), right+" "+path)) {
					t.Errorf("%s: %v, want %q, %s, %s", what, err, who, right, path)
				}
			}
			allowed := func(what string, err error) {
				t.Helper()
				if err != nil {
					t.Errorf("%s: %s: %v", who, what, err)
				}
			}
			_, err := c.Get(ctx, "/secret/f")
			denied("Get", "read", "/secret/f", err)
			_, err = c.FastGet(ctx, "/secret/f")
			denied("FastGet", "read", "/secret/f", err)
			_, err = c.Stat(ctx, "/secret/f")
			denied("Stat", "read", "/secret/f", err)
			_, err = c.List(ctx, "/secret")
			denied("List", "read", "/secret", err)
			_, err = c.LockInfo(ctx, "/secret/f")
			denied("LockInfo", "read", "/secret/f", err)
			_, err = c.Leader(ctx, "/secret/f")
			denied("Leader", "read", "/secret/f", err)
			denied("CheckSequencer", "read", "/secret/f", c.CheckSequencer(ctx, chubby.Sequencer{Cell: "local", Epoch: 1, Path: "/secret/f", Mode: chubby.Exclusive, Generation: 1}))
			for _, err := range c.Watch(ctx, "/secret", chubby.WatchOptions{}) {
				denied("Watch", "read", "/secret", err)
			}
			for _, err := range c.ObserveLeader(ctx, "/secret/f") {
				denied("ObserveLeader", "read", "/secret/f", err)
			}
			_, err = c.OpenHandle(ctx, "/secret/f", chubby.HandleOptions{})
			denied("OpenHandle", "read", "/secret/f", err)
			_, err = c.OpenHandle(ctx, "/readable/f", chubby.HandleOptions{Write: true})
			denied("OpenHandle", "write", "/readable/f", err)
			_, err = c.OpenHandle(ctx, "/readable/f", chubby.HandleOptions{ChangeACL: true})
			denied("OpenHandle", "change the ACL of", "/readable/f", err)
			_, err = c.OpenHandle(ctx, "/readable/new", chubby.HandleOptions{Create: true})
			denied("OpenHandle", "write", "/readable", err)
			_, err = c.Set(ctx, "/readable/f", nil)
			denied("Set", "write", "/readable/f", err)
			_, err = c.Set(ctx, "/open/f", []byte("1"), chubby.IfExists(), chubby.At("/secret/f", chubby.IfValue([]byte("1"))))
			denied("a condition", "read", "/secret/f", err)
			_, err = c.Create(ctx, "/readable/new", nil, chubby.CreateOptions{})
			denied("Create", "write", "/readable", err)
			_, err = c.CompareAndSwap(ctx, "/readable/f", nil, nil)
			denied("CompareAndSwap", "write", "/readable/f", err)
			_, err = c.Add(ctx, "/readable/f", 1, 5)
			denied("Add", "write", "/readable/f", err)
			_, err = c.Sub(ctx, "/readable/f", 1, 0)
			denied("Sub", "write", "/readable/f", err)
			denied("Delete", "write", "/readable/f", c.Delete(ctx, "/readable/f"))
			denied("DeleteTree", "write", "/readable", c.DeleteTree(ctx, "/readable"))
			_, err = c.Lock(ctx, "/readable/lock")
			denied("Lock", "write", "/readable/lock", err)
			_, err = c.TryRLock(ctx, "/readable/f")
			denied("TryRLock", "write", "/readable/f", err)
			_, err = c.Campaign(ctx, "/readable/leader", nil)
			denied("Campaign", "write", "/readable/leader", err)
			_, err = c.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpGet("/secret/f")}})
			denied("OpGet", "read", "/secret/f", err)
			_, err = c.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet("/open/f", []byte("x")), chubby.OpDelete("/readable/f")}})
			denied("OpDelete", "write", "/readable/f", err)
			_, err = c.Txn(ctx, chubby.Txn{If: []chubby.Cond{chubby.At("/secret/f", chubby.IfAbsent())}})
			denied("If", "read", "/secret/f", err)

			_, err = c.Get(ctx, "/readable/f")
			allowed("Get", err)
			_, err = c.List(ctx, "/open")
			allowed("List", err)
			_, err = c.Set(ctx, "/open/f", []byte("1"))
			allowed("Set", err)
			_, err = c.Create(ctx, "/open/mine", nil, chubby.CreateOptions{})
			allowed("Create", err)
			l, err := c.Lock(ctx, "/open/lock")
			allowed("Lock", err)
			if err == nil {
				allowed("Unlock", l.Unlock(ctx))
			}
			allowed("Delete", c.Delete(ctx, "/open/mine"))
		}

		// A handle that is open already is judged when it is used.
		_, err := early.SetContents(ctx, nil)
		wantErr(t, "SetContents of a handle opened before", err, chubby.ErrPermission)
		if _, err := early.GetContentsAndStat(ctx); err != nil {
			t.Error(err)
		}
		// Events of what may not be read are left out.
		mustSet(t, admin, "/secret/f", "2")
		mustSet(t, admin, "/readable/last", "2")
		for e, err := range watch {
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(e.Path, "/secret") {
				t.Errorf("%+v was told", e)
			}
			if e.Path == "/readable/last" {
				break
			}
		}
		// Granted: it counts at once.
		if _, err := admin.Set(ctx, "/acl/admins", []byte(name(admin)+"\n"+name(guest))); err != nil {
			t.Fatal(err)
		}
		if _, err := early.SetContents(ctx, nil); err != nil {
			t.Error(err)
		}
		// Locked out: while the root's list is gone a node may set its names, and then those of all.
		if err := admin.Delete(ctx, "/acl/admins"); err != nil {
			t.Fatal(err)
		}
		_, err = admin.Set(ctx, "/x", nil)
		wantErr(t, "Set without a list", err, chubby.ErrPermission)
		if _, err := dialled.OpenHandle(ctx, "/", chubby.HandleOptions{ChangeACL: true}); !errors.Is(err, chubby.ErrPermission) {
			t.Error("a client that is no node got in:", err)
		}
		again := openHandle(t, guest.Client, "/", chubby.HandleOptions{ChangeACL: true})
		if _, err := again.SetACL(ctx, chubby.ACLNames{Read: "all", Write: "all", ChangeACL: "all"}); err != nil {
			t.Fatal(err)
		}
		mustSet(t, guest, "/x", "in again")
	})
}
