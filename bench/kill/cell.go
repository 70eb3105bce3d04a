package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
)

// cell is three nodes in processes of their own. All methods are safe for concurrent use, except kill and restart of the
// same node.
type cell struct {
	opts  options
	dir   string
	peers map[string]string
	ids   []string // sorted
	fault func(error)

	mu struct {
		sync.Mutex
		up map[string]*process
	}
}

const (
	nodes        = 3
	readyTimeout = 30 * time.Second // for a cell with a majority up to make a node ready
	queryTimeout = 5 * time.Second  // for what a node knows by itself
)

// newCell starts the nodes and waits until all are ready. fault is told of nodes that end by themselves.
func newCell(ctx context.Context, o options, dir string, fault func(error)) (*cell, error) {
	c := &cell{opts: o, dir: dir, fault: fault, peers: make(map[string]string)}
	c.mu.up = make(map[string]*process)
	addrs, err := freeAddrs(nodes)
	if err != nil {
		return nil, err
	}
	for i, addr := range addrs {
		id := fmt.Sprintf("n%d", i)
		c.ids = append(c.ids, id)
		c.peers[id] = addr
	}
	for _, id := range c.ids {
		if err := c.restart(ctx, id); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	for _, id := range c.ids {
		if err := c.ready(id); err != nil {
			return nil, errors.Join(err, c.stop())
		}
	}
	return c, nil
}

// freeAddrs finds ports for nodes that are killed and come back. They lie below the range from which systems draw the
// ports of outgoing connections: in that range a node that is down could lose its port to a peer's dialling it, even to
// one that connects to itself.
func freeAddrs(n int) ([]string, error) {
	const first, last = 10000, 30000
	var addrs []string
	for try := 0; len(addrs) < n && try < 1000; try++ {
		addr := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(last-first))
		l, err := net.Listen("tcp", addr)
		if err != nil || slices.Contains(addrs, addr) {
			continue
		}
		l.Close()
		addrs = append(addrs, addr)
	}
	if len(addrs) < n {
		return nil, fmt.Errorf("no %d free ports between %d and %d", n, first, last)
	}
	return addrs, nil
}

// restart starts a node that is down, and returns when it is open. It may not be ready yet.
func (c *cell) restart(ctx context.Context, id string) error {
	cfg := nodeConfig{ID: id, Dir: filepath.Join(c.dir, id), Peers: c.peers, Heartbeat: c.opts.heartbeat, LogBytes: c.opts.logBytes,
		Sync: chubby.SyncPolicy(slices.Index(policies, c.opts.sync))}
	p, err := start(cfg, filepath.Join(c.dir, id+".log"), c.fault)
	if err != nil {
		return fmt.Errorf("starting node %s: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := p.waitOpen(ctx); err != nil {
		p.kill()
		return fmt.Errorf("opening node %s: %w", id, err)
	}
	c.mu.Lock()
	c.mu.up[id] = p
	c.mu.Unlock()
	return nil
}

// ready waits until a node has caught up with the cell.
func (c *cell) ready(id string) error {
	return c.ask(id, request{Call: callReady, Timeout: readyTimeout}, nil)
}

// kill ends a node at once and returns when its process is gone.
func (c *cell) kill(id string) {
	c.mu.Lock()
	p := c.mu.up[id]
	delete(c.mu.up, id)
	c.mu.Unlock()
	p.kill()
}

// stop ends all nodes in good order.
func (c *cell) stop() error {
	c.mu.Lock()
	up := c.mu.up
	c.mu.up = make(map[string]*process)
	c.mu.Unlock()
	errs := make([]error, len(c.ids))
	var wg sync.WaitGroup
	for i, id := range c.ids {
		if p := up[id]; p != nil {
			wg.Go(func() {
				if err := p.stop(); err != nil {
					errs[i] = fmt.Errorf("node %s: %w", id, err)
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// node returns the process of a node; nil while it is down.
func (c *cell) node(id string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.up[id]
}

// running returns the IDs of the nodes that are up, sorted.
func (c *cell) running() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ids []string
	for _, id := range c.ids {
		if c.mu.up[id] != nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// ask sends a request to a node that must be up, and must do it.
func (c *cell) ask(id string, r request, answer *response) error {
	p := c.node(id)
	if p == nil {
		return fmt.Errorf("node %s: %s: %w", id, r.Call, errEnded)
	}
	a, err := p.call(r)
	if err == nil && a.Outcome != done {
		err = errors.New(a.Err)
	}
	if err != nil {
		return fmt.Errorf("node %s: %s: %w", id, r.Call, err)
	}
	if answer != nil {
		*answer = a
	}
	return nil
}

// leader returns the ID of the cell leader, as the node with the newest term knows it; "" while there is none.
func (c *cell) leader() string {
	var leader string
	var term uint64
	for _, id := range c.running() {
		var a response
		if c.ask(id, request{Call: callStatus, Timeout: queryTimeout}, &a) == nil && a.Term >= term {
			if a.Term > term || a.Leader != "" {
				leader = a.Leader
			}
			term = a.Term
		}
	}
	return leader
}
