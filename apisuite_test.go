package chubby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// TestAPI makes every call of a Client, with what it promises in each case, through the cell leader, through a follower and
// through a dialled Client: the same functions, because a program must not notice which of them it has. Others act through
// another node meanwhile.
func TestAPI(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Index(cell.Leader())
		follower, third := cell.Node(others(3, leader)[0]), cell.Node(others(3, leader)[1])
		dialled := cell.Dial()
		for _, way := range []struct {
			name string
			c    *chubby.Client
		}{{"leader", cell.Node(leader).Client}, {"follower", follower.Client}, {"dialled", dialled}} {
			for _, call := range apiCalls {
				s := &apiCase{T: t, c: way.c, other: third.Client, name: way.name + "/" + call.name, dir: "/" + way.name + "/" + call.name}
				call.do(s)
			}
		}
	})
}

// apiCase is one function of the suite on one way to the cell.
type apiCase struct {
	*testing.T
	c, other *chubby.Client
	name     string
	dir      string // nobody else uses it
}

func (s *apiCase) ctx() context.Context { return within(s.T, time.Minute) }

// is compares an error with the sentinel that it must match, nil for none.
func (s *apiCase) is(what string, err, want error) {
	s.Helper()
	var e *chubby.Error
	switch {
	case want == nil && err != nil, !errors.Is(err, want):
		s.Errorf("%s: %s: got %v, want %v", s.name, what, err, want)
	case err != nil && !errors.As(err, &e):
		s.Errorf("%s: %s: %v is no *Error", s.name, what, err)
	}
}

// equal compares values.
func equal[T comparable](s *apiCase, what string, got, want T) {
	s.Helper()
	if got != want {
		s.Errorf("%s: %s: got %v, want %v", s.name, what, got, want)
	}
}

var apiCalls = []struct {
	name string
	do   func(s *apiCase)
}{
	{"files", apiFiles},
	{"create", apiCreate},
	{"cas", apiCompareAndSwap},
	{"count", apiCount},
	{"conds", apiConds},
	{"txn", apiTxn},
	{"tree", apiTree},
	{"fastget", apiFastGet},
	{"paths", apiPaths},
	{"watch", apiWatch},
	{"sessions", apiSessions},
	{"locks", apiLocks},
	{"shared", apiShared},
	{"withlock", apiWithLock},
	{"wait", apiWait},
	{"election", apiElection},
	{"runleader", apiRunLeader},
	{"handles", apiHandles},
	{"contexts", apiContexts},
}

func apiFiles(s *apiCase) {
	path := s.dir + "/a"
	_, err := s.c.Get(s.ctx(), path)
	s.is("Get of nothing", err, chubby.ErrNotFound)
	_, err = s.c.Stat(s.ctx(), path)
	s.is("Stat of nothing", err, chubby.ErrNotFound)
	s.is("Delete of nothing", s.c.Delete(s.ctx(), path), chubby.ErrNotFound)
	st, err := s.c.Set(s.ctx(), path, []byte("hello"))
	s.is("Set", err, nil)
	equal(s, "Size", st.Size, 5)
	equal(s, "Generation", st.Generation, st.Revision)
	e, err := s.c.Get(s.ctx(), path)
	s.is("Get", err, nil)
	equal(s, "Data", string(e.Data), "hello")
	equal(s, "Path", e.Path, path)
	equal(s, "Stat", e.Stat, st)
	e, err = s.other.Get(s.ctx(), path)
	s.is("Get elsewhere", err, nil)
	equal(s, "Stat elsewhere", e.Stat, st)
	again, err := s.c.Set(s.ctx(), path, nil)
	s.is("Set of nothing", err, nil)
	equal(s, "Instance", again.Instance, st.Instance)
	if again.Generation <= st.Generation {
		s.Errorf("%s: Generation went from %d to %d", s.name, st.Generation, again.Generation)
	}
	if e, err = s.c.Get(s.ctx(), path); err != nil || e.Data == nil || len(e.Data) != 0 {
		s.Errorf("%s: Get of an empty file: %q (nil %v), %v", s.name, e.Data, e.Data == nil, err)
	}
	_, err = s.c.Get(s.ctx(), s.dir)
	s.is("Get of a directory", err, chubby.ErrIsDir)
	_, err = s.c.Set(s.ctx(), s.dir, nil)
	s.is("Set of a directory", err, chubby.ErrIsDir)
	_, err = s.c.Set(s.ctx(), path+"/below", nil)
	s.is("Set below a file", err, chubby.ErrNotDir)
	big := bytes.Repeat([]byte("x"), 256<<10)
	_, err = s.c.Set(s.ctx(), path, big)
	s.is("Set of the most", err, nil)
	if e, err = s.c.Get(s.ctx(), path); err != nil || !bytes.Equal(e.Data, big) {
		s.Errorf("%s: Get of the most: %d bytes, %v", s.name, len(e.Data), err)
	}
	_, err = s.c.Set(s.ctx(), path, append(big, 1))
	s.is("Set of too much", err, chubby.ErrTooLarge)
	s.is("Delete", s.c.Delete(s.ctx(), path), nil)
	_, err = s.c.Get(s.ctx(), path)
	s.is("Get of what was deleted", err, chubby.ErrNotFound)
}

