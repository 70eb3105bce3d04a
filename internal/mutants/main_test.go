package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The list stays true to the source: each text is there once, and each test exists. Whether the tests find the mutants is
// for the command to say.
func TestList(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	all, err := parse(list)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, m := range all {
		if seen[m.name] {
			t.Errorf("%s is there twice", m.name)
		}
		seen[m.name] = true
		if _, err := m.changed(); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		files, err := filepath.Glob(filepath.Join(m.pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		exists := false
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			exists = exists || regexp.MustCompile(`(?m)^func `+m.test+`\(`).Match(text)
		}
		if !exists {
			t.Errorf("%s: no test %s in %s", m.name, m.test, m.pkg)
		}
	}
	t.Logf("%d mutants", len(all))
}

func TestParse(t *testing.T) {
	const good = "# Title\n\n### one\n\n`a/b.go`, killed by `TestX` in `./a`\n\nWhy.\n\n```go\n\tx\n\ty\n```\n```go\nz\n```\n"
	all, err := parse(good)
	want := mutant{"one", filepath.FromSlash("a/b.go"), "./a", "TestX", "\tx\n\ty", "z"}
	if err != nil || len(all) != 1 || all[0] != want {
		t.Errorf("parse = %+v, %v", all, err)
	}
	for name, bad := range map[string]string{
		"empty":           "# Title\n",
		"no place":        strings.Replace(good, "killed", "found", 1),
		"one block":       strings.Replace(good, "```go\nz\n```\n", "", 1),
		"nothing to find": strings.Replace(good, "\tx\n\ty\n", "", 1),
		"no change":       strings.Replace(good, "\tx\n\ty", "z", 1),
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
