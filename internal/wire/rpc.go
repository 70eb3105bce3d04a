package wire

import (
	"encoding/binary"
	"fmt"
)

// Kinds of calls. They cross the wire: do not renumber.
const (
	KindConfirm   = FirstControlKind     // a term; "is it yours?"
	KindKeepAlive = FirstControlKind + 1 // sessions and acknowledged grants; how each stands
	KindForward   = FirstRPCKind         // commands; their outcomes
	KindReadIndex = FirstRPCKind + 1     // nothing; an index
	KindMember    = FirstRPCKind + 8     // a MemberCall of a member; a MemberAnswer
	KindFound     = FirstFoundKind       // nothing; who the node is and which cell it knows
	KindAsk       = FirstFoundKind + 1   // a MemberCall of a node about itself; a MemberAnswer
)

// CommandsMax is how many commands one forwarded frame may carry.
const CommandsMax = 1024

// Answers to a KeepAlive, one for each session and hold asked about.
const (
	RenewUnknown byte = iota // ask again
	RenewAlive               // the lease is renewed; the hold is being counted
	RenewEnded               // the session is gone; there is no such hold, or not yet
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

// KeepAlive asks the cell leader to renew sessions, and acknowledges grants of locks that have a MaxHold. Its answer has
// one byte for each session and then one for each hold.
type KeepAlive struct {
	Sessions []uint64
	Holds    []Hold
}

// Hold names one holding of a lock: path, generation, owner.
type Hold struct {
	Path         string
	Generation   uint64
	Session, Seq uint64
}

const (
	sessionBytes = 8
	holdBytes    = 28 // without the path
)

// AppendKeepAlive encodes k.
func AppendKeepAlive(dst []byte, k *KeepAlive) []byte {
	dst = le.AppendUint32(dst, uint32(len(k.Sessions)))
	for _, id := range k.Sessions {
		dst = le.AppendUint64(dst, id)
	}
	dst = le.AppendUint32(dst, uint32(len(k.Holds)))
	for _, h := range k.Holds {
		dst = putBytes(dst, h.Path)
		dst = le.AppendUint64(dst, h.Generation)
		dst = le.AppendUint64(dst, h.Session)
		dst = le.AppendUint64(dst, h.Seq)
	}
	return dst
}

// ParseKeepAlive decodes what AppendKeepAlive made.
func ParseKeepAlive(b []byte) (KeepAlive, error) {
	d := decoder{b: b}
	var k KeepAlive
	n := d.count(sessionBytes)
	k.Sessions = make([]uint64, 0, n)
	for range n {
		k.Sessions = append(k.Sessions, d.u64())
	}
	n = d.count(holdBytes)
	k.Holds = make([]Hold, 0, n)
	for range n {
		k.Holds = append(k.Holds, Hold{Path: string(d.bytes()), Generation: d.u64(), Session: d.u64(), Seq: d.u64()})
	}
	if err := d.end(); err != nil {
		return KeepAlive{}, err
	}
	return k, nil
}

// SplitKeepAlive cuts k into parts that each fit into one frame of a control stream.
func SplitKeepAlive(k KeepAlive) []KeepAlive {
	const most = MaxControlPayload - 64 // kind and counts
	var parts []KeepAlive
	for len(k.Sessions) > 0 || len(k.Holds) > 0 {
		n := min(len(k.Sessions), most/sessionBytes)
		left := most - n*sessionBytes
		m := 0
		for m < len(k.Holds) && left >= holdBytes+len(k.Holds[m].Path) {
			left -= holdBytes + len(k.Holds[m].Path)
			m++
		}
		parts = append(parts, KeepAlive{k.Sessions[:n], k.Holds[:m]})
		k.Sessions, k.Holds = k.Sessions[n:], k.Holds[m:]
	}
	return parts
}
