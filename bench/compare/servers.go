package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"
)

// servers are processes of one product.
type servers struct{ running []*server }

type server struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// start runs a program in dir, with its output in a file there.
func (s *servers) start(dir, name, program string, args ...string) error {
	out, err := os.Create(dir + "/" + name + ".out")
	if err != nil {
		return err
	}
	defer out.Close() // the process has its own
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, out, out
	if err := cmd.Start(); err != nil {
		return err
	}
	p := &server{cmd, make(chan struct{})}
	s.running = append(s.running, p)
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // killed by Close, or gone by itself: then its callers tell
	}()
	return nil
}

// Close kills them: their data are of no use any more.
func (s *servers) Close() error {
	var errs []error
	for _, p := range s.running {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		<-p.done
	}
	return errors.Join(errs...)
}

// lookup gives a program's path, looking beyond PATH where distributions put it, or errMissing.
func lookup(program string, more ...string) (string, error) {
	for _, name := range append([]string{program}, more...) {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: there is no %s", errMissing, program)
}

// await calls f until it has no error, and gives the last one when ctx ends.
func await(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// dial connects, and bounds how long anything on the connection may take.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err == nil {
		err = c.SetDeadline(time.Now().Add(10 * time.Minute))
	}
	return c, err
}

func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }
