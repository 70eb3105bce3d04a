package hook

import "time"

// Clock measures durations. Its readings mean nothing outside the process. Safe for concurrent use.
type Clock interface {
	// Boot is the holder's clock: it goes on while the machine is suspended, so that a holder that slept knows.
	Boot() time.Duration
	// Mono is the leader's clock: it may stand during a suspend, which only lengthens what the leader grants.
	Mono() time.Duration
	// AfterFunc runs f in its own goroutine after d of Mono. stop reports whether it prevented that.
	AfterFunc(d time.Duration, f func()) (stop func() bool)
}

// TimeClock is a Clock on time.Now. It follows the fake time of testing/synctest.
func TimeClock() Clock { return timeClock{time.Now()} }

type timeClock struct{ start time.Time }

func (c timeClock) Boot() time.Duration { return time.Since(c.start) }
func (c timeClock) Mono() time.Duration { return time.Since(c.start) }
func (c timeClock) AfterFunc(d time.Duration, f func()) func() bool {
	return time.AfterFunc(d, f).Stop
}

// SystemClock is the Clock of a node that was given none: CLOCK_BOOTTIME where there is one, else time.Now.
// In a testing/synctest bubble, where the kernel's clocks do not follow time.Now, it is TimeClock.
func SystemClock() Clock { return systemClock() }
