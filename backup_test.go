package chubby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/hook"
)

// tree gives all entries of a cell, by path.
func tree(t *testing.T, n *chubby.Node) map[string]chubby.Entry {
	t.Helper()
	all := make(map[string]chubby.Entry)
	var walk func(dir string)
	walk = func(dir string) {
		children, err := n.List(within(t, time.Minute), dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range children {
			if e.Stat.Dir {
				walk(e.Path)
			} else if e, err = n.Get(within(t, time.Minute), e.Path); err != nil {
				t.Fatal(err)
			}
			e.Age = 0
			all[e.Path] = e
		}
	}
	walk("/")
	return all
}

// wantTree compares entries, with all their numbers. Ephemeral ones are not to be there; directories that had some have
// changed.
func wantTree(t *testing.T, got, want map[string]chubby.Entry) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		w, g := want[path], got[path]
		switch {
		case w.Stat.Ephemeral:
			if _, ok := got[path]; ok {
				t.Errorf("%s outlived its session", path)
			}
		case w.Stat.Dir && g.Stat.Dir:
		case g.Path != w.Path || !bytes.Equal(g.Data, w.Data) || g.Stat != w.Stat:
			t.Errorf("%s is %+v, want %+v", path, g, w)
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s was not backed up", path)
		}
	}
}

func mustBackup(t *testing.T, n *chubby.Node) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := n.Backup(within(t, time.Minute), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// openNode opens a node that the test closes.
func openNode(t *testing.T, o chubby.Options) *chubby.Node {
	t.Helper()
	n, err := chubby.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// fill gives a cell something of everything, and returns a lock that is held in it.
func fill(t *testing.T, n *chubby.Node) *chubby.Lock {
	t.Helper()
	ctx := within(t, time.Minute)
	for i := range 20 {
		mustSet(t, n, fmt.Sprintf("/dir%d/file%d", i%3, i), strings.Repeat("x", i))
	}
	if _, err := n.Create(ctx, "/empty", nil, chubby.CreateOptions{Dir: true}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		path string
		dir  bool
	}{{"/dir1/gone", false}, {"/gone", true}} {
		if _, err := n.Create(ctx, o.path, nil, chubby.CreateOptions{Ephemeral: true, Dir: o.dir}); err != nil {
			t.Fatal(err)
		}
	}
	l := mustLock(t, n, "/dir0/file0", chubby.LockDelay(time.Minute))
	if _, err := n.Campaign(ctx, "/leader", []byte("me")); err != nil {
		t.Fatal(err)
	}
	return l
}

// wantNewEpoch checks that nothing of an old epoch holds on a node: old is a sequencer of it, seen a revision.
func wantNewEpoch(t *testing.T, n *chubby.Node, old fence.Sequencer, seen uint64) {
	t.Helper()
	ctx := within(t, time.Minute)
	s := n.Status()
	if s.Sessions != 0 || s.Locks != 0 || s.Waiters != 0 || s.Epoch <= old.Epoch || s.Revision <= seen {
		t.Errorf("after epoch %d and revision %d: %+v", old.Epoch, seen, s)
	}
	if err := n.CheckSequencer(ctx, old); !errors.Is(err, chubby.ErrStaleSequencer) {
		t.Errorf("the old sequencer: %v", err)
	}
	if _, err := n.Set(ctx, "/fenced", nil, chubby.IfHolds(old)); !errors.Is(err, chubby.ErrStaleSequencer) {
		t.Errorf("a write under the old sequencer: %v", err)
	}
	now := mustLock(t, n, old.Path).Sequencer()
	if err := n.CheckSequencer(ctx, old); !errors.Is(err, chubby.ErrStaleSequencer) {
		t.Errorf("the old sequencer of a lock that is held anew: %v", err)
	}
	var guard fence.Guard
	if now.Compare(old) <= 0 || guard.Check(old) != nil || guard.Check(now) != nil || !errors.Is(guard.Check(old), fence.ErrStale) {
		t.Errorf("a resource does not tell %v from %v", now, old)
	}
	for _, err := range n.Watch(ctx, "/", chubby.WatchOptions{From: seen}) {
		if !errors.Is(err, chubby.ErrLagged) {
			t.Errorf("a watch from a revision of the old epoch: %v", err)
		}
		break
	}
	if err := n.Check(ctx); err != nil {
		t.Error(err)
	}
}

// A backup from any node, restored into a real directory: every entry with its numbers, and nothing of the sessions.
func TestBackupRestore(t *testing.T) {
	var dirs []string
	for range 3 {
		dirs = append(dirs, filepath.Join(t.TempDir(), "made", "here"))
	}
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := fill(t, cell.Leader())
		want := tree(t, cell.Leader())
		for i := range 3 {
			n := cell.Node(i)
			b := mustBackup(t, n)
			o := chubby.Options{ID: "new", Cell: "test", Dir: dirs[i]}
			if err := chubby.Restore(bytes.NewReader(b), o); err != nil {
				t.Fatal(err)
			}
			var names []string
			entries, err := os.ReadDir(o.Dir)
			for _, e := range entries {
				names = append(names, e.Name())
			}
			if err != nil || !slices.Equal(names, []string{"journal", "log.db", "snap.db"}) {
				t.Errorf("the directory has %q, %v", names, err)
			}
			for again := range 2 {
				n := openNode(t, o)
				if err := n.WaitReady(within(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				if again == 0 {
					wantTree(t, tree(t, n), want)
					wantNewEpoch(t, n, l.Sequencer(), cell.Leader().Status().Revision)
				}
				mustSet(t, n, "/after", "x")
				n.Close()
			}
		}
	})
}

// What the old cell did after the backup has numbers that the restored one never gives: a condition on one of them does
// not hold for something else.
func TestRestoreNumbersNeverTwice(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		old := cell.Leader()
		mustSet(t, old, "/a", "backed up")
		b := mustBackup(t, old)
		var seen []uint64
		for i := range 5 {
			s, err := old.Set(within(t, time.Minute), "/a", fmt.Append(nil, i))
			if err != nil {
				t.Fatal(err)
			}
			seen = append(seen, s.Generation)
		}
		disk := new(hook.Disk)
		o := chubby.Options{ID: "new", Cell: "test", Hooks: &hook.Hooks{Disk: disk}}
		if err := chubby.Restore(bytes.NewReader(b), o); err != nil {
			t.Fatal(err)
		}
		n := openNode(t, o)
		wantGet(t, n, "/a", "backed up")
		for range seen {
			mustSet(t, n, "/a", "other")
			for _, g := range seen {
				if _, err := n.Set(within(t, time.Minute), "/a", nil, chubby.IfGeneration(g)); !errors.Is(err, chubby.ErrConflict) {
					t.Errorf("generation %d of the old cell: %v", g, err)
				}
			}
		}
		if err := chubby.Restore(bytes.NewReader(b), chubby.Options{ID: "new", Cell: "test", Hooks: &hook.Hooks{Disk: disk}}); !errors.Is(err, chubby.ErrExists) {
			t.Errorf("Restore over a disk in use: %v", err)
		}
		n.Close()
		if err := chubby.Restore(bytes.NewReader(b), chubby.Options{ID: "new", Cell: "test", Hooks: &hook.Hooks{Disk: disk}}); !errors.Is(err, chubby.ErrExists) {
			t.Errorf("Restore over a disk: %v", err)
		}
	})
}

