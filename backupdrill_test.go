package chubby_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
)

// Goal: whatever a cell has in it, and whatever is going on, a backup is the whole of one moment, and a damaged one is
// refused without a trace. Method: a random state, a backup while writers change pairs of entries that must always be
// equal, a restore, a comparison of everything; then cuts at every border, flipped bits, bytes that follow. -long makes it
// 100 drills.
func TestBackupDrills(t *testing.T) {
	drills := 2
	if *long {
		drills = 100
	}
	first := *histSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	} else {
		drills = 1
	}
	for i := range uint64(drills) {
		drill(t, first+i)
		if t.Failed() {
			t.Fatalf("drill with -seed %d", first+i)
		}
	}
}

func drill(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 0))
	ctx := within(t, 5*time.Minute)
	source, err := chubby.Open(chubby.Options{Cell: "drill", ID: "old"})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	populate(t, source, random)
	l := mustLock(t, source, "/lock", chubby.LockDelay(time.Second))
	want := tree(t, source)

	// Writers of pairs.
	const pairs = 3
	var offered, acked [pairs]atomic.Uint64
	progress := make(chan struct{}, 1)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for p := range pairs {
		wg.Go(func() {
			for k := uint64(1); ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				offered[p].Store(k)
				v := fmt.Append(nil, k)
				if _, err := source.Txn(ctx, chubby.Txn{Then: []chubby.Op{
					chubby.OpSet(fmt.Sprintf("/pairs/%d/a", p), v), chubby.OpSet(fmt.Sprintf("/pairs/%d/b", p), v),
				}}); err != nil {
					t.Error(err)
					return
				}
				acked[p].Store(k)
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	var least, most [pairs]uint64
	var b bytes.Buffer
	for p := range pairs {
		least[p] = acked[p].Load()
	}
	err = source.Backup(ctx, writerFunc(func(part []byte) (int, error) {
		if most[0] == 0 { // the moment has been chosen
			for p := range pairs {
				most[p] = offered[p].Load()
			}
		}
		select {
		case <-progress: // the cell goes on meanwhile
		case <-ctx.Done():
		}
		return b.Write(part)
	}))
	close(stop)
	wg.Wait()
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	o := chubby.Options{Cell: "drill", ID: "new", Dir: filepath.Join(dir, "new")}
	for _, d := range damages(b.Bytes(), random) {
		if err := chubby.Restore(d, o); !errors.Is(err, chubby.ErrCorrupt) {
			t.Errorf("damaged: %v", err)
		}
		wantNothing(t, dir)
	}
	if err := chubby.Restore(bytes.NewReader(b.Bytes()), o); err != nil {
		t.Fatal(err)
	}
	n, err := chubby.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	got := tree(t, n)
	for p := range pairs {
		var values []uint64
		for _, name := range []string{"a", "b"} {
			path := fmt.Sprintf("/pairs/%d/%s", p, name)
			v, _ := strconv.ParseUint(string(got[path].Data), 10, 64) // 0 if there was none yet
			values = append(values, v)
			delete(got, path)
		}
		if values[0] != values[1] || values[0] < least[p] || values[0] > most[p] {
			t.Errorf("pair %d is %d, acknowledged before the backup %d, offered when it began %d", p, values, least[p], most[p])
		}
		delete(got, fmt.Sprintf("/pairs/%d", p))
	}
	delete(got, "/pairs")
	wantTree(t, got, want)
	wantNewEpoch(t, n, l.Sequencer(), source.Status().Revision)
}

// populate makes random entries.
func populate(t *testing.T, n *chubby.Node, random *rand.Rand) {
	t.Helper()
	ctx := within(t, time.Minute)
	path := func() string {
		p := ""
		for range 1 + random.IntN(4) {
			p += "/" + string(rune('a'+random.IntN(6)))
		}
		return p
	}
	value := func() []byte {
		size := random.IntN(40)
		if random.IntN(10) == 0 {
			size = random.IntN(100 << 10)
		}
		v := make([]byte, size)
		for i := range v {
			v[i] = byte(random.Uint32())
		}
		return v
	}
	for range 30 + random.IntN(150) {
		var err error
		switch random.IntN(8) {
		case 0:
			err = n.Delete(ctx, path())
		case 1:
			err = n.DeleteTree(ctx, path())
		case 2:
			_, err = n.Create(ctx, path(), nil, chubby.CreateOptions{Dir: true, Ephemeral: random.IntN(2) == 0})
		case 3:
			_, err = n.Create(ctx, path(), value(), chubby.CreateOptions{Ephemeral: true})
		default:
			_, err = n.Set(ctx, path(), value())
		}
		if errors.Is(err, chubby.ErrUncertain) || errors.Is(err, chubby.ErrClosed) {
			t.Fatal(err)
		}
	}
	for p, e := range tree(t, n) {
		// What would be gone with its session takes its directories along or not; that is for other tests.
		if e.Stat.Dir && e.Stat.Ephemeral {
			if err := n.DeleteTree(ctx, p); err != nil && !errors.Is(err, chubby.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
}

// damages gives a backup cut at each border of its records and at random places, with flipped bits, and with bytes after it.
func damages(b []byte, random *rand.Rand) []io.Reader {
	var list []io.Reader
	const header = 17
	for at := header; at < len(b); {
		list = append(list, bytes.NewReader(b[:at]))
		n := int(binary.BigEndian.Uint32(b[at:]))
		if n == 0 {
			break
		}
		at += 12 + n
	}
	for range 5 {
		list = append(list, bytes.NewReader(b[:random.IntN(len(b))]))
		flipped := bytes.Clone(b)
		flipped[random.IntN(len(b))] ^= 1 << random.IntN(8)
		list = append(list, bytes.NewReader(flipped))
	}
	return append(list, io.MultiReader(bytes.NewReader(b), strings.NewReader("\x00")), io.MultiReader(bytes.NewReader(b), bytes.NewReader(b)))
}
