// Command mutants plants the bugs of README.md into the source, one at a time, and reports which of them the tests
// named there find. Run it at the module's root:
//
//	go run ./internal/mutants [-run regexp] [-v]
//
// The source is not touched: the go command compiles the changed files through an overlay. A mutant that is not found,
// that does not compile, or whose text is not in its file exactly once, makes the command fail.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

//go:embed README.md
var list string

// mutant is one bug, as README.md writes it down.
type mutant struct {
	name     string
	file     string
	pkg      string
	test     string
	old, new string
}

func main() {
	run := flag.String("run", ".", "regular expression of the mutants to plant")
	verbose := flag.Bool("v", false, "print what the tests say")
	flag.Parse()
	wanted, err := regexp.Compile(*run)
	if err == nil {
		err = plantAll(wanted, *verbose)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// plantAll plants the mutants whose names match.
func plantAll(wanted *regexp.Regexp, verbose bool) error {
	all, err := parse(list)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	planted, alive, broken := 0, 0, 0
	sound := make(map[[2]string]bool)
	for _, m := range all {
		if !wanted.MatchString(m.name) {
			continue
		}
		planted++
		// A test that fails anyway finds nothing.
		if key := [2]string{m.pkg, m.test}; !sound[key] {
			if out, err := test(m, ""); err != nil {
				return fmt.Errorf("%s in %s fails without a mutant: %w\n%s", m.test, m.pkg, err, out)
			}
			sound[key] = true
		}
		start := time.Now()
		found, out, err := m.plant(dir)
		verdict := "killed by"
		switch {
		case err != nil:
			broken++
			verdict = fmt.Sprintf("CANNOT BE PLANTED: %v:", err)
		case !found:
			alive++
			verdict = "SURVIVES"
		}
		fmt.Printf("%-30s %s %s (%s, %.1fs)\n", m.name, verdict, m.test, m.pkg, time.Since(start).Seconds())
		if verbose || err != nil {
			fmt.Println(out)
		}
	}
	switch {
	case planted == 0:
		return errors.New("no mutant has such a name")
	case alive+broken > 0:
		return fmt.Errorf("of %d mutants %d survive and %d cannot be planted", planted, alive, broken)
	}
	return nil
}

// changed is the mutant's file.
func (m mutant) changed() (string, error) {
	b, err := os.ReadFile(m.file)
	if err != nil {
		return "", err
	}
	text := string(b)
	if n := strings.Count(text, m.old); n != 1 {
		return "", fmt.Errorf("the text to change is %d times in %s, want once", n, m.file)
	}
	return strings.Replace(text, m.old, m.new, 1), nil
}

// plant runs the mutant's test on the changed source and reports whether it failed as a test does.
func (m mutant) plant(dir string) (found bool, out string, err error) {
	text, err := m.changed()
	if err != nil {
		return false, "", err
	}
	changed, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
		return false, "", err
	}
	here, err := filepath.Abs(m.file)
	if err != nil {
		return false, "", err
	}
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {here: changed}})
	if err != nil {
		return false, "", err
	}
	if err := os.WriteFile(overlay, replace, 0o600); err != nil {
		return false, "", err
	}
	out, err = test(m, overlay)
	switch {
	case err == nil:
		return false, out, nil
	case strings.Contains(out, "--- FAIL: "), strings.Contains(out, "panic: "):
		return true, out, nil
	}
	return false, out, fmt.Errorf("the test did not run: %w", err)
}

// testTimeout ends a test that a mutant keeps from ending.
const testTimeout = time.Minute

// test runs the mutant's test.
func test(m mutant, overlay string) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*testTimeout)
	defer cancel()
	args := []string{"test", "-vet=off", "-count=1", "-timeout", testTimeout.String(), "-run", "^" + m.test + "$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	b, err := exec.CommandContext(ctx, "go", append(args, m.pkg)...).CombinedOutput()
	if err == nil && strings.Contains(string(b), "no tests to run") {
		err = errors.New("there is no such test")
	}
	return string(b), err
}

var (
	place = regexp.MustCompile("^`([^`]+)`, killed by `([^`]+)` in `([^`]+)`")
	fence = "```"
)

// parse reads the mutants of README.md: a heading of level three with the name, a line "`file`, killed by `test` in
// `package`", prose, and two blocks of Go, the text as it is and the text as the mutant has it.
func parse(text string) ([]mutant, error) {
	var all []mutant
	for _, section := range strings.Split(text, "\n### ")[1:] {
		name, rest, _ := strings.Cut(section, "\n")
		m := mutant{name: strings.TrimSpace(name)}
		at := place.FindStringSubmatch(strings.TrimSpace(rest))
		if at == nil {
			return nil, fmt.Errorf("%s: no line that says which file and test", m.name)
		}
		m.file, m.test, m.pkg = filepath.FromSlash(at[1]), at[2], at[3]
		blocks := strings.Split(rest, fence)
		if len(blocks) != 5 {
			return nil, fmt.Errorf("%s: %d code blocks, want 2", m.name, len(blocks)/2)
		}
		m.old, m.new = code(blocks[1]), code(blocks[3])
		if m.old == "" || m.old == m.new {
			return nil, fmt.Errorf("%s: nothing changes", m.name)
		}
		all = append(all, m)
	}
	if len(all) == 0 {
		return nil, errors.New("the list is empty")
	}
	return all, nil
}

// code is what stands in a block, after the language and without the last line's end.
func code(block string) string {
	_, body, _ := strings.Cut(block, "\n")
	return strings.TrimSuffix(body, "\n")
}