// wantNothing checks that there is nothing at dir, and nothing made on the way to it, which begins below parent.
func wantNothing(t *testing.T, parent string) {
	t.Helper()
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestRestoreRefuses(t *testing.T) {
	source := openNode(t, chubby.Options{})
	mustSet(t, source, "/a", "x")
	whole := mustBackup(t, source)
	boom := errors.New("boom")
	parent := t.TempDir()
	dir := filepath.Join(parent, "a", "b")
	newer := bytes.Clone(whole)
	newer[8]++
	for name, c := range map[string]struct {
		r    io.Reader
		o    chubby.Options
		want error
		text string
	}{
		"empty":          {bytes.NewReader(nil), chubby.Options{Dir: dir}, chubby.ErrCorrupt, "at byte 0"},
		"cut":            {bytes.NewReader(whole[:len(whole)-1]), chubby.Options{Dir: dir}, chubby.ErrCorrupt, "at byte"},
		"followed":       {io.MultiReader(bytes.NewReader(whole), strings.NewReader("x")), chubby.Options{Dir: dir}, chubby.ErrCorrupt, "after the end"},
		"of another":     {bytes.NewReader(whole), chubby.Options{Dir: dir, Cell: "other"}, chubby.ErrWrongCell, `"local"`},
		"no directory":   {bytes.NewReader(whole), chubby.Options{}, chubby.ErrBadOptions, "Dir"},
		"bad options":    {bytes.NewReader(whole), chubby.Options{Dir: dir, MaxLogBytes: 1}, chubby.ErrBadOptions, "MaxLogBytes"},
		"reader's error": {io.MultiReader(bytes.NewReader(whole[:20]), iotest.ErrReader(boom)), chubby.Options{Dir: dir}, boom, "boom"},
		"newer":          {bytes.NewReader(newer), chubby.Options{Dir: dir}, chubby.ErrCorrupt, "checksum"},
	} {
		err := chubby.Restore(c.r, c.o)
		var e *chubby.Error
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) || !errors.As(err, &e) || e.Op != "restore" {
			t.Errorf("%s: %v", name, err)
		}
		wantNothing(t, parent)
	}

	// Never over anything.
	occupied := t.TempDir()
	file := filepath.Join(occupied, "precious")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{occupied, file} {
		if err := chubby.Restore(bytes.NewReader(whole), chubby.Options{Dir: at}); err == nil {
			t.Errorf("restored into %s", at)
		} else if at == occupied && !errors.Is(err, chubby.ErrExists) {
			t.Error(err)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "x" || err != nil {
		t.Errorf("precious is %q, %v", b, err)
	}
	if entries, err := os.ReadDir(occupied); len(entries) != 1 || err != nil {
		t.Errorf("left behind: %v, %v", entries, err)
	}

	// What a Restore leaves that died is neither taken for a node's directory nor for an empty one.
	died := t.TempDir()
	if err := os.Mkdir(filepath.Join(died, chubby.RestoreTemp), 0o700); err != nil {
		t.Fatal(err)
	}
	if n, err := chubby.Open(chubby.Options{Dir: died}); !errors.Is(err, chubby.ErrCorrupt) {
		t.Errorf("Open where a Restore died: %v, %v", n, err)
	}
	if err := chubby.Restore(bytes.NewReader(whole), chubby.Options{Dir: died}); !errors.Is(err, chubby.ErrExists) {
		t.Errorf("Restore where a Restore died: %v", err)
	}

	// An empty directory is as good as none, and one that died after all was done is whole.
	empty := t.TempDir()
	if err := chubby.Restore(bytes.NewReader(whole), chubby.Options{Dir: empty}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(empty, chubby.RestoreTemp, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := openNode(t, chubby.Options{Dir: empty})
	wantGet(t, n, "/a", "x")
	if _, err := os.Stat(filepath.Join(empty, chubby.RestoreTemp)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open left %s: %v", chubby.RestoreTemp, err)
	}
}

// Whichever write to the disk fails, Restore says so and leaves nothing; the same backup can then be restored.
func TestRestoreDiskFails(t *testing.T) {
	source := openNode(t, chubby.Options{})
	mustSet(t, source, "/a", "x")
	whole := mustBackup(t, source)
	boom := errors.New("boom")
	parent := t.TempDir()
	dir := filepath.Join(parent, "d")
	for fail := 1; ; fail++ {
		n := 0
		hooks := &hook.Hooks{Storage: func(string) error {
			if n++; n == fail {
				return boom
			}
			return nil
		}}
		err := chubby.Restore(bytes.NewReader(whole), chubby.Options{Dir: dir, Hooks: hooks})
		if n < fail {
			if err != nil || fail < 4 {
				t.Fatalf("%d writes, %v", n, err)
			}
			break
		}
		if !errors.Is(err, boom) {
			t.Errorf("write %d fails: %v", fail, err)
		}
		wantNothing(t, parent)
	}
	wantGet(t, openNode(t, chubby.Options{Dir: dir}), "/a", "x")
}

func TestBackupErrors(t *testing.T) {
	n := openNode(t, chubby.Options{})
	mustSet(t, n, "/a", strings.Repeat("x", 200<<10))
	mustSet(t, n, "/b", strings.Repeat("x", 200<<10))
	boom := errors.New("boom")
	for at := range 3 {
		writes := 0
		err := n.Backup(within(t, time.Minute), writerFunc(func(p []byte) (int, error) {
			if writes++; writes > at {
				return 0, boom
			}
			return len(p), nil
		}))
		var e *chubby.Error
		if !errors.Is(err, boom) || !errors.As(err, &e) || e.Op != "backup" {
			t.Errorf("write %d fails: %v", at+1, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	err := n.Backup(ctx, writerFunc(func(p []byte) (int, error) {
		cancel()
		return len(p), nil
	}))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ctx ends meanwhile: %v", err)
	}
	if err := n.Backup(ctx, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("ctx has ended: %v", err)
	}
	n.Close()
	if err := n.Backup(context.Background(), io.Discard); !errors.Is(err, chubby.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A backup from a follower has what was acknowledged elsewhere before the call, although the follower does not hear of it
// by itself.
func TestBackupIsLinearizable(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		leader := cell.Leader()
		at := cell.Index(leader)
		behind := (at + 1) % 3
		if err := cell.Node(behind).WaitReady(within(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		cell.Cut(at, behind)
		mustSet(t, leader, "/a", "x")
		backed := make(chan []byte, 1)
		go func() {
			var b bytes.Buffer
			if err := cell.Node(behind).Backup(within(t, time.Minute), &b); err != nil {
				t.Error(err)
			}
			backed <- b.Bytes()
		}()
		time.Sleep(100 * time.Millisecond)
		cell.Heal()
		o := chubby.Options{ID: "new", Cell: "test", Hooks: &hook.Hooks{Disk: new(hook.Disk)}}
		if err := chubby.Restore(bytes.NewReader(<-backed), o); err != nil {
			t.Fatal(err)
		}
		n := openNode(t, o)
		wantGet(t, n, "/a", "x")
		n.Close()
	})
}
