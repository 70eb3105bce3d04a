package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// onEach runs f on the cell leader, on a follower and on a dialled Client of one cell, each in a directory of its own.
// other is a Client of another process.
func onEach(t *testing.T, f func(t *testing.T, dir string, c, other *chubby.Client)) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Leader()
		follower := cell.Node(0)
		if follower == lead {
			follower = cell.Node(1)
		}
		for _, on := range []struct {
			name     string
			c, other *chubby.Client
		}{{"leader", lead.Client, follower.Client}, {"follower", follower.Client, lead.Client}, {"dialled", cell.Dial(), lead.Client}} {
			t.Log(on.name)
			f(t, "/"+on.name, on.c, on.other)
		}
	})
}

func openHandle(t *testing.T, c *chubby.Client, path string, o chubby.HandleOptions) *chubby.Handle {
	t.Helper()
	h, err := c.OpenHandle(within(t, time.Minute), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func closeHandle(t *testing.T, h *chubby.Handle) {
	t.Helper()
	if err := h.Close(within(t, time.Minute)); err != nil {
		t.Error(err)
	}
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", what, err, want)
	}
}

var forAll = chubby.HandleOptions{Write: true, ChangeACL: true}

// The ten rules of the original's file system.
func TestTenRules(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		exists := func(path string) bool {
			t.Helper()
			_, err := other.Stat(ctx, path)
			if err != nil && !errors.Is(err, chubby.ErrNotFound) {
				t.Error(err)
			}
			return err == nil
		}

		// 1. /ls is where all cells begin: a full name is the same entry. 2. Files and directories can be opened.
		d := openHandle(t, c, "/ls/local"+dir+"/d", chubby.HandleOptions{Create: true, Dir: true, Write: true})
		if st, err := openHandle(t, other, dir+"/d", chubby.HandleOptions{}).GetStat(ctx); err != nil || !st.Dir {
			t.Error(st, err)
		}
		// 3. A file or directory is made in a directory that is open, and is open itself.
		perm, err := d.Create(ctx, "perm", chubby.HandleOptions{Write: true, Data: []byte("kept")})
		if err != nil {
			t.Fatal(err)
		}
		if e, err := perm.GetContentsAndStat(ctx); err != nil || string(e.Data) != "kept" || e.Path != dir+"/d/perm" {
			t.Error(e, err)
		}
		sub, err := d.Create(ctx, "sub", chubby.HandleOptions{Dir: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Create(ctx, "perm", chubby.HandleOptions{}); !errors.Is(err, chubby.ErrExists) {
			t.Error(err)
		}
		list, err := d.ReadDir(ctx)
		if err != nil || len(list) != 2 || list[0].Path != dir+"/d/perm" || list[1].Path != dir+"/d/sub" {
			t.Error(list, err)
		}
		// 4. Opening counts. 5. Closing is what one does when done. 6. It counts down; at nought a temporary file goes by
		// itself, a permanent file or directory does not.
		temp, err := d.Create(ctx, "temp", chubby.HandleOptions{Ephemeral: true, Write: true})
		if err != nil {
			t.Fatal(err)
		}
		second := openHandle(t, other, dir+"/d/temp", chubby.HandleOptions{})
		closeHandle(t, temp)
		closeHandle(t, temp)
		if !exists(dir + "/d/temp") {
			t.Error("a file went that is open elsewhere")
		}
		if st, err := second.GetStat(ctx); err != nil || !st.Ephemeral {
			t.Error(st, err)
		}
		closeHandle(t, second)
		closeHandle(t, perm)
		closeHandle(t, sub)
		if exists(dir+"/d/temp") || !exists(dir+"/d/perm") || !exists(dir+"/d/sub") {
			t.Error("the wrong ones went")
		}
		_, err = temp.GetStat(ctx)
		wantErr(t, "a call after Close", err, chubby.ErrClosed)
		// 7. Deleting removes any file or directory, at once; a directory must be empty, whatever its parent holds.
		subAgain := openHandle(t, c, dir+"/d/sub", chubby.HandleOptions{Write: true})
		if err := subAgain.Delete(ctx); err != nil || exists(dir+"/d/sub") {
			t.Error(err)
		}
		wantErr(t, "deleting a directory with children", d.Delete(ctx), chubby.ErrNotEmpty)
		// 8. Every directory but the root can be locked; the root can be opened.
		root := openHandle(t, c, "/", chubby.HandleOptions{Write: true})
		if list, err := root.ReadDir(ctx); err != nil || len(list) == 0 {
			t.Error(list, err)
		}
		_, err = root.Acquire(ctx, chubby.Exclusive)
		wantErr(t, "locking the root", err, chubby.ErrBadPath)
		wantErr(t, "deleting the root", root.Delete(ctx), chubby.ErrBadPath)
		_, err = root.SetContents(ctx, []byte("x"))
		wantErr(t, "writing the root", err, chubby.ErrIsDir)
		if _, err := d.Acquire(ctx, chubby.Exclusive); err != nil {
			t.Error(err)
		}
		// 9. What is open can be locked, for reading and for writing. 10. What was locked is unlocked.
		a := openHandle(t, c, dir+"/d/perm", chubby.HandleOptions{Write: true})
		b := openHandle(t, other, dir+"/d/perm", chubby.HandleOptions{Write: true})
		for _, h := range []*chubby.Handle{a, b} {
			if l, err := h.Acquire(ctx, chubby.Shared); err != nil || l.Mode() != chubby.Shared {
				t.Error(err)
			}
		}
		_, err = a.Acquire(ctx, chubby.Shared)
		wantErr(t, "a second lock through one handle", err, chubby.ErrLockHeld)
		if err := a.Release(ctx); err != nil {
			t.Error(err)
		}
		_, err = a.TryAcquire(ctx, chubby.Exclusive)
		wantErr(t, "an exclusive lock beside a shared one", err, chubby.ErrLockHeld)
		wantErr(t, "releasing another's lock", a.Release(ctx), chubby.ErrNotHeld)
		closeHandle(t, b) // gives its lock back
		if _, err := a.TryAcquire(ctx, chubby.Exclusive); err != nil {
			t.Error(err)
		}
		closeHandle(t, a)
		closeHandle(t, d)
		for _, path := range []string{"/d/perm", "/d"} {
			if v, err := other.LockInfo(ctx, dir+path); err != nil || len(v.Holders) > 0 {
				t.Errorf("%s: %+v, %v", path, v, err)
			}
		}
	})
}

func TestHandleCalls(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		path := dir + "/f"
		_, err := c.OpenHandle(ctx, path, chubby.HandleOptions{})
		wantErr(t, "opening nothing", err, chubby.ErrNotFound)
		for what, o := range map[string]chubby.HandleOptions{
			"ephemeral without create": {Ephemeral: true}, "data without create": {Data: []byte("x")}, "names without create": {ACL: chubby.ACLNames{Read: "r"}},
			"a directory with data": {Create: true, Dir: true, Data: []byte("x")}, "a name with a slash": {Create: true, ACL: chubby.ACLNames{Write: "a/b"}},
			"a name that is no part": {Create: true, ACL: chubby.ACLNames{ChangeACL: ".."}},
		} {
			_, err := c.OpenHandle(ctx, path, o)
			wantErr(t, what, err, chubby.ErrBadOptions)
		}
		_, err = c.OpenHandle(ctx, dir+"//f", chubby.HandleOptions{})
		wantErr(t, "a bad path", err, chubby.ErrBadPath)
		_, err = c.OpenHandle(ctx, path, chubby.HandleOptions{Create: true, Data: make([]byte, 1<<20)})
		wantErr(t, "too much", err, chubby.ErrTooLarge)

		h := openHandle(t, c, path, chubby.HandleOptions{Create: true, Write: true, ChangeACL: true, Data: []byte("one")})
		h2 := openHandle(t, other, path, chubby.HandleOptions{Create: true, Data: []byte("not written")})
		e, err := h2.GetContentsAndStat(ctx)
		if err != nil || string(e.Data) != "one" {
			t.Fatal(e, err)
		}
		st, err := h.SetContents(ctx, []byte("two"), chubby.IfGeneration(e.Stat.Generation))
		if err != nil || st.Generation <= e.Stat.Generation || st.Instance != e.Stat.Instance {
			t.Error(st, err)
		}
		_, err = h.SetContents(ctx, []byte("three"), chubby.IfGeneration(e.Stat.Generation))
		wantErr(t, "an old generation", err, chubby.ErrConflict)
		_, err = h.SetContents(ctx, make([]byte, 1<<20))
		wantErr(t, "too much", err, chubby.ErrTooLarge)
		if st, err = h.SetACL(ctx, chubby.ACLNames{Read: "all"}); err != nil || st.ACLGeneration != st.Revision {
			t.Error(st, err)
		}
		_, err = h.SetACL(ctx, chubby.ACLNames{Read: "a/b"})
		wantErr(t, "a bad name", err, chubby.ErrBadOptions)
		_, err = h.ReadDir(ctx)
		wantErr(t, "listing a file", err, chubby.ErrNotDir)
		_, err = h.Create(ctx, "x", chubby.HandleOptions{})
		wantErr(t, "a child of a file", err, chubby.ErrNotDir)
		_, err = h.Acquire(ctx, 7)
		wantErr(t, "a mode that is none", err, chubby.ErrBadOptions)

		// What it was not opened for.
		_, err = h2.SetContents(ctx, nil)
		wantErr(t, "SetContents", err, chubby.ErrPermission)
		_, err = h2.SetACL(ctx, chubby.ACLNames{})
		wantErr(t, "SetACL", err, chubby.ErrPermission)
		wantErr(t, "Delete", h2.Delete(ctx), chubby.ErrPermission)
		_, err = h2.TryAcquire(ctx, chubby.Shared)
		wantErr(t, "TryAcquire", err, chubby.ErrPermission)
		_, err = h2.Create(ctx, "x", chubby.HandleOptions{})
		wantErr(t, "Create", err, chubby.ErrPermission)
		d := openHandle(t, c, dir, chubby.HandleOptions{Write: true, Dir: true})
		_, err = d.GetContentsAndStat(ctx)
		wantErr(t, "contents of a directory", err, chubby.ErrIsDir)
		_, err = c.OpenHandle(ctx, path, chubby.HandleOptions{Dir: true})
		wantErr(t, "a file as a directory", err, chubby.ErrNotDir)
		_, err = c.OpenHandle(ctx, dir, chubby.HandleOptions{Create: true})
		wantErr(t, "a directory as a file", err, chubby.ErrIsDir)
		for _, name := range []string{"", "a/b", "..", "x\x00"} {
			_, err = d.Create(ctx, name, chubby.HandleOptions{})
			wantErr(t, "child "+name, err, chubby.ErrBadPath)
		}

		// Deleted and made again: another entry, which the handle is not on.
		if err := h.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = h2.GetStat(ctx)
			wantErr(t, "GetStat", err, chubby.ErrNotFound)
			_, err = h2.GetContentsAndStat(ctx)
			wantErr(t, "GetContentsAndStat", err, chubby.ErrNotFound)
			_, err = h2.ReadDir(ctx)
			wantErr(t, "ReadDir", err, chubby.ErrNotFound)
			_, err = h.SetContents(ctx, nil)
			wantErr(t, "SetContents", err, chubby.ErrNotFound)
			_, err = h.SetACL(ctx, chubby.ACLNames{})
			wantErr(t, "SetACL", err, chubby.ErrNotFound)
			wantErr(t, "Delete", h.Delete(ctx), chubby.ErrNotFound)
			_, err = h.Acquire(ctx, chubby.Exclusive)
			wantErr(t, "Acquire", err, chubby.ErrNotFound)
			if _, err := other.Set(ctx, path, []byte("another")); err != nil {
				t.Fatal(err)
			}
		}
		if !strings.Contains(err.Error(), "since this handle was opened") {
			t.Error(err)
		}
		closeHandle(t, h)
		closeHandle(t, h2)
		closeHandle(t, d)
	})
}

