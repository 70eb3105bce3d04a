package main

import (
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want []string
	}{
		"get":  {[]string{"-goroutines", "5", "-requests", "10"}, []string{"5 goroutines: 50 Sets", "a Get took", "each read showed the write before it"}},
		"fast": {[]string{"-goroutines", "5", "-requests", "10", "-fast"}, []string{"5 goroutines: 50 Sets", "a FastGet took", "each read showed the write before it"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := run(t.Context(), &out, c.args); err != nil {
				t.Fatal(err)
			}
			for _, line := range c.want {
				if !strings.Contains(out.String(), line) {
					t.Errorf("no %q in\n%s", line, &out)
				}
			}
		})
	}
}

func TestBadFlags(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), &out, []string{"-goroutines", "0"})
	if err == nil || !strings.Contains(err.Error(), "-goroutines 0") || out.Len() > 0 {
		t.Errorf("error %v, output %q; want one that names the flag, and nothing done", err, &out)
	}
}
