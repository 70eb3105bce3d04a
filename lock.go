package chubby

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// Mode is how a lock is held.
type Mode = fence.Mode

// Exclusive locks have one holder, Shared ones any number.
const (
	Exclusive = fence.Exclusive
	Shared    = fence.Shared
)

// Sequencer proves to a third party who holds a lock, and since which grant (Chubby §2.4). See package fence.
type Sequencer = fence.Sequencer

// LockOption changes one Lock call.
type LockOption struct{ set func(*lockOptions) }

type lockOptions struct {
	delay   time.Duration
	maxHold time.Duration // 0 = no bound
	err     error
}

const (
	lockDelayMax = time.Minute
	maxHoldMin   = time.Millisecond
	maxHoldMax   = 30 * 24 * time.Hour
)

// LockDelay keeps the lock shut for d, 0 to 60 s, after its holder's session was lost, so that requests the holder had
// under way cannot meet its successor's (Chubby §2.4). It does not apply after Unlock or Session.Close. The default
// is 0: guard the resource with the sequencer instead where that is possible.
func LockDelay(d time.Duration) LockOption {
	return LockOption{func(o *lockOptions) {
		o.delay = d
		if d < 0 || d > lockDelayMax {
			o.err = errors.Join(o.err, fmt.Errorf("%w: LockDelay %v: use 0 to %v", ErrBadOptions, d, lockDelayMax))
		}
	}}
}

// MaxHold bounds how long the lock is held, from its grant: d, 1 ms to 720 h. When d is over by the holder's clock,
// Context and Done end with ErrLockLost, and only then the cell gives the lock to the next. If the holder cannot be
// reached the cell does so by itself, a little later: after d x 1.01 + max(d/10, 200 ms), or after the session's lease.
// Like Unlock it names this grant, so it never ends a later holder's. Without it a lock is held until Unlock or until
// the session's end.
func MaxHold(d time.Duration) LockOption {
	return LockOption{func(o *lockOptions) {
		o.maxHold = d
		if d < maxHoldMin || d > maxHoldMax {
			o.err = errors.Join(o.err, fmt.Errorf("%w: MaxHold %v: use %v to %v, or leave the option out for no bound", ErrBadOptions, d, maxHoldMin, maxHoldMax))
		}
	}}
}

// Lock is a lock that was granted. All methods are safe for concurrent use.
//
// Its Context is advice: it ends, by this process's clock, before the cell may grant the lock to another, but a process
// that is paused between looking at it and acting learns too late. Only the sequencer, checked by the resource that the
// lock protects, covers that. Send it with each request.
type Lock struct {
	session    *Session
	path       string
	mode       Mode
	generation uint64
	seq        uint64        // of the Lock command: with the session, the owner
	maxHold    time.Duration // 0 = no bound
	done       chan struct{}

	// Guarded by session.mu.
	ctx    lockContext
	cancel context.CancelCauseFunc
	err    error // not nil once the lock is gone for good
}

// lockWaiter is a Lock call that waits for its grant.
type lockWaiter struct {
	path    string
	granted chan uint64 // cap 1; the generation, or 0: the wait ended without a grant
}

// Lock waits until the default session holds the lock at path exclusively. See [Session.Lock].
func (c *Client) Lock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, "lock", path, lockRequest{mode: Exclusive}, opts)
}

// RLock waits until the default session holds the lock at path shared. See [Session.Lock].
func (c *Client) RLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, "rlock", path, lockRequest{mode: Shared}, opts)
}

// TryLock is Lock that does not wait: it returns ErrLockHeld when the lock is held, awaited or delayed.
func (c *Client) TryLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, "trylock", path, lockRequest{mode: Exclusive, try: true}, opts)
}

// TryRLock is RLock that does not wait: it returns ErrLockHeld when the lock is held exclusively, delayed, or when
// another waits for it.
func (c *Client) TryRLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return c.lock(ctx, "tryrlock", path, lockRequest{mode: Shared, try: true}, opts)
}

