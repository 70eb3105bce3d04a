package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/OneOfOne/xxhash"
)

// resum gives a damaged snapshot right checksums, as far as its sections can be made out.
func resum(b []byte) []byte {
	b = bytes.Clone(b)
	start, at := 0, len(snapshotMagic)+1
	for at < len(b) {
		at++ // id
		for {
			if at >= len(b) {
				return b
			}
			n, size := binary.Uvarint(b[at:])
			if size <= 0 || n > uint64(len(b)-at-size) {
				return b
			}
			if at += size + int(n); n == 0 {
				break
			}
		}
		if at+8 > len(b) {
			return b
		}
		binary.LittleEndian.PutUint64(b[at:], xxhash.Checksum64(b[start:at]))
		at += 8
		start = at
	}
	return b
}

func sample(t testing.TB) *State {
	s := &script{m: NewMachine(New("local", 7))}
	for _, line := range []string{
		"slot n", "open 1", "open 2 slot=2", "set /a/b x", "1/1 create /e x ephemeral", "1/2 lock /a/b delay=5", "2/1 lock /a/b data=y", "2/2 lock shared /s",
		"2/3 create /d dir ephemeral", "open 3 slot=3", "3/1 lock /z delay=7", "expire in=1 3",
	} {
		c, term, err := parseCommand(line)
		if err != nil {
			t.Fatal(err)
		}
		s.index++
		if _, err := s.m.Apply(s.index, term, commandBytes(c)); err != nil {
			t.Fatal(err)
		}
	}
	st, _ := s.m.Publish()
	return st
}

// Every damage to a byte, and every loss at the end, is found.
func TestReadDamaged(t *testing.T) {
	good := snapshot(t, sample(t))
	if _, err := Read(iotest.OneByteReader(bytes.NewReader(good))); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		if _, err := Read(bytes.NewReader(good[:i])); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("the first %d bytes: %v", i, err)
		}
		for _, flip := range []byte{1, 0x80, 0xff} {
			b := bytes.Clone(good)
			b[i] ^= flip
			want := ErrCorrupt
			if i == len(snapshotMagic) {
				want = ErrVersion
			}
			if _, err := Read(bytes.NewReader(b)); !errors.Is(err, want) {
				t.Fatalf("byte %d damaged: %v", i, err)
			}
			// With right checksums there is another state, a sound one, or an error. Never a panic.
			b = resum(b)
			if s, err := Read(bytes.NewReader(b)); err == nil && !bytes.Equal(snapshot(t, s), b) {
				t.Fatalf("byte %d damaged and summed up: written again it differs", i)
			}
		}
	}
	if _, err := Read(bytes.NewReader(append(bytes.Clone(good), 0))); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too many: %v", err)
	}
	broken := errors.New("disk")
	if _, err := Read(io.MultiReader(bytes.NewReader(good[:50]), iotest.ErrReader(broken))); !errors.Is(err, broken) || errors.Is(err, ErrCorrupt) {
		t.Errorf("a reader that fails: %v", err)
	}
	if _, err := Read(io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a reader that fails at the end: %v", err)
	}
}

// A record that announces 4 MiB and does not have them costs no 4 MiB.
func TestReadBoundedMemory(t *testing.T) {
	b := append([]byte(snapshotMagic), snapshotVersion, sectionCell)
	b = binary.AppendUvarint(b, recordMax)
	if n := testing.AllocsPerRun(1, func() { _, _ = Read(bytes.NewReader(b)) }); n > 60 {
		t.Errorf("%v allocations", n)
	}
	var s snapshotReader
	s.sum = xxhash.New64()
	s.r = nil
	b = binary.AppendUvarint(b[:len(snapshotMagic)+2], recordMax+1)
	if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a record too long: %v", err)
	}
}

type shortWriter struct{ n int }

var errFull = errors.New("full")

func (w *shortWriter) Write(b []byte) (int, error) {
	if w.n -= len(b); w.n < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestWriteToError(t *testing.T) {
	s := sample(t)
	for n := range len(snapshot(t, s)) {
		if _, err := s.WriteTo(&shortWriter{n}); !errors.Is(err, errFull) {
			t.Fatalf("a writer of %d bytes: %v", n, err)
		}
	}
}
