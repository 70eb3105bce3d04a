package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	const want = `bob: chubby: trylock /storage/writer: lock is held
held by ann, exclusive
storage: ann may write
ann lost the lock: closed
storage: bob may write
storage: ann may not write: stale sequencer: epoch #, generation # of /storage/writer; epoch #, generation # was seen
cell: chubby: set /storage/log: stale sequencer
two readers, one generation: true
`
	if got := regexp.MustCompile(`\d+`).ReplaceAllString(out.String(), "#"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
