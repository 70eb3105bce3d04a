package chubby

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
)

// storeConfig says where a node keeps its state, and how that place behaves.
type storeConfig struct {
	Dir      string                // "" = memory
	Disk     *hook.Disk            // the memory when Dir is ""; nil = a new private one
	ID, Cell string                // written at the first open, checked at later ones
	Whoever  bool                  // there is a state; ID and Cell are what it says
	Sync     SyncPolicy            // of appends to the log
	Boot     string                // this run of the machine, "" = not known; a memory disk knows its own
	Lossy    bool                  // take what is left of a log whose newest entries a machine's end took along; see forgive
	Gate     *hook.Gate            // each operation waits at it before it returns; nil = never
	Fault    func(op string) error // called before each write; its error is the disk's; nil = never
	Slow     time.Duration         // stalled is true while one write takes longer; 0 = never
	Stop     time.Duration         // a write that takes longer fails the store; 0 = 10 s
	Fail     func(error)           // called once, with why the store is unusable; must not block; may be nil
	Logger   *slog.Logger          // nil discards
}

const storeStop = 10 * time.Second

// logFile holds log entries and a few records, each change synced before it returns; but under a relaxed SyncPolicy
// appends only reach the kernel. raft-boltdb's store is one. Keys and entries given to it, and records it gives, are the
// caller's.
type logFile interface {
	raft.LogStore
	// Sync makes durable what StoreLogs has left to the kernel under a relaxed policy.
	Sync() error
	Get(key []byte) ([]byte, error) // keyNotFound if there is none
	Set(key, value []byte) error
	Close() error
}

// snapFile holds snapshots in chunks. All methods are safe for concurrent use.
type snapFile interface {
	// list gives every snapshot in the file; those without meta are incomplete.
	list() ([]snapRecord, error)
	// append writes chunks of a snapshot, the first of them under the number from. It makes the snapshot if needed.
	append(id string, from uint64, chunks [][]byte) error
	// complete writes the meta of a snapshot and syncs it and all its chunks.
	complete(id string, meta []byte) error
	// remove deletes a snapshot, or does nothing if there is none.
	remove(id string) error
	// chunk gives a copy of one chunk, nil if there is none.
	chunk(id string, number uint64) ([]byte, error)
	// reset makes the file usable again after an operation failed.
	reset() error
	close() error
}

type snapRecord struct {
	id   string
	meta []byte // nil: incomplete
}

// store is the durable state of one node: raft's log, vote and snapshots, who the node is, and how its cell was founded.
//
// Any failed write, and any damage found, ends it: Fail is called once and nothing touches the disk again. Calls that raft
// makes do not return then, their goroutine ends (runtime.Goexit): raft panics on some storage errors and goes on wrongly
// after others, while its goroutines' deferred calls leave it in a state that Shutdown can wait for. All methods are safe
// for concurrent use.
type store struct {
	c     storeConfig
	file  logFile
	watch watchdog
	log   logStore
	vote  stableStore
	snap  snapStore
	boot  boot

	failed atomic.Pointer[error] // why nothing works any more; nil = it works

	meta struct {
		sync.Mutex
		identityRecord
		created bool
	}

	closing struct {
		sync.Once
		done chan struct{} // closed by the goroutine that closes the files
		err  error         // set before done is closed
	}
}

// openStore opens the state of a node, or makes it. It returns when what it found has been checked and what it made is
// synced.
//
// It returns ErrInUse when somebody else has it open for longer than about a second, ErrWrongCell when it is that of
// another node or cell, ErrCorrupt when it is not what was written, and the file system's errors. It never calls Fail.
func openStore(c storeConfig) (*store, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Stop <= 0 {
		c.Stop = storeStop
	}
	if c.Fail == nil {
		c.Fail = func(error) {}
	}
	var s *store
	var err error
	var file logFile
	var snaps snapFile
	var created bool
	first := firstRecords(c)
	if c.Dir != "" {
		// Nothing fails in the background before something is stored, through s.
		c.Sync = c.syncOnDisk()
		file, snaps, created, err = openDir(c.Dir, first, journalOptions{
			relaxed: c.Sync != SyncAlways, lossy: c.Lossy, boot: c.Boot, fault: c.Fault, fail: func(err error) { _ = s.fail(err) },
		})
	} else {
		file, snaps, created, err = openDisk(&c, first)
	}
	if err != nil {
		return nil, err
	}
	s = newStore(c, file, snaps)
	s.meta.created = created
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.closeFiles())
	}
	s.boot.start()
	return s, nil
}

