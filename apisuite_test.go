package chubby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
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

func apiWatch(s *apiCase) {
	ctx, cancel := context.WithCancel(s.ctx())
	st, err := s.other.Set(s.ctx(), s.dir+"/before", nil)
	s.is("Set", err, nil)
	direct := s.c.Watch(ctx, s.dir, chubby.WatchOptions{})
	all := s.c.Watch(ctx, s.dir, chubby.WatchOptions{Recursive: true, From: st.Revision})
	for _, do := range []func() error{
		func() error { _, err := s.other.Set(s.ctx(), s.dir+"/a", []byte("1")); return err },
		func() error { _, err := s.c.Set(s.ctx(), s.dir+"/a", []byte("2")); return err },
		func() error { _, err := s.other.Set(s.ctx(), s.dir+"/d/deep", nil); return err },
		func() error {
			return s.other.WithLock(s.ctx(), s.dir+"/a", func(context.Context, *chubby.Lock) error { return nil })
		},
		func() error { return s.other.DeleteTree(s.ctx(), s.dir+"/d") },
		func() error { return s.other.Delete(s.ctx(), s.dir+"/a") },
	} {
		if err := do(); err != nil {
			s.Fatal(s.name, err)
		}
	}
	collect := func(seq func(func(chubby.Event, error) bool), last string) (list []string) {
		revision, more := uint64(0), false
		for e, err := range seq {
			if err != nil {
				s.Errorf("%s: %v", s.name, err)
				break
			}
			if e.Revision < revision || more != (e.Revision == revision) && revision != 0 {
				s.Errorf("%s: %+v after revision %d, more %v", s.name, e, revision, more)
			}
			revision, more = e.Revision, e.More
			item := e.Kind.String() + " " + e.Path[len(s.dir):]
			if e.Kind == chubby.EventModified {
				item += " " + string(e.Entry.Data)
			}
			if list = append(list, item); item == last {
				break
			}
		}
		return list
	}
	got := collect(direct, "deleted /a")
	want := []string{"created /a", "modified /a 2", "created /d", "lock acquired /a", "lock released /a", "deleted /d", "deleted /a"}
	equal(s, "events of the directory", fmt.Sprint(got), fmt.Sprint(want))
	got = collect(all, "deleted /a")
	slices.Sort(got)
	want = []string{"created ", "created /a", "created /before", "created /d", "created /d/deep", "deleted /a", "deleted /d", "deleted /d/deep",
		"lock acquired /a", "lock released /a", "modified /a 2"}
	equal(s, "events of the tree", fmt.Sprint(got), fmt.Sprint(want))
	for _, err := range direct {
		s.is("a second loop", err, chubby.ErrBadOptions)
	}
	waiting := s.c.Watch(ctx, s.dir, chubby.WatchOptions{})
	time.AfterFunc(time.Second, cancel)
	turns := 0
	for _, err := range waiting {
		turns++
		s.is("the end", err, context.Canceled)
	}
	equal(s, "turns", turns, 1)
	for _, err := range s.c.Watch(s.ctx(), s.dir, chubby.WatchOptions{From: st.Revision + 1_000_000}) {
		s.is("from the future", err, chubby.ErrLagged)
	}
}

