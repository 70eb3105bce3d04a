package chubby

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// maxUnanswered bounds the AppendEntries of one stream that raft has taken and not answered.
const maxUnanswered = 2 * maxInFlight

// errUnanswered means that raft did not answer before the stream ended.
var errUnanswered = errors.New("raft gave no answer")

// decodeRPC makes an RPC for raft out of a frame. Its header must name the server at the other end, and raft must be able
// to digest it: raft panics on what it cannot decode.
func (s *stream) decodeRPC(typ wire.Type, payload []byte) (raft.RPC, error) {
	var m raft.WithRPCHeader
	var err error
	switch typ {
	case wire.TypeAppend, wire.TypeKick:
		var req *raft.AppendEntriesRequest
		if req, err = wire.DecodeAppendEntries(payload); err == nil {
			err = checkEntries(req)
		}
		m = req
	case wire.TypeVote:
		m, err = wire.DecodeVote(payload)
	case wire.TypePreVote:
		m, err = wire.DecodePreVote(payload)
	case wire.TypeTimeoutNow:
		m, err = wire.DecodeTimeoutNow(payload)
	case wire.TypeSnapshot:
		var req *raft.InstallSnapshotRequest
		if req, err = wire.DecodeInstallSnapshot(payload); err == nil {
			err = checkConfiguration(req.Configuration)
		}
		m = req
	default:
		return raft.RPC{}, fmt.Errorf("%w: type %d on a %s stream", wire.ErrFrame, typ, s.purpose)
	}
	if err != nil {
		return raft.RPC{}, err
	}
	if id := m.GetRPCHeader().ID; string(id) != string(s.peer.Server) {
		return raft.RPC{}, fmt.Errorf("%w: %s speaks for %q", ErrPermission, s.peer.Server, id)
	}
	return raft.RPC{Command: m}, nil
}

// checkEntries refuses what would make raft panic: unknown types and configurations that cannot be decoded. Entries must
// follow each other without a gap.
func checkEntries(req *raft.AppendEntriesRequest) error {
	for i, l := range req.Entries {
		if want := req.PrevLogEntry + 1 + uint64(i); l.Index != want {
			return fmt.Errorf("%w: entry %d where %d is due", wire.ErrMessage, l.Index, want)
		}
		switch l.Type {
		case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
		case raft.LogConfiguration:
			if err := checkConfiguration(l.Data); err != nil {
				return fmt.Errorf("entry %d: %w", l.Index, err)
			}
		default:
			return fmt.Errorf("%w: entry %d has type %d", wire.ErrMessage, l.Index, l.Type)
		}
	}
	return nil
}

// checkConfiguration tries to decode a configuration, which panics on bad bytes and has no variant that does not.
func checkConfiguration(b []byte) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: configuration: %v", wire.ErrMessage, r)
		}
	}()
	raft.DecodeConfiguration(b)
	return nil
}

// answerHeartbeat answers a heartbeat without waiting for raft's main goroutine, which may be busy with the disk, and
// lets raft know of the contact when it has time. Only a follower that already follows the sender in the sender's term
// may do so: for it a heartbeat changes nothing. All other heartbeats go through raft, because its own short cut changes
// term and state while the main goroutine is at work.
func (s *stream) answerHeartbeat(id uint64, rpc raft.RPC) bool {
	req, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if !ok || !isHeartbeat(req) || !s.t.follows(req) {
		return false
	}
	select {
	case s.t.touches <- req:
	default: // one that waits says the same
	}
	resp := &raft.AppendEntriesResponse{
		RPCHeader: raft.RPCHeader{ProtocolVersion: req.ProtocolVersion, ID: []byte(s.t.c.Server), Addr: []byte(s.t.address)},
		Term:      req.Term,
		Success:   true,
	}
	s.answerRPC(id, raft.RPCResponse{Response: resp})
	return true
}

// follows reports whether raft is a follower of the sender of req, in the term of req.
func (t *transport) follows(req *raft.AppendEntriesRequest) bool {
	v := t.raft()
	if v == nil || len(req.ID) == 0 || v.State() != raft.Follower || v.CurrentTerm() != req.Term {
		return false
	}
	_, leader := v.LeaderWithID()
	return string(leader) == string(req.ID)
}

// relay hands an RPC to raft and sends the answer. It returns without one when ctx ends.
func (s *stream) relay(ctx context.Context, id uint64, rpc raft.RPC) {
	c := make(chan raft.RPCResponse, 1)
	rpc.RespChan = c
	if !s.t.deliver(ctx, rpc) {
		return
	}
	select {
	case r := <-c:
		s.answerRPC(id, r)
	case <-ctx.Done():
	}
}

