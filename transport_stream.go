package chubby

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/chubbygo/chubby/internal/wire"
)

const (
	maxQueued   = 1 << 20   // bytes that wait to be written on one stream; senders wait above it
	keepBuffer  = 2 << 20   // a write buffer above this size is not kept
	writePiece  = 256 << 10 // bytes that must get through within a stream's time-out
	readBuffer  = 32 << 10
	guestBuffer = 4 << 10 // of a client's stream, for reading and to keep for writing: there are thousands
	aliveFactor = 5       // signs of life within a stream's time-out
)

// waiter gets the answer to one request.
type waiter interface {
	// finish is called once, by the stream's reader: with the answer, with the other side's error, or with the reason
	// why the stream broke. It may block the reader for a moment only.
	finish(payload []byte, err error)
}

// stream is a connection after its hello. Senders append frames to a buffer, one goroutine writes it out: so frames of
// many senders leave together, and no sender waits for the network while it holds a lock.
type stream struct {
	t       *transport
	conn    net.Conn // secured, if streams are
	raw     net.Conn // under conn; closed without TLS's farewell, which could block
	peer    peerInfo
	purpose purpose
	ctx     context.Context // ends when the stream fails
	cancel  context.CancelFunc
	wg      sync.WaitGroup                  // what the stream started
	timeout time.Duration                   // silence after which it is dead
	place   chan struct{}                   // accepted: where it has its place
	guest   guest                           // accepted from a dialled client: who answers it
	pushed  func(kind byte, payload []byte) // dialled as a client: is given what the member pushes, by the reader; must not block
	parts   map[uint64][]byte               // beginnings of answers; the reader's
	in      *bufio.Reader
	head    [wire.HeaderLen]byte // scratch of the reader
	wake    chan struct{}        // there is something to write
	room    chan struct{}        // there may be room in the buffer

	// compose may add frames to what is about to be written, under mu. nil = nothing to add.
	compose func(b []byte) []byte
	told    atomic.Uint64 // highest commit index sent on this append stream; written under mu

	mu struct {
		sync.Mutex
		out     []byte
		lastID  uint64
		waiting map[uint64]waiter
		err     error // set once, when the stream fails
	}
}

// newStream takes over an open connection. ctx ends it. The caller starts write and reads.
func newStream(ctx context.Context, t *transport, raw, conn net.Conn, from peerInfo, p purpose) *stream {
	s := &stream{t: t, raw: raw, conn: conn, peer: from, purpose: p, timeout: t.streamTimeout}
	buffer := readBuffer
	if p == wire.Client {
		s.timeout, buffer = guestTimeout, guestBuffer
	}
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.in = bufio.NewReaderSize(&patientReader{conn: conn, timeout: s.timeout}, buffer)
	s.wake = make(chan struct{}, 1)
	s.room = make(chan struct{}, 1)
	s.mu.waiting = make(map[uint64]waiter)
	return s
}

// patientReader gives each read of a connection its own deadline, so that a slow large frame is no silence.
type patientReader struct {
	conn    net.Conn
	timeout time.Duration
	set     time.Time
}

func (r *patientReader) Read(p []byte) (int, error) {
	// Moving the deadline costs more than looking at the clock. At least 3/4 of the time-out is always left.
	if now := time.Now(); now.Sub(r.set) > r.timeout/4 {
		if err := r.conn.SetReadDeadline(now.Add(r.timeout)); err != nil {
			return 0, err
		}
		r.set = now
	}
	return r.conn.Read(p)
}

// signal makes a channel of capacity one readable.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// fail ends the stream for the given reason. The first reason counts.
func (s *stream) fail(err error) {
	s.mu.Lock()
	if s.mu.err != nil {
		s.mu.Unlock()
		return
	}
	s.mu.err = err
	s.mu.out = nil
	s.mu.Unlock()
	s.cancel()
	s.t.drop(s.raw)
}

// settle ends the waiting of those who get no answer any more. It is the last thing that the reader of a dialled stream
// does, so that finish is called by one goroutine only.
func (s *stream) settle() {
	s.mu.Lock()
	err := s.mu.err
	waiting := s.mu.waiting
	s.mu.waiting = nil
	s.mu.Unlock()
	for _, w := range waiting {
		w.finish(nil, fmt.Errorf("%s stream to %s broke: %w", s.purpose, s.name(), err))
	}
}

