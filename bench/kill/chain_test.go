package main

import (
	"fmt"
	"strings"
	"testing"
)

// example is a chain with one write of each kind and outcome, and what a node has that did all of them right.
func example(last op) (*chain, []entry) {
	c := &chain{dir: "/w0/c0", ops: []op{
		{kind: callSet, outcome: done},
		{kind: callAdd, delta: 5, outcome: done},
		{kind: callSet, outcome: done},
		{kind: callTxn, delta: 70, outcome: done},
		{kind: callSet, outcome: refused},
		{kind: callTxn, delta: 1000, outcome: refused},
		{kind: callAdd, delta: 9000, outcome: refused},
		last,
	}}
	return c, []entry{
		file(c.file(2), 12),
		file(c.file(3), 13),
		{Path: c.counter(), Instance: 10, Generation: 13, Data: "75"},
	}
}

func file(path string, revision uint64) entry {
	return entry{Path: path, Instance: revision, Generation: revision, Data: content(path)}
}

func TestJudge(t *testing.T) {
	add := op{kind: callAdd, delta: 300, outcome: uncertain}
	set := op{kind: callSet, outcome: uncertain}
	txn := op{kind: callTxn, delta: 300, outcome: uncertain}
	counter := func(data string) func([]entry) []entry {
		return func(e []entry) []entry {
			e[2].Data = data
			return e
		}
	}
	with := func(i int, then func([]entry) []entry) func([]entry) []entry {
		return func(e []entry) []entry {
			c, _ := example(set)
			e = append(e, file(c.file(i), 20))
			if then != nil {
				e = then(e)
			}
			return e
		}
	}
	without := func(i int) func([]entry) []entry {
		return func(e []entry) []entry { return append(e[:i:i], e[i+1:]...) }
	}
	tests := []struct {
		name     string
		last     op
		change   func([]entry) []entry
		happened int
		want     string // "" = no violation
	}{
		{"all right", op{kind: callAdd, delta: 300, outcome: refused}, nil, 0, ""},
		{"uncertain add did not happen", add, nil, 0, ""},
		{"uncertain add happened", add, counter("375"), 1, ""},
		{"uncertain add happened twice", add, counter("675"), 0, "the counter is 675"},
		{"add applied twice", set, counter("80"), 0, "the counter is 80"},
		{"add applied twice behind an uncertain one", add, counter("80"), 0, "the counter is 80"},
		{"add lost", set, counter("70"), 0, "the counter is 70"},
		{"add lost behind an uncertain one", add, counter("370"), 0, "the counter is 370"},
		{"refused add happened", set, counter("9075"), 0, "the counter is 9075"},
		{"counter set to 0 once more", set, counter("0"), 0, "the counter is 0"},
		{"counter is no number", set, counter("x"), 0, "the counter is x"},
		{"counter lost", set, without(2), 0, "acknowledged and lost"},
		{"set lost", set, without(0), 0, "acknowledged and lost"},
		{"txn lost", set, without(1), 0, "acknowledged and lost"},
		{"set applied twice", set, func(e []entry) []entry { e[0].Generation++; return e }, 0, "applied twice"},
		{"wrong content", set, func(e []entry) []entry { e[0].Data = "x"; return e }, 0, "holds"},
		{"uncertain set happened", set, with(7, nil), 1, ""},
		{"uncertain set happened twice", set, with(7, func(e []entry) []entry { e[3].Generation++; return e }), 1, "applied twice"},
		{"uncertain txn did not happen", txn, nil, 0, ""},
		{"uncertain txn happened", txn, with(7, counter("375")), 1, ""},
		{"uncertain txn without its file", txn, counter("375"), 0, "the counter is 375"},
		{"uncertain txn without its addition", txn, with(7, nil), 1, "the counter is 75"},
		{"refused set happened", set, with(4, nil), 0, "refused, yet"},
		{"refused txn happened", set, with(5, counter("1075")), 0, "refused, yet"},
		{"stranger", set, with(8, nil), 0, "nobody wrote it"},
		{"file of an add", set, with(1, nil), 0, "nobody wrote it"},
		{"impossible error", op{kind: callTxn, delta: 1}, nil, 0, "error that it cannot have"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, entries := example(tt.last)
			if tt.change != nil {
				entries = tt.change(entries)
			}
			got, bad := c.judge(entries)
			if text := strings.Join(bad, "\n"); (tt.want == "") != (text == "") || !strings.Contains(text, tt.want) {
				t.Errorf("violations %q, want %q", text, tt.want)
			}
			if got.happened != tt.happened {
				t.Errorf("%d uncertain writes counted as happened, want %d", got.happened, tt.happened)
			}
		})
	}
}

// TestJudgeStart is about chains that ended with their first write.
func TestJudgeStart(t *testing.T) {
	tests := []struct {
		outcome outcome
		present bool
		want    string
	}{
		{done, true, ""},
		{done, false, "acknowledged and lost"},
		{refused, false, ""},
		{refused, true, "refused, yet"},
		{uncertain, false, ""},
		{uncertain, true, ""},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%v/present=%v", tt.outcome, tt.present), func(t *testing.T) {
			c := &chain{dir: "/w0/c0", ops: []op{{kind: callSet, outcome: tt.outcome}}}
			var entries []entry
			if tt.present {
				entries = []entry{{Path: c.counter(), Instance: 1, Generation: 1, Data: "0"}}
			}
			_, bad := c.judge(entries)
			if text := strings.Join(bad, "\n"); (tt.want == "") != (text == "") || !strings.Contains(text, tt.want) {
				t.Errorf("violations %q, want %q", text, tt.want)
			}
		})
	}
}
