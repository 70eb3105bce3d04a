package recipes_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/recipes"
)

func group(t *testing.T, n *chubby.Node) *recipes.Group {
	t.Helper()
	g, err := recipes.NewGroup(n.Client, "/svc/web")
	must(t, err)
	return g
}

func join(t *testing.T, g *recipes.Group, id, metadata string) *recipes.Membership {
	t.Helper()
	m, err := g.Join(within(t, time.Minute), id, []byte(metadata))
	must(t, err)
	return m
}

func brief(list []recipes.Member) string {
	var out []string
	for _, m := range list {
		out = append(out, m.ID+"="+string(m.Metadata))
	}
	return strings.Join(out, " ")
}

func wantMembers(t *testing.T, g *recipes.Group, want string) {
	t.Helper()
	list, err := g.Members(within(t, time.Minute))
	must(t, err)
	if got := brief(list); got != want {
		t.Errorf("members %q, want %q", got, want)
	}
}

// watcher takes states one by one.
type watcher func() ([]recipes.Member, error, bool)

func watch(t *testing.T, ctx context.Context, g *recipes.Group) watcher {
	next, stop := iter.Pull2(g.Watch(ctx))
	t.Cleanup(stop)
	return next
}

// until takes states until one is want.
func (w watcher) until(t *testing.T, want string) {
	t.Helper()
	for seen := []string{}; ; {
		list, err, ok := w()
		if err != nil || !ok {
			t.Fatalf("watch ended with %v, %v, after %q", err, ok, seen)
		}
		got := brief(list)
		if got == want {
			return
		}
		seen = append(seen, got)
	}
}

func TestGroup(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 5*time.Minute)
		g, h := group(t, cell.Node(0)), group(t, cell.Node(1))
		wantMembers(t, g, "")
		w := watch(t, ctx, group(t, cell.Node(2)))
		if list, err, ok := w(); len(list) > 0 || err != nil || !ok {
			t.Fatalf("first state: %v, %v, %v", list, err, ok)
		}
		a := join(t, g, "a", "1")
		w.until(t, "a=1")
		b := join(t, h, "b", "2")
		wantMembers(t, g, "a=1 b=2")
		w.until(t, "a=1 b=2")
		must(t, a.Update(ctx, []byte("1b")))
		wantMembers(t, h, "a=1b b=2")
		w.until(t, "a=1b b=2")

		// Other entries are nobody's; a file in a session of one's own is a member.
		_, err := cell.Node(0).Set(ctx, "/svc/web/readme", nil)
		must(t, err)
		_, err = cell.Node(0).Create(ctx, "/svc/web/dir", nil, chubby.CreateOptions{Dir: true})
		must(t, err)
		_, err = cell.Node(0).Create(ctx, "/svc/web/c", []byte("3"), chubby.CreateOptions{Ephemeral: true})
		must(t, err)
		w.until(t, "a=1b b=2 c=3")

		// A taken ID is waited for, and leaves nothing when the wait is given up.
		cancelled(t, func(ctx context.Context) error {
			_, err := h.Join(ctx, "a", nil)
			if !errors.Is(err, chubby.ErrExists) {
				t.Errorf("Join of a taken ID: %v", err)
			}
			return err
		})
		time.Sleep(time.Second) // what Status counts is what this node knows
		sessions := cell.Node(0).Status().Sessions
		next := make(chan *recipes.Membership, 1)
		joining := running(t, func(ctx context.Context) error {
			m, err := h.Join(ctx, "a", []byte("new"))
			next <- m
			return err
		})
		wantRunning(t, joining)
		must(t, a.Leave(ctx))
		must(t, a.Leave(ctx))
		must(t, <-joining)
		wantErr(t, a.Update(ctx, []byte("old")), chubby.ErrSessionExpired)
		if !errors.Is(a.Err(), chubby.ErrClosed) {
			t.Errorf("after Leave: %v", a.Err())
		}
		w.until(t, "a=new b=2 c=3")

		for _, id := range []string{"", "x/y", "x\n", strings.Repeat("x", 256)} {
			_, err := g.Join(ctx, id, nil)
			wantErr(t, err, chubby.ErrBadOptions)
		}
		_, err = g.Join(ctx, "..", nil)
		wantErr(t, err, chubby.ErrBadPath)
		_, err = g.Join(ctx, "big", make([]byte, 1<<20))
		wantErr(t, err, chubby.ErrTooLarge)

		must(t, (<-next).Leave(ctx))
		must(t, b.Leave(ctx))
		w.until(t, "c=3")
		time.Sleep(time.Second)
		if s := cell.Node(0).Status(); s.Sessions != sessions-2 {
			t.Errorf("%d sessions, want %d", s.Sessions, sessions-2)
		}
	})
}

// A watch ends with exactly one error, that of its ctx, or without one when its body breaks off.
func TestGroupWatchEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		seq := group(t, cell.Node(0)).Watch(within(t, time.Second))
		for range 2 {
			for list, err := range seq {
				if err != nil || len(list) > 0 {
					t.Errorf("first state: %v, %v", list, err)
				}
				break
			}
		}
		errs := 0
		for _, err := range seq {
			if err != nil {
				wantErr(t, err, context.DeadlineExceeded)
				errs++
			}
		}
		if errs != 1 {
			t.Errorf("%d errors", errs)
		}
		if n := cell.Node(0).Status().Watchers; n != 0 {
			t.Errorf("%d watches left", n)
		}
	})
}

