package chubby

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/wire"
)

// remote is the cell of a dialled Client: one stream to each member, one of which is home.
//
// Goroutines: one for each address, which dials and waits for the stream to break (memberLink.run); two for each stream;
// one that chooses the home (steer); the Client's keeper. All are the transport's, which Close closes last.
type remote struct {
	opts      DialOptions // with defaults
	transport *transport
	clock     hook.Clock
	client    atomic.Pointer[Client] // nil until a majority has answered
	links     []*memberLink
	watches   atomic.Uint64 // numbers of watches given out
	epoch     atomic.Uint64 // the greatest that a member told

	// ctx ends when the Client's own goroutines must, after halt is closed, which is when calls must.
	ctx    context.Context
	cancel context.CancelFunc
	halt   chan struct{}
	done   chan struct{} // closed when Close is through
	look   chan struct{} // cap 1: the home is in doubt, or there is none

	mu struct {
		sync.Mutex
		home    *memberConn // nil: none
		touched bool        // home was in touch with a cell leader when it was last asked
		live    map[*memberConn]struct{}
		changed chan struct{} // closed and replaced when home or a link changes
		closing bool
	}
}

var _ cell = (*remote)(nil)

const (
	callTime      = answerTime + 2*time.Second // a member that is silent for so long is given up
	touchTime     = time.Second                // for an answer whether a member is in touch
	attachTime    = 5 * time.Second
	tryPauseMin   = 2 * time.Millisecond // between attempts of one call; doubling
	tryPauseMax   = time.Second
	dialPauseMin  = 10 * time.Millisecond // between attempts to connect; doubling
	dialPauseMax  = 2 * time.Second
	steerPauseMin = 100 * time.Millisecond // between looks for a member that is in touch; doubling
	steerPauseMax = 2 * time.Second
	remoteCalls   = 768 // of one lane and stream; below what a member allows, which ends calls after their answers
)

// errNoMember means that there is no stream to any member.
var errNoMember = errors.New("no member can be reached")

// errSilent means that a member did not answer in time.
var errSilent = errors.New("the member does not answer")

func newRemote(o DialOptions, s *security, clock hook.Clock) (*remote, error) {
	r := &remote{opts: o, clock: clock, halt: make(chan struct{}), done: make(chan struct{}), look: make(chan struct{}, 1)}
	r.mu.live = make(map[*memberConn]struct{})
	r.mu.changed = make(chan struct{})
	t, err := newTransport(transportConfig{Network: o.Network, Security: s, Level: featureLevel, Logger: o.Logger})
	if err != nil {
		return nil, err
	}
	r.transport = t
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	for _, addr := range o.Addrs {
		l := &memberLink{remote: r, addr: addr}
		r.links = append(r.links, l)
		t.spawn(l.run)
	}
	return r, nil
}

// meet waits until a majority of the addresses has answered, and makes the Client.
func (r *remote) meet(ctx context.Context) (*Client, error) {
	for {
		r.mu.Lock()
		changed := r.mu.changed
		var first *memberConn
		answered, lost := 0, 0
		var faults []error
		for _, l := range r.links {
			if l.conn != nil {
				answered++
				first = l.conn
				continue
			}
			if l.err == nil {
				continue
			}
			if errors.Is(l.err, ErrWrongCell) || errors.Is(l.err, ErrPermission) {
				r.mu.Unlock()
				return nil, fmt.Errorf("%s: %w", l.addr, l.err)
			}
			faults = append(faults, fmt.Errorf("%s: %w", l.addr, l.err))
			if r.opts.MaxRetries > 0 && l.fails > r.opts.MaxRetries {
				lost++
			}
		}
		r.mu.Unlock()
		majority := len(r.links)/2 + 1
		if answered >= majority {
			return r.begin(first.attached)
		}
		if lost > len(r.links)-majority {
			return nil, fmt.Errorf("%w: %d of %d members answered: %w", ErrNoQuorum, answered, len(r.links), errors.Join(faults...))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %d of %d members answered: %w", ErrNoQuorum, answered, len(r.links), errors.Join(append(faults, ctx.Err())...))
		}
	}
}

// begin makes the Client by what a member told.
func (r *remote) begin(a wire.Attached) (*Client, error) {
	o := r.opts
	if err := checkLease("SessionLease", o.SessionLease, o.GracePeriod, a.Heartbeat); err != nil {
		return nil, err
	}
	limits := Limits{ValueBytes: int(a.ValueBytes), PathBytes: int(a.PathBytes), Depth: int(a.Depth)}.withDefaults()
	c := newClient(r, terms{
		principal: a.Principal, cell: o.Cell, name: a.Principal, limits: limits, lease: o.SessionLease, grace: o.GracePeriod,
		heartbeat: a.Heartbeat, clock: r.clock, log: o.Logger,
	})
	if o.CacheBytes > 0 {
		c.cache = newClientCache(c, r, o.CacheBytes)
	}
	r.client.Store(c)
	r.transport.spawn(r.steer)
	r.transport.spawn(c.keeper)
	return c, nil
}

