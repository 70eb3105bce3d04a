package chubby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/chubbygo/chubby"
)

// openOne opens a cell of one in memory.
func openOne(t testing.TB, opts ...func(*chubby.Options)) *chubby.Node {
	t.Helper()
	o := chubby.Options{}
	for _, f := range opts {
		f(&o)
	}
	n, err := chubby.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Check(context.Background()); err != nil && n.Err() == nil && !errors.Is(err, chubby.ErrClosed) {
			t.Error(err)
		}
		n.Close()
	})
	return n
}

func TestFiles(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	if _, err := n.Get(ctx, "/a/b"); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("Get of nothing: %v", err)
	}
	first, err := n.Set(ctx, "a/b", []byte("one"))
	if err != nil {
		t.Fatal(err)
	}
	if first.Instance == 0 || first.Instance != first.Generation || first.Size != 3 || first.Dir || first.Checksum == 0 {
		t.Errorf("Stat of a new file: %+v", first)
	}
	e, err := n.Get(ctx, "/ls/local/a/b")
	if err != nil || e.Path != "/a/b" || string(e.Data) != "one" || e.Stat != first {
		t.Errorf("Get = %+v, %v", e, err)
	}
	second, err := n.Set(ctx, "/a/b", []byte{})
	if err != nil || second.Generation <= first.Generation || second.Instance != first.Instance {
		t.Errorf("second Set: %+v, %v", second, err)
	}
	if e, err := n.Get(ctx, "/a/b"); err != nil || e.Data == nil || len(e.Data) != 0 {
		t.Errorf("an empty value is not a missing one: %+v, %v", e, err)
	}
	if dir, err := n.Stat(ctx, "/a"); err != nil || !dir.Dir || dir.Children != 1 {
		t.Errorf("Stat of the parent made: %+v, %v", dir, err)
	}
	for what, err := range map[string]error{
		"get dir":     second2(n.Get(ctx, "/a")),
		"set dir":     second2(n.Set(ctx, "/a", nil)),
		"get root":    second2(n.Get(ctx, "/")),
		"fastget dir": second2(n.FastGet(ctx, "/a")),
	} {
		if !errors.Is(err, chubby.ErrIsDir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := n.Set(ctx, "/a/b/c", nil); !errors.Is(err, chubby.ErrNotDir) {
		t.Errorf("file as parent: %v", err)
	}
	if _, err := n.List(ctx, "/a/b"); !errors.Is(err, chubby.ErrNotDir) {
		t.Errorf("List of a file: %v", err)
	}
	if err := n.Delete(ctx, "/a"); !errors.Is(err, chubby.ErrNotEmpty) {
		t.Errorf("Delete of a full directory: %v", err)
	}
	if err := n.Delete(ctx, "/a/b"); err != nil {
		t.Error(err)
	}
	if err := n.Delete(ctx, "/a/b"); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("second Delete: %v", err)
	}
	third, err := n.Set(ctx, "/a/b", nil)
	if err != nil || third.Instance <= second.Generation {
		t.Errorf("made again: %+v, %v: the numbers must not go back", third, err)
	}
	if _, err := n.Create(ctx, "/a/b", nil, chubby.CreateOptions{}); !errors.Is(err, chubby.ErrExists) {
		t.Errorf("Create of what is there: %v", err)
	}
	if st, err := n.Create(ctx, "/d", nil, chubby.CreateOptions{Dir: true}); err != nil || !st.Dir {
		t.Errorf("Create of a directory: %+v, %v", st, err)
	}
	if list, err := n.List(ctx, "/"); err != nil || len(list) != 2 || list[0].Path != "/a" || list[1].Path != "/d" {
		t.Errorf("List of the root = %v, %v", list, err)
	}
}

func second2[T any](_ T, err error) error { return err }

