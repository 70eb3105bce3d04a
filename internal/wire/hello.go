package wire

import (
	"errors"
	"fmt"
	"io"
)

// Version is that of the hello and of the frames after it. There is one: a release that needs another one bumps it only
// when feature levels cannot carry the difference.
const Version = 1

// MaxHello is the largest hello or welcome in bytes, its head not counted.
const MaxHello = 4 << 10

// magic is the first thing on a stream. Neither a TLS record nor an HTTP request starts with it.
const magic = "chby"

const helloHead = len(magic) + 2 + 2 // magic, u16 version, u16 length of the body

// ErrMagic means that the other side does not speak this protocol at all.
var ErrMagic = errors.New("not a chubby stream")

// VersionError means that the other side speaks another version of this protocol.
type VersionError struct{ Theirs uint16 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("protocol version %d, this node speaks %d", e.Theirs, Version)
}

// CellID is the hash that names a cell and its epoch. Zero: not known.
type CellID [16]byte

// Hello opens a stream. It is the dialler's; the other side answers with a Welcome.
type Hello struct {
	Purpose Purpose
	Cell    CellID // zero for Found
	Server  string // raft server id of the dialler; empty for a client
	ID      string // node id of the dialler; empty for a client
	To      string // raft server id of the one addressed; may be empty for Found only
	Level   uint32 // feature level of the dialler
}

// Welcome answers a Hello.
type Welcome struct {
	Server string // raft server id of the one who answers
	ID     string // its node id
	Level  uint32 // its feature level
	Fault  *Fault // nil: accepted
}

// Fault is an error on its way to another process: text for people, codes for programs. What the codes mean is for the
// caller to say.
type Fault struct {
	Codes []byte
	Text  string
}

// AppendFault appends f's encoding to b.
func AppendFault(b []byte, f *Fault) []byte {
	b = putBytes(b, f.Codes)
	return putBytes(b, f.Text)
}

// DecodeFault is the inverse of AppendFault.
func DecodeFault(b []byte) (*Fault, error) {
	d := decoder{b: b}
	f := d.fault()
	return f, d.end()
}

func (d *decoder) fault() *Fault {
	return &Fault{Codes: d.bytes(), Text: string(d.bytes())}
}

// AppendHello appends h with its head to b. It fails if the result would be larger than MaxHello allows.
func AppendHello(b []byte, h *Hello) ([]byte, error) {
	start := len(b)
	b = appendHead(b)
	b = append(b, byte(h.Purpose))
	b = append(b, h.Cell[:]...)
	b = putBytes(b, h.Server)
	b = putBytes(b, h.ID)
	b = putBytes(b, h.To)
	b = le.AppendUint32(b, h.Level)
	return endHead(b, start)
}

// AppendWelcome appends w with its head to b. A text that is too long is cut.
func AppendWelcome(b []byte, w *Welcome) ([]byte, error) {
	start := len(b)
	b = appendHead(b)
	b = putBytes(b, w.Server)
	b = putBytes(b, w.ID)
	b = le.AppendUint32(b, w.Level)
	b = putBool(b, w.Fault != nil)
	if w.Fault != nil {
		f := *w.Fault
		if room := max(0, MaxHello-(len(b)-start)-len(f.Codes)-8); len(f.Text) > room {
			f.Text = f.Text[:room]
		}
		b = AppendFault(b, &f)
	}
	return endHead(b, start)
}

func appendHead(b []byte) []byte {
	b = append(b, magic...)
	b = le.AppendUint16(b, Version)
	return append(b, 0, 0)
}

func endHead(b []byte, start int) ([]byte, error) {
	n := len(b) - start - helloHead
	if n > MaxHello {
		return nil, fmt.Errorf("%w: hello of %d bytes, at most %d are allowed", ErrMessage, n, MaxHello)
	}
	le.PutUint16(b[start+len(magic)+2:], uint16(n))
	return b, nil
}

// ReadHello reads a Hello. It reads not one byte more and allocates at most MaxHello.
func ReadHello(r io.Reader) (*Hello, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	d := decoder{b: b}
	h := &Hello{Purpose: Purpose(d.u8())}
	copy(h.Cell[:], d.take(len(h.Cell)))
	h.Server = string(d.bytes())
	h.ID = string(d.bytes())
	h.To = string(d.bytes())
	h.Level = d.u32()
	if err := d.end(); err != nil {
		return nil, err
	}
	return h, nil
}

// ReadWelcome reads a Welcome. It reads not one byte more and allocates at most MaxHello.
func ReadWelcome(r io.Reader) (*Welcome, error) {
	b, err := readBody(r)
	if err != nil {
		return nil, err
	}
	d := decoder{b: b}
	w := &Welcome{Server: string(d.bytes()), ID: string(d.bytes()), Level: d.u32()}
	if d.bool() {
		w.Fault = d.fault()
	}
	if err := d.end(); err != nil {
		return nil, err
	}
	return w, nil
}

func readBody(r io.Reader) ([]byte, error) {
	var head [helloHead]byte
	// The magic is judged before more is waited for: a stranger may have sent less than a head.
	if _, err := io.ReadFull(r, head[:len(magic)]); err != nil {
		return nil, err
	}
	if string(head[:len(magic)]) != magic {
		return nil, ErrMagic
	}
	if _, err := io.ReadFull(r, head[len(magic):]); err != nil {
		return nil, err
	}
	version, n := le.Uint16(head[len(magic):]), le.Uint16(head[len(magic)+2:])
	if version != Version {
		return nil, &VersionError{version}
	}
	if n > MaxHello {
		return nil, fmt.Errorf("%w: hello of %d bytes, at most %d are allowed", ErrMessage, n, MaxHello)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}
