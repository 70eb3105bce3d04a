// Package cache is the protocol of the consistent client cache (Chubby §2.7): what a dialled client has in memory it may
// read without asking, because the cell leader has it dropped before anybody changes it.
//
// It is pure. [Registry] is the leader's side, [Store] the client's; clocks, the network, the log and the state are their
// callers'. docs/architecture.md has the argument why a cached read is linearizable.
package cache

import "time"

const (
	// ClientLease is how long a client may use its cache, counted from the sending of a wish that the leader granted.
	ClientLease = 1500 * time.Millisecond
	// LeaderLease is how long the leader waits for the client, counted from the receipt of that wish: longer by more than
	// two clocks can differ that are each within 1 %.
	LeaderLease = ClientLease + ClientLease/100 + 200*time.Millisecond
	// patience is how long an invalidation may be on its way before its client's lease is not renewed any more. With it
	// nobody waits for a client longer than LeaderLease + patience, which is below 2 s.
	patience = 250 * time.Millisecond
)

// Lease names one unbroken time in which a client may cache. The zero Lease is none.
type Lease struct {
	Term uint64 // of the leader that granted it
	ID   uint64 // within the term; ascending. 0 = none in this term
}

// newer reports whether l was granted after m.
func (l Lease) newer(m Lease) bool { return l.Term > m.Term || l.Term == m.Term && l.ID > m.ID }
