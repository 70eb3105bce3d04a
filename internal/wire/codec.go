package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrMessage means that a payload is not the message that its frame promises.
var ErrMessage = errors.New("bad message")

// Integers have fixed widths and byte strings a u32 length, so that each message has exactly one encoding.

func putBytes[T ~[]byte | ~string](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

func putBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

var le = binary.LittleEndian

// decoder takes values off the front of b. The first fault sticks: later values are zero.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, args...))
		d.b = nil
	}
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n > len(d.b) {
		d.fail("%d bytes wanted, %d left", n, len(d.b))
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) u8() uint8 {
	if s := d.take(1); s != nil {
		return s[0]
	}
	return 0
}

func (d *decoder) u32() uint32 {
	if s := d.take(4); s != nil {
		return le.Uint32(s)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if s := d.take(8); s != nil {
		return le.Uint64(s)
	}
	return 0
}

// count reads the length of a list whose elements take at least size bytes each, so that nothing is allocated for what is
// not there.
func (d *decoder) count(size int) int {
	n := d.u32()
	if uint64(n)*uint64(size) > uint64(len(d.b)) {
		d.fail("a list of %d", n)
		return 0
	}
	return int(n)
}

func (d *decoder) bool() bool {
	v := d.u8()
	if v > 1 {
		d.fail("boolean %d", v)
	}
	return v == 1
}

// bytes gives a part of the input, nil if empty. Whoever decodes gives the input away.
func (d *decoder) bytes() []byte {
	n := d.u32()
	if n == 0 {
		return nil
	}
	if uint64(n) > uint64(len(d.b)) {
		d.fail("%d bytes declared, %d left", n, len(d.b))
		return nil
	}
	return d.take(int(n))
}

// end is the decoder's verdict. What is left over is a fault.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes left over", len(d.b))
	}
	return d.err
}