func apiSessions(s *apiCase) {
	def, err := s.c.Session(s.ctx())
	s.is("Session", err, nil)
	again, err := s.c.Session(s.ctx())
	s.is("Session again", err, nil)
	equal(s, "the default session", again, def)
	_, err = s.c.NewSession(s.ctx(), chubby.SessionOptions{Lease: time.Millisecond})
	s.is("a lease too short", err, chubby.ErrBadOptions)
	_, err = s.c.NewSession(s.ctx(), chubby.SessionOptions{Name: "a\nb"})
	s.is("a bad name", err, chubby.ErrBadOptions)
	own, err := s.c.NewSession(s.ctx(), chubby.SessionOptions{Name: "own", Lease: 2 * time.Second, Grace: -1})
	s.is("NewSession", err, nil)
	if own.ID() == def.ID() || own.ID() == 0 {
		s.Errorf("%s: ids %d and %d", s.name, own.ID(), def.ID())
	}
	time.Sleep(time.Minute)
	equal(s, "State after a minute", own.State(), chubby.SessionActive)
	states := make(chan []chubby.SessionState)
	go func() {
		var list []chubby.SessionState
		for state := range own.States(s.ctx()) {
			list = append(list, state)
		}
		states <- list
	}()
	time.Sleep(time.Second)
	s.is("Close", own.Close(s.ctx()), nil)
	s.is("Close again", own.Close(s.ctx()), nil)
	<-own.Done()
	if !errors.Is(own.Err(), chubby.ErrClosed) {
		s.Errorf("%s: Err after Close: %v", s.name, own.Err())
	}
	equal(s, "states", fmt.Sprint(<-states), fmt.Sprint([]chubby.SessionState{chubby.SessionActive, chubby.SessionExpired}))
	_, err = own.Lock(s.ctx(), s.dir)
	s.is("Lock on a closed session", err, chubby.ErrSessionExpired)
}

func apiLocks(s *apiCase) {
	path := s.dir + "/l"
	info, err := s.c.LockInfo(s.ctx(), path)
	s.is("LockInfo", err, nil)
	equal(s, "holders", len(info.Holders), 0)
	l, err := s.c.Lock(s.ctx(), path)
	s.is("Lock", err, nil)
	equal(s, "Path", l.Path(), path)
	equal(s, "Mode", l.Mode(), chubby.Exclusive)
	q := l.Sequencer()
	if q.Cell != "test" || q.Path != path || q.Mode != chubby.Exclusive || q.Generation == 0 || q.Epoch == 0 {
		s.Errorf("%s: sequencer %+v", s.name, q)
	}
	s.is("CheckSequencer", s.other.CheckSequencer(s.ctx(), q), nil)
	s.is("CheckSequencer", s.c.CheckSequencer(s.ctx(), q), nil)
	bad := q
	bad.Generation++
	s.is("CheckSequencer of another generation", s.c.CheckSequencer(s.ctx(), bad), chubby.ErrStaleSequencer)
	s.is("CheckSequencer of nonsense", s.c.CheckSequencer(s.ctx(), fence.Sequencer{Mode: 77, Path: "\xff"}), chubby.ErrStaleSequencer)
	_, err = s.other.TryLock(s.ctx(), path)
	s.is("TryLock of what is held", err, chubby.ErrLockHeld)
	_, err = s.c.TryRLock(s.ctx(), path)
	s.is("TryRLock of what is held", err, chubby.ErrLockHeld)
	info, err = s.c.LockInfo(s.ctx(), path)
	s.is("LockInfo", err, nil)
	session, err := s.c.Session(s.ctx())
	s.is("Session", err, nil)
	if info.Mode != chubby.Exclusive || info.Generation != q.Generation || len(info.Holders) != 1 || info.Holders[0].Session != session.ID() {
		s.Errorf("%s: %+v", s.name, info)
	}
	held := l.Context()
	s.is("Unlock", l.Unlock(s.ctx()), nil)
	<-l.Done()
	if held.Err() == nil || !errors.Is(context.Cause(held), chubby.ErrNotHeld) || !errors.Is(l.Err(), chubby.ErrNotHeld) {
		s.Errorf("%s: after Unlock: %v, %v, %v", s.name, held.Err(), context.Cause(held), l.Err())
	}
	s.is("Unlock again", l.Unlock(s.ctx()), chubby.ErrNotHeld)
	s.is("CheckSequencer afterwards", s.c.CheckSequencer(s.ctx(), q), chubby.ErrStaleSequencer)
	_, err = s.c.Lock(s.ctx(), path, chubby.LockDelay(time.Hour))
	s.is("a delay too long", err, chubby.ErrBadOptions)
	l, err = s.c.TryLock(s.ctx(), path, chubby.MaxHold(time.Second))
	s.is("TryLock", err, nil)
	next, err := s.other.Lock(s.ctx(), path) // when the holding is over
	s.is("Lock elsewhere", err, nil)
	if !errors.Is(l.Err(), chubby.ErrLockLost) || next.Sequencer().Generation <= l.Sequencer().Generation {
		s.Errorf("%s: after MaxHold: %v, generations %d and %d", s.name, l.Err(), l.Sequencer().Generation, next.Sequencer().Generation)
	}
	s.is("Unlock", next.Unlock(s.ctx()), nil)
}

