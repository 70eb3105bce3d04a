package chubby_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby/chubbytest"
	"github.com/chubbygo/chubby/internal/lincheck"
)

// TestHistoryDialled is TestHistory with most callers behind dialled Clients, while members crash, stand still and are cut
// off from each other and from the clients.
func TestHistoryDialled(t *testing.T) {
	seeds, length := []uint64{1}, 30*time.Second
	if *long {
		seeds, length = nil, 5*time.Minute
		for s := range uint64(100) {
			seeds = append(seeds, s+100)
		}
	}
	if *histSeed != 0 {
		seeds = []uint64{*histSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := &history{}
			synctest.Test(t, func(t *testing.T) { runHistory(t, h, seed, length, 4) })
			switch r, _ := porcupine.CheckOperationsVerbose(lincheck.Files(), h.ops, time.Minute); r {
			case porcupine.Illegal:
				t.Errorf("seed %d: %d calls cannot be put in one order", seed, len(h.ops))
			case porcupine.Unknown:
				t.Errorf("seed %d: undecided after a minute; shorten the history", seed)
			default:
				t.Logf("%d calls", len(h.ops))
			}
		})
	}
}

// TestHistoryOfLocksDialled is TestHistoryOfLocks with callers behind dialled Clients too.
func TestHistoryOfLocksDialled(t *testing.T) {
	seeds, length := []uint64{1}, 20*time.Second
	if *long {
		seeds, length = nil, 90*time.Second
		for s := range uint64(200) {
			seeds = append(seeds, s+100)
		}
	}
	if *histSeed != 0 {
		seeds = []uint64{*histSeed}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := &lockHistory{schedule: schedule{seed: seed}}
			synctest.Test(t, func(t *testing.T) { h.run(t, length, 3) })
			switch r, info := porcupine.CheckOperationsVerbose(lincheck.Locks(), h.ops, time.Minute); r {
			case porcupine.Illegal:
				t.Errorf("seed %d: %d calls cannot be put in one order; it stops at\n%s", seed, len(h.ops), h.obstacle(info))
			case porcupine.Unknown:
				t.Errorf("seed %d: undecided after a minute; shorten the history", seed)
			default:
				t.Logf("%d calls; %s", len(h.ops), h.tally)
			}
		})
	}
}

// clientFaults keeps dialled clients from members.
func clientFaults(ctx context.Context, cell *chubbytest.Cell, rng *rand.Rand) {
	for ctx.Err() == nil {
		pause(ctx, upTo(rng, 3*time.Second))
		cell.CutClients(rng.IntN(3))
		pause(ctx, upTo(rng, 2*time.Second))
	}
}
