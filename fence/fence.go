// Package fence lets a guarded resource refuse a lock holder that has been replaced.
package fence

import "errors"

// ErrStale means that a newer holder has been seen.
var ErrStale = errors.New("stale sequencer")

// ErrBadSequencer means that bytes or text are not those of a sequencer.
var ErrBadSequencer = errors.New("bad sequencer")

// Mode is how a lock is held.
type Mode uint8

// Modes reach disk and wire: do not renumber.
const (
	Exclusive Mode = 1
	Shared    Mode = 2
)

// Sequencer proves who held a lock and when.
type Sequencer struct {
	Cell       string
	Epoch      uint64
	Path       string
	Mode       Mode
	Generation uint64
}
