// Package chubby runs consensus inside the application's own process. A service imports it, opens a [Node] on three to
// seven machines, and has leader election, distributed locks whose handles carry sequencers, sessions, and a small
// reliable file store that is also a key-value store and a name service. There is no server to operate.
//
//	node, err := chubby.Open(chubby.Options{
//		ID: "a", Dir: "/var/lib/service/chubby", Listen: "10.0.0.1:8900", Secret: secret,
//		Peers: map[string]string{"a": "10.0.0.1:8900", "b": "10.0.0.2:8900", "c": "10.0.0.3:8900"},
//	})
//	if err != nil { ... }
//	defer node.Close()
//
//	lock, err := node.Lock(ctx, "/service/primary")
//	if err != nil { ... }
//	defer lock.Unlock(ctx)
//	request.Sequencer = lock.Sequencer() // the guarded server refuses holders that have been replaced
//
// It is Google's Chubby as a library: locks are coarse and advisory, held by sessions that are kept alive with leases, and
// names are those of small files in a tree. Package fence is for the servers that locks protect; it imports nothing but
// the standard library. Package chubbytest runs a cell inside a test.
//
// # Words
//
// A cell is the set of nodes that agree. The cell leader is the one whose log the others follow; applications need not
// know it. A leader, as in [Client.Campaign], is the winner of an application's own election. A session is a client's
// standing with the cell, alive while its lease is. A sequencer is the proof of a lock's grant that a third party can
// check. Revisions count the changes of the whole cell; every generation is one.
//
// # Outcomes
//
// Every call ends in one of three ways: done; certainly not done; or perhaps done, which is [ErrUncertain] in the error's
// chain. Whatever can be retried safely is retried inside, exactly once, across nodes and changes of the cell leader, so
// ErrUncertain is left only to contexts that end, sessions that are lost and nodes that are closed in the middle of a call.
//
// # Events
//
// [Client.Watch] tells what happens to an entry, its children and their locks, in the order of revisions and without gaps,
// on every node from its own memory. [Client.ObserveLeader] tells who leads. Both come after the state they tell of is
// readable. What they tell is the past: whoever acts on it writes with conditions.
//
// # What a lock is worth
//
// [Lock.Context] ends, by the holder's own clock, before the cell may grant the lock to another, as long as clocks run at
// rates within 1 % of each other. A process that is paused between looking at its lock and acting on it learns too late,
// and no lock service can prevent that. Sequencers can: let the resource check them, with fence.Guard, or make the
// write conditional with [IfHolds].
//
// # Sources
//
// Mike Burrows, "The Chubby lock service for loosely-coupled distributed systems", OSDI 2006, cited as Chubby §n. Diego
// Ongaro, "Consensus: Bridging Theory and Practice", Stanford 2014, cited as Raft thesis §n.
package chubby
