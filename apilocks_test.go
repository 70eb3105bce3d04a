package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/fence"
)

// The second half of TestAPI: watches, sessions, locks, elections and handles.

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
