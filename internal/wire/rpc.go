package wire

import (
	"encoding/binary"
	"fmt"
)

// Kinds of calls. They cross the wire: do not renumber.
const (
	KindConfirm   = FirstControlKind     // a term; "is it yours?"
	KindKeepAlive = FirstControlKind + 1 // session ids; how each stands
	KindForward   = FirstRPCKind         // commands; their outcomes
	KindReadIndex = FirstRPCKind + 1     // nothing; an index
	KindFound     = FirstFoundKind       // nothing; who the node is and which cell it knows
)

// CommandsMax is how many commands one forwarded frame may carry.
const CommandsMax = 1024

// Answers to a KeepAlive, one for each session asked about.
const (
	RenewUnknown byte = iota // ask again
	RenewAlive               // the lease is renewed
	RenewEnded               // the session is gone
)

// AppendCommand adds one forwarded command to a frame.
func AppendCommand(dst []byte, urgent bool, raw []byte) []byte {
	flags := byte(0)
	if urgent {
		flags = 1
	}
	dst = append(dst, flags)
	dst = binary.AppendUvarint(dst, uint64(len(raw)))
	return append(dst, raw...)
}

// NextCommand takes the first command off a frame. raw aliases b.
func NextCommand(b []byte) (urgent bool, raw, rest []byte, err error) {
	if len(b) == 0 || b[0] > 1 {
		return false, nil, nil, fmt.Errorf("%w: flags of a command", ErrMessage)
	}
	n, w := binary.Uvarint(b[1:])
	if w <= 0 || n > uint64(len(b)-1-w) {
		return false, nil, nil, fmt.Errorf("%w: length of a command", ErrMessage)
	}
	end := 1 + w + int(n)
	return b[0] == 1, b[1+w : end : end], b[end:], nil
}

// AppendIDs encodes session ids.
func AppendIDs(dst []byte, ids []uint64) []byte {
	for _, id := range ids {
		dst = binary.LittleEndian.AppendUint64(dst, id)
	}
	return dst
}

// ParseIDs decodes what AppendIDs made.
func ParseIDs(b []byte) ([]uint64, error) {
	if len(b)%8 != 0 {
		return nil, fmt.Errorf("%w: %d bytes of session ids", ErrMessage, len(b))
	}
	ids := make([]uint64, 0, len(b)/8)
	for ; len(b) > 0; b = b[8:] {
		ids = append(ids, binary.LittleEndian.Uint64(b))
	}
	return ids, nil
}
