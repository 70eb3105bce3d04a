package chubby

import (
	"errors"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
)

var errInjected = errors.New("input/output error")

// exits runs f as one of raft's goroutines and reports whether the store ended it.
func exits(f func()) bool {
	returned := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
		returned = true
	}()
	<-done
	return !returned
}

// TestStoreFailStop lets each kind of write fail: the goroutine ends, Fail is called once, and no later call gets to the
// disk or returns.
func TestStoreFailStop(t *testing.T) {
	ops := map[string]func(s *store){
		"log":    func(s *store) { _ = s.logs().StoreLogs(entries(11, 12, 1)) },
		"vote":   func(s *store) { _ = s.stable().SetUint64([]byte("CurrentTerm"), 9) },
		"delete": func(s *store) { _ = s.logs().DeleteRange(8, 10) },
	}
	for op, f := range ops {
		t.Run(op, func(t *testing.T) {
			both(t, func(t *testing.T, p *place) {
				s := p.founded(t)
				store1(t, s, entries(2, 10, 1))
				var calls atomic.Int64
				s.c.Fault = func(got string) error {
					calls.Add(1)
					if got != op {
						t.Errorf("operation is %q, want %q", got, op)
					}
					return errInjected
				}
				if !exits(func() { f(s) }) {
					t.Error("the call returned")
				}
				if err := <-p.failed; !errors.Is(err, errInjected) || !errors.Is(s.err(), errInjected) {
					t.Errorf("Fail got %v, err is %v", err, s.err())
				}
				for name, g := range ops {
					if !exits(func() { g(s) }) {
						t.Errorf("%s returned after the failure", name)
					}
				}
				if !exits(func() { _ = s.logs().GetLog(2, new(raft.Log)) }) ||
					!exits(func() { _, _ = s.stable().Get([]byte("LastVoteCand")) }) ||
					!exits(func() { _, _ = s.stable().GetUint64([]byte("CurrentTerm")) }) {
					t.Error("a read returned after the failure")
				}
				_, err1 := s.logs().LastIndex()
				_, err2 := s.snapshots().List()
				_, err3 := s.snapshots().Create(1, 5, 1, raft.Configuration{}, 1, nil)
				_, _, err4 := s.snapshots().Open("x")
				for i, err := range []error{err1, err2, err3, err4, s.joined(joining{Epoch: 1, CellID: [16]byte{}}), s.found(testFounding())} {
					if err == nil {
						t.Errorf("call %d succeeded after the failure", i)
					}
				}
				if n := calls.Load(); n != 1 {
					t.Errorf("%d operations reached the disk, want 1", n)
				}
				s.c.Fault = nil
				if err := s.close(); err != nil {
					t.Error(err)
				}
				s = p.open(t)
				wantLog(t, s, 1, 10, constant(1))
			})
		})
	}
}

// TestStoreFaultFounding lets found fail at each of its writes: it returns the error, in the caller's goroutine, and the
// next open finishes what was begun.
func TestStoreFaultFounding(t *testing.T) {
	for fail, op := range []string{"meta", "vote", "log"} {
		t.Run(op, func(t *testing.T) {
			both(t, func(t *testing.T, p *place) {
				s := p.open(t)
				n := 0
				s.c.Fault = func(string) error {
					if n++; n > fail {
						return errInjected
					}
					return nil
				}
				if err := s.found(testFounding()); !errors.Is(err, errInjected) {
					t.Fatalf("found: %v", err)
				}
				if err := s.close(); err != nil {
					t.Fatal(err)
				}
				s = p.open(t)
				_, ok := s.founding()
				if ok != (fail > 0) {
					t.Errorf("founding is there: %v", ok)
				}
				if ok {
					wantLog(t, s, 1, 1, constant(1))
				} else {
					wantLog(t, s, 0, 0, nil)
				}
				if err := s.found(testFounding()); err != nil {
					t.Fatal(err)
				}
				wantLog(t, s, 1, 1, constant(1))
			})
		})
	}
}

