package chubby

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// seedConfig is the seed's server_config.json for its server A. changes are pairs of a field and the value it gets
// instead; "" leaves the field out.
func seedConfig(changes ...string) string {
	var b strings.Builder
	b.WriteString("{")
	for _, f := range [][2]string{
		{"servers_address", `["localhost:8900","localhost:8901"]`},
		{"myport", `":8902"`},
		{"maxreries", `13`},
		{"timeout_entry", `200`},
		{"maxraftstate", `1000000`},
		{"snapshotfilename", `"Persister/snapshot1.hdb"`},
		{"raftstatefilename", `"Persister/raftstate1.hdb"`},
		{"persistencestrategy", `"everysec"`},
		{"chubbygomapstrategy", `"concurrentmap"`},
	} {
		for i := 0; i < len(changes); i += 2 {
			if f[0] == changes[i] {
				f[1] = changes[i+1]
			}
		}
		if f[1] == "" {
			continue
		}
		if b.Len() > 1 {
			b.WriteString(",")
		}
		fmt.Fprintf(&b, "\n  %q : %s", f[0], f[1])
	}
	b.WriteString("\n}\n")
	return b.String()
}

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoadServerConfig(t *testing.T) {
	seed := func(change func(*Options)) Options {
		o := Options{
			ID: "localhost:8902", Listen: "localhost:8902", Dir: filepath.Join("Persister", "raftstate1"),
			Peers:         map[string]string{"localhost:8900": "localhost:8900", "localhost:8901": "localhost:8901", "localhost:8902": "localhost:8902"},
			StartAttempts: 13, StartInterval: 200 * time.Millisecond, MaxLogBytes: 1_000_000, Sync: SyncEverySecond, Map: ConcurrentMap,
		}
		if change != nil {
			change(&o)
		}
		return o
	}
	move := func(o *Options, self string) {
		delete(o.Peers, o.ID)
		o.ID, o.Listen = self, self
		o.Peers[self] = self
	}
	for _, c := range []struct {
		name    string
		changes []string
		want    Options
	}{
		{"the seed's", nil, seed(nil)},
		{"myport with a host", []string{"myport", `"127.0.0.1:8902"`}, seed(func(o *Options) { move(o, "127.0.0.1:8902") })},
		{"hosts that differ", []string{"servers_address", `["10.0.0.1:8900","10.0.0.2:8900"]`, "myport", `"10.0.0.3:8900"`}, seed(func(o *Options) {
			o.Peers = map[string]string{"10.0.0.1:8900": "10.0.0.1:8900", "10.0.0.2:8900": "10.0.0.2:8900"}
			move(o, "10.0.0.3:8900")
		})},
		{"a host in brackets", []string{"servers_address", `["[::1]:8900","[::1]:8901"]`}, seed(func(o *Options) {
			o.Peers = map[string]string{"[::1]:8900": "[::1]:8900", "[::1]:8901": "[::1]:8901"}
			move(o, "[::1]:8902")
		})},
		{"a cell of one", []string{"servers_address", `[]`}, seed(func(o *Options) { o.Peers = map[string]string{o.ID: o.ID} })},
		{"no maxreries", []string{"maxreries", ""}, seed(func(o *Options) { o.StartAttempts = 0 })},
		{"no timeout_entry", []string{"timeout_entry", ""}, seed(func(o *Options) { o.StartInterval = 0 })},
		{"no maxraftstate", []string{"maxraftstate", ""}, seed(func(o *Options) { o.MaxLogBytes = 0 })},
		{"always", []string{"persistencestrategy", `"always"`}, seed(func(o *Options) { o.Sync = SyncAlways })},
		{"no", []string{"persistencestrategy", `"no"`}, seed(func(o *Options) { o.Sync = SyncNever })},
		{"no persistencestrategy", []string{"persistencestrategy", ""}, seed(func(o *Options) { o.Sync = SyncAlways })},
		{"syncmap", []string{"chubbygomapstrategy", `"syncmap"`}, seed(func(o *Options) { o.Map = SyncMap })},
		{"no chubbygomapstrategy", []string{"chubbygomapstrategy", ""}, seed(func(o *Options) { o.Map = TreeMap })},
		{"only the snapshot's name", []string{"raftstatefilename", ""}, seed(func(o *Options) { o.Dir = filepath.Join("Persister", "snapshot1") })},
		{"a name without extension", []string{"raftstatefilename", `"state"`}, seed(func(o *Options) { o.Dir = "state" })},
		{"a dot in a directory", []string{"raftstatefilename", `"v1.2/state"`}, seed(func(o *Options) { o.Dir = filepath.Join("v1.2", "state") })},
		// Without the extension nothing would be left, and an empty Dir keeps everything in memory.
		{"a name of extension only", []string{"raftstatefilename", `".hdb"`}, seed(func(o *Options) { o.Dir = ".hdb" })},
		{"a file of extension only", []string{"raftstatefilename", `"Persister/.hdb"`}, seed(func(o *Options) { o.Dir = filepath.Join("Persister", ".hdb") })},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := LoadServerConfig(writeConfig(t, seedConfig(c.changes...)))
			if err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("LoadServerConfig =\n%+v, %v, want\n%+v", got, err, c.want)
			}
		})
	}
}

// The three files that examples/cluster ships, which are the seed's, name one cell: their Peers are equal, as Open
// demands, and their directories are not.
func TestSeedConfigsAreOneCell(t *testing.T) {
	var first Options
	dirs := make(map[string]bool)
	for _, name := range []string{"a", "b", "c"} {
		o, err := LoadServerConfig(filepath.Join("examples", "cluster", "config", "server_config_"+name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if first.ID == "" {
			first = o
		}
		if !reflect.DeepEqual(o.Peers, first.Peers) || len(o.Peers) != 3 {
			t.Errorf("%s has Peers %v, a has %v", name, o.Peers, first.Peers)
		}
		dirs[o.Dir] = true
	}
	if len(dirs) != 3 {
		t.Errorf("directories %v, want 3", dirs)
	}
	d, err := LoadClientConfig(filepath.Join("examples", "cluster", "config", "client_config.json"))
	if err != nil || d.MaxRetries != 13 || len(d.Addrs) != 3 {
		t.Fatalf("LoadClientConfig = %+v, %v", d, err)
	}
	for _, addr := range d.Addrs {
		if first.Peers[addr] != addr {
			t.Errorf("client_address %s is no member of %v", addr, first.Peers)
		}
	}
}

func TestBadServerConfig(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string // parts of the message
	}{
		{"empty file", "", []string{"not a configuration"}},
		{"no JSON", "servers_address: x", []string{"not a configuration"}},
		{"an array", "[]", []string{"not a configuration"}},
		{"cut off", strings.TrimSuffix(seedConfig(), "}\n"), []string{"not a configuration"}},
		{"nothing in it", "{}", []string{"myport", "raftstatefilename"}},
		{"null", "null", []string{"myport", "raftstatefilename"}},
		{"two objects", seedConfig() + "{}", []string{"something follows"}},
		{"a bracket too many", seedConfig() + "}", []string{"something follows"}},
		{"unknown field", `{"maxretries": 13}`, []string{`"maxretries"`, "maxreries"}}, // and how the seed spells it
		{"wrong type", seedConfig("maxreries", `"13"`), []string{"maxreries"}},
		{"fraction", seedConfig("timeout_entry", `0.5`), []string{"timeout_entry"}},
		{"too large for an integer", seedConfig("maxraftstate", `1e30`), []string{"maxraftstate"}},
		{"address without port", seedConfig("servers_address", `["localhost"]`), []string{"servers_address[0]", "host:port"}},
		{"address without host", seedConfig("servers_address", `["localhost:8900", ":8901"]`), []string{"servers_address[1]", "host:port"}},
		{"address with port 0", seedConfig("servers_address", `["localhost:0"]`), []string{"servers_address[0]"}},
		{"address with a large port", seedConfig("servers_address", `["localhost:65536"]`), []string{"servers_address[0]"}},
		{"address twice", seedConfig("servers_address", `["localhost:8900", "localhost:8900"]`), []string{"servers_address[1]", "twice"}},
		{"itself among the others", seedConfig("servers_address", `["localhost:8900", "localhost:8902"]`), []string{"myport", "the others only"}},
		{"too many servers", seedConfig("servers_address", `["h:1","h:2","h:3","h:4","h:5","h:6","h:7"]`), []string{"at most 7"}},
		{"hosts that differ", seedConfig("servers_address", `["10.0.0.1:8900", "10.0.0.2:8900"]`), []string{"myport", "2 hosts"}},
		{"no myport", seedConfig("myport", ""), []string{"myport"}},
		{"myport without colon", seedConfig("myport", `"8902"`), []string{"myport", ":port"}},
		{"myport 0", seedConfig("myport", `":0"`), []string{"myport"}},
		{"negative maxreries", seedConfig("maxreries", `-1`), []string{"maxreries -1"}},
		{"negative timeout_entry", seedConfig("timeout_entry", `-1`), []string{"timeout_entry -1", "milliseconds"}},
		{"long timeout_entry", seedConfig("timeout_entry", `60001`), []string{"timeout_entry 60001"}},
		{"small maxraftstate", seedConfig("maxraftstate", `65535`), []string{"maxraftstate 65535", "65536"}},
		{"negative maxraftstate", seedConfig("maxraftstate", `-1`), []string{"maxraftstate -1"}},
		{"persistencestrategy", seedConfig("persistencestrategy", `"sometimes"`), []string{"persistencestrategy", "always, everysec or no"}},
		{"chubbygomapstrategy", seedConfig("chubbygomapstrategy", `"basemap"`), []string{"chubbygomapstrategy", "concurrentmap or syncmap"}},
		{"all at once", `{"servers_address": ["x"], "myport": "y", "maxreries": -1, "persistencestrategy": "z"}`,
			[]string{"servers_address[0]", "myport", "maxreries", "persistencestrategy", "raftstatefilename"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := writeConfig(t, c.text)
			o, err := LoadServerConfig(file)
			checkConfigError(t, file, err, c.want)
			if !reflect.DeepEqual(o, Options{}) {
				t.Errorf("options beside an error: %+v", o)
			}
		})
	}
}

func TestBadClientConfig(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"empty file", "", []string{"not a configuration"}},
		{"nothing in it", "{}", []string{"client_address"}},
		{"unknown field", `{"client_address": ["h:1"], "maxretries": 3}`, []string{`"maxretries"`, "maxreries"}},
		{"something behind", `{"client_address": ["h:1"]}]`, []string{"something follows"}},
		{"without port", `{"client_address": ["h:1", "h"]}`, []string{"client_address[1]", "host:port"}},
		{"without host", `{"client_address": [":1"]}`, []string{"client_address[0]", "host:port"}},
		{"port 0", `{"client_address": ["h:0"]}`, []string{"client_address[0]"}},
		{"twice", `{"client_address": ["h:1", "h:2", "h:1"]}`, []string{"client_address[2]", "twice"}},
		{"negative maxreries", `{"client_address": ["h:1"], "maxreries": -1}`, []string{"maxreries -1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := writeConfig(t, c.text)
			d, err := LoadClientConfig(file)
			checkConfigError(t, file, err, c.want)
			if !reflect.DeepEqual(d, DialOptions{}) {
				t.Errorf("options beside an error: %+v", d)
			}
		})
	}
}

// checkConfigError wants ErrBadOptions that names the file and has all parts.
func checkConfigError(t *testing.T, file string, err error, parts []string) {
	t.Helper()
	var e *Error
	if !errors.Is(err, ErrBadOptions) || !errors.As(err, &e) || e.Path != file {
		t.Fatalf("error %v, want ErrBadOptions about %s", err, file)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %v, want %q in it", err, part)
		}
	}
}

func TestConfigFile(t *testing.T) {
	if _, err := LoadServerConfig(filepath.Join(t.TempDir(), "none.json")); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrBadOptions) {
		t.Errorf("missing server config: %v, want fs.ErrNotExist alone", err)
	}
	if _, err := LoadClientConfig(t.TempDir()); err == nil {
		t.Error("a directory was read as a client config")
	}
	if _, err := LoadServerConfig(writeConfig(t, strings.Repeat(" ", configMax)+seedConfig())); !errors.Is(err, ErrBadOptions) {
		t.Errorf("a file above the limit: %v, want ErrBadOptions", err)
	}
}

// Whatever the bytes, nothing panics, and what the loader accepts Open's own judgement accepts too.
func FuzzServerConfig(f *testing.F) {
	f.Add([]byte(seedConfig()))
	f.Add([]byte(seedConfig("servers_address", `["h:1","h:2","h:3","h:4","h:5","h:6","h:7"]`)))
	f.Add([]byte(seedConfig("raftstatefilename", `"./.hdb"`)))
	f.Add([]byte(seedConfig("myport", `"[::1%25eth0]:8902"`)))
	f.Add([]byte(`{"myport":":1","raftstatefilename":"."}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s serverConfig
		if parseConfig(b, &s) == nil {
			if o, err := s.options(); err == nil {
				if err := o.withDefaults().validate(); err != nil {
					t.Errorf("accepted, but Open refuses: %v", err)
				}
				if o.Dir == "" || o.Peers[o.ID] != o.Listen {
					t.Errorf("Dir %q, ID %q, Listen %q, Peers %v", o.Dir, o.ID, o.Listen, o.Peers)
				}
			} else if !errors.Is(err, ErrBadOptions) {
				t.Errorf("error %v, want ErrBadOptions", err)
			}
		}
		var c clientConfig
		if parseConfig(b, &c) == nil {
			if err := c.validate(); err != nil && !errors.Is(err, ErrBadOptions) {
				t.Errorf("error %v, want ErrBadOptions", err)
			}
		}
	})
}
