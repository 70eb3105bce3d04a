package chubbytest

import (
	"sync"
	"time"
)

// clock is a node's clock that can be stopped. It stands still while the node is paused, and so do its timers.
type clock struct {
	mu struct {
		sync.Mutex
		start    time.Time
		lost     time.Duration // time spent paused
		paused   bool
		pausedAt time.Time
		timers   map[*timer]struct{}
	}
}

type timer struct {
	due  time.Duration
	f    func()
	real *time.Timer // nil while paused
}

func newClock() *clock {
	c := &clock{}
	c.mu.start = time.Now()
	c.mu.timers = make(map[*timer]struct{})
	return c
}

// now is called with mu held.
func (c *clock) now() time.Duration {
	t := time.Now()
	if c.mu.paused {
		t = c.mu.pausedAt
	}
	return t.Sub(c.mu.start) - c.mu.lost
}

func (c *clock) Boot() time.Duration { return c.Mono() }

func (c *clock) Mono() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now()
}

func (c *clock) AfterFunc(d time.Duration, f func()) (stop func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &timer{due: c.now() + d, f: f}
	c.mu.timers[t] = struct{}{}
	c.arm(t)
	return func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		_, waiting := c.mu.timers[t]
		delete(c.mu.timers, t)
		if t.real != nil {
			t.real.Stop()
		}
		return waiting
	}
}

// arm is called with mu held.
func (c *clock) arm(t *timer) {
	if !c.mu.paused {
		t.real = time.AfterFunc(t.due-c.now(), func() { c.fire(t) })
	}
}

func (c *clock) fire(t *timer) {
	c.mu.Lock()
	if _, waiting := c.mu.timers[t]; !waiting || c.mu.paused {
		c.mu.Unlock()
		return // stopped, or resume will arm it again
	}
	if t.due > c.now() {
		c.arm(t)
		c.mu.Unlock()
		return
	}
	delete(c.mu.timers, t)
	c.mu.Unlock()
	t.f()
}

func (c *clock) pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.paused {
		c.mu.paused, c.mu.pausedAt = true, time.Now()
	}
}

func (c *clock) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.mu.paused {
		return
	}
	c.mu.paused = false
	c.mu.lost += time.Since(c.mu.pausedAt)
	for t := range c.mu.timers {
		if t.real != nil {
			t.real.Stop()
		}
		c.arm(t)
	}
}
