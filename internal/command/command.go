// Package command defines what the log of a cell holds: commands, their results, and the versioned encoding of both.
//
// A command carries everything that its execution needs. Ids, nonces and durations are drawn by whoever proposes it,
// because Apply has neither clock nor randomness.
package command

import "github.com/chubbygo/chubby/fence"

// Kind tells which command this is. Kinds reach disk: append at the end, do not renumber.
type Kind uint8

const (
	KindBarrier        Kind = iota + 1 // first command of a leader's term; changes nothing, takes no revision
	KindAssignSlot                     // Node: gives the node (raft server id) its slot, the same one at each call
	KindOpenSession                    // Session, Principal, Nonce, Slot, Name, Node, Lease, Grace, Caching
	KindCloseSession                   // Session, Principal
	KindExpireSessions                 // Term, Sessions: void if the entry's term is another
	KindClearDelay                     // Term, Path, Generation: void if the entry's term or the lock's generation is another
	KindSet                            // Path, Data, Conds
	KindCreate                         // Path, Data, Dir, Ephemeral, ACL
	KindCompareAndSwap                 // Path, Old (HasOld), Data
	KindAdd                            // Path, Number (delta), Bound (maximum)
	KindSub                            // Path, Number (delta), Bound (minimum)
	KindDelete                         // Path, Conds
	KindDeleteTree                     // Path
	KindTxn                            // If, Then, Else
	KindLock                           // Path, Mode, Try, Delay, Hold, Data (HasData: published in the same entry, for elections), Conds
	KindUnlock                         // Path, Generation, LockSeq: names the owner, never frees a later one. With Seq 0 the leader's decision (MaxHold) in Term
	KindCancelLock                     // Path, LockSeq: the waiter leaves, what was just granted is released, a copy yet to come does nothing
	KindCellKey                        // Key: the cell's, if it has none yet
	KindOpen                           // Path, Data, Dir, Ephemeral, ACL, Create, New, Write, ChangeACL, Conds: opens a handle; an ephemeral entry stays while it is open
	KindCloseHandle                    // Path, OpenSeq: the handle that the Open of this sequence made; a copy of that yet to come does nothing
	KindSetACL                         // Path, ACL, Conds
	KindRaiseLevel                     // Term, Level: void if the entry's term is another; the commands of this feature level are used from now on

	kindLast = iota // of those above
)

// KindProbe does nothing. It is of a feature level that no release has, so that tests can see what becomes of commands of
// a level that not every member knows.
const KindProbe Kind = 255

// ProbeLevel is the feature level of KindProbe. A release that reaches it moves it up.
const ProbeLevel = 2

// LevelOf gives the feature level that an encoded command needs: a member of a lower one does not know it. It looks at the
// first bytes only.
func LevelOf(raw []byte) uint32 {
	if len(raw) > 1 && raw[0] == Version && Kind(raw[1]) == KindProbe {
		return ProbeLevel
	}
	return 1
}

// Command is one request to the state machine. Which fields count depends on Kind; the others are zero.
type Command struct {
	Kind Kind

	// Who asks. A command with a Session is executed at most once for each (Session, Seq), and only while the session
	// lives. Every Seq below AckedBelow has been answered and may be forgotten. Sequences start at 1. OpenSession and
	// CloseSession have no Seq: doing them twice is doing them once.
	Session    uint64
	Seq        uint64
	AckedBelow uint64
	// Principal is who asks, by name. A session belongs to the principal that opened it, and obeys no other. Whoever takes
	// a command from outside sees to it that the name is that which the sender proved.
	Principal string

	Path string
	Data []byte // contents; nil and empty are the same except where HasData says otherwise

	HasData   bool // KindLock: Data is to be published at Path in the entry of the grant
	Old       []byte
	HasOld    bool // KindCompareAndSwap: false means "there is no entry"
	Dir       bool
	Ephemeral bool
	ACL       ACL
	Create    bool // KindOpen: make the entry if there is none
	New       bool // KindOpen: there must be none
	Write     bool // KindOpen: the handle is to write and to lock
	ChangeACL bool // KindOpen: the handle is to change ACL names
	Try       bool // KindLock: do not wait
	Mode      fence.Mode
	Number    int64
	Bound     int64
	Delay     uint64 // KindLock: lock-delay in milliseconds
	Hold      uint64 // KindLock: longest holding (MaxHold) in milliseconds; 0 = no bound

	Generation uint64
	LockSeq    uint64 // the Seq of the Lock command that made the owner
	OpenSeq    uint64 // the Seq of the Open command that made the handle
	Term       uint64
	Level      uint32
	Sessions   []uint64

	Nonce   [16]byte
	Key     [32]byte
	Slot    uint32
	Node    string // raft server id of the node that speaks for the session
	Name    string // the session's name for people
	Lease   uint64 // milliseconds
	Grace   uint64 // milliseconds
	Caching bool   // the session's client keeps a consistent cache

	Conds []Cond // about Path; all must hold
	If    []Cond // KindTxn
	Then  []Op
	Else  []Op
}