func apiCreate(s *apiCase) {
	path := s.dir + "/a"
	_, err := s.c.Create(s.ctx(), path, []byte("1"), chubby.CreateOptions{})
	s.is("Create", err, nil)
	_, err = s.c.Create(s.ctx(), path, []byte("2"), chubby.CreateOptions{})
	s.is("Create again", err, chubby.ErrExists)
	st, err := s.c.Create(s.ctx(), s.dir+"/d", nil, chubby.CreateOptions{Dir: true})
	s.is("Create of a directory", err, nil)
	equal(s, "Dir", st.Dir, true)
	_, err = s.c.Create(s.ctx(), s.dir+"/e", []byte("x"), chubby.CreateOptions{Dir: true})
	s.is("Create of a directory with contents", err, chubby.ErrBadOptions)
	session, err := s.c.NewSession(s.ctx(), chubby.SessionOptions{Name: "owner"})
	s.is("NewSession", err, nil)
	st, err = session.Create(s.ctx(), s.dir+"/gone", []byte("x"), chubby.CreateOptions{Ephemeral: true})
	s.is("Create in a session", err, nil)
	equal(s, "Ephemeral", st.Ephemeral, true)
	s.is("Session.Close", session.Close(s.ctx()), nil)
	_, err = s.other.Get(s.ctx(), s.dir+"/gone")
	s.is("Get of an ephemeral file after its session", err, chubby.ErrNotFound)
}

func apiCompareAndSwap(s *apiCase) {
	path := s.dir + "/a"
	_, err := s.c.CompareAndSwap(s.ctx(), path, []byte("x"), []byte("y"))
	s.is("of nothing", err, chubby.ErrNotFound)
	st, err := s.c.CompareAndSwap(s.ctx(), path, nil, []byte("1"))
	s.is("nil to 1", err, nil)
	got, err := s.c.CompareAndSwap(s.ctx(), path, nil, []byte("2"))
	s.is("nil to 2", err, chubby.ErrConflict)
	equal(s, "Stat with the conflict", got, st)
	_, err = s.c.CompareAndSwap(s.ctx(), path, []byte("1"), []byte{})
	s.is("1 to empty", err, nil)
	_, err = s.c.CompareAndSwap(s.ctx(), path, []byte{}, []byte("3"))
	s.is("empty to 3", err, nil)
	e, err := s.c.Get(s.ctx(), path)
	s.is("Get", err, nil)
	equal(s, "Data", string(e.Data), "3")
}

func apiCount(s *apiCase) {
	path := s.dir + "/n"
	_, err := s.c.Add(s.ctx(), path, 1, math.MaxInt64)
	s.is("Add to nothing", err, chubby.ErrNotFound)
	if _, err = s.c.Set(s.ctx(), path, []byte("8")); err != nil {
		s.Fatal(err)
	}
	n, err := s.c.Add(s.ctx(), path, 2, 10)
	s.is("Add", err, nil)
	equal(s, "Add", n, 10)
	_, err = s.c.Add(s.ctx(), path, 1, 10)
	s.is("Add above the bound", err, chubby.ErrBound)
	n, err = s.c.Sub(s.ctx(), path, 10, 0)
	s.is("Sub", err, nil)
	equal(s, "Sub", n, 0)
	_, err = s.c.Sub(s.ctx(), path, 1, 0)
	s.is("Sub below the bound", err, chubby.ErrBound)
	_, err = s.c.Add(s.ctx(), path, -1, 0)
	s.is("Add of less than nothing", err, chubby.ErrBadOptions)
	_, err = s.c.Set(s.ctx(), path, []byte("x"))
	s.is("Set", err, nil)
	_, err = s.c.Add(s.ctx(), path, 1, 10)
	s.is("Add to a word", err, chubby.ErrNotNumber)
}

