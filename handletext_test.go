package chubby

import (
	"errors"
	"testing"
)

// FuzzHandleText: a text is refused as ErrBadHandle, or it is the one form of what it says.
func FuzzHandleText(f *testing.F) {
	f.Add(handleText{cell: "local", epoch: 7, instance: 9, path: "/a/b", seal: []byte("0123456789abcdef")}.String())
	f.Add(handleText{cell: "a:b%", epoch: 1 << 63, instance: 1, path: "/", write: true, change: true, seal: []byte{0}}.String())
	f.Add(handleText{cell: "c", instance: 1, path: "/a:b/c d/\u00e9%", write: true, seal: []byte{0, 255}}.String())
	for _, text := range []string{"", "chubby-handle:1:", "chubby-handle:1:c:1:1:r:/a", "chubby-handle:1:c:1:1:r:/a:", "chubby-handle:1:c:01:1:r:/a:00", "chubby-handle:1:c:1:1:wr:/a:00", "chubby-handle:1:%zz:1:1:r:/a:00", "chubby-handle:1:c:1:1:r:%zz:00", "chubby-handle:1:c:1:0:r:/a:00", "chubby-handle:1:c:1:1:r:a:00", "chubby-handle:1:c:x:1:r:/a:00", "chubby-handle:1:c:1:1:r:/a:0G", "chubby-handle:1:c:1:1:r:/a:AA"} {
		f.Add(text)
		if _, err := parseHandleText(text); !errors.Is(err, ErrBadHandle) {
			f.Errorf("%q: %v", text, err)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := parseHandleText(text)
		switch {
		case err != nil && !errors.Is(err, ErrBadHandle):
			t.Error(err)
		case err == nil && h.String() != text:
			t.Errorf("%q became %q", text, h.String())
		}
	})
}