// A handle travels as a text. The text is for one entry and one use, and nobody can make it but the cell.
func TestHandleText(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		path := dir + "/a:b c%d"
		h := openHandle(t, c, path, chubby.HandleOptions{Create: true, Write: true})
		text := h.String()
		p, err := other.ParseHandle(ctx, text)
		if err != nil {
			t.Fatal(err)
		}
		if p.String() != text {
			t.Errorf("%q became %q", text, p.String())
		}
		if _, err := p.SetContents(ctx, []byte("by the other")); err != nil {
			t.Error(err)
		}
		if e, err := h.GetContentsAndStat(ctx); err != nil || string(e.Data) != "by the other" {
			t.Error(e, err)
		}
		// It holds nothing.
		if _, err := h.Acquire(ctx, chubby.Exclusive); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Release of what the first handle holds", p.Release(ctx), chubby.ErrNotHeld)
		_, err = p.GetSequencer()
		wantErr(t, "GetSequencer", err, chubby.ErrNotHeld)

		// The digits of two files differ, and so do those of two uses. Whatever is changed, they fit no more.
		reader := openHandle(t, c, path, chubby.HandleOptions{}).String()
		sibling := openHandle(t, c, dir+"/n", chubby.HandleOptions{Create: true, Write: true}).String()
		digits := func(s string) string { return s[strings.LastIndexByte(s, ':')+1:] }
		if digits(reader) == digits(text) || digits(sibling) == digits(text) || len(digits(text)) != 32 {
			t.Errorf("%s, %s, %s", text, reader, sibling)
		}
		for what, forged := range map[string]string{
			"more uses": strings.TrimSuffix(text, digits(text)) + digits(reader), "another file": strings.TrimSuffix(sibling, digits(sibling)) + digits(text),
			"a digit": text[:len(text)-1] + string(text[len(text)-1]^1), "no digits": strings.TrimSuffix(text, digits(text)), "half of them": text[:len(text)-16],
			"nothing": "", "no handle": "/a/b", "another cell": strings.Replace(text, ":test:", ":other:", 1), "upper case": strings.TrimSuffix(text, digits(text)) + strings.ToUpper(digits(text)) + "AA",
		} {
			_, err := other.ParseHandle(ctx, forged)
			wantErr(t, what+" "+forged, err, chubby.ErrBadHandle)
		}
		closeHandle(t, h)
		if err := p.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = other.ParseHandle(ctx, text)
		wantErr(t, "a text of what is gone", err, chubby.ErrNotFound)

		// A parsed handle keeps an ephemeral entry as any other does.
		e := openHandle(t, c, dir+"/e", chubby.HandleOptions{Create: true, Ephemeral: true})
		p, err = other.ParseHandle(ctx, e.String())
		if err != nil {
			t.Fatal(err)
		}
		closeHandle(t, e)
		if _, err := p.GetStat(ctx); err != nil {
			t.Error(err)
		}
		closeHandle(t, p)
		_, err = c.Stat(ctx, dir+"/e")
		wantErr(t, "Stat", err, chubby.ErrNotFound)
	})
}