func apiConds(s *apiCase) {
	path := s.dir + "/a"
	st, err := s.c.Set(s.ctx(), path, []byte("1"), chubby.IfAbsent())
	s.is("IfAbsent", err, nil)
	_, err = s.c.Set(s.ctx(), path, []byte("2"), chubby.IfAbsent())
	s.is("IfAbsent of what is there", err, chubby.ErrExists)
	_, err = s.c.Set(s.ctx(), path+"2", nil, chubby.IfExists())
	s.is("IfExists of nothing", err, chubby.ErrNotFound)
	_, err = s.c.Set(s.ctx(), path, []byte("2"), chubby.IfGeneration(st.Generation+1))
	s.is("IfGeneration of another", err, chubby.ErrConflict)
	_, err = s.c.Set(s.ctx(), path, []byte("2"), chubby.IfGeneration(st.Generation), chubby.IfValue([]byte("1")))
	s.is("IfGeneration and IfValue", err, nil)
	s.is("Delete IfValue of another", s.c.Delete(s.ctx(), path, chubby.IfValue([]byte("1"))), chubby.ErrConflict)
	l, err := s.c.Lock(s.ctx(), path)
	s.is("Lock", err, nil)
	_, err = s.other.Set(s.ctx(), path, []byte("3"), chubby.IfHolds(l.Sequencer()))
	s.is("IfHolds", err, nil)
	s.is("Delete of what is locked", s.c.Delete(s.ctx(), path), chubby.ErrLockHeld)
	s.is("Unlock", l.Unlock(s.ctx()), nil)
	_, err = s.c.Set(s.ctx(), path, []byte("4"), chubby.IfHolds(l.Sequencer()))
	s.is("IfHolds afterwards", err, chubby.ErrStaleSequencer)
	_, err = s.c.Set(s.ctx(), path, nil, chubby.Cond{})
	s.is("an empty condition", err, chubby.ErrBadOptions)
}

func apiTxn(s *apiCase) {
	a, b := s.dir+"/a", s.dir+"/b"
	r, err := s.c.Txn(s.ctx(), chubby.Txn{
		If:   []chubby.Cond{chubby.At(a, chubby.IfAbsent())},
		Then: []chubby.Op{chubby.OpSet(a, []byte("1")), chubby.OpAdd(a, 1, 10), chubby.OpCreate(b, []byte("x"), chubby.CreateOptions{}), chubby.OpGet(a), chubby.OpGet(a + "/no")},
		Else: []chubby.Op{chubby.OpDelete(a)},
	})
	s.is("Txn", err, nil)
	if !r.Succeeded || len(r.Entries) != 5 || string(r.Entries[3].Data) != "2" || r.Entries[4].Stat.Instance != 0 {
		s.Errorf("%s: %+v", s.name, r)
	}
	r, err = s.c.Txn(s.ctx(), chubby.Txn{If: []chubby.Cond{chubby.At(a, chubby.IfAbsent())}, Else: []chubby.Op{chubby.OpGet(a)}})
	s.is("Txn with Else", err, nil)
	if r.Succeeded || len(r.Entries) != 1 || string(r.Entries[0].Data) != "2" {
		s.Errorf("%s: %+v", s.name, r)
	}
	_, err = s.c.Txn(s.ctx(), chubby.Txn{Then: []chubby.Op{chubby.OpSet(a, nil), chubby.OpDelete(s.dir + "/no")}})
	s.is("Txn that cannot be done", err, chubby.ErrNotFound)
	var e *chubby.Error
	if errors.As(err, &e) && e.Path != s.dir+"/no" {
		s.Errorf("%s: the error names %q", s.name, e.Path)
	}
	_, err = s.c.Txn(s.ctx(), chubby.Txn{If: []chubby.Cond{chubby.IfAbsent()}})
	s.is("a condition without At", err, chubby.ErrBadOptions)
}

