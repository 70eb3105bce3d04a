package memnet

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// conn is one end of a stream.
type conn struct {
	local, remote Addr
	in, out       *half
}

// newPair gives both ends of a stream: the dialler's, then the listener's.
func newPair(n *Net, here, there Addr, to, back link) (*conn, *conn) {
	forth, rev := newHalf(n, to), newHalf(n, back)
	return &conn{here, there, rev, forth}, &conn{there, here, forth, rev}
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *conn) Write(p []byte) (int, error) { return c.out.write(p) }

// Close ends Read and Write at this end. The other end reads what is under way, then io.EOF; its writes fail.
func (c *conn) Close() error {
	c.out.endWriting()
	c.in.endReading()
	return nil
}

// reset makes both ends fail, as if the machine at this end had forgotten the stream.
func (c *conn) reset() {
	c.out.fail(ErrReset)
	c.in.fail(ErrReset)
}

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.mu.readBy, t)
	return nil
}

func (c *conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.mu.writeBy, t)
	return nil
}

// half is one direction of a stream: a bounded queue of segments that become readable when they are due.
type half struct {
	n    *Net
	link link
	mu   struct {
		sync.Mutex
		segments        []segment
		size            int // bytes in segments
		last            time.Time
		ended           bool  // the writer closed its end
		unread          bool  // the reader closed its end
		err             error // both ends fail with it
		readBy, writeBy time.Time
		changed         chan struct{} // closed and replaced at each change
	}
}

type segment struct {
	data []byte // empty: end of the stream
	due  time.Time
}

func newHalf(n *Net, l link) *half {
	h := &half{n: n, link: l}
	h.mu.changed = make(chan struct{})
	return h
}

// signal is called with h.mu held.
func (h *half) signal() {
	close(h.mu.changed)
	h.mu.changed = make(chan struct{})
}

// push is called with h.mu held.
func (h *half) push(data []byte, latency time.Duration) {
	due := time.Now().Add(latency)
	if due.Before(h.mu.last) {
		due = h.mu.last // a stream keeps its order
	}
	h.mu.last = due
	h.mu.segments = append(h.mu.segments, segment{data, due})
	h.mu.size += len(data)
	h.signal()
}

func (h *half) read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		up, since, topology := h.n.state(h.link)
		n, wake, changed, err := h.tryRead(p, up, since)
		if n > 0 || err != nil {
			return n, err
		}
		wait(wake, changed, topology)
	}
}

// tryRead reads what is due. If there is nothing, it tells when to look again.
func (h *half) tryRead(p []byte, up bool, since time.Time) (n int, wake time.Time, changed <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.mu.unread:
		return 0, wake, nil, net.ErrClosed
	case h.mu.err != nil:
		return 0, wake, nil, h.mu.err
	case past(h.mu.readBy, now):
		return 0, wake, nil, os.ErrDeadlineExceeded
	case !up && now.Sub(since) >= breakAfter:
		h.mu.err = ErrTimeout
		h.signal()
		return 0, wake, nil, ErrTimeout
	}
	wake = h.mu.readBy
	if !up {
		return 0, earlier(wake, since.Add(breakAfter)), h.mu.changed, nil
	}
	if len(h.mu.segments) == 0 {
		return 0, wake, h.mu.changed, nil
	}
	for n < len(p) && len(h.mu.segments) > 0 {
		s := &h.mu.segments[0]
		if s.due.After(now) {
			wake = earlier(wake, s.due)
			break
		}
		if len(s.data) == 0 {
			if n == 0 {
				return 0, wake, nil, io.EOF // the segment stays: every later Read is told the same
			}
			break
		}
		k := copy(p[n:], s.data)
		n += k
		h.mu.size -= k
		if s.data = s.data[k:]; len(s.data) == 0 {
			h.mu.segments[0].data = nil
			h.mu.segments = h.mu.segments[1:]
		}
	}
	if n > 0 {
		h.signal() // there is room
	}
	return n, wake, h.mu.changed, nil
}

func (h *half) write(p []byte) (int, error) {
	total := 0
	for {
		up, since, topology := h.n.state(h.link)
		latency := h.n.latency()
		n, wake, changed, err := h.tryWrite(p, up, since, latency)
		total += n
		p = p[n:]
		if err != nil || len(p) == 0 {
			return total, err
		}
		if n == 0 {
			wait(wake, changed, topology)
		}
	}
}

// tryWrite takes what there is room for. If there is none, it tells when to look again.
func (h *half) tryWrite(p []byte, up bool, since time.Time, latency time.Duration) (n int, wake time.Time, changed <-chan struct{}, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	switch {
	case h.mu.ended:
		return 0, wake, nil, net.ErrClosed
	case h.mu.err != nil:
		return 0, wake, nil, h.mu.err
	case past(h.mu.writeBy, now):
		return 0, wake, nil, os.ErrDeadlineExceeded
	case h.mu.unread && up:
		return 0, wake, nil, ErrReset
	case !up && now.Sub(since) >= breakAfter:
		h.mu.err = ErrTimeout
		h.signal()
		return 0, wake, nil, ErrTimeout
	case len(p) == 0:
		return 0, wake, nil, nil
	}
	n = min(len(p), bufferSize-h.mu.size)
	if n > 0 {
		h.push(append([]byte(nil), p[:n]...), latency)
		return n, wake, nil, nil
	}
	wake = h.mu.writeBy
	if !up {
		wake = earlier(wake, since.Add(breakAfter))
	}
	return 0, wake, h.mu.changed, nil
}

func (h *half) endWriting() {
	latency := h.n.latency()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.ended {
		h.mu.ended = true
		h.push(nil, latency)
	}
}

func (h *half) endReading() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.unread {
		h.mu.unread = true
		h.mu.segments, h.mu.size = nil, 0
		h.signal()
	}
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.err == nil {
		h.mu.err = err
		h.signal()
	}
}

func (h *half) setDeadline(which *time.Time, t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	*which = t
	h.signal()
}

func past(deadline, now time.Time) bool { return !deadline.IsZero() && !now.Before(deadline) }

// earlier gives the earlier of two times; zero is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// wait returns at the time wake, if it is not zero, or when one of the channels is closed.
func wait(wake time.Time, changed, topology <-chan struct{}) {
	var timer <-chan time.Time
	if !wake.IsZero() {
		t := time.NewTimer(time.Until(wake))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-timer:
	case <-changed:
	case <-topology:
	}
}
