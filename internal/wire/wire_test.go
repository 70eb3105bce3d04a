package wire_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

var header = raft.RPCHeader{ProtocolVersion: 3, ID: []byte("n1.a"), Addr: []byte("127.0.0.1:7")}

// message is one kind of raft message with its codec and examples.
type message struct {
	name     string
	encode   func(b []byte, m any) []byte
	decode   func(b []byte) (any, error)
	examples []any
}

func of[T any](name string, enc func([]byte, *T) []byte, dec func([]byte) (*T, error), examples ...*T) message {
	m := message{
		name:   name,
		encode: func(b []byte, x any) []byte { return enc(b, x.(*T)) },
		decode: func(b []byte) (any, error) { return dec(b) },
	}
	for _, x := range append(examples, new(T)) {
		m.examples = append(m.examples, x)
	}
	return m
}

func messages() []message {
	return []message{
		of("append", wire.AppendAppendEntries, wire.DecodeAppendEntries, &raft.AppendEntriesRequest{
			RPCHeader: header, Term: 7, Leader: []byte("l"), PrevLogEntry: 3, PrevLogTerm: 2, LeaderCommitIndex: 3,
			Entries: []*raft.Log{
				{Index: 4, Term: 7, Type: raft.LogCommand, Data: []byte("data"), Extensions: []byte("x"), AppendedAt: time.Unix(0, 12345)},
				{Index: 5, Term: 7, Type: raft.LogNoop},
			},
		}),
		of("append response", wire.AppendAppendEntriesResponse, wire.DecodeAppendEntriesResponse,
			&raft.AppendEntriesResponse{RPCHeader: header, Term: 1, LastLog: 2, Success: true, NoRetryBackoff: true}),
		of("vote", wire.AppendVote, wire.DecodeVote,
			&raft.RequestVoteRequest{RPCHeader: header, Term: 1, Candidate: []byte("c"), LastLogIndex: 2, LastLogTerm: 3, LeadershipTransfer: true}),
		of("vote response", wire.AppendVoteResponse, wire.DecodeVoteResponse,
			&raft.RequestVoteResponse{RPCHeader: header, Term: 1, Peers: []byte("p"), Granted: true}),
		of("pre-vote", wire.AppendPreVote, wire.DecodePreVote,
			&raft.RequestPreVoteRequest{RPCHeader: header, Term: 1, LastLogIndex: 2, LastLogTerm: 3}),
		of("pre-vote response", wire.AppendPreVoteResponse, wire.DecodePreVoteResponse,
			&raft.RequestPreVoteResponse{RPCHeader: header, Term: 1, Granted: true}),
		of("snapshot", wire.AppendInstallSnapshot, wire.DecodeInstallSnapshot,
			&raft.InstallSnapshotRequest{RPCHeader: header, SnapshotVersion: 1, Term: 2, Leader: []byte("l"), LastLogIndex: 3, LastLogTerm: 4,
				Peers: []byte("p"), Configuration: []byte("c"), ConfigurationIndex: 5, Size: 6}),
		of("snapshot response", wire.AppendInstallSnapshotResponse, wire.DecodeInstallSnapshotResponse,
			&raft.InstallSnapshotResponse{RPCHeader: header, Term: 1, Success: true}),
		of("timeout now", wire.AppendTimeoutNow, wire.DecodeTimeoutNow, &raft.TimeoutNowRequest{RPCHeader: header}),
		of("timeout now response", wire.AppendTimeoutNowResponse, wire.DecodeTimeoutNowResponse, &raft.TimeoutNowResponse{RPCHeader: header}),
	}
}

func TestRaftMessages(t *testing.T) {
	for _, m := range messages() {
		t.Run(m.name, func(t *testing.T) {
			for _, want := range m.examples {
				b := m.encode(nil, want)
				got, err := m.decode(b)
				if err != nil {
					t.Fatal(err)
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("got %+v, want %+v", got, want)
				}
				for n := range b {
					if _, err := m.decode(b[:n:n]); !errors.Is(err, wire.ErrMessage) {
						t.Errorf("first %d of %d bytes: got %v, want ErrMessage", n, len(b), err)
					}
				}
				if _, err := m.decode(append(b, 0)); !errors.Is(err, wire.ErrMessage) {
					t.Errorf("one byte more: got %v, want ErrMessage", err)
				}
			}
		})
	}
}

