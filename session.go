package chubby

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"sync"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/lease"
	"github.com/chubbygo/chubby/internal/wire"
)

// SessionID names a session in its cell. It is never used again.
type SessionID uint64

// SessionState says how a session stands with the cell.
type SessionState int

const (
	// SessionActive means that the session's lease is valid by its holder's own clock.
	SessionActive SessionState = iota + 1
	// SessionJeopardy means that the lease ran out: the cell may have ended the session, or may still answer within the
	// grace period (Chubby §2.9). Locks must not be relied on.
	SessionJeopardy
	// SessionExpired means that the session is gone, with its locks and ephemeral entries.
	SessionExpired
)

func (s SessionState) String() string {
	switch s {
	case SessionActive:
		return "active"
	case SessionJeopardy:
		return "jeopardy"
	case SessionExpired:
		return "expired"
	}
	return fmt.Sprintf("SessionState(%d)", int(s))
}

// SessionOptions says what session NewSession opens. Zero fields take the node's options.
type SessionOptions struct {
	Name  string        // for people, shown by LockInfo; at most 255 bytes of printable UTF-8
	Lease time.Duration // as Options.SessionLease
	Grace time.Duration // as Options.GracePeriod; negative means none
}

// Session is a standing with the cell that holds locks and ephemeral entries while its lease is renewed (Chubby §2.8).
// The Client renews it; when that fails for the length of the lease the session is in jeopardy, and after the grace
// period, or when the cell says so, it has expired. All methods are safe for concurrent use.
type Session struct {
	client       *Client
	id           SessionID
	epoch        uint64 // of the cell that it is a session of
	name         string
	lease, grace time.Duration
	window       window
	done         chan struct{} // closed when the session has expired or was closed

	mu struct {
		sync.Mutex
		state      SessionState
		validUntil time.Duration // Clock.Boot; what the cell promised, counted from when we asked
		err        error
		locks      map[uint64]*Lock   // by the sequence of their Lock commands
		holds      lease.Queue[*Lock] // when those with a MaxHold end here; Clock.Boot
		fresh      map[*Lock]struct{} // of these, those whose grant has not been acknowledged yet
		handles    map[*Handle]struct{}
		changed    chan struct{} // closed and replaced when state changes
	}
}

// NewSession opens a session of its own. It returns ErrBadOptions, ErrOverloaded when the cell has too many, ErrClosed,
// or the error of ctx, with ErrUncertain if the session may have been opened; it then ends with its lease.
func (c *Client) NewSession(ctx context.Context, o SessionOptions) (*Session, error) {
	s, err := c.openSession(ctx, o, false)
	if err != nil {
		return nil, &Error{Op: "open session", Path: o.Name, Err: err}
	}
	return s, nil
}

// openSession opens a session. One that is caching lets the Client cache under it.
func (c *Client) openSession(ctx context.Context, o SessionOptions, caching bool) (*Session, error) {
	setDefault(&o.Lease, c.terms.lease)
	setDefault(&o.Grace, c.terms.grace)
	o.Grace = max(o.Grace, 0)
	if o.Name != "" {
		if err := checkName(o.Name); err != nil {
			return nil, fmt.Errorf("%w: SessionOptions.Name: %v", ErrBadOptions, err)
		}
	}
	if err := checkLease("SessionOptions.Lease", o.Lease, o.Grace, c.terms.heartbeat); err != nil {
		return nil, err
	}
	e, err := c.cell.establish(ctx, &command.Command{
		Kind: command.KindOpenSession, Principal: c.principal, Name: o.Name,
		Lease: uint64(o.Lease / time.Millisecond), Grace: uint64(o.Grace / time.Millisecond), Caching: caching,
	})
	if err != nil {
		return nil, err
	}
	c.saw(e.revision)
	s := &Session{
		client: c, id: SessionID(e.id), epoch: e.epoch, name: o.Name, lease: o.Lease, grace: o.Grace, done: make(chan struct{}),
	}
	s.window.init()
	s.mu.state = SessionActive
	s.mu.validUntil = e.sent + o.Lease
	s.mu.locks = make(map[uint64]*Lock)
	s.mu.fresh = make(map[*Lock]struct{})
	s.mu.handles = make(map[*Handle]struct{})
	s.mu.changed = make(chan struct{})
	if err := c.keep(s); err != nil {
		return nil, err
	}
	return s, nil
}

// ID returns the session's id.
func (s *Session) ID() SessionID { return s.id }

// State returns how the session stands now, by its holder's own clock.
func (s *Session) State() SessionState {
	s.check(s.client.terms.clock.Boot())
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.state
}

