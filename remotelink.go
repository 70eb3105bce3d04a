package chubby

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/chubbygo/chubby/internal/wire"
)

// memberLink keeps a dialled Client's stream to one address.
type memberLink struct {
	remote *remote
	addr   string

	// Guarded by remote.mu.
	conn  *memberConn // nil: none
	err   error       // why the last attempt failed, or why the stream broke
	fails int         // attempts that failed since the last stream
}

// memberConn is one stream to a member that has told who it is.
type memberConn struct {
	addr     string
	stream   *stream
	attached wire.Attached
	ctx      context.Context // ends when it is home no longer, and with the stream
	cancel   context.CancelFunc
	calls    chan struct{} // a place for each call that runs
	urgent   chan struct{} // the same for what must not wait behind those
}

// run connects, waits for the stream to break, and connects again, until the Client is closed.
func (l *memberLink) run() {
	r := l.remote
	pause := dialPauseMin
	for {
		began := time.Now()
		c, err := l.connect()
		if err == nil {
			r.joined(l, c)
			<-c.stream.ctx.Done()
			c.stream.wg.Wait()
			err = c.stream.reason()
			c.cancel()
		}
		if r.ctx.Err() != nil {
			return
		}
		r.parted(l, c, err)
		// Whoever accepts and closes at once must not be dialled in a circle.
		if c != nil && time.Since(began) > dialPauseMax {
			pause = dialPauseMin
		}
		r.opts.Logger.Debug("not connected to a member", "addr", l.addr, "err", err, "retry", pause)
		t := time.NewTimer(jitter(pause))
		select {
		case <-t.C:
		case <-r.ctx.Done():
			t.Stop()
			return
		}
		pause = min(2*pause, dialPauseMax)
	}
}

// connect opens the stream and asks the member what the Client must know.
func (l *memberLink) connect() (*memberConn, error) {
	r := l.remote
	s, err := r.transport.open(r.ctx, l.addr, wire.Client, "")
	if err != nil {
		return nil, impostor(err)
	}
	s.pushed = r.pushed
	s.wg.Go(s.write)
	s.wg.Go(s.readAnswers)
	ctx, cancel := context.WithTimeout(r.ctx, attachTime)
	defer cancel()
	b, err := s.call(ctx, wire.KindAttach, []byte(r.opts.Cell))
	var a wire.Attached
	if err == nil {
		a, err = wire.ParseAttached(b)
	}
	if err == nil {
		err = r.meetEpoch(a.Epoch)
	}
	if err != nil {
		s.fail(err)
		s.wg.Wait()
		return nil, err
	}
	c := &memberConn{addr: l.addr, stream: s, attached: a, calls: make(chan struct{}, remoteCalls), urgent: make(chan struct{}, remoteCalls)}
	c.ctx, c.cancel = context.WithCancel(s.ctx)
	return c, nil
}

// impostor makes ErrPermission of what TLS says when one side does not belong to the cell of the other.
func impostor(err error) error {
	var authority x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var alert *net.OpError
	if errors.As(err, &authority) || errors.As(err, &invalid) || errors.As(err, &alert) && alert.Op == "remote error" {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}

// call sends a request and waits for the answer, until ctx ends, or for so long that the member must be gone: then its
// stream is closed, so that another becomes home.
func (c *memberConn) call(ctx context.Context, k wire.Kind, payload []byte, patience time.Duration) ([]byte, error) {
	places := c.calls
	switch k {
	case wire.KindUrgent, wire.KindRenew:
		places = c.urgent
	case wire.KindTouch, wire.KindTrack, wire.KindNext, wire.KindCacheRenew, wire.KindCachePoll:
		places = nil
	}
	if places != nil {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errNotSent, ctx.Err())
		case <-c.stream.ctx.Done():
			return nil, fmt.Errorf("%w: %w", errNotSent, c.stream.reason())
		}
	}
	bounded, cancel := context.WithTimeoutCause(ctx, patience, errSilent)
	defer cancel()
	b, err := c.stream.call(bounded, k, payload)
	if err != nil && ctx.Err() == nil && context.Cause(bounded) == errSilent {
		if patience >= callTime { // and not just slow to say whether it is in touch
			c.stream.fail(errSilent)
		}
		err = fmt.Errorf("%s: %w", c.addr, errSilent)
	}
	return b, err
}

// joined takes a stream that was opened.
func (r *remote) joined(l *memberLink, c *memberConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.conn, l.err, l.fails = c, nil, 0
	r.mu.live[c] = struct{}{}
	if r.mu.home == nil || !r.mu.touched {
		signal(r.look)
	}
	r.change()
}

// parted notes that there is no stream, c being the one that broke, if there was one.
func (r *remote) parted(l *memberLink, c *memberConn, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.conn, l.err = nil, err
	l.fails++
	delete(r.mu.live, c)
	if c != nil && r.mu.home == c {
		r.mu.home = nil
		signal(r.look)
	}
	r.change()
}

// change is called with mu held.
func (r *remote) change() {
	close(r.mu.changed)
	r.mu.changed = make(chan struct{})
}

