// Package hook holds the seams through which this module's tests reach a node: its clock, its storage, and a gate that
// freezes it. Programs outside the module cannot import it, so they cannot depend on it.
package hook

// Hooks changes how one node sees the world. The zero value changes nothing.
type Hooks struct {
	Clock   Clock                 // nil = SystemClock()
	Gate    *Gate                 // nil = never paused
	Disk    *Disk                 // where a node without Options.Dir keeps its state; nil = a private one that dies with it
	Storage func(op string) error // called before each storage operation ("log", "vote", "delete", "snapshot", "meta"); an error is returned as the disk's
}
