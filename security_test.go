package chubby

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
	"github.com/chubbygo/chubby/internal/wire"
)

var testSecret = bytes.Repeat([]byte("0123456789abcdef"), 2)

// authority is a certificate authority of a test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().AddDate(100, 0, 0), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	a := &authority{cert, key, x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// issue gives a config with a node's certificate for the names.
func (a *authority) issue(tb testing.TB, names ...string) *tls.Config {
	tb.Helper()
	return a.issueFor(tb, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, names...)
}

func (a *authority) issueFor(tb testing.TB, usage []x509.ExtKeyUsage, names ...string) *tls.Config {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool}
}

func mustSecurity(tb testing.TB, conf *tls.Config, secret []byte, id string) *security {
	tb.Helper()
	s, err := newSecurity(conf, secret, id)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestNewSecurityFaults(t *testing.T) {
	good := newAuthority(t).issue(t, "n1")
	change := func(f func(*tls.Config)) *tls.Config {
		c := good.Clone()
		f(c)
		return c
	}
	for _, c := range []struct {
		name   string
		conf   *tls.Config
		secret []byte
		want   string // "" = no error
	}{
		{"plain", nil, nil, ""},
		{"secret", nil, testSecret, ""},
		{"short secret", nil, testSecret[:31], "Secret has 31 bytes"},
		{"both", good, testSecret, "exclude each other"},
		{"TLS", good, nil, ""},
		{"no certificate", change(func(c *tls.Config) { c.Certificates = nil }), nil, "Certificates"},
		{"ClientCAs instead of RootCAs", change(func(c *tls.Config) { c.RootCAs, c.ClientCAs = nil, c.RootCAs }), nil, ""},
		{"no authority", change(func(c *tls.Config) { c.RootCAs = nil }), nil, "RootCAs"},
		{"skips verification", change(func(c *tls.Config) { c.InsecureSkipVerify = true }), nil, "InsecureSkipVerify"},
		{"old TLS only", change(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), nil, "MaxVersion"},
		{"config switch", change(func(c *tls.Config) {
			c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return nil, nil }
		}), nil, "GetConfigForClient"},
	} {
		_, err := newSecurity(c.conf, c.secret, "n1")
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrBadOptions) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// Who proves what to whom. Nothing reaches a handler from a stream that is refused.
func TestSecuredStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, foreign := newAuthority(t), newAuthority(t)
		other := bytes.Repeat([]byte("x"), 32)
		for _, c := range []struct {
			name   string
			a, b   *security // n1 dials n2
			kind   wire.Kind
			ok     bool
			reason error // nil = any
		}{
			{"secret", mustSecurity(t, nil, testSecret, "n1"), mustSecurity(t, nil, testSecret, "n2"), kindControl, true, nil},
			{"other secret", mustSecurity(t, nil, other, "n1"), mustSecurity(t, nil, testSecret, "n2"), kindControl, false, nil},
			{"dialler says it is another", mustSecurity(t, nil, testSecret, "n3"), mustSecurity(t, nil, testSecret, "n2"), kindControl, false, ErrPermission},
			{"acceptor says it is another", mustSecurity(t, nil, testSecret, "n1"), mustSecurity(t, nil, testSecret, "n3"), kindControl, false, ErrPermission},
			{"plain to secured", nil, mustSecurity(t, nil, testSecret, "n2"), kindControl, false, nil},
			{"secured to plain", mustSecurity(t, nil, testSecret, "n1"), nil, kindControl, false, nil},
			{"TLS", mustSecurity(t, ca.issue(t, "n1"), nil, "n1"), mustSecurity(t, ca.issue(t, "10.0.0.1", "n2"), nil, "n2"), kindControl, true, nil},
			{"TLS, other authority", mustSecurity(t, foreign.issue(t, "n1"), nil, "n1"), mustSecurity(t, ca.issue(t, "n2"), nil, "n2"), kindControl, false, nil},
			{"TLS, name of another", mustSecurity(t, ca.issue(t, "n3"), nil, "n1"), mustSecurity(t, ca.issue(t, "n2"), nil, "n2"), kindEcho, false, ErrPermission},
		} {
			net := memnet.New()
			a := newTestTransport(t, net, "n1", func(tc *transportConfig) { tc.Security = c.a })
			b := newTestTransport(t, net, "n2", func(tc *transportConfig) { tc.Security = c.b })
			meet(a, b)
			b.handle(kindEcho, echo)
			b.handle(kindControl, echo)
			got, err := a.call(t.Context(), "n2.a", c.kind, []byte("x"))
			switch {
			case c.ok && (err != nil || string(got) != "x"):
				t.Errorf("%s: got %q, %v", c.name, got, err)
			case !c.ok && (!errors.Is(err, errNotSent) || c.reason != nil && !errors.Is(err, c.reason)):
				t.Errorf("%s: got %v, want errNotSent and %v", c.name, err, c.reason)
			}
			_ = a.Close()
			_ = b.Close()
		}
	})
}

