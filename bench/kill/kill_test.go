package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain makes the test's own program a node when the driver asks for one.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == nodeArgument {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "kill: node:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestKill carries out a few cycles of each mode with real processes. The many belong to the program.
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes")
	}
	for _, args := range [][]string{
		{"-mode", modeDurability, "-cycles", "3", "-log", "65536"},
		{"-mode", modeDurability, "-cycles", "2", "-sync", "never"},
		{"-mode", modeFailover, "-kills", "1", "-writers", "2", "-heartbeat", "50ms"},
	} {
		t.Run(strings.Join(args[1:], " "), func(t *testing.T) {
			t.Parallel() // They mostly wait.
			o, err := parse(append(args, "-dir", t.TempDir()))
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			err = run(t.Context(), o, &out)
			t.Log("\n" + out.String())
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestStopwatch(t *testing.T) {
	var s stopwatch
	s.saw(time.Now(), time.Now()) // not running
	begun := time.Now()
	gap := s.start()
	s.saw(begun, time.Now()) // on its way before
	select {
	case d := <-gap:
		t.Fatalf("a write that began before the kill stopped the watch at %v", d)
	default:
	}
	after := time.Now().Add(time.Millisecond)
	s.saw(after, after.Add(2*time.Second))
	s.saw(after, after.Add(3*time.Second))
	if d := <-gap; d < 2*time.Second || d >= 3*time.Second {
		t.Errorf("got %v, want that of the first write", d)
	}
}

func TestDurations(t *testing.T) {
	tests := []struct {
		d                  durations
		first, median, end time.Duration
	}{
		{nil, 0, 0, 0},
		{durations{3}, 3, 3, 3},
		{durations{4, 1, 9}, 1, 4, 9},
		{durations{8, 2, 4, 6}, 2, 5, 8},
	}
	for _, tt := range tests {
		if a, b, c := tt.d.at(0), tt.d.median(), tt.d.at(1); a != tt.first || b != tt.median || c != tt.end {
			t.Errorf("%v: got %v, %v, %v, want %v, %v, %v", tt.d, a, b, c, tt.first, tt.median, tt.end)
		}
	}
}
