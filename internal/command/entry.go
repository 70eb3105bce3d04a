package command

import (
	"encoding/binary"
	"fmt"
)

// LogEntry is what one entry of the log holds: commands that were proposed together, and who proposed them.
//
// Its encoding is the version byte, Origin in 8 bytes little endian, Number and N as uvarints, then each command as a
// uvarint length and its bytes.
type LogEntry struct {
	Origin uint64 // random id of the proposing process
	Number uint64 // the proposing process's count of its entries
	N      int    // commands in the entry

	rest []byte
	left int
}

// AppendEntryHeader begins an entry of n commands, at most [EntryMax]; exactly n calls of [AppendEntryCommand] follow.
func AppendEntryHeader(dst []byte, origin, number uint64, n int) []byte {
	dst = append(dst, Version)
	dst = binary.LittleEndian.AppendUint64(dst, origin)
	dst = binary.AppendUvarint(dst, number)
	return binary.AppendUvarint(dst, uint64(n))
}

// AppendEntryCommand appends a command that [Append] encoded.
func AppendEntryCommand(dst, raw []byte) []byte { return appendBytes(dst, raw) }

// ParseEntry reads the header of an entry and makes sure that its commands are all there, so that none is executed of
// an entry that is cut off. It does not look into them. The entry aliases b.
func ParseEntry(b []byte) (LogEntry, error) {
	var e LogEntry
	if len(b) > EntryBytes {
		return e, fmt.Errorf("%w: log entry of %d bytes", ErrEncoding, len(b))
	}
	r := reader{b: b}
	if err := r.version(); err != nil {
		return e, fmt.Errorf("log entry: %w", err)
	}
	if v := r.take(8); v != nil {
		e.Origin = binary.LittleEndian.Uint64(v)
	}
	e.Number = r.uvarint()
	e.N = r.count(EntryMax)
	e.left, e.rest = e.N, r.b
	for range e.N {
		r.bytes()
	}
	if err := r.end(); err != nil {
		return LogEntry{}, fmt.Errorf("log entry: %w", err)
	}
	return e, nil
}

// Next gives the next command, still encoded, aliasing the entry; false after the last. An error means that e did not
// come from [ParseEntry].
func (e *LogEntry) Next() (raw []byte, ok bool, err error) {
	if e.left == 0 {
		return nil, false, nil
	}
	r := reader{b: e.rest}
	raw = r.bytes()
	if r.err != nil {
		return nil, false, r.err
	}
	e.rest = r.b
	e.left--
	return raw, true, nil
}
