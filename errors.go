package chubby

import (
	"errors"

	"github.com/chubbygo/chubby/fence"
)

// Opening a node or a client.
var (
	// ErrBadOptions means that options, arguments or conditions make no sense; the text names each of them and its cure.
	ErrBadOptions = errors.New("bad options")
	// ErrInsecureListen means that an address reaches beyond this machine with neither TLS, Secret nor Insecure set.
	ErrInsecureListen = errors.New("address is not loopback and the cell has no TLS or Secret")
	// ErrInUse means that another node, in this process or another, has the directory open.
	ErrInUse = errors.New("directory is in use")
	// ErrCorrupt means that stored bytes are not what was written. The text names the file, the place and the cure.
	ErrCorrupt = errors.New("corrupt")
	// ErrWrongCell means that the other side, or the directory, belongs to another cell or is another node than expected.
	ErrWrongCell = errors.New("wrong cell")
	// ErrRemoved means that this node was removed from its cell.
	ErrRemoved = errors.New("removed from the cell")
	// ErrClosed means that the node or client was closed.
	ErrClosed = errors.New("closed")
)

// The cell as a whole.
var (
	// ErrNoLeader means that no cell leader was found in time, or that a path has no elected leader.
	ErrNoLeader = errors.New("no leader")
	// ErrNoQuorum means that the cell leader could not reach a majority in time.
	ErrNoQuorum = errors.New("no quorum")
	// ErrUncertain means that the call may have taken effect, or may yet. Read the entry, or use conditions, to find out.
	// An error without ErrUncertain in its chain did not take effect and will not.
	ErrUncertain = errors.New("outcome unknown")
	// ErrOverloaded means that a queue or a limit of the cell is full; nothing was done.
	ErrOverloaded = errors.New("overloaded")
	// ErrNoSpace means that the disk, or a limit on what the cell stores, is reached; nothing was done.
	ErrNoSpace = errors.New("no space")
	// ErrPermission means that an ACL, or the way the peer proved who it is, does not allow the call.
	ErrPermission = errors.New("permission denied")
)

// Entries.
var (
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("already exists")
	ErrConflict  = errors.New("condition not met")
	ErrBound     = errors.New("bound reached")
	ErrNotNumber = errors.New("content is not a decimal number")
	ErrNotEmpty  = errors.New("directory not empty")
	ErrIsDir     = errors.New("is a directory")
	ErrNotDir    = errors.New("not a directory")
	ErrBadPath   = errors.New("bad path")
	ErrTooLarge  = errors.New("too large")
	// ErrBadHandle means that a text is not one that Handle.String gave in this cell, or was changed.
	ErrBadHandle = errors.New("bad handle")
)

// Locks, sessions and events.
var (
	// ErrLockHeld means that a lock is held, awaited or delayed, so that what was asked for at once is not possible.
	ErrLockHeld = errors.New("lock is held")
	// ErrNotHeld means that the lock is not held by this holder, or no longer.
	ErrNotHeld = errors.New("lock is not held")
	// ErrLockLost is the cause of a Lock's ended context: the cell may give the lock to another at any moment.
	ErrLockLost = errors.New("lock lost")
	// ErrSessionExpired means that the session ended, and with it its locks and ephemeral entries.
	ErrSessionExpired = errors.New("session expired")
	// ErrStaleSequencer means that a newer holder exists, or that the lock is not held under this sequencer any more.
	ErrStaleSequencer = fence.ErrStale
	// ErrBadSequencer means that a text or binary form is not that of a sequencer.
	ErrBadSequencer = fence.ErrBadSequencer
	// ErrLagged means that events were lost to this watch; the text names the revision to read from.
	ErrLagged = errors.New("events lost")
)

// Error is what calls return: what was being done, to what, and why it failed. Use errors.Is with the sentinels of this
// package and with context errors.
type Error struct {
	Op   string // the call in lower case: "lock", "set", "open"
	Path string // the entry, directory or address concerned; may be empty
	Err  error  // never nil
}

// Error gives "chubby: op path: cause".
func (e *Error) Error() string {
	if e.Path == "" {
		return "chubby: " + e.Op + ": " + e.Err.Error()
	}
	return "chubby: " + e.Op + " " + e.Path + ": " + e.Err.Error()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }
