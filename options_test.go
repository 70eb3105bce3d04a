package chubby_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
)

// Every bad option is refused with a text that names the field, before anything is written.
func TestBadOptions(t *testing.T) {
	three := map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:2", "c": "127.0.0.1:3"}
	for _, c := range []struct {
		name string
		opts chubby.Options
		want error
		text string
	}{
		{"no ID", chubby.Options{Peers: three, Listen: "127.0.0.1:1"}, chubby.ErrBadOptions, "ID"},
		{"control character in ID", chubby.Options{ID: "a\n"}, chubby.ErrBadOptions, "ID"},
		{"long ID", chubby.Options{ID: strings.Repeat("x", 256)}, chubby.ErrBadOptions, "ID"},
		{"slash in Cell", chubby.Options{Cell: "a/b"}, chubby.ErrBadOptions, "Cell"},
		{"not in Peers", chubby.Options{ID: "d", Peers: three, Listen: "127.0.0.1:1"}, chubby.ErrBadOptions, "Peers"},
		{"Peers without Listen", chubby.Options{ID: "a", Peers: three}, chubby.ErrBadOptions, "Listen"},
		{"one address twice", chubby.Options{ID: "a", Listen: "127.0.0.1:1", Peers: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:1"}}, chubby.ErrBadOptions, "Peers"},
		{"peer without port", chubby.Options{ID: "a", Listen: "127.0.0.1:1", Peers: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1"}}, chubby.ErrBadOptions, "Peers[\"b\"]"},
		{"peer with port 0", chubby.Options{ID: "a", Listen: "127.0.0.1:1", Peers: map[string]string{"a": "127.0.0.1:1", "b": "127.0.0.1:0"}}, chubby.ErrBadOptions, "Peers[\"b\"]"},
		{"Listen without port", chubby.Options{Listen: "127.0.0.1"}, chubby.ErrBadOptions, "Listen"},
		{"Advertise without Listen", chubby.Options{Advertise: "127.0.0.1:1"}, chubby.ErrBadOptions, "Advertise"},
		{"short Secret", chubby.Options{Secret: make([]byte, 31)}, chubby.ErrBadOptions, "Secret"},
		{"empty Secret", chubby.Options{Secret: []byte{}}, chubby.ErrBadOptions, "Secret"},
		{"all interfaces", chubby.Options{Listen: ":0"}, chubby.ErrInsecureListen, "Listen"},
		{"beyond loopback", chubby.Options{Listen: "192.0.2.1:1"}, chubby.ErrInsecureListen, "Secret"},
		{"Advertise beyond loopback", chubby.Options{Listen: "127.0.0.1:0", Advertise: "192.0.2.1:1"}, chubby.ErrInsecureListen, "Advertise"},
		{"peer beyond loopback", chubby.Options{ID: "a", Listen: "127.0.0.1:1", Peers: map[string]string{"a": "127.0.0.1:1", "b": "192.0.2.1:1"}}, chubby.ErrInsecureListen, "Peers[\"b\"]"},
		{"Sync", chubby.Options{Sync: 3}, chubby.ErrBadOptions, "Sync"},
		{"Map", chubby.Options{Map: -1}, chubby.ErrBadOptions, "Map"},
		{"MaxLogBytes", chubby.Options{MaxLogBytes: 1000}, chubby.ErrBadOptions, "MaxLogBytes"},
		{"short lease", chubby.Options{SessionLease: time.Second - 1}, chubby.ErrBadOptions, "SessionLease"},
		{"long lease", chubby.Options{SessionLease: time.Hour + 1}, chubby.ErrBadOptions, "SessionLease"},
		{"lease below 5 heartbeats", chubby.Options{SessionLease: 4 * time.Second, HeartbeatTimeout: time.Second}, chubby.ErrBadOptions, "SessionLease"},
		{"long grace", chubby.Options{GracePeriod: time.Hour + 1}, chubby.ErrBadOptions, "grace"},
		{"heartbeat", chubby.Options{HeartbeatTimeout: time.Millisecond}, chubby.ErrBadOptions, "HeartbeatTimeout"},
		{"negative heartbeat", chubby.Options{HeartbeatTimeout: -1}, chubby.ErrBadOptions, "HeartbeatTimeout"},
		{"election", chubby.Options{HeartbeatTimeout: time.Second, ElectionTimeout: time.Second - 1}, chubby.ErrBadOptions, "ElectionTimeout"},
		{"attempts", chubby.Options{StartAttempts: -1}, chubby.ErrBadOptions, "StartAttempts"},
		{"interval", chubby.Options{StartInterval: -1}, chubby.ErrBadOptions, "StartInterval"},
		{"value limit", chubby.Options{Limits: chubby.Limits{ValueBytes: -1}}, chubby.ErrBadOptions, "ValueBytes"},
		{"value limit above what an entry holds", chubby.Options{Limits: chubby.Limits{ValueBytes: 1 << 20}}, chubby.ErrBadOptions, "ValueBytes"},
		{"path limit", chubby.Options{Limits: chubby.Limits{PathBytes: 1}}, chubby.ErrBadOptions, "PathBytes"},
		{"depth limit", chubby.Options{Limits: chubby.Limits{Depth: 1000}}, chubby.ErrBadOptions, "Depth"},
		{"pending", chubby.Options{Limits: chubby.Limits{PendingCommands: -1}}, chubby.ErrBadOptions, "PendingCommands"},
		{"Join without Listen", chubby.Options{ID: "a", Join: []string{"127.0.0.1:1"}}, chubby.ErrBadOptions, "Listen"},
		{"Join without ID", chubby.Options{Listen: "127.0.0.1:0", Join: []string{"127.0.0.1:1"}}, chubby.ErrBadOptions, "ID"},
		{"Join at no address", chubby.Options{ID: "a", Listen: "127.0.0.1:0", Join: []string{"b"}}, chubby.ErrBadOptions, "Join[0]"},
		{"Join at port 0", chubby.Options{ID: "a", Listen: "127.0.0.1:0", Join: []string{"b:0"}}, chubby.ErrBadOptions, "port 0"},
		{"Join from everywhere", chubby.Options{ID: "a", Listen: ":0", Join: []string{"127.0.0.1:1"}}, chubby.ErrBadOptions, "Advertise"},
		{"Join in the open", chubby.Options{ID: "a", Listen: "127.0.0.1:0", Join: []string{"10.0.0.1:1"}}, chubby.ErrInsecureListen, "Join[0]"},
		{"Nonvoter without Join", chubby.Options{ID: "a", Nonvoter: true}, chubby.ErrBadOptions, "Nonvoter"},
		{"AutoReplace", chubby.Options{AutoReplace: time.Hour}, chubby.ErrBadOptions, "AutoReplace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			c.opts.Dir = dir
			n, err := chubby.Open(c.opts)
			if err == nil {
				n.Close()
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("Open: %v, want %v with %q", err, c.want, c.text)
			}
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("something was written: %v", err)
			}
		})
	}
}

// All that is wrong is told at once.
func TestBadOptionsTogether(t *testing.T) {
	_, err := chubby.Open(chubby.Options{MaxLogBytes: 1, SessionLease: 1, Sync: 9})
	for _, field := range []string{"MaxLogBytes", "SessionLease", "Sync"} {
		if err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s is missing in %v", field, err)
		}
	}
}
