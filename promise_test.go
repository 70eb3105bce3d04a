package chubby

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// slowFSM keeps raft's FSM goroutine at its first entry until it is let go.
type slowFSM struct{ began, goOn chan struct{} }

func (f slowFSM) Apply(*raft.Log) any {
	select {
	case f.began <- struct{}{}:
	default:
	}
	<-f.goOn
	return nil
}
func (slowFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (slowFSM) Restore(io.ReadCloser) error         { return nil }

// Entries that are committed and wait for raft's FSM goroutine when raft is shut down are answered by nobody. Without
// promise, those who wait for them do so for ever.
func TestForgottenFutures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fsm := slowFSM{make(chan struct{}, 1), make(chan struct{})}
		c := raft.DefaultConfig()
		c.LocalID, c.LogOutput = "a", io.Discard
		store := raft.NewInmemStore()
		_, transport := raft.NewInmemTransport("a")
		r, err := raft.NewRaft(c, fsm, store, store, raft.NewInmemSnapshotStore(), transport)
		if err != nil {
			t.Fatal(err)
		}
		list := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}}}
		if err := r.BootstrapCluster(list).Error(); err != nil {
			t.Fatal(err)
		}
		for !<-r.LeaderCh() {
		}
		n := &Node{raftEnded: make(chan struct{})}
		answers := make(chan error)
		for range 50 {
			go func() { answers <- n.promise(r.ApplyLog(raft.Log{Data: []byte("x")}, 0)) }()
			synctest.Wait() // each is committed and queued by itself
		}
		<-fsm.began
		shut := r.Shutdown()
		close(fsm.goOn)
		if err := shut.Error(); err != nil {
			t.Fatal(err)
		}
		close(n.raftEnded)
		forgotten := 0
		for range 50 {
			if err := <-answers; errors.Is(err, raft.ErrRaftShutdown) {
				forgotten++
			} else if err != nil {
				t.Error(err)
			}
		}
		if forgotten == 0 {
			t.Error("raft answered all; promise is not needed any more")
		}
	})
}