// WithLock calls fn with the lock at path held exclusively by the default session, and unlocks it. See
// [Session.WithLock].
func (c *Client) WithLock(ctx context.Context, path string, fn func(ctx context.Context, l *Lock) error, opts ...LockOption) error {
	l, err := c.Lock(ctx, path, opts...)
	if err != nil {
		return err
	}
	return l.with(ctx, fn)
}

// Lock waits until the session holds the lock at path exclusively, ctx ends, or the session is lost. Waiting calls are
// served in the order in which the cell received them. Nothing is re-entrant: each call is an owner of its own, so two
// calls of one session exclude each other.
//
// The lock needs no entry at path, and makes none. Its handle carries the sequencer of this grant.
//
// Lock returns ErrBadPath, ErrBadOptions, ErrSessionExpired, ErrOverloaded, ErrClosed, or the error of ctx. Whenever it
// returns an error the caller does not hold the lock: a waiter left behind is withdrawn.
func (s *Session) Lock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return s.lockPath(ctx, "lock", path, &lockRequest{mode: Exclusive}, opts)
}

// RLock is Lock for shared holding: any number of shared holders, and no exclusive one. A shared caller does not
// overtake an exclusive one that waits.
func (s *Session) RLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return s.lockPath(ctx, "rlock", path, &lockRequest{mode: Shared}, opts)
}

// TryLock is Lock that does not wait: it returns ErrLockHeld when the lock is held, awaited or delayed.
func (s *Session) TryLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return s.lockPath(ctx, "trylock", path, &lockRequest{mode: Exclusive, try: true}, opts)
}

// TryRLock is RLock that does not wait: it returns ErrLockHeld when the lock is held exclusively, delayed, or when
// another waits for it.
func (s *Session) TryRLock(ctx context.Context, path string, opts ...LockOption) (*Lock, error) {
	return s.lockPath(ctx, "tryrlock", path, &lockRequest{mode: Shared, try: true}, opts)
}

// WithLock calls fn while the lock at path is held exclusively, with a context that ends when the lock's does or when
// ctx does, waits for it, and unlocks. It returns fn's error; or, if fn returned nil, ErrLockLost when the lock was lost
// meanwhile, and Unlock's error otherwise.
func (s *Session) WithLock(ctx context.Context, path string, fn func(ctx context.Context, l *Lock) error, opts ...LockOption) error {
	l, err := s.Lock(ctx, path, opts...)
	if err != nil {
		return err
	}
	return l.with(ctx, fn)
}

func (l *Lock) with(ctx context.Context, fn func(context.Context, *Lock) error) error {
	stood, err := l.during(ctx, func(ctx context.Context) error { return fn(ctx, l) })
	if errors.Is(l.Err(), ErrNotHeld) {
		return err // fn has unlocked by itself
	}
	// ctx may have ended, which must not keep the next holder waiting for our lease: Unlock goes on by itself.
	unlockErr := l.Unlock(ctx)
	switch {
	case err != nil:
		return err
	case !stood:
		return &Error{Op: "lock", Path: l.path, Err: ErrLockLost}
	}
	return unlockErr
}

// during calls fn with a context that ends with the lock's and with ctx, and reports whether the lock's stood to the end.
// If fn does not return, by a panic or runtime.Goexit, the lock is given back.
func (l *Lock) during(ctx context.Context, fn func(context.Context) error) (stood bool, err error) {
	held := l.Context()
	inner, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(held, func() { cancel(context.Cause(held)) })
	returned := false
	defer func() {
		stop()
		cancel(nil)
		if !returned {
			l.release(ctx)
		}
	}()
	err = fn(heldContext{inner, ctx, held, cancel, l})
	returned = true
	return held.Err() == nil, err
}

// release unlocks, for a moment also when ctx has ended, and then in the background.
func (l *Lock) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := l.unlock(ctx); err != nil {
		l.session.client.terms.log.Debug("lock not given back yet", "path", l.path, "err", err)
	}
}

// heldContext is a caller's context that also ends with a lock's, to the moment when asked.
type heldContext struct {
	context.Context
	outer  context.Context // the caller's
	held   context.Context // the lock's
	cancel context.CancelCauseFunc
	lock   *Lock
}

