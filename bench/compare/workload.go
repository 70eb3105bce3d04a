package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	keyCount   = 1000
	valueBytes = 100
)

// workload is what callers do, and how many of them.
type workload struct {
	op      string
	callers int
	at      string // where the callers are, see place
	// prepare makes one step per caller, and what undoes the preparation. No time is taken of either.
	prepare func(ctx context.Context, s system, callers []caller) (steps []step, cleanup func() error, err error)
}

// caller is one goroutine of a workload.
type caller struct {
	node int
	rand *rand.Rand // seeded by the number of the caller: every system sees the same keys
}

// A step does one operation and gives its latency, or uncounted when it was not what the workload counts.
type step func(ctx context.Context) (time.Duration, error)

const uncounted time.Duration = -1

func workloads() []workload {
	return []workload{
		{op: "put", callers: 1, at: atFollower, prepare: each(put)},
		{op: "put", callers: 1, at: atLeader, prepare: each(put)},
		{op: "put", callers: 64, at: atAll, prepare: each(put)},
		{op: "get", callers: 1, at: atFollower, prepare: each(get)},
		{op: "get", callers: 64, at: atAll, prepare: each(get)},
		{op: "lock", callers: 1, at: atFollower, prepare: lockCycle},
		{op: "lock", callers: 64, at: atAll, prepare: lockCycle},
		{op: "visible", callers: 1, at: atAll, prepare: each(visible)},
		{op: "watch", callers: 1, at: atAll, prepare: watch},
		{op: "handover", callers: 8, at: atAll, prepare: handOver},
		{op: "handover", callers: 32, at: atAll, prepare: handOver},
	}
}

// Where callers are. A lone caller has a fixed place: otherwise a system whose leader happens to be under it would win.
const (
	atFollower = "follower"
	atLeader   = "leader"
	atAll      = "all" // spread evenly over the nodes
)

// name is "put/callers=64/at=all".
func (w workload) name() string { return fmt.Sprintf("%s/callers=%d/at=%s", w.op, w.callers, w.at) }

// place makes the callers, on the nodes that at says.
func (w workload) place(leader int) []caller {
	cs := make([]caller, w.callers)
	for i := range cs {
		node := leader
		switch w.at {
		case atFollower:
			node = (leader + 1) % nodes
		case atAll:
			node = (leader + 1 + i) % nodes
		}
		cs[i] = caller{node: node, rand: rand.New(rand.NewPCG(1, uint64(i)))}
	}
	return cs
}

// each is the preparation of a workload whose callers share nothing.
func each(one func(s system, c caller) step) func(context.Context, system, []caller) ([]step, func() error, error) {
	return func(_ context.Context, s system, cs []caller) ([]step, func() error, error) {
		var steps []step
		for _, c := range cs {
			steps = append(steps, one(s, c))
		}
		return steps, func() error { return nil }, nil
	}
}

func key(i int) string { return fmt.Sprintf("bench/%04d", i) }

// value is a text of valueBytes that starts with n.
func value(n uint64) string {
	s := fmt.Sprintf("%020d", n)
	return s + strings.Repeat("x", valueBytes-len(s))
}

// fill writes every key once.
func fill(ctx context.Context, s system) error {
	next := make(chan int)
	errs := make(chan error, 64)
	for i := range cap(errs) {
		go func() {
			var err error
			for k := range next {
				if err == nil {
					err = s.Put(ctx, i%nodes, key(k), value(0))
				}
			}
			errs <- err
		}()
	}
	for k := range keyCount {
		next <- k
	}
	close(next)
	var err error
	for range cap(errs) {
		err = errors.Join(err, <-errs)
	}
	return err
}

func put(s system, c caller) step {
	return func(ctx context.Context) (time.Duration, error) {
		k, v := key(c.rand.IntN(keyCount)), value(c.rand.Uint64())
		start := time.Now()
		err := s.Put(ctx, c.node, k, v)
		return time.Since(start), err
	}
}

func get(s system, c caller) step {
	return func(ctx context.Context) (time.Duration, error) {
		k := key(c.rand.IntN(keyCount))
		start := time.Now()
		v, err := s.Get(ctx, c.node, k)
		took := time.Since(start)
		if err == nil && len(v) != valueBytes {
			err = fmt.Errorf("get %s gave %d bytes", k, len(v))
		}
		return took, err
	}
}

// pair gives the nth of all pairs of different nodes, over and over.
func pair(n int) (writer, reader int) {
	writer = n % nodes
	return writer, (writer + 1 + n/nodes%(nodes-1)) % nodes
}

// visible writes on one node and asks another one's own memory until the value is there. The latency counts from the
// acknowledgement: it is how long a reader elsewhere may still see the old value. All six pairs of nodes take turns.
func visible(s system, c caller) step {
	n := 0
	return func(ctx context.Context) (time.Duration, error) {
		writer, reader := pair(n)
		n++
		k, v := "visible", value(c.rand.Uint64())
		if err := s.Put(ctx, writer, k, v); err != nil {
			return 0, err
		}
		start := time.Now()
		for {
			got, err := s.StaleGet(ctx, reader, k)
			if err != nil || got == v {
				return time.Since(start), err
			}
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			// A sleep would be rounded up to a millisecond, more than what is measured.
			runtime.Gosched()
		}
	}
}

