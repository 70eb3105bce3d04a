package chubby

import (
	"context"
	"sync"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/lease"
	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// leases is the cell leader's side of sessions: it counts their leases, answers KeepAlives, and proposes the expiry of
// sessions that were silent for too long and the end of lock-delays and of holdings that reached their MaxHold. What it
// decides becomes true through the log, and only in the leadership's own term.
//
// Deciding an expiry and answering a KeepAlive exclude each other: both happen under mu, a session is marked as ending
// before its expiry is offered, and nothing is marked while a KeepAlive is between receipt and answer. So a client is
// never told that its session lives by a leader that has begun to end it.
type leases struct {
	lead   *leadership
	ticked chan struct{} // cap 1: mu.now has moved

	mu struct {
		sync.Mutex
		now      time.Duration              // Clock.Mono at the last tick
		sessions lease.Queue[uint64]        // deadlines, Clock.Mono
		ending   map[uint64]bool            // expiry offered, outcome unknown
		inbox    int                        // KeepAlives received and not yet answered
		delays   lease.Queue[state.DelayID] // when each lock-delay may end
		holds    lease.Queue[state.HoldID]  // when each MaxHold is over; only of those acknowledged in this term
	}
}

const (
	leaseTick    = 50 * time.Millisecond
	decisionsMax = 1000 // of one kind at one tick
)

// cellLease is how long the cell keeps a session that it heard from, or a holding with a MaxHold of l, counted from
// receipt. It is longer than what the client counts from sending, by more than two clocks can differ that are each within
// 1 %.
func cellLease(l time.Duration) time.Duration {
	return l + l/100 + max(l/10, 200*time.Millisecond)
}

func newLeases(l *leadership) *leases {
	s := &leases{lead: l, ticked: make(chan struct{}, 1)}
	s.mu.ending = make(map[uint64]bool)
	return s
}

// start gives every session and every delay its full time from now: the last leader may have promised what this one
// never saw (Chubby §2.9). From here on the fsm reports changes.
func (s *leases) start() {
	n := s.lead.node
	n.leases.Store(s)
	root := n.fsm.root.Load()
	now := n.clock.Mono()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.now = now
	for v := range root.Sessions() {
		s.mu.sessions.Set(v.ID, now+cellLease(millis(v.Lease)))
	}
	s.noteDelays(root, now)
}

// happened is called by the fsm after each batch while this node leads.
func (s *leases) happened(root *state.State, events []state.Event) {
	now := s.lead.node.clock.Mono()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range events {
		switch e.Kind {
		case state.SessionOpened:
			if v, ok := root.Session(e.Session); ok {
				s.mu.sessions.Set(e.Session, now+cellLease(millis(v.Lease)))
			}
		case state.SessionEnded:
			s.mu.sessions.Remove(e.Session)
		case state.LockReleased:
			s.mu.holds.Remove(state.HoldID{Path: e.Path, Generation: e.Generation, Session: e.Session, Seq: e.Seq})
		case state.LockDelayed:
			s.noteDelays(root, now)
		}
	}
}

// noteDelays starts the clock of delays that are new. Called with mu held.
func (s *leases) noteDelays(root *state.State, now time.Duration) {
	for d := range root.Delays() {
		if _, known := s.mu.delays.Deadline(d.DelayID); !known {
			s.mu.delays.Set(d.DelayID, now+millis(d.Delay))
		}
	}
}

// tick keeps the clock that the deadlines are compared with, and takes out of it the time in which this node could not
// hear of its sessions. Its goroutine does nothing else: what run waits for, rounds and commits, is no such time.
//
// A late tick means that this process stood still, and with it perhaps the KeepAlives it should have answered. While the
// disk hangs they are refused. A leader that wakes from either must not end every session (etcd issue 15247).
func (s *leases) tick() {
	n := s.lead.node
	ticks := make(chan struct{}, 1)
	for {
		stop := n.clock.AfterFunc(leaseTick, func() { ticks <- struct{}{} }) // cap 1, one timer at a time
		select {
		case <-ticks:
		case <-s.lead.ctx.Done():
			stop()
			return
		}
		now := n.clock.Mono()
		s.mu.Lock()
		late := now - s.mu.now - leaseTick
		if n.stalled() {
			late = now - s.mu.now
		} else if late <= leaseTick {
			late = 0
		}
		s.mu.sessions.Shift(late)
		s.mu.delays.Shift(late)
		s.mu.holds.Shift(late)
		s.mu.now = now
		s.mu.Unlock()
		select {
		case s.ticked <- struct{}{}:
		default:
		}
	}
}

// run judges deadlines until the leadership ends.
func (s *leases) run() {
	defer s.lead.node.leases.CompareAndSwap(s, nil)
	for {
		select {
		case <-s.ticked:
		case <-s.lead.ctx.Done():
			return
		}
		s.mu.Lock()
		now := s.mu.now // and not the clock: whatever stood still since the last tick is not taken out yet
		s.mu.Unlock()
		s.expire(now)
		s.endHolds(now)
		s.clearDelays(now)
	}
}

// due gives what of q may be decided: what is due at now, if this node led at a moment after now, and if no KeepAlive is
// between receipt and answer, which may put off what it is about. decided is called for each under mu.
func due[K comparable](s *leases, q *lease.Queue[K], now time.Duration, decided func(K)) []K {
	s.mu.Lock()
	none := len(q.Due(now, 1)) == 0
	s.mu.Unlock()
	if none || s.lead.confirmer.confirm(s.lead.ctx) != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.inbox > 0 {
		return nil // judge at the next tick
	}
	keys := q.Due(now, decisionsMax)
	for _, k := range keys {
		decided(k)
	}
	return keys
}

// expire ends the sessions that are due at now.
func (s *leases) expire(now time.Duration) {
	ids := due(s, &s.mu.sessions, now, func(id uint64) { s.mu.ending[id] = true })
	if len(ids) == 0 {
		return
	}
	s.lead.node.log.Info("sessions expired", "sessions", len(ids), "first", ids[0])
	if !s.propose(&command.Command{Kind: command.KindExpireSessions, Term: s.lead.term, Sessions: ids}) {
		// The leadership is over, and the entry may yet be executed. The marks stay: a KeepAlive whose confirm round ended
		// in time may still be on its way to its answer.
		return
	}
	// What came of it is applied here: KeepAlives may look at the state again.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		delete(s.mu.ending, id)
		if _, ok := s.lead.node.fsm.root.Load().Session(id); !ok {
			s.mu.sessions.Remove(id)
		}
	}
}

