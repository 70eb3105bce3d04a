package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out, []string{"-readers", "4", "-writers", "3", "-rounds", "5"}); err != nil {
		t.Fatal(err)
	}
	const want = `4 readers hold the lock together: shared, 4 holders
a reader holds it, a writer waits, and a reader waits behind the writer
they had it in this order: [writer reader]
20 reads saw both files equal; 15 writes are 15 in each file
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

func TestBadFlags(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), &out, []string{"-rounds", "0"})
	if err == nil || !strings.Contains(err.Error(), "-rounds 0") || out.Len() > 0 {
		t.Errorf("error %v, output %q; want one that names the flag, and nothing done", err, &out)
	}
}
