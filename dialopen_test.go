package chubby_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

func TestDialOptions(t *testing.T) {
	some := []string{"localhost:1"}
	for name, c := range map[string]struct {
		o     chubby.DialOptions
		want  error
		texts []string
	}{
		"nothing":       {chubby.DialOptions{}, chubby.ErrBadOptions, []string{"Addrs: empty"}},
		"everything":    {chubby.DialOptions{Addrs: []string{"x", "a:1", "a:1"}, Cell: "a/b", Secret: []byte("short"), MaxRetries: -1, CacheBytes: -1, SessionLease: time.Millisecond, GracePeriod: 2 * time.Hour}, chubby.ErrBadOptions, []string{`Addrs[0] "x"`, `Addrs[2] "a:1"`, `Cell "a/b"`, "Secret: 5 bytes", "MaxRetries -1", "CacheBytes -1", "SessionLease 1ms", "grace period 2h"}},
		"many":          {chubby.DialOptions{Addrs: manyAddrs(17)}, chubby.ErrBadOptions, []string{"17 addresses"}},
		"not loopback":  {chubby.DialOptions{Addrs: []string{"localhost:1", "10.0.0.1:1"}}, chubby.ErrInsecureListen, []string{"Addrs[1]", "10.0.0.1"}},
		"TLS, no certs": {chubby.DialOptions{Addrs: some, TLS: &tls.Config{}}, chubby.ErrBadOptions, []string{"TLS"}},
	} {
		_, err := chubby.Dial(t.Context(), c.o)
		var e *chubby.Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Op != "dial" {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
			continue
		}
		for _, text := range c.texts {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q is not in %v", name, text, err)
			}
		}
	}
}

func manyAddrs(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("localhost:%d", i+1))
	}
	return list
}

// A cell without enough members, of another name, or of another secret, is told at once or when time or tries are over.
func TestDialRefused(t *testing.T) {
	secret := []byte(strings.Repeat("s", 32))
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		cell.Leader()
		var network chubby.Network
		cell.DialWith(func(o *chubby.DialOptions) { o.Secret, network = secret, o.Network })
		dial := func(ctx context.Context, change func(*chubby.DialOptions)) (time.Duration, error) {
			o := chubby.DialOptions{Cell: "test", Secret: secret, Network: network, Addrs: []string{"n0:1", "n1:1", "n2:1"}}
			change(&o)
			start := time.Now()
			c, err := chubby.Dial(ctx, o)
			if err == nil {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
			return time.Since(start), err
		}
		if _, err := dial(t.Context(), func(*chubby.DialOptions) {}); err != nil {
			t.Errorf("a good one: %v", err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Cell = "other" }); !errors.Is(err, chubby.ErrWrongCell) || d > time.Second {
			t.Errorf("another cell: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Secret = []byte(strings.Repeat("x", 32)) }); !errors.Is(err, chubby.ErrPermission) || d > time.Second {
			t.Errorf("another secret: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.SessionLease = time.Second; o.GracePeriod = -1 }); err != nil || d > time.Second {
			t.Errorf("a lease of five heartbeats: after %v: %v", d, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := dial(ended, func(*chubby.DialOptions) {}); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that has ended: %v", err)
		}
		cell.Stop(0)
		if _, err := dial(t.Context(), func(*chubby.DialOptions) {}); err != nil {
			t.Errorf("two of three: %v", err)
		}
		cell.Stop(1)
		short, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if d, err := dial(short, func(*chubby.DialOptions) {}); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, chubby.ErrNoQuorum) || d != 10*time.Second || !strings.Contains(err.Error(), "n0:1") {
			t.Errorf("one of three: after %v: %v", d, err)
		}
		if d, err := dial(t.Context(), func(o *chubby.DialOptions) { o.MaxRetries = 5 }); !errors.Is(err, chubby.ErrNoQuorum) || d > 10*time.Second {
			t.Errorf("one of three, with 5 retries: after %v: %v", d, err)
		}
		if _, err := dial(t.Context(), func(o *chubby.DialOptions) { o.Addrs = o.Addrs[2:] }); err != nil {
			t.Errorf("one of one: %v", err)
		}
	}, func(o *chubby.Options) { o.Secret = secret })
}

// TestDialTCP dials real sockets, with TLS from the cell's secret, and leaves nothing open.
func TestDialTCP(t *testing.T) {
	before := openFiles(t)
	secret := []byte(strings.Repeat("s", 32))
	n, err := chubby.Open(chubby.Options{ID: "a", Listen: "127.0.0.1:0", Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	members, err := n.Members(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	c, err := chubby.Dial(within(t, time.Minute), chubby.DialOptions{Addrs: []string{members[0].Addr}, Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Set(within(t, time.Minute), "/x", []byte("1")); err != nil {
		t.Error(err)
	}
	wantGet(t, n, "/x", "1")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if after := openFiles(t); before >= 0 && after > before {
		t.Errorf("%d files open before, %d after", before, after)
	}
}

// TestSeedCellAndClient: the three server files and the client file of the original, as its documentation prints them, make a cell and a client.
func TestSeedCellAndClient(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("Persister", 0o700); err != nil {
		t.Fatal(err)
	}
	ports := freePorts(t, 3)
	load := func(name, text string) string {
		for i, p := range []string{"8900", "8901", "8902"} {
			text = strings.ReplaceAll(text, p, ports[i])
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	var nodes []*chubby.Node
	for i, text := range seedServers {
		o, err := chubby.LoadServerConfig(load(fmt.Sprintf("server%d.json", i), text))
		if err != nil {
			t.Fatal(err)
		}
		n, err := chubby.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		nodes = append(nodes, n)
	}
	o, err := chubby.LoadClientConfig(load("client_config.json", seedClient))
	if err != nil {
		t.Fatal(err)
	}
	c, err := chubby.Dial(within(t, time.Minute), o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Set(within(t, time.Minute), "/x", []byte("1")); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		wantGet(t, n, "/x", "1")
	}
	if list, err := filepath.Glob("Persister/*"); err != nil || len(list) != 3 {
		t.Errorf("data directories: %q, %v", list, err)
	}
}

var seedServers = []string{`{
  "servers_address": ["localhost:8900","localhost:8901"],
  "myport" : ":8902",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot1.hdb",
  "raftstatefilename" : "Persister/raftstate1.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`, `{
  "servers_address": ["localhost:8900","localhost:8902"],
  "myport" : ":8901",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot2.hdb",
  "raftstatefilename" : "Persister/raftstate2.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`, `{
  "servers_address": ["localhost:8901","localhost:8902"],
  "myport" : ":8900",
  "maxreries" : 13,
  "timeout_entry" : 200,
  "maxraftstate" : 1000000,
  "snapshotfilename" : "Persister/snapshot3.hdb",
  "raftstatefilename" : "Persister/raftstate3.hdb",
  "persistencestrategy" : "everysec",
  "chubbygomapstrategy" : "concurrentmap"
}`}

const seedClient = `{
  "client_address" : ["localhost:8900","localhost:8901","localhost:8902"],
  "maxreries" : 13
}`

// freePorts gives ports that nobody listens at just now.
func freePorts(t *testing.T, n int) (ports []string) {
	t.Helper()
	for range n {
		ln, err := net.Listen("tcp", "localhost:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, err := net.SplitHostPort(ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}

// With TLS a client is who its certificate says: sessions belong to that name, and another client cannot use them.
func TestDialPrincipal(t *testing.T) {
	ca, pool := newCA(t)
	config := func(ca *testCA, name string, usage ...x509.ExtKeyUsage) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{ca.issue(t, name, usage...)}, RootCAs: pool}
	}
	n, err := chubby.Open(chubby.Options{ID: "a", Listen: "127.0.0.1:0", TLS: config(ca, "a", x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	members, err := n.Members(within(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(conf *tls.Config) (*chubby.Client, error) {
		return chubby.Dial(within(t, 20*time.Second), chubby.DialOptions{Addrs: []string{members[0].Addr}, TLS: conf})
	}
	alice, err := dial(config(ca, "alice", x509.ExtKeyUsageClientAuth))
	if err != nil {
		t.Fatal(err)
	}
	defer alice.Close()
	l, err := alice.Lock(within(t, time.Minute), "/l")
	if err != nil {
		t.Fatal(err)
	}
	info, err := n.LockInfo(within(t, time.Minute), "/l")
	if err != nil || len(info.Holders) != 1 || info.Holders[0].Name != "alice" {
		t.Errorf("holders %+v, %v: the default session is to be called alice", info.Holders, err)
	}
	if err := l.Unlock(within(t, time.Minute)); err != nil {
		t.Error(err)
	}
	stranger, _ := newCA(t)
	if _, err := dial(config(stranger, "alice", x509.ExtKeyUsageClientAuth)); !errors.Is(err, chubby.ErrPermission) {
		t.Errorf("a certificate of another authority: %v", err)
	}
}
