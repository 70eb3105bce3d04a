package chubby

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// What Options.Sync means for the log, and how the end of a machine is told from the end of a process.
//
// SyncAlways syncs each append before it is acknowledged. Under the two relaxed policies an append has reached the kernel
// when it is acknowledged: it outlives the process, whatever ends that, but not the machine. Term, vote, identity,
// snapshots and deletions are always synced. What the machine's end took along was promised to others, by a node that
// would not know: so before the first relaxed append log.db notes this run of the machine, durably, and a clean close
// takes the note away after everything was synced. A directory with the note of another run has lost its disk: Open
// refuses it.

// keyBoot is the record in log.db that says whether entries may be in the kernel only. Do not rename.
var keyBoot = []byte("boot")

// syncInterval is SyncEverySecond's second.
const syncInterval = time.Second

// bootRecord is the record under keyBoot. The states reach the disk: do not renumber.
type bootRecord struct {
	state byte
	boot  string // with bootOpen
}

const (
	bootClean = iota // everything that was acknowledged is on the disk; also if there is no record
	bootOpen         // it is there or in the kernel, while this run of the machine lasts
	bootLost         // the kernel could not write some of it
)

func (r bootRecord) encode() []byte {
	return sealRecord(append([]byte{storeFormat, r.state}, r.boot...))
}

func decodeBoot(b []byte) (r bootRecord, ok bool) {
	if b, ok = openRecord(b); !ok || len(b) < 2 || b[0] != storeFormat || b[1] > bootLost || b[1] != bootOpen && len(b) > 2 {
		return bootRecord{}, false
	}
	return bootRecord{b[1], string(b[2:])}, true
}

func readBoot(log logFile) (bootRecord, error) {
	b, err := log.Get(keyBoot)
	if err != nil && err.Error() != keyNotFound.Error() {
		return bootRecord{}, fmt.Errorf("read record %q: %w", keyBoot, err)
	}
	if err != nil || b == nil {
		return bootRecord{}, nil
	}
	r, ok := decodeBoot(b)
	if !ok {
		return bootRecord{}, corruptf(logFileName, "record %q has no known form", keyBoot)
	}
	return r, nil
}

// checkBoot refuses a log that may lack acknowledged entries, unless it may be lossy, and reports whether it may lack
// some. boot is this run of the machine.
func checkBoot(log logFile, boot string, lossy bool) (lacks bool, err error) {
	r, err := readBoot(log)
	switch {
	case err != nil || r.state == bootClean || r.state == bootOpen && boot != "" && r.boot == boot:
		return false, err
	case lossy:
		return true, nil
	case r.state == bootLost:
		return false, corruptf(logFileName, "the disk failed to take entries that had been acknowledged, which Options.Sync allowed; the node counts as lost")
	case boot == "":
		return false, corruptf(logFileName, "the node was not closed, Options.Sync allowed entries to be in the kernel only, and this machine does not tell whether it was started again since (on Linux /proc tells)")
	}
	return false, corruptf(logFileName, "the machine was started again and the node had not been closed: entries that had been acknowledged may be missing, which Options.Sync allowed; the node counts as lost")
}

// syncOnDisk is the policy that can be kept in a directory. Without a name for the machine's run nobody could tell, after
// the process ended, whether entries are missing.
func (c *storeConfig) syncOnDisk() SyncPolicy {
	if c.Sync != SyncAlways && c.Boot == "" {
		c.Logger.Warn("this machine does not tell one start of it from another, so every write is synced as with SyncAlways")
		return SyncAlways
	}
	return c.Sync
}

// boot keeps the policy of one store.
type boot struct {
	s        *store
	unsynced atomic.Bool // something was appended since the last sync
	was      bootRecord  // found at open
	entered  bool        // the note is there
	stop     chan struct{}
	syncer   sync.WaitGroup
}

func (b *boot) init(s *store) { b.s, b.stop = s, make(chan struct{}) }

func (b *boot) load() (err error) {
	b.was, err = readBoot(b.s.file)
	return err
}

// lossy reports whether the log may lack entries that its own records speak of.
func (b *boot) lossy() bool { return b.s.c.Lossy && b.was.state != bootClean }

// forgive takes the note away from a log that was opened lossy. It is for Recover, when the node has become another one,
// in a new epoch, which has acknowledged nothing yet.
func (b *boot) forgive() error {
	if !b.lossy() {
		return nil
	}
	return b.note(bootRecord{state: bootClean})
}

// enter writes the note, or takes away that of an earlier policy.
func (b *boot) enter() error {
	s := b.s
	if b.lossy() {
		return nil // until forgive, if that comes
	}
	now := bootRecord{state: bootClean}
	if s.c.Sync != SyncAlways {
		now = bootRecord{bootOpen, s.c.Boot}
	}
	if b.was != now {
		if err := b.note(now); err != nil {
			return err
		}
	}
	b.entered = now.state == bootOpen
	return nil
}

// start begins to sync every second, if that is the policy. Leave ends it.
func (b *boot) start() {
	if b.s.c.Sync == SyncEverySecond {
		b.syncer.Go(b.run)
	}
}

// note writes a record. Before it may say that all is on the disk, all is brought there.
func (b *boot) note(r bootRecord) error {
	return b.s.write("meta", func() error {
		if r.state == bootClean {
			if err := b.s.file.Sync(); err != nil {
				return err
			}
		}
		return b.s.file.Set(keyBoot, r.encode())
	})
}

// run syncs the log once a second, if there is something to sync, until leave or until the store fails.
func (b *boot) run() {
	tick := time.NewTicker(syncInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.stop:
			return
		}
		// An append sets the mark when it has reached the kernel, so what sets it after this waits for the next sync.
		if !b.unsynced.Swap(false) {
			continue
		}
		if b.s.write("sync", b.s.file.Sync) != nil {
			return // the store has failed
		}
	}
}

// leave ends the goroutine, and takes the note away if everything could be brought to the disk. It is for close.
func (b *boot) leave() error {
	close(b.stop)
	b.syncer.Wait()
	if !b.entered || b.s.err() != nil {
		return nil
	}
	if err := b.s.fault("meta"); err != nil {
		return err
	}
	return guard(func() error {
		if err := b.s.file.Sync(); err != nil {
			return err
		}
		return b.s.file.Set(keyBoot, bootRecord{state: bootClean}.encode())
	})
}
