package main

import (
	"fmt"
	"sync"

	"github.com/chubbygo/chubby/fence"
)

// resource is what a lock protects. It could be a server in another data centre: it does not know the cell, and imports
// fence, which needs nothing but the standard library. It takes writes from whoever shows the sequencer of the lock,
// unless a newer one was here.
type resource struct {
	cell, path string // of the lock

	mu sync.Mutex // around check and write, so that nothing newer comes between
	fence.Guard
	contents string
}

func (r *resource) write(s fence.Sequencer, contents string) error {
	if s.Cell != r.cell || s.Path != r.path {
		return fmt.Errorf("the lock that guards this resource is %s of cell %s, not %s of %s", r.path, r.cell, s.Path, s.Cell)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.Check(s); err != nil {
		return err
	}
	r.contents = contents
	return nil
}
