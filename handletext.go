package chubby

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// handleText is a handle as a text: what it is on and for, and a seal that the cell's key makes.
type handleText struct {
	cell          string
	epoch         uint64
	instance      uint64
	write, change bool
	path          string
	seal          []byte
}

const (
	handlePrefix  = "chubby-handle:1:"
	handleTextMax = 16 << 10
)

// String gives the one form of the text.
func (t handleText) String() string {
	mode := "r"
	if t.write {
		mode += "w"
	}
	if t.change {
		mode += "c"
	}
	return fmt.Sprintf("%s%s:%d:%d:%s:%s:%s", handlePrefix, url.QueryEscape(t.cell), t.epoch, t.instance, mode, (&url.URL{Path: t.path}).EscapedPath(), hex.EncodeToString(t.seal))
}

// parseHandleText takes a text apart. Whether the seal is good only the cell can tell.
func parseHandleText(text string) (handleText, error) {
	bad := func(why string) (handleText, error) {
		return handleText{}, fmt.Errorf("%w: %s", ErrBadHandle, why)
	}
	rest, ok := strings.CutPrefix(text, handlePrefix)
	if !ok || len(text) > handleTextMax {
		return bad("it is no text of a handle")
	}
	parts := strings.SplitN(rest, ":", 5)
	if len(parts) < 5 {
		return bad("it is cut off")
	}
	cut := strings.LastIndexByte(parts[4], ':')
	if cut < 0 {
		return bad("it is cut off")
	}
	var t handleText
	var err error
	if t.cell, err = url.QueryUnescape(parts[0]); err != nil {
		return bad("its cell")
	}
	if t.epoch, err = strconv.ParseUint(parts[1], 10, 64); err != nil {
		return bad("its epoch")
	}
	if t.instance, err = strconv.ParseUint(parts[2], 10, 64); err != nil || t.instance == 0 {
		return bad("its instance")
	}
	t.write, t.change = strings.Contains(parts[3], "w"), strings.Contains(parts[3], "c")
	if t.path, err = url.PathUnescape(parts[4][:cut]); err != nil || t.path == "" || t.path[0] != '/' {
		return bad("its path")
	}
	if t.seal, err = hex.DecodeString(parts[4][cut+1:]); err != nil || len(t.seal) == 0 {
		return bad("its check digits")
	}
	if t.String() != text {
		return bad("another form of it")
	}
	return t, nil
}
