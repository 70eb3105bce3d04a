package cell

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/chubbygo/chubby"
)

// Three files like the seed's make one cell, and a fourth a client of it.
func TestFiles(t *testing.T) {
	t.Chdir(t.TempDir()) // the files name data directories relative to it
	ports := &bound{listeners: make(map[string]net.Listener)}
	var addrs []string
	for range 3 {
		addr, err := ports.bind()
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, addr)
	}
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	f := Register(fs)
	f.network = ports
	for i, addr := range addrs {
		b, err := json.Marshal(map[string]any{
			"servers_address": []string{addrs[(i+1)%3], addrs[(i+2)%3]}, "myport": addr,
			"raftstatefilename": "Persister/raftstate" + strconv.Itoa(i) + ".hdb",
		})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "server_config.json")
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fs.Parse([]string{"-server", file}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(map[string]any{"client_address": addrs, "maxreries": 13})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "client_config.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := f.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Client(0).Set(t.Context(), "/a", []byte("one")); err != nil {
		t.Error(err)
	}
	if e, err := c.Client(4).Get(t.Context(), "/a"); err != nil || string(e.Data) != "one" {
		t.Errorf("another node reads %q, %v; want one", e.Data, err)
	}
	client, err := (&Flags{Client: file, network: ports}).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e, err := client.Client(1).Get(t.Context(), "/a"); err != nil || string(e.Data) != "one" {
		t.Errorf("a client reads %q, %v; want one", e.Data, err)
	}
	if err := errors.Join(client.Close(), c.Close()); err != nil {
		t.Error(err)
	}
}

func TestNoFile(t *testing.T) {
	fs := flag.NewFlagSet("test", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	f := Register(fs)
	if err := fs.Parse([]string{"-server", filepath.Join(t.TempDir(), "none.json")}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Open(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of servers: %v, want %v", err, os.ErrNotExist)
	}
	f.Client = f.Servers[0]
	if _, err := f.Open(t.Context()); err == nil {
		t.Error("-client and -server together were taken")
	}
	f.Servers = nil
	if _, err := f.Open(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open of a client: %v, want %v", err, os.ErrNotExist)
	}
}

// Nodes whose addresses were not bound do not open, and nothing stays open.
func TestNotBound(t *testing.T) {
	b := &bound{}
	if _, err := chubby.Open(chubby.Options{Listen: "127.0.0.1:1", Network: b}); err == nil {
		t.Error("a node opened on an address that was not bound")
	}
}
