package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// process is a node process as the parent sees it.
type process struct {
	addr  string
	cmd   *exec.Cmd
	ended chan struct{} // closed by read when the process has exited

	in struct {
		sync.Mutex // so that lines do not mix
		io.WriteCloser
	}
	mu struct {
		sync.Mutex
		last    int
		waiting map[int]chan reply
		err     error // why nothing is answered any more
	}
}

// startProcess starts this same program as a node. What it has to say goes to a file in dir.
func startProcess(dir string, c config) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, c.ID+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the child has its own
	p := &process{addr: c.Listen, cmd: exec.Command(self), ended: make(chan struct{})}
	p.mu.waiting = make(map[int]chan reply)
	p.cmd.Env, p.cmd.Stderr = append(os.Environ(), nodeEnv+"="+string(text)), log
	if p.in.WriteCloser, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.read(out, log.Name())
	return p, nil
}

// read gives replies to those who wait, until the process has ended.
func (p *process) read(out io.Reader, log string) {
	defer close(p.ended)
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r reply
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue // not from us; the test framework prints as well
		}
		p.mu.Lock()
		wake := p.mu.waiting[r.N]
		delete(p.mu.waiting, r.N)
		p.mu.Unlock()
		if wake != nil {
			wake <- r // cap 1
		}
	}
	err := errors.Join(errors.New("the process has ended"), p.cmd.Wait())
	if said, e := os.ReadFile(log); e == nil && len(said) > 0 {
		err = fmt.Errorf("%w; it said: %s", err, said[max(0, len(said)-2000):])
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.err = err
	for _, wake := range p.mu.waiting {
		close(wake)
	}
	p.mu.waiting = nil
}

// ask sends a request and waits for the reply.
func (p *process) ask(ctx context.Context, q request) (reply, error) {
	wake := make(chan reply, 1)
	p.mu.Lock()
	err := p.mu.err
	if err == nil {
		p.mu.last++
		q.N = p.mu.last
		p.mu.waiting[q.N] = wake
	}
	p.mu.Unlock()
	line, bad := json.Marshal(q)
	if err = errors.Join(err, bad); err != nil {
		return reply{}, err
	}
	p.in.Lock()
	_, err = p.in.Write(append(line, '\n'))
	p.in.Unlock()
	if err != nil {
		return reply{}, err
	}
	select {
	case r, ok := <-wake:
		switch {
		case !ok:
			p.mu.Lock()
			defer p.mu.Unlock()
			return reply{}, p.mu.err
		case r.Error != "":
			return r, errors.New(r.Error)
		}
		return r, nil
	case <-ctx.Done():
		return reply{}, ctx.Err()
	}
}

// close ends the process in good order.
func (p *process) close() error {
	err := p.in.Close()
	select {
	case <-p.ended:
		return nil
	case <-time.After(stopTime):
		return errors.Join(err, errors.New("the process does not end"), p.kill())
	}
}

// kill ends the process at once.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.ended
	return err
}
