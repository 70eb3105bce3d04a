package chubbytest

import (
	"testing"
	"testing/synctest"
	"time"
)

// A clock that is stopped, held and run at wrong rates, with a timer that follows it.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		start := time.Now()
		want := func(clock time.Duration) {
			t.Helper()
			if got := c.Mono(); got != clock {
				t.Errorf("after %v the clock shows %v, want %v", time.Since(start), got, clock)
			}
		}
		var fired []time.Duration // by the test's time
		at := func(d time.Duration) {
			c.AfterFunc(d-c.Mono(), func() { fired = append(fired, time.Since(start)) })
		}
		at(101 * time.Second)
		c.skew(10_000)
		time.Sleep(100 * time.Second)
		synctest.Wait()
		want(101 * time.Second)

		at(102 * time.Second)
		c.pause()
		time.Sleep(time.Hour)
		want(101 * time.Second)
		c.skew(-10_000) // while it stands
		c.resume()
		time.Sleep(100 * time.Second)
		synctest.Wait()
		want(200 * time.Second)

		at(201 * time.Second)
		c.hold()
		time.Sleep(100 * time.Second)
		want(299 * time.Second)
		c.resume()
		synctest.Wait()

		stop := c.AfterFunc(time.Second, func() { t.Error("a timer that was stopped has fired") })
		if !stop() || stop() {
			t.Error("stop of a waiting timer must be true once")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		after := 100*time.Second + time.Hour
		// 1 s of a clock that loses 1 % takes 1.01010101 s.
		slow := after + 1_010_101_010*time.Nanosecond
		for i, want := range []time.Duration{100 * time.Second, slow, after + 200*time.Second} {
			if i >= len(fired) || fired[i] != want {
				t.Errorf("timers fired after %v, want number %d after %v", fired, i, want)
			}
		}
	})
}
