package chubby

import (
	"context"
	"errors"

	"github.com/chubbygo/chubby/internal/wire"
)

// errNoHandler means that the other side does not know this kind of call; its release may be older.
var errNoHandler = errors.New("call is not known to the other side")

// errNotFounded means that the other side belongs to no cell yet.
var errNotFounded = errors.New("node is not in a cell yet")

// faultCodes gives each error that keeps its identity across the wire its code: its place here. Append at the end, do not
// reorder.
var faultCodes = [...]error{
	0:  nil, // no code
	1:  ErrBadOptions,
	2:  ErrInsecureListen,
	3:  ErrInUse,
	4:  ErrCorrupt,
	5:  ErrWrongCell,
	6:  ErrRemoved,
	7:  ErrClosed,
	8:  ErrNoLeader,
	9:  ErrNoQuorum,
	10: ErrUncertain,
	11: ErrOverloaded,
	12: ErrNoSpace,
	13: ErrPermission,
	14: ErrNotFound,
	15: ErrExists,
	16: ErrConflict,
	17: ErrBound,
	18: ErrNotNumber,
	19: ErrNotEmpty,
	20: ErrIsDir,
	21: ErrNotDir,
	22: ErrBadPath,
	23: ErrTooLarge,
	24: ErrLockHeld,
	25: ErrNotHeld,
	26: ErrLockLost,
	27: ErrSessionExpired,
	28: ErrStaleSequencer,
	29: ErrBadSequencer,
	30: ErrLagged,
	31: context.Canceled,
	32: context.DeadlineExceeded,
	33: errNoHandler,
	34: errNotFounded,
	35: errNotLeader,
	36: ErrBadHandle,
}

// maxFaultText bounds the text of an error on the wire.
const maxFaultText = 2 << 10

// faultOf prepares an error for the wire.
func faultOf(err error) *wire.Fault {
	f := &wire.Fault{Text: err.Error()}
	if len(f.Text) > maxFaultText {
		f.Text = f.Text[:maxFaultText]
	}
	for code, sentinel := range faultCodes {
		if sentinel != nil && errors.Is(err, sentinel) {
			f.Codes = append(f.Codes, byte(code))
		}
	}
	return f
}

// faultError is the inverse of faultOf. Codes that a newer release added are left out.
func faultError(f *wire.Fault) error {
	e := &remoteError{text: f.Text}
	for _, code := range f.Codes {
		if int(code) < len(faultCodes) && faultCodes[code] != nil {
			e.causes = append(e.causes, faultCodes[code])
		}
	}
	return e
}

// remoteError is an error that the other side answered with. The stream is sound.
type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.causes }
