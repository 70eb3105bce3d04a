package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	const want = `update refused: chubby: set /config/limits: condition not met
updated: /config/limits = rate=20 burst=5
quota: 30 of 100
quota: 60 of 100
quota: 90 of 100
quota: chubby: add /quota/used: bound reached
quota: 30 of 100
transfer: alice has 20, bob has 50
no transfer: alice has 20
names while the worker lives: /names/database /names/worker
names afterwards: /names/database
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
