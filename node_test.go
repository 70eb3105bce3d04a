package chubby_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

// freePeers gives n addresses on the loopback that were free a moment ago.
func freePeers(t *testing.T, n int) map[string]string {
	t.Helper()
	peers := make(map[string]string)
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		peers[fmt.Sprint("n", i)] = l.Addr().String()
	}
	return peers
}

// openReal opens nodes on TCP and disk and waits until they are ready.
func openReal(t *testing.T, peers map[string]string, dir string, change func(*chubby.Options)) map[string]*chubby.Node {
	t.Helper()
	nodes := make(map[string]*chubby.Node)
	for id, addr := range peers {
		o := chubby.Options{ID: id, Dir: filepath.Join(dir, id), Listen: addr, Peers: peers}
		if change != nil {
			change(&o)
		}
		n, err := chubby.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		nodes[id] = n
	}
	for _, n := range nodes {
		if err := n.WaitReady(within(t, 30*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return nodes
}

// A cell on real sockets and disks leaves nothing behind when it is closed, and comes back with everything.
func TestCloseLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("real sockets and disks")
	}
	dir, peers := t.TempDir(), freePeers(t, 3)
	base, baseFiles := runtime.NumGoroutine(), openFiles(t)
	for round := range 3 {
		nodes := openReal(t, peers, dir, nil)
		if round > 0 {
			wantGet(t, nodes["n1"], "/x", fmt.Sprint(round-1))
		}
		mustSet(t, nodes["n2"], "/x", fmt.Sprint(round))
		l := mustLock(t, nodes["n0"], "/lock")
		var wg sync.WaitGroup
		for _, n := range nodes {
			for range 3 {
				wg.Go(func() { n.Close() })
			}
		}
		wg.Wait()
		if !errors.Is(l.Err(), chubby.ErrClosed) {
			t.Errorf("lock of a closed node: %v", l.Err())
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > base || openFiles(t) > baseFiles {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, then %d; %d files, then %d\n%s", base, runtime.NumGoroutine(), baseFiles, openFiles(t), buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// openFiles counts this process's descriptors, where that can be known.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

func TestSecret(t *testing.T) {
	if testing.Short() {
		t.Skip("real sockets")
	}
	secret := make([]byte, 32)
	rand.Read(secret)
	nodes := openReal(t, freePeers(t, 3), t.TempDir(), func(o *chubby.Options) { o.Secret, o.Dir = secret, "" })
	mustSet(t, nodes["n0"], "/x", "1")
	wantGet(t, nodes["n2"], "/x", "1")
}

func TestTLS(t *testing.T) {
	if testing.Short() {
		t.Skip("real sockets")
	}
	ca, pool := newCA(t)
	nodes := openReal(t, freePeers(t, 3), t.TempDir(), func(o *chubby.Options) {
		o.Dir = ""
		o.TLS = &tls.Config{Certificates: []tls.Certificate{ca.issue(t, o.ID)}, RootCAs: pool}
	})
	mustSet(t, nodes["n0"], "/x", "1")
	wantGet(t, nodes["n2"], "/x", "1")
}

// A cell inside a bubble talks TLS too: its certificates are valid in the year 2000.
func TestSecretInBubble(t *testing.T) {
	secret := []byte(strings.Repeat("0123456789abcdef", 2))
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		wantGet(t, cell.Node(1), "/x", "1")
	}, func(o *chubby.Options) { o.Secret = secret })
}

type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) (*testCA, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &testCA{cert, key}, pool
}

// issue makes a certificate for a node, good for servers and clients unless usage says otherwise.
func (ca *testCA) issue(t *testing.T, id string, usage ...x509.ExtKeyUsage) tls.Certificate {
	t.Helper()
	if usage == nil {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), DNSNames: []string{id}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestDirectoryInUse(t *testing.T) {
	dir := t.TempDir()
	first, err := chubby.Open(chubby.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mustSet(t, first, "/x", "1")
	if _, err := chubby.Open(chubby.Options{Dir: dir}); !errors.Is(err, chubby.ErrInUse) || !strings.Contains(err.Error(), dir) {
		t.Errorf("second node in the directory: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := chubby.Open(chubby.Options{Dir: dir, ID: "other"}); !errors.Is(err, chubby.ErrWrongCell) {
		t.Errorf("another ID: %v", err)
	}
	if _, err := chubby.Open(chubby.Options{Dir: dir, Cell: "other"}); !errors.Is(err, chubby.ErrWrongCell) {
		t.Errorf("another cell: %v", err)
	}
	again, err := chubby.Open(chubby.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	wantGet(t, again, "/x", "1")
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// Two nodes and cells in one process do not know of each other.
func TestSeveralCells(t *testing.T) {
	a, b := openOne(t), openOne(t)
	mustSet(t, a, "/x", "a")
	if _, err := b.Get(t.Context(), "/x"); !errors.Is(err, chubby.ErrNotFound) {
		t.Errorf("the other cell has it: %v", err)
	}
}

// The cell is founded once all Peers were up, in whatever order they come, and a restart in between changes nothing.
func TestFounding(t *testing.T) {
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
				for i := range 3 {
					cell.Stop(i)
				}
				for k, i := range order {
					cell.Restart(i)
					time.Sleep(10 * time.Second)
					err := cell.Node(i).WaitReady(within(t, time.Second))
					if k < 2 {
						if !errors.Is(err, chubby.ErrNoLeader) || !strings.Contains(err.Error(), "founded") {
							t.Errorf("before all were up: %v", err)
						}
						cell.Crash(i)
						cell.Restart(i)
					}
				}
				for i := range 3 {
					if err := cell.Node(i).WaitReady(within(t, 30*time.Second)); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}

// Crash nodes at every moment of founding: in the end there is one cell.
func TestFoundingCrashes(t *testing.T) {
	for step := range 25 {
		inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
			time.Sleep(time.Duration(step) * 20 * time.Microsecond)
			cell.Crash(step % 3)
			cell.Restart(step % 3)
			for i := range 3 {
				if err := cell.Node(i).WaitReady(within(t, 30*time.Second)); err != nil {
					t.Fatalf("step %d: %v", step, err)
				}
			}
			mustSet(t, cell.Node(0), "/x", "1")
			epoch := cell.Node(0).Status().Epoch
			for i := range 3 {
				if got := cell.Node(i).Status().Epoch; got != epoch {
					t.Errorf("step %d: epochs %d and %d", step, epoch, got)
				}
			}
		})
	}
}

// A node of a founded cell whose disk was wiped is another server, and says what to do.
func TestWipedDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("real sockets and disks")
	}
	dir, peers := t.TempDir(), freePeers(t, 3)
	nodes := openReal(t, peers, dir, nil)
	mustSet(t, nodes["n1"], "/x", "1")
	nodes["n0"].Close()
	if err := os.RemoveAll(filepath.Join(dir, "n0")); err != nil {
		t.Fatal(err)
	}
	n, err := chubby.Open(chubby.Options{ID: "n0", Dir: filepath.Join(dir, "n0"), Listen: peers["n0"], Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	err = n.WaitReady(within(t, 2*time.Second))
	if !errors.Is(err, chubby.ErrWrongCell) || !strings.Contains(err.Error(), "RemoveMember") {
		t.Errorf("WaitReady: %v", err)
	}
	mustSet(t, nodes["n2"], "/x", "2")
}

func TestPeersDiffer(t *testing.T) {
	peers := freePeers(t, 3)
	a, err := chubby.Open(chubby.Options{ID: "n0", Listen: peers["n0"], Peers: map[string]string{"n0": peers["n0"], "n1": peers["n1"]}, StartAttempts: 4, StartInterval: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := chubby.Open(chubby.Options{ID: "n1", Listen: peers["n1"], Peers: peers})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := a.WaitReady(within(t, time.Minute)); !errors.Is(err, chubby.ErrBadOptions) || !strings.Contains(err.Error(), "Peers must be equal") {
		t.Errorf("WaitReady: %v", err)
	}
}

// WaitReady tries as often as StartAttempts says, each time twice as long as before, with jitter, up to 5 s.
func TestStartAttempts(t *testing.T) {
	for _, tt := range []struct {
		attempts int
		interval time.Duration
		sum      time.Duration // without jitter, which takes up to a quarter
	}{
		{1, 300 * time.Millisecond, 300 * time.Millisecond},
		{4, 100 * time.Millisecond, 1500 * time.Millisecond},
		{6, 2 * time.Second, 26 * time.Second},                 // 2, 4, 5, 5, 5, 5
		{13, 200 * time.Millisecond, 46200 * time.Millisecond}, // the seed's: 0.2, 0.4, 0.8, 1.6, 3.2 and eight times 5
	} {
		t.Run(fmt.Sprint(tt.attempts, " from ", tt.interval), func(t *testing.T) {
			inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
				cell.Partition([]int{0}, []int{1}, []int{2})
				var took []time.Duration
				for range 3 {
					start := time.Now()
					err := cell.Node(0).WaitReady(context.Background())
					d := time.Since(start)
					if !errors.Is(err, chubby.ErrNoLeader) || d < tt.sum*3/4 || d > tt.sum+100*time.Millisecond {
						t.Errorf("WaitReady gave up after %v, want %v: %v", d, tt.sum, err)
					}
					took = append(took, d)
				}
				if took[0] == took[1] && took[1] == took[2] {
					t.Errorf("always %v: no jitter", took[0])
				}
				cell.Heal()
			}, func(o *chubby.Options) { o.StartAttempts, o.StartInterval = tt.attempts, tt.interval })
		})
	}
}

// A fault of the disk stops the node and tells why; the process, the other nodes and the cell go on.
func TestStorageFaultStopsNode(t *testing.T) {
	broken := errors.New("the disk is broken")
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		mustSet(t, cell.Node(0), "/x", "1")
		victim := cell.Leader()
		i := cell.Index(victim)
		cell.Break(i, broken)
		mustSet(t, cell.Node(others(3, i)[0]), "/x", "2")
		select {
		case <-victim.Done():
		case <-time.After(time.Minute):
			t.Fatal("the node goes on")
		}
		if !errors.Is(victim.Err(), broken) {
			t.Errorf("Err = %v", victim.Err())
		}
		if _, err := victim.Get(t.Context(), "/x"); !errors.Is(err, chubby.ErrClosed) || !errors.Is(err, broken) {
			t.Errorf("Get on it: %v", err)
		}
		if s := victim.Status(); s.Role != chubby.RoleStopped {
			t.Errorf("Status %+v", s)
		}
		cell.Restart(i)
		wantGet(t, cell.Node(i), "/x", "2")
	})
}

func TestStatus(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		l := mustLock(t, cell.Node(0), "/l")
		mustSet(t, cell.Node(1), "/x", "1")
		leader := cell.Leader()
		synctest.Wait()
		s := leader.Status()
		if s.Role != chubby.RoleLeader || s.LeaderID != s.ID || s.Locks != 1 || s.Sessions != 2 || s.Entries != 1 || !s.Ready || s.Cell != "test" || s.Epoch == 0 || len(s.Members) != 3 {
			t.Errorf("Status of the leader: %+v", s)
		}
		mustUnlock(t, l)
		for _, n := range cell.Nodes() {
			if err := n.Snapshot(within(t, time.Minute)); err != nil {
				t.Error(err)
			}
			if s := n.Status(); s.SnapshotBytes == 0 || s.LeaderID != leader.Status().ID {
				t.Errorf("Status after Snapshot: %+v", s)
			}
		}
	})
}