// clearDelays ends the lock-delays that are due at now.
func (s *leases) clearDelays(now time.Duration) {
	decide(s, &s.mu.delays, now, func(d state.DelayID) *command.Command {
		return &command.Command{Kind: command.KindClearDelay, Term: s.lead.term, Path: d.Path, Generation: d.Generation}
	})
}

// endHolds ends the holdings whose MaxHold is over at now. They need no mark as ending sessions do: a KeepAlive promises
// nothing about them, because a holder's own deadline is fixed when it acknowledges.
func (s *leases) endHolds(now time.Duration) {
	decide(s, &s.mu.holds, now, func(h state.HoldID) *command.Command {
		return &command.Command{
			Kind: command.KindUnlock, Term: s.lead.term, Path: h.Path, Generation: h.Generation, Session: h.Session, LockSeq: h.Seq,
		}
	})
}

// decide proposes a command for each key that is due, all together, and forgets those that were answered.
func decide[K comparable](s *leases, q *lease.Queue[K], now time.Duration, proposal func(K) *command.Command) {
	var wg sync.WaitGroup
	for _, k := range due(s, q, now, func(K) {}) {
		wg.Go(func() {
			if s.propose(proposal(k)) {
				s.mu.Lock()
				defer s.mu.Unlock()
				q.Remove(k)
			}
		})
	}
	wg.Wait()
}

// propose brings a decision into the log and reports whether the state machine answered within the leadership.
func (s *leases) propose(c *command.Command) bool {
	_, err := s.lead.node.propose(s.lead.ctx, command.Append(nil, c), true, nil)
	return err == nil
}

// keepAlive answers one node's KeepAlive for all its sessions, and begins to count the holds that it acknowledges.
func (s *leases) keepAlive(ctx context.Context, k *wire.KeepAlive) ([]byte, error) {
	received := s.lead.node.clock.Mono()
	s.mu.Lock()
	s.mu.inbox++
	s.mu.Unlock()
	err := s.lead.confirmer.confirm(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.inbox--
	if err != nil {
		return nil, err
	}
	return s.answer(k, received), nil
}

// answer renews those of the sessions that live, and counts the holds, from received on. Called with mu held.
func (s *leases) answer(k *wire.KeepAlive, received time.Duration) []byte {
	// Read under mu: once expire has taken its mark away, this root has the outcome.
	root := s.lead.node.fsm.root.Load()
	answer := make([]byte, 0, len(k.Sessions)+len(k.Holds))
	for _, id := range k.Sessions {
		answer = append(answer, s.renew(root, id, received))
	}
	for _, h := range k.Holds {
		answer = append(answer, s.count(root, state.HoldID(h), received))
	}
	return answer
}

// renew is called with mu held.
func (s *leases) renew(root *state.State, id uint64, received time.Duration) byte {
	v, live := root.Session(id)
	switch {
	case s.mu.ending[id]:
		return wire.RenewUnknown
	case !live:
		return wire.RenewEnded
	}
	if deadline := received + cellLease(millis(v.Lease)); !s.mu.sessions.Extend(id, deadline) {
		s.mu.sessions.Set(id, deadline)
	}
	return wire.RenewAlive
}

// count starts the clock of a holding when this leader first hears of it; later acknowledgements change nothing. One that
// is not known here may be known in a moment: its holder can have applied the grant before this node did. Called with
// mu held.
func (s *leases) count(root *state.State, h state.HoldID, received time.Duration) byte {
	ms, held := root.MaxHold(h)
	if !held || ms == 0 {
		return wire.RenewEnded
	}
	if _, known := s.mu.holds.Deadline(h); !known {
		s.mu.holds.Set(h, received+cellLease(millis(ms)))
	}
	return wire.RenewAlive
}

func millis(n uint64) time.Duration { return time.Duration(n) * time.Millisecond }
