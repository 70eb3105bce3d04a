package state

import "github.com/chubbygo/chubby/internal/command"

// EventKind is what happened. The first seven have the numbers of chubby.EventKind.
type EventKind uint8

const (
	Created  EventKind = iota + 1 // Entry
	Modified                      // Entry: its content was written
	Deleted
	LockAcquired  // Session, Seq, Generation: the owner it was granted to; Entry, if there is one
	LockReleased  // Session, Seq, Generation: the owner that had it, whatever ended it; Entry, if there is one
	LockContended // Session, Seq: the owner that began to wait; Generation: what it waits for; Entry, if there is one
	ACLChanged    // Entry: its ACL names were changed
)

// What only the cell's own nodes hear of.
const (
	SessionOpened EventKind = iota + 64 // Session
	SessionEnded                        // Session
	LockDelayed                         // Path, Generation: the lock became shut; Delays has it
	// LockRefused (Session, Seq) ends the wait of a Lock command without a grant: what it was to publish cannot be
	// written at Path any more. Why is in its result, which a further copy of the command gets.
	LockRefused
)

// Event is one thing that a command did. The events of a command have its revision; their order is that in which it did
// them.
type Event struct {
	Kind     EventKind
	Path     string
	Revision uint64
	More     bool          // further events of this revision follow
	Entry    command.Entry // as it is after the event; Data aliases the state

	Session, Seq, Generation uint64
}
