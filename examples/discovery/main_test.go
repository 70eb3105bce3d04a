package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMain lets the test program play the instances, as the real one does.
func TestMain(m *testing.M) {
	if spec := os.Getenv(instanceEnv); spec != "" {
		if err := runInstance(spec, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	const want = `three instances: web-1 at 10.0.0.1:80, web-2 at 10.0.0.2:80, web-3 at 10.0.0.3:80
web-1 drains: web-1 at 10.0.0.1:80 draining, web-2 at 10.0.0.2:80, web-3 at 10.0.0.3:80
web-2 leaves: web-1 at 10.0.0.1:80 draining, web-3 at 10.0.0.3:80
web-3 is killed: web-1 at 10.0.0.1:80 draining
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

func TestBadSpec(t *testing.T) {
	if err := runInstance("web-1", strings.NewReader("")); err == nil || !strings.Contains(err.Error(), instanceEnv) {
		t.Errorf("error %v, want one that names %s", err, instanceEnv)
	}
}
