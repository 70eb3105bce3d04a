package chubby_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var citation = regexp.MustCompile("`((?:Test|Fuzz|Example|Benchmark)\\w+)`")

// declaredTests are the names of all tests in this repository.
func declaredTests(t *testing.T) map[string]bool {
	t.Helper()
	there := make(map[string]bool)
	declared := regexp.MustCompile(`(?m)^func (\w+)\(`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
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
	return there
}

func readDoc(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// docs/guarantees.md names, for each promise, the tests that show it. Each of them must be there.
func TestGuaranteesNameTests(t *testing.T) {
	there := declaredTests(t)
	cited := citation.FindAllStringSubmatch(readDoc(t, "docs/guarantees.md"), -1)
	for _, m := range cited {
		if !there[m[1]] {
			t.Errorf("docs/guarantees.md cites %s, which does not exist", m[1])
		}
	}
	if len(cited) < 100 {
		t.Errorf("docs/guarantees.md cites %d tests; has its form changed?", len(cited))
	}
}

// docs/from-chubbygo.md says what became of each feature and each defect: shown by tests that are there, or a sentence.
func TestLedgerIsWhole(t *testing.T) {
	there := declaredTests(t)
	rows := make(map[string][]string)
	for _, line := range strings.Split(readDoc(t, "docs/from-chubbygo.md"), "\n") {
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
		if name := strings.TrimSpace(cells[0]); regexp.MustCompile(`^[LD]\d+$`).MatchString(name) {
			if rows[name] != nil {
				t.Errorf("%s twice", name)
			}
			for i := range cells {
				cells[i] = strings.TrimSpace(cells[i])
			}
			rows[name] = cells
		}
	}
	check := func(name string, cells int) (row []string, cited int) {
		row = rows[name]
		if len(row) != cells {
			t.Errorf("%s: %d cells, want %d", name, len(row), cells)
			return nil, 0
		}
		for _, m := range citation.FindAllStringSubmatch(row[cells-1], -1) {
			if cited++; !there[m[1]] {
				t.Errorf("%s cites %s, which does not exist", name, m[1])
			}
		}
		return row, cited
	}
	for i := 1; i <= 47; i++ {
		name := fmt.Sprint("L", i)
		row, cited := check(name, 4)
		if row == nil {
			continue
		}
		switch row[2] {
		case "works":
			if cited == 0 {
				t.Errorf("%s works, and no test shows it", name)
			}
		case "replaced":
			if len(row[3]) < 40 {
				t.Errorf("%s is replaced by %q: say what there is instead, and why", name, row[3])
			}
		default:
			t.Errorf("%s: %q, want works or replaced", name, row[2])
		}
	}
	for i := 1; i <= 20; i++ {
		name := fmt.Sprint("D", i)
		if row, cited := check(name, 3); row != nil && cited == 0 {
			t.Errorf("%s: no test would see it again", name)
		}
	}
}
