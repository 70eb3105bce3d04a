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
func openJournalFile(path string, log logFile, fault func(op string) error, fail func(error)) (*journal, error) {
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
		j, err = newJournal(dataSyncFile{f}, log, journalSide, fault, fail, func() error { return errors.Join(syncPath(path), syncDir(filepath.Dir(path))) })
	} else {
		j, err = openJournal(dataSyncFile{f}, log, record, fault, fail)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// dataSyncFile is a file whose Sync need not make its times durable.
type dataSyncFile struct{ *os.File }

func (f dataSyncFile) Sync() error { return dataSync(f.File) }

func startJournal(file journalFile, log logFile, id uint64, side int64, fault func(string) error, fail func(error)) *journal {
	j := &journal{logFile: log, file: file, id: id, side: side, fault: fault, fail: fail,
		turn: make(chan struct{}, 1), work: make(chan struct{}, 1), done: make(chan struct{})}
	if fault == nil {
		j.fault = func(string) error { return nil }
	}
	j.mu.change = make(chan struct{})
	return j
}

// newJournal makes an empty journal. All its blocks are written once, so that a flush never has to note where they are.
func newJournal(file journalFile, log logFile, side int64, fault func(string) error, fail func(error), created func() error) (*journal, error) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	j := startJournal(file, log, binary.BigEndian.Uint64(random[:]), side, fault, fail)
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
	j.begin(0)
	return j, nil
}

// begin starts the mover. Everything up to record newest is in log.db, so both sides are free.
func (j *journal) begin(newest uint64) {
	j.newest, j.since = newest, newest+1
	j.mu.moved = newest
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
func openJournal(file journalFile, log logFile, record []byte, fault func(string) error, fail func(error)) (*journal, error) {
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
	var newest uint64
	var logs []*raft.Log
	for i, r := range records {
		if i > 0 && r.number != newest+1 {
			logs = nil
		}
		newest = r.number
		if r.logs == nil { // a reset
			logs = nil
		}
		logs = append(logs, r.logs...)
	}
	if err := guard(func() error { return recoverEntries(log, logs) }); err != nil {
		return nil, err
	}
	j := startJournal(file, log, id, side, fault, fail)
	j.begin(newest)
	return j, nil
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