// Value gives the caller's context under the lock, for its unlock.
func (c heldContext) Value(key any) any {
	if key == c.lock {
		return c.outer
	}
	return c.Context.Value(key)
}

func (c heldContext) Err() error {
	if c.held.Err() != nil {
		c.cancel(context.Cause(c.held))
	}
	return c.Context.Err()
}

// lockRequest is what tells one kind of Lock call from another.
type lockRequest struct {
	mode    Mode
	try     bool
	publish bool // Campaign: value goes to the file at path in the entry of the grant
	value   []byte
	conds   []command.Cond // of a handle
	queued  bool           // the answer: the call had a place in the queue
}

// lock is a Lock call on the default session. A session that had ended before it could do anything is replaced. One that
// ends while the call waits takes the call's place in the queue with it, and its caller is told.
func (c *Client) lock(ctx context.Context, op, path string, q lockRequest, opts []LockOption) (*Lock, error) {
	for {
		s, err := c.session(ctx)
		if err != nil {
			return nil, &Error{Op: op, Path: path, Err: err}
		}
		l, err := s.lockPath(ctx, op, path, &q, opts)
		if err == nil || q.queued || !retired(err) || ctx.Err() != nil {
			return l, err
		}
	}
}

func (s *Session) lockPath(ctx context.Context, op, path string, q *lockRequest, opts []LockOption) (*Lock, error) {
	l, err := s.acquire(ctx, path, q, opts)
	if err != nil {
		return nil, &Error{Op: op, Path: path, Err: err}
	}
	return l, nil
}

func (s *Session) acquire(ctx context.Context, path string, q *lockRequest, opts []LockOption) (*Lock, error) {
	c := s.client
	path, err := c.entryPath(path)
	if err != nil {
		return nil, err
	}
	var o lockOptions
	for _, opt := range opts {
		if opt.set != nil {
			opt.set(&o)
		}
	}
	if o.err != nil {
		return nil, o.err
	}
	t, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	// The waiter is known before the command leaves, because the grant may come before the answer.
	me, w := owner{uint64(s.id), t.seq}, &lockWaiter{path: path, granted: make(chan uint64, 1)}
	c.await(me, w)
	defer c.forget(me)
	r, err := s.send(ctx, t, &command.Command{
		Kind: command.KindLock, Path: path, Mode: q.mode, Try: q.try, HasData: q.publish, Data: q.value,
		Delay: roundUp(o.delay), Hold: roundUp(o.maxHold), Conds: q.conds,
	}, false)
	// Answered, queued or given up, the command needs its place in the window no longer: a waiter's place is in the
	// queue. Were it kept open, one call that waits for an hour would fill the window with all that come after it.
	t.end()
	if err != nil {
		if !errors.Is(err, ErrUncertain) {
			return nil, err
		}
		s.withdraw(path, t.seq)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, certain(err)
	}
	if r.Code != command.OK {
		return nil, resultError(c.principal, &r)
	}
	generation := r.Generation
	q.queued = generation == 0
	for generation == 0 {
		select {
		case generation = <-w.granted:
		case <-ctx.Done():
			s.withdraw(path, t.seq)
			return nil, ctx.Err()
		case <-s.done:
			return nil, c.cell.lostCause()
		case <-c.cell.halted():
			return nil, c.cell.stopCause()
		}
		if generation != 0 {
			break
		}
		// The wait may have ended without a grant, or this node may have missed how it went on.
		if generation, err = s.review(ctx, path, t.seq, q.publish); err != nil {
			return nil, err
		}
	}
	return s.hold(ctx, &Lock{session: s, path: path, mode: q.mode, generation: generation, seq: t.seq, maxHold: o.maxHold, done: make(chan struct{})})
}

// roundUp gives d in milliseconds, which commands count in.
func roundUp(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}

