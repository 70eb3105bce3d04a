package chubby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

const (
	boltTimeout = time.Second
	tempSuffix  = ".tmp"
)

// Names in the files: the first two are raft-boltdb's.
var (
	boltLogs = []byte("logs")
	boltConf = []byte("conf")
	boltMeta = []byte("meta") // in a snapshot's bucket, beside its chunks, whose keys have 8 bytes
)

func boltOptions() *bbolt.Options {
	o := &bbolt.Options{
		Timeout: boltTimeout,
		// The list of free pages is found again by a scan at open, instead of being written at each commit.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		NoStatistics:   true,
	}
	// A larger map costs address space only, and saves remapping, which waits for all readers. On Windows the file
	// itself would take that size.
	if strconv.IntSize == 64 && runtime.GOOS != "windows" {
		o.InitialMmapSize = 256 << 20
	}
	return o
}

func isBoltClosed(err error) bool { return errors.Is(err, bolterrors.ErrDatabaseNotOpen) }

// boltError makes ErrInUse of bolt's time-out on its file lock.
func boltError(path string, err error) error {
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("%w: %s", ErrInUse, filepath.Dir(path))
	}
	return err
}

// makeDir makes a directory, and those it is in, so that they are still there after a power failure.
func makeDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err == nil {
		return syncDir(filepath.Dir(dir))
	} else if !errors.Is(err, fs.ErrNotExist) {
		if info, statErr := os.Stat(dir); statErr == nil && info.IsDir() {
			return nil
		}
		return err
	}
	if err := makeDir(filepath.Dir(dir)); err != nil {
		return err
	}
	return makeDir(dir)
}

// openDir takes a directory: log.db, whose lock is the ownership of all, the journal in front of it, and snap.db. If
// log.db is not there it makes the files, log.db last but for the journal.
func openDir(dir string, first map[string][]byte, o journalOptions) (logFile, snapFile, bool, error) {
	if err := makeDir(dir); err != nil {
		return nil, nil, false, err
	}
	logPath, snapPath := filepath.Join(dir, logFileName), filepath.Join(dir, snapFileName)
	created := false
	if _, err := os.Stat(logPath); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(dir, restoreTemp)); err == nil {
			return nil, nil, false, corruptf(restoreTemp, "a Restore is under way, or died")
		}
		if created, err = createFiles(dir, logPath, snapPath, first); err != nil {
			return nil, nil, false, err
		}
	} else if err != nil {
		return nil, nil, false, err
	}
	visit, end := logFileChecker()
	if err := checkBolt(logPath, visit); err != nil {
		return nil, nil, false, err
	}
	if err := end(); err != nil {
		return nil, nil, false, err
	}
	log, err := openBoltLog(logPath)
	if err != nil {
		return nil, nil, false, err
	}
	snap, err := openBoltSnap(snapPath)
	if err == nil {
		// Only now: before, they may be those of somebody who is making this directory too.
		err = removeTemps(dir)
	}
	if err == nil {
		// Before the journal is opened, which moves what is in it.
		err = guard(func() (err error) {
			o.lossy, err = checkBoot(log, o.boot, o.lossy)
			return err
		})
	}
	var journal *journal
	if err == nil {
		journal, err = openJournalFile(filepath.Join(dir, journalFileName), log, o)
	}
	if err != nil {
		if snap != nil {
			err = errors.Join(err, snap.close())
		}
		return nil, nil, false, errors.Join(err, log.Close())
	}
	return journal, snap, created, nil
}

func openBoltLog(path string) (log *raftboltdb.BoltStore, err error) {
	err = guard(func() (err error) {
		log, err = raftboltdb.New(raftboltdb.Options{Path: path, BoltOptions: boltOptions()})
		return boltError(path, err)
	})
	return log, err
}

// createFiles makes the files of a new directory, or finds them made by somebody else at the same time.
func createFiles(dir, logPath, snapPath string, first map[string][]byte) (created bool, err error) {
	if _, err := os.Stat(snapPath); err == nil {
		// Left by a crash in here, unless there is something in it.
		used := false
		if err := checkBolt(snapPath, func(bucket, _ []byte) error {
			used = used || bucket != nil
			return nil
		}); err != nil {
			return false, err
		}
		if used {
			return false, corruptf(logFileName, "the file is missing beside %s", snapFileName)
		}
	} else if _, err := createBolt(dir, snapPath, func(path string) error {
		db, err := bbolt.Open(path, 0o600, boltOptions())
		if err != nil {
			return err
		}
		// The first commit replaces the empty list of free pages that bolt starts a file with.
		return errors.Join(db.Update(func(*bbolt.Tx) error { return nil }), db.Close())
	}); err != nil {
		return false, err
	}
	return createBolt(dir, logPath, func(path string) error {
		log, err := openBoltLog(path)
		if err != nil {
			return err
		}
		for _, key := range [][]byte{keyIdentity, keyVote, keyMark} {
			err = errors.Join(err, log.Set(key, first[string(key)]))
		}
		return errors.Join(err, log.Close())
	})
}

