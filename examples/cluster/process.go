package main

import (
	"bufio"
	"cmp"
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

const (
	// nodeEnv tells a process that it is a node, and which configuration is its.
	nodeEnv = "CHUBBY_EXAMPLE_NODE"
	// stopTime is how long a node process may take to close.
	stopTime = 10 * time.Second
)

// process is one node process as the parent sees it.
type process struct {
	name   string // "A"
	log    string // file with its standard error
	cmd    *exec.Cmd
	ended  chan struct{} // closed by read when it has exited and was waited for
	killed bool          // by kill; for the goroutine that starts and ends processes

	in struct {
		sync.Mutex // so that lines do not mix
		io.WriteCloser
	}
	mu struct {
		sync.Mutex
		last    int // ID of the newest request
		waiting map[int]chan reply
		err     error // why nothing is answered any more
	}
}

// startNode starts this same program as a node, with dir as its working directory.
func startNode(dir, name, config string) (_ *process, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, log: filepath.Join(dir, name+".log"), cmd: exec.Command(self), ended: make(chan struct{})}
	p.mu.waiting = make(map[int]chan reply)
	stderr, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close() // the child has its own
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr = dir, append(os.Environ(), nodeEnv+"="+config), stderr
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
	go p.read(out)
	return p, nil
}

// read hands replies to those who wait, until the process ends.
func (p *process) read(out io.Reader) {
	defer close(p.ended)
	var why error
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var r reply
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			why = fmt.Errorf("node %s says %q: %w", p.name, lines.Text(), err)
			_ = p.cmd.Process.Kill() // it is in no state to be asked
			break
		}
		if r.ID == 0 {
			why = fmt.Errorf("node %s could not start: %s", p.name, r.Error)
			continue
		}
		p.mu.Lock()
		answer := p.mu.waiting[r.ID]
		delete(p.mu.waiting, r.ID)
		p.mu.Unlock()
		if answer != nil {
			answer <- r // cap 1, and sent to once
		}
	}
	err := p.cmd.Wait() // all output was read, as Wait demands
	if why == nil {
		why = fmt.Errorf("node %s has ended: %w; its log: %s", p.name, cmp.Or(err, errors.New("exit status 0")), logTail(p.log))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.err = why
	for id, answer := range p.mu.waiting {
		delete(p.mu.waiting, id)
		close(answer)
	}
}

// call asks the node and waits for its answer. An error that the node reports is a *nodeError.
func (p *process) call(ctx context.Context, q request) (reply, error) {
	answer := make(chan reply, 1)
	p.mu.Lock()
	if err := p.mu.err; err != nil {
		p.mu.Unlock()
		return reply{}, err
	}
	p.mu.last++
	q.ID = p.mu.last
	p.mu.waiting[q.ID] = answer
	p.mu.Unlock()
	line, err := json.Marshal(q)
	if err == nil {
		p.in.Lock()
		_, err = p.in.Write(append(line, '\n')) // not for long: the node reads whatever else it does
		p.in.Unlock()
	}
	if err != nil {
		select { // a pipe that is broken because the process ended is better explained by its end
		case <-p.ended:
			return reply{}, p.cause()
		case <-ctx.Done():
			return reply{}, fmt.Errorf("asking node %s: %w", p.name, err)
		}
	}
	select {
	case r, ok := <-answer:
		if !ok {
			return reply{}, p.cause()
		}
		if r.Error != "" {
			return r, &nodeError{p.name, r}
		}
		return r, nil
	case <-ctx.Done():
		return reply{}, fmt.Errorf("node %s does not answer %q: %w", p.name, q.Do, ctx.Err())
	}
}

func (p *process) cause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.err
}

// nodeError is an error that a node reported.
type nodeError struct {
	name  string
	reply reply
}

func (e *nodeError) Error() string { return "node " + e.name + ": " + e.reply.Error }

// kill ends the process as a crash does: nothing is closed, nothing given back.
func (p *process) kill() error {
	p.killed = true
	err := p.cmd.Process.Kill()
	<-p.ended
	return err
}

// stop lets the process close its node, and waits for it. It returns an error if the process did not end well or had to
// be killed, but for one that was killed before.
func (p *process) stop() error {
	if p.killed {
		return nil
	}
	err := p.in.Close()
	if errors.Is(err, os.ErrClosed) {
		err = nil // it has ended before
	}
	t := time.NewTimer(stopTime)
	defer t.Stop()
	select {
	case <-p.ended:
		if !p.cmd.ProcessState.Success() {
			err = p.cause()
		}
		return err
	case <-t.C:
		return errors.Join(fmt.Errorf("node %s did not close within %v; its log: %s", p.name, stopTime, logTail(p.log)), p.kill())
	}
}

// logTail returns the end of a log.
func logTail(file string) string {
	const most = 2 << 10
	b, err := os.ReadFile(file)
	switch {
	case err != nil:
		return err.Error()
	case len(b) == 0:
		return "empty"
	}
	return "\n" + string(b[max(0, len(b)-most):])
}