// TestStoreCrash crashes a memory disk under a store: the store fails, and another one finds all that was acknowledged.
func TestStoreCrash(t *testing.T) {
	p := places(t)["memory"]
	s := p.founded(t)
	store1(t, s, entries(2, 10, 1))
	k, err := s.snapshots().Create(1, 5, 1, raft.Configuration{}, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Write(blob(1, 10*testChunk)); err != nil {
		t.Fatal(err)
	}
	p.Disk.Crash()
	if !exits(func() { _ = s.logs().StoreLogs(entries(11, 11, 1)) }) {
		t.Error("a write to a crashed disk returned")
	}
	if err := k.Close(); err == nil {
		t.Error("a snapshot was completed on a crashed disk")
	}
	next := p.open(t)
	wantLog(t, next, 1, 10, constant(1))
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if records, err := next.snap.file.list(); err != nil || len(records) != 0 {
		t.Errorf("snapshots are %v, %v", records, err)
	}
	// The old owner's close has not given the disk away.
	if _, err := openStore(p.config()); !errors.Is(err, ErrInUse) {
		t.Errorf("open: %v, want ErrInUse", err)
	}
}

// TestStoreDeleteCrash crashes deletions after each of their writes: the log never has a gap, and opens.
func TestStoreDeleteCrash(t *testing.T) {
	const n = 2*testDelete + 100
	for name, c := range map[string]struct{ from, to, snap uint64 }{
		"prefix":      {1, n - 5, n - 1},
		"suffix":      {20, n, 0},
		"all":         {1, n, n + 50},
		"all, behind": {1, n, n - 50}, // an installed snapshot replaces a longer log
		"all, before": {1, n, 30},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, p *place) {
				s := p.founded(t)
				store1(t, s, entries(2, n, 1))
				if err := s.stable().SetUint64([]byte("CurrentTerm"), 2); err != nil {
					t.Fatal(err)
				}
				if c.snap > 0 {
					term := uint64(2)
					if name == "prefix" {
						term = 1
					}
					snapshot(t, s, c.snap, term, nil)
				}
				// Each round fails one write later, until none fails.
				for fail := 1; ; fail++ {
					calls := 0
					s.c.Fault = func(string) error {
						if calls++; calls == fail {
							return errInjected
						}
						return nil
					}
					from, to := max(c.from, s.log.first.Load()), min(c.to, s.log.last.Load())
					ended := exits(func() { _ = s.logs().DeleteRange(from, to) })
					s.c.Fault = nil
					if err := s.close(); err != nil {
						t.Fatal(err)
					}
					s = p.open(t)
					first, last := s.log.ends()
					if !ended {
						if c.to < n && (first != c.to+1 || last != n) || c.to == n && c.from > 1 && (first != 1 || last != c.from-1) ||
							c.to == n && c.from == 1 && last != 0 {
							t.Fatalf("log is %d..%d in the end", first, last)
						}
						return
					}
					if c.to < n && last != n || c.from > 1 && first != 1 {
						t.Fatalf("log is %d..%d after write %d", first, last, fail)
					}
				}
			})
		})
	}
}

// TestStoreDamagedOnTheWay gives the store entries whose checksum is wrong.
func TestStoreDamagedOnTheWay(t *testing.T) {
	damaged := func() []*raft.Log {
		l := entries(11, 12, 1)
		l[1].Extensions = make([]byte, 8)
		return l
	}
	both(t, func(t *testing.T, p *place) {
		s := p.founded(t)
		store1(t, s, entries(2, 10, 1))
		if err := s.logs().StoreLogs(damaged()); err == nil {
			t.Error("damaged entries were stored")
		}
		wantLog(t, s, 1, 10, constant(1))
		if err := s.err(); err != nil {
			t.Fatal(err)
		}
		// As they come from another store, they are good.
		var l []*raft.Log
		other := (&place{storeConfig: storeConfig{ID: "n2", Cell: "c"}}).founded(t)
		store1(t, other, entries(2, 12, 1))
		for i := uint64(11); i <= 12; i++ {
			e := new(raft.Log)
			if err := other.logs().GetLog(i, e); err != nil {
				t.Fatal(err)
			}
			l = append(l, e)
		}
		store1(t, s, l)
		wantLog(t, s, 1, 12, constant(1))
		// After a truncation raft must not go on with the end it remembers.
		if err := s.logs().DeleteRange(11, 12); err != nil {
			t.Fatal(err)
		}
		if !exits(func() { _ = s.logs().StoreLogs(damaged()) }) || s.err() == nil {
			t.Error("the store went on")
		}
	})
}