func apiShared(s *apiCase) {
	path := s.dir + "/l"
	a, err := s.c.RLock(s.ctx(), path)
	s.is("RLock", err, nil)
	b, err := s.other.TryRLock(s.ctx(), path)
	s.is("TryRLock", err, nil)
	equal(s, "generation of the second", b.Sequencer().Generation, a.Sequencer().Generation)
	_, err = s.c.TryLock(s.ctx(), path)
	s.is("TryLock", err, chubby.ErrLockHeld)
	writer := make(chan *chubby.Lock)
	go func() {
		l, err := s.c.Lock(s.ctx(), path)
		s.is("Lock behind readers", err, nil)
		writer <- l
	}()
	time.Sleep(time.Second)
	_, err = s.other.TryRLock(s.ctx(), path)
	s.is("TryRLock behind a writer that waits", err, chubby.ErrLockHeld)
	s.is("Unlock", a.Unlock(s.ctx()), nil)
	s.is("Unlock", b.Unlock(s.ctx()), nil)
	s.is("Unlock", (<-writer).Unlock(s.ctx()), nil)
}

func apiWithLock(s *apiCase) {
	want := errors.New("fn")
	err := s.c.WithLock(s.ctx(), s.dir, func(ctx context.Context, l *chubby.Lock) error {
		s.is("CheckSequencer inside", s.c.CheckSequencer(ctx, l.Sequencer()), nil)
		return want
	})
	equal(s, "WithLock", err, want)
	session, err := s.c.NewSession(s.ctx(), chubby.SessionOptions{})
	s.is("NewSession", err, nil)
	err = session.WithLock(s.ctx(), s.dir, func(ctx context.Context, _ *chubby.Lock) error {
		_ = session.Close(s.ctx())
		<-ctx.Done()
		return nil
	})
	s.is("WithLock on a session that ends", err, chubby.ErrLockLost)
}