// A client has a certificate of the cell's authority but is no node: what nodes say to each other is not for it.
func TestClientGetsNoNodeStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		net := memnet.New()
		b := newTestTransport(t, net, "n2", func(tc *transportConfig) { tc.Security = mustSecurity(t, ca.issue(t, "n2"), nil, "n2") })
		b.handle(kindEcho, echo)
		b.handle(kindControl, echo)
		a := newTestTransport(t, net, "client", func(tc *transportConfig) {
			tc.Server, tc.ID, tc.Listen = "", "", ""
			tc.Security = mustSecurity(t, ca.issue(t, "alice"), nil, "")
			tc.Resolve = func(raft.ServerID, raft.ServerAddress) []string { return []string{b.addr()} }
		})
		if _, err := a.call(t.Context(), "n2.a", kindEcho, nil); !errors.Is(err, ErrPermission) {
			t.Errorf("rpc: got %v, want ErrPermission", err)
		}
		if _, err := a.call(t.Context(), "n2.a", kindControl, nil); !errors.Is(err, ErrPermission) {
			t.Errorf("control: got %v, want ErrPermission", err)
		}
		if err := a.RequestVote("n2.a", "", &raft.RequestVoteRequest{}, new(raft.RequestVoteResponse)); !errors.Is(err, ErrPermission) {
			t.Errorf("vote: got %v, want ErrPermission", err)
		}
	})
}

// The certificate of a client makes nobody a node, even with a name that a node may have: it could join the cell, and then
// read all of it and write in the name of others.
func TestClientIsNoNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newAuthority(t)
		net := memnet.New()
		b := newTestTransport(t, net, "n2", func(tc *transportConfig) { tc.Security = mustSecurity(t, ca.issue(t, "n2"), nil, "n2") })
		b.handle(kindFound, echo)
		for _, usage := range [][]x509.ExtKeyUsage{{x509.ExtKeyUsageClientAuth}, {x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, nil} {
			node := len(usage) != 1
			c := ca.issueFor(t, usage, "n1")
			a := newTestTransport(t, net, "n1", func(tc *transportConfig) { tc.Security = mustSecurity(t, c, nil, "n1") })
			_, _, err := a.callAddr(t.Context(), b.addr(), kindFound, []byte("hi"))
			if node && err != nil || !node && (!errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "serverAuth")) {
				t.Errorf("usage %v: %v", usage, err)
			}
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		}
	})
}

// A whole cell in a bubble, whose clock starts in the year 2000, over TLS made from a secret.
func TestCellOverSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newRaftCell(t, memnet.New(), 3, func(tc *transportConfig, _ *raft.Config) {
			tc.Security = mustSecurity(t, nil, testSecret, tc.ID)
		})
		defer c.close()
		c.apply(c.leader(), "one")
		c.settle("one")
	})
}

func TestCheckExposure(t *testing.T) {
	for _, c := range []struct {
		addr string
		ok   bool
	}{
		{"", true}, {"127.0.0.1:1", true}, {"127.9.9.9:1", true}, {"[::1]:1", true}, {"localhost:1", true}, {"LocalHost.:1", true},
		{":1", false}, {"0.0.0.0:1", false}, {"[::]:1", false}, {"10.0.0.1:1", false}, {"example.com:1", false},
		{"localhost.example.com:1", false}, {"nonsense", false},
	} {
		err := checkExposure(map[string]string{"Listen": c.addr}, false, false)
		if ok := err == nil; ok != c.ok {
			t.Errorf("%q: got %v, want ok %v", c.addr, err, c.ok)
		}
		if err != nil && (!errors.Is(err, ErrInsecureListen) || !strings.Contains(err.Error(), "Listen") || !strings.Contains(err.Error(), c.addr) || !strings.Contains(err.Error(), "set TLS")) {
			t.Errorf("%q: %v names no field, address or cure", c.addr, err)
		}
	}
	exposed := map[string]string{"Listen": ":1", "Advertise": "a:1"}
	if err := checkExposure(exposed, true, false); err != nil {
		t.Errorf("secured: %v", err)
	}
	if err := checkExposure(exposed, false, true); err != nil {
		t.Errorf("Insecure: %v", err)
	}
	if err := checkExposure(exposed, false, false); strings.Count(err.Error(), "set TLS") != 2 {
		t.Errorf("both faults at once: %v", err)
	}
}

