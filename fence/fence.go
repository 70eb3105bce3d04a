// Package fence lets a resource refuse a lock holder that has been replaced.
//
// A process that holds a lock of a chubby cell can be paused at any moment, between asking whether it still holds the
// lock and acting on the answer, for longer than its session lives. No lock service can see that. The resource it acts
// on can: each grant of a lock carries a [Sequencer], whose epoch and generation grow with every change of holder
// (Chubby §2.4). The holder sends the sequencer with each request, and the resource keeps the newest one that it saw:
//
//	var guard fence.Guard // lives as long as the resource; see Guard on restarts
//
//	func handle(request *http.Request) error {
//		s, err := fence.Parse(request.Header.Get("Sequencer"))
//		if err != nil {
//			return err
//		}
//		if s.Cell != "local" || s.Path != "/svc/primary" {
//			return errors.New("not the lock that guards this resource")
//		}
//		if err := guard.Check(s); err != nil {
//			return err // the sender was replaced
//		}
//		...
//	}
//
// Check and act must not be torn apart: what Check let through must have reached the resource before Check lets a newer
// one through. In a single process that is a mutex around both; a database compares and stores the numbers in the
// transaction that does the work.
//
// A sequencer is no secret and no proof of identity. Its checksum finds damage, not forgery: who may speak to the
// resource at all is for the resource to say.
//
// The package imports the standard library only, because the resource need not run chubby.
package fence

import (
	"cmp"
	"errors"
	"strconv"
)

// ErrStale means that a newer holder has been seen.
var ErrStale = errors.New("stale sequencer")

// ErrBadSequencer means that bytes or text are not those of a sequencer.
var ErrBadSequencer = errors.New("bad sequencer")

// Mode is how a lock is held. The zero Mode is none.
type Mode uint8

// Modes reach disk and wire: do not renumber.
const (
	Exclusive Mode = 1 // by one holder
	Shared    Mode = 2 // by any number of holders
)

// String gives "exclusive" or "shared".
func (m Mode) String() string {
	switch m {
	case Exclusive:
		return "exclusive"
	case Shared:
		return "shared"
	}
	return "mode(" + strconv.Itoa(int(m)) + ")"
}

// Bounds on the parts of a sequencer, in bytes. Longer ones have neither a text nor a binary form.
const (
	cellMax = 255
	pathMax = 4096
)

// Sequencer tells which grant of which lock its bearer acts under.
type Sequencer struct {
	Cell       string // name of the cell
	Epoch      uint64 // of the cell; grows with each founding, restore and recovery
	Path       string // of the lock, in the form "/a/b"
	Mode       Mode
	Generation uint64 // cell-wide revision of the grant; holders that share the lock share it
}

// Compare orders sequencers of one cell and path by age: it is negative if s is older than other, positive if newer,
// and 0 if both are of the same grant. Between different cells or paths the answer means nothing.
func (s Sequencer) Compare(other Sequencer) int {
	return cmp.Or(cmp.Compare(s.Epoch, other.Epoch), cmp.Compare(s.Generation, other.Generation))
}

func (s Sequencer) valid() bool {
	return (s.Mode == Exclusive || s.Mode == Shared) && len(s.Cell) <= cellMax && len(s.Path) <= pathMax
}
