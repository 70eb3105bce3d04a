package chubby_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/internal/lincheck"
)

// TestHistoryOfLocks has callers on all nodes take locks, write files under their sequencers, old ones too, and look at
// both, under the faults of TestSchedules, and checks that what they saw can be put in one order. A holder counts as such
// for as long as its context is seen alive; so two at a time would not fit, and neither would an answer that denies one.
func TestHistoryOfLocks(t *testing.T) {
	seeds, length := []uint64{1, 2}, 30*time.Second
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
			synctest.Test(t, func(t *testing.T) { h.run(t, length, 0) })
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

// obstacle shows the last calls that could be put in order, and what did not fit after them.
func (h *lockHistory) obstacle(info porcupine.LinearizationInfo) string {
	show := func(list []porcupine.Operation) (out string) {
		for _, o := range list {
			out += fmt.Sprintf("%v to %v: %+v -> %+v\n", time.Duration(o.Call), time.Duration(o.Return), o.Input, o.Output)
		}
		return out
	}
	for _, partial := range info.PartialLinearizationsOperations() {
		var best []porcupine.Operation
		for _, l := range partial {
			if len(l) > len(best) {
				best = l
			}
		}
		if len(best) == 0 {
			continue
		}
		placed := make(map[int]bool)
		for _, o := range best {
			placed[o.ClientId] = true
		}
		var rest []porcupine.Operation
		for _, o := range h.ops {
			if !placed[o.ClientId] && o.Input.(lincheck.LockCall).Path == best[0].Input.(lincheck.LockCall).Path {
				rest = append(rest, o)
			}
		}
		if len(rest) == 0 {
			continue
		}
		slices.SortFunc(rest, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
		return show(best[max(0, len(best)-16):]) + "and then\n" + show(rest[:min(len(rest), 16)])
	}
	return ""
}

// lockHistory records what callers of one cell see.
type lockHistory struct {
	schedule
	start  time.Time
	ops    []porcupine.Operation
	owners uint32
	seen   []chubby.Sequencer // the newest that callers were given

	dialled []*chubby.Client // who call beside the nodes, as if they were further ones
}

// client is the way to the cell of the callers at a node, or of those at a dialled Client.
func (h *lockHistory) client(i int) *chubby.Client {
	if i < h.nodes {
		return h.cell.Node(i).Client
	}
	return h.dialled[i-h.nodes]
}

func (h *lockHistory) run(t *testing.T, length time.Duration, dialled int) {
	rng := rand.New(rand.NewPCG(h.seed, 1))
	h.open(t, rng)
	for range dialled {
		h.dialled = append(h.dialled, h.cell.Dial())
		h.excused = append(h.excused, time.Time{}) // whose clock never stands
	}
	h.start = time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	heal := h.inject(ctx, rng)
	var callers sync.WaitGroup
	for i := range h.nodes + dialled {
		for range 2 {
			rng := rand.New(rand.NewPCG(rng.Uint64(), 0))
			callers.Go(func() {
				var s *chubby.Session
				for n := 0; ctx.Err() == nil; n++ {
					if s == nil || s.Err() != nil {
						// Of its own: a lock call of the default session is repeated in a new one when that ends, and may have
						// held the lock in the old one, unseen.
						s, _ = h.client(i).NewSession(ctx, chubby.SessionOptions{}) // nil while the node is down
					}
					if s != nil {
						h.call(ctx, rng, i, s, fmt.Sprintf("%d.%d", rng.Uint32(), n))
					}
					pause(ctx, upTo(rng, 300*time.Millisecond))
				}
			})
		}
	}
	heal()
	callers.Wait()
}

// now is the present in the history's time.
func (h *lockHistory) now() int64 { return int64(time.Since(h.start)) }

// never is after everything.
const never = int64(1000 * time.Hour)

// add puts one call into the history.
func (h *lockHistory) add(call, ret int64, c lincheck.LockCall, a lincheck.LockAnswer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: len(h.ops), Input: c, Call: call, Output: a, Return: ret})
}

// call makes one random call, or takes a lock and does several under it.
func (h *lockHistory) call(ctx context.Context, rng *rand.Rand, node int, s *chubby.Session, unique string) {
	n, path := h.client(node), h.paths[rng.IntN(len(h.paths))]
	ctx, cancel := context.WithTimeout(ctx, upTo(rng, 4*time.Second))
	defer cancel()
	start := h.now()
	switch rng.IntN(8) {
	case 0:
		e, err := n.Get(ctx, path)
		if err == nil || errors.Is(err, chubby.ErrNotFound) {
			h.add(start, h.now(), lincheck.LockCall{Path: path, Op: lincheck.Read}, lincheck.LockAnswer{Value: string(e.Data)})
		}
	case 1:
		if i, err := n.LockInfo(ctx, path); err == nil {
			h.add(start, h.now(), lincheck.LockCall{Path: path, Op: lincheck.Inspect}, lincheck.LockAnswer{Shared: i.Mode == chubby.Shared, Generation: i.Generation})
		}
	case 2:
		if s, ok := h.former(rng); ok {
			h.check(ctx, n, s)
		}
	case 3:
		if s, ok := h.former(rng); ok {
			h.put(ctx, n, s, unique)
		}
	default:
		h.hold(ctx, rng, node, n, s, path, unique)
	}
}

