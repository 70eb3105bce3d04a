package chubby

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const partMax = 255 // bytes in one part of a path

// cleanPath brings any form of a path to "/a/b", or says why it is ErrBadPath. "/ls/<cell>/a" and "/ls/local/a" are
// full names of "/a" (Chubby §2.3). The result is the argument itself where that is clean already.
func cleanPath(path, cell string, l Limits) (string, error) {
	p := path
	if rest, ok := cutPrefix(p, "ls"); ok {
		name, inner, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		switch {
		case rest == "":
			return "", badPath(path, "/ls alone names no cell; a full name is /ls/<cell>/...")
		case name != cell && name != "local":
			return "", badPath(path, fmt.Sprintf("it is in cell %q, and this is cell %q", name, cell))
		case inner == "" && strings.HasSuffix(rest, "/") && len(rest) > len(name)+1:
			return "", badPath(path, "empty part")
		case inner == "ls" || strings.HasPrefix(inner, "ls/"):
			return "", badPath(path, "inside a cell the name ls is taken: full names begin with it")
		}
		p = "/" + inner
	}
	if p == "" {
		return "", badPath(path, "empty; the root is \"/\"")
	}
	if p[0] != '/' {
		p = "/" + p
	}
	if p == "/" {
		return p, nil
	}
	if len(p) > l.PathBytes {
		return "", badPath(path, fmt.Sprintf("%d bytes, at most %d", len(p), l.PathBytes))
	}
	if !utf8.ValidString(p) || strings.IndexByte(p, 0) >= 0 {
		return "", badPath(path, "invalid UTF-8 or NUL")
	}
	depth, start := 0, 1
	for i := 1; i <= len(p); i++ {
		if i < len(p) && p[i] != '/' {
			continue
		}
		switch part := p[start:i]; {
		case part == "":
			return "", badPath(path, "empty part")
		case part == "." || part == "..":
			return "", badPath(path, fmt.Sprintf("part %q", part))
		case len(part) > partMax:
			return "", badPath(path, fmt.Sprintf("a part of %d bytes, at most %d", len(part), partMax))
		}
		depth++
		start = i + 1
	}
	if depth > l.Depth {
		return "", badPath(path, fmt.Sprintf("%d parts, at most %d", depth, l.Depth))
	}
	return p, nil
}

// cutPrefix tells whether the first part of path is name, and gives what follows it ("" or "/...").
func cutPrefix(path, name string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(strings.TrimPrefix(path, "/"), name)
	return rest, ok && (rest == "" || rest[0] == '/') && !strings.HasPrefix(path, "//")
}

func badPath(path, why string) error {
	if len(path) > 64 {
		path = strings.ToValidUTF8(path[:64], "?") + "..."
	}
	return fmt.Errorf("%w: %q: %s", ErrBadPath, path, why)
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}