// A member whose node crashed or is cut off goes with its session, not before it knows; then it can join again.
func TestGroupMemberLost(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lost := cell.Index(cell.Leader())
		a, b := others(lost)
		m := join(t, group(t, cell.Node(lost)), "x", "1")
		join(t, group(t, cell.Node(a)), "y", "2")
		w, v := watch(t, ctx, group(t, cell.Node(b))), watch(t, ctx, group(t, cell.Node(lost)))
		w.until(t, "x=1 y=2")
		v.until(t, "x=1 y=2")
		cell.Partition([]int{lost}, []int{a, b})
		w.until(t, "y=2")
		if m.Err() == nil {
			t.Error("the others saw the member go before it did")
		}
		<-m.Done()
		if !errors.Is(m.Err(), chubby.ErrSessionExpired) {
			t.Errorf("a lost member: %v", m.Err())
		}
		cell.Heal()
		v.until(t, "y=2")
		wantErr(t, m.Update(ctx, nil), chubby.ErrSessionExpired)
		join(t, group(t, cell.Node(lost)), "x", "again")
		w.until(t, "x=again y=2")

		// A quick restart waits for what its predecessor left behind.
		cell.Crash(a)
		cell.Restart(a)
		join(t, group(t, cell.Node(a)), "y", "3")
		w.until(t, "x=again y=3")
		v.until(t, "x=again y=3")
	}, noGrace)
}

// Whatever happens to the cell, every watch comes to the last state, also one that a snapshot has passed over.
func TestGroupWatchFaults(t *testing.T) {
	inBubble(t, func(t *testing.T, cell *chubbytest.Cell) {
		ctx, stop := context.WithCancel(within(t, time.Hour))
		var mu sync.Mutex
		var last [3]string
		var wg sync.WaitGroup
		watching := func(i int) {
			g := group(t, cell.Node(i))
			wg.Go(func() {
				for list, err := range g.Watch(ctx) {
					if err != nil {
						if ctx.Err() == nil && !errors.Is(err, chubby.ErrClosed) {
							t.Errorf("watch on node %d: %v", i, err)
						}
						return
					}
					mu.Lock()
					last[i] = brief(list)
					mu.Unlock()
				}
			})
		}
		for i := range 3 {
			watching(i)
		}
		time.Sleep(time.Second)
		r := rand.New(rand.NewPCG(5, 5))
		members := make(map[string]*recipes.Membership)
		for begun, n := time.Now(), 0; time.Since(begun) < schedule(); n++ {
			i := r.IntN(3)
			switch r.IntN(3) {
			case 0:
				cell.Crash(i)
				time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
				cell.Restart(i)
				watching(i)
			case 1:
				// Long enough for a log that goes on without it, so that a snapshot brings the node back.
				cell.Partition([]int{i})
				time.Sleep(time.Second)
				j, _ := others(i)
				for k := range 30 {
					_, err := cell.Node(j).Set(within(t, time.Minute), fmt.Sprint("/filler/", k), make([]byte, 8<<10))
					must(t, err)
				}
				join(t, group(t, cell.Node(j)), fmt.Sprint("cut", n), "")
				cell.Heal()
			}
			id := fmt.Sprint("m", r.IntN(5))
			if m := members[id]; m != nil && m.Err() == nil {
				_ = m.Leave(within(t, time.Second))
				delete(members, id)
			} else if m, err := group(t, cell.Node(r.IntN(3))).Join(within(t, 5*time.Second), id, []byte("x")); err == nil {
				members[id] = m
				must(t, m.Update(within(t, time.Minute), fmt.Append(nil, n)))
			}
		}
		time.Sleep(2 * time.Minute)
		for i := range 3 {
			list, err := group(t, cell.Node(i)).Members(within(t, time.Minute))
			must(t, err)
			mu.Lock()
			if want := brief(list); last[i] != want || want == "" {
				t.Errorf("the watch on node %d ends at %q, the members are %q", i, last[i], want)
			}
			mu.Unlock()
		}
		stop()
		wg.Wait()
	}, noGrace, func(o *chubby.Options) { o.MaxLogBytes = 128 << 10 })
}

func ExampleGroup() {
	node, ctx := open(), context.Background()
	defer node.Close()

	web, err := recipes.NewGroup(node.Client, "/service/web")
	if err != nil {
		log.Fatal(err)
	}
	one, err := web.Join(ctx, "one", []byte("10.0.0.1:80"))
	if err != nil {
		log.Fatal(err)
	}
	if _, err := web.Join(ctx, "two", []byte("10.0.0.2:80")); err != nil {
		log.Fatal(err)
	}
	for members, err := range web.Watch(ctx) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("members:", len(members))
		for _, m := range members {
			fmt.Printf("  %s at %s\n", m.ID, m.Metadata)
		}
		if len(members) == 1 {
			break
		}
		if err := one.Leave(ctx); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// members: 2
	//   one at 10.0.0.1:80
	//   two at 10.0.0.2:80
	// members: 1
	//   two at 10.0.0.2:80
}