func newStore(c storeConfig, file logFile, snaps snapFile) *store {
	s := &store{c: c, file: file}
	s.watch = watchdog{slow: c.Slow, stop: c.Stop, late: func(op string) {
		s.fail(fmt.Errorf("storage operation %q takes longer than %v", op, c.Stop))
	}}
	s.log.init(s)
	s.vote.s = s
	s.snap.init(s, snaps)
	s.boot.init(s)
	s.closing.done = make(chan struct{})
	return s
}

// load reads and checks everything, and finishes what a crash interrupted.
func (s *store) load() error {
	if err := s.loadIdentity(); err != nil {
		return err
	}
	if err := guard(s.vote.load); err != nil {
		return err
	}
	if err := guard(s.snap.load); err != nil {
		return err
	}
	if err := guard(s.boot.load); err != nil {
		return err
	}
	if err := guard(s.log.load); err != nil {
		return err
	}
	if err := s.boot.enter(); err != nil { // before the first append
		return err
	}
	return s.resumeFounding()
}

// logs gives raft its log.
func (s *store) logs() raft.LogStore { return &s.log }

// stable gives raft its vote.
func (s *store) stable() raft.StableStore { return &s.vote }

// snapshots gives raft its snapshots.
func (s *store) snapshots() raft.SnapshotStore { return &s.snap }

// stalled reports whether a write to the log or the vote has been running for longer than Slow. Heartbeats of a leader
// that cannot write only keep others from taking over.
func (s *store) stalled() bool { return s.watch.stalled() }

// err gives why the store is unusable, nil while it is not.
func (s *store) err() error {
	if p := s.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// fail makes the store unusable, and the node stop. Only the first cause counts.
func (s *store) fail(err error) error {
	if s.failed.CompareAndSwap(nil, &err) {
		s.c.Logger.Error("storage failed", "err", err)
		s.c.Fail(err)
	}
	return s.err()
}

// write runs one write to the log file. Its error is final: nobody knows what a failed write or fsync left behind, and
// trying again may report success for bytes that the kernel has already dropped.
func (s *store) write(op string, f func() error) error {
	err := s.err()
	if err == nil {
		err = s.fault(op)
		if err == nil {
			w := s.watch.begin(op, op != "sync") // nobody waits for a sync beside the writes
			err = guard(f)
			s.watch.end(w)
		}
		if err != nil {
			err = s.fail(fmt.Errorf("write %s: %w", op, err))
		}
	}
	s.c.Gate.Wait()
	if err == nil {
		// A write that the watchdog gave up on may have returned well after all, but the node is already stopping.
		err = s.err()
	}
	return err
}

func (s *store) fault(op string) error {
	if s.c.Fault == nil {
		return nil
	}
	return s.c.Fault(op)
}

// must ends the calling goroutine, which is one of raft's, if err is not nil.
func must(err error) {
	if err != nil {
		runtime.Goexit()
	}
}

// run calls f in a goroutine of its own and waits for it. It returns why the store failed, also when that ended f's
// goroutine midway. Use it around what calls raft's storage on behalf of a caller: raft.NewRaft.
func (s *store) run(f func()) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	return s.err()
}

// close gives up ownership and releases every file. Whoever uses the store must have stopped. It is idempotent, and
// waits no longer than Stop for a disk that does not answer: it then returns an error, and what hangs goes on hanging.
func (s *store) close() error {
	s.closing.Do(func() {
		go func() {
			defer close(s.closing.done)
			err := errors.Join(s.log.seal(), s.boot.leave())
			closed := ErrClosed
			s.failed.CompareAndSwap(nil, &closed)
			s.closing.err = errors.Join(err, s.closeFiles())
		}()
	})
	t := time.NewTimer(s.c.Stop)
	defer t.Stop()
	select {
	case <-s.closing.done:
		return s.closing.err
	case <-t.C:
		return fmt.Errorf("close: the disk has not answered for %v", s.c.Stop)
	}
}

func (s *store) closeFiles() error {
	return guard(func() error { return errors.Join(s.snap.file.close(), s.file.Close()) })
}