// Poison ends calls in flight and gives the lock back, its Context first.
func TestHandlePoison(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		o := chubby.HandleOptions{Create: true, Write: true, Ephemeral: true}
		h, waiter := openHandle(t, c, dir+"/f", o), openHandle(t, c, dir+"/f", o)
		l, err := h.Acquire(ctx, chubby.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		results := make(chan error, 2)
		go func() {
			_, err := waiter.Acquire(ctx, chubby.Exclusive)
			results <- err
		}()
		go func() {
			var last error
			for _, err := range waiter.Events(ctx) {
				last = err
			}
			results <- last
		}()
		synctest.Wait()
		_, err = waiter.Acquire(ctx, chubby.Exclusive)
		wantErr(t, "a second Acquire", err, chubby.ErrLockHeld)
		waiter.Poison()
		for range 2 {
			wantErr(t, "in flight", <-results, chubby.ErrClosed)
		}
		_, err = waiter.GetStat(ctx)
		wantErr(t, "GetStat", err, chubby.ErrClosed)
		wantErr(t, "SetSequencer", waiter.SetSequencer(l.Sequencer()), chubby.ErrClosed)
		closeHandle(t, waiter)

		h.Poison()
		h.Poison()
		if l.Context().Err() == nil || !errors.Is(l.Err(), chubby.ErrNotHeld) {
			t.Error("the lock outlived its handle")
		}
		again, err := other.Lock(ctx, dir+"/f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := other.Stat(ctx, dir+"/f"); err != nil {
			t.Error("a poisoned handle is open until it is closed:", err)
		}
		closeHandle(t, h)
		_, err = other.Stat(ctx, dir+"/f")
		wantErr(t, "Stat", err, chubby.ErrNotFound)
		if err := again.Unlock(ctx); err != nil {
			t.Error(err)
		}
	})
}

