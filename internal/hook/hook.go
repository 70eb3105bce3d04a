// Package hook holds the seams through which this module's tests reach a node: its clock, its storage, and a gate that
// freezes it. Programs outside the module cannot import it, so they cannot depend on it.
package hook

import "sync/atomic"

// Hooks changes how one node sees the world. The zero value changes nothing.
type Hooks struct {
	Clock   Clock                 // nil = SystemClock()
	Gate    *Gate                 // nil = never paused
	Boot    string                // in the place of MachineBoot, for a node with Options.Dir; "" = MachineBoot
	Disk    *Disk                 // where a node without Options.Dir keeps its state; nil = a private one that dies with it
	Storage func(op string) error // called before each storage operation ("log", "sync", "vote", "delete", "snapshot", "meta"); an error is returned as the disk's
	Level   uint32                // feature level that the node claims and acts by; 0 = its release's
	Free    func() (int64, error) // bytes that the disk has left; nil = ask that of Options.Dir, if there is one
	Abrupt  atomic.Bool           // Close tells nobody: the node just goes, as in a crash

	// Inspect is set by the node once it has a state: it gives the last index applied there and the state's running hash.
	Inspect atomic.Pointer[func() (index, hash uint64)]
}
