package wire

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

var storedFile = Stored{Path: "/a", Data: []byte("x"), Stat: command.Stat{
	Instance: 1, Generation: 2, LockGeneration: 3, ACLGeneration: 4, Revision: 5, Checksum: 1 << 63, Size: 1, Children: 7, Ephemeral: true,
}}

// clientMessage is one message of the calls of dialled clients, with examples.
type clientMessage struct {
	name   string
	sample any
	encode func([]byte, any) []byte
	parse  func([]byte) (any, error)
}

func message[T any](name string, encode func([]byte, *T) []byte, parse func([]byte) (T, error), samples ...T) (list []clientMessage) {
	for _, s := range samples {
		list = append(list, clientMessage{
			name, s,
			func(b []byte, x any) []byte { v := x.(T); return encode(b, &v) },
			func(b []byte) (any, error) { return parse(b) },
		})
	}
	return list
}

func clientMessages() []clientMessage {
	touch := Touch{InTouch: true, Leader: "n1.a"}
	query := Query{Kind: QueryGrant, Path: "/a", Session: 1, Seq: 2, Sequencer: fence.Sequencer{Cell: "c", Epoch: 3, Path: "/b", Mode: fence.Shared, Generation: 4}}
	answer := Answer{
		Code: command.NotFound, Revision: 9, Entry: storedFile, Entries: []Stored{storedFile, {Path: "/d", Stat: command.Stat{Dir: true}}},
		Lock:  LockState{Mode: fence.Exclusive, Generation: 8, Holders: []LockHolder{{1, "me", 8}}, Waiters: 2, Delayed: true},
		Grant: Grant{Generation: 8, Held: true, Waiting: true, Live: true}, Holds: true,
	}
	var all []clientMessage
	for _, list := range [][]clientMessage{
		message("touch", AppendTouch, ParseTouch, Touch{}, touch),
		message("attached", AppendAttached, ParseAttached, Attached{Touch: touch, Epoch: 5, Principal: "alice", Heartbeat: time.Second, ValueBytes: 1, PathBytes: 2, Depth: 3}),
		message("opening", AppendOpening, ParseOpening, Opening{Name: "s", Lease: 1, Grace: 2}),
		message("opened", AppendOpened, ParseOpened, Opened{Session: 1, Revision: 2}),
		message("query", AppendQuery, ParseQuery, query, Query{Kind: QueryEntry, Path: "/"}),
		message("peek", AppendPeek, ParsePeek, Peek{Seen: 7, Query: query}),
		message("answer", AppendAnswer, ParseAnswer, Answer{}, answer),
		message("peeked", AppendPeeked, ParsePeeked, Peeked{Age: time.Second, Answer: answer}),
		message("watch", AppendWatchCall, ParseWatchCall, WatchCall{Number: 1, Path: "/a", Recursive: true, From: 2}),
		message("watched", AppendWatched, ParseWatched, Watched{}, Watched{Touch: touch, Now: 1, Done: 2, Led: true, Events: []Event{{1, "/a", 2, storedFile}, {2, "/b", 3, Stored{}}}}),
		message("owner", AppendOwner, ParseOwner, Owner{Kind: OwnerReleased, Session: 1, Seq: 2, Generation: 3}),
		message("number", func(b []byte, n *uint64) []byte { return AppendNumber(b, *n) }, ParseNumber, uint64(7)),
	} {
		all = append(all, list...)
	}
	return all
}

// What is sent is what arrives, and nothing shorter or longer is taken for it.
func TestClientMessages(t *testing.T) {
	for _, m := range clientMessages() {
		b := m.encode(nil, m.sample)
		got, err := m.parse(bytes.Clone(b))
		if err != nil || !reflect.DeepEqual(got, m.sample) {
			t.Errorf("%s: got %+v, %v, want %+v", m.name, got, err, m.sample)
		}
		for n := range b {
			if _, err := m.parse(b[:n:n]); err == nil {
				t.Errorf("%s: the first %d bytes of %d are taken", m.name, n, len(b))
			}
		}
		if _, err := m.parse(append(bytes.Clone(b), 0)); err == nil {
			t.Errorf("%s: a byte more is taken", m.name)
		}
	}
	for name, refused := range map[string]func() error{
		"query of no kind": func() error { _, err := ParseQuery(AppendQuery(nil, &Query{})); return err },
		"query of a mode": func() error {
			_, err := ParseQuery(AppendQuery(nil, &Query{Kind: QueryHolds, Sequencer: fence.Sequencer{Mode: 9}}))
			return err
		},
		"owner of no kind":  func() error { _, err := ParseOwner(AppendOwner(nil, &Owner{})); return err },
		"age below nothing": func() error { _, err := ParsePeeked(AppendPeeked(nil, &Peeked{Age: -1})); return err },
		"a size of 2^31": func() error {
			_, err := ParseAnswer(AppendAnswer(nil, &Answer{Lock: LockState{Waiters: 1 << 31}}))
			return err
		},
	} {
		if refused() == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func FuzzClientMessage(f *testing.F) {
	all := clientMessages()
	for i, m := range all {
		f.Add(uint8(i), m.encode(nil, m.sample))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		m := all[int(which)%len(all)]
		x, err := m.parse(bytes.Clone(b))
		if err != nil {
			return
		}
		if got := m.encode(nil, x); !bytes.Equal(got, b) {
			t.Errorf("%s: %x decodes to %+v, which encodes to %x", m.name, b, x, got)
		}
	})
}