// After SetSequencer the handle is good for as long as that lock is held.
func TestHandleSequencer(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		lock := openHandle(t, other, dir+"/lock", chubby.HandleOptions{Create: true, Write: true})
		if _, err := lock.Acquire(ctx, chubby.Exclusive); err != nil {
			t.Fatal(err)
		}
		q, err := lock.GetSequencer()
		if err != nil {
			t.Fatal(err)
		}
		h := openHandle(t, c, dir+"/data", chubby.HandleOptions{Create: true, Write: true, ChangeACL: true})
		wantErr(t, "no sequencer", h.SetSequencer(chubby.Sequencer{}), chubby.ErrBadSequencer)
		if err := errors.Join(h.SetSequencer(q), h.CheckSequencer(ctx, q)); err != nil {
			t.Fatal(err)
		}
		if _, err := h.SetContents(ctx, []byte("by the holder")); err != nil {
			t.Error(err)
		}
		if _, err := h.GetContentsAndStat(ctx); err != nil {
			t.Error(err)
		}
		if err := lock.Release(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = lock.GetSequencer()
		wantErr(t, "GetSequencer", err, chubby.ErrNotHeld)
		if _, err := lock.Acquire(ctx, chubby.Exclusive); err != nil { // the next holder: another generation
			t.Fatal(err)
		}
		_, err = h.SetContents(ctx, []byte("too late"))
		wantErr(t, "SetContents", err, chubby.ErrStaleSequencer)
		_, err = h.GetContentsAndStat(ctx)
		wantErr(t, "GetContentsAndStat", err, chubby.ErrStaleSequencer)
		_, err = h.GetStat(ctx)
		wantErr(t, "GetStat", err, chubby.ErrStaleSequencer)
		_, err = h.SetACL(ctx, chubby.ACLNames{})
		wantErr(t, "SetACL", err, chubby.ErrStaleSequencer)
		_, err = h.Acquire(ctx, chubby.Exclusive)
		wantErr(t, "Acquire", err, chubby.ErrStaleSequencer)
		wantErr(t, "Delete", h.Delete(ctx), chubby.ErrStaleSequencer)
		wantErr(t, "CheckSequencer", h.CheckSequencer(ctx, q), chubby.ErrStaleSequencer)
		for _, err := range h.Events(ctx) {
			wantErr(t, "Events", err, chubby.ErrStaleSequencer)
		}
		if e, err := c.Get(ctx, dir+"/data"); err != nil || string(e.Data) != "by the holder" {
			t.Error(e, err)
		}
		closeHandle(t, lock)
	})
}

