package hook

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestDisk writes, syncs and crashes at random, beside two maps: what is there, and what is safe.
func TestDisk(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	d := new(Disk)
	h, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	now, safe := map[string]string{}, map[string]string{}
	for step := range 1500 {
		if rng.IntN(50) == 0 {
			d.Crash()
			if err := h.Write(true, DiskChange{"t", "x", []byte("x")}); err != ErrDiskGone {
				t.Fatalf("step %d: write after the crash: %v", step, err)
			}
			if h, err = d.Open(); err != nil {
				t.Fatal(err)
			}
			now = maps.Clone(safe)
		}
		var changes []DiskChange
		for range rng.IntN(5) {
			k := fmt.Sprintf("%03d", rng.IntN(200))
			if rng.IntN(3) == 0 {
				changes = append(changes, DiskChange{"t", k, nil})
				delete(now, k)
			} else {
				v := fmt.Sprint(step)
				changes = append(changes, DiskChange{"t", k, []byte(v)})
				now[k] = v
			}
		}
		sync := rng.IntN(4) == 0
		if err := h.Write(sync, changes...); err != nil {
			t.Fatal(err)
		}
		if sync {
			safe = maps.Clone(now)
		}
		want := slices.Sorted(maps.Keys(now))
		keys, err := h.Keys("t", "")
		if err != nil || !slices.Equal(keys, want) {
			t.Fatalf("step %d: keys are %v, %v, want %v", step, keys, err, want)
		}
		for _, k := range keys {
			if v, err := h.Get("t", k); err != nil || string(v) != now[k] {
				t.Fatalf("step %d: %s is %q, %v, want %q", step, k, v, err, now[k])
			}
		}
		first, last, err := h.Ends("t")
		if len(want) > 0 && (first != want[0] || last != want[len(want)-1]) || err != nil {
			t.Fatalf("step %d: ends are %s and %s, %v", step, first, last, err)
		}
	}
}

func TestDiskOwner(t *testing.T) {
	d := new(Disk)
	h, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Open(); err != ErrDiskInUse {
		t.Errorf("second open: %v, want ErrDiskInUse", err)
	}
	if err := h.Write(false, DiskChange{"t", "pa", []byte("1")}, DiskChange{"t", "pb", nil}, DiskChange{"t", "q", []byte{}}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Close(), h.Close()); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"write": func() error { return h.Write(true) },
		"get":   func() error { _, err := h.Get("t", "pa"); return err },
		"ends":  func() error { _, _, err := h.Ends("t"); return err },
		"keys":  func() error { _, err := h.Keys("t", ""); return err },
	} {
		if err := f(); err != ErrDiskGone {
			t.Errorf("%s after close: %v, want ErrDiskGone", name, err)
		}
	}
	// A process that ends loses nothing that it wrote.
	if h, err = d.Open(); err != nil {
		t.Fatal(err)
	}
	if keys, err := h.Keys("t", "p"); err != nil || !slices.Equal(keys, []string{"pa"}) {
		t.Errorf("keys are %v, %v", keys, err)
	}
	if v, err := h.Get("t", "q"); err != nil || v == nil {
		t.Errorf("an empty value is %v, %v", v, err)
	}
}
