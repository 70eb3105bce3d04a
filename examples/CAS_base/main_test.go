package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out, nil); err != nil {
		t.Fatal(err)
	}
	const want = `9 times Sub 1, not below 0: 8 succeed, 1 are refused (bound reached), the counter is 0
9 times Add 1, not above 8: 8 succeed, 1 are refused (bound reached), the counter is 8
9 times CompareAndSwap 8 to 10: 1 succeed, 8 are refused (condition not met), the counter is 10
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