// FuzzRaftMessage: no decoder panics or allocates much, and what decodes encodes back to itself.
func FuzzRaftMessage(f *testing.F) {
	all := messages()
	for i, m := range all {
		for _, x := range m.examples {
			f.Add(uint8(i), m.encode(nil, x))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		m := all[int(which)%len(all)]
		x, err := m.decode(bytes.Clone(b))
		if err != nil {
			return
		}
		if got := m.encode(nil, x); !bytes.Equal(got, b) {
			t.Errorf("%s: %x decodes to %+v, which encodes to %x", m.name, b, x, got)
		}
	})
}

// A count of entries that the input cannot hold is refused before anything is allocated for it.
func TestDecodeBoundsAllocation(t *testing.T) {
	b := wire.AppendAppendEntries(nil, &raft.AppendEntriesRequest{RPCHeader: header})
	copy(b[len(b)-4:], "\xff\xff\xff\x7f")
	if n := allocated(func() {
		if _, err := wire.DecodeAppendEntries(b); !errors.Is(err, wire.ErrMessage) {
			t.Errorf("got %v, want ErrMessage", err)
		}
	}); n > 64<<10 {
		t.Errorf("allocated %d bytes", n)
	}
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func frame(typ wire.Type, id uint64, payload string) []byte {
	b := wire.BeginFrame(nil, typ, id)
	b = append(b, payload...)
	wire.EndFrame(b, 0)
	return b
}

func TestFrame(t *testing.T) {
	var buf [wire.HeaderLen]byte
	b := append([]byte("before"), frame(wire.TypeCall, 9, "payload")...)
	r := bytes.NewReader(b[len("before"):])
	h, err := wire.ReadHeader(r, 7, &buf)
	if want := (wire.Header{Type: wire.TypeCall, ID: 9, Len: 7}); h != want || err != nil {
		t.Fatalf("got %+v, %v, want %+v", h, err, want)
	}
	if p, err := wire.ReadPayload(r, h.Len); string(p) != "payload" || err != nil {
		t.Errorf("got %q, %v", p, err)
	}
	for name, c := range map[string]struct {
		in   []byte
		want error
	}{
		"above the cap":  {frame(wire.TypeCall, 9, "12345678"), wire.ErrFrame},
		"4 GiB declared": {append([]byte{0xff, 0xff, 0xff, 0xff}, make([]byte, 9)...), wire.ErrFrame},
		"no room for id": {append([]byte{8, 0, 0, 0}, make([]byte, 9)...), wire.ErrFrame},
		"cut":            {frame(wire.TypeCall, 9, "")[:5], io.ErrUnexpectedEOF},
		"nothing":        {nil, io.EOF},
	} {
		if _, err := wire.ReadHeader(bytes.NewReader(c.in), 7, &buf); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// A declared length costs memory only as far as bytes arrive.
func TestReadPayloadGrows(t *testing.T) {
	const declared = 1 << 30
	n := allocated(func() {
		if _, err := wire.ReadPayload(strings.NewReader("only this"), declared); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got %v, want ErrUnexpectedEOF", err)
		}
	})
	if n > 1<<20 {
		t.Errorf("allocated %d bytes for a frame that did not come", n)
	}
	big := bytes.Repeat([]byte("0123456789"), 100_000)
	got, err := wire.ReadPayload(bytes.NewReader(big), len(big))
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("1 MB frame: %d bytes, %v", len(got), err)
	}
}

func TestHello(t *testing.T) {
	want := &wire.Hello{Purpose: wire.RPC, Cell: wire.CellID{1, 2}, Server: "n1.a", ID: "n1", To: "n2.b", Level: 3}
	b, err := wire.AppendHello(nil, want)
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(append(bytes.Clone(b), "rest"...))
	if got, err := wire.ReadHello(r); err != nil || *got != *want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	if r.Len() != len("rest") {
		t.Errorf("ReadHello left %d bytes, want 4", r.Len())
	}
	if _, err := wire.AppendHello(nil, &wire.Hello{ID: strings.Repeat("x", wire.MaxHello)}); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("oversized hello: got %v, want ErrMessage", err)
	}
	newer := bytes.Clone(b)
	newer[4] = 2
	var v *wire.VersionError
	if _, err := wire.ReadHello(bytes.NewReader(newer)); !errors.As(err, &v) || v.Theirs != 2 {
		t.Errorf("newer version: got %v, want VersionError", err)
	}
	if _, err := wire.ReadHello(strings.NewReader("GET / HTTP/1.1")); !errors.Is(err, wire.ErrMagic) {
		t.Errorf("HTTP: got %v, want ErrMagic", err)
	}
	long := bytes.Clone(b)
	long[6], long[7] = 0xff, 0xff
	if _, err := wire.ReadHello(bytes.NewReader(long)); !errors.Is(err, wire.ErrMessage) {
		t.Errorf("64 KiB hello: got %v, want ErrMessage", err)
	}
}

