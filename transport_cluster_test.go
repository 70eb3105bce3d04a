package chubby

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/memnet"
)

// listFSM remembers the commands that it applied.
type listFSM struct {
	mu   sync.Mutex
	list [][]byte
}

func (f *listFSM) Apply(l *raft.Log) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, bytes.Clone(l.Data))
	return nil
}

func (f *listFSM) Snapshot() (raft.FSMSnapshot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return listSnapshot(bytes.Join(f.list, []byte{'\n'})), nil
}

func (f *listFSM) Restore(r io.ReadCloser) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = bytes.Split(b, []byte{'\n'})
	return r.Close()
}

func (f *listFSM) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(bytes.Join(f.list, []byte{'\n'}))
}

type listSnapshot []byte

func (s listSnapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := sink.Write(s); err != nil {
		_ = sink.Cancel()
		return err
	}
	return sink.Close()
}

func (listSnapshot) Release() {}

// faultyStore fails or delays writes when told to.
type faultyStore struct {
	*raft.InmemStore
	mu     sync.Mutex
	before func() error // called before each StoreLogs; nil = nothing
}

func (s *faultyStore) set(f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = f
}

func (s *faultyStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *faultyStore) StoreLogs(l []*raft.Log) error {
	s.mu.Lock()
	f := s.before
	s.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return err
		}
	}
	return s.InmemStore.StoreLogs(l)
}

// raftNode is one server of a test cell: plain raft on our transport.
type raftNode struct {
	id    string
	t     *transport
	r     *raft.Raft
	fsm   *listFSM
	store *faultyStore
	gate  *hook.Gate
}

type raftCell struct {
	tb    testing.TB
	net   *memnet.Net // nil: TCP
	nodes []*raftNode
}

type cellOption func(*transportConfig, *raft.Config)

const testHeartbeat = 200 * time.Millisecond

// newRaftCell starts a cell of n servers. Over TCP with net == nil.
func newRaftCell(tb testing.TB, net *memnet.Net, n int, opts ...cellOption) *raftCell {
	tb.Helper()
	c := &raftCell{tb: tb, net: net}
	var conf raft.Configuration
	configs := make([]*raft.Config, n)
	for i := range n {
		id := fmt.Sprintf("n%d", i+1)
		x := &raftNode{id: id, fsm: &listFSM{}, store: &faultyStore{InmemStore: raft.NewInmemStore()}, gate: &hook.Gate{}}
		rc := raft.DefaultConfig()
		rc.LocalID = raft.ServerID(id + ".a")
		rc.HeartbeatTimeout, rc.ElectionTimeout, rc.LeaderLeaseTimeout = testHeartbeat, testHeartbeat, 150*time.Millisecond
		rc.CommitTimeout = 10 * time.Millisecond
		rc.Logger = hclog.NewNullLogger()
		rc.NoLegacyTelemetry = true
		configs[i] = rc
		tc := testConfig(net, id)
		tc.Gate = x.gate
		for _, o := range opts {
			o(&tc, rc)
		}
		t, err := newTransport(tc)
		if err != nil {
			tb.Fatal(err)
		}
		t.setCell([16]byte{1})
		x.t = t
		c.nodes = append(c.nodes, x)
		conf.Servers = append(conf.Servers, raft.Server{ID: rc.LocalID, Address: raft.ServerAddress(t.addr())})
	}
	for i, x := range c.nodes {
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(configs[i], x.store, x.store, snaps, x.t, conf); err != nil {
			tb.Fatal(err)
		}
		r, err := raft.NewRaft(configs[i], x.fsm, x.store, x.store, snaps, x.t)
		if err != nil {
			tb.Fatal(err)
		}
		x.r = r
		x.t.attach(r)
		x.t.setPeers(conf.Servers)
	}
	return c
}

// testConfig is the configuration of node id, incarnation "a", with a short heartbeat.
func testConfig(net *memnet.Net, id string) transportConfig {
	c := transportConfig{
		Server: raft.ServerID(id + ".a"), ID: id,
		Network: tcpNetwork{}, Listen: "127.0.0.1:0",
		Heartbeat: testHeartbeat, Election: testHeartbeat, Level: 1,
		Logger: slog.New(slog.DiscardHandler),
	}
	if net != nil {
		c.Network, c.Listen = net.Host(id), id+":0"
	}
	return c
}

// close shuts raft down first, as raft itself would, then the transports.
func (c *raftCell) close() {
	c.tb.Helper()
	for _, x := range c.nodes {
		x.gate.Open()
	}
	for _, x := range c.nodes {
		if err := x.r.Shutdown().Error(); err != nil {
			c.tb.Error(err)
		}
	}
	for _, x := range c.nodes {
		if err := x.t.Close(); err != nil {
			c.tb.Error(err)
		}
	}
}

// leader waits for a leader among the given nodes; without any, among all.
func (c *raftCell) leader(among ...*raftNode) *raftNode {
	c.tb.Helper()
	if len(among) == 0 {
		among = c.nodes
	}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		for _, x := range among {
			if x.r.State() == raft.Leader {
				return x
			}
		}
	}
	c.tb.Fatal("no leader")
	return nil
}

func (c *raftCell) others(l *raftNode) []*raftNode {
	var list []*raftNode
	for _, x := range c.nodes {
		if x != l {
			list = append(list, x)
		}
	}
	return list
}

func (c *raftCell) apply(x *raftNode, text string) {
	c.tb.Helper()
	if err := x.r.Apply([]byte(text), 5*time.Second).Error(); err != nil {
		c.tb.Fatalf("apply %s: %v", text, err)
	}
}

// settle waits until all nodes applied the same.
func (c *raftCell) settle(want string) {
	c.tb.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		equal := true
		for _, x := range c.nodes {
			equal = equal && x.fsm.text() == want
		}
		if equal {
			return
		}
	}
	for _, x := range c.nodes {
		c.tb.Errorf("%s applied %d bytes %.60q, want %d bytes %.60q", x.id, len(x.fsm.text()), x.fsm.text(), len(want), want)
	}
	c.tb.FailNow()
}
