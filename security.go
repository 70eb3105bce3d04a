package chubby

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/chubbygo/chubby/internal/wire"
)

const (
	minSecretBytes = 32
	alpnProtocol   = "chubby/1" // both sides offer only this, so that other users of TLS are refused at once
	nodeURIScheme  = "chubby"   // chubby:<hex of the node id>, because a node id may be any string
)

// security turns a raw stream into one whose other end has proved that it belongs to the cell. Immutable.
type security struct {
	server, client *tls.Config
}

// newSecurity makes mutual TLS 1.3 out of the user's config or out of the cell's secret. Both absent: nil, plain
// streams. It returns ErrBadOptions with the field and the cure.
func newSecurity(tlsConf *tls.Config, secret []byte, id string) (*security, error) {
	switch {
	case tlsConf != nil && len(secret) > 0:
		return nil, fmt.Errorf("%w: TLS and Secret exclude each other; set one", ErrBadOptions)
	case tlsConf != nil:
		return securityFromTLS(tlsConf)
	case len(secret) > 0:
		return securityFromSecret(secret, id)
	}
	return nil, nil
}

func securityFromTLS(user *tls.Config) (*security, error) {
	var faults []error
	bad := func(text string) { faults = append(faults, fmt.Errorf("%w: TLS: %s", ErrBadOptions, text)) }
	if len(user.Certificates) == 0 && (user.GetCertificate == nil || user.GetClientCertificate == nil) {
		bad("no certificate; set Certificates, or both GetCertificate and GetClientCertificate")
	}
	if user.RootCAs == nil && user.ClientCAs == nil {
		bad("no authority; set RootCAs or ClientCAs to the pool with the cell's CA")
	}
	if user.InsecureSkipVerify {
		bad("InsecureSkipVerify is set; clear it (host names are not compared anyway)")
	}
	if user.GetConfigForClient != nil {
		bad("GetConfigForClient is set, which could switch the checks off; clear it")
	}
	if user.MaxVersion != 0 && user.MaxVersion < tls.VersionTLS13 {
		bad("MaxVersion is below TLS 1.3; clear it")
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	conf := user.Clone()
	if conf.RootCAs == nil {
		conf.RootCAs = conf.ClientCAs
	}
	if conf.ClientCAs == nil {
		conf.ClientCAs = conf.RootCAs
	}
	return newSecurityFrom(conf), nil
}

// newSecurityFrom takes conf, which has certificates and both pools.
func newSecurityFrom(conf *tls.Config) *security {
	conf.MinVersion = tls.VersionTLS13
	conf.NextProtos = []string{alpnProtocol}
	conf.SessionTicketsDisabled = true // each stream is authenticated by itself
	server, client := conf, conf.Clone()
	server.ClientAuth = tls.RequireAndVerifyClientCert

	// A node is known by its id, not by the host name under which it was dialled. So the chain is verified here and the
	// id when the hello is known.
	roots, now, users := client.RootCAs, client.Time, client.VerifyConnection
	client.InsecureSkipVerify = true
	client.VerifyConnection = func(s tls.ConnectionState) error {
		if err := verifyChain(s.PeerCertificates, roots, now); err != nil {
			return err
		}
		if users != nil {
			return users(s)
		}
		return nil
	}
	return &security{server: server, client: client}
}

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, now func() time.Time) error {
	if len(chain) == 0 {
		return errors.New("tls: the other side has no certificate")
	}
	o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
	if now != nil {
		o.CurrentTime = now()
	}
	for _, c := range chain[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(o)
	return err
}

// securityFromSecret makes each node its own leaf certificate under an authority that all holders of the secret can
// derive. Whoever has the secret is trusted as a member.
func securityFromSecret(secret []byte, id string) (*security, error) {
	if len(secret) < minSecretBytes {
		return nil, fmt.Errorf("%w: Secret has %d bytes; use at least %d random ones", ErrBadOptions, len(secret), minSecretBytes)
	}
	seed, err := hkdf.Key(sha256.New, secret, nil, "chubby cell authority 1", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("deriving the cell's authority: %w", err)
	}
	authority := ed25519.NewKeyFromSeed(seed)
	// The bubble of testing/synctest starts in 2000, and clocks of real machines may be wrong: the secret has no end.
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "chubby cell"},
		NotBefore:             time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, authority.Public(), authority)
	if err != nil {
		return nil, fmt.Errorf("making the cell's authority: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the cell's authority: %w", err)
	}
	leaf, err := newLeaf(root, authority, id)
	if err != nil {
		return nil, fmt.Errorf("making the node's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return newSecurityFrom(&tls.Config{Certificates: []tls.Certificate{leaf}, RootCAs: pool, ClientCAs: pool}), nil
}

func newLeaf(root *x509.Certificate, authority ed25519.PrivateKey, id string) (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial := make([]byte, 16)
	if _, err := rand.Read(serial); err != nil {
		return tls.Certificate{}, err
	}
	serial[0] = serial[0]&0x7f | 0x40 // positive and of full length
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial),
		Subject:      pkix.Name{CommonName: "chubby node"},
		NotBefore:    root.NotBefore,
		NotAfter:     root.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if id != "" {
		template.URIs = []*url.URL{{Scheme: nodeURIScheme, Opaque: hex.EncodeToString([]byte(id))}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root, public, authority)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
}

// handshake secures conn, which must have a deadline, and gives the certificate by which the other side proved who it is.
// A nil security leaves conn as it is, and there is none.
func (s *security) handshake(conn net.Conn, dialled bool) (net.Conn, *x509.Certificate, error) {
	if s == nil {
		return conn, nil, nil
	}
	var c *tls.Conn
	if dialled {
		c = tls.Client(conn, s.client)
	} else {
		c = tls.Server(conn, s.server)
	}
	if err := c.Handshake(); err != nil {
		return nil, nil, err
	}
	return c, c.ConnectionState().PeerCertificates[0], nil
}

// certificateNames gives what c says about its holder: DNS names, addresses, URIs, and the node id of a leaf made from
// the secret.
func certificateNames(c *x509.Certificate) []string {
	if c == nil {
		return nil
	}
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range c.URIs {
		if u.Scheme == nodeURIScheme {
			if id, err := hex.DecodeString(u.Opaque); err == nil {
				names = append(names, string(id))
				continue
			}
		}
		names = append(names, u.String())
	}
	return names
}

// fitsNode reports whether c may be a node's. Nodes are servers, to each other and to clients; a certificate that is good
// for clients only makes nobody a node, whatever names it has.
func fitsNode(c *x509.Certificate) bool {
	if c == nil || len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// checkExposure returns ErrInsecureListen if an address reaches beyond this machine although nothing protects the
// streams. addrs maps the name of an option to its address; empty addresses are skipped. Names other than localhost
// are not resolved: what they mean may change.
func checkExposure(addrs map[string]string, secured, insecure bool) error {
	if secured || insecure {
		return nil
	}
	var faults []error
	for _, field := range slices.Sorted(maps.Keys(addrs)) {
		if addr := addrs[field]; addr != "" && !isLoopback(addr) {
			faults = append(faults, fmt.Errorf("%s %q: %w: set TLS or Secret, use a loopback address, or set Insecure if the network is trusted",
				field, addr, ErrInsecureListen))
		}
	}
	return errors.Join(faults...)
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	host, _, _ = strings.Cut(host, "%") // zone of an IPv6 address
	if strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// authorize keeps the streams between nodes to the members of the latest configuration, and to those that the cell leader
// named when this node asked for them, because its own log may be too old to know them. A certificate of the cell's
// authority makes nobody a member, so it gives the calls of dialled clients, which have streams of their own, and no more.
func (n *Node) authorize(from peerInfo, p purpose) error {
	if p == wire.Found {
		return nil
	}
	if n.raft.Load() == nil {
		return errNotFounded // raft is starting; the dialler tries again
	}
	for _, s := range n.configuration().Servers {
		if s.ID == from.Server {
			return nil
		}
	}
	if n.registrar.trusted(from.Server).ID != "" {
		return nil
	}
	n.registrar.poke()
	return fmt.Errorf("%w: %s is no member of the cell", ErrPermission, from.Server)
}