func TestWelcome(t *testing.T) {
	for _, want := range []*wire.Welcome{
		{Server: "n2.b", ID: "n2", Level: 4},
		{Server: "n2.b", Fault: &wire.Fault{Codes: []byte{5}, Text: "no"}},
	} {
		b, err := wire.AppendWelcome(nil, want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := wire.ReadWelcome(bytes.NewReader(b)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	b, err := wire.AppendWelcome(nil, &wire.Welcome{Fault: &wire.Fault{Text: strings.Repeat("x", 2*wire.MaxHello)}})
	if err != nil {
		t.Fatalf("long text: %v", err)
	}
	if _, err := wire.ReadWelcome(bytes.NewReader(b)); err != nil {
		t.Errorf("long text, cut: %v", err)
	}
}

// FuzzHello: neither reader panics, and what is read is written back as it was.
func FuzzHello(f *testing.F) {
	b, _ := wire.AppendHello(nil, &wire.Hello{Purpose: wire.Found, Server: "n1.a", ID: "n1"})
	f.Add(b)
	b, _ = wire.AppendWelcome(nil, &wire.Welcome{Server: "n1.a", Fault: &wire.Fault{Text: "no"}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if h, err := wire.ReadHello(r); err == nil {
			if got, err := wire.AppendHello(nil, h); err != nil || !bytes.Equal(got, b[:len(b)-r.Len()]) {
				t.Errorf("hello %x became %x, %v", b, got, err)
			}
		}
		r = bytes.NewReader(b)
		if w, err := wire.ReadWelcome(r); err == nil {
			if got, err := wire.AppendWelcome(nil, w); err != nil || !bytes.Equal(got, b[:len(b)-r.Len()]) {
				t.Errorf("welcome %x became %x, %v", b, got, err)
			}
		}
		if f, err := wire.DecodeFault(bytes.Clone(b)); err == nil {
			if got := wire.AppendFault(nil, f); !bytes.Equal(got, b) {
				t.Errorf("fault %x became %x", b, got)
			}
		}
	})
}

// FuzzFrame: a stream of frames is read without panic, and frames come back as they were.
func FuzzFrame(f *testing.F) {
	f.Add(frame(wire.TypeAnswer, 1, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var buf [wire.HeaderLen]byte
		r := bytes.NewReader(b)
		h, err := wire.ReadHeader(r, wire.MaxRPCPayload, &buf)
		if err != nil {
			return
		}
		p, err := wire.ReadPayload(r, h.Len)
		if err != nil {
			return
		}
		if got := frame(h.Type, h.ID, string(p)); !bytes.Equal(got, b[:len(b)-r.Len()]) {
			t.Errorf("frame %x became %x", b, got)
		}
	})
}

func TestPurposes(t *testing.T) {
	for k, want := range map[wire.Kind]wire.Purpose{
		wire.FirstControlKind: wire.Control, wire.FirstRPCKind - 1: wire.Control, wire.FirstRPCKind: wire.RPC,
		wire.FirstClientKind - 1: wire.RPC, wire.FirstClientKind: wire.Client, wire.FirstFoundKind - 1: wire.Client, wire.FirstFoundKind: wire.Found, 255: wire.Found,
	} {
		if got := k.Purpose(); got != want {
			t.Errorf("kind %d: got %s, want %s", k, got, want)
		}
	}
	for p := wire.Purpose(0); p < 8; p++ {
		if want := p >= wire.Control && p <= wire.Client; p.Valid() != want {
			t.Errorf("%s: Valid() = %v", p, p.Valid())
		}
	}
}
