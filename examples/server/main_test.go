package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/internal/memnet"
)

// Three of them are a cell. They end when they are told to.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	net := memnet.New()
	peers := map[string]string{"a": "a:1", "b": "b:1", "c": "c:1"}
	ended := make(chan error, len(peers))
	var outs []*io.PipeReader
	for id, addr := range peers {
		r, w := io.Pipe()
		outs = append(outs, r)
		go func() {
			ended <- serve(ctx, w, chubby.Options{ID: id, Listen: addr, Peers: peers, Network: net.Host(id)})
			w.Close()
		}()
	}
	var rest []<-chan string
	for _, r := range outs {
		text := ""
		for buf := make([]byte, 1<<10); !strings.Contains(text, "ready; the cell leader is "); {
			n, err := r.Read(buf)
			if text += string(buf[:n]); err != nil {
				t.Fatalf("%q, %v", text, err)
			}
		}
		all := make(chan string, 1)
		rest = append(rest, all)
		go func() {
			b, _ := io.ReadAll(r) // nobody waits for the other end
			all <- string(b)
		}()
	}
	cancel()
	for range peers {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	for _, all := range rest {
		if text := <-all; !strings.HasSuffix(text, ": closing\n") {
			t.Errorf("the last words: %q", text)
		}
	}
}

func TestBadArguments(t *testing.T) {
	if err := run(t.Context(), io.Discard, nil); err == nil {
		t.Error("no file, and no error")
	}
	if err := run(t.Context(), io.Discard, []string{filepath.Join(t.TempDir(), "none.json")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
