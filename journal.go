package chubby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/OneOfOne/xxhash"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// journal stands in front of log.db and takes what raft appends: one write of a few pages into a file whose blocks are
// there already, and one flush, where bolt needs two of each and a walk through its tree. A goroutine of its own moves
// the entries into log.db behind the acknowledgements, hundreds at a time. The log is what both hold.
//
// The file has two sides. Records fill one of them while those of the other move; a side is written again only when all
// its records are in log.db, synced. Each record holds the entries of one append and starts on a page of its own, so that
// no write touches a page with bytes that were acknowledged before. See docs/format.md for the bytes, openJournal for
// how a crash is told from damage, and docs/architecture.md for why nothing is lost.
//
// Under a relaxed SyncPolicy records are written and not synced; a side is, before the other one is written again, and so
// is a reset. See docs/architecture.md for what a machine's end then leaves.
//
// Suffixes are deleted in log.db only, after everything has moved there and a reset record has said so: what stands
// before it in the file counts no more.
type journal struct {
	logFile // log.db, for everything but the entries

	journalOptions
	file journalFile
	id   uint64
	side int64 // bytes of one side

	// turn holds one value while nobody appends or deletes a suffix. It is a channel and not a mutex because its holder
	// works on the disk. It guards the next four.
	turn    chan struct{}
	current int64  // the side in use, 0 or 1
	used    int64  // bytes of it
	since   uint64 // number of its first record
	newest  uint64 // number of the newest record

	mu struct {
		sync.Mutex
		waiting []*journalRecord // not in log.db, ascending and without a gap
		moved   uint64           // records up to this number are in log.db
		wanted  uint64           // and up to this one they should be
		change  chan struct{}    // closed and replaced when moved or err changes
		err     error            // why nothing moves any more
		closed  bool
	}
	work chan struct{} // cap 1: wanted or closed has changed
	done chan struct{} // closed when the mover has ended
}

// journalOptions says how a journal behaves. The zero value syncs every append and tells nobody of failures.
type journalOptions struct {
	relaxed bool                  // appends are not synced
	lossy   bool                  // open what a machine's end left of a relaxed journal
	boot    string                // this run of the machine
	fault   func(op string) error // called before entries are moved; its error is the disk's; nil = never
	fail    func(error)           // called when entries cannot be moved; must not block
}

// journalFile is the file under a journal.
type journalFile interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Sync() error // makes written data durable; the file never changes its size
	Close() error
}

// journalRecord is one append, from its acknowledgement until it is in log.db.
type journalRecord struct {
	number uint64
	bytes  int64
	logs   []*raft.Log // own copies
	side   int64       // where it was found at open
	at     int64       // and how far from that side's start
}

func (r *journalRecord) first() uint64 { return r.logs[0].Index }
func (r *journalRecord) last() uint64  { return r.logs[len(r.logs)-1].Index }

const (
	journalSide = 2 << 20
	// moveBytes bounds one transaction of the mover: a vote that comes meanwhile waits for it.
	moveBytes = 1 << 20
)

// run is the mover.
func (j *journal) run() {
	defer close(j.done)
	for range j.work {
		for {
			batch, ok := j.next()
			if !ok {
				break
			}
			last := batch[len(batch)-1].number
			err := j.move(batch)
			j.mu.Lock()
			if err != nil {
				j.mu.err = fmt.Errorf("move entries from the journal: %w", err)
			} else {
				clear(j.mu.waiting[:len(batch)])
				j.mu.waiting = j.mu.waiting[len(batch):]
				j.mu.moved = last
			}
			err = j.mu.err
			close(j.mu.change)
			j.mu.change = make(chan struct{})
			j.mu.Unlock()
			if err != nil {
				j.fail(err)
				return
			}
		}
		j.mu.Lock()
		closed := j.mu.closed
		j.mu.Unlock()
		if closed {
			return
		}
	}
}

// next gives the records that should move now, in one transaction.
func (j *journal) next() (batch []*journalRecord, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var size int64
	n := 0
	for n < len(j.mu.waiting) {
		r := j.mu.waiting[n]
		if r.number > j.mu.wanted || n > 0 && size+r.bytes > moveBytes {
			break
		}
		size += r.bytes
		n++
	}
	return j.mu.waiting[:n:n], n > 0
}

