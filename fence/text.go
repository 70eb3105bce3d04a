package fence

import (
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The text form, version 1:
//
//	1:<cell>:<epoch>:<path>:<mode>:<generation>:<checksum>
//
// Numbers are decimal without leading zeros; the mode is a word; bytes of cell and path other than letters, digits and
// -._~/ are written %XX in upper case; the checksum is CRC-32C of everything before its colon, in eight lower case hex
// digits. CRC-32C finds every change within 32 bits in a row, so any single damaged character. One value has one text.
const textVersion = "1"

const textMax = 3*(cellMax+pathMax) + 80 // longest text there can be, rounded up

var castagnoli = crc32.MakeTable(crc32.Castagnoli) // read only

// String gives the text form, which [Parse] reads. A value that is no sequencer (no mode, or parts too long) gives a
// text that Parse refuses.
func (s Sequencer) String() string {
	if !s.valid() {
		return "invalid sequencer"
	}
	return string(s.appendText(nil))
}

func (s Sequencer) appendText(b []byte) []byte {
	start := len(b)
	b = append(b, textVersion+":"...)
	b = appendEscaped(b, s.Cell)
	b = append(b, ':')
	b = strconv.AppendUint(b, s.Epoch, 10)
	b = append(b, ':')
	b = appendEscaped(b, s.Path)
	b = append(b, ':')
	b = append(b, s.Mode.String()...)
	b = append(b, ':')
	b = strconv.AppendUint(b, s.Generation, 10)
	return fmt.Appendf(b, ":%08x", crc32.Checksum(b[start:], castagnoli))
}

// MarshalText gives the text form. It returns ErrBadSequencer for a value that is no sequencer.
func (s Sequencer) MarshalText() ([]byte, error) {
	if !s.valid() {
		return nil, fmt.Errorf("%w: %v, cell of %d bytes, path of %d bytes", ErrBadSequencer, s.Mode, len(s.Cell), len(s.Path))
	}
	return s.appendText(nil), nil
}

// UnmarshalText is [Parse] for encodings. After an error s is unchanged.
func (s *Sequencer) UnmarshalText(text []byte) error {
	if len(text) > textMax {
		return fmt.Errorf("%w: %d bytes of text", ErrBadSequencer, len(text))
	}
	p, err := Parse(string(text))
	if err == nil {
		*s = p
	}
	return err
}

// Parse reads the text form. It returns ErrBadSequencer if text is damaged, or written in another way than
// [Sequencer.String] writes it.
func Parse(text string) (Sequencer, error) {
	var s Sequencer
	if len(text) > textMax {
		return s, fmt.Errorf("%w: %d bytes of text", ErrBadSequencer, len(text))
	}
	end := strings.LastIndexByte(text, ':')
	if end < 0 || text[end+1:] != fmt.Sprintf("%08x", crc32.Checksum([]byte(text[:end]), castagnoli)) {
		return s, fmt.Errorf("%w: the checksum does not fit", ErrBadSequencer)
	}
	part := strings.Split(text[:end], ":")
	if part[0] != textVersion {
		return s, fmt.Errorf("%w: unknown version", ErrBadSequencer)
	}
	if len(part) != 6 {
		return s, fmt.Errorf("%w: %d parts", ErrBadSequencer, len(part))
	}
	var err [4]error
	s.Cell, err[0] = unescape(part[1])
	s.Epoch, err[1] = strconv.ParseUint(part[2], 10, 64)
	s.Path, err[2] = unescape(part[3])
	s.Generation, err[3] = strconv.ParseUint(part[5], 10, 64)
	for _, e := range err {
		if e != nil {
			return Sequencer{}, fmt.Errorf("%w: %w", ErrBadSequencer, e)
		}
	}
	switch part[4] {
	case Exclusive.String():
		s.Mode = Exclusive
	case Shared.String():
		s.Mode = Shared
	}
	// Writing it again is the shortest complete test that this is the one text of its value.
	if !s.valid() || s.String() != text {
		return Sequencer{}, fmt.Errorf("%w: not in canonical form", ErrBadSequencer)
	}
	return s, nil
}

const upperHex = "0123456789ABCDEF"

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~/", c) >= 0
}

func appendEscaped(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return b
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", fmt.Errorf("cut off at %q", s[i:])
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", err
		}
		b = append(b, byte(c))
		i += 2
	}
	return string(b), nil
}