// watch writes on one node and waits until watches on all nodes have told of it. The latency counts from the call of the
// write to the moment at which the watch on another node told. All six pairs of nodes take turns. There is one caller:
// with more, a watch could not tell whose write it tells of.
func watch(ctx context.Context, s system, cs []caller) ([]step, func() error, error) {
	const key = "watched"
	type news struct {
		value string
		at    time.Time
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	cleanup := func() error {
		cancel(nil)
		wg.Wait()
		return nil
	}
	var told [nodes]chan news
	for i := range told {
		told[i] = make(chan news, 1)
		loop, err := s.Watch(ctx, i, key)
		if err != nil {
			return nil, nil, errors.Join(err, cleanup())
		}
		wg.Go(func() {
			err := loop(func(value string) {
				select {
				case told[i] <- news{value, time.Now()}:
				case <-ctx.Done():
				}
			})
			cancel(err) // nil if ctx has ended, which is the first cause then
		})
	}
	n := 0
	return []step{func(stepCtx context.Context) (time.Duration, error) {
		writer, reader := pair(n)
		n++
		v := value(cs[0].rand.Uint64())
		start := time.Now()
		if err := s.Put(stepCtx, writer, key, v); err != nil {
			return 0, err
		}
		var took time.Duration
		for i := range told {
			select {
			case got := <-told[i]:
				if got.value != v {
					return 0, fmt.Errorf("the watch on node %d told of %.20q, want %.20q", i, got.value, v)
				}
				if i == reader {
					took = got.at.Sub(start)
				}
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			case <-stepCtx.Done():
				return 0, stepCtx.Err()
			}
		}
		return took, nil
	}}, cleanup, nil
}

// openLockers makes one locker per caller.
func openLockers(ctx context.Context, s system, cs []caller) (lockers []locker, cleanup func() error, err error) {
	cleanup = func() error {
		var errs []error
		for _, l := range lockers {
			errs = append(errs, l.Close())
		}
		return errors.Join(errs...)
	}
	for _, c := range cs {
		l, err := s.NewLocker(ctx, c.node)
		if err != nil {
			return nil, nil, errors.Join(err, cleanup())
		}
		lockers = append(lockers, l)
	}
	return lockers, cleanup, nil
}

// lockCycle locks and unlocks a path of the caller's own.
func lockCycle(ctx context.Context, s system, cs []caller) ([]step, func() error, error) {
	lockers, cleanup, err := openLockers(ctx, s, cs)
	if err != nil {
		return nil, nil, err
	}
	var steps []step
	for i, l := range lockers {
		path := fmt.Sprintf("lock/%02d", i)
		steps = append(steps, func(ctx context.Context) (time.Duration, error) {
			start := time.Now()
			if err := l.Lock(ctx, path); err != nil {
				return 0, err
			}
			err := l.Unlock(ctx)
			return time.Since(start), err
		})
	}
	return steps, cleanup, nil
}

// handOver has all callers want one lock and give it up at once. What counts is the change of holder; its latency is from
// the call of Unlock to the return of the next holder's Lock.
func handOver(ctx context.Context, s system, cs []caller) ([]step, func() error, error) {
	lockers, cleanup, err := openLockers(ctx, s, cs)
	if err != nil {
		return nil, nil, err
	}
	b := newBaton()
	var steps []step
	for i, l := range lockers {
		steps = append(steps, func(ctx context.Context) (time.Duration, error) {
			if err := l.Lock(ctx, "contended"); err != nil {
				return 0, err
			}
			took, err := b.take(i)
			if err != nil {
				return 0, err
			}
			b.give()
			return took, l.Unlock(ctx)
		})
	}
	return steps, cleanup, nil
}

// baton times the way of a lock from holder to holder. Its fields are atomic because the lock under test orders the
// holders in the cell, and not in the memory of this process.
type baton struct {
	start   time.Time
	holders atomic.Int64
	last    atomic.Int64 // the last holder; -1 before the first
	given   atomic.Int64 // when the last holder gave it up, in nanoseconds since start
}

func newBaton() *baton {
	b := &baton{start: time.Now()}
	b.last.Store(-1)
	return b
}

// take says that caller i holds the lock, and gives how long it was on the way from another caller. Two holders at a time
// are an error: the speed of a lock that does not exclude is no figure.
func (b *baton) take(i int) (time.Duration, error) {
	now := time.Since(b.start)
	if n := b.holders.Add(1); n != 1 {
		return 0, fmt.Errorf("%d holders of an exclusive lock", n)
	}
	if last := b.last.Swap(int64(i)); last < 0 || last == int64(i) {
		return uncounted, nil
	}
	return now - time.Duration(b.given.Load()), nil
}

// give says that the holder is about to unlock.
func (b *baton) give() {
	b.holders.Add(-1)
	b.given.Store(int64(time.Since(b.start)))
}
