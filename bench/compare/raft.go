package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// raftTimeout is hraftd's, for transport and Apply alike.
const raftTimeout = 10 * time.Second

// raftSystem is hashicorp/raft wired as in hraftd, the example its documentation points to: default configuration, TCP
// transport with three pooled connections, one BoltStore for log and votes, a FileSnapshotStore, a map with JSON commands.
// hraftd leaves it to the caller to find the leader; here a follower forwards over a connection kept open (link).
type raftSystem struct {
	nodes []*raftNode
}

// raftNode is one member, with its end of the forwarding connections.
type raftNode struct {
	raft      *raft.Raft
	fsm       *mapFSM
	transport *raft.NetworkTransport
	store     *raftboltdb.BoltStore
	server    *forwardServer
	links     [nodes]*link // to each other node; nil for itself

	mu    sync.Mutex
	turns map[string]chan struct{} // on the leader, by path: has room for the one whose turn it is
}

func openRaft(ctx context.Context, dir string) (_ system, err error) {
	s := &raftSystem{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	var members raft.Configuration
	for i := range nodes {
		n, err := openRaftNode(filepath.Join(dir, strconv.Itoa(i)))
		if n != nil {
			s.nodes = append(s.nodes, n)
		}
		if err != nil {
			return nil, fmt.Errorf("node %d: %w", i, err)
		}
		members.Servers = append(members.Servers, raft.Server{
			ID: raft.ServerID(strconv.Itoa(i)), Address: n.transport.LocalAddr(),
		})
	}
	for i, n := range s.nodes {
		if err := n.start(i, filepath.Join(dir, strconv.Itoa(i)), members); err != nil {
			return nil, fmt.Errorf("node %d: %w", i, err)
		}
	}
	for i, n := range s.nodes {
		for j, to := range s.nodes {
			if i == j {
				continue
			}
			if n.links[j], err = dialLink(ctx, to.server.addr()); err != nil {
				return nil, err
			}
		}
	}
	return s, s.waitLeader(ctx)
}

// openRaftNode opens what a node needs before the addresses of all are known.
func openRaftNode(dir string) (*raftNode, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	n := &raftNode{fsm: newMapFSM(), turns: make(map[string]chan struct{})}
	var err error
	if n.transport, err = raft.NewTCPTransport("127.0.0.1:0", nil, 3, raftTimeout, io.Discard); err != nil {
		return n, err
	}
	n.store, err = raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "raft.db")})
	return n, err
}

func (n *raftNode) start(i int, dir string, members raft.Configuration) error {
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(strconv.Itoa(i))
	cfg.LogOutput = io.Discard
	snapshots, err := raft.NewFileSnapshotStore(dir, 2, io.Discard)
	if err != nil {
		return err
	}
	if err := raft.BootstrapCluster(cfg, n.store, n.store, snapshots, n.transport, members); err != nil {
		return err
	}
	if n.raft, err = raft.NewRaft(cfg, n.fsm, n.store, n.store, snapshots, n.transport); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	n.server = newForwardServer(l, n.handle)
	return nil
}

