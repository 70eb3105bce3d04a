package backup_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/internal/backup"
)

func stream(t testing.TB, parts ...[]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := backup.NewWriter(&b)
	for _, p := range parts {
		if n, err := w.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func blob(seed, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	return b
}

var update = flag.Bool("update", false, "rewrite testdata")

// The bytes of format 1, which must never change.
func TestGolden(t *testing.T) {
	got := ""
	for _, data := range []string{"", "hello"} {
		got += fmt.Sprintf("%q %s\n", data, hex.EncodeToString(stream(t, []byte(data))))
	}
	const file = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil || got != string(want) {
		t.Errorf("%s, %v; got\n%s", file, err, got)
	}
}

// A newer format is refused by its name, and not as damage.
func TestNewerFormat(t *testing.T) {
	b := stream(t, []byte("x"))
	b[8] = backup.Format + 1
	binary.BigEndian.PutUint64(b[9:], xxhash.Checksum64(b[:9]))
	_, err := io.Copy(io.Discard, backup.NewReader(bytes.NewReader(b)))
	if !errors.Is(err, backup.ErrFormat) || errors.Is(err, backup.ErrCorrupt) {
		t.Errorf("format %d: %v", b[8], err)
	}
}

func TestRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 256 << 10, 256<<10 + 1, 600_000} {
		want := blob(1, size)
		b := stream(t, want[:size/3], want[size/3:])
		for name, r := range map[string]io.Reader{
			"plain": bytes.NewReader(b), "half": iotest.HalfReader(bytes.NewReader(b)), "data with EOF": iotest.DataErrReader(bytes.NewReader(b)),
		} {
			got, err := io.ReadAll(backup.NewReader(r))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %s: %d bytes came back, %v", size, name, len(got), err)
			}
		}
	}
}

// Every single damage is found: a cut at each byte, a changed bit in each byte, bytes after the end, chunks that are
// lost, doubled or exchanged.
func TestDamage(t *testing.T) {
	small := stream(t, blob(2, 300))
	refused := func(what string, b []byte) {
		t.Helper()
		_, err := io.Copy(io.Discard, backup.NewReader(bytes.NewReader(b)))
		if !errors.Is(err, backup.ErrCorrupt) && !errors.Is(err, backup.ErrFormat) {
			t.Fatalf("%s: %v", what, err)
		}
		if errors.Is(err, backup.ErrCorrupt) && !strings.Contains(err.Error(), "at byte ") {
			t.Errorf("%s: the place is missing: %v", what, err)
		}
	}
	for i := range small {
		refused("cut", small[:i])
		for bit := range 8 {
			b := bytes.Clone(small)
			b[i] ^= 1 << bit
			refused("bit", b)
		}
	}
	refused("tail", append(bytes.Clone(small), 0))
	refused("twice", append(bytes.Clone(small), small...))

	const head, chunk = 17, 12 + 256<<10
	large := stream(t, blob(3, 3*256<<10))
	part := func(i int) []byte { return large[head+i*chunk : head+(i+1)*chunk] }
	put := func(chunks ...int) []byte {
		b := bytes.Clone(large[:head])
		for _, i := range chunks {
			b = append(b, part(i)...)
		}
		return append(b, large[head+3*chunk:]...)
	}
	if !bytes.Equal(put(0, 1, 2), large) {
		t.Fatal("the layout is another")
	}
	refused("lost chunk", put(0, 2))
	refused("lost last chunk", put(0, 1))
	refused("doubled chunk", put(0, 1, 1, 2))
	refused("exchanged chunks", put(1, 0, 2))
	refused("no chunks", put())
}

// Faults of what is underneath are not damage.
func TestErrorsPass(t *testing.T) {
	boom := errors.New("boom")
	w := backup.NewWriter(writerFunc(func(p []byte) (int, error) { return 0, boom }))
	_, err := w.Write(make([]byte, 1<<20))
	if !errors.Is(err, boom) || !errors.Is(w.Close(), boom) {
		t.Errorf("write: %v", err)
	}
	w = backup.NewWriter(writerFunc(func(p []byte) (int, error) { return len(p) / 2, nil }))
	if err := w.Close(); err != io.ErrShortWrite {
		t.Errorf("short write: %v", err)
	}
	b := stream(t, []byte("x"))
	for i := range b {
		_, err := io.Copy(io.Discard, backup.NewReader(io.MultiReader(bytes.NewReader(b[:i]), iotest.ErrReader(boom))))
		if !errors.Is(err, boom) || errors.Is(err, backup.ErrCorrupt) {
			t.Fatalf("read fails at %d: %v", i, err)
		}
	}
	if _, err := io.Copy(io.Discard, backup.NewReader(io.MultiReader(bytes.NewReader(b), iotest.ErrReader(boom)))); !errors.Is(err, boom) {
		t.Errorf("read fails after the end: %v", err)
	}
	w = backup.NewWriter(io.Discard)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a stream was written to after its end")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// FuzzReader reads streams that are anything: no panic, no large allocation for what is only announced, and what is read
// whole is what a Writer would have written.
func FuzzReader(f *testing.F) {
	f.Add(stream(f))
	f.Add(stream(f, []byte("hello")))
	f.Add([]byte("chbybkup"))
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := io.ReadAll(backup.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		// Chunks may be of any size, so the stream itself can differ.
		again, err := io.ReadAll(backup.NewReader(bytes.NewReader(stream(t, data))))
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x came back as %x, %v", data, again, err)
		}
	})
}
