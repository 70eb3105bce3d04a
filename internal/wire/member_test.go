package wire_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/chubbygo/chubby/internal/wire"
)

var memberCall = wire.MemberCall{
	Op: wire.MemberAdd, Vote: true, Cell: wire.CellID{1, 15: 2}, Name: "c", ID: "n3", Server: "n3.x", Addr: "h:1",
}

var memberAnswer = wire.MemberAnswer{
	State: wire.MemberNonvoter, Cell: wire.CellID{3}, Epoch: 9,
	Servers: []wire.MemberServer{{Server: "a.x", Addr: "h:1", Voter: true, Index: 300, Silent: 5}, {Server: "b.y", Leader: true}},
}

func TestMemberCall(t *testing.T) {
	b := wire.AppendMemberCall(nil, &memberCall)
	if got, want := hex.EncodeToString(b), "0201"+"01000000000000000000000000000002"+
		"0100000063"+"020000006e33"+"040000006e332e78"+"03000000683a31"; got != want {
		t.Errorf("encoded as %s, want %s", got, want)
	}
	if got, err := wire.ParseMemberCall(b); err != nil || got != memberCall {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range b {
		if _, err := wire.ParseMemberCall(b[:n:n]); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
	for _, op := range []byte{0, byte(wire.MemberAnnounce) + 1} {
		if _, err := wire.ParseMemberCall(append([]byte{op}, b[1:]...)); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("operation %d: %v", op, err)
		}
	}
}

func TestMemberAnswer(t *testing.T) {
	b := wire.AppendMemberAnswer(nil, &memberAnswer)
	if got, want := hex.EncodeToString(b), "02"+"03000000000000000000000000000000"+"0900000000000000"+"02000000"+
		"03000000612e78"+"03000000683a31"+"0100"+"2c01000000000000"+"0500000000000000"+
		"03000000622e79"+"00000000"+"0001"+"0000000000000000"+"0000000000000000"; got != want {
		t.Errorf("encoded as %s, want %s", got, want)
	}
	if got, err := wire.ParseMemberAnswer(b); err != nil || !reflect.DeepEqual(got, memberAnswer) {
		t.Errorf("got %+v, %v", got, err)
	}
	for n := range b {
		if _, err := wire.ParseMemberAnswer(b[:n:n]); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("first %d bytes: %v", n, err)
		}
	}
	if _, err := wire.ParseMemberAnswer(append([]byte{wire.MemberRemoved + 1}, b[1:]...)); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("unknown state: %v", err)
	}
}

// FuzzParseMember: what decodes encodes back to itself, and no input panics.
func FuzzParseMember(f *testing.F) {
	f.Add(wire.AppendMemberCall(nil, &memberCall))
	f.Add(wire.AppendMemberAnswer(nil, &memberAnswer))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := wire.ParseMemberCall(bytes.Clone(b)); err == nil {
			if again := wire.AppendMemberCall(nil, &c); !bytes.Equal(again, b) {
				t.Errorf("call %x decodes and encodes to %x", b, again)
			}
		}
		if a, err := wire.ParseMemberAnswer(bytes.Clone(b)); err == nil {
			if again := wire.AppendMemberAnswer(nil, &a); !bytes.Equal(again, b) {
				t.Errorf("answer %x decodes and encodes to %x", b, again)
			}
		}
	})
}
