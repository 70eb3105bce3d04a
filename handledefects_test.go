package chubby_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// Defects of ChubbyGo's handles; see defects_test.go.

// The checksum was taken before the path was set, so all new files shared it, and anybody could make it.
func TestD7CheckDigitsDiffer(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.Node(0).Client
		seen := map[string]string{}
		for i := range 50 {
			text := openHandle(t, c, fmt.Sprintf("/f%d", i), chubby.HandleOptions{Create: true}).String()
			digits := text[strings.LastIndexByte(text, ':')+1:]
			if other := seen[digits]; other != "" {
				t.Fatalf("%s and %s", text, other)
			}
			seen[digits] = text
		}
		// Nor can they be had from another cell, whatever is equal there: each draws its own key.
		other := chubbytest.NewCell(t, 1).Node(0).Client
		text := openHandle(t, other, "/f0", chubby.HandleOptions{Create: true}).String()
		if seen[text[strings.LastIndexByte(text, ':')+1:]] != "" {
			t.Error("two cells make the same digits")
		}
	})
}

// Release took any token that was not too small, and a read lock was a mere count: one reader released another.
func TestD9D10OnlyTheOwnerReleases(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, time.Minute)
		o := chubby.HandleOptions{Create: true, Write: true}
		a, b := openHandle(t, cell.Node(0).Client, "/f", o), openHandle(t, cell.Node(0).Client, "/f", o)
		later := openHandle(t, cell.Node(1).Client, "/f", o)
		first, err := a.Acquire(ctx, chubby.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Release(ctx); err != nil {
			t.Fatal(err)
		}
		next, err := later.Acquire(ctx, chubby.Exclusive)
		if err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Release once more", a.Release(ctx), chubby.ErrNotHeld)
		wantErr(t, "Unlock once more", first.Unlock(ctx), chubby.ErrNotHeld)
		wantErr(t, "Release by one who never had it", b.Release(ctx), chubby.ErrNotHeld)
		if err := next.Err(); err != nil {
			t.Error("the present holder lost it:", err)
		}
		if err := later.Release(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Acquire(ctx, chubby.Shared); err != nil {
			t.Fatal(err)
		}
		wantErr(t, "Release of another reader", b.Release(ctx), chubby.ErrNotHeld)
		if _, err := later.TryAcquire(ctx, chubby.Exclusive); !errors.Is(err, chubby.ErrLockHeld) {
			t.Error("a reader holds it, but:", err)
		}
	})
}

// Deleting a directory looked at its parent's children.
func TestD12EmptyDirectoryGoes(t *testing.T) {
	inBubble(t, 1, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, time.Minute)
		d := openHandle(t, cell.Node(0).Client, "/d", chubby.HandleOptions{Create: true, Dir: true, Write: true})
		empty, err := d.Create(ctx, "empty", chubby.HandleOptions{Dir: true, Write: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Create(ctx, "sibling", chubby.HandleOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := empty.Delete(ctx); err != nil {
			t.Error(err)
		}
		wantErr(t, "a directory with a child", d.Delete(ctx), chubby.ErrNotEmpty)
	})
}

// Counts of those who have a file open never fell when one of them died, so a temporary file stayed for ever.
func TestD18CountsFallWithTheSession(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		ctx := within(t, 10*time.Minute)
		lead := cell.Leader()
		dies := 0
		for i := range 3 {
			if cell.Node(i) != lead {
				dies = i
			}
		}
		openHandle(t, cell.Node(dies).Client, "/only", chubby.HandleOptions{Create: true, Ephemeral: true})
		openHandle(t, cell.Node(dies).Client, "/both", chubby.HandleOptions{Create: true, Ephemeral: true})
		h := openHandle(t, lead.Client, "/both", chubby.HandleOptions{})
		cell.Crash(dies)
		for {
			_, err := lead.Stat(ctx, "/only")
			if errors.Is(err, chubby.ErrNotFound) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if _, err := h.GetStat(ctx); err != nil {
			t.Error("a file went that is open:", err)
		}
		closeHandle(t, h)
		_, err := lead.Stat(ctx, "/both")
		wantErr(t, "Stat", err, chubby.ErrNotFound)
		cell.Restart(dies)
	})
}
