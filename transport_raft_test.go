package chubby

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/memnet"
)

// A cell elects, applies, and survives the isolation of its leader.
func TestCellOverTransport(t *testing.T) {
	run := func(t *testing.T, net *memnet.Net) {
		c := newRaftCell(t, net, 3)
		defer c.close()
		l := c.leader()
		c.apply(l, "one")
		c.settle("one")
		if net == nil {
			return
		}
		net.Partition([]string{l.id})
		l2 := c.leader(c.others(l)...)
		c.apply(l2, "two")
		if l.r.State() == raft.Leader {
			t.Errorf("isolated leader did not step down")
		}
		time.Sleep(15 * time.Second)
		net.Heal()
		healed := time.Now()
		c.settle("one\ntwo")
		if d := time.Since(healed); d > 2*time.Second {
			t.Errorf("follower caught up %v after the partition, want at most 2 s", d)
		}
	}
	t.Run("tcp", func(t *testing.T) { run(t, nil) })
	t.Run("mem", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { run(t, memnet.New()) })
	})
}