// Events of a handle end with its entry.
func TestHandleEvents(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, c, other *chubby.Client) {
		ctx := within(t, time.Minute)
		h := openHandle(t, c, dir+"/f", chubby.HandleOptions{Create: true, Write: true, ChangeACL: true})
		events := h.Events(ctx)
		if _, err := h.SetContents(ctx, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := h.SetACL(ctx, chubby.ACLNames{Read: "r"}); err != nil {
			t.Fatal(err)
		}
		if err := other.Delete(ctx, dir+"/f"); err != nil {
			t.Fatal(err)
		}
		mustSetClient(t, other, dir+"/f")
		var got []string
		for e, err := range events {
			if err != nil {
				wantErr(t, "the end", err, chubby.ErrNotFound)
				got = append(got, "end")
				continue
			}
			got = append(got, e.Kind.String())
		}
		if fmt.Sprint(got) != "[modified ACL changed deleted end]" {
			t.Error(got)
		}
		for _, err := range h.Events(ctx) {
			wantErr(t, "events of what is gone", err, chubby.ErrNotFound)
		}
	})
}

func mustSetClient(t *testing.T, c *chubby.Client, path string) {
	t.Helper()
	if _, err := c.Set(within(t, time.Minute), path, []byte("x")); err != nil {
		t.Fatal(err)
	}
}