func TestConditions(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	st, err := n.Set(ctx, "/x", []byte("v"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		cond       chubby.Cond
		want       error
	}{
		{"absent, there", "/x", chubby.IfAbsent(), chubby.ErrExists},
		{"absent, missing", "/no1", chubby.IfAbsent(), nil},
		{"exists, missing", "/no2", chubby.IfExists(), chubby.ErrNotFound},
		{"generation, other", "/x", chubby.IfGeneration(st.Generation + 1), chubby.ErrConflict},
		{"generation, none", "/no2", chubby.IfGeneration(7), chubby.ErrNotFound},
		{"generation 0, there", "/x", chubby.IfGeneration(0), chubby.ErrConflict},
		{"generation 0, missing", "/no3", chubby.IfGeneration(0), nil},
		{"value, other", "/x", chubby.IfValue([]byte("w")), chubby.ErrConflict},
		{"value, none", "/no2", chubby.IfValue(nil), chubby.ErrNotFound},
		{"holds, never", "/x", chubby.IfHolds(chubby.Sequencer{Cell: "local", Epoch: 1, Path: "/l", Mode: chubby.Exclusive, Generation: 1}), chubby.ErrStaleSequencer},
		{"empty", "/x", chubby.Cond{}, chubby.ErrBadOptions},
		{"value, right", "/x", chubby.IfValue([]byte("v")), nil},
	} {
		if _, err := n.Set(ctx, c.path, []byte("new"), c.cond); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	wantGet(t, n, "/x", "new")
}

func TestCompareAndSwap(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	if _, err := n.CompareAndSwap(ctx, "/c", []byte{}, []byte("1")); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("old empty, no entry: %v", err)
	}
	st, err := n.CompareAndSwap(ctx, "/c", nil, []byte{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := n.CompareAndSwap(ctx, "/c", nil, []byte("1")); !errors.Is(err, chubby.ErrConflict) || got != st {
		t.Errorf("old nil, entry there: %+v, %v", got, err)
	}
	if got, err := n.CompareAndSwap(ctx, "/c", []byte("0"), []byte("1")); !errors.Is(err, chubby.ErrConflict) || got != st {
		t.Errorf("old differs: %+v, %v", got, err)
	}
	if _, err := n.CompareAndSwap(ctx, "/c", []byte{}, []byte("1")); err != nil {
		t.Error(err)
	}
	wantGet(t, n, "/c", "1")
}

func TestAddSub(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	mustSet(t, n, "/n", "8")
	mustSet(t, n, "/text", "eight")
	mustSet(t, n, "/top", fmt.Sprint(int64(math.MaxInt64)))
	for i := range 9 {
		v, err := n.Sub(ctx, "/n", 1, 0)
		if i < 8 && (err != nil || v != int64(7-i)) || i == 8 && !errors.Is(err, chubby.ErrBound) {
			t.Errorf("Sub %d = %d, %v", i, v, err)
		}
	}
	if v, err := n.Add(ctx, "/n", 8, 8); err != nil || v != 8 {
		t.Errorf("Add up to the bound = %d, %v", v, err)
	}
	for _, c := range []struct {
		name string
		call func() (int64, error)
		want error
	}{
		{"bound", func() (int64, error) { return n.Add(ctx, "/n", 1, 8) }, chubby.ErrBound},
		{"overflow", func() (int64, error) { return n.Add(ctx, "/top", 1, math.MaxInt64) }, chubby.ErrBound},
		{"text", func() (int64, error) { return n.Add(ctx, "/text", 1, 9) }, chubby.ErrNotNumber},
		{"nothing", func() (int64, error) { return n.Add(ctx, "/none", 1, 9) }, chubby.ErrNotFound},
		{"negative", func() (int64, error) { return n.Add(ctx, "/n", -1, 9) }, chubby.ErrBadOptions},
		{"negative sub", func() (int64, error) { return n.Sub(ctx, "/n", -1, 9) }, chubby.ErrBadOptions},
	} {
		if _, err := c.call(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestTxn(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	mustSet(t, n, "/a", "1")
	r, err := n.Txn(ctx, chubby.Txn{
		If:   []chubby.Cond{chubby.At("/a", chubby.IfValue([]byte("1"))), chubby.At("/b", chubby.IfAbsent())},
		Then: []chubby.Op{chubby.OpSet("/b", []byte("2")), chubby.OpAdd("/a", 5, 10), chubby.OpGet("/a"), chubby.OpGet("/none")},
		Else: []chubby.Op{chubby.OpDelete("/a")},
	})
	if err != nil || !r.Succeeded || len(r.Entries) != 4 || string(r.Entries[2].Data) != "6" || r.Entries[3].Stat.Instance != 0 {
		t.Fatalf("Txn = %+v, %v", r, err)
	}
	if r.Entries[0].Stat.Generation != r.Revision || r.Entries[1].Stat.Generation != r.Revision {
		t.Errorf("a Txn has one revision: %+v", r)
	}
	_, err = n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet("/b", []byte("3")), chubby.OpDelete("/none")}})
	if !errors.Is(err, chubby.ErrNotFound) || !strings.Contains(err.Error(), "/none") {
		t.Errorf("failing operation: %v", err)
	}
	wantGet(t, n, "/b", "2")
	r, err = n.Txn(ctx, chubby.Txn{If: []chubby.Cond{chubby.At("/b", chubby.IfValue(nil))}, Else: []chubby.Op{chubby.OpGet("/b")}})
	if err != nil || r.Succeeded || string(r.Entries[0].Data) != "2" {
		t.Errorf("Else = %+v, %v", r, err)
	}
	if _, err := n.Txn(ctx, chubby.Txn{If: []chubby.Cond{chubby.IfAbsent()}}); !errors.Is(err, chubby.ErrBadOptions) {
		t.Errorf("condition without At: %v", err)
	}
	if _, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{{}}}); !errors.Is(err, chubby.ErrBadOptions) {
		t.Errorf("empty operation: %v", err)
	}
}

func TestDeleteTree(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	for _, p := range []string{"/t/a/1", "/t/a/2", "/t/b", "/tt"} {
		mustSet(t, n, p, "x")
	}
	l := mustLock(t, n, "/t/a/none")
	if err := n.DeleteTree(ctx, "/t"); !errors.Is(err, chubby.ErrLockHeld) {
		t.Errorf("with a lock inside: %v", err)
	}
	mustUnlock(t, l)
	l = mustLock(t, n, "/tt")
	if err := n.DeleteTree(ctx, "/t"); err != nil {
		t.Error(err)
	}
	if err := n.Delete(ctx, "/tt"); !errors.Is(err, chubby.ErrLockHeld) {
		t.Errorf("Delete of what is locked: %v", err)
	}
	mustUnlock(t, l)
	if list, err := n.List(ctx, "/"); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
}

func TestEphemeral(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	s, err := n.NewSession(ctx, chubby.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := s.Create(ctx, "/members/me", []byte("addr"), chubby.CreateOptions{Ephemeral: true})
	if err != nil || !st.Ephemeral {
		t.Fatalf("Create = %+v, %v", st, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Get(ctx, "/members/me"); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("after its session: %v", err)
	}
	if st, err := n.Stat(ctx, "/members"); err != nil || st.Children != 0 {
		t.Errorf("the parent stays: %+v, %v", st, err)
	}
	if _, err := s.Create(ctx, "/x", nil, chubby.CreateOptions{}); !errors.Is(err, chubby.ErrSessionExpired) {
		t.Errorf("Create in a closed session: %v", err)
	}
}

// Bad input is refused before anything is proposed.
func TestBadInput(t *testing.T) {
	n := openOne(t)
	ctx := t.Context()
	mustSet(t, n, "/x", "x")
	before := n.Status().CommitIndex
	long := strings.Repeat("d/", 33)
	for _, path := range []string{
		"", "//", "/a//b", "/a/", "a/", "/a/./b", "/..", ".", "/a\x00b", "/\xff", "/ls", "/ls/", "/ls/other/a", "/ls/local/", "/ls/local//a", "/ls/local/ls/x",
		"/" + strings.Repeat("x", 256), "/" + strings.Repeat("abc/", 300) + "x", long + "x",
	} {
		for op, err := range map[string]error{
			"get":      second2(n.Get(ctx, path)),
			"fastget":  second2(n.FastGet(ctx, path)),
			"stat":     second2(n.Stat(ctx, path)),
			"list":     second2(n.List(ctx, path)),
			"set":      second2(n.Set(ctx, path, nil)),
			"create":   second2(n.Create(ctx, path, nil, chubby.CreateOptions{})),
			"cas":      second2(n.CompareAndSwap(ctx, path, nil, nil)),
			"add":      second2(n.Add(ctx, path, 1, 2)),
			"sub":      second2(n.Sub(ctx, path, 1, 2)),
			"delete":   n.Delete(ctx, path),
			"tree":     n.DeleteTree(ctx, path),
			"lock":     second2(n.Lock(ctx, path)),
			"trylock":  second2(n.TryLock(ctx, path)),
			"rlock":    second2(n.RLock(ctx, path)),
			"campaign": second2(n.Campaign(ctx, path, nil)),
			"leader":   second2(n.Leader(ctx, path)),
			"info":     second2(n.LockInfo(ctx, path)),
			"txn":      second2(n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpGet(path)}})),
		} {
			if !errors.Is(err, chubby.ErrBadPath) {
				t.Errorf("%s %.20q: %v", op, path, err)
			}
		}
	}
	for op, err := range map[string]error{
		"set /":      second2(n.Set(ctx, "/", nil)),
		"delete /":   n.Delete(ctx, "/"),
		"tree /":     n.DeleteTree(ctx, "/ls/local"),
		"lock /":     second2(n.Lock(ctx, "/")),
		"campaign /": second2(n.Campaign(ctx, "/", nil)),
	} {
		if !errors.Is(err, chubby.ErrBadPath) {
			t.Errorf("%s: %v", op, err)
		}
	}
	big := make([]byte, 256<<10+1)
	for op, err := range map[string]error{
		"set":      second2(n.Set(ctx, "/x", big)),
		"create":   second2(n.Create(ctx, "/y", big, chubby.CreateOptions{})),
		"cas":      second2(n.CompareAndSwap(ctx, "/x", nil, big)),
		"cas old":  second2(n.CompareAndSwap(ctx, "/x", big, nil)),
		"cond":     second2(n.Set(ctx, "/x", nil, chubby.IfValue(big))),
		"campaign": second2(n.Campaign(ctx, "/x", big)),
		"txn":      second2(n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet("/x", big)}})),
	} {
		if !errors.Is(err, chubby.ErrTooLarge) {
			t.Errorf("%s of 256 KiB + 1: %v", op, err)
		}
	}
	many := chubby.Txn{}
	for i := range 5 {
		many.Then = append(many.Then, chubby.OpSet(fmt.Sprint("/big", i), big[1:]))
	}
	if _, err := n.Txn(ctx, many); !errors.Is(err, chubby.ErrTooLarge) {
		t.Errorf("Txn of 1.25 MiB: %v", err)
	}
	for what, o := range map[string]chubby.SessionOptions{
		"short lease": {Lease: 999 * 1e6}, "long lease": {Lease: 3601 * 1e9}, "long grace": {Grace: 3601 * 1e9}, "name": {Name: "a\nb"},
	} {
		if _, err := n.NewSession(ctx, o); !errors.Is(err, chubby.ErrBadOptions) {
			t.Errorf("session with %s: %v", what, err)
		}
	}
	if _, err := n.Create(ctx, "/y", []byte("x"), chubby.CreateOptions{Dir: true}); !errors.Is(err, chubby.ErrBadOptions) {
		t.Errorf("directory with contents: %v", err)
	}
	if after := n.Status().CommitIndex; after != before {
		t.Errorf("refused calls wrote %d log entries", after-before)
	}
	if e, err := n.Set(ctx, "/max", big[1:]); err != nil || e.Size != 256<<10 {
		t.Errorf("the largest value: %+v, %v", e, err)
	}
	if e, err := n.Get(ctx, "/max"); err != nil || !bytes.Equal(e.Data, big[1:]) {
		t.Errorf("the largest value comes back as %d bytes, %v", len(e.Data), err)
	}
}

