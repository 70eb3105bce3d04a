package chubby

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// Leadership is an election won. It is held like a Lock, and lost like one.
type Leadership struct{ lock *Lock }

// LeaderInfo tells who leads.
type LeaderInfo struct {
	Path       string
	Value      []byte // what the leader published
	Generation uint64 // of its sequencer
	Revision   uint64 // of the grant
	Session    SessionID
	Name       string // of the session
}

// Campaign waits until the default session wins the election at path. See [Session.Campaign].
func (c *Client) Campaign(ctx context.Context, path string, value []byte, opts ...LockOption) (*Leadership, error) {
	if err := c.checkValue(value); err != nil {
		return nil, &Error{Op: "campaign", Path: path, Err: err}
	}
	l, err := c.lock(ctx, "campaign", path, lockRequest{mode: Exclusive, publish: true, value: value}, opts)
	if err != nil {
		return nil, err
	}
	return &Leadership{l}, nil
}

// Campaign waits until the session holds the lock at path exclusively, and with it leads. value is written to the file
// at path, made if missing, in the same step as the grant, so that nobody ever sees the new leader with its
// predecessor's value. It returns ErrIsDir, ErrTooLarge, and the errors of Lock: ErrSessionExpired when its session ends
// while it waits, in which case nothing of it stays in the queue.
func (s *Session) Campaign(ctx context.Context, path string, value []byte, opts ...LockOption) (*Leadership, error) {
	if err := s.client.checkValue(value); err != nil {
		return nil, &Error{Op: "campaign", Path: path, Err: err}
	}
	l, err := s.lockPath(ctx, "campaign", path, &lockRequest{mode: Exclusive, publish: true, value: value}, opts)
	if err != nil {
		return nil, err
	}
	return &Leadership{l}, nil
}

// RunLeader campaigns with the default session and calls fn while it leads. See [Session.RunLeader]. When the session
// ends, it goes on with a new one.
func (c *Client) RunLeader(ctx context.Context, path string, value []byte, fn func(context.Context, *Leadership) error, opts ...LockOption) error {
	return c.runLeader(ctx, path, fn, func() (*Leadership, error) {
		l, err := c.Campaign(ctx, path, value, opts...)
		if retired(err) {
			err = errCampaignAgain
		}
		return l, err
	})
}

// RunLeader campaigns at path and, each time it wins, calls fn, whose context ends when the leadership or ctx does. fn
// must return then; while it does not, a warning is logged at growing intervals. RunLeader releases the leadership, and
// campaigns again, only after fn has returned, so two calls of fn never overlap.
//
// When fn returns while the leadership stands, or after it resigned itself, RunLeader resigns and returns fn's error.
// When the leadership was lost, it goes on: with the same leadership, under the same generation, if the session was in
// jeopardy and is saved, and else with a new campaign. It ends with the error of ctx, ErrSessionExpired when the
// session ended, ErrClosed, and the errors of Campaign that another attempt would meet too. If fn panics the leadership
// is released and the panic goes on.
func (s *Session) RunLeader(ctx context.Context, path string, value []byte, fn func(context.Context, *Leadership) error, opts ...LockOption) error {
	return s.client.runLeader(ctx, path, fn, func() (*Leadership, error) { return s.Campaign(ctx, path, value, opts...) })
}

// errCampaignAgain stands for an error that another campaign does not meet.
var errCampaignAgain = errors.New("campaign again")

const (
	campaignPauseMin = 100 * time.Millisecond
	campaignPauseMax = 5 * time.Second
)

