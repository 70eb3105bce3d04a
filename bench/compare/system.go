package main

import "context"

// nodes is the size of every cell measured here.
const nodes = 3

// system is one product under measurement: a running cell of [nodes] nodes, numbered from 0.
//
// All methods but Close are safe for concurrent use. A call with a node is made as a program on that node makes it, so a
// follower's share of the way (forwarding, asking the leader) is part of what is measured. Keys and paths look like
// "put/0017": valid as a key everywhere and as a path in chubby.
type system interface {
	Name() string
	// Leader gives the node that leads now, or -1.
	Leader() int
	// Put returns when the write is durable on a majority.
	Put(ctx context.Context, node int, key, value string) error
	// Get is linearizable on every node. A missing key is an error.
	Get(ctx context.Context, node int, key string) (string, error)
	// StaleGet reads the node's own memory and may be behind. A missing key is "".
	StaleGet(ctx context.Context, node int, key string) (string, error)
	// Watch tells what is written to key from now on, as the node learns of it. It returns when nothing can be missed any
	// more; the watch then waits until loop is called, which gives the values in order until ctx ends.
	Watch(ctx context.Context, node int, key string) (loop func(told func(value string)) error, err error)
	// NewLocker makes what one caller needs to take locks, such as a session. Callers do so before the clock starts.
	NewLocker(ctx context.Context, node int) (locker, error)
	// Close stops the cell and waits for it.
	Close() error
}

// locker takes one lock at a time for one caller. It is not safe for concurrent use.
type locker interface {
	// Lock waits until this locker, among all of the cell, is the only holder of path.
	Lock(ctx context.Context, path string) error
	// Unlock returns when the cell has the lock free again.
	Unlock(ctx context.Context) error
	Close() error
}

// opener starts a system in an empty directory on a real disk, with durable writes, and waits until it has a leader.
type opener struct {
	name string
	open func(ctx context.Context, dir string) (system, error)
}

// openers lists the systems; the first one measured is the one the others are compared with.
func openers() []opener {
	return []opener{
		{"chubby", openChubby},
		{"etcd", openEtcd},
		{"etcd-inprocess", openEtcdInProcess},
		{"raft", openRaft},
	}
}
