package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// parentEnv makes this test program the whole show, on the ports it holds.
const parentEnv = "CHUBBY_EXAMPLE_PARENT"

// TestMain lets the test program play the node processes, as the real one does. In its working directory a node process
// has a file for as long as it runs.
func TestMain(m *testing.M) {
	var err error
	switch {
	case os.Getenv(nodeEnv) != "":
		mark := os.Getenv(nodeEnv) + ".runs"
		err = os.WriteFile(mark, nil, 0o600)
		err = errors.Join(err, runNode(os.Getenv(nodeEnv), os.Stdin, os.Stdout), os.Remove(mark))
	case os.Getenv(parentEnv) != "":
		err = run(context.Background(), os.Stdout, strings.Split(os.Getenv(parentEnv), ","))
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// freePorts returns three ports that nobody has at the moment.
func freePorts(t *testing.T) []string {
	t.Helper()
	var ports []string
	for range 3 {
		l, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // after all are chosen, so that they differ
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}

// tempDir is where the show then makes its directory.
func tempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"TMPDIR", "TMP", "TEMP"} {
		t.Setenv(name, dir)
	}
	return dir
}

// nothingLeft fails unless the ports are free and dir is empty.
func nothingLeft(t *testing.T, ports []string, dir string) {
	t.Helper()
	if err := portsFree(ports); err != nil {
		t.Errorf("a process is left: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}

func portsFree(ports []string) error {
	var errs []error
	for _, port := range ports {
		l, err := net.Listen("tcp", "localhost:"+port)
		if err == nil {
			err = l.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes and takes seconds")
	}
	ports, dir := freePorts(t), tempDir(t)
	var out bytes.Buffer
	err := run(t.Context(), &out, ports)
	t.Logf("%s", out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, ports, dir)

	wins := regexp.MustCompile(`(.) wins[, ]`).FindAllStringSubmatch(out.String(), -1)
	if len(wins) != 2 || wins[0][1] == wins[1][1] {
		t.Fatalf("winners %q, want two services", wins)
	}
	dead, primary := wins[0][1], wins[1][1]
	other := strings.Trim("ABC", dead+primary)
	if len(other) != 1 {
		other = "B" // between the two
	}
	rest := out.String()
	for _, line := range []string{ // in this order
		`A: server_config_a.json: listens on localhost:` + ports[2] + `, keeps its data in Persister.raftstate1\n`,
		`maxreries 13 tries to get ready, the first of timeout_entry 200ms; maxraftstate 1000000 bytes`,
		`persistencestrategy everysec, chubbygomapstrategy concurrentmap`,
		`its members are those that client_config.json names`,
		`: DEAD wins, with sequencer generation \d+`,
		`asked who leads, A, B, C answer: DEAD`,
		`the process of DEAD is killed`,
		`PRIMARY wins \d+\.\ds later, with a larger sequencer`,
		`answer: PRIMARY`,
		`PRIMARY holds the lock /service/disk .* sequencer 1:local:\d+:/service/disk:exclusive:\d+:`,
		`PRIMARY gives it back; OTHER has it now`,
		`the disk refuses it:\n +stale sequencer`,
		`the disk holds "OTHER's data"`,
		`PRIMARY publishes "maintenance at noon" at /service/primary`,
		`OTHER gets "maintenance at noon"\n`,
		`the name server has /names/., /names/.\n +DEAD went with its session`,
		`OTHER looks up PRIMARY, by its full name /ls/local/names/PRIMARY: localhost:\d+`,
		`PRIMARY sets /config/color to red; OTHER gets red`,
		`OTHER swaps red for green`,
		`PRIMARY would swap red for blue: .*condition not met`,
		`DEAD comes back\n`,
		`what it missed: /service/primary is "maintenance at noon"`,
		`what it missed: /config/color is "green"`,
		`the name server has /names/A, /names/B, /names/C`,
		`three processes closed`,
	} {
		line = strings.NewReplacer("DEAD", dead, "PRIMARY", primary, "OTHER", other).Replace(line)
		at := regexp.MustCompile(line).FindStringIndex(rest)
		if at == nil {
			t.Fatalf("%q does not follow in\n%s", line, rest)
		}
		rest = rest[at[1]:]
	}
}

// A user who has seen enough finds nothing left, neither processes nor files.
func TestInterrupt(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes and takes seconds")
	}
	ports, dir := freePorts(t), tempDir(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := run(ctx, writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("is killed")) {
			cancel() // while campaigns wait
		}
		return len(p), nil
	}), ports)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("run: %v, want context.Canceled", err)
	}
	nothingLeft(t, ports, dir)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// When the parent dies without a word its node processes end.
func TestParentDies(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes and takes seconds")
	}
	ports, dir := freePorts(t), tempDir(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(self)
	parent.Env = append(os.Environ(), parentEnv+"="+strings.Join(ports, ","))
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var seen string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if seen += lines.Text() + "\n"; strings.Contains(lines.Text(), "wins") {
			break
		}
	}
	runs := func() []string {
		marks, err := filepath.Glob(filepath.Join(dir, "*", "*.runs"))
		if err != nil {
			t.Fatal(err)
		}
		return marks
	}
	before := runs()
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	if len(before) != 3 {
		t.Fatalf("when the parent was killed %v ran, want three nodes; the parent wrote\n%s", before, seen)
	}
	// Nobody is left who could be told of the nodes' end, so this looks now and then. A second or two is what they need
	// to close in order.
	for deadline := time.Now().Add(stopTime); len(runs()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("without their parent live on: %v", runs())
		}
	}
	if err := portsFree(ports); err != nil {
		t.Error(err)
	}
}

func TestPorts(t *testing.T) {
	ports, dir := freePorts(t), tempDir(t)
	l, err := net.Listen("tcp", "localhost:"+ports[1])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	err = run(t.Context(), io.Discard, ports)
	for _, part := range []string{":" + ports[1], "-ports"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("port taken: %v, want %q in it", err, part)
		}
	}
	for _, bad := range [][]string{nil, {"1"}, {"1", "2", ""}, {"1", "2", "3", "4"}, {"1", "2", "x"}, {"1", "1", "2"}} {
		if err := run(t.Context(), io.Discard, bad); err == nil {
			t.Errorf("ports %q were taken", bad)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left on disk: %v, %v", left, err)
	}
}