// reason is why the stream failed; nil while it lives.
func (s *stream) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.err
}

// name is what the other end is called in logs and errors.
func (s *stream) name() string {
	if s.peer.Server != "" {
		return string(s.peer.Server)
	}
	return s.peer.Addr
}

// send queues a frame. If w is not nil the frame gets a new id and w the answer; otherwise it carries the given id. It
// waits for room until stop is closed. An error means that nothing was queued and w is not called.
func (s *stream) send(stop <-chan struct{}, w waiter, typ wire.Type, id uint64, encode func([]byte) []byte) (uint64, error) {
	for {
		id, done, err := s.trySend(w, typ, id, encode)
		if done || err != nil {
			return id, err
		}
		select {
		case <-s.room:
		case <-s.ctx.Done():
		case <-stop:
			return 0, errors.New("no room in the stream")
		}
	}
}

func (s *stream) trySend(w waiter, typ wire.Type, id uint64, encode func([]byte) []byte) (uint64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.err != nil {
		return 0, false, s.mu.err
	}
	start := len(s.mu.out)
	if start >= maxQueued {
		return 0, false, nil
	}
	if w != nil {
		id = s.mu.lastID + 1
	}
	b := wire.BeginFrame(s.mu.out, typ, id)
	if encode != nil {
		b = encode(b)
	}
	if n := wire.EndFrame(b, start); n > s.purpose.MaxPayload() {
		s.mu.out = b[:start]
		return 0, false, fmt.Errorf("%w: message of %d bytes on a %s stream, at most %d are allowed", ErrTooLarge, n, s.purpose, s.purpose.MaxPayload())
	}
	s.mu.out = b
	if w != nil {
		s.mu.lastID = id
		s.mu.waiting[id] = w
	}
	if len(b) < maxQueued {
		signal(s.room) // others may wait for room too, and the signal that woke this one was theirs as well
	}
	signal(s.wake)
	return id, true, nil
}

// forget withdraws a waiter. Its finish is running, or has run, if it reports false.
func (s *stream) forget(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mu.waiting[id]
	delete(s.mu.waiting, id)
	return ok
}

func (s *stream) take(id uint64) waiter {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.mu.waiting[id]
	delete(s.mu.waiting, id)
	return w
}

// write is the writing goroutine. It ends when the stream fails, and makes it fail when its ctx ends.
func (s *stream) write() {
	alive := time.NewTicker(s.timeout / aliveFactor)
	defer alive.Stop()
	var spare []byte
	keep := keepBuffer
	if s.purpose == wire.Client {
		keep = guestBuffer
	}
	wrote := false
	for {
		select {
		case <-s.wake:
		case <-alive.C:
			if !wrote {
				_, _, _ = s.trySend(nil, wire.TypeAlive, 0, nil) // a full buffer is a sign of life too
			}
			wrote = false
		case <-s.ctx.Done():
			s.fail(context.Cause(s.ctx))
			return
		}
		for {
			// Let those who are about to send do so first: their frames leave in the same write. With 64 senders this
			// makes calls three times cheaper; a single one does not notice.
			runtime.Gosched()
			out := s.swap(spare)
			if len(out) == 0 {
				spare = out
				break
			}
			s.t.c.Gate.Wait()
			if err := s.writeOut(out); err != nil {
				s.fail(err)
				return
			}
			wrote = true
			if spare = out[:0]; cap(spare) > keep {
				spare = nil
			}
		}
	}
}

// swap takes what is to be written and leaves an empty buffer.
func (s *stream) swap(empty []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.err != nil {
		return nil
	}
	out := s.mu.out
	if s.compose != nil {
		out = s.compose(out)
	}
	if len(out) == 0 {
		return empty
	}
	s.mu.out = empty[:0]
	signal(s.room)
	return out
}