// createBolt has f make a file under a temporary name, and gives it its own when it is complete and synced: bolt does
// not survive a crash while it makes a file. It reports false when there is such a file by now.
func createBolt(dir, path string, f func(path string) error) (bool, error) {
	t, err := os.CreateTemp(dir, filepath.Base(path)+".*"+tempSuffix)
	if err != nil {
		return false, err
	}
	temp := t.Name()
	defer func() { _ = os.Remove(temp) }() // not there any more, or of no use to anybody
	err = errors.Join(t.Close(), f(temp), syncPath(temp))
	if err == nil {
		// A link, unlike a rename, never replaces a file that somebody else has just made, and locked.
		err = os.Link(temp, path)
	}
	if err == nil {
		return true, syncDir(dir)
	}
	if _, statErr := os.Lstat(path); statErr == nil {
		return false, nil // and whoever made it has perhaps removed ours
	}
	var link *os.LinkError
	if !errors.As(err, &link) {
		return false, err
	}
	// Not every file system has links.
	if err := os.Rename(temp, path); err != nil {
		return false, err
	}
	return true, syncDir(dir)
}

func syncPath(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // has no such thing
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// removeTemps removes what crashes left of files in the making.
func removeTemps(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasSuffix(name, tempSuffix) && (strings.HasPrefix(name, logFileName+".") || strings.HasPrefix(name, snapFileName+".")) {
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return os.RemoveAll(filepath.Join(dir, restoreTemp))
}

// boltSnapFile is a snapFile in bolt: a bucket for each snapshot.
type boltSnapFile struct {
	path string

	mu sync.RWMutex // held for reading by every transaction, for writing while the file is opened anew
	db *bbolt.DB    // nil: it could not be opened again
}

func openBoltSnap(path string) (*boltSnapFile, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, corruptf(snapFileName, "the file is missing beside %s", logFileName)
	}
	f := &boltSnapFile{path: path}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *boltSnapFile) open() error {
	if err := checkBolt(f.path, checkSnapKey); err != nil {
		return err
	}
	return guard(func() (err error) {
		f.db, err = bbolt.Open(f.path, 0o600, boltOptions())
		return boltError(f.path, err)
	})
}

func (f *boltSnapFile) update(fn func(tx *bbolt.Tx) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.db == nil {
		return bolterrors.ErrDatabaseNotOpen
	}
	return f.db.Update(fn)
}

func (f *boltSnapFile) view(fn func(tx *bbolt.Tx) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.db == nil {
		return bolterrors.ErrDatabaseNotOpen
	}
	return f.db.View(fn)
}

func (f *boltSnapFile) list() (records []snapRecord, err error) {
	err = f.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
			records = append(records, snapRecord{string(name), slices.Clone(b.Get(boltMeta))})
			return nil
		})
	})
	return records, err
}

func (f *boltSnapFile) append(id string, from uint64, chunks [][]byte) error {
	return f.update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(id))
		if err != nil {
			return err
		}
		b.FillPercent = 1 // chunks come in order and stay
		for i, c := range chunks {
			if err := b.Put(binary.BigEndian.AppendUint64(nil, from+uint64(i)), c); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *boltSnapFile) complete(id string, meta []byte) error {
	return f.update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(id))
		if err != nil {
			return err
		}
		return b.Put(boltMeta, meta)
	})
}

func (f *boltSnapFile) remove(id string) error {
	return f.update(func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket([]byte(id)); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
			return err
		}
		return nil
	})
}

func (f *boltSnapFile) chunk(id string, number uint64) (c []byte, err error) {
	err = f.view(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(id)); b != nil {
			c = slices.Clone(b.Get(binary.BigEndian.AppendUint64(nil, number)))
		}
		return nil
	})
	return c, err
}

// reset opens the file anew and removes incomplete snapshots.
func (f *boltSnapFile) reset() error {
	if err := f.reopen(); err != nil {
		return err
	}
	records, err := f.list()
	for _, r := range records {
		if err == nil && r.meta == nil {
			err = f.remove(r.id)
		}
	}
	return err
}

func (f *boltSnapFile) reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.db != nil {
		db := f.db
		f.db = nil
		if err := db.Close(); err != nil {
			return err
		}
	}
	return f.open()
}

func (f *boltSnapFile) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.db == nil {
		return nil
	}
	db := f.db
	f.db = nil
	return db.Close()
}
