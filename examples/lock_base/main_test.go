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
	const want = `ann creates /lock_base/file
refused: to create it again: already exists
ann takes the lock: ann holds it, exclusive
refused: bob tries it: lock is held
refused: bob tries it for reading: lock is held
ann's sequencer is good
ann gives the lock back
refused: to give it back again: lock is not held
refused: ann's sequencer: stale sequencer
refused: bob waits for 20 ms: context deadline exceeded
bob waits, and has the lock when ann gives it back
his sequencer is greater than hers
ann and bob hold it for reading
refused: ann tries it for writing: lock is held
ann may hold it for 50 ms: lock lost
bob has it
refused: to lock the root: bad path
refused: to delete what is locked: lock is held
the file and its directory are deleted
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}