// verdict is what came of one attempt of a call.
type verdict struct {
	done    bool  // err is what the call returns
	offered bool  // the attempt may have taken effect, or may yet
	refused bool  // err is what the call returns, unless an earlier attempt may have taken effect
	err     error // nil if done, or why there is no answer
}

// try makes attempts at the home, whichever it is by then, until one settles the call. ctx, lost (see cell.propose),
// MaxRetries and Close end it before that.
func (r *remote) try(ctx context.Context, lost <-chan struct{}, attempt func(c *memberConn, offered bool) verdict) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	offered := false
	fail := func(err error) error {
		if offered {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return err
	}
	var last error
	pause := tryPauseMin
	for tries := 0; ; tries++ {
		if r.opts.MaxRetries > 0 && tries > r.opts.MaxRetries {
			return fail(r.explain(fmt.Errorf("%d attempts, the last one: %w", tries, last)))
		}
		home, changed := r.home()
		for wait := time.Duration(0); home == nil && wait < tryPauseMax; home, changed = r.home() {
			began := time.Now()
			select {
			case <-changed: // not for long, most likely
			case <-time.After(tryPauseMax - wait):
			case <-ctx.Done():
				return fail(r.explain(ctx.Err()))
			case <-lost:
				return fail(r.lostCause())
			case <-r.halt:
				return fail(r.stopCause())
			}
			wait += time.Since(began)
		}
		if home == nil {
			last = errNoMember
			continue
		}
		v := attempt(home, offered)
		offered = offered || v.offered
		switch {
		case v.done && v.err == nil:
			return nil
		case v.done, v.refused && !offered:
			return fail(v.err)
		}
		last = v.err
		r.doubt()
		select {
		case <-changed:
		case <-time.After(pause/2 + rand.N(pause/2+1)):
		case <-ctx.Done():
			return fail(r.explain(ctx.Err()))
		case <-lost:
			return fail(r.lostCause())
		case <-r.halt:
			return fail(r.stopCause())
		}
		pause = min(2*pause, tryPauseMax)
	}
}

// faultVerdict judges an attempt that got an error instead of an answer. asks tells that it can have had no effect.
func faultVerdict(err error, asks bool) verdict {
	v := verdict{err: err}
	if errors.Is(err, errNotSent) {
		return v
	}
	var remote *remoteError
	if !errors.As(err, &remote) || errors.Is(err, ErrUncertain) {
		v.offered = !asks
		return v
	}
	for _, final := range []error{ErrBadOptions, ErrBadPath, ErrTooLarge, ErrPermission, ErrOverloaded, ErrNoSpace, ErrLagged} {
		v.refused = v.refused || errors.Is(err, final)
	}
	return v
}

func (r *remote) propose(ctx context.Context, raw []byte, urgent bool, lost <-chan struct{}) (result command.Result, err error) {
	if len(raw) > commandMax {
		return result, fmt.Errorf("%w: a command of %d bytes, at most %d", ErrTooLarge, len(raw), commandMax)
	}
	kind := wire.KindPropose
	if urgent {
		kind = wire.KindUrgent
	}
	err = r.try(ctx, lost, func(c *memberConn, offered bool) verdict {
		answer, err := c.call(ctx, kind, raw, callTime)
		if err != nil {
			v := faultVerdict(err, false)
			// What frees something has room kept for it, so a refusal for want of it will pass.
			v.refused = v.refused && !(urgent && errors.Is(err, ErrOverloaded))
			return v
		}
		s, got, _, err := parseOutcome(answer)
		if err != nil {
			c.stream.fail(err)
			return verdict{offered: true, err: err}
		}
		switch s {
		case statusApplied:
			if got.Code == command.SessionExpired && offered {
				// An earlier copy may have been executed while the session lived.
				return verdict{done: true, err: ErrSessionExpired}
			}
			result = got
			return verdict{done: true}
		case statusUnknown:
			return verdict{offered: true, err: errNoAnswerYet}
		case statusOverloaded:
			return verdict{refused: true, err: ErrOverloaded}
		case statusNoSpace:
			return verdict{refused: true, err: ErrNoSpace}
		}
		return verdict{err: errNoAnswerYet}
	})
	return result, err
}

// errNoAnswerYet means that a member has no answer of the cell yet.
var errNoAnswerYet = errors.New("the cell has not answered yet")

