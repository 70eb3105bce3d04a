package wire_test

import (
	"bytes"
	"testing"

	"github.com/chubbygo/chubby/internal/wire"
)

// FuzzNextCommand: what decodes encodes back, unless a length was written in more bytes than it needs, and no input
// panics.
func FuzzNextCommand(f *testing.F) {
	f.Add(wire.AppendCommand(wire.AppendCommand(nil, true, []byte("abc")), false, nil))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var again []byte
		rest := b
		for len(rest) > 0 {
			urgent, raw, next, err := wire.NextCommand(rest)
			if err != nil {
				return
			}
			if len(next) >= len(rest) {
				t.Fatalf("no progress: %d bytes, then %d", len(rest), len(next))
			}
			again = wire.AppendCommand(again, urgent, raw)
			rest = next
		}
		if len(again) > len(b) || len(again) == len(b) && !bytes.Equal(again, b) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
	})
}

func FuzzParseIDs(f *testing.F) {
	f.Add(wire.AppendIDs(nil, []uint64{1, 1 << 63}))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := wire.ParseIDs(b)
		if (err == nil) != (len(b)%8 == 0) {
			t.Fatalf("%d bytes: %v", len(b), err)
		}
		if err == nil && !bytes.Equal(wire.AppendIDs(nil, ids), b) {
			t.Fatalf("%x is %v", b, ids)
		}
	})
}