// review looks at what became of a waiting call: its generation, 0 if it waits on, or why it will not be granted.
func (s *Session) review(ctx context.Context, path string, seq uint64, publish bool) (generation uint64, err error) {
	a, err := s.client.cell.query(ctx, wire.Query{Kind: wire.QueryGrant, Session: uint64(s.id), Seq: seq, Path: path})
	if err != nil {
		s.withdraw(path, seq)
		return 0, err
	}
	switch g := a.Grant; {
	case g.Held:
		return g.Generation, nil
	case g.Waiting:
		return 0, nil
	case !g.Live:
		return 0, s.client.cell.lostCause()
	}
	// Only two other waits end: a handle's, whose entry is gone, and a campaign's, whose value cannot be written any more.
	if !publish {
		return 0, errGone
	}
	if a.Entry.Stat.Dir {
		return 0, ErrIsDir
	}
	return 0, ErrNotDir
}

// hold makes the handle of a granted lock live. A session in jeopardy cannot vouch for it, so the call waits until the
// session is saved or gone.
func (s *Session) hold(ctx context.Context, l *Lock) (*Lock, error) {
	for {
		now := s.client.terms.clock.Boot()
		s.check(now)
		s.mu.Lock()
		state, changed := s.mu.state, s.mu.changed
		if state == SessionActive {
			l.renew()
			s.mu.locks[l.seq] = l
			if l.maxHold > 0 {
				// From before the acknowledgement leaves, so that the cell's count, from its receipt, ends later.
				s.mu.holds.Set(l, now+l.maxHold)
				s.mu.fresh[l] = struct{}{}
			}
			s.mu.Unlock()
			if l.maxHold > 0 {
				s.client.acknowledge()
			} else if !s.client.watchful.Load() {
				signal(s.client.wake)
			}
			return l, nil
		}
		s.mu.Unlock()
		if state == SessionExpired {
			return nil, s.client.cell.lostCause()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			s.withdraw(l.path, l.seq)
			return nil, ctx.Err()
		}
	}
}

// withdraw takes back what a Lock call asked for, in the background, for as long as the session lives: the waiter leaves
// the queue, what was granted is released, and a copy of the call that is still on its way does nothing.
func (s *Session) withdraw(path string, seq uint64) {
	s.persist(&command.Command{Kind: command.KindCancelLock, Path: path, LockSeq: seq})
}

// persist brings a command that frees something into the log, in the background, while the session lives.
func (s *Session) persist(c *command.Command) {
	client := s.client
	client.cell.spawn(func() { // if it cannot, the node is stopping and the session with it
		if _, err := s.do(client.cell.life(), c, true); err != nil {
			client.terms.log.Debug("lock not given back; its session's end will", "path", c.Path, "err", err)
		}
	})
}

// Path returns the lock's path in the form "/a/b".
func (l *Lock) Path() string { return l.path }

// Mode returns how the lock is held.
func (l *Lock) Mode() Mode { return l.mode }

// Sequencer returns the proof of this grant. It stays what it is after the lock is lost; who checks it will know.
func (l *Lock) Sequencer() Sequencer {
	s := l.session
	return Sequencer{Cell: s.client.terms.cell, Epoch: s.epoch, Path: l.path, Mode: l.mode, Generation: l.generation}
}

// Context returns a context that ends before the cell may grant the lock to another: with cause ErrLockLost when the
// session's lease runs out unrenewed or MaxHold is over, ErrSessionExpired when the session ended, ErrClosed when it or
// the node was closed, ErrNotHeld after Unlock. Its Err looks at the clock when asked. A context derived from it, with a
// timeout or values of its own, does not: in a process that was stopped it ends up to 100 ms after the process runs again.
// A context that has ended stays so; if the session was saved within its grace period the lock is still held, and a new
// call of Context gives a live one.
func (l *Lock) Context() context.Context {
	s := l.session
	s.check(s.client.terms.clock.Boot())
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.err == nil && s.mu.state == SessionActive && l.ctx.Context.Err() != nil {
		l.renew()
	}
	return l.ctx
}

// saved waits until the lock's session is out of jeopardy. It reports false if the lock is gone for good.
func (l *Lock) saved(ctx context.Context) (bool, error) {
	s := l.session
	for {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		s.check(s.client.terms.clock.Boot())
		s.mu.Lock()
		gone, state, changed := l.err != nil, s.mu.state, s.mu.changed
		s.mu.Unlock()
		if gone || state == SessionActive {
			return !gone, nil
		}
		select {
		case <-changed:
		case <-l.done:
		case <-ctx.Done():
		}
	}
}

