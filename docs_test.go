package chubby_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/guarantees.md names, for each promise, the tests that show it. Each of them must be there.
func TestGuaranteesNameTests(t *testing.T) {
	doc, err := os.ReadFile("docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func (\w+)\(`)
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range declared.FindAllSubmatch(b, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	cited := regexp.MustCompile("`((?:Test|Fuzz|Example|Benchmark)\\w+)`").FindAllSubmatch(doc, -1)
	for _, m := range cited {
		if !there[string(m[1])] {
			t.Errorf("docs/guarantees.md cites %s, which does not exist", m[1])
		}
	}
	if len(cited) < 100 {
		t.Errorf("docs/guarantees.md cites %d tests; has its form changed?", len(cited))
	}
}
