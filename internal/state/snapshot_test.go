package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
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

// split takes a snapshot's sections apart into their records, and join puts them together again, with checksums.
func split(b []byte) (sections [][][]byte) {
	b = b[len(snapshotMagic)+1:]
	for len(b) > 0 {
		var records [][]byte
		for b = b[1:]; ; {
			n, size := binary.Uvarint(b)
			record := b[size : size+int(n)]
			if b = b[size+int(n):]; n == 0 {
				break
			}
			records = append(records, record)
		}
		sections = append(sections, records)
		b = b[8:]
	}
	return sections
}

func join(sections [][][]byte) []byte {
	b := append([]byte(snapshotMagic), snapshotVersion)
	for i, records := range sections {
		b = append(b, byte(sectionCell+i))
		for _, r := range records {
			b = append(binary.AppendUvarint(b, uint64(len(r))), r...)
		}
		b = append(b, make([]byte, 9)...)
	}
	return resum(b)
}

// One state has one snapshot: one of its records twice is refused, and what is left after any other change is refused or
// the snapshot of another state.
func TestReadCanonical(t *testing.T) {
	good := snapshot(t, sample(t))
	if !bytes.Equal(join(split(good)), good) {
		t.Fatal("split and join differ")
	}
	edit := func(section int, f func(records [][]byte) [][]byte) []byte {
		sections := split(good)
		sections[section] = f(sections[section])
		return join(sections)
	}
	for i, records := range split(good) {
		for j := range records {
			b := edit(i, func(r [][]byte) [][]byte { return slices.Insert(r, j, r[j]) })
			if _, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("section %d, record %d twice: %v", i+1, j, err)
			}
			for k := range j {
				b := edit(i, func(r [][]byte) [][]byte { r[j], r[k] = r[k], r[j]; return r })
				if s, err := Read(bytes.NewReader(b)); err == nil && !bytes.Equal(snapshot(t, s), b) {
					t.Errorf("section %d, records %d and %d exchanged: written again it differs", i+1, k, j)
				}
			}
			b = edit(i, func(r [][]byte) [][]byte { return slices.Delete(r, j, j+1) })
			if s, err := Read(bytes.NewReader(b)); err == nil && !bytes.Equal(snapshot(t, s), b) {
				t.Errorf("section %d without record %d: written again it differs", i+1, j)
			}
			b = edit(i, func(r [][]byte) [][]byte { r[j] = append(bytes.Clone(r[j]), 0); return r })
			if s, err := Read(bytes.NewReader(b)); err == nil && !bytes.Equal(snapshot(t, s), b) {
				t.Errorf("section %d, record %d longer: written again it differs", i+1, j)
			}
		}
	}
}

func sample(t testing.TB) *State {
	s := &script{m: NewMachine(New("local", 7))}
	for _, line := range []string{
		"slot n", "slot n2", "open 1", "open 2 slot=2", "set /a/b x", "1/1 create /e x ephemeral", "1/2 lock /a/b delay=5", "2/1 lock /a/b data=y", "2/2 lock shared /s hold=9",
		"2/3 create /d dir ephemeral", "open 3 slot=3", "3/1 lock /z delay=7", "expire in=1 3", "key k", "setacl / acl=r:w:c", "2/4 openhandle /h x create ephemeral acl=r::",
		"1/3 openhandle /h", "1/4 openhandle /i create dir ephemeral", "2/5 set /i/x y", "1/5 set /acl/r *", "2/6 lock /a/b if=instance,/a/b,6",
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
