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
	elected := regexp.MustCompile(`(?m)^(.) is elected$`).FindAllStringSubmatch(out.String(), -1)
	if len(elected) != 3 {
		t.Fatalf("%d elections, want 3:\n%s", len(elected), &out)
	}
	// Who says what depends on who wins; how often does not.
	for line, want := range map[string]int{
		`says: the leader is ` + elected[0][1] + ` at 127`: 3,
		`says: the leader is ` + elected[1][1] + ` at 127`: 2,
		`says: the leader is ` + elected[2][1] + ` at 127`: 2,
		elected[0][1] + ` closes its node`:                 1,
		elected[1][1] + ` resigns`:                         1,
		`than the leader before: true`:                     2,
	} {
		if n := strings.Count(out.String(), line); n != want {
			t.Errorf("%q %d times, want %d:\n%s", line, n, want, &out)
		}
	}
}
