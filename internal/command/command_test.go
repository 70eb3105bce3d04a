package command_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/chubbygo/chubby/fence"
	. "github.com/chubbygo/chubby/internal/command"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.txt")

var sequencer = fence.Sequencer{Cell: "local", Epoch: 1700000000000, Path: "/l", Mode: fence.Shared, Generation: 300}

var allConds = []Cond{
	{Kind: CondGeneration, Path: "/a", Generation: 300},
	{Kind: CondAbsent, Path: "/a"},
	{Kind: CondExists},
	{Kind: CondValue, Path: "/a", Value: []byte("v")},
	{Kind: CondHolds, Sequencer: sequencer},
	{Kind: CondInstance, Path: "/a", Generation: 300},
}

var acl = ACL{Read: "all", Change: "admins"}

var allOps = []Op{
	{Kind: OpGet, Path: "/a"},
	{Kind: OpSet, Path: "/a", Data: []byte("x")},
	{Kind: OpDelete, Path: "/a"},
	{Kind: OpCreate, Path: "/a", Data: []byte("x"), Dir: true, Ephemeral: true},
	{Kind: OpCreate, Path: "/a", ACL: acl},
	{Kind: OpAdd, Path: "/a", Number: -5, Bound: math.MaxInt64},
}

var commands = []Command{
	{Kind: KindBarrier},
	{Kind: KindAssignSlot, Node: "n1.abc"},
	{Kind: KindOpenSession, Session: 70000, Principal: "n1", Nonce: [16]byte{1, 15: 2}, Slot: 3, Name: "alice", Node: "n1.abc", Lease: 12000, Grace: 45000, Caching: true},
	{Kind: KindCloseSession, Session: 70000, Principal: "n1"},
	{Kind: KindExpireSessions, Term: 5, Sessions: []uint64{1, 70000}},
	{Kind: KindClearDelay, Term: 5, Path: "/l", Generation: 300},
	{Kind: KindSet, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", Data: []byte("hello"), Conds: allConds},
	{Kind: KindCreate, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", Data: []byte("hello"), Dir: true, Ephemeral: true},
	{Kind: KindCompareAndSwap, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", HasOld: true, Old: []byte("old"), Data: []byte("new")},
	{Kind: KindCompareAndSwap, Path: "/a/b"},
	{Kind: KindAdd, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/n", Number: 300, Bound: math.MinInt64},
	{Kind: KindSub, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/n", Number: 1, Bound: -300},
	{Kind: KindDelete, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", Conds: allConds[:1]},
	{Kind: KindDeleteTree, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b"},
	{Kind: KindTxn, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", If: allConds, Then: allOps, Else: allOps[:1]},
	{Kind: KindLock, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/l", Mode: fence.Exclusive, Try: true, Delay: 5000, Hold: 70000},
	{Kind: KindLock, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/l", Mode: fence.Shared, HasData: true, Data: []byte("me")},
	{Kind: KindUnlock, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/l", Generation: 300, LockSeq: 7, Term: 5},
	{Kind: KindCancelLock, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/l", LockSeq: 7},
	{Kind: KindCreate, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", ACL: acl},
	{Kind: KindLock, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/l", Mode: fence.Shared, Conds: allConds},
	{Kind: KindCellKey, Key: [32]byte{1, 31: 2}},
	{Kind: KindOpen, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", Data: []byte("hello"), Ephemeral: true, ACL: acl, Create: true, New: true, Conds: allConds},
	{Kind: KindOpen, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", Dir: true, Write: true, ChangeACL: true},
	{Kind: KindCloseHandle, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", OpenSeq: 7},
	{Kind: KindSetACL, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b", ACL: acl, Conds: allConds[:1]},
	{Kind: KindSetACL, Session: 70000, Seq: 9, AckedBelow: 8, Principal: "n1", Path: "/a/b"},
	{Kind: KindRaiseLevel, Term: 70000, Level: 2},
	{Kind: KindProbe},
}

// What the leader alone may decide is told by the first fields; every other command is anybody's.
func TestForLeader(t *testing.T) {
	for i := range commands {
		c := commands[i]
		want := c.Kind == KindBarrier || c.Kind == KindExpireSessions || c.Kind == KindClearDelay || c.Kind == KindRaiseLevel
		if got := ForLeader(Append(nil, &c)); got != want {
			t.Errorf("kind %d: %v", c.Kind, got)
		}
		if c.Kind == KindUnlock {
			c.Seq = 0
			if !ForLeader(Append(nil, &c)) {
				t.Error("an Unlock without a sequence, which only the leader sends")
			}
		}
	}
	for _, raw := range [][]byte{nil, {Version}, {Version, byte(KindUnlock)}, {Version, byte(KindUnlock), 1}, {99, byte(KindBarrier)}} {
		if ForLeader(raw) {
			t.Errorf("%x is no command", raw)
		}
	}
}

// What needs a level above the first is told by the first bytes.
func TestLevelOf(t *testing.T) {
	for i := range commands {
		want := uint32(1)
		if commands[i].Kind == KindProbe {
			want = ProbeLevel
		}
		if got := LevelOf(Append(nil, &commands[i])); got != want {
			t.Errorf("kind %d: level %d", commands[i].Kind, got)
		}
	}
	for _, raw := range [][]byte{nil, {Version}, {99, byte(KindProbe)}} {
		if got := LevelOf(raw); got != 1 {
			t.Errorf("%x: level %d", raw, got)
		}
	}
}

// Who asks is told by the first fields. The cell's own commands have nobody.
func TestPrincipalOf(t *testing.T) {
	for i := range commands {
		c := commands[i]
		own := c.Kind == KindBarrier || c.Kind == KindAssignSlot || c.Kind == KindExpireSessions || c.Kind == KindClearDelay || c.Kind == KindCellKey || c.Kind == KindRaiseLevel || c.Kind == KindProbe
		raw := Append(nil, &c)
		if got, ok := PrincipalOf(raw); got != c.Principal || ok == own {
			t.Errorf("kind %d of %q: %q, %v", c.Kind, c.Principal, got, ok)
		}
		if got, ok := PrincipalOf(raw[:3]); got != "" || ok {
			t.Errorf("kind %d, cut off: %q, %v", c.Kind, got, ok)
		}
	}
	for _, raw := range [][]byte{nil, {Version}, {Version, 0}, {Version, 200, 1, 1, 1, 1, 'a'}, {99, byte(KindSet), 1, 1, 1, 1, 'a'}} {
		if got, ok := PrincipalOf(raw); ok {
			t.Errorf("%x is no command, and of %q", raw, got)
		}
	}
}

var stat = Stat{Instance: 1, Generation: 300, LockGeneration: 3, ACLGeneration: 4, Revision: 70000, Checksum: 0x0102030405060708, Size: 5, Children: 6, Dir: true, Ephemeral: true}

var results = []Result{
	{},
	{Code: Conflict, Revision: 300, Stat: stat},
	{Revision: 300, Number: -300},
	{Revision: 300, Generation: 299},
	{Revision: 300, Queued: true},
	{Slot: 65535},
	{Code: SessionRefused, Floor: 70000},
	{Code: NotFound, Path: "/a", Succeeded: true},
	{Revision: 300, Succeeded: true, Entries: []Entry{{Path: "/a", Data: []byte("x"), Stat: stat}, {Path: "/b"}}},
	{Code: 255, Revision: math.MaxUint64, Path: "p", Stat: stat, Number: math.MinInt64, Generation: 1, Queued: true, Slot: math.MaxUint32, Floor: 1, Succeeded: true, Entries: []Entry{{}}, Right: 255, Seal: []byte("s")},
	{Code: Permission, Revision: 300, Path: "/a", Right: RightWrite},
	{Revision: 300, Stat: stat, Succeeded: true, Seal: []byte("0123456789abcdef")},
}

// The bytes of version 1 are those that release 1 wrote: nothing here may change but by additions at the end.
func TestGolden(t *testing.T) {
	var got bytes.Buffer
	for i := range commands {
		fmt.Fprintf(&got, "command %d %x\n", commands[i].Kind, Append(nil, &commands[i]))
	}
	for i := range results {
		fmt.Fprintf(&got, "result %x\n", AppendResult(nil, &results[i]))
	}
	entry := AppendEntryHeader(nil, 0x0102030405060708, 300, 2)
	entry = AppendEntryCommand(entry, Append(nil, &commands[0]))
	entry = AppendEntryCommand(entry, Append(nil, &commands[1]))
	fmt.Fprintf(&got, "entry %x\n", entry)
	const file = "testdata/golden.txt"
	if *update {
		if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got\n%s", got.Bytes())
	}
}

func TestRoundTrip(t *testing.T) {
	var c Command // one for all: nothing may stay from the last
	for i := range commands {
		want := commands[i]
		b := Append([]byte("before"), &want)
		if err := Decode(b[len("before"):], &c); err != nil {
			t.Fatalf("%+v: %v", want, err)
		}
		if got := fmt.Sprintf("%+v", c); got != fmt.Sprintf("%+v", want) {
			t.Errorf("got  %s\nwant %+v", got, want)
		}
	}
	for i := range results {
		b := append(AppendResult(nil, &results[i]), "rest"...)
		var r Result
		rest, err := DecodeResult(b, &r)
		if err != nil || string(rest) != "rest" || !reflect.DeepEqual(r, results[i]) {
			t.Errorf("got  %+v, %q, %v\nwant %+v", r, rest, err, results[i])
		}
	}
}

// Every kind is in the tables above, so that a new one cannot be forgotten in the decoder alone.
func TestTablesAreComplete(t *testing.T) {
	seen := map[Kind]bool{}
	for _, c := range commands {
		seen[c.Kind] = true
	}
	for k := KindBarrier; k <= KindRaiseLevel; k++ {
		if !seen[k] {
			t.Errorf("kind %d is missing", k)
		}
	}
}

// Strings are copies: what is kept of them must not follow the buffer.
func TestStringsAreCopies(t *testing.T) {
	b := Append(nil, &Command{Kind: KindSet, Path: "/path", Data: []byte("data")})
	var c Command
	if err := Decode(b, &c); err != nil {
		t.Fatal(err)
	}
	clear(b)
	if c.Path != "/path" || string(c.Data) == "data" {
		t.Errorf("path %q, data %q", c.Path, c.Data)
	}
}

func TestDecodeErrors(t *testing.T) {
	set := Append(nil, &Command{Kind: KindSet, Path: "/a", Data: []byte("x")})
	edit := func(at int, v ...byte) []byte {
		return append(append(bytes.Clone(set[:at]), v...), set[min(at+1, len(set)):]...)
	}
	for name, tt := range map[string]struct {
		b    []byte
		want error
		text string
	}{
		"nothing":            {nil, ErrEncoding, ""},
		"newer version":      {edit(0, 9), ErrVersion, "9"},
		"version zero":       {edit(0, 0), ErrVersion, "0"},
		"no kind":            {set[:1], ErrKind, ""},
		"kind zero":          {edit(1, 0), ErrKind, "0"},
		"unknown kind":       {edit(1, 200), ErrKind, "200"},
		"long number":        {edit(2, 0x80, 0), ErrEncoding, ""},
		"number over 64 bit": {edit(2, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2), ErrEncoding, ""},
		"string over end":    {edit(6, 200, 1), ErrEncoding, ""},
		"trailing byte":      {append(bytes.Clone(set), 0), ErrEncoding, "1 bytes too many"},
		"conditions missing": {edit(len(set)-1, 3), ErrEncoding, ""},
		"unknown condition":  {edit(len(set)-1, 1, 77, 0), ErrKind, "77"},
		"unknown operation":  {append(Append(nil, &Command{Kind: KindTxn})[:6], 0, 1, 66, 0, 0), ErrKind, "66"},
		"unknown flag":       {append(Append(nil, &Command{Kind: KindCreate, Path: "/a"})[:10], 8), ErrEncoding, "flags"},
		"empty names":        {append(Append(nil, &Command{Kind: KindCreate, Path: "/a"})[:10], 4, 0, 0, 0), ErrEncoding, "names"},
		"slot over 32 bits":  {append(append([]byte{1, byte(KindOpenSession), 1, 0}, make([]byte, 16)...), 255, 255, 255, 255, 16, 0, 0, 0, 0, 0), ErrEncoding, "32 bits"},
	} {
		t.Run(name, func(t *testing.T) {
			var c Command
			err := Decode(tt.b, &c)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.text)
			}
		})
	}
	for i := range commands {
		b := Append(nil, &commands[i])
		for n := range b {
			if err := Decode(b[:n], new(Command)); err == nil {
				t.Errorf("kind %d, cut off at %d: no error", commands[i].Kind, n)
			}
		}
	}
	for i := range results {
		b := AppendResult(nil, &results[i])
		for n := range b {
			if _, err := DecodeResult(b[:n], new(Result)); !errors.Is(err, ErrEncoding) {
				t.Errorf("result %d, cut off at %d: %v", i, n, err)
			}
		}
	}
	for name, b := range map[string]string{
		"part that is zero": "0100000400", "unknown part": "010000801000", "empty path": "01000001" + "00",
	} {
		raw, _ := hex.DecodeString(b)
		if _, err := DecodeResult(raw, new(Result)); !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeResult([]byte{2, 0, 0, 0}, new(Result)); !errors.Is(err, ErrVersion) {
		t.Errorf("version 2: %v", err)
	}
}

func TestEntry(t *testing.T) {
	b := AppendEntryHeader(nil, 7, 300, 2)
	b = AppendEntryCommand(b, []byte("one"))
	b = AppendEntryCommand(b, []byte("two"))
	e, err := ParseEntry(b)
	if err != nil || e.Origin != 7 || e.Number != 300 || e.N != 2 {
		t.Fatalf("%+v, %v", e, err)
	}
	var got []string
	for {
		raw, ok, err := e.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got = append(got, string(raw))
	}
	if fmt.Sprint(got) != "[one two]" {
		t.Error(got)
	}
	for n := range b {
		if _, err := ParseEntry(b[:n]); !errors.Is(err, ErrEncoding) {
			t.Errorf("cut off at %d: %v", n, err)
		}
	}
	if _, err := ParseEntry(append(bytes.Clone(b), 0)); !errors.Is(err, ErrEncoding) {
		t.Errorf("a byte too many: %v", err)
	}
	if _, err := ParseEntry([]byte{8}); !errors.Is(err, ErrVersion) {
		t.Errorf("version 8: %v", err)
	}
	many := AppendEntryHeader(nil, 0, 0, EntryMax+1)
	many = append(many, make([]byte, EntryMax+1)...)
	if _, err := ParseEntry(many); !errors.Is(err, ErrEncoding) {
		t.Errorf("too many commands: %v", err)
	}
	if _, err := ParseEntry(make([]byte, EntryBytes+1)); !errors.Is(err, ErrEncoding) {
		t.Errorf("too many bytes: %v", err)
	}
}

// A length that the input does not have costs no memory.
func TestDecodeBoundedMemory(t *testing.T) {
	b := append(Append(nil, &Command{Kind: KindSet, Path: "/a"})[:9], 0xff, 0xff, 0xff, 0xff, 0x07)
	var c Command
	if n := testing.AllocsPerRun(10, func() { _ = Decode(b, &c) }); n > 20 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for i := range commands {
		f.Add(Append(nil, &commands[i]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Command
		if err := Decode(b, &c); err == nil {
			if again := Append(nil, &c); !bytes.Equal(again, b) {
				t.Errorf("%x became %x", b, again)
			}
		} else if !errors.Is(err, ErrEncoding) && !errors.Is(err, ErrKind) && !errors.Is(err, ErrVersion) {
			t.Error(err)
		}
	})
}

func FuzzDecodeResult(f *testing.F) {
	for i := range results {
		f.Add(AppendResult(nil, &results[i]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Result
		if rest, err := DecodeResult(b, &r); err == nil {
			if again := append(AppendResult(nil, &r), rest...); !bytes.Equal(again, b) {
				t.Errorf("%x became %x", b, again)
			}
		}
	})
}

func FuzzParseEntry(f *testing.F) {
	f.Add(AppendEntryCommand(AppendEntryHeader(nil, 7, 300, 1), []byte("one")))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ParseEntry(b)
		if err != nil {
			return
		}
		again := AppendEntryHeader(nil, e.Origin, e.Number, e.N)
		for {
			raw, ok, err := e.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			again = AppendEntryCommand(again, raw)
		}
		if !bytes.Equal(again, b) {
			t.Errorf("%x became %x", b, again)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []*Command{&commands[6], &commands[15], &commands[14]} {
		raw := Append(nil, c)
		b.Run(fmt.Sprintf("kind=%d/bytes=%d", c.Kind, len(raw)), func(b *testing.B) {
			b.ReportAllocs()
			var c Command
			for b.Loop() {
				if err := Decode(raw, &c); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
