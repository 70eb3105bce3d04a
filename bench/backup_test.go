package bench

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/chubbygo/chubby"
)

// BenchmarkBackup backs up 100 MiB of contents.
func BenchmarkBackup(b *testing.B) {
	n, size := filled(b)
	b.SetBytes(size)
	for b.Loop() {
		var w counter
		if err := n.Backup(context.Background(), &w); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestore makes a directory of that backup, synced.
func BenchmarkRestore(b *testing.B) {
	n, size := filled(b)
	var backup bytes.Buffer
	if err := n.Backup(context.Background(), &backup); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	dir, i := b.TempDir(), 0
	for b.Loop() {
		i++
		if err := chubby.Restore(bytes.NewReader(backup.Bytes()), chubby.Options{Dir: filepath.Join(dir, fmt.Sprint(i))}); err != nil {
			b.Fatal(err)
		}
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// filled gives a node with 100 MiB in 25,600 files.
func filled(b *testing.B) (*chubby.Node, int64) {
	b.Helper()
	n, err := chubby.Open(chubby.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { n.Close() })
	const files, size = 25_600, 4 << 10
	for i := 0; i < files; i += 100 {
		var t chubby.Txn
		for j := i; j < i+100; j++ {
			t.Then = append(t.Then, chubby.OpSet(fmt.Sprintf("/%d/%d", j/1000, j), bytes.Repeat([]byte{byte(j)}, size)))
		}
		if _, err := n.Txn(context.Background(), t); err != nil {
			b.Fatal(err)
		}
	}
	return n, files * size
}