func (c *Client) runLeader(ctx context.Context, path string, fn func(context.Context, *Leadership) error, campaign func() (*Leadership, error)) error {
	pause := campaignPauseMin
	for {
		l, err := campaign()
		switch {
		case err == nil:
			pause = campaignPauseMin
			if over, err := l.run(ctx, fn); over {
				return err
			}
		case errors.Is(err, errCampaignAgain):
		case errors.Is(err, ErrOverloaded), errors.Is(err, ErrNoSpace), errors.Is(err, ErrNoQuorum) && ctx.Err() == nil:
			// The cell's trouble of the moment: who leads for months must not end with it.
			c.terms.log.Warn("campaign refused; it will be tried again", "path", path, "pause", pause, "err", err)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return &Error{Op: "run leader", Path: path, Err: ctx.Err()}
			}
			pause = min(2*pause, campaignPauseMax)
		default:
			return err
		}
	}
}

// run calls fn under one leadership, again and again while that is lost for a time only. It reports whether RunLeader is
// over, and with what.
func (l *Leadership) run(ctx context.Context, fn func(context.Context, *Leadership) error) (over bool, err error) {
	for {
		stood, err := l.lock.during(ctx, func(ctx context.Context) error {
			defer l.nag(ctx)()
			return fn(ctx, l)
		})
		if stood || errors.Is(l.Err(), ErrNotHeld) {
			l.lock.release(ctx)
			return true, err
		}
		l.lock.session.client.terms.log.Info("leadership lost", "path", l.lock.path, "generation", l.lock.generation, "fn", err)
		saved, err := l.lock.saved(ctx)
		if err != nil {
			l.lock.release(ctx)
			return true, &Error{Op: "run leader", Path: l.lock.path, Err: err}
		}
		if !saved {
			return false, nil
		}
	}
}

const nagFirst = time.Second

// nag logs a warning while fn goes on although its context has ended, each after twice the time of the last. What it
// returns ends that, and waits for it.
func (l *Leadership) nag(ctx context.Context) (end func()) {
	returned := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-returned:
			return
		}
		ended := time.Now()
		for pause := nagFirst; ; pause *= 2 {
			t := time.NewTimer(pause)
			select {
			case <-t.C:
				l.lock.session.client.terms.log.Warn("fn of RunLeader goes on although its context has ended; the leadership is not released before it returns",
					"path", l.lock.path, "since", time.Since(ended).Round(time.Millisecond), "cause", context.Cause(ctx))
			case <-returned:
				t.Stop()
				return
			}
		}
	})
	return func() {
		close(returned)
		wg.Wait()
	}
}

func (c *Client) checkValue(value []byte) error {
	if limit := c.terms.limits.ValueBytes; len(value) > limit {
		return tooLarge("value", len(value), limit)
	}
	return nil
}

// Leader tells who leads at path. It is linearizable. While nobody does it returns ErrNoLeader, whatever the file holds.
func (c *Client) Leader(ctx context.Context, path string) (LeaderInfo, error) {
	p, a, err := c.readAt(ctx, wire.QueryLeader, path)
	if err != nil {
		return LeaderInfo{}, &Error{Op: "leader", Path: path, Err: err}
	}
	info := leaderOf(p, &a)
	if info.Generation == 0 {
		return LeaderInfo{}, &Error{Op: "leader", Path: path, Err: ErrNoLeader}
	}
	return info.own(), nil
}

// leaderOf tells who leads at path by the answer to a QueryLeader; nobody is Generation 0. Value aliases the answer.
func leaderOf(path string, a *wire.Answer) LeaderInfo {
	info := LeaderInfo{Path: path}
	v := &a.Lock
	if v.Mode != Exclusive || len(v.Holders) == 0 {
		return info
	}
	h := v.Holders[0]
	info.Generation, info.Revision, info.Session, info.Name = v.Generation, h.Since, SessionID(h.Session), h.Name
	if e := &a.Entry; e.Stat.Instance != 0 && !e.Stat.Dir {
		info.Value = e.Data
		if info.Value == nil {
			info.Value = []byte{}
		}
	}
	return info
}

// own gives info a Value that its caller may change.
func (info LeaderInfo) own() LeaderInfo {
	if info.Value != nil {
		info.Value = append([]byte{}, info.Value...)
	}
	return info
}