// ACL holds the names of an entry's access control lists; an empty one is that of the entry's parent.
type ACL struct{ Read, Write, Change string }

// Right is what an ACL grants. Rights cross log and wire: append at the end, do not renumber.
type Right uint8

const (
	RightRead   Right = iota + 1 // see the entry: contents, Stat, children, lock, events
	RightWrite                   // change contents, make children, delete, lock
	RightChange                  // change the ACL names
)

// OpenRights gives the rights that a handle opened so needs. One for writing or for changing names needs no right to read
// until it is read through.
func OpenRights(write, change bool) []Right {
	switch {
	case write && change:
		return []Right{RightWrite, RightChange}
	case write:
		return []Right{RightWrite}
	case change:
		return []Right{RightChange}
	}
	return []Right{RightRead}
}

// CondKind reaches disk: append at the end, do not renumber.
type CondKind uint8

const (
	CondGeneration CondKind = iota + 1 // content generation equals Generation; 0 = no entry
	CondAbsent
	CondExists
	CondValue    // content equals Value
	CondHolds    // Sequencer is still held; Path does not matter
	CondInstance // there is an entry, and its instance equals Generation
)

// Cond is a condition on the entry at Path (in a Txn), or on the command's own path when Path is empty.
type Cond struct {
	Kind       CondKind
	Path       string
	Generation uint64
	Value      []byte
	Sequencer  fence.Sequencer
}

// OpKind reaches disk: append at the end, do not renumber.
type OpKind uint8

const (
	OpGet OpKind = iota + 1
	OpSet
	OpDelete
	OpCreate
	OpAdd
)

// Op is one operation of a Txn.
type Op struct {
	Kind      OpKind
	Path      string
	Data      []byte
	Dir       bool
	Ephemeral bool
	ACL       ACL
	Number    int64
	Bound     int64
}

// Code tells how a command ended. Codes cross log and wire: append at the end, do not renumber.
type Code uint8

const (
	OK Code = iota
	NotFound
	Exists
	Conflict
	Bound          // Add or Sub would pass the bound or overflow int64
	NotNumber      // content is no decimal int64
	NotEmpty       // Delete of a directory that has children
	IsDir          // contents of a directory asked for or written
	NotDir         // a parent on the path is a file; List of a file
	LockHeld       // TryLock, or Delete of what is locked
	NotHeld        // Unlock of what this owner does not hold
	StaleSequencer // CondHolds failed
	SessionExpired // session unknown: closed, expired, or never opened
	SessionRefused // OpenSession at or below the slot's floor (Result.Floor names it)
	Old            // Seq below AckedBelow: its answer was acknowledged before
	WindowFull     // too many unacknowledged commands of this session; not executed
	Void           // a leader's decision of another term or generation
	Slots          // no slot is free
	Cancelled      // a copy of a Lock command that was cancelled
	BadCommand     // well-formed bytes, impossible request (e.g. write to the root)
	Permission     // the session is another principal's; or an ACL (Result.Path, Right) does not grant it
	Gone           // CondInstance failed: the entry was deleted, or deleted and made again
	BadSeal        // the text of a handle is not one that this cell gave
)

// Stat mirrors chubby.Stat.
type Stat struct {
	Instance, Generation, LockGeneration, ACLGeneration uint64
	Revision, Checksum                                  uint64
	Size, Children                                      int
	Dir, Ephemeral                                      bool
}

// Entry is an entry as a Txn saw it. Stat.Instance is 0 where there was none.
type Entry struct {
	Path string
	Data []byte
	Stat Stat
}

// Result is the answer of the state machine to one command.
type Result struct {
	Code     Code
	Revision uint64 // the command's revision if it changed something, else the current one
	// Path is, of a Txn, that of the condition or operation that failed; with Permission that of the ACL; else empty.
	Path  string
	Right Right // Permission: the right that the ACL of Path does not grant

	Stat       Stat   // Set, Create, CompareAndSwap (also with Conflict)
	Number     int64  // Add, Sub: the new value
	Generation uint64 // Lock: the generation granted; with Queued 0
	Queued     bool   // Lock: waiting in the queue
	Slot       uint32 // AssignSlot
	Floor      uint64 // OpenSession with SessionRefused: ids up to this one are used up
	Succeeded  bool   // Txn: all of If held; Open: the entry was made
	Entries    []Entry
	Seal       []byte // Open: of the handle's text; see state.State.Seal
}
