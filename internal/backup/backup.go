// Package backup frames the bytes of a backup so that any damage to them is found, and named by its place.
//
// A stream is a header, chunks, and an end record with the totals, which must be the last of it. The checksum of each
// covers all before it, so chunks that are lost, doubled or in another order do not fit either. See docs/format.md.
package backup

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/OneOfOne/xxhash"
)

// Format is the version of the framing. What is in it has a version of its own.
const Format = 1

const (
	magic      = "chbybkup"
	headBytes  = len(magic) + 1 + 8 // magic, version, checksum
	chunkBytes = 256 << 10
	endBytes   = 4 + 8 + 8 + 8 // zero, chunks, bytes, checksum
)

var (
	// ErrCorrupt means that a stream is not what a Writer wrote. The text names the place.
	ErrCorrupt = errors.New("corrupt backup")
	// ErrFormat means that a newer release wrote the stream.
	ErrFormat = errors.New("unknown format of the backup")
)

// Writer makes a stream. It holds one chunk in memory. Not safe for concurrent use.
type Writer struct {
	w     io.Writer
	sum   uint64 // of the last record
	chunk []byte // room for length and checksum, then data
	n     uint64 // chunks written
	bytes uint64 // in them
	err   error  // the first; sticky
}

const chunkHead = 4 + 8

// NewWriter begins a stream on w. The caller must Close it: a stream without its end is a damaged one.
func NewWriter(w io.Writer) *Writer {
	b := header()
	k := &Writer{w: w, sum: xxhash.Checksum64(b), chunk: make([]byte, chunkHead, chunkHead+chunkBytes)}
	k.write(b)
	return k
}

func header() []byte {
	b := append([]byte(magic), Format)
	return binary.BigEndian.AppendUint64(b, xxhash.Checksum64(b))
}

// Write adds data.
func (k *Writer) Write(p []byte) (int, error) {
	n := 0
	for k.err == nil && len(p) > 0 {
		c := min(len(p), cap(k.chunk)-len(k.chunk))
		k.chunk = append(k.chunk, p[:c]...)
		p = p[c:]
		n += c
		if len(k.chunk) == cap(k.chunk) {
			k.flush()
		}
	}
	return n, k.err
}

func (k *Writer) flush() {
	data := k.chunk[chunkHead:]
	if len(data) == 0 || k.err != nil {
		return
	}
	binary.BigEndian.PutUint32(k.chunk, uint32(len(data)))
	k.sum = xxhash.Checksum64S(data, k.sum)
	binary.BigEndian.PutUint64(k.chunk[4:], k.sum)
	k.write(k.chunk)
	k.n++
	k.bytes += uint64(len(data))
	k.chunk = k.chunk[:chunkHead]
}

func (k *Writer) write(b []byte) {
	if k.err != nil {
		return
	}
	n, err := k.w.Write(b)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	k.err = err
}

// Close ends the stream. It does not close what it was written to.
func (k *Writer) Close() error {
	k.flush()
	b := make([]byte, 4, endBytes)
	b = binary.BigEndian.AppendUint64(b, k.n)
	b = binary.BigEndian.AppendUint64(b, k.bytes)
	k.write(binary.BigEndian.AppendUint64(b, xxhash.Checksum64S(b, k.sum)))
	err := k.err
	if k.err == nil {
		k.err = errors.New("backup is complete")
	}
	return err
}

// Reader takes a stream apart. Its Read returns io.EOF only when the end record was there, agreed with what was read, and
// nothing followed it; ErrCorrupt, ErrFormat, or the error of the underlying reader otherwise. What it returned before an
// error was intact, but is a part only. Not safe for concurrent use.
type Reader struct {
	r     *bufio.Reader
	at    uint64 // offset of the next byte
	sum   uint64
	data  []byte
	rest  []byte // of data
	n     uint64
	bytes uint64
	began bool
	err   error // sticky
}

// NewReader reads a stream from r, to its end.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Read gives what was written.
func (k *Reader) Read(p []byte) (int, error) {
	for k.err == nil && len(k.rest) == 0 {
		k.err = k.next()
	}
	if len(k.rest) == 0 {
		return 0, k.err
	}
	n := copy(p, k.rest)
	k.rest = k.rest[n:]
	return n, nil
}

func (k *Reader) corrupt(at uint64, format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrCorrupt, at, fmt.Sprintf(format, args...))
}

func (k *Reader) full(b []byte, what string) error {
	n, err := io.ReadFull(k.r, b)
	k.at += uint64(n)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return k.corrupt(k.at, "%s is cut off", what)
	}
	return err
}

// next reads a chunk, or the end.
func (k *Reader) next() error {
	if !k.began {
		if err := k.begin(); err != nil {
			return err
		}
		k.began = true
	}
	at := k.at
	what := fmt.Sprintf("chunk %d", k.n+1)
	var b [endBytes]byte
	if err := k.full(b[:4], what); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(b[:])
	if n == 0 {
		return k.end(at, b[:])
	}
	if n > chunkBytes {
		return k.corrupt(at, "%s would have %d bytes", what, n)
	}
	if err := k.full(b[4:chunkHead], what); err != nil {
		return err
	}
	if k.data == nil {
		k.data = make([]byte, chunkBytes)
	}
	data := k.data[:n]
	if err := k.full(data, what); err != nil {
		return err
	}
	sum := xxhash.Checksum64S(data, k.sum)
	if binary.BigEndian.Uint64(b[4:]) != sum {
		return k.corrupt(at, "%s has a wrong checksum", what)
	}
	k.sum = sum
	k.n++
	k.bytes += uint64(n)
	k.rest = data
	return nil
}

func (k *Reader) begin() error {
	var b [headBytes]byte
	if err := k.full(b[:], "the header"); err != nil {
		return err
	}
	want := header()
	switch v := b[len(magic)]; {
	case string(b[:len(magic)]) != magic:
		return k.corrupt(0, "it does not begin as a backup")
	case binary.BigEndian.Uint64(b[len(magic)+1:]) != xxhash.Checksum64(b[:len(magic)+1]):
		return k.corrupt(0, "the header has a wrong checksum")
	case v != Format:
		return fmt.Errorf("%w: %d; this release reads %d", ErrFormat, v, Format)
	}
	k.sum = xxhash.Checksum64(want)
	return nil
}

// end checks the end record, whose first four bytes are in b.
func (k *Reader) end(at uint64, b []byte) error {
	if err := k.full(b[4:], "the end"); err != nil {
		return err
	}
	chunks, bytes, sum := binary.BigEndian.Uint64(b[4:]), binary.BigEndian.Uint64(b[12:]), binary.BigEndian.Uint64(b[20:])
	switch {
	case sum != xxhash.Checksum64S(b[:20], k.sum):
		return k.corrupt(at, "the end has a wrong checksum")
	case chunks != k.n || bytes != k.bytes:
		return k.corrupt(at, "the end tells of %d chunks and %d bytes, there were %d and %d", chunks, bytes, k.n, k.bytes)
	}
	switch _, err := k.r.ReadByte(); err {
	case nil:
		return k.corrupt(k.at, "bytes after the end")
	case io.EOF:
		return io.EOF
	default:
		return err
	}
}