func (j *journal) move(batch []*journalRecord) error {
	if j.fault != nil {
		if err := j.fault("move"); err != nil {
			return err
		}
	}
	var logs []*raft.Log
	for _, r := range batch {
		logs = append(logs, r.logs...)
	}
	return guard(func() error { return j.logFile.StoreLogs(logs) })
}

// want asks for the records up to number in log.db.
func (j *journal) want(number uint64) {
	j.mu.Lock()
	j.mu.wanted = max(j.mu.wanted, number)
	j.mu.Unlock()
	select {
	case j.work <- struct{}{}:
	default:
	}
}

// drain waits until the records up to number are in log.db.
func (j *journal) drain(number uint64) error {
	asked := false
	for {
		j.mu.Lock()
		moved, change, err := j.mu.moved, j.mu.change, j.mu.err
		j.mu.Unlock()
		if err != nil || moved >= number {
			return err
		}
		if !asked {
			asked = true
			j.want(number)
		}
		<-change
	}
}

// StoreLog appends one entry; see StoreLogs.
func (j *journal) StoreLog(e *raft.Log) error { return j.StoreLogs([]*raft.Log{e}) }

// StoreLogs appends entries, all or none, and returns when they are synced, or relaxed when the kernel has them. What is so large that a copy costs more than
// bolt's second flush goes to log.db at once.
func (j *journal) StoreLogs(entries []*raft.Log) error {
	<-j.turn
	defer func() { j.turn <- struct{}{} }()
	size := int64(journalHeader + 4)
	for _, e := range entries {
		size += int64(wire.LogSize(e))
	}
	if journalPages(size) > j.side/4 {
		if err := j.drain(j.newest); err != nil {
			return err
		}
		return j.logFile.StoreLogs(entries)
	}
	record := wire.AppendLogs(make([]byte, journalHeader, journalPages(size)), entries)
	logs, err := wire.DecodeLogs(record[journalHeader:])
	if err == nil {
		err = j.append(journalEntries, record)
	}
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.mu.waiting = append(j.mu.waiting, &journalRecord{number: j.newest, bytes: size, logs: logs})
	return nil
}

// append writes a record, whose header is still empty, and syncs it unless it may not. The caller has the turn.
func (j *journal) append(kind byte, record []byte) error {
	size := journalPages(int64(len(record)))
	if j.used+size > j.side {
		// The other side is free when what was written there before has moved.
		if err := j.drain(j.since - 1); err != nil {
			return err
		}
		if j.relaxed {
			// A crash may tear what is written from here on, and with it what still tells where the present side began.
			if err := j.Sync(); err != nil {
				return err
			}
		}
		j.want(j.newest)
		j.current, j.used, j.since = 1-j.current, 0, j.newest+1
	}
	j.mu.Lock()
	err := j.mu.err
	j.mu.Unlock()
	if err != nil {
		return err
	}
	sealJournalRecord(record, j.id, j.newest+1, kind)
	at := journalPage + j.current*j.side + j.used
	// Whole pages, so that the kernel need not read what it overwrites.
	if _, err := j.file.WriteAt(record[:size:size], at); err != nil {
		return fmt.Errorf("%s: %w", journalFileName, err)
	}
	if !j.relaxed || kind == journalReset {
		if err := j.Sync(); err != nil {
			return err
		}
	}
	j.newest++
	j.used += size
	return nil
}

// Sync makes durable what was appended. A kernel that could not write a page forgets that it had to: then nothing that
// was acknowledged without a sync is certain to be there at the next open, and log.db notes it.
func (j *journal) Sync() error {
	err := j.file.Sync()
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s: %w", journalFileName, err)
	if j.relaxed {
		err = errors.Join(err, guard(func() error { return j.logFile.Set(keyBoot, bootRecord{state: bootLost}.encode()) }))
	}
	return err
}

