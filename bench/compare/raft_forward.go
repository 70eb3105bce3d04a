package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A frame is a length, an id that the answer repeats, a kind, and a body. The kind of an answer is 0, or 1 when the body
// is the text of an error.
type frame struct {
	id   uint64
	kind byte
	body []byte
}

const (
	frameHeaderBytes = 4 + 8 + 1
	frameMaxBytes    = 1 << 20
)

func readFrame(r io.Reader) (frame, error) {
	var h [frameHeaderBytes]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, err
	}
	size := binary.BigEndian.Uint32(h[:])
	if size > frameMaxBytes {
		return frame{}, fmt.Errorf("frame of %d bytes", size)
	}
	f := frame{id: binary.BigEndian.Uint64(h[4:]), kind: h[12], body: make([]byte, size)}
	_, err := io.ReadFull(r, f.body)
	return f, err
}

// writeFrames writes what comes from out until ctx ends or the connection breaks. It flushes when nothing more waits, so
// that frames of concurrent callers share a system call and a lone one is not delayed.
func writeFrames(ctx context.Context, conn net.Conn, out <-chan frame) error {
	w := bufio.NewWriterSize(conn, 64<<10)
	var h [frameHeaderBytes]byte
	for {
		select {
		case f := <-out:
			binary.BigEndian.PutUint32(h[:], uint32(len(f.body)))
			binary.BigEndian.PutUint64(h[4:], f.id)
			h[12] = f.kind
			w.Write(h[:]) // A bufio.Writer keeps its first error for Flush.
			w.Write(f.body)
			if len(out) == 0 {
				if err := w.Flush(); err != nil {
					return err
				}
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// link is a client's end of a forwarding connection. Any number of calls share it.
type link struct {
	conn   net.Conn
	out    chan frame
	ctx    context.Context // ends when the connection is closed or broken; its cause tells why
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	last    uint64
	pending map[uint64]chan frame // each with room for the one answer
}

func dialLink(ctx context.Context, addr string) (*link, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, out: make(chan frame, 256), pending: make(map[uint64]chan frame)}
	l.ctx, l.cancel = context.WithCancelCause(context.Background())
	l.wg.Go(func() {
		l.cancel(writeFrames(l.ctx, conn, l.out))
		conn.Close() // Wakes the reader.
	})
	l.wg.Go(l.read)
	return l, nil
}

func (l *link) read() {
	r := bufio.NewReaderSize(l.conn, 64<<10)
	for {
		f, err := readFrame(r)
		if err != nil {
			l.cancel(err)
			return
		}
		l.mu.Lock()
		answer := l.pending[f.id]
		delete(l.pending, f.id)
		l.mu.Unlock()
		if answer != nil {
			answer <- f
		}
	}
}

// call sends a request and waits for its answer.
func (l *link) call(ctx context.Context, kind byte, body []byte) ([]byte, error) {
	answer := make(chan frame, 1)
	l.mu.Lock()
	l.last++
	id := l.last
	l.pending[id] = answer
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.pending, id)
		l.mu.Unlock()
	}()
	select {
	case l.out <- frame{id: id, kind: kind, body: body}:
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case f := <-answer:
		if f.kind != 0 {
			return nil, errors.New(string(f.body))
		}
		return f.body, nil
	case <-l.ctx.Done():
		return nil, context.Cause(l.ctx)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *link) close() {
	l.cancel(net.ErrClosed)
	l.wg.Wait()
}

// forwardServer answers the links of the other nodes. Each request has a goroutine, so one that waits for a commit or for
// a lock holds up no other; their number is bounded by that of the callers.
type forwardServer struct {
	listener net.Listener
	handle   func(ctx context.Context, kind byte, body []byte) ([]byte, error)
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func newForwardServer(l net.Listener, handle func(context.Context, byte, []byte) ([]byte, error)) *forwardServer {
	s := &forwardServer{listener: l, handle: handle}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(conn) })
		}
	})
	return s
}

func (s *forwardServer) addr() string { return s.listener.Addr().String() }

// serve reads the requests of one connection until it breaks.
func (s *forwardServer) serve(conn net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	out := make(chan frame, 256)
	s.wg.Go(func() {
		writeFrames(ctx, conn, out) // Its error is the reader's too, or the end of ctx.
		conn.Close()
	})
	r := bufio.NewReaderSize(conn, 64<<10)
	for {
		f, err := readFrame(r)
		if err != nil {
			return
		}
		s.wg.Go(func() {
			answer := frame{id: f.id}
			var err error
			if answer.body, err = s.handle(ctx, f.kind, f.body); err != nil {
				answer.kind, answer.body = 1, []byte(err.Error())
			}
			select {
			case out <- answer:
			case <-ctx.Done():
			}
		})
	}
}

func (s *forwardServer) close() error {
	s.cancel()
	err := s.listener.Close()
	s.wg.Wait()
	return err
}