func TestDoneContext(t *testing.T) {
	n := openOne(t)
	mustSet(t, n, "/x", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := n.Status().CommitIndex
	for op, err := range map[string]error{
		"get":     second2(n.Get(ctx, "/x")),
		"fastget": second2(n.FastGet(ctx, "/x")),
		"set":     second2(n.Set(ctx, "/x", nil)),
		"lock":    second2(n.Lock(ctx, "/x")),
		"session": second2(n.NewSession(ctx, chubby.SessionOptions{})),
	} {
		if !errors.Is(err, context.Canceled) || errors.Is(err, chubby.ErrUncertain) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if after := n.Status().CommitIndex; after != before {
		t.Errorf("calls with an ended ctx wrote %d log entries", after-before)
	}
}

func TestLimits(t *testing.T) {
	n := openOne(t, func(o *chubby.Options) { o.Limits = chubby.Limits{Entries: 5, Sessions: 2, ValueBytes: 10, Depth: 2} })
	ctx := t.Context()
	for i := range 5 {
		mustSet(t, n, fmt.Sprint("/e", i), "")
	}
	if _, err := n.Set(ctx, "/e5", nil); !errors.Is(err, chubby.ErrNoSpace) || errors.Is(err, chubby.ErrUncertain) {
		t.Errorf("sixth entry: %v", err)
	}
	if err := n.Delete(ctx, "/e0"); err != nil {
		t.Errorf("Delete at the limit: %v", err)
	}
	mustSet(t, n, "/e5", "")
	if _, err := n.Set(ctx, "/e5", make([]byte, 11)); !errors.Is(err, chubby.ErrTooLarge) {
		t.Errorf("large value: %v", err)
	}
	if _, err := n.Set(ctx, "/a/b/c", nil); !errors.Is(err, chubby.ErrBadPath) {
		t.Errorf("deep path: %v", err)
	}
	s, err := n.NewSession(ctx, chubby.SessionOptions{}) // the default one is the first
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.NewSession(ctx, chubby.SessionOptions{}); !errors.Is(err, chubby.ErrOverloaded) {
		t.Errorf("third session: %v", err)
	}
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := n.NewSession(ctx, chubby.SessionOptions{}); err != nil {
		t.Errorf("after one was closed: %v", err)
	}
}

// More answers at once than the cell keeps for a session: calls wait for room instead of failing.
func TestLargeAnswers(t *testing.T) {
	n := openOne(t)
	big := make([]byte, 200<<10)
	if _, err := n.Set(t.Context(), "/big", big); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			r, err := n.Txn(t.Context(), chubby.Txn{Then: []chubby.Op{chubby.OpGet("/big"), chubby.OpGet("/big"), chubby.OpGet("/big")}})
			if err != nil || len(r.Entries) != 3 || len(r.Entries[2].Data) != len(big) {
				t.Errorf("%d entries, %v", len(r.Entries), err)
			}
		})
	}
	wg.Wait()
}