// waitLeader returns when every node knows the leader.
func (s *raftSystem) waitLeader(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if !slices.ContainsFunc(s.nodes, func(n *raftNode) bool { return n.leader() < 0 }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a leader: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *raftSystem) Name() string { return "raft" }

func (s *raftSystem) Leader() int {
	return slices.IndexFunc(s.nodes, func(n *raftNode) bool { return n.raft.State() == raft.Leader })
}

func (s *raftSystem) Put(ctx context.Context, node int, key, value string) error {
	body, err := json.Marshal(command{Op: "set", Key: key, Value: value})
	if err != nil {
		return err
	}
	_, err = s.nodes[node].request(ctx, reqApply, body)
	return err
}

func (s *raftSystem) Get(ctx context.Context, node int, key string) (string, error) {
	value, err := s.nodes[node].request(ctx, reqGet, []byte(key))
	return string(value), err
}

func (s *raftSystem) StaleGet(_ context.Context, node int, key string) (string, error) {
	value, _ := s.nodes[node].fsm.get(key)
	return value, nil
}

// Watch is fed by the node's own state machine.
func (s *raftSystem) Watch(ctx context.Context, node int, key string) (func(func(string)) error, error) {
	f := s.nodes[node].fsm
	values := f.subscribe(key)
	return func(told func(string)) error {
		defer f.unsubscribe(key, values)
		for {
			select {
			case v := <-values:
				told(v)
			case <-ctx.Done():
				return nil
			}
		}
	}, nil
}

func (s *raftSystem) NewLocker(_ context.Context, node int) (locker, error) {
	return &raftLocker{node: s.nodes[node]}, nil
}

func (s *raftSystem) Close() error {
	var errs []error
	for _, n := range s.nodes {
		for _, l := range n.links {
			if l != nil {
				l.close()
			}
		}
	}
	for _, n := range s.nodes {
		if n.raft != nil {
			errs = append(errs, n.raft.Shutdown().Error())
		}
		if n.server != nil {
			errs = append(errs, n.server.close())
		}
		if n.transport != nil {
			errs = append(errs, n.transport.Close())
		}
		if n.store != nil {
			errs = append(errs, n.store.Close())
		}
	}
	return errors.Join(errs...)
}

// leader gives the node that this one takes for the leader, or -1.
func (n *raftNode) leader() int {
	_, id := n.raft.LeaderWithID()
	i, err := strconv.Atoi(string(id))
	if err != nil {
		return -1
	}
	return i
}

// request has the leader handle a request: by a plain call where this node leads, over the link where it does not.
func (n *raftNode) request(ctx context.Context, kind byte, body []byte) ([]byte, error) {
	i := n.leader()
	if i < 0 {
		return nil, raft.ErrNotLeader
	}
	if n.links[i] == nil {
		return n.handle(ctx, kind, body)
	}
	return n.links[i].call(ctx, kind, body)
}

// Requests to the leader.
const (
	reqApply  = iota // body: a command for the log
	reqGet           // body: a key; answer: its value
	reqLock          // body: a path
	reqUnlock        // body: a path
)

// handle serves a request on the leader.
func (n *raftNode) handle(ctx context.Context, kind byte, body []byte) ([]byte, error) {
	switch kind {
	case reqApply:
		_, err := n.apply(body)
		return nil, err
	case reqGet:
		if err := n.raft.VerifyLeader().Error(); err != nil {
			return nil, err
		}
		value, ok := n.fsm.get(string(body))
		if !ok {
			return nil, fmt.Errorf("%s: not found", body)
		}
		return []byte(value), nil
	case reqLock:
		return nil, n.lock(ctx, string(body))
	case reqUnlock:
		return nil, n.unlock(string(body))
	}
	return nil, fmt.Errorf("request of kind %d", kind)
}

func (n *raftNode) offer(c command) (applied bool, err error) {
	body, err := json.Marshal(c)
	if err != nil {
		return false, err
	}
	return n.apply(body)
}

func (n *raftNode) apply(body []byte) (applied bool, err error) {
	f := n.raft.Apply(body, raftTimeout)
	if err := f.Error(); err != nil {
		return false, err
	}
	return f.Response().(bool), nil
}

// turn gives the channel that callers of path queue at, in the order they came: the runtime serves blocked senders so.
func (n *raftNode) turn(path string) chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	turn, ok := n.turns[path]
	if !ok {
		turn = make(chan struct{}, 1)
		n.turns[path] = turn
	}
	return turn
}

// lock waits for its turn in the leader's memory, so that waiters cost the log nothing and do not starve, and then sets
// the key. A key set under another leader is not waited for: the measurement fails, as it does without a leader.
func (n *raftNode) lock(ctx context.Context, path string) error {
	turn := n.turn(path)
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	won, err := n.offer(command{Op: "setnx", Key: path, Value: "held"})
	if err == nil && !won {
		err = fmt.Errorf("lock %s: held since another leader", path)
	}
	if err != nil {
		<-turn
	}
	return err
}

func (n *raftNode) unlock(path string) error {
	if _, err := n.offer(command{Op: "delete", Key: path}); err != nil {
		return err
	}
	select {
	case <-n.turn(path):
	default: // Locked under another leader.
	}
	return nil
}

// raftLocker is the lock one builds on a map: set if absent, then delete. It has no session and no sequencer.
type raftLocker struct {
	node *raftNode
	path string
}

func (l *raftLocker) Lock(ctx context.Context, path string) error {
	l.path = path
	_, err := l.node.request(ctx, reqLock, []byte(path))
	return err
}

func (l *raftLocker) Unlock(ctx context.Context) error {
	_, err := l.node.request(ctx, reqUnlock, []byte(l.path))
	return err
}

func (l *raftLocker) Close() error { return nil }