func (r *remote) establish(ctx context.Context, c *command.Command) (e established, err error) {
	ask := wire.AppendOpening(nil, &wire.Opening{Name: c.Name, Lease: c.Lease, Grace: c.Grace, Caching: c.Caching})
	err = r.try(ctx, nil, func(m *memberConn, _ bool) verdict {
		// Each attempt asks for a session of its own, whose lease begins to count here. One that was opened although its
		// answer got lost ends by itself.
		sent := r.clock.Boot()
		b, err := m.call(ctx, wire.KindEstablish, ask, establishTime+callTime)
		if err != nil {
			return faultVerdict(err, false)
		}
		o, err := wire.ParseOpened(b)
		if err != nil {
			m.stream.fail(err)
			return verdict{offered: true, err: err}
		}
		e = established{id: o.Session, epoch: m.attached.Epoch, sent: sent, revision: o.Revision}
		return verdict{done: true}
	})
	return e, err
}

// renew makes one attempt: the keeper makes the next one, with what is to be renewed then.
func (r *remote) renew(ctx context.Context, k *wire.KeepAlive) ([]byte, error) {
	for {
		home, changed := r.home()
		if home != nil {
			answer, err := home.call(ctx, wire.KindRenew, wire.AppendKeepAlive(nil, k), callTime)
			if err != nil {
				r.doubt()
			}
			return answer, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// ask makes attempts of a call that changes nothing. It gives the answer with the member, and when that was asked.
func (r *remote) ask(ctx context.Context, k wire.Kind, payload []byte, parse func(m *memberConn, sent time.Duration, b []byte) error) error {
	return r.try(ctx, nil, func(m *memberConn, _ bool) verdict {
		sent := r.clock.Boot()
		b, err := m.call(ctx, k, payload, callTime)
		if err != nil {
			return faultVerdict(err, true)
		}
		if err := parse(m, sent, b); err != nil {
			m.stream.fail(err)
			return verdict{err: err}
		}
		return verdict{done: true}
	})
}

func (r *remote) query(ctx context.Context, q wire.Query) (a wire.Answer, err error) {
	if s := q.Sequencer; s != (Sequencer{}) && (s.Mode != Exclusive && s.Mode != Shared || len(s.Path) > pathMax || len(s.Cell) > nameMax) {
		q.Sequencer = Sequencer{Mode: Exclusive} // there is no such lock; and nothing holds this one either
	}
	err = r.ask(ctx, wire.KindQuery, wire.AppendQuery(nil, &q), func(_ *memberConn, _ time.Duration, b []byte) (err error) {
		a, err = wire.ParseAnswer(b)
		return err
	})
	return a, err
}

func (r *remote) peek(ctx context.Context, q wire.Query, seen uint64) (a wire.Answer, age time.Duration, err error) {
	ask := wire.AppendPeek(nil, &wire.Peek{Seen: seen, Query: q})
	asked := make(map[*memberConn]bool)
	err = r.try(ctx, nil, func(m *memberConn, _ bool) verdict {
		sent := r.clock.Boot()
		b, err := m.call(ctx, wire.KindPeek, ask, callTime)
		if err != nil {
			v := faultVerdict(err, true)
			// A member that has not caught up since its start says so, and so does this call if no other is better.
			v.done = errors.Is(err, ErrNoLeader) && !errors.Is(err, context.DeadlineExceeded) && asked[m]
			asked[m] = true
			return v
		}
		p, err := wire.ParsePeeked(b)
		if err != nil {
			m.stream.fail(err)
			return verdict{err: err}
		}
		// The member took its age after this was sent, so it is older now by no more than has passed since.
		a, age = p.Answer, p.Age+r.clock.Boot()-sent
		return verdict{done: true}
	})
	return a, age, err
}

func (r *remote) peekEntry(ctx context.Context, path string, seen uint64) (glimpse, error) {
	a, age, err := r.peek(ctx, wire.Query{Kind: wire.QueryEntry, Path: path}, seen)
	if err == nil {
		err = answerError(r.client.Load().principal, &a)
	}
	return glimpse{entry: a.Entry, revision: a.Revision, age: age}, err
}

func (r *remote) spawn(f func()) bool     { return r.transport.spawn(f) }
func (r *remote) life() context.Context   { return r.ctx }
func (r *remote) halted() <-chan struct{} { return r.halt }
func (r *remote) stopCause() error        { return ErrClosed }

func (r *remote) lostCause() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.closing {
		return ErrClosed
	}
	return ErrSessionExpired
}

func (r *remote) explain(err error) error {
	r.mu.Lock()
	touched := r.mu.home != nil && r.mu.touched
	r.mu.Unlock()
	if !touched {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	return fmt.Errorf("%w: %w", ErrNoQuorum, err)
}

// Close ends the Client: its sessions first, for at most 2 s, so that others need not wait for their leases; then calls,
// then streams, and all goroutines are waited for.
func (r *remote) Close() error {
	r.mu.Lock()
	first := !r.mu.closing
	r.mu.closing = true
	r.mu.Unlock()
	if !first {
		<-r.done
		return nil
	}
	defer close(r.done)
	c := r.client.Load()
	if c != nil {
		c.closeSessions()
	}
	close(r.halt)
	if c != nil {
		c.close()
	}
	r.cancel()
	return r.transport.Close()
}