// former gives a sequencer of late, held or not.
func (h *lockHistory) former(rng *rand.Rand) (chubby.Sequencer, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.seen) == 0 {
		return chubby.Sequencer{}, false
	}
	return h.seen[rng.IntN(len(h.seen))], true
}

func (h *lockHistory) check(ctx context.Context, n *chubby.Client, s chubby.Sequencer) {
	start := h.now()
	err := n.CheckSequencer(ctx, s)
	if err == nil || errors.Is(err, chubby.ErrStaleSequencer) {
		h.add(start, h.now(), lincheck.LockCall{Path: s.Path, Op: lincheck.Check, Generation: s.Generation}, lincheck.LockAnswer{Refused: err != nil})
	}
}

func (h *lockHistory) put(ctx context.Context, n *chubby.Client, s chubby.Sequencer, value string) {
	start := h.now()
	_, err := n.Set(ctx, s.Path, []byte(value), chubby.IfHolds(s))
	end, a := h.now(), lincheck.LockAnswer{}
	switch {
	case err == nil:
	case errors.Is(err, chubby.ErrUncertain):
		end, a.Unknown = never, true
	case errors.Is(err, chubby.ErrStaleSequencer):
		a.Refused = true
	default:
		return // certainly not done
	}
	h.add(start, end, lincheck.LockCall{Path: s.Path, Op: lincheck.FencedPut, Generation: s.Generation, New: value}, a)
}

// hold takes a lock and acts under it. What it records of the holding is what a holder may rely on: that the lock was held
// whenever it saw its context alive.
func (h *lockHistory) hold(ctx context.Context, rng *rand.Rand, node int, n *chubby.Client, s *chubby.Session, path, unique string) {
	c := lincheck.LockCall{Path: path, Op: lincheck.Acquire, Shared: rng.IntN(3) == 0}
	lock := s.Lock
	if c.Shared {
		lock = s.RLock
	}
	start := h.now()
	l, err := lock(ctx, path)
	got := h.now()
	if err != nil {
		c.Op = lincheck.GiveUp
		h.add(start, start+1, c, lincheck.LockAnswer{})
		return
	}
	h.granted(l, node)
	alive := got // when the lock was certainly held, last
	look := func() bool {
		ok := l.Context().Err() == nil && !h.excuses(node)
		if ok {
			alive = h.now()
		}
		return ok
	}
	h.mu.Lock()
	h.owners++
	c.Owner, c.Generation = h.owners, l.Sequencer().Generation
	if h.seen = append(h.seen, l.Sequencer()); len(h.seen) > 10 {
		h.seen = h.seen[1:]
	}
	h.mu.Unlock()
	h.add(start, got, c, lincheck.LockAnswer{Generation: c.Generation, Shaky: !look()})
	for i := range rng.IntN(5) {
		work, cancel := context.WithTimeout(context.Background(), upTo(rng, 3*time.Second))
		if rng.IntN(3) == 0 {
			h.check(work, n, l.Sequencer())
		} else {
			h.put(work, n, l.Sequencer(), fmt.Sprint(unique, ".", i))
		}
		cancel()
		pause(ctx, upTo(rng, h.lease/2))
		if look(); l.Err() != nil {
			break
		}
	}
	lose := lincheck.LockCall{Path: path, Op: lincheck.Lose, Owner: c.Owner}
	start = h.now()
	if !look() {
		h.add(alive+1, alive+2, lose, lincheck.LockAnswer{})
	}
	patience, cancel := context.WithTimeout(context.Background(), upTo(rng, 5*time.Second))
	defer cancel()
	err = l.Unlock(patience)
	c.Op = lincheck.Release
	switch {
	case err == nil:
		h.add(start, h.now(), c, lincheck.LockAnswer{})
	case errors.Is(err, chubby.ErrNotHeld) && l.Err() != nil && errors.Is(l.Err(), chubby.ErrNotHeld):
		h.add(start, h.now(), c, lincheck.LockAnswer{Refused: true})
	default:
		// It ends unseen. A clock that could be trusted had it alive until the call.
		h.add(alive+1, alive+2, lose, lincheck.LockAnswer{})
	}
}