// stranger is a raw connection to a transport.
func stranger(t *testing.T, net *memnet.Net, x *transport) net.Conn {
	t.Helper()
	c, err := net.Host("stranger").Dial(t.Context(), x.addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// introduce does the dialler's part of a hello on a plain stream, as node n1.
func introduce(t *testing.T, c net.Conn, p purpose, change func(*wire.Hello)) *wire.Welcome {
	t.Helper()
	h := wire.Hello{Purpose: p, Cell: wire.CellID{1}, Server: "n1.a", ID: "n1", To: "n2.a", Level: 1}
	if change != nil {
		change(&h)
	}
	b, err := wire.AppendHello(nil, &h)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	w, err := wire.ReadWelcome(c)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// closedSoon reports whether the other side closes the connection within a second.
func closedSoon(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Second))
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

func TestStrangers(t *testing.T) {
	inBubble := func(name string, f func(t *testing.T, n *memnet.Net, x *transport)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := memnet.New()
				x := newTestTransport(t, n, "n2", nil)
				x.handle(kindEcho, echo)
				f(t, n, x)
				synctest.Wait()
				select {
				case rpc := <-x.Consumer():
					t.Errorf("raft was given %+v", rpc.Command)
				default:
				}
			})
		})
	}
	vote := func(id string) []byte {
		b := wire.BeginFrame(nil, wire.TypeVote, 1)
		b = wire.AppendVote(b, &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(id), Addr: []byte("x")}, Term: 99})
		wire.EndFrame(b, 0)
		return b
	}
	inBubble("silent connections are few and short", func(t *testing.T, n *memnet.Net, x *transport) {
		var held []net.Conn
		for range maxPendingHello {
			held = append(held, stranger(t, n, x))
		}
		time.Sleep(time.Millisecond)
		if !closedSoon(stranger(t, n, x)) {
			t.Error("one more than allowed is kept")
		}
		time.Sleep(helloTimeout)
		if !closedSoon(held[0]) {
			t.Error("a silent connection is kept after the deadline")
		}
		if w := introduce(t, stranger(t, n, x), wire.RPC, nil); w.Fault != nil {
			t.Errorf("afterwards: %v", w.Fault)
		}
	})
	inBubble("a slow hello does not move the deadline", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		for range 4 {
			_, _ = c.Write([]byte("c"))
			time.Sleep(1500 * time.Millisecond)
		}
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("raft frame before hello", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		_, _ = c.Write(vote("n1.a"))
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("TLS client on a plain port", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		_ = c.SetDeadline(time.Now().Add(time.Second))
		err := tls.Client(c, &tls.Config{InsecureSkipVerify: true}).Handshake()
		var timeout net.Error
		if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("got %v, want to be closed at once", err)
		}
	})
	inBubble("giant length", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		if w := introduce(t, c, wire.RPC, nil); w.Fault != nil {
			t.Fatal(w.Fault)
		}
		_, _ = c.Write(append([]byte{0xff, 0xff, 0xff, 0x7f}, make([]byte, 9)...))
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("silence after hello", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		introduce(t, c, wire.RPC, nil)
		time.Sleep(2 * x.streamTimeout)
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("speaks for another node", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		introduce(t, c, wire.Control, nil)
		_, _ = c.Write(vote("n3.a"))
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("raft message on an rpc stream", func(t *testing.T, n *memnet.Net, x *transport) {
		c := stranger(t, n, x)
		introduce(t, c, wire.RPC, nil)
		_, _ = c.Write(vote("n1.a"))
		if !closedSoon(c) {
			t.Error("kept")
		}
	})
	inBubble("refusals", func(t *testing.T, n *memnet.Net, x *transport) {
		for name, c := range map[string]struct {
			change func(*wire.Hello)
			want   error
		}{
			"other cell":         {func(h *wire.Hello) { h.Cell[3]++ }, ErrWrongCell},
			"other node":         {func(h *wire.Hello) { h.To = "n3.a" }, ErrWrongCell},
			"other incarnation":  {func(h *wire.Hello) { h.To = "n2.b" }, ErrWrongCell},
			"nobody":             {func(h *wire.Hello) { h.To = "" }, ErrWrongCell},
			"unknown purpose":    {func(h *wire.Hello) { h.Purpose = 77 }, errNoHandler},
			"server of another":  {func(h *wire.Hello) { h.Server = "n3.a" }, ErrPermission},
			"raft from a client": {func(h *wire.Hello) { h.Server, h.ID = "", "" }, ErrPermission},
		} {
			w := introduce(t, stranger(t, n, x), wire.Append, c.change)
			if w.Fault == nil || !errors.Is(faultError(w.Fault), c.want) {
				t.Errorf("%s: got %+v, want %v", name, w.Fault, c.want)
			}
		}
	})
	inBubble("Authorize", func(t *testing.T, n *memnet.Net, x *transport) {
		y := newTestTransport(t, n, "n3", func(tc *transportConfig) {
			tc.Authorize = func(from peerInfo, p purpose) error {
				if from.Server == "n1.a" && p != wire.RPC {
					return ErrRemoved
				}
				return nil
			}
		})
		toY := func(h *wire.Hello) { h.To = "n3.a" }
		if w := introduce(t, stranger(t, n, y), wire.Append, toY); w.Fault == nil || !errors.Is(faultError(w.Fault), ErrRemoved) {
			t.Errorf("append: got %+v, want ErrRemoved", w.Fault)
		}
		if w := introduce(t, stranger(t, n, y), wire.RPC, toY); w.Fault != nil {
			t.Errorf("rpc: %+v", w.Fault)
		}
	})
}
