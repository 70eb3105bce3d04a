package chubby

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/OneOfOne/xxhash"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// keyJournal is the record in log.db that names the journal which belongs to it. Do not rename.
var keyJournal = []byte("journal")

var journalMagic = []byte("chbyjrnl")

// openJournalFile opens the journal of a directory whose log.db is log, or makes it: with log.db it is the log. Whoever
// has log.db open owns it.
func openJournalFile(path string, log logFile, o journalOptions) (*journal, error) {
	record, err := log.Get(keyJournal)
	if err != nil && err.Error() != keyNotFound.Error() {
		return nil, fmt.Errorf("read record %q: %w", keyJournal, err)
	}
	if err != nil {
		record = nil
	}
	// Without the record nothing has been written to the file, if there is one.
	flags := os.O_RDWR
	if record == nil {
		flags |= os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, corruptf(journalFileName, "the file is missing beside %s", logFileName)
	}
	if err != nil {
		return nil, err
	}
	var j *journal
	if record == nil {
		j, err = newJournal(dataSyncFile{f}, log, journalSide, o, func() error { return errors.Join(syncPath(path), syncDir(filepath.Dir(path))) })
	} else {
		j, err = openJournal(dataSyncFile{f}, log, record, o)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// dataSyncFile is a file whose Sync need not make its times durable.
type dataSyncFile struct{ *os.File }

func (f dataSyncFile) Sync() error { return dataSync(f.File) }

func startJournal(file journalFile, log logFile, id uint64, side int64, o journalOptions) *journal {
	j := &journal{logFile: log, journalOptions: o, file: file, id: id, side: side,
		turn: make(chan struct{}, 1), work: make(chan struct{}, 1), done: make(chan struct{})}
	j.mu.change = make(chan struct{})
	return j
}

// newJournal makes an empty journal. All its blocks are written once, so that a flush never has to note where they are.
func newJournal(file journalFile, log logFile, side int64, o journalOptions, created func() error) (*journal, error) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	j := startJournal(file, log, binary.BigEndian.Uint64(random[:]), side, o)
	zeros := make([]byte, journalPage+2*side)
	copy(zeros, journalFileHeader(j.id, side))
	if _, err := file.WriteAt(zeros, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", journalFileName, err)
	}
	if err := errors.Join(file.Sync(), created()); err != nil {
		return nil, fmt.Errorf("%s: %w", journalFileName, err)
	}
	// Last: from here on the file must be there.
	if err := guard(func() error { return log.Set(keyJournal, sealRecord(random[:])) }); err != nil {
		return nil, err
	}
	j.since = 1
	j.begin()
	return j, nil
}

// begin starts the mover. All records are in log.db, so both sides are free.
func (j *journal) begin() {
	j.mu.moved = j.newest
	j.turn <- struct{}{}
	go j.run() // until Close
}

func journalFileHeader(id uint64, side int64) []byte {
	b := append([]byte{}, journalMagic...)
	b = append(b, journalFormat)
	b = binary.BigEndian.AppendUint64(b, id)
	b = binary.BigEndian.AppendUint64(b, uint64(side))
	return binary.BigEndian.AppendUint64(b, xxhash.Checksum64(b))
}

// openJournal reads what is in a journal and moves what log.db lacks.
//
// The records that count are those that lead without a gap to the one with the highest number. Older ones, left on pages
// that were not written since, moved long ago: a side is written again only after that. A crash can tear the newest write
// and no other, because each is synced before the next begins; that record was not acknowledged, and is not one now. A
// record that is damaged with another behind it leaves entries that do not follow log.db's, and that is refused.
//
// They go on on the side where the newest record is not: a first one that is torn takes nothing with it that tells of
// deletions.
func openJournal(file journalFile, log logFile, record []byte, o journalOptions) (*journal, error) {
	want, ok := openRecord(record)
	if !ok || len(want) != 8 {
		return nil, corruptf(logFileName, "record %q has a wrong checksum", keyJournal)
	}
	id := binary.BigEndian.Uint64(want)
	side, err := checkJournalHeader(file, id)
	if err != nil {
		return nil, err
	}
	records, err := scanJournal(file, id, side)
	if err != nil {
		return nil, err
	}
	counted := records
	if o.lossy {
		counted = survivors(records)
	}
	if err := guard(func() error { return recoverEntries(log, countingEntries(counted)) }); err != nil {
		return nil, err
	}
	j := startJournal(file, log, id, side, o)
	if n := len(records); n > 0 {
		j.newest, j.current = records[n-1].number, 1-records[n-1].side
	}
	j.since = j.newest + 1
	// A process that ended may have left what it wrote in the kernel.
	if err := j.Sync(); err != nil {
		return nil, err
	}
	if o.lossy {
		// What is left behind a gap is in nobody's log.
		if err := j.append(journalReset, make([]byte, journalHeader, journalPage)); err != nil {
			return nil, err
		}
	}
	j.begin()
	return j, nil
}

// countingEntries gives the entries of the records that count.
func countingEntries(records []*journalRecord) (logs []*raft.Log) {
	for i, r := range records {
		if i > 0 && r.number != records[i-1].number+1 || r.logs == nil { // r.logs is nil in a reset
			logs = nil
		}
		logs = append(logs, r.logs...)
	}
	return logs
}

// survivors gives, of the intact records in a relaxed journal, those whose entries are the log, or were: the others come
// behind a record that the machine's end took along, or are older. Those of a side follow each other from its start. The
// side that was in use begins where the other one, which was synced before, ends; if its first record is lost, the other
// one tells alone.
func survivors(records []*journalRecord) []*journalRecord {
	var runs [2][]*journalRecord
	for _, r := range records { // ascending by number, so in the order of their places within what was written in one go
		run := &runs[r.side]
		if r.at == 0 {
			*run = append((*run)[:0:0], r)
		} else if n := len(*run); n > 0 && r.number == (*run)[n-1].number+1 && r.at == (*run)[n-1].at+journalPages((*run)[n-1].bytes) {
			*run = append(*run, r)
		}
	}
	a, b := runs[0], runs[1]
	if len(b) == 0 || len(a) > 0 && a[0].number > b[0].number {
		a, b = b, a
	}
	if len(a) > 0 && len(b) > 0 && a[len(a)-1].number+1 == b[0].number {
		return append(a, b...)
	}
	return b
}

func checkJournalHeader(file journalFile, id uint64) (side int64, err error) {
	var n [8]byte
	b := make([]byte, len(journalFileHeader(0, 0)))
	if _, err := file.ReadAt(b, 0); err != nil {
		return 0, corruptf(journalFileName, "header: %v", err)
	}
	copy(n[:], b[len(journalMagic)+1+8:])
	side = int64(binary.BigEndian.Uint64(n[:]))
	if !slices.Equal(b, journalFileHeader(id, side)) || side < journalPage || side > 1<<30 || side%journalPage != 0 {
		return 0, corruptf(journalFileName, "the header is damaged, or that of another directory's")
	}
	return side, nil
}

// scanJournal gives the intact records in the order of their numbers.
func scanJournal(file io.ReaderAt, id uint64, side int64) (records []*journalRecord, err error) {
	for s := range int64(2) {
		b := make([]byte, side) // records will point into it
		if _, err := file.ReadAt(b, journalPage+s*side); err != nil {
			return nil, corruptf(journalFileName, "side %d: %v", s, err)
		}
		for at := int64(0); at < side; at += journalPage {
			if r, ok := parseJournalRecord(b[at:], id); ok {
				r.side, r.at = s, at
				records = append(records, r)
			}
		}
	}
	slices.SortFunc(records, func(a, b *journalRecord) int { return cmp.Compare(a.number, b.number) })
	return records, nil
}

// parseJournalRecord reads the record at the start of b, if there is an intact one. A reset has no logs.
func parseJournalRecord(b []byte, id uint64) (*journalRecord, bool) {
	if len(b) < journalHeader || binary.BigEndian.Uint64(b) != id {
		return nil, false
	}
	n := uint64(binary.BigEndian.Uint32(b[24:]))
	if n > uint64(len(b)-journalHeader) {
		return nil, false
	}
	b = b[:journalHeader+n]
	if binary.BigEndian.Uint64(b[8:]) != xxhash.Checksum64S(b[16:], id) {
		return nil, false
	}
	r := &journalRecord{number: binary.BigEndian.Uint64(b[16:]), bytes: int64(len(b))}
	switch {
	case b[28] == journalReset && n == 0:
		return r, true
	case b[28] == journalEntries:
		logs, err := wire.DecodeLogs(b[journalHeader:])
		r.logs = logs
		return r, err == nil && len(logs) > 0
	}
	return nil, false
}

// recoverEntries brings into log.db what it lacks of the entries in the journal.
func recoverEntries(log logFile, entries []*raft.Log) error {
	last, err := log.LastIndex()
	if err != nil {
		return err
	}
	for len(entries) > 0 && entries[0].Index <= last {
		entries = entries[1:]
	}
	for i, e := range entries {
		if want := entries[0].Index + uint64(i); e.Index != want || last > 0 && i == 0 && e.Index != last+1 {
			return corruptf(journalFileName, "entry %d follows entry %d", e.Index, max(last, want-1))
		}
	}
	for len(entries) > 0 {
		n, size := 0, 0
		for n < len(entries) && (n == 0 || size < moveBytes) {
			size += wire.LogSize(entries[n])
			n++
		}
		if err := log.StoreLogs(entries[:n]); err != nil {
			return fmt.Errorf("move entries from the journal: %w", err)
		}
		entries = entries[n:]
	}
	return nil
}
