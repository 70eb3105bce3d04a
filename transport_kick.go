package chubby

import (
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// progress is what a leader knows about a peer's log, from answers in its own term only.
type progress struct {
	term   uint64         // of what follows
	header raft.RPCHeader // as raft sends it in this term
	leader []byte
	match  uint64 // the peer's log equals ours up to here
	own    uint64 // highest matched entry that is itself of this term; 0 = none
	heard  time.Time
}

// sends notes that raft sends args to the peer.
func (p *peer) sends(args *raft.AppendEntriesRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if args.Term > p.mu.progress.term {
		heard := p.mu.progress.heard
		p.mu.progress = progress{term: args.Term, header: args.RPCHeader, leader: args.Leader, heard: heard}
	}
}

// heard notes that the peer answered.
func (p *peer) heard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.progress.heard = time.Now()
}

// acked notes the answer to a request whose last entry, or whose previous entry if it had none, was (index, entryTerm).
// It reports whether more may now be known to be committed.
func (p *peer) acked(term, index, entryTerm uint64, success bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	g := &p.mu.progress
	g.heard = time.Now()
	if !success || g.term != term {
		return false
	}
	g.match = max(g.match, index)
	if entryTerm == term && index > g.own {
		g.own = index
		return true
	}
	return false
}

// installed notes that the peer took a snapshot.
func (p *peer) installed(args *raft.InstallSnapshotRequest) {
	p.acked(args.Term, args.LastLogIndex, args.LastLogTerm, true)
}

// matched gives the last index that the server acknowledged in the term that this node leads, and how long ago it last
// answered anything. ok is false if this node does not lead or the server has not been sent anything yet.
func (t *transport) matched(id raft.ServerID) (index uint64, lastContact time.Duration, ok bool) {
	t.mu.Lock()
	p := t.mu.peers[id]
	t.mu.Unlock()
	term := t.leads.Load()
	if p == nil || term == 0 {
		return 0, 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	g := &p.mu.progress
	if g.term != term || g.heard.IsZero() {
		return 0, 0, false
	}
	return g.match, time.Since(g.heard), true
}

// level gives the feature level that a server claimed when it was last dialled, 0 if it never was.
func (t *transport) level(id raft.ServerID) uint32 {
	t.mu.Lock()
	p := t.mu.peers[id]
	t.mu.Unlock()
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.level
}

// kick tells the followers that entries up to commit are committed, without waiting for the next entry or for raft's
// CommitTimeout. It never blocks; kicks that follow each other closely merge.
func (t *transport) kick(commit uint64) {
	for {
		old := t.commit.Load()
		if old >= commit {
			return
		}
		if t.commit.CompareAndSwap(old, commit) {
			break
		}
	}
	var few [8]*peer
	peers := few[:0]
	t.mu.Lock()
	for _, p := range t.mu.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	for _, p := range peers {
		p.links[wire.Append].poke()
	}
}

// poke makes the writer of the open stream look for something to write.
func (l *link) poke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.s != nil {
		signal(l.mu.s.wake)
	}
}

// kickOf gives the commit index to tell a peer, and reports whether there is one above what it was told.
//
// The bound is what makes a kick safe: a follower commits up to min(LeaderCommitIndex, its own last index), and beyond
// the last entry of this very term that it acknowledged its log may hold entries of a deposed leader.
func kickOf(g *progress, commit, told uint64) (uint64, bool) {
	c := min(commit, g.own)
	return c, c > told
}

// composeKick adds a kick to what the append stream s is about to write, if there is something to tell. It runs at the
// moment of writing, so that one kick serves all commits since the last one, and none is sent when an append says the
// same.
func (p *peer) composeKick(s *stream, b []byte) []byte {
	t := p.t
	term := t.leads.Load()
	if term == 0 {
		return b
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	g := &p.mu.progress
	if g.term != term {
		return b
	}
	c, ok := kickOf(g, t.commit.Load(), s.told.Load())
	if !ok {
		return b
	}
	if v := t.raft(); v != nil && (v.State() != raft.Leader || v.CurrentTerm() != term) {
		return b
	}
	s.told.Store(c)
	start := len(b)
	b = wire.BeginFrame(b, wire.TypeKick, 0)
	b = wire.AppendAppendEntries(b, &raft.AppendEntriesRequest{
		RPCHeader:         g.header,
		Term:              term,
		Leader:            g.leader,
		PrevLogEntry:      g.own,
		PrevLogTerm:       term,
		LeaderCommitIndex: c,
	})
	wire.EndFrame(b, start)
	return b
}
