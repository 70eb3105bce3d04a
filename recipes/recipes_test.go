package recipes_test

import (
	"context"
	"errors"
	"flag"
	"log"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

var long = flag.Bool("long", false, "run random schedules for long")

// schedule is how long random schedules go on, in the cell's time.
func schedule() time.Duration {
	if *long {
		return time.Hour
	}
	return 30 * time.Second
}

// inBubble runs f with a cell of three.
func inBubble(t *testing.T, f func(t *testing.T, cell *chubbytest.Cell), opts ...func(*chubby.Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, chubbytest.NewCell(t, 3, opts...)) })
}

// noGrace makes a session's loss known to its holder as soon as its lease is over.
func noGrace(o *chubby.Options) { o.GracePeriod = -1 }

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	var e *chubby.Error
	if !errors.As(err, &e) {
		t.Errorf("%T is no *chubby.Error: %v", err, err)
	}
}

// cancelled wants wait to end with its ctx after a second, and at once.
func cancelled(t *testing.T, wait func(context.Context) error) {
	t.Helper()
	begun := time.Now()
	wantErr(t, wait(within(t, time.Second)), context.DeadlineExceeded)
	if d := time.Since(begun); d > 1100*time.Millisecond {
		t.Errorf("a wait of 1 s took %v", d)
	}
}

// idle wants nobody to hold or await the lock at path.
func idle(t *testing.T, c *chubby.Client, path string) {
	t.Helper()
	info, err := c.LockInfo(within(t, time.Minute), path)
	must(t, err)
	if len(info.Holders) > 0 || info.Waiters > 0 {
		t.Errorf("left behind at %s: %+v", path, info)
	}
}

// entries lists the files at and below dir.
func entries(t *testing.T, c *chubby.Client, dir string) []string {
	t.Helper()
	var list []string
	children, err := c.List(within(t, time.Minute), dir)
	if errors.Is(err, chubby.ErrNotFound) {
		return nil
	}
	must(t, err)
	for _, e := range children {
		if e.Stat.Dir {
			list = append(list, entries(t, c, e.Path)...)
		} else {
			list = append(list, e.Path)
		}
	}
	return list
}

// others gives the indexes of the two nodes that are not i.
func others(i int) (int, int) { return (i + 1) % 3, (i + 2) % 3 }

// open gives the examples a cell of one in memory.
func open() *chubby.Node {
	node, err := chubby.Open(chubby.Options{})
	if err != nil {
		log.Fatal(err)
	}
	return node
}

func TestBadArguments(t *testing.T) {
	node := open()
	defer node.Close()
	c := node.Client
	for name, f := range map[string]func() error{
		"semaphore without client":  func() error { _, err := recipes.NewSemaphore(nil, "/a", 1); return err },
		"barrier without client":    func() error { _, err := recipes.NewBarrier(nil, "/a"); return err },
		"double barrier for none":   func() error { _, err := recipes.NewDoubleBarrier(c, "/a", 0); return err },
		"double barrier for many":   func() error { _, err := recipes.NewDoubleBarrier(c, "/a", 201); return err },
		"latch for none":            func() error { _, err := recipes.NewCountDownLatch(c, "/a", 0); return err },
		"latch for too many":        func() error { _, err := recipes.NewCountDownLatch(c, "/a", 100_001); return err },
		"counter that cannot begin": func() error { _, err := recipes.NewCounter(c, "/a", 1, 2); return err },
		"group without client":      func() error { _, err := recipes.NewGroup(nil, "/a"); return err },
		"semaphore without permits": func() error { _, err := recipes.NewSemaphore(c, "/a", 0); return err },
		"semaphore with too many":   func() error { _, err := recipes.NewSemaphore(c, "/a", 1025); return err },
	} {
		t.Run(name, func(t *testing.T) { wantErr(t, f(), chubby.ErrBadOptions) })
	}
	for name, f := range map[string]func() error{
		"barrier at the root":   func() error { _, err := recipes.NewBarrier(c, "//"); return err },
		"semaphore at the root": func() error { _, err := recipes.NewSemaphore(c, "/", 1); return err },
		"semaphore nowhere":     func() error { _, err := recipes.NewSemaphore(c, "", 1); return err },
		"a path with an empty part": func() error {
			s, err := recipes.NewSemaphore(c, "/a//b", 1)
			if err == nil {
				_, err = s.Acquire(t.Context())
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { wantErr(t, f(), chubby.ErrBadPath) })
	}
}