func TestLimitOfChildren(t *testing.T) {
	n := openOne(t, func(o *chubby.Options) { o.Limits = chubby.Limits{Children: 3} })
	ctx := t.Context()
	for i := range 3 {
		mustSet(t, n, fmt.Sprint("/d/", i), "")
	}
	for name, f := range map[string]func(path string) error{
		"Set":    func(p string) error { _, err := n.Set(ctx, p, nil); return err },
		"Create": func(p string) error { _, err := n.Create(ctx, p, nil, chubby.CreateOptions{}); return err },
		"CompareAndSwap": func(p string) error {
			_, err := n.CompareAndSwap(ctx, p, nil, []byte("x"))
			return err
		},
		"Txn": func(p string) error {
			_, err := n.Txn(ctx, chubby.Txn{Then: []chubby.Op{chubby.OpSet(p, nil)}})
			return err
		},
		"OpenHandle": func(p string) error {
			_, err := n.OpenHandle(ctx, p, chubby.HandleOptions{Write: true, Create: true})
			return err
		},
		"Campaign": func(p string) error { _, err := n.Campaign(ctx, p, nil); return err },
	} {
		for _, p := range []string{"/d/new", "/d/new/below"} {
			if err := f(p); !errors.Is(err, chubby.ErrNoSpace) || errors.Is(err, chubby.ErrUncertain) {
				t.Errorf("%s of %s: %v", name, p, err)
			}
		}
	}
	mustSet(t, n, "/d/0", "there already")
	mustSet(t, n, "/other/new", "another directory")
	if err := n.Delete(ctx, "/d/1"); err != nil {
		t.Error(err)
	}
	mustSet(t, n, "/d/new", "")
}