// States yields the present state and then each new one until SessionExpired, which it yields too, or until ctx ends.
// A slow loop sees the latest state at each turn, not each one that was.
func (s *Session) States(ctx context.Context) iter.Seq[SessionState] {
	return func(yield func(SessionState) bool) {
		last := SessionState(0)
		for {
			s.mu.Lock()
			state, changed := s.mu.state, s.mu.changed
			s.mu.Unlock()
			if state != last && !yield(state) || state == SessionExpired {
				return
			}
			last = state
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Done returns a channel that is closed when the session has expired or was closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err returns nil until Done is closed, then ErrSessionExpired, or ErrClosed after Close.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// Close ends the session: the contexts of its locks end first, then the cell frees its locks without lock-delay and
// removes its ephemeral entries. If ctx ends before the cell answered, the error is ErrUncertain, and closing goes on in
// the background until the session's lease would have ended it. Closing twice is allowed.
func (s *Session) Close(ctx context.Context) error { return s.close(ctx, true) }

// close is Close that may leave the session to its lease when ctx ends.
func (s *Session) close(ctx context.Context, persist bool) error {
	if !s.end(ErrClosed) {
		return nil
	}
	c := s.client
	raw := command.Append(nil, &command.Command{Kind: command.KindCloseSession, Session: uint64(s.id), Principal: c.principal})
	_, err := c.cell.propose(ctx, raw, true, nil)
	if err != nil {
		if ctx.Err() != nil && persist {
			c.cell.spawn(func() {
				ctx, cancel := context.WithTimeout(c.cell.life(), 2*s.lease)
				defer cancel()
				if _, err := c.cell.propose(ctx, raw, true, nil); err != nil {
					c.terms.log.Debug("session left to its lease", "session", s.id, "err", err)
				}
			})
		}
		if ctx.Err() != nil && !errors.Is(err, ErrUncertain) {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return &Error{Op: "close session", Path: s.name, Err: err}
	}
	return nil
}

// do sends a command of this session and waits for the state machine's answer.
func (s *Session) do(ctx context.Context, c *command.Command, urgent bool) (command.Result, error) {
	t, err := s.begin(ctx)
	if err != nil {
		return command.Result{}, err
	}
	defer t.end()
	return s.send(ctx, t, c, urgent)
}

// send is do for a ticket that the caller has and ends.
func (s *Session) send(ctx context.Context, t ticket, c *command.Command, urgent bool) (command.Result, error) {
	full := false
	// Once the cell has refused a copy for want of room, an earlier one that got lost may yet find some, so what ends the
	// call from then on leaves it uncertain.
	fail := func(err error) error {
		if full && !errors.Is(err, ErrUncertain) {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return err
	}
	for {
		c.Session, c.Seq, c.AckedBelow, c.Principal = uint64(s.id), t.seq, t.window.acked(), s.client.principal
		r, err := s.client.cell.propose(ctx, command.Append(nil, c), urgent, s.done)
		if err != nil {
			return r, fail(err)
		}
		s.client.saw(r.Revision)
		switch r.Code {
		case command.SessionExpired:
			s.end(ErrSessionExpired)
			if full {
				return r, fail(ErrSessionExpired)
			}
		case command.WindowFull:
			// The cell keeps as many bytes of this session's answers as it will. This copy was not executed; once other
			// calls of the session have their answers there is room again.
			full = true
			select {
			case <-time.After(retryPause):
				continue
			case <-ctx.Done():
				return r, fail(ctx.Err())
			case <-s.done:
				return r, fail(s.client.cell.lostCause())
			}
		}
		return r, nil
	}
}

// begin takes the next sequence number.
func (s *Session) begin(ctx context.Context) (ticket, error) {
	select {
	case <-s.done:
		return ticket{}, s.client.cell.lostCause()
	default:
	}
	t, err := s.window.begin(ctx, s.done)
	if errors.Is(err, ErrSessionExpired) {
		err = s.client.cell.lostCause()
	}
	return t, err
}

// extend notes that the cell promised the session until then. It saves a session from jeopardy.
func (s *Session) extend(until time.Duration) {
	now := s.client.terms.clock.Boot()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.state == SessionExpired {
		return
	}
	s.mu.validUntil = max(s.mu.validUntil, until)
	if s.mu.state == SessionJeopardy && now < s.mu.validUntil {
		s.setState(SessionActive)
	}
}

// check compares the clock with what was promised. Whoever depends on the session calls it at the moment of asking.
func (s *Session) check(now time.Duration) {
	s.mu.Lock()
	if s.mu.state == SessionActive && now >= s.mu.validUntil {
		s.setState(SessionJeopardy)
		for _, l := range s.mu.locks {
			l.cancel(ErrLockLost) // a context's cancel runs no code of users
		}
	}
	over := s.mu.state == SessionJeopardy && now >= s.mu.validUntil+s.grace
	overdue := s.mu.holds.Due(now, math.MaxInt)
	for _, l := range overdue {
		l.endLocked(ErrLockLost)
	}
	s.mu.Unlock()
	for _, l := range overdue {
		// The cell's own count may not have begun: the acknowledgement can be lost. Whoever waits need not wait for it.
		s.client.terms.log.Info("lock held for as long as it may be", "path", l.path, "max", l.maxHold)
		s.persist(l.unlockCommand())
	}
	if over {
		s.end(ErrSessionExpired)
	}
}

// outlook gives when the session's state changes next if nothing comes, and whether it holds locks.
func (s *Session) outlook() (end time.Duration, locks bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end = s.mu.validUntil
	if s.mu.state != SessionActive {
		end += s.grace
	}
	return end, len(s.mu.locks) > 0
}

// released ends the handle of a grant that the cell says is over.
func (s *Session) released(seq uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.mu.locks[seq]; l != nil {
		l.endLocked(ErrLockLost)
	}
}

// holdings adds the grants that bear a MaxHold to a KeepAlive, or those alone that have not been acknowledged yet.
func (s *Session) holdings(list []wire.Hold, all bool) []wire.Hold {
	s.mu.Lock()
	defer s.mu.Unlock()
	add := func(l *Lock) {
		list = append(list, wire.Hold{Path: l.path, Generation: l.generation, Session: uint64(s.id), Seq: l.seq})
	}
	if !all {
		for l := range s.mu.fresh {
			add(l)
		}
	} else if s.mu.holds.Len() > 0 {
		for _, l := range s.mu.locks {
			if l.maxHold > 0 {
				add(l)
			}
		}
	}
	clear(s.mu.fresh)
	return list
}

// end makes the session expired for the reason given. It reports false if it was before.
func (s *Session) end(why error) bool {
	s.mu.Lock()
	if s.mu.state == SessionExpired {
		s.mu.Unlock()
		return false
	}
	s.mu.err = why
	s.setState(SessionExpired)
	for _, l := range s.mu.locks {
		l.endLocked(why)
	}
	for h := range s.mu.handles {
		h.endLocked(why)
	}
	close(s.done)
	s.mu.Unlock()
	s.client.drop(s)
	return true
}

// setState is called with mu held.
func (s *Session) setState(state SessionState) {
	s.mu.state = state
	close(s.mu.changed)
	s.mu.changed = make(chan struct{})
}

// window gives out the sequence numbers of a session and knows below which all are answered.
type window struct {
	mu struct {
		sync.Mutex
		base uint64          // the lowest open number; everything below is answered or given up
		next uint64          // the next to give out
		open [windowMax]bool // by number modulo windowMax, for base <= number < next
		free chan struct{}   // closed and replaced when base moves; nil = nobody waits
	}
}

// windowMax bounds the commands of a session that are not answered yet; the state machine keeps as many answers.
const windowMax = 1024

// ticket is one open sequence number.
type ticket struct {
	window *window
	seq    uint64
}

func (w *window) init() { w.mu.base, w.mu.next = 1, 1 }

// begin opens the next number. It waits while the window is full.
func (w *window) begin(ctx context.Context, lost <-chan struct{}) (ticket, error) {
	for {
		w.mu.Lock()
		if w.mu.next < w.mu.base+windowMax {
			t := ticket{w, w.mu.next}
			w.mu.open[w.mu.next%windowMax] = true
			w.mu.next++
			w.mu.Unlock()
			return t, nil
		}
		if w.mu.free == nil {
			w.mu.free = make(chan struct{})
		}
		free := w.mu.free
		w.mu.Unlock()
		select {
		case <-free:
		case <-lost:
			return ticket{}, ErrSessionExpired
		case <-ctx.Done():
			return ticket{}, fmt.Errorf("%d calls of this session wait for the cell: %w", windowMax, ctx.Err())
		}
	}
}

// acked returns the number below which all are answered.
func (w *window) acked() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.base
}

// end closes the number: its command is answered, or nobody will ask for it again.
func (t ticket) end() {
	w := t.window
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.open[t.seq%windowMax] = false
	moved := false
	for w.mu.base < w.mu.next && !w.mu.open[w.mu.base%windowMax] {
		w.mu.base++
		moved = true
	}
	if moved && w.mu.free != nil {
		close(w.mu.free)
		w.mu.free = nil
	}
}

// retired tells a caller's loop that the default session it used is gone and certainly did nothing.
func retired(err error) bool {
	return errors.Is(err, ErrSessionExpired) && !errors.Is(err, ErrUncertain)
}
