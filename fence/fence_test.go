package fence_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"github.com/chubbygo/chubby/fence"
)

func Example() {
	var guard fence.Guard
	old := fence.Sequencer{Cell: "local", Epoch: 1, Path: "/svc/primary", Mode: fence.Exclusive, Generation: 7}
	next := old
	next.Generation = 9

	text := old.String() // travels with each request
	fmt.Println(text)
	s, err := fence.Parse(text)
	fmt.Println(s == old, err)
	fmt.Println(guard.Check(s))
	fmt.Println(guard.Check(next))                         // the lock has a new holder
	fmt.Println(errors.Is(guard.Check(s), fence.ErrStale)) // a late request of the old one
	// Output:
	// 1:local:1:/svc/primary:exclusive:7:baae5946
	// true <nil>
	// <nil>
	// <nil>
	// true
}

var samples = []fence.Sequencer{
	{Mode: fence.Exclusive},
	{Cell: "local", Epoch: 1, Path: "/a", Mode: fence.Shared, Generation: 2},
	{Cell: "a:b%", Epoch: math.MaxUint64, Path: "/ü /\x00\xff:", Mode: fence.Exclusive, Generation: math.MaxUint64},
	{Cell: strings.Repeat("c", 255), Path: "/" + strings.Repeat("ä", 2047), Mode: fence.Exclusive, Generation: 1},
}

func TestForms(t *testing.T) {
	for _, want := range samples {
		text := want.String()
		if got, err := fence.Parse(text); err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v; want %v", text, got, err, want)
		}
		b, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got fence.Sequencer
		if err := got.UnmarshalBinary(b); err != nil || got != want {
			t.Errorf("UnmarshalBinary(%x) = %v, %v; want %v", b, got, err, want)
		}
		var read struct{ S fence.Sequencer }
		doc, err := json.Marshal(struct{ S fence.Sequencer }{want})
		if err == nil {
			err = json.Unmarshal(doc, &read)
		}
		if err != nil || read.S != want {
			t.Errorf("JSON %s = %v, %v; want %v", doc, read.S, err, want)
		}
	}
}

func TestNoForm(t *testing.T) {
	for name, s := range map[string]fence.Sequencer{
		"no mode":      {Cell: "c", Path: "/p", Generation: 1},
		"unknown mode": {Cell: "c", Path: "/p", Generation: 1, Mode: 3},
		"long cell":    {Cell: strings.Repeat("c", 256), Path: "/p", Mode: fence.Shared},
		"long path":    {Path: strings.Repeat("p", 4097), Mode: fence.Shared},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.MarshalText(); !errors.Is(err, fence.ErrBadSequencer) {
				t.Errorf("MarshalText: %v", err)
			}
			if _, err := s.MarshalBinary(); !errors.Is(err, fence.ErrBadSequencer) {
				t.Errorf("MarshalBinary: %v", err)
			}
			if _, err := fence.Parse(s.String()); !errors.Is(err, fence.ErrBadSequencer) {
				t.Errorf("Parse of String: %v", err)
			}
		})
	}
}

// Every text and every binary form that differs from a good one in a single byte is refused.
func TestSingleDamage(t *testing.T) {
	for _, s := range samples[:3] {
		text := []byte(s.String())
		for i := range text {
			for c := range 256 {
				old := text[i]
				if byte(c) == old {
					continue
				}
				text[i] = byte(c)
				if got, err := fence.Parse(string(text)); !errors.Is(err, fence.ErrBadSequencer) {
					t.Fatalf("Parse(%q) = %v, %v", text, got, err)
				}
				text[i] = old
			}
			if got, err := fence.Parse(string(text[:i])); !errors.Is(err, fence.ErrBadSequencer) {
				t.Fatalf("Parse(%q) = %v, %v", text[:i], got, err)
			}
		}
		b, _ := s.MarshalBinary()
		for i := range b {
			for bit := range 8 {
				b[i] ^= 1 << bit
				var got fence.Sequencer
				if err := got.UnmarshalBinary(b); !errors.Is(err, fence.ErrBadSequencer) || got != (fence.Sequencer{}) {
					t.Fatalf("UnmarshalBinary(%x) = %v, %v", b, got, err)
				}
				b[i] ^= 1 << bit
			}
		}
	}
}

func TestMode(t *testing.T) {
	if got := fmt.Sprint(fence.Exclusive, fence.Shared, fence.Mode(9)); got != "exclusive shared mode(9)" {
		t.Error(got)
	}
}

func TestCompare(t *testing.T) {
	seq := func(epoch, generation uint64) fence.Sequencer {
		return fence.Sequencer{Epoch: epoch, Generation: generation}
	}
	for _, tt := range []struct {
		a, b fence.Sequencer
		want int
	}{
		{seq(1, 1), seq(1, 1), 0},
		{seq(1, 1), seq(1, 2), -1},
		{seq(1, 9), seq(2, 1), -1}, // the epoch counts first
		{seq(3, 1), seq(2, 9), 1},
	} {
		if got := tt.a.Compare(tt.b); got != tt.want {
			t.Errorf("%v to %v: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func TestGuard(t *testing.T) {
	seq := func(cell, path string, epoch, generation uint64) fence.Sequencer {
		return fence.Sequencer{Cell: cell, Epoch: epoch, Path: path, Mode: fence.Shared, Generation: generation}
	}
	var g fence.Guard
	for i, tt := range []struct {
		s    fence.Sequencer
		want error
	}{
		{fence.Sequencer{}, fence.ErrBadSequencer},
		{seq("c", "/a", 1, 0), fence.ErrBadSequencer},
		{seq("c", "/a", 1, 5), nil},
		{seq("c", "/a", 1, 5), nil}, // another that shares the grant
		{seq("c", "/a", 1, 4), fence.ErrStale},
		{seq("c", "/b", 1, 4), nil},
		{seq("d", "/a", 1, 4), nil},
		{seq("c", "/a", 2, 1), nil}, // restored cell: older numbers, newer epoch
		{seq("c", "/a", 1, 99), fence.ErrStale},
	} {
		if err := g.Check(tt.s); !errors.Is(err, tt.want) {
			t.Errorf("%d: Check(%v) = %v, want %v", i, tt.s, err, tt.want)
		}
	}
}

// After any interleaving the newest has passed, and what is older is refused.
func TestGuardConcurrent(t *testing.T) {
	var g fence.Guard
	s := fence.Sequencer{Cell: "c", Path: "/a", Mode: fence.Exclusive}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				s := s
				s.Generation = uint64(8*n + i + 1)
				if err := g.Check(s); err != nil && !errors.Is(err, fence.ErrStale) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s.Generation = 799
	if err := g.Check(s); !errors.Is(err, fence.ErrStale) {
		t.Errorf("Check of the last but one: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range samples {
		f.Add(s.String(), []byte{})
		b, _ := s.MarshalBinary()
		f.Add("", b)
	}
	f.Fuzz(func(t *testing.T, text string, b []byte) {
		if s, err := fence.Parse(text); err == nil && s.String() != text {
			t.Errorf("%q became %q", text, s)
		} else if err != nil && !errors.Is(err, fence.ErrBadSequencer) {
			t.Error(err)
		}
		var s fence.Sequencer
		if err := s.UnmarshalBinary(b); err == nil {
			if again, _ := s.MarshalBinary(); string(again) != string(b) {
				t.Errorf("%x became %x", b, again)
			}
		} else if !errors.Is(err, fence.ErrBadSequencer) {
			t.Error(err)
		}
	})
}
