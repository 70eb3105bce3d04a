package main

import (
	"context"
	"io"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), &out, nil); err != nil {
		t.Fatal(err)
	}
	const want = `web A? NOERROR; web.chubby. 60 IN A 10.0.0.7; web.chubby. 60 IN A 10.0.0.8
web AAAA? NOERROR; web.chubby. 30 IN AAAA fd00::7
_http._tcp SRV? NOERROR; _http._tcp.chubby. 30 IN SRV 0 50 80 web.chubby.
motto TXT? NOERROR; motto.chubby. 30 IN TXT "one cell, one truth"
web TXT? NOERROR
nobody A? NXDOMAIN
web moves
web A? NOERROR; web.chubby. 60 IN A 10.0.0.9
a worker comes
worker A? NOERROR; worker.chubby. 5 IN A 10.0.0.20
and goes
worker A? NXDOMAIN
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &out, want)
	}
}

// With -serve it answers until it is interrupted.
func TestServe(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, w := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		ended <- run(ctx, w, []string{"-serve", "-zone", "Example"})
		w.Close()
	}()
	buf := make([]byte, 256)
	n, err := r.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "answering for example. on 127.0.0.1:") {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

func TestBadFlags(t *testing.T) {
	if err := run(t.Context(), io.Discard, []string{"-zone", "a..b"}); err == nil || !strings.Contains(err.Error(), "-zone") {
		t.Errorf("error %v, want one that names the flag", err)
	}
}