// DeleteRange deletes entries from one end of the log, after all have moved to log.db.
func (j *journal) DeleteRange(from, to uint64) error {
	last, err := j.LastIndex()
	if err != nil {
		return err
	}
	if to >= last {
		return j.deleteSuffix(from, to)
	}
	// Of a log that loses a prefix something is left, in log.db now: at the next open, what the journal holds below the
	// end of log.db counts as moved, deleted or not. So appends need not wait.
	j.mu.Lock()
	number := j.mu.moved
	if n := len(j.mu.waiting); n > 0 {
		number = j.mu.waiting[n-1].number
	}
	j.mu.Unlock()
	if err := j.drain(number); err != nil {
		return err
	}
	return j.logFile.DeleteRange(from, to)
}

func (j *journal) deleteSuffix(from, to uint64) error {
	<-j.turn
	defer func() { j.turn <- struct{}{} }()
	if err := j.drain(j.newest); err != nil {
		return err
	}
	// Without it the next open would take the deleted entries for ones that have not moved.
	if err := j.append(journalReset, make([]byte, journalHeader, journalPage)); err != nil {
		return err
	}
	j.mu.Lock()
	j.mu.moved = j.newest
	j.mu.Unlock()
	return j.logFile.DeleteRange(from, to)
}

// GetLog gives the entry at index, or raft.ErrLogNotFound. It shares the entry's bytes.
func (j *journal) GetLog(index uint64, e *raft.Log) error {
	j.mu.Lock()
	if w := j.mu.waiting; len(w) > 0 && w[0].first() <= index && index <= w[len(w)-1].last() {
		lo, hi := 0, len(w)
		for hi-lo > 1 {
			if mid := (lo + hi) / 2; w[mid].first() <= index {
				lo = mid
			} else {
				hi = mid
			}
		}
		*e = *w[lo].logs[index-w[lo].first()]
		j.mu.Unlock()
		return nil
	}
	j.mu.Unlock()
	// What has moved since is there.
	return j.logFile.GetLog(index, e)
}

// FirstIndex gives the index of the oldest entry, 0 if there is none.
func (j *journal) FirstIndex() (uint64, error) {
	waiting, _ := j.ends()
	first, err := j.logFile.FirstIndex()
	if err == nil && first == 0 {
		first = waiting
	}
	return first, err
}

// LastIndex gives the index of the newest entry, 0 if there is none.
func (j *journal) LastIndex() (uint64, error) {
	if _, last := j.ends(); last > 0 {
		return last, nil
	}
	return j.logFile.LastIndex()
}

// ends gives the indexes of the entries that wait, 0 and 0 if there are none.
func (j *journal) ends() (first, last uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if n := len(j.mu.waiting); n > 0 {
		return j.mu.waiting[0].first(), j.mu.waiting[n-1].last()
	}
	return 0, 0
}

// Close moves what is left, so that log.db is the whole log, ends the mover and closes both files.
func (j *journal) Close() error {
	<-j.turn // kept: nobody appends any more
	err := j.drain(j.newest)
	j.mu.Lock()
	j.mu.closed = true
	j.mu.Unlock()
	select {
	case j.work <- struct{}{}:
	default:
	}
	<-j.done
	if e := j.file.Close(); err == nil {
		err = e
	}
	if e := j.logFile.Close(); err == nil {
		err = e
	}
	return err
}

// The bytes of the file: a page with a header, then the sides. A record is a header, its payload, and zeros to the end of
// its last page.
const (
	journalFormat  = 1
	journalPage    = 4096
	journalHeader  = 32 // id 8, checksum 8, number 8, length of the payload 4, kind 1, zeros 3
	journalEntries = 1  // kinds of records; do not renumber
	journalReset   = 2
)

func journalPages(size int64) int64 { return (size + journalPage - 1) / journalPage * journalPage }

func sealJournalRecord(record []byte, id, number uint64, kind byte) {
	binary.BigEndian.PutUint64(record, id)
	binary.BigEndian.PutUint64(record[16:], number)
	binary.BigEndian.PutUint32(record[24:], uint32(len(record)-journalHeader))
	record[28] = kind
	binary.BigEndian.PutUint64(record[8:], xxhash.Checksum64S(record[16:], id))
}
