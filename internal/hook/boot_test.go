package hook

import (
	"runtime"
	"testing"
)

func TestMachineBoot(t *testing.T) {
	id := MachineBoot()
	if again := MachineBoot(); again != id {
		t.Errorf("%q, then %q", id, again)
	}
	if runtime.GOOS != "linux" && runtime.GOOS != "darwin" && id != "" {
		t.Errorf("%q, where nobody knows", id)
	}
}

// A memory disk is its own machine: a crash ends a run of it, a close does not.
func TestDiskBoot(t *testing.T) {
	d := new(Disk)
	open := func() *DiskHandle {
		t.Helper()
		h, err := d.Open()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	first := h.Boot()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if again := open().Boot(); again != first || first == "" {
		t.Errorf("boot %q, after a close %q", first, again)
	}
	d.Crash()
	if after := open().Boot(); after == first {
		t.Errorf("still %q after a crash", after)
	}
}