// answerRPC sends raft's answer.
func (s *stream) answerRPC(id uint64, r raft.RPCResponse) {
	if r.Error != nil {
		s.answer(id, nil, r.Error)
		return
	}
	_, _ = s.send(nil, nil, wire.TypeAnswer, id, func(b []byte) []byte {
		switch m := r.Response.(type) {
		case *raft.AppendEntriesResponse:
			return wire.AppendAppendEntriesResponse(b, m)
		case *raft.RequestVoteResponse:
			return wire.AppendVoteResponse(b, m)
		case *raft.RequestPreVoteResponse:
			return wire.AppendPreVoteResponse(b, m)
		case *raft.InstallSnapshotResponse:
			return wire.AppendInstallSnapshotResponse(b, m)
		case *raft.TimeoutNowResponse:
			return wire.AppendTimeoutNowResponse(b, m)
		}
		return b // the other side finds that this is no answer
	})
}

// unanswered is an RPC that raft has taken.
type unanswered struct {
	id uint64
	c  chan raft.RPCResponse
}

// serveAppends reads an append stream. It hands requests to raft one after the other; a second goroutine sends the
// answers in the same order. So raft finds the next request waiting when it is done with one.
func (s *stream) serveAppends() error {
	queue := make(chan unanswered, maxUnanswered)
	defer close(queue)
	s.wg.Go(func() { s.answerAppends(queue) })
	for {
		h, payload, err := s.receive()
		if err != nil {
			return err
		}
		if h.Type != wire.TypeAppend && h.Type != wire.TypeKick {
			return fmt.Errorf("%w: type %d on an append stream", wire.ErrFrame, h.Type)
		}
		rpc, err := s.decodeRPC(h.Type, payload)
		if err != nil {
			return err
		}
		c := make(chan raft.RPCResponse, 1)
		rpc.RespChan = c
		if !s.t.deliver(s.ctx, rpc) {
			return errUnanswered
		}
		if h.Type == wire.TypeKick {
			continue
		}
		select {
		case queue <- unanswered{h.ID, c}:
		case <-s.ctx.Done():
			return errUnanswered
		}
	}
}

// answerAppends sends raft's answers in the order of the requests.
func (s *stream) answerAppends(queue <-chan unanswered) {
	for u := range queue {
		select {
		case r := <-u.c:
			s.answerRPC(u.id, r)
		case <-s.ctx.Done():
			return
		}
	}
}

// serveSnapshots reads a snapshot stream.
func (s *stream) serveSnapshots() error {
	for {
		h, payload, err := s.receive()
		if err != nil {
			return err
		}
		if h.Type != wire.TypeSnapshot {
			return fmt.Errorf("%w: type %d where a snapshot begins", wire.ErrFrame, h.Type)
		}
		rpc, err := s.decodeRPC(h.Type, payload)
		if err != nil {
			return err
		}
		chunks := &chunkReader{s: s, left: rpc.Command.(*raft.InstallSnapshotRequest).Size}
		c := make(chan raft.RPCResponse, 1)
		rpc.Reader, rpc.RespChan = chunks, c
		if !s.t.deliver(s.ctx, rpc) {
			return errUnanswered
		}
		// Until raft has answered, it is raft's main goroutine that reads the stream.
		select {
		case r := <-c:
			s.answerRPC(h.ID, r)
			if chunks.left > 0 {
				return fmt.Errorf("snapshot was left with %d bytes unread", chunks.left)
			}
		case <-s.ctx.Done():
			return errUnanswered
		}
	}
}

// chunkReader gives the bytes of one snapshot. Raft's main goroutine waits in Read, so that a sender that falls silent
// must not hold it up for longer than a stream's time-out.
type chunkReader struct {
	s     *stream
	left  int64 // bytes of the snapshot that are still to come, chunk included
	chunk []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.chunk) == 0 {
		if r.left == 0 {
			return 0, io.EOF
		}
		if err := r.next(); err != nil {
			r.s.fail(err)
			return 0, err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	r.left -= int64(n)
	return n, nil
}

func (r *chunkReader) next() error {
	h, payload, err := r.s.receive()
	switch {
	case err != nil:
		return fmt.Errorf("snapshot ended with %d bytes missing: %w", r.left, err)
	case h.Type != wire.TypeChunk || len(payload) == 0 || int64(len(payload)) > r.left:
		return fmt.Errorf("%w: type %d with %d bytes inside a snapshot that lacks %d", wire.ErrFrame, h.Type, len(payload), r.left)
	}
	r.chunk = payload
	return nil
}
