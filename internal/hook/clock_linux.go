package hook

import (
	"time"

	"golang.org/x/sys/unix"
)

func systemClock() Clock {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return TimeClock()
	}
	// A bubble's time starts in the year 2000. Ours and the kernel's agree to within microseconds otherwise.
	if d := time.Since(time.Unix(ts.Unix())); d < -time.Hour || d > time.Hour {
		return TimeClock()
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return TimeClock()
	}
	return bootClock{timeClock{time.Now()}}
}

type bootClock struct{ timeClock }

func (bootClock) Boot() time.Duration {
	var ts unix.Timespec
	// It worked in systemClock, and fails only for a bad clock id or pointer.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}