// renew gives the lock a live context. Called with session.mu held.
func (l *Lock) renew() {
	ctx, cancel := context.WithCancelCause(context.Background())
	l.ctx, l.cancel = lockContext{ctx, l.session}, cancel
}

// lockContext is a context that asks the clock before it says that it is alive: the timer that ends it runs late in a
// process that was suspended.
type lockContext struct {
	context.Context
	session *Session
}

func (c lockContext) Err() error {
	if c.Context.Err() == nil {
		c.session.check(c.session.client.terms.clock.Boot())
	}
	return c.Context.Err()
}

// Done returns a channel that is closed when the lock is gone for good; Context may have ended a grace period earlier.
func (l *Lock) Done() <-chan struct{} { return l.done }

// Err returns nil while the lock may still be held, and after Done is closed why it is gone: ErrNotHeld after Unlock,
// ErrLockLost after MaxHold, ErrSessionExpired, or ErrClosed.
func (l *Lock) Err() error {
	s := l.session
	s.check(s.client.terms.clock.Boot())
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.err
}

// endLocked makes the lock gone for good. Called with session.mu held.
func (l *Lock) endLocked(why error) {
	if l.err != nil {
		return
	}
	l.err = why
	l.cancel(why)
	close(l.done)
	delete(l.session.mu.locks, l.seq)
	if l.maxHold > 0 {
		l.session.mu.holds.Remove(l)
		delete(l.session.mu.fresh, l)
	}
}

// unlockCommand names the grant, so that doing it twice is doing it once.
func (l *Lock) unlockCommand() *command.Command {
	return &command.Command{Kind: command.KindUnlock, Path: l.path, Generation: l.generation, LockSeq: l.seq}
}

// Unlock releases the lock. Its Context and Done end first. It names this grant, so it never frees a later holder's.
//
// It returns ErrNotHeld if the lock was gone before. If ctx ends before the cell has answered it returns ErrUncertain,
// and unlocking goes on in the background while the session lives.
func (l *Lock) Unlock(ctx context.Context) error {
	if err := l.unlock(ctx); err != nil {
		return &Error{Op: "unlock", Path: l.path, Err: err}
	}
	return nil
}

func (l *Lock) unlock(ctx context.Context) error {
	s := l.session
	s.mu.Lock()
	gone := l.err != nil
	l.endLocked(ErrNotHeld)
	s.mu.Unlock()
	if gone {
		return ErrNotHeld
	}
	if outer, ok := ctx.Value(l).(context.Context); ok {
		// The context that fn of WithLock or RunLeader was given has just ended with the lock. That is no reason not to
		// wait for the cell's answer.
		if deadline, ok := ctx.Deadline(); ok {
			bounded, cancel := context.WithDeadline(outer, deadline)
			defer cancel()
			outer = bounded
		}
		ctx = outer
	}
	c := l.unlockCommand()
	r, err := s.do(ctx, c, true)
	if err != nil {
		if ctx.Err() != nil {
			s.persist(c)
			if !errors.Is(err, ErrUncertain) {
				err = fmt.Errorf("%w: %w", ErrUncertain, err)
			}
		}
		return err
	}
	if r.Code != command.OK {
		return codeError(r.Code)
	}
	return nil
}

// await, forget and granted keep the Client's waiters.
func (c *Client) await(o owner, w *lockWaiter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.waiters[o] = w
}

func (c *Client) forget(o owner) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.waiters, o)
}

func (c *Client) granted(o owner, generation uint64) {
	c.mu.Lock()
	w := c.mu.waiters[o]
	c.mu.Unlock()
	if w == nil {
		return
	}
	select {
	case w.granted <- generation:
	default: // told before
	}
}

// certain takes ErrUncertain off an error whose doubt the library has taken upon itself.
func certain(err error) error {
	for _, cause := range []error{ErrSessionExpired, ErrClosed, ErrRemoved, ErrCorrupt} {
		if errors.Is(err, cause) {
			return cause
		}
	}
	return ErrNoQuorum
}
