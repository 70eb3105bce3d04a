package wire

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/chubbygo/chubby/internal/command"
)

var cacheAnswers = []CacheAnswer{
	{},
	{Term: 3, Lease: 2, Granted: true, Number: 7, Drop: []Invalidation{{8, "/a"}, {9, ""}}},
	{Term: 1, Lease: 1, Granted: true, Keep: true, Number: 1, Answer: Answer{
		Revision: 9, Entry: command.Entry{Path: "/f", Data: []byte("x"), Stat: command.Stat{Instance: 4, Size: 1, Ephemeral: true}},
	}},
}

func TestCacheMessages(t *testing.T) {
	call := CacheCall{Session: 1 << 60, Term: 2, Lease: 3, Dropped: 4, Path: "/a/b"}
	got, err := ParseCacheCall(AppendCacheCall(nil, &call))
	if err != nil || got != call {
		t.Errorf("call: %+v, %v; want %+v", got, err, call)
	}
	for _, want := range cacheAnswers {
		got, err := ParseCacheAnswer(AppendCacheAnswer(nil, &want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("answer: %+v, %v; want %+v", got, err, want)
		}
	}
	whole := AppendCacheAnswer(nil, &cacheAnswers[1])
	for n := range whole {
		if _, err := ParseCacheAnswer(whole[:n]); err == nil {
			t.Errorf("the first %d bytes of %d are an answer", n, len(whole))
		}
	}
	if _, err := ParseCacheAnswer(append(whole, 0)); err == nil {
		t.Error("a byte too many")
	}
}

func FuzzParseCacheAnswer(f *testing.F) {
	for i := range cacheAnswers {
		f.Add(AppendCacheAnswer(nil, &cacheAnswers[i]))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := ParseCacheAnswer(bytes.Clone(b)); err == nil && !bytes.Equal(AppendCacheAnswer(nil, &a), b) {
			t.Fatalf("%x decodes to %+v, which encodes differently", b, a)
		}
	})
}

func FuzzParseCacheCall(f *testing.F) {
	f.Add(AppendCacheCall(nil, &CacheCall{Session: 1, Term: 2, Lease: 3, Dropped: 4, Path: "/a"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := ParseCacheCall(bytes.Clone(b)); err == nil && !bytes.Equal(AppendCacheCall(nil, &c), b) {
			t.Fatalf("%x decodes to %+v, which encodes differently", b, c)
		}
	})
}
