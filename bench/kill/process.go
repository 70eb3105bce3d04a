package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"time"
)

// process is a node in a process of its own. All methods are safe for concurrent use.
type process struct {
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	requests chan request
	opened   chan struct{} // closed by the first response
	done     chan struct{} // closed when the process has ended and all that it had written is read
	wg       sync.WaitGroup

	mu struct {
		sync.Mutex
		pending map[uint64]chan response // cap 1 each
		last    uint64                   // ID of the newest request
		meant   bool                     // the driver has ended it, or is about to
	}
	err error // why it ended; set before done is closed
}

// errEnded means that the process ended before it answered.
var errEnded = errors.New("the process has ended")

// start runs this program again, as a node. What it logs is appended to logFile. ended is called once, when the process
// has ended without having been told to.
func start(cfg nodeConfig, logFile string, ended func(error)) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // The process has its own descriptor.
	p := &process{cmd: exec.Command(self, nodeArgument), requests: make(chan request), opened: make(chan struct{}), done: make(chan struct{})}
	p.mu.pending = make(map[uint64]chan response)
	p.cmd.Stderr = log
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.wg.Go(func() { p.write(cfg) })
	p.wg.Go(func() {
		p.read(stdout)
		p.err = p.cmd.Wait()
		p.mu.Lock()
		meant := p.mu.meant
		p.mu.Unlock()
		if !meant {
			ended(fmt.Errorf("node %s ended by itself (%v); its log is %s", cfg.ID, p.err, logFile))
		}
		close(p.done)
	})
	return p, nil
}

// write sends requests until the process has ended.
func (p *process) write(cfg nodeConfig) {
	enc := json.NewEncoder(p.stdin)
	if enc.Encode(cfg) != nil {
		return
	}
	for {
		select {
		case r := <-p.requests:
			if enc.Encode(r) != nil {
				return
			}
		case <-p.done:
			return
		}
	}
}

// read takes responses to those who wait. What a process wrote before it was killed is still in the pipe, and counts: a
// response that has left the process has been seen.
func (p *process) read(stdout io.Reader) {
	dec := json.NewDecoder(stdout)
	for {
		var r response
		if dec.Decode(&r) != nil {
			return // the end, or a line cut off by it
		}
		if r.ID == 0 {
			close(p.opened)
			continue
		}
		p.mu.Lock()
		c := p.mu.pending[r.ID]
		delete(p.mu.pending, r.ID)
		p.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
}

// waitOpen waits until the node has said that it is open.
func (p *process) waitOpen(ctx context.Context) error {
	select {
	case <-p.opened:
		return nil
	case <-p.done:
		return errEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// call asks the node and waits for its answer. It returns errEnded if the process ended first; the call may then have
// taken effect. It relies on the node to honour r.Timeout, and gives it callGrace to do so.
func (p *process) call(r request) (response, error) {
	c := make(chan response, 1)
	p.mu.Lock()
	p.mu.last++
	r.ID = p.mu.last
	p.mu.pending[r.ID] = c
	p.mu.Unlock()
	late := time.NewTimer(r.Timeout + callGrace)
	defer late.Stop()
	select {
	case p.requests <- r:
	case <-p.done:
		return response{}, errEnded
	case <-late.C:
		return response{}, fmt.Errorf("a %s could not be sent: the node reads no requests", r.Call)
	}
	select {
	case answer := <-c:
		return answer, nil
	case <-p.done:
		select {
		case answer := <-c: // it came first, and select draws lots
			return answer, nil
		default:
			return response{}, errEnded
		}
	case <-late.C:
		return response{}, fmt.Errorf("a %s did not return %v after its context had ended", r.Call, callGrace)
	}
}

// callGrace is how long after its context's end a call may take to return.
const callGrace = 5 * time.Second

// kill ends the process as a crash would (SIGKILL where there are signals) and returns when it is gone.
func (p *process) kill() {
	p.mu.Lock()
	p.mu.meant = true
	p.mu.Unlock()
	p.cmd.Process.Kill() // It fails only if the process has ended already.
	p.wg.Wait()
}

// stop closes the node in good order.
func (p *process) stop() error {
	p.mu.Lock()
	p.mu.meant = true
	p.mu.Unlock()
	p.stdin.Close()
	late := time.AfterFunc(stopTimeout, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	p.wg.Wait()
	if p.err != nil {
		return fmt.Errorf("closing in good order: %w", p.err)
	}
	return nil
}

// stopTimeout is more than Close may take by its contract, a few seconds.
const stopTimeout = 15 * time.Second
