package hook

import "sync"

// Gate freezes a node: while it is shut, Wait does not return. A nil Gate is always open. Safe for concurrent use.
type Gate struct {
	mu   sync.Mutex
	shut chan struct{} // nil = open; closed by Open
}

// Shut makes Wait block until Open.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut == nil {
		g.shut = make(chan struct{})
	}
}

// Open lets everyone go on.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut != nil {
		close(g.shut)
		g.shut = nil
	}
}

// Wait returns at once while the gate is open, else when it opens.
func (g *Gate) Wait() {
	if g == nil {
		return
	}
	for {
		g.mu.Lock()
		c := g.shut
		g.mu.Unlock()
		if c == nil {
			return
		}
		<-c
	}
}
