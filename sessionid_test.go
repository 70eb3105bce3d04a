package chubby

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Ids of one node grow, however many are asked for at a moment, and whatever the clock does. Nobody sleeps for one: in a
// bubble that would not end, because those who wait for the sleeper's mutex keep the time from passing.
func TestSessionIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids sessionIDs
		var mu sync.Mutex
		var wg sync.WaitGroup
		seen := make(map[uint64]bool)
		start := time.Now()
		for range 20 {
			wg.Go(func() {
				last := uint64(0)
				for range 500 {
					id, err := ids.next(7)
					if err != nil || id <= last || id&(1<<slotBits-1) != 7 {
						t.Errorf("id %d after %d, %v", id, last, err)
						return
					}
					last = id
					mu.Lock()
					if seen[id] {
						t.Errorf("id %d twice", id)
					}
					seen[id] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if d := time.Since(start); d != 0 {
			t.Errorf("it took %v", d)
		}
		ids.raise(1 << 62)
		if id, err := ids.next(7); err != nil || id <= 1<<62 {
			t.Errorf("id %d, %v, floor %d", id, err, uint64(1)<<62)
		}
	})
}
