package wire

import (
	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// QueryKind tells what is asked of a state. Kinds cross the wire: append at the end, do not renumber.
type QueryKind uint8

const (
	QueryEntry  QueryKind = iota + 1 // Path: the entry there
	QueryList                        // Path: a directory's children, without their data
	QueryLock                        // Path: how the lock stands
	QueryLeader                      // Path: how the lock stands, and the entry
	QueryGrant                       // Session, Seq, Path: what became of a Lock command; and the entry
	QueryHolds                       // Sequencer: whether the lock is held under it
	queryEnd                         // first unknown kind
)

// Query is one question to the state of a cell. Which fields count depends on Kind; the others are zero.
type Query struct {
	Kind         QueryKind
	Path         string
	Session, Seq uint64
	Sequencer    fence.Sequencer
}

// Answer is what a state says to a Query. What was not asked for is zero.
type Answer struct {
	Code     command.Code // OK, or why there is nothing to say
	Revision uint64       // of the state that was asked
	Entry    command.Entry
	Entries  []command.Entry
	Lock     LockState
	Grant    Grant
	Holds    bool
}

// LockState says how a lock stands. That of a free lock is zero.
type LockState struct {
	Mode       fence.Mode // of the holders; 0 when there are none
	Generation uint64
	Holders    []LockHolder
	Waiters    int
	Delayed    bool
}

// LockHolder is one holder of a lock.
type LockHolder struct {
	Session uint64
	Name    string
	Since   uint64
}

// Grant says what became of a Lock command.
type Grant struct {
	Generation uint64 // of the grant, if Held
	Held       bool
	Waiting    bool
	Live       bool // its session lives
}
