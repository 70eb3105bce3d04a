package chubbytest

import (
	"sync"
	"time"
)

// clock is a node's clock that can be stopped and can run at a wrong rate. Its timers follow it: they stand while it
// stands. They can also be held while it goes on, as those of a stopped process are.
type clock struct {
	mu struct {
		sync.Mutex
		since   time.Time     // when reading was taken
		reading time.Duration // what the clock showed then
		ppm     int64         // how much faster than the test's time it runs, in millionths
		paused  bool          // it stands at reading
		held    bool          // timers do not fire
		timers  map[*timer]struct{}
	}
}

type timer struct {
	due  time.Duration
	f    func()
	real *time.Timer // nil while the clock stands or timers are held
}

func newClock() *clock {
	c := &clock{}
	c.mu.since = time.Now()
	c.mu.timers = make(map[*timer]struct{})
	return c
}

// now is called with mu held.
func (c *clock) now() time.Duration {
	if c.mu.paused {
		return c.mu.reading
	}
	return c.mu.reading + c.shown(time.Since(c.mu.since))
}

// shown is by how much the clock moves in d of the test's time. Called with mu held.
func (c *clock) shown(d time.Duration) time.Duration {
	return d + d*time.Duration(c.mu.ppm)/1e6
}

// takes is the least time of the test in which the clock moves by d. Called with mu held.
func (c *clock) takes(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	t := d - d*time.Duration(c.mu.ppm)/time.Duration(1e6+c.mu.ppm)
	// Too early would be to wait again for nothing, and without end in a bubble, whose time stands meanwhile.
	for c.shown(t) < d {
		t++
	}
	return t
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
	if t.real != nil {
		t.real.Stop()
		t.real = nil
	}
	if !c.mu.paused && !c.mu.held {
		t.real = time.AfterFunc(c.takes(t.due-c.now()), func() { c.fire(t) })
	}
}

func (c *clock) fire(t *timer) {
	c.mu.Lock()
	if _, waiting := c.mu.timers[t]; !waiting || c.mu.paused || c.mu.held {
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

// change takes a reading, changes how the clock goes on from there, and sets its timers to that.
func (c *clock) change(how func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.reading, c.mu.since = c.now(), time.Now()
	how()
	for t := range c.mu.timers {
		c.arm(t)
	}
}

// pause stops the clock and its timers.
func (c *clock) pause() { c.change(func() { c.mu.paused = true }) }

// hold stops the timers only.
func (c *clock) hold() { c.change(func() { c.mu.held = true }) }

// resume ends pause and hold. Timers that are due by then fire at once.
func (c *clock) resume() { c.change(func() { c.mu.paused, c.mu.held = false, false }) }

// skew sets the rate.
func (c *clock) skew(ppm int64) { c.change(func() { c.mu.ppm = ppm }) }
