// Package wire holds the bytes that nodes exchange: the hello that opens a stream, the frames that follow it, and the
// raft messages in them. It neither dials nor listens. docs/format.md describes the same bytes for people.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Purpose tells what a stream is for. A stream has one, so that nothing small waits behind something large.
// Purposes cross the wire: append at the end, do not renumber.
type Purpose uint8

const (
	Control  Purpose = iota + 1 // votes, heartbeats and calls that must not wait: confirm rounds, KeepAlives
	Append                      // AppendEntries, ordered and pipelined
	Snapshot                    // one InstallSnapshot at a time
	RPC                         // forwarded commands, read index, everything else between nodes and clients
	Found                       // questions of those who do not know the cell yet
	Client                      // calls of a dialled client, and what the member pushes to it
)

// Frame sizes in bytes, without the frame's header.
const (
	MaxControlPayload = 64 << 10
	MaxAppendPayload  = 4<<20 + 64<<10 // 4 MiB of entries, and room for what is around them
	MaxRPCPayload     = 4 << 20
	MaxChunk          = 256 << 10 // one piece of a snapshot
	MaxFoundPayload   = 64 << 10
	MaxClientPayload  = 4 << 20
)

// Valid reports whether p is a purpose that this release knows.
func (p Purpose) Valid() bool { return p >= Control && p <= Client }

// MaxPayload is the largest payload in bytes of a frame on a stream of this purpose.
func (p Purpose) MaxPayload() int {
	switch p {
	case Append:
		return MaxAppendPayload
	case Snapshot:
		return MaxChunk
	case RPC:
		return MaxRPCPayload
	case Found:
		return MaxFoundPayload
	case Client:
		return MaxClientPayload
	default:
		return MaxControlPayload
	}
}

func (p Purpose) String() string {
	switch p {
	case Control:
		return "control"
	case Append:
		return "append"
	case Snapshot:
		return "snapshot"
	case RPC:
		return "rpc"
	case Found:
		return "found"
	case Client:
		return "client"
	default:
		return fmt.Sprintf("purpose(%d)", uint8(p))
	}
}

// Kind names a call. The range it lies in decides on which stream it travels. Kinds cross the wire: do not renumber.
type Kind uint8

// Each range of kinds starts here. Zero is no kind.
const (
	FirstControlKind Kind = 1
	FirstRPCKind     Kind = 64
	FirstClientKind  Kind = 128
	FirstFoundKind   Kind = 192
)

// Purpose is that of the streams on which calls of this kind travel.
func (k Kind) Purpose() Purpose {
	switch {
	case k >= FirstFoundKind:
		return Found
	case k >= FirstClientKind:
		return Client
	case k >= FirstRPCKind:
		return RPC
	default:
		return Control
	}
}

// Type tells what a frame holds. Types cross the wire: append at the end, do not renumber.
type Type uint8

const (
	TypeAlive      Type = iota + 1 // nothing: the sender is alive and has nothing else to say
	TypeCall                       // a Kind (one byte) and what its handler gets
	TypeCancel                     // nothing: the caller of this id waits no more
	TypeAnswer                     // the answer to the id
	TypeError                      // a Fault instead of an answer
	TypeAppend                     // AppendEntriesRequest
	TypeKick                       // AppendEntriesRequest that wants no answer
	TypeVote                       // RequestVoteRequest
	TypePreVote                    // RequestPreVoteRequest
	TypeTimeoutNow                 // TimeoutNowRequest
	TypeSnapshot                   // InstallSnapshotRequest; its chunks follow
	TypeChunk                      // bytes of the snapshot
	TypePart                       // the beginning of an answer; more of it follows under the same id
	TypePush                       // a push kind (one byte) and what it tells; the member speaks first
)

// HeaderLen is the size of a frame's header: u32 length of what follows it, u8 type, u64 id; all little-endian.
const HeaderLen = 4 + 1 + 8

// lengthBase is what a frame's length counts besides the payload: type and id.
const lengthBase = 1 + 8

// ErrFrame means that bytes are not a frame that may appear on this stream. The stream must be closed.
var ErrFrame = errors.New("bad frame")

// BeginFrame appends a frame's header to b. The payload is appended next, then EndFrame called with the length that b
// had before.
func BeginFrame(b []byte, t Type, id uint64) []byte {
	b = append(b, 0, 0, 0, 0, byte(t))
	return binary.LittleEndian.AppendUint64(b, id)
}

// EndFrame fills in the length of the frame that starts at b[start] and ends with b. It returns the payload's size.
func EndFrame(b []byte, start int) int {
	n := len(b) - start - 4
	binary.LittleEndian.PutUint32(b[start:], uint32(n))
	return n - lengthBase
}

// Header is the part of a frame before its payload.
type Header struct {
	Type Type
	ID   uint64 // chosen by who asks, repeated in the answer
	Len  int    // size of the payload in bytes
}

// ReadHeader reads a frame's header. A payload above maxPayload is ErrFrame: the caller must close the stream, before
// anything was allocated for it. buf is scratch space of the caller, so that reading headers allocates nothing.
func ReadHeader(r io.Reader, maxPayload int, buf *[HeaderLen]byte) (Header, error) {
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return Header{}, err
	}
	n := int64(binary.LittleEndian.Uint32(buf[:])) - lengthBase
	if n < 0 || n > int64(maxPayload) {
		return Header{}, fmt.Errorf("%w: payload of %d bytes, at most %d are allowed", ErrFrame, n, maxPayload)
	}
	return Header{Type: Type(buf[4]), ID: binary.LittleEndian.Uint64(buf[5:]), Len: int(n)}, nil
}

// firstStep is how many bytes are allocated on the strength of a declared length alone.
const firstStep = 256 << 10

// ReadPayload reads n bytes into memory of its own. It allocates in proportion to what has really arrived, so that a
// large declared length costs nothing. n was bounded by ReadHeader.
func ReadPayload(r io.Reader, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b := make([]byte, min(n, firstStep))
	for got := 0; ; {
		if _, err := io.ReadFull(r, b[got:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		if got = len(b); got == n {
			return b, nil
		}
		grown := make([]byte, min(n, 2*got))
		copy(grown, b)
		b = grown
	}
}
