package fence

import (
	"fmt"
	"sync"
)

// Guard remembers, for each lock, the newest sequencer that it let pass. The zero value is ready. A Guard must not be
// copied after first use. Its methods are safe for concurrent use.
//
// It knows only what it was shown: until the new holder's first request, a late one of the old holder passes. So a holder
// whose predecessor's late writes would harm shows its sequencer first, before it reads what it is going to change.
//
// It lives in memory: a resource that outlives its process stores the newest sequencer beside its data and shows it to
// Check when it starts. A Guard keeps one entry for each pair of cell and path that it let pass, for ever; so look at
// Cell and Path before Check, as the package's example does, and let in only what guards this resource.
type Guard struct {
	mu     sync.Mutex
	newest map[lock]Sequencer
}

type lock struct{ cell, path string }

// Check returns nil if s is not older than any sequencer of the same cell and path that Check saw before, and remembers
// it. Holders that share a lock have the same generation, so all of them pass. An older one gets ErrStale; what is no
// sequencer, such as the zero value, gets ErrBadSequencer.
func (g *Guard) Check(s Sequencer) error {
	if !s.valid() || s.Generation == 0 {
		return fmt.Errorf("%w: %v, generation %d", ErrBadSequencer, s.Mode, s.Generation)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := lock{s.Cell, s.Path}
	newest, ok := g.newest[l]
	if ok && s.Compare(newest) < 0 {
		return fmt.Errorf("%w: epoch %d, generation %d of %s; epoch %d, generation %d was seen",
			ErrStale, s.Epoch, s.Generation, s.Path, newest.Epoch, newest.Generation)
	}
	if g.newest == nil {
		g.newest = make(map[lock]Sequencer)
	}
	g.newest[l] = s
	return nil
}