func apiTree(s *apiCase) {
	for _, name := range []string{"/t/b", "/t/a", "/t/c/d"} {
		_, err := s.c.Set(s.ctx(), s.dir+name, []byte("x"))
		s.is("Set", err, nil)
	}
	list, err := s.c.List(s.ctx(), s.dir+"/t")
	s.is("List", err, nil)
	var names []string
	for _, e := range list {
		names = append(names, e.Path)
		if e.Data != nil {
			s.Errorf("%s: List gave contents", s.name)
		}
	}
	equal(s, "List", fmt.Sprint(names), fmt.Sprint([]string{s.dir + "/t/a", s.dir + "/t/b", s.dir + "/t/c"}))
	_, err = s.c.List(s.ctx(), s.dir+"/t/a")
	s.is("List of a file", err, chubby.ErrNotDir)
	_, err = s.c.List(s.ctx(), s.dir+"/no")
	s.is("List of nothing", err, chubby.ErrNotFound)
	st, err := s.c.Stat(s.ctx(), s.dir+"/t")
	s.is("Stat", err, nil)
	equal(s, "Children", st.Children, 3)
	s.is("Delete", s.c.Delete(s.ctx(), s.dir+"/t"), chubby.ErrNotEmpty)
	l, err := s.c.Lock(s.ctx(), s.dir+"/t/c/d")
	s.is("Lock", err, nil)
	s.is("DeleteTree with a lock inside", s.c.DeleteTree(s.ctx(), s.dir+"/t"), chubby.ErrLockHeld)
	s.is("Unlock", l.Unlock(s.ctx()), nil)
	s.is("DeleteTree", s.c.DeleteTree(s.ctx(), s.dir+"/t"), nil)
	s.is("DeleteTree again", s.c.DeleteTree(s.ctx(), s.dir+"/t"), chubby.ErrNotFound)
	if _, err = s.c.List(s.ctx(), "/"); err != nil {
		s.Errorf("%s: List of the root: %v", s.name, err)
	}
}

func apiFastGet(s *apiCase) {
	path := s.dir + "/a"
	for i := range 10 {
		if _, err := s.c.Set(s.ctx(), path, []byte{byte(i)}); err != nil {
			s.Fatal(err)
		}
		e, err := s.c.FastGet(s.ctx(), path)
		if err != nil || len(e.Data) != 1 || e.Data[0] != byte(i) {
			s.Errorf("%s: FastGet after the Client's own write %d: %v, %v", s.name, i, e.Data, err)
		}
	}
	_, err := s.c.FastGet(s.ctx(), s.dir+"/no")
	s.is("FastGet of nothing", err, chubby.ErrNotFound)
	_, err = s.c.FastGet(s.ctx(), s.dir)
	s.is("FastGet of a directory", err, chubby.ErrIsDir)
	_, err = s.c.FastGet(s.ctx(), "//")
	s.is("FastGet of no path", err, chubby.ErrBadPath)
	time.Sleep(time.Second)
	if e, err := s.c.FastGet(s.ctx(), path); err != nil || e.Age > 2*time.Second {
		s.Errorf("%s: Age %v, %v", s.name, e.Age, err)
	}
}

func apiPaths(s *apiCase) {
	for _, form := range []string{s.dir + "/p", s.dir[1:] + "/p", "/ls/test" + s.dir + "/p", "/ls/local" + s.dir + "/p"} {
		_, err := s.c.Set(s.ctx(), form, []byte(form))
		s.is("Set "+form, err, nil)
		e, err := s.c.Get(s.ctx(), form)
		s.is("Get "+form, err, nil)
		equal(s, "Path", e.Path, s.dir+"/p")
	}
	for _, bad := range []string{"", "/ls", "/ls/elsewhere/a", "/a//b", "/a/../b", "/a/\x00", "/a/\xff", "/" + string(bytes.Repeat([]byte("x"), 256))} {
		_, err := s.c.Get(s.ctx(), bad)
		s.is("Get", err, chubby.ErrBadPath)
		_, err = s.c.Set(s.ctx(), bad, nil)
		s.is("Set", err, chubby.ErrBadPath)
		_, err = s.c.TryLock(s.ctx(), bad)
		s.is("TryLock", err, chubby.ErrBadPath)
		for _, err := range s.c.Watch(s.ctx(), bad, chubby.WatchOptions{}) {
			s.is("Watch", err, chubby.ErrBadPath)
		}
	}
	_, err := s.c.Set(s.ctx(), "/", nil)
	s.is("Set of the root", err, chubby.ErrBadPath)
	_, err = s.c.Lock(s.ctx(), "/")
	s.is("Lock of the root", err, chubby.ErrBadPath)
	s.is("Delete of the root", s.c.Delete(s.ctx(), "/"), chubby.ErrBadPath)
}