// TestStoreNonsense makes calls that raft makes only if it is wrong about the log.
func TestStoreNonsense(t *testing.T) {
	for name, f := range map[string]func(s *store){
		"gap":     func(s *store) { _ = s.logs().StoreLogs(entries(12, 12, 1)) },
		"again":   func(s *store) { _ = s.logs().StoreLogs(entries(10, 10, 1)) },
		"inner":   func(s *store) { _ = s.logs().StoreLogs(append(entries(11, 11, 1), entries(13, 13, 1)...)) },
		"middle":  func(s *store) { _ = s.logs().DeleteRange(3, 5) },
		"key":     func(s *store) { _ = s.stable().Set([]byte("x"), nil) },
		"number":  func(s *store) { _ = s.stable().SetUint64([]byte("x"), 1) },
		"restart": func(s *store) { _ = s.logs().DeleteRange(1, 10); _ = s.logs().StoreLogs(entries(50, 50, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := (&place{storeConfig: storeConfig{ID: "n1", Cell: "c"}}).founded(t)
			store1(t, s, entries(2, 10, 1))
			if !exits(func() { f(s) }) || s.err() == nil {
				t.Error("the store went on")
			}
		})
	}
}

func TestStoreWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &place{storeConfig: storeConfig{ID: "n1", Cell: "c", Slow: 500 * time.Millisecond}}
		s := p.founded(t)
		release := make(chan struct{})
		s.c.Fault = nil
		s.file = slowLog{s.file, release}
		go func() { _ = s.logs().StoreLogs(entries(2, 2, 1)) }()
		synctest.Wait()
		if s.stalled() {
			t.Error("stalled at once")
		}
		time.Sleep(501 * time.Millisecond)
		if !s.stalled() {
			t.Error("not stalled after 501 ms")
		}
		release <- struct{}{}
		synctest.Wait()
		if s.stalled() || s.err() != nil || s.lastIndex() != 2 {
			t.Errorf("stalled %v, %v, last %d after the write", s.stalled(), s.err(), s.lastIndex())
		}

		returned := false
		go func() {
			_ = s.logs().StoreLogs(entries(3, 3, 1))
			returned = true
		}()
		time.Sleep(storeStop + time.Millisecond)
		select {
		case <-p.failed:
		default:
			t.Error("not failed after 10 s")
		}
		release <- struct{}{}
		synctest.Wait()
		if returned || s.lastIndex() != 2 {
			t.Errorf("the write returned %v, last %d after the store failed", returned, s.lastIndex())
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
}

// TestStoreGate shuts the gate: no call returns until it opens, and that time is not the disk's.
func TestStoreGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := new(hook.Gate)
		p := &place{storeConfig: storeConfig{ID: "n1", Cell: "c", Slow: time.Second, Gate: gate}}
		s := p.founded(t)
		gate.Shut()
		var n atomic.Int64
		for _, f := range []func(){
			func() { _ = s.logs().StoreLogs(entries(2, 2, 1)) },
			func() { _ = s.logs().GetLog(1, new(raft.Log)) },
			func() { _ = s.stable().SetUint64([]byte("CurrentTerm"), 2) },
			func() { snapshot(t, s, 1, 1, []byte("x")) },
		} {
			go func() { f(); n.Add(1) }()
		}
		time.Sleep(time.Minute)
		if n.Load() != 0 || s.stalled() || s.err() != nil {
			t.Errorf("%d calls returned, stalled %v, %v", n.Load(), s.stalled(), s.err())
		}
		gate.Open()
		synctest.Wait()
		if n.Load() != 4 {
			t.Errorf("%d calls returned, want 4", n.Load())
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
}

type slowLog struct {
	logFile
	release chan struct{}
}

func (f slowLog) StoreLogs(l []*raft.Log) error {
	<-f.release
	return f.logFile.StoreLogs(l)
}

// nullFSM takes everything and keeps nothing.
type nullFSM struct{}

func (nullFSM) Apply(*raft.Log) any                 { return nil }
func (nullFSM) Snapshot() (raft.FSMSnapshot, error) { return nullSnapshot{}, nil }
func (nullFSM) Restore(r io.ReadCloser) error {
	_, err := io.Copy(io.Discard, r)
	return errors.Join(err, r.Close())
}

type nullSnapshot struct{}

func (nullSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(blob(1, 1000)); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}
func (nullSnapshot) Release() {}

// startRaft runs a real raft of one on the store.
func startRaft(t *testing.T, s *store) (*raft.Raft, raft.Transport) {
	t.Helper()
	addr, tr := raft.NewInmemTransport("h1:1")
	c := raft.DefaultConfig()
	c.LocalID = "n1.x"
	c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 20*time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	c.Logger = hclog.NewNullLogger()
	c.TrailingLogs = 5
	if err := s.found(founding{Epoch: 1, Servers: []raft.Server{{ID: c.LocalID, Address: addr}}}); err != nil {
		t.Fatal(err)
	}
	var r *raft.Raft
	var err error
	if failed := s.run(func() { r, err = raft.NewRaft(c, nullFSM{}, s.logs(), s.stable(), s.snapshots(), tr) }); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	return r, tr
}

// TestStoreRaft runs raft on the store through a compaction and a restart, lets a write of each kind fail under it, and
// shuts it down: that must return, and the process live.
func TestStoreRaft(t *testing.T) {
	for _, op := range []string{"log", "vote", "delete"} {
		t.Run(op, func(t *testing.T) {
			both(t, func(t *testing.T, p *place) {
				synctestOr(t, p.Dir == "", func(t *testing.T) {
					var on atomic.Bool
					p.Fault = func(got string) error {
						if on.Load() && got == op {
							return errInjected
						}
						return nil
					}
					s := p.open(t)
					for range 2 {
						r, _ := startRaft(t, s)
						for !<-r.LeaderCh() {
						}
						for range 20 {
							if err := r.Apply([]byte("x"), 0).Error(); err != nil {
								t.Fatal(err)
							}
						}
						if err := r.Snapshot().Error(); err != nil {
							t.Fatal(err)
						}
						first, last := s.log.ends()
						if first != last-4 {
							t.Fatalf("log is %d..%d", first, last)
						}
						if err := r.Shutdown().Error(); err != nil {
							t.Fatal(err)
						}
						s = p.reopen(t, s)
					}
					r, tr := startRaft(t, s)
					for !<-r.LeaderCh() {
					}
					// Once its main goroutine has ended, raft takes nothing more: only a time-out ends Apply.
					apply := func() { _ = r.Apply([]byte("x"), time.Second) }
					on.Store(true)
					apply()
					switch op {
					case "delete":
						for range 20 {
							apply()
						}
						_ = r.Snapshot()
					case "vote":
						_, other := raft.NewInmemTransport("h9:1")
						other.Connect("h1:1", tr)
						// Raft's deferred answer still leaves, but it must not tell of the term that is not durable.
						var resp raft.AppendEntriesResponse
						err := other.AppendEntries("n1.x", "h1:1", &raft.AppendEntriesRequest{
							RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n9.x"), Addr: []byte("h9:1")}, Term: 99,
						}, &resp)
						if resp.Success || resp.Term >= 99 {
							t.Errorf("a message of a new term was answered with %+v, %v", resp, err)
						}
					}
					if err := <-p.failed; !errors.Is(err, errInjected) {
						t.Errorf("failed with %v", err)
					}
					if err := r.Shutdown().Error(); err != nil {
						t.Error(err)
					}
					if err := s.close(); err != nil {
						t.Error(err)
					}
				})
			})
		})
	}
}

// synctestOr runs f in a bubble if it can be.
func synctestOr(t *testing.T, bubble bool, f func(t *testing.T)) {
	if bubble {
		synctest.Test(t, func(t *testing.T) {
			f(t)
			time.Sleep(time.Minute) // lets raft's last timers go
		})
		return
	}
	f(t)
}

// TestStoreLeaks opens, uses and closes a store many times.
func TestStoreLeaks(t *testing.T) {
	p := places(t)["dir"]
	s := p.founded(t)
	goroutines := runtime.NumGoroutine()
	fds := countFDs(t)
	for i := uint64(2); i < 22; i++ {
		store1(t, s, entries(i, i, 1))
		s = p.reopen(t, s)
	}
	if n := countFDs(t); n > fds {
		t.Errorf("%d descriptors are open, %d at the start", n, fds)
	}
	if err := errors.Join(s.close(), s.close()); err != nil {
		t.Error(err)
	}
	if n := countFDs(t); n > fds-2 {
		t.Errorf("%d descriptors are open after close, %d before", n, fds)
	}
	for start := time.Now(); time.Since(start) < 5*time.Second; {
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d goroutines, %d at the start", runtime.NumGoroutine(), goroutines)
}
