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
// sessions that were silent for too long and the end of lock-delays. What it decides becomes true through the log, and
// only in the leadership's own term.
//
// Deciding an expiry and answering a KeepAlive exclude each other: both happen under mu, a session is marked as ending
// before its expiry is offered, and nothing is marked while a KeepAlive is between receipt and answer. So a client is
// never told that its session lives by a leader that has begun to end it.
type leases struct {
	lead *leadership

	mu struct {
		sync.Mutex
		sessions lease.Queue[uint64]        // deadlines, Clock.Mono
		ending   map[uint64]bool            // expiry offered, outcome unknown
		inbox    int                        // KeepAlives received and not yet answered
		delays   lease.Queue[state.DelayID] // when each lock-delay may end
	}
}

const (
	leaseTick    = 50 * time.Millisecond
	expiriesMax  = 1000 // sessions ended by one command
	renewAlive   = wire.RenewAlive
	renewEnded   = wire.RenewEnded
	renewUnknown = wire.RenewUnknown
)

// cellLease is how long the cell keeps a session that it heard from, counted from receipt. It is longer than what the
// client counts from sending, by more than two clocks can differ that are each within 1 %.
func cellLease(l time.Duration) time.Duration {
	return l + l/100 + max(l/10, 200*time.Millisecond)
}

func newLeases(l *leadership) *leases {
	s := &leases{lead: l}
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

// run judges deadlines until the leadership ends.
func (s *leases) run() {
	n := s.lead.node
	defer n.leases.CompareAndSwap(s, nil)
	last := n.clock.Mono()
	tick := make(chan struct{}, 1)
	for {
		stop := n.clock.AfterFunc(leaseTick, func() { tick <- struct{}{} }) // cap 1, one timer at a time
		select {
		case <-tick:
		case <-s.lead.ctx.Done():
			stop()
			return
		}
		now := n.clock.Mono()
		// A late tick means that this process stood still, and with it perhaps the KeepAlives it should have answered:
		// a leader that wakes from a stalled disk must not end every session (etcd issue 15247).
		if late := now - last - leaseTick; late > leaseTick {
			s.mu.Lock()
			s.mu.sessions.Shift(late)
			s.mu.delays.Shift(late)
			s.mu.Unlock()
		}
		last = now
		s.expire(now)
		s.clearDelays(now)
	}
}

// expire ends the sessions that are due at now.
func (s *leases) expire(now time.Duration) {
	s.mu.Lock()
	due := s.mu.sessions.Due(now, 1)
	s.mu.Unlock()
	if len(due) == 0 {
		return
	}
	// No expiry without proof, newer than the deadline, that this node still leads.
	if s.lead.confirmer.confirm(s.lead.ctx) != nil {
		return
	}
	s.mu.Lock()
	if s.mu.inbox > 0 {
		s.mu.Unlock()
		return // a KeepAlive has come; judge at the next tick
	}
	ids := s.mu.sessions.Due(now, expiriesMax)
	for _, id := range ids {
		s.mu.ending[id] = true
	}
	s.mu.Unlock()
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
	s.mu.Lock()
	due := s.mu.delays.Due(now, expiriesMax)
	s.mu.Unlock()
	if len(due) == 0 || s.lead.confirmer.confirm(s.lead.ctx) != nil {
		return
	}
	for _, d := range due {
		if s.propose(&command.Command{Kind: command.KindClearDelay, Term: s.lead.term, Path: d.Path, Generation: d.Generation}) {
			s.mu.Lock()
			s.mu.delays.Remove(d)
			s.mu.Unlock()
		}
	}
}

// propose brings a decision into the log and reports whether the state machine answered within the leadership.
func (s *leases) propose(c *command.Command) bool {
	_, err := s.lead.node.propose(s.lead.ctx, command.Append(nil, c), true, nil)
	return err == nil
}

// keepAlive answers one node's KeepAlive for all its sessions.
func (s *leases) keepAlive(ctx context.Context, ids []uint64) ([]byte, error) {
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
	return s.answer(ids, received), nil
}

// answer renews those of the sessions that live, from received on. Called with mu held.
func (s *leases) answer(ids []uint64, received time.Duration) []byte {
	// Read under mu: once expire has taken its mark away, this root has the outcome.
	root := s.lead.node.fsm.root.Load()
	answer := make([]byte, len(ids))
	for i, id := range ids {
		v, live := root.Session(id)
		switch {
		case s.mu.ending[id]:
			answer[i] = renewUnknown
		case !live:
			answer[i] = renewEnded
		default:
			answer[i] = renewAlive
			if deadline := received + cellLease(millis(v.Lease)); !s.mu.sessions.Extend(id, deadline) {
				s.mu.sessions.Set(id, deadline)
			}
		}
	}
	return answer
}

func millis(n uint64) time.Duration { return time.Duration(n) * time.Millisecond }
