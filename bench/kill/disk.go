package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// disk measures what a sync costs beside the nodes, in the same directory and all the time. When a kill is followed by
// a long silence, it tells whether the nodes or the machine were slow.
type disk struct {
	mu struct {
		sync.Mutex
		began   time.Time // of the sync under way; zero: none
		longest time.Duration
	}
}

// diskPause is the time between two syncs: often enough to meet a stall, rarely enough not to cause one.
const diskPause = 50 * time.Millisecond

// run measures until ctx ends.
func (d *disk) run(ctx context.Context, dir string) (err error) {
	f, err := os.Create(filepath.Join(dir, "sync"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	block := make([]byte, 4096)
	for pause(ctx, diskPause) == nil {
		d.set(time.Now())
		_, err := f.WriteAt(block, 0)
		if err == nil {
			err = f.Sync()
		}
		d.set(time.Time{})
		if err != nil {
			return err
		}
	}
	return nil
}

// set notes that a sync begins at t or, with the zero time, that it has ended.
func (d *disk) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.mu.began.IsZero() {
		d.mu.longest = max(d.mu.longest, time.Since(d.mu.began))
	}
	d.mu.began = t
}

// take returns the time of the longest sync since the last call, the one under way included.
func (d *disk) take() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	longest := d.mu.longest
	if !d.mu.began.IsZero() {
		longest = max(longest, time.Since(d.mu.began))
	}
	d.mu.longest = 0
	return longest
}