func apiWait(s *apiCase) {
	path := s.dir + "/l"
	l, err := s.other.Lock(s.ctx(), path)
	s.is("Lock", err, nil)
	ctx, cancel := context.WithTimeout(s.ctx(), time.Second)
	defer cancel()
	_, err = s.c.Lock(ctx, path)
	s.is("Lock that gives up", err, context.DeadlineExceeded)
	if errors.Is(err, chubby.ErrUncertain) {
		s.Errorf("%s: a Lock that gave up is uncertain: %v", s.name, err)
	}
	time.Sleep(time.Second)
	info, err := s.c.LockInfo(s.ctx(), path)
	s.is("LockInfo", err, nil)
	equal(s, "waiters after one gave up", info.Waiters, 0)
	// Many wait, in the order of their coming, for longer than any call or lease takes.
	const n = 5
	order := make(chan int, n)
	for i := range n {
		go func() {
			l, err := s.c.Lock(s.ctx(), path)
			s.is("Lock that waits", err, nil)
			if err == nil {
				order <- i
				s.is("Unlock", l.Unlock(s.ctx()), nil)
			}
		}()
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(30 * time.Second)
	s.is("Unlock", l.Unlock(s.ctx()), nil)
	for i := range n {
		equal(s, "place", <-order, i)
	}
}

func apiElection(s *apiCase) {
	path := s.dir + "/leader"
	_, err := s.c.Leader(s.ctx(), path)
	s.is("Leader of nobody", err, chubby.ErrNoLeader)
	ctx, cancel := context.WithCancel(s.ctx())
	defer cancel()
	seen := make(chan string, 16)
	go func() {
		for info, err := range s.c.ObserveLeader(ctx, path) {
			if err != nil {
				s.is("ObserveLeader's end", err, context.Canceled)
				close(seen)
				return
			}
			seen <- fmt.Sprintf("%s %v", info.Value, info.Generation != 0)
		}
	}()
	equal(s, "observed first", <-seen, " false")
	l, err := s.c.Campaign(s.ctx(), path, []byte("me"))
	s.is("Campaign", err, nil)
	equal(s, "observed", <-seen, "me true")
	info, err := s.c.Leader(s.ctx(), path)
	s.is("Leader", err, nil)
	if string(info.Value) != "me" || info.Generation != l.Sequencer().Generation {
		s.Errorf("%s: Leader %+v", s.name, info)
	}
	s.is("Publish", l.Publish(s.ctx(), []byte("me too")), nil)
	equal(s, "observed", <-seen, "me too true")
	next := make(chan *chubby.Leadership)
	go func() {
		l, err := s.other.Campaign(s.ctx(), path, []byte("other"))
		s.is("Campaign elsewhere", err, nil)
		next <- l
	}()
	time.Sleep(time.Second)
	s.is("Resign", l.Resign(s.ctx()), nil)
	other := <-next
	equal(s, "observed", <-seen, "other true")
	s.is("Publish afterwards", l.Publish(s.ctx(), nil), chubby.ErrStaleSequencer)
	s.is("Resign", other.Resign(s.ctx()), nil)
	equal(s, "observed at the end", <-seen, " false")
	cancel()
	<-seen
	_, err = s.c.Campaign(s.ctx(), s.dir, nil)
	s.is("Campaign at a directory", err, chubby.ErrIsDir)
}

func apiRunLeader(s *apiCase) {
	path := s.dir + "/leader"
	want := errors.New("fn")
	terms := 0
	err := s.c.RunLeader(s.ctx(), path, []byte("v"), func(ctx context.Context, l *chubby.Leadership) error {
		terms++
		s.is("CheckSequencer inside", s.other.CheckSequencer(ctx, l.Sequencer()), nil)
		return want
	})
	equal(s, "RunLeader", err, want)
	equal(s, "terms", terms, 1)
	_, err = s.c.Leader(s.ctx(), path)
	s.is("Leader afterwards", err, chubby.ErrNoLeader)
}

func apiHandles(s *apiCase) {
	path := s.dir + "/f"
	_, err := s.c.OpenHandle(s.ctx(), path, chubby.HandleOptions{})
	s.is("OpenHandle of nothing", err, chubby.ErrNotFound)
	h, err := s.c.OpenHandle(s.ctx(), path, chubby.HandleOptions{Create: true, Write: true, Data: []byte("1")})
	s.is("OpenHandle", err, nil)
	e, err := h.GetContentsAndStat(s.ctx())
	s.is("GetContentsAndStat", err, nil)
	equal(s, "contents", string(e.Data), "1")
	st, err := h.SetContents(s.ctx(), []byte("2"), chubby.IfGeneration(e.Stat.Generation))
	s.is("SetContents", err, nil)
	got, err := h.GetStat(s.ctx())
	s.is("GetStat", err, nil)
	equal(s, "GetStat", got, st)
	parsed, err := s.other.ParseHandle(s.ctx(), h.String())
	s.is("ParseHandle elsewhere", err, nil)
	e, err = parsed.GetContentsAndStat(s.ctx())
	s.is("GetContentsAndStat of a parsed handle", err, nil)
	equal(s, "contents", string(e.Data), "2")
	_, err = s.c.ParseHandle(s.ctx(), h.String()+"0")
	s.is("ParseHandle of another text", err, chubby.ErrBadHandle)
	l, err := h.Acquire(s.ctx(), chubby.Exclusive)
	s.is("Acquire", err, nil)
	q, err := h.GetSequencer()
	s.is("GetSequencer", err, nil)
	equal(s, "sequencer", q, l.Sequencer())
	s.is("SetSequencer elsewhere", parsed.SetSequencer(q), nil)
	_, err = parsed.SetContents(s.ctx(), []byte("3"))
	s.is("SetContents under a sequencer", err, nil)
	s.is("Release", h.Release(s.ctx()), nil)
	_, err = parsed.GetContentsAndStat(s.ctx())
	s.is("GetContentsAndStat under a sequencer of the past", err, chubby.ErrStaleSequencer)
	s.is("Close of the parsed one", parsed.Close(s.ctx()), nil)
	dir, err := s.c.OpenHandle(s.ctx(), s.dir, chubby.HandleOptions{Write: true})
	s.is("OpenHandle of a directory", err, nil)
	child, err := dir.Create(s.ctx(), "child", chubby.HandleOptions{Ephemeral: true})
	s.is("Create of a child", err, nil)
	list, err := dir.ReadDir(s.ctx())
	s.is("ReadDir", err, nil)
	equal(s, "children", len(list), 2)
	s.is("Close of the child", child.Close(s.ctx()), nil)
	list, err = dir.ReadDir(s.ctx())
	s.is("ReadDir", err, nil)
	equal(s, "children without the ephemeral one", len(list), 1)
	s.is("Delete", h.Delete(s.ctx()), nil)
	_, err = h.GetStat(s.ctx())
	s.is("GetStat of what was deleted", err, chubby.ErrNotFound)
	s.is("Close", h.Close(s.ctx()), nil)
	s.is("Close of the directory", dir.Close(s.ctx()), nil)
}

func apiContexts(s *apiCase) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for what, call := range map[string]func() error{
		"Get":         func() error { _, err := s.c.Get(ended, s.dir); return err },
		"FastGet":     func() error { _, err := s.c.FastGet(ended, s.dir); return err },
		"List":        func() error { _, err := s.c.List(ended, s.dir); return err },
		"Set":         func() error { _, err := s.c.Set(ended, s.dir+"/x", nil); return err },
		"Lock":        func() error { _, err := s.c.Lock(ended, s.dir); return err },
		"LockInfo":    func() error { _, err := s.c.LockInfo(ended, s.dir); return err },
		"Session":     func() error { _, err := s.c.Session(ended); return err },
		"NewSession":  func() error { _, err := s.c.NewSession(ended, chubby.SessionOptions{}); return err },
		"Campaign":    func() error { _, err := s.c.Campaign(ended, s.dir, nil); return err },
		"Txn":         func() error { _, err := s.c.Txn(ended, chubby.Txn{}); return err },
		"Watch":       func() error { return firstError(s.c.Watch(ended, s.dir, chubby.WatchOptions{})) },
		"RunLeader":   func() error { return s.c.RunLeader(ended, s.dir, nil, nil) },
		"CheckSequen": func() error { return s.c.CheckSequencer(ended, chubby.Sequencer{}) },
	} {
		err := call()
		s.is(what+" with a context that has ended", err, context.Canceled)
		if errors.Is(err, chubby.ErrUncertain) {
			s.Errorf("%s: %s with a context that has ended is uncertain", s.name, what)
		}
	}
	_, err := s.c.Get(s.ctx(), s.dir+"/x")
	s.is("what they left", err, chubby.ErrNotFound)
}

func firstError(seq func(func(chubby.Event, error) bool)) (err error) {
	for _, err = range seq {
		break
	}
	return err
}
