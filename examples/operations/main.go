// Operations shows how a cell is operated, with real processes, sockets and disks:
//
//	go run ./examples/operations
//
// A cell of one grows to three while it is written to. Then one machine is lost with its disk, and a new one takes its
// place. Then the nodes are restarted one after the other, each at a new address. Every write that was acknowledged is
// there at the end. Nothing is left behind: the processes are ended and the directory is removed.
//
// docs/operations.md tells about the same steps at length.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// patience is how long one step may take; only a show that has gone wrong takes so long.
const patience = 2 * time.Minute

func main() {
	var err error
	if config := os.Getenv(nodeEnv); config != "" {
		err = runNode(config, os.Stdin, os.Stdout)
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = run(ctx, os.Stdout)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "operations:", err)
		os.Exit(1)
	}
}

// show is the operator: the processes that it started, and what it wants of them.
type show struct {
	out   io.Writer
	dir   string
	nodes map[string]*process
}

func run(ctx context.Context, out io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "chubby-operations")
	if err != nil {
		return err
	}
	s := &show{out: out, dir: dir, nodes: make(map[string]*process)}
	defer func() {
		for _, p := range s.nodes {
			err = errors.Join(err, p.close())
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := s.start(ctx, "a"); err != nil {
		return err
	}
	s.say("a has founded a cell of one")
	w := s.write(ctx)
	defer w.end()
	for _, step := range []func(context.Context) error{s.grow, s.replace, s.restart} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	w.end()
	return s.compare(ctx, w)
}

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// grow makes the cell one of three.
func (s *show) grow(ctx context.Context) error {
	for _, id := range []string{"b", "c"} {
		if err := s.start(ctx, id, "a"); err != nil {
			return err
		}
	}
	return s.wantVoters(ctx, "a", "b", "c")
}

// replace loses a machine and puts a new one in its place.
func (s *show) replace(ctx context.Context) error {
	if err := s.nodes["c"].kill(); err != nil {
		return err
	}
	delete(s.nodes, "c")
	if err := os.RemoveAll(filepath.Join(s.dir, "c")); err != nil {
		return err
	}
	s.say("c was killed, and its disk is lost")
	if _, err := s.ask(ctx, "a", request{Op: "remove", ID: "c"}); err != nil {
		return err
	}
	s.say("c was removed from the cell")
	if err := s.start(ctx, "d", "a", "b"); err != nil {
		return err
	}
	return s.wantVoters(ctx, "a", "b", "d")
}

// restart closes and opens every node, each at another address.
func (s *show) restart(ctx context.Context) error {
	for _, id := range []string{"a", "b", "d"} {
		if err := s.nodes[id].close(); err != nil {
			return err
		}
		delete(s.nodes, id)
		var others []string
		for other := range s.nodes {
			others = append(others, other)
		}
		if err := s.start(ctx, id, others...); err != nil {
			return err
		}
	}
	s.say("a, b and d were restarted one after the other, at new addresses")
	return s.wantVoters(ctx, "a", "b", "d")
}

// start starts a node, which asks the others to take it in if it is new, and waits until it has caught up.
func (s *show) start(ctx context.Context, id string, others ...string) error {
	c := config{ID: id, Dir: filepath.Join(s.dir, id)}
	for _, other := range others {
		c.Join = append(c.Join, s.nodes[other].addr)
	}
	if err := s.open(c); err != nil {
		return err
	}
	_, err := s.ask(ctx, id, request{Op: "ready"})
	return err
}

// open starts a node at an address that is free.
func (s *show) open(c config) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c.Listen = l.Addr().String()
	if err := l.Close(); err != nil {
		return err
	}
	p, err := startProcess(s.dir, c)
	if err == nil {
		s.nodes[c.ID] = p
	}
	return err
}

func (s *show) ask(ctx context.Context, id string, q request) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	r, err := s.nodes[id].ask(ctx, q)
	if err != nil {
		err = fmt.Errorf("%s of node %s: %w", q.Op, id, err)
	}
	return r, err
}

// wantVoters waits until exactly these vote, at the addresses that they have.
func (s *show) wantVoters(ctx context.Context, ids ...string) error {
	var want []string
	for _, id := range ids {
		want = append(want, id+"="+s.nodes[id].addr)
	}
	for deadline := time.Now().Add(patience); ; {
		r, err := s.ask(ctx, ids[0], request{Op: "voters"})
		if err != nil {
			return err
		}
		if slices.Equal(r.Voters, want) {
			s.say("the voters are %s", strings.Join(ids, ", "))
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the voters are %q, want %q", r.Voters, want)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// writer writes until its end.
type writer struct {
	once  sync.Once
	stop  context.CancelFunc
	done  chan struct{}
	acked int // writes 0 to acked-1 were acknowledged; set before done is closed
	err   error
}

// write starts a writer, which goes through a nonvoter of its own: full calls, and no part of the majority.
func (s *show) write(ctx context.Context) *writer {
	ctx, cancel := context.WithCancel(ctx)
	w := &writer{stop: cancel, done: make(chan struct{})}
	c := config{ID: "app", Dir: filepath.Join(s.dir, "app"), Join: []string{s.nodes["a"].addr}, Nonvoter: true}
	if w.err = s.open(c); w.err != nil {
		close(w.done)
		return w
	}
	p := s.nodes["app"]
	go func() {
		defer close(w.done)
		for ; ctx.Err() == nil; w.acked++ {
			if _, w.err = p.ask(ctx, request{Op: "set", ID: fmt.Sprint(w.acked)}); w.err != nil {
				if ctx.Err() != nil {
					w.err = nil
				}
				return
			}
		}
	}()
	return w
}

func (w *writer) end() {
	w.once.Do(w.stop)
	<-w.done
}

// compare looks for every acknowledged write on every node.
func (s *show) compare(ctx context.Context, w *writer) error {
	if w.err != nil {
		return fmt.Errorf("writing: %w", w.err)
	}
	for _, id := range []string{"a", "b", "d", "app"} {
		r, err := s.ask(ctx, id, request{Op: "count"})
		if err != nil {
			return err
		}
		if r.Count < w.acked || w.acked == 0 {
			return fmt.Errorf("node %s has %d writes, %d were acknowledged", id, r.Count, w.acked)
		}
	}
	s.say("every acknowledged write is on every node")
	return nil
}