func (info LeaderInfo) equal(other LeaderInfo) bool {
	return info.Generation == other.Generation && info.Revision == other.Revision && info.Session == other.Session && bytes.Equal(info.Value, other.Value)
}

// ObserveLeader tells who leads at path: first as it is, then whenever that has changed, in whose hands it is or what the
// leader published. While nobody leads, Generation is 0 and Value nil, whatever the file holds. States that follow each
// other faster than the loop takes them may be left out, the last one never is.
//
// What it tells is what this node knows: while the node is cut off from the cell it tells nothing new, and afterwards it
// goes on by itself, whatever was missed meanwhile. Whoever takes orders from the leader checks its sequencer.
//
// The loop ends with exactly one error, unless its body breaks off: the error of ctx, ErrClosed, or from the start
// ErrBadPath, ErrOverloaded beyond Limits.Watchers, or the error of ctx with ErrNoLeader or ErrNoQuorum. It can be
// looped over again, and begins anew each time.
func (c *Client) ObserveLeader(ctx context.Context, path string) iter.Seq2[LeaderInfo, error] {
	return func(yield func(LeaderInfo, error) bool) {
		fail := func(err error) { yield(LeaderInfo{}, &Error{Op: "observe leader", Path: path, Err: err}) }
		w, p, err := c.watch(ctx, path, WatchOptions{})
		if err != nil {
			fail(err)
			return
		}
		defer w.close()
		var last LeaderInfo
		for first := true; ; first = false {
			// The watch comes before the state and events after it: whatever happens from here on wakes the loop again.
			a, _, err := c.cell.peek(ctx, wire.Query{Kind: wire.QueryLeader, Path: p, Principal: c.principal}, c.last.Load())
			if err == nil {
				err = answerError(c.principal, &a)
			}
			if err != nil {
				fail(err)
				return
			}
			c.saw(a.Revision)
			if info := leaderOf(p, &a); first || !info.equal(last) {
				if last = info; !yield(info.own(), nil) {
					return
				}
			}
			seen, err := w.next(ctx)
			if errors.Is(err, ErrLagged) {
				err = w.rejoin(ctx)
			}
			if err != nil {
				fail(err)
				return
			}
			c.saw(seen.done)
		}
	}
}

// Sequencer returns the proof of this leadership; a later leader's is larger.
func (l *Leadership) Sequencer() Sequencer { return l.lock.Sequencer() }

// Context ends before another can lead; see [Lock.Context].
func (l *Leadership) Context() context.Context { return l.lock.Context() }

// Done is closed when the leadership is gone for good; see [Lock.Done].
func (l *Leadership) Done() <-chan struct{} { return l.lock.Done() }

// Err tells why the leadership is gone; see [Lock.Err].
func (l *Leadership) Err() error { return l.lock.Err() }

// Publish writes value to the file at the election's path, if this leadership still stands when the write happens; else
// it returns ErrStaleSequencer and writes nothing. Its other errors are those of Set.
func (l *Leadership) Publish(ctx context.Context, value []byte) error {
	c := l.lock.session.client
	path, err := c.checkWrite(l.lock.path, value)
	if err != nil {
		return &Error{Op: "publish", Path: l.lock.path, Err: err}
	}
	conds, err := c.commandConds([]Cond{IfHolds(l.Sequencer())}, path)
	if err != nil {
		return &Error{Op: "publish", Path: path, Err: err}
	}
	r, err := l.lock.session.do(ctx, &command.Command{Kind: command.KindSet, Path: path, Data: value, Conds: conds}, false)
	if err == nil && r.Code != command.OK {
		err = resultError(c.principal, &r)
	}
	if err != nil {
		return &Error{Op: "publish", Path: path, Err: err}
	}
	return nil
}

// Resign gives the leadership up: Context and Done end first, then the next in the queue leads. See [Lock.Unlock].
func (l *Leadership) Resign(ctx context.Context) error {
	if err := l.lock.unlock(ctx); err != nil {
		return &Error{Op: "resign", Path: l.lock.path, Err: err}
	}
	return nil
}