// home gives the member to which calls go, nil if there is none, and what is closed when that may have changed.
func (r *remote) home() (*memberConn, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.mu.home; c != nil && c.stream.ctx.Err() == nil {
		return c, r.mu.changed
	}
	return nil, r.mu.changed
}

// doubt has the home looked at: it gave no answer. One that is known not to be in touch is looked at anyway, from time to
// time: thousands of clients whose every attempt made them ask all members would keep a busy cell from its election.
func (r *remote) doubt() {
	r.mu.Lock()
	touched := r.mu.touched
	r.mu.Unlock()
	if touched {
		signal(r.look)
	}
}

// steer chooses the home: it keeps one that is in touch with a cell leader, and else takes the first of the others that
// says so, which is the nearest. Where none is in touch, calls wait at one that can be reached.
func (r *remote) steer() {
	pause := steerPauseMin
	for {
		var again <-chan time.Time
		if r.settle() {
			pause = steerPauseMin
		} else {
			again = time.After(jitter(pause))
			pause = min(2*pause, steerPauseMax)
		}
		select {
		case <-r.look:
		case <-again:
		case <-r.ctx.Done():
			return
		}
	}
}

// settle looks once. It reports whether the home is in touch, or nobody can be asked.
func (r *remote) settle() bool {
	r.mu.Lock()
	home := r.mu.home
	others := make([]*memberConn, 0, len(r.mu.live))
	for c := range r.mu.live {
		if c != home {
			others = append(others, c)
		}
	}
	r.mu.Unlock()
	if home != nil {
		touched := r.inTouch(r.ctx, home)
		r.mu.Lock()
		if r.mu.home == home {
			r.mu.touched = touched
		}
		r.mu.Unlock()
		if touched {
			return true
		}
	}
	if len(others) == 0 {
		return home == nil
	}
	type outcome struct {
		c       *memberConn
		touched bool
	}
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	outcomes := make(chan outcome, len(others))
	for _, c := range others {
		if !r.spawn(func() { outcomes <- outcome{c, r.inTouch(ctx, c)} }) {
			return false
		}
	}
	for range others {
		if o := <-outcomes; o.touched {
			return r.adopt(o.c, true)
		}
	}
	if home == nil {
		r.adopt(others[0], false)
	}
	return false
}

func (r *remote) inTouch(ctx context.Context, c *memberConn) bool {
	b, err := c.call(ctx, wire.KindTouch, nil, touchTime)
	if err != nil {
		return false
	}
	t, err := wire.ParseTouch(b)
	return err == nil && t.InTouch
}

// adopt makes c the home. Before calls go there it is told of the sessions, so that no grant is missed from then on; then
// whoever waits looks after what was missed until then.
func (r *remote) adopt(c *memberConn, touched bool) bool {
	client := r.client.Load()
	r.mu.Lock()
	old := r.mu.home
	r.mu.home = nil
	r.mu.Unlock()
	if old != nil {
		old.cancel()
	}
	var k wire.KeepAlive
	for _, s := range client.all() {
		k.Sessions = append(k.Sessions, uint64(s.id))
	}
	for _, part := range wire.SplitKeepAlive(k) {
		if _, err := c.call(r.ctx, wire.KindTrack, wire.AppendKeepAlive(nil, &part), callTime); err != nil {
			c.stream.fail(err)
			return false
		}
	}
	r.mu.Lock()
	_, live := r.mu.live[c]
	if live {
		r.mu.home, r.mu.touched = c, touched
	}
	r.change()
	r.mu.Unlock()
	client.review()
	return live && touched
}

// meetEpoch takes the epoch of a member. A greater one than before ends all sessions: the cell was restored or
// recovered, and knows nothing of them. A member of a smaller one has not heard of it.
func (r *remote) meetEpoch(epoch uint64) error {
	for {
		old := r.epoch.Load()
		if epoch < old {
			return fmt.Errorf("%w: the member is of epoch %d, the cell of %d", errNotFounded, epoch, old)
		}
		if epoch == old {
			return nil
		}
		if r.epoch.CompareAndSwap(old, epoch) {
			break
		}
	}
	r.mu.Lock()
	var stale []*memberConn
	for c := range r.mu.live {
		if c.attached.Epoch < epoch {
			stale = append(stale, c)
		}
	}
	r.mu.Unlock()
	for _, c := range stale {
		c.stream.fail(errNotFounded)
	}
	if c := r.client.Load(); c != nil {
		c.newEpoch(epoch)
	}
	return nil
}

// pushed takes what a member tells of its own accord. It runs on the reader of the stream.
func (r *remote) pushed(kind byte, payload []byte) {
	c := r.client.Load()
	if c == nil {
		return // nothing of ours can have happened
	}
	switch kind {
	case wire.PushOwner:
		if o, err := wire.ParseOwner(payload); err == nil {
			c.told(o)
		}
	case wire.PushEnded:
		if id, err := wire.ParseNumber(payload); err == nil {
			if s := c.known(id); s != nil {
				s.end(ErrSessionExpired)
			}
		}
	case wire.PushReview:
		c.review()
	}
}