// writeOut gives each piece its own deadline, so that a slow line is no dead one.
func (s *stream) writeOut(b []byte) error {
	for len(b) > 0 {
		n := min(len(b), writePiece)
		if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
			return err
		}
		if _, err := s.conn.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// receive reads the next frame that says something. Called by one goroutine at a time. The payload belongs to the caller.
func (s *stream) receive() (wire.Header, []byte, error) {
	for {
		h, err := wire.ReadHeader(s.in, s.purpose.MaxPayload(), &s.head)
		if err != nil {
			return h, nil, err
		}
		payload, err := wire.ReadPayload(s.in, h.Len)
		if err != nil {
			return h, nil, err
		}
		s.t.c.Gate.Wait()
		if h.Type != wire.TypeAlive {
			return h, payload, nil
		}
	}
}

// readAnswers is the reader of a dialled stream. It returns when the stream failed.
func (s *stream) readAnswers() {
	defer s.settle()
	for {
		h, payload, err := s.receive()
		if err != nil {
			s.fail(err)
			return
		}
		if s.purpose == wire.Client {
			switch done, err := s.fromMember(h, payload); {
			case err != nil:
				s.fail(err)
				return
			case done:
				continue
			case h.Type == wire.TypeAnswer:
				payload = s.whole(h.ID, payload)
			}
		}
		if h.Type != wire.TypeAnswer && h.Type != wire.TypeError {
			s.fail(fmt.Errorf("%w: type %d where answers are expected", wire.ErrFrame, h.Type))
			return
		}
		w := s.take(h.ID)
		if w == nil {
			continue // its caller waits no more
		}
		if h.Type == wire.TypeAnswer {
			w.finish(payload, nil)
			continue
		}
		delete(s.parts, h.ID)
		f, err := wire.DecodeFault(payload)
		if err != nil {
			w.finish(nil, err)
			s.fail(err)
			return
		}
		w.finish(nil, faultError(f))
	}
}

// fromMember takes the frames that only clients get. It reports whether the frame was one.
func (s *stream) fromMember(h wire.Header, payload []byte) (bool, error) {
	switch h.Type {
	case wire.TypePush:
		if len(payload) == 0 {
			return true, fmt.Errorf("%w: push without a kind", wire.ErrFrame)
		}
		s.pushed(payload[0], payload[1:])
		return true, nil
	case wire.TypePart:
		if s.awaited(h.ID) {
			if s.parts == nil {
				s.parts = make(map[uint64][]byte)
			}
			s.parts[h.ID] = append(s.parts[h.ID], payload...)
		} else {
			delete(s.parts, h.ID) // its caller waits no more
		}
		return true, nil
	}
	return false, nil
}

// whole puts the last part of an answer to the others.
func (s *stream) whole(id uint64, last []byte) []byte {
	parts, ok := s.parts[id]
	if !ok {
		return last
	}
	delete(s.parts, id)
	return append(parts, last...)
}

func (s *stream) awaited(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mu.waiting[id]
	return ok
}

// push sends what nobody asked for. It never waits: a client that takes nothing any more, so that a whole buffer of
// frames is before it, loses its stream and learns what it missed when it comes back.
func (s *stream) push(kind byte, encode func([]byte) []byte) {
	_, sent, err := s.trySend(nil, wire.TypePush, 0, func(b []byte) []byte { return encode(append(b, kind)) })
	if err == nil && !sent {
		s.fail(errSlow)
	}
}

// errSlow means that the other side does not take what it is sent.
var errSlow = errors.New("too slow for what it is sent")

// answer is a waiter that somebody waits for.
type answer struct{ c chan result }

type result struct {
	payload []byte
	err     error
}

func newAnswer() answer { return answer{make(chan result, 1)} }

func (a answer) finish(payload []byte, err error) { a.c <- result{payload, err} }

// roundTrip sends a request and waits for its answer until ctx ends. An error that matches errNotSent means that the
// other side certainly did not get it.
func (s *stream) roundTrip(ctx context.Context, typ wire.Type, encode func([]byte) []byte) ([]byte, error) {
	a := newAnswer()
	id, err := s.send(ctx.Done(), a, typ, 0, encode)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotSent, errors.Join(err, ctx.Err()))
	}
	select {
	case r := <-a.c:
		return r.payload, r.err
	case <-ctx.Done():
		if s.forget(id) && typ == wire.TypeCall {
			_, _, _ = s.trySend(nil, wire.TypeCancel, id, nil) // a courtesy
		}
		return nil, ctx.Err()
	}
}