// Handles outlive the cell leader, and end with their session.
func TestHandleSurvivesLeader(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lead := cell.Leader()
		at := 0
		for i := range 3 {
			if cell.Node(i) == lead {
				at = i
			}
		}
		stays := cell.Node((at + 1) % 3).Client
		h := openHandle(t, stays, "/e", chubby.HandleOptions{Create: true, Ephemeral: true, Write: true})
		l, err := h.Acquire(ctx, chubby.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		gone := openHandle(t, lead.Client, "/gone", chubby.HandleOptions{Create: true, Ephemeral: true, Write: true})
		if _, err := lead.OpenHandle(ctx, "/e", chubby.HandleOptions{}); err != nil {
			t.Fatal(err)
		}
		cell.Crash(at)
		if _, err := h.SetContents(ctx, []byte("on")); err != nil {
			t.Error(err)
		}
		if q, err := h.GetSequencer(); err != nil || q != l.Sequencer() || l.Err() != nil {
			t.Error(q, err, l.Err())
		}
		_ = gone
		// The dead node's session ends with its lease, and its handles with it.
		for {
			_, err := stays.Stat(ctx, "/gone")
			if errors.Is(err, chubby.ErrNotFound) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if st, err := h.GetStat(ctx); err != nil || !st.Ephemeral {
			t.Error(st, err)
		}
		s, err := stays.Session(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(ctx); err != nil {
			t.Fatal(err)
		}
		_, err = h.GetStat(ctx)
		wantErr(t, "GetStat", err, chubby.ErrClosed)
		closeHandle(t, h)
		_, err = stays.Stat(ctx, "/e")
		wantErr(t, "Stat", err, chubby.ErrNotFound)
		cell.Restart(at)
	})
}

// A call that is cut off tells that it is uncertain, and what it left is taken back.
func TestHandleUncertain(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		lead := cell.Leader()
		c := lead.Client
		for i := range 3 {
			if cell.Node(i) != lead {
				c = cell.Node(i).Client
			}
		}
		h := openHandle(t, c, "/e", chubby.HandleOptions{Create: true, Ephemeral: true, Write: true})
		cell.Partition([]int{0}, []int{1}, []int{2})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.Close(short); !errors.Is(err, chubby.ErrUncertain) {
			t.Error(err)
		}
		if _, err := c.OpenHandle(short, "/none", chubby.HandleOptions{Create: true}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cell.Heal()
		for {
			_, err := c.Stat(within(t, time.Minute), "/e")
			if errors.Is(err, chubby.ErrNotFound) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
}
