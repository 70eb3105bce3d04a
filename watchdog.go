package chubby

import (
	"sync"
	"time"
)

// watchdog knows which writes are running, and for how long. Safe for concurrent use.
type watchdog struct {
	slow, stop time.Duration
	late       func(op string) // called when a write takes longer than stop; must not block

	mu      sync.Mutex
	running []*watched // oldest first; as many as goroutines write at once
}

type watched struct {
	start time.Time
	timer *time.Timer
}

// begin notes that a write starts. critical ones count for stalled.
func (w *watchdog) begin(op string, critical bool) *watched {
	r := &watched{start: time.Now()}
	r.timer = time.AfterFunc(w.stop, func() { w.late(op) })
	if critical {
		w.mu.Lock()
		w.running = append(w.running, r)
		w.mu.Unlock()
	}
	return r
}

// end notes that it ended.
func (w *watchdog) end(r *watched) {
	r.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, o := range w.running {
		if o == r {
			w.running = append(w.running[:i], w.running[i+1:]...)
			return
		}
	}
}

// stalled reports whether a critical write has been running for longer than slow.
func (w *watchdog) stalled() bool {
	if w.slow <= 0 {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.running) > 0 && time.Since(w.running[0].start) > w.slow
}
