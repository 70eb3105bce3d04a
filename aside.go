package chubby

import "github.com/chubbygo/chubby/internal/cache"

// What the proposer does with commands that wait for clients to drop what they have cached. They are counted in its
// queue all the time, so the side queue is bounded as that is, and more closely.

// asideShare is which part of Limits.PendingCommands may wait for caches: the rest stays for commands that need not.
const asideShare = 4

// setAside takes list out of the batch that is about to be proposed. What there is no room for it gives
// back.
func (p *proposer) setAside(b *batch, list []*proposal) (full []*proposal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := max(p.node.opts.Limits.PendingCommands/asideShare, 1)
	for _, x := range list {
		if !x.urgent && len(p.mu.aside) >= most {
			full = append(full, x)
			continue
		}
		p.mu.aside[x.touch] = x
		b.commands--
		b.bytes -= int64(len(x.raw))
	}
	return full
}

// resume puts back into the queue what need not wait any longer.
func (p *proposer) resume(ready []*cache.Touch) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range ready {
		if x := p.mu.aside[t]; x != nil { // else its caller has withdrawn it
			delete(p.mu.aside, t)
			p.requeue(x)
		}
	}
	p.work.Signal()
}

// recall puts all of it back, because what it waited for was a matter of a term that is over. Called with mu held.
func (p *proposer) recall() {
	for t, x := range p.mu.aside {
		delete(p.mu.aside, t)
		p.requeue(x)
	}
}

// stir has the proposer look again whether it may propose.
func (p *proposer) stir() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.work.Broadcast()
}
