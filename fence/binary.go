package fence

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// The binary form, version 1: the version byte; cell and path, each a uvarint length and its bytes; the mode byte; epoch
// and generation as uvarints; CRC-32C of all that, little endian. Uvarints are the shortest possible.
const binaryVersion = 1

// MarshalBinary gives the binary form. It returns ErrBadSequencer for a value that is no sequencer.
func (s Sequencer) MarshalBinary() ([]byte, error) { return s.AppendBinary(nil) }

// AppendBinary appends the binary form to b. It returns ErrBadSequencer for a value that is no sequencer.
func (s Sequencer) AppendBinary(b []byte) ([]byte, error) {
	if !s.valid() {
		return b, fmt.Errorf("%w: %v, cell of %d bytes, path of %d bytes", ErrBadSequencer, s.Mode, len(s.Cell), len(s.Path))
	}
	start := len(b)
	b = append(b, binaryVersion)
	b = append(binary.AppendUvarint(b, uint64(len(s.Cell))), s.Cell...)
	b = append(binary.AppendUvarint(b, uint64(len(s.Path))), s.Path...)
	b = append(b, byte(s.Mode))
	b = binary.AppendUvarint(b, s.Epoch)
	b = binary.AppendUvarint(b, s.Generation)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start:], castagnoli)), nil
}

// UnmarshalBinary reads the binary form. It returns ErrBadSequencer for anything else; s is unchanged then. It keeps
// no part of b.
func (s *Sequencer) UnmarshalBinary(b []byte) error {
	n := len(b) - 4
	if n < 1 || binary.LittleEndian.Uint32(b[n:]) != crc32.Checksum(b[:n], castagnoli) {
		return fmt.Errorf("%w: the checksum does not fit", ErrBadSequencer)
	}
	if b[0] != binaryVersion {
		return fmt.Errorf("%w: unknown version %d", ErrBadSequencer, b[0])
	}
	rest, ok := b[1:n], true
	number := func() uint64 {
		v, size := binary.Uvarint(rest)
		if size <= 0 || size > 1 && rest[size-1] == 0 {
			ok = false
			return 0
		}
		rest = rest[size:]
		return v
	}
	text := func() string {
		size := number()
		if size > uint64(len(rest)) {
			ok = false
			return ""
		}
		v := string(rest[:size])
		rest = rest[size:]
		return v
	}
	var p Sequencer
	p.Cell, p.Path = text(), text()
	if len(rest) > 0 {
		p.Mode, rest = Mode(rest[0]), rest[1:]
	}
	p.Epoch, p.Generation = number(), number()
	if !ok || len(rest) != 0 || !p.valid() {
		return fmt.Errorf("%w: not in canonical form", ErrBadSequencer)
	}
	*s = p
	return nil
}
