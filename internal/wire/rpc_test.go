package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
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

var keepAlive = wire.KeepAlive{
	Sessions: []uint64{1, 1 << 63},
	Holds:    []wire.Hold{{Path: "/a", Generation: 300, Session: 1, Seq: 9}, {Path: "/b/c", Generation: 1, Session: 1 << 63, Seq: 1}},
}

func TestKeepAlive(t *testing.T) {
	b := wire.AppendKeepAlive(nil, &keepAlive)
	if got, want := hex.EncodeToString(b), "02000000"+"0100000000000000"+"0000000000000080"+"02000000"+
		"02000000"+"2f61"+"2c01000000000000"+"0100000000000000"+"0900000000000000"+
		"04000000"+"2f622f63"+"0100000000000000"+"0000000000000080"+"0100000000000000"; got != want {
		t.Errorf("encoded as %s, want %s", got, want)
	}
	if got, err := wire.ParseKeepAlive(b); err != nil || !reflect.DeepEqual(got, keepAlive) {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range b {
		if _, err := wire.ParseKeepAlive(b[:n:n]); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
	if _, err := wire.ParseKeepAlive(append(b, 0)); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("one byte more: %v", err)
	}
}

// However many sessions and holds a node has, each part of its KeepAlive fits into a frame, and together they ask for
// everything once.
func TestSplitKeepAlive(t *testing.T) {
	if parts := wire.SplitKeepAlive(wire.KeepAlive{}); len(parts) != 0 {
		t.Errorf("nothing is split into %d parts", len(parts))
	}
	if parts := wire.SplitKeepAlive(keepAlive); len(parts) != 1 || !reflect.DeepEqual(parts[0], keepAlive) {
		t.Errorf("a small one is split into %+v", parts)
	}
	var all, got wire.KeepAlive
	for i := range uint64(30_000) {
		all.Sessions = append(all.Sessions, i)
	}
	for i := range uint64(3000) {
		all.Holds = append(all.Holds, wire.Hold{Path: strings.Repeat("x", 1+int(i*7919%4096)), Seq: i})
	}
	for _, part := range wire.SplitKeepAlive(all) {
		if n := len(wire.AppendKeepAlive(nil, &part)); n+1 > wire.MaxControlPayload {
			t.Errorf("a part of %d bytes", n)
		}
		got.Sessions, got.Holds = append(got.Sessions, part.Sessions...), append(got.Holds, part.Holds...)
	}
	if !reflect.DeepEqual(got, all) {
		t.Errorf("the parts have %d sessions and %d holds of %d and %d, or others", len(got.Sessions), len(got.Holds), len(all.Sessions), len(all.Holds))
	}
}

// FuzzParseKeepAlive: what decodes encodes back to itself.
func FuzzParseKeepAlive(f *testing.F) {
	f.Add(wire.AppendKeepAlive(nil, &keepAlive))
	f.Add(wire.AppendKeepAlive(nil, &wire.KeepAlive{}))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := wire.ParseKeepAlive(bytes.Clone(b))
		if err == nil && !bytes.Equal(wire.AppendKeepAlive(nil, &k), b) {
			t.Fatalf("%x is %+v", b, k)
		}
	})
}
