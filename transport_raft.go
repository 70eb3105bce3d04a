package chubby

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// Consumer gives raft what others sent. Nothing is queued in it: an RPC is taken or it waits at its stream.
func (t *transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr is the address that peers dial.
func (t *transport) LocalAddr() raft.ServerAddress { return raft.ServerAddress(t.address) }

// EncodePeer and DecodePeer keep addresses as they are.
func (t *transport) EncodePeer(_ raft.ServerID, addr raft.ServerAddress) []byte { return []byte(addr) }

// DecodePeer is the inverse of EncodePeer.
func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler does nothing. Raft's handler changes term and state beside raft's main goroutine, so that a
// deposed leader could store an entry in a term in which it was never elected. See answerHeartbeat.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}

// RequestVote asks for a vote. It fails when the peer cannot be dialled or does not answer in time.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	b, err := t.ask(t.ctx, id, target, wire.TypeVote, func(b []byte) []byte { return wire.AppendVote(b, args) })
	return decodeInto(resp, b, err, wire.DecodeVoteResponse)
}

// RequestPreVote asks whether a vote would be granted. Errors are those of RequestVote.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	b, err := t.ask(t.ctx, id, target, wire.TypePreVote, func(b []byte) []byte { return wire.AppendPreVote(b, args) })
	return decodeInto(resp, b, err, wire.DecodePreVoteResponse)
}

// TimeoutNow tells a peer to start an election. Errors are those of RequestVote.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	b, err := t.ask(t.ctx, id, target, wire.TypeTimeoutNow, func(b []byte) []byte { return wire.AppendTimeoutNow(b, args) })
	return decodeInto(resp, b, err, wire.DecodeTimeoutNowResponse)
}

// ask sends one of raft's short questions on the control stream and waits for the answer, for noticeTimeout at most.
func (t *transport) ask(ctx context.Context, id raft.ServerID, target raft.ServerAddress, typ wire.Type, encode func([]byte) []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, t.noticeTimeout)
	defer cancel()
	s, err := t.peer(id, target).links[wire.Control].get(ctx, false)
	if err != nil {
		return nil, err
	}
	return s.roundTrip(ctx, typ, encode)
}

func decodeInto[T any](dst *T, b []byte, err error, decode func([]byte) (*T, error)) error {
	if err != nil {
		return err
	}
	m, err := decode(b)
	if err != nil {
		return err
	}
	*dst = *m
	return nil
}

// isHeartbeat reports whether raft sends args as a sign of life and nothing else.
func isHeartbeat(args *raft.AppendEntriesRequest) bool {
	return args.Term != 0 && args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
}

// AppendEntries sends heartbeats on the control stream: they fail fast, and at once while this node's disk hangs.
// Entries go on the append stream: they are sent again until the peer answers, the term is over, the peer left the
// configuration, or the transport is closed. Were they to fail instead, raft would wait up to ten seconds before it
// tries a peer that is back.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	ctx, err := t.reignOf(args.Term)
	if err != nil {
		return err
	}
	p := t.peer(id, target)
	if isHeartbeat(args) {
		if t.c.Stalled != nil && t.c.Stalled() {
			return errStalled
		}
		b, err := t.ask(ctx, id, target, wire.TypeAppend, func(b []byte) []byte { return wire.AppendAppendEntries(b, args) })
		if err := decodeInto(resp, b, err, wire.DecodeAppendEntriesResponse); err != nil {
			return err
		}
		p.heard()
		return nil
	}
	p.sends(args)
	for {
		patient := p.isListed()
		err := t.appendOnce(ctx, p, args, resp, patient)
		var remote *remoteError
		if err == nil || !patient || ctx.Err() != nil || p.ctx.Err() != nil || errors.As(err, &remote) || errors.Is(err, ErrTooLarge) {
			return err
		}
	}
}

// appendOnce sends args on the present append stream and waits for the answer.
func (t *transport) appendOnce(ctx context.Context, p *peer, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, patient bool) error {
	if !patient {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.noticeTimeout)
		defer cancel()
	}
	if err := t.awaitDisk(ctx); err != nil {
		return err
	}
	s, err := p.links[wire.Append].get(ctx, patient)
	if err != nil {
		return err
	}
	f := newAppendFuture(args, new(raft.AppendEntriesResponse), nil)
	if err := p.post(ctx, s, f); err != nil {
		return err
	}
	select {
	case <-f.done:
		if f.err == nil {
			*resp = *f.resp
		}
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ctx.Done():
		return errNotMember
	}
}

// awaitDisk waits while this node's disk hangs. Entries must not get ahead of it for others to commit, and an error would
// make raft slow to send again.
func (t *transport) awaitDisk(ctx context.Context) error {
	for t.c.Stalled != nil && t.c.Stalled() {
		timer := time.NewTimer(t.maxBackoff)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
	return nil
}

// InstallSnapshot sends a snapshot on a stream of its own. It waits for the peer as AppendEntries does, but fails when the
// stream breaks, since data cannot be read again.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	ctx, err := t.reignOf(args.Term)
	if err != nil {
		return err
	}
	p := t.peer(id, target)
	select {
	case p.snap <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ctx.Done():
		return errNotMember
	}
	defer func() { <-p.snap }()
	getCtx, cancel := ctx, context.CancelFunc(func() {})
	patient := p.isListed()
	if !patient {
		getCtx, cancel = context.WithTimeout(ctx, t.dialTimeout)
	}
	s, err := p.links[wire.Snapshot].get(getCtx, patient)
	cancel()
	if err != nil {
		return err
	}
	defer s.fail(errSnapshotDone)
	b, err := s.sendSnapshot(ctx, args, data)
	if err := decodeInto(resp, b, err, wire.DecodeInstallSnapshotResponse); err != nil {
		return err
	}
	if resp.Success {
		p.installed(args)
	}
	return nil
}

// errSnapshotDone closes a snapshot stream after its one snapshot.
var errSnapshotDone = errors.New("snapshot is over")

func (s *stream) sendSnapshot(ctx context.Context, args *raft.InstallSnapshotRequest, data io.Reader) ([]byte, error) {
	a := newAnswer()
	stop := ctx.Done()
	if _, err := s.send(stop, a, wire.TypeSnapshot, 0, func(b []byte) []byte { return wire.AppendInstallSnapshot(b, args) }); err != nil {
		return nil, err
	}
	chunk := make([]byte, wire.MaxChunk)
	for left := args.Size; left > 0; {
		n, err := io.ReadFull(data, chunk[:min(left, int64(len(chunk)))])
		if err != nil {
			return nil, fmt.Errorf("reading snapshot, %d bytes missing: %w", left-int64(n), err)
		}
		left -= int64(n)
		select {
		case r := <-a.c:
			if r.err == nil {
				r.err = errors.New("snapshot answered before it was sent")
			}
			return nil, r.err
		default:
		}
		if _, err := s.send(stop, nil, wire.TypeChunk, 0, func(b []byte) []byte { return append(b, chunk[:n]...) }); err != nil {
			return nil, err
		}
	}
	select {
	case r := <-a.c:
		return r.payload, r.err
	case <-stop:
		return nil, context.Cause(ctx)
	}
}

// reign is a term in which this node sends as leader.
type reign struct {
	term   uint64
	ctx    context.Context // ends, cause errTermOver, when the term is over
	cancel context.CancelCauseFunc
}

// reignOf gives a context that lives as long as this node leads the term, or errTermOver. Raft may start to send before
// leaderTerm is told, so a higher term than the known one begins a reign.
func (t *transport) reignOf(term uint64) (context.Context, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.mu.closed:
		return nil, ErrClosed
	case term <= t.mu.over || t.mu.reign != nil && term < t.mu.reign.term:
		return nil, errTermOver
	}
	t.beginReign(term)
	return t.mu.reign.ctx, nil
}

// beginReign is called with t.mu held and the transport open.
func (t *transport) beginReign(term uint64) {
	if r := t.mu.reign; r != nil {
		if r.term >= term {
			return
		}
		r.cancel(errTermOver)
	}
	r := &reign{term: term}
	r.ctx, r.cancel = context.WithCancelCause(t.ctx)
	t.mu.reign = r
	t.leads.Store(term)
	t.wg.Go(func() { t.watch(r) })
}

// endReign ends term and those before it.
func (t *transport) endReign(term uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.over = max(t.mu.over, term)
	if r := t.mu.reign; r != nil && r.term <= term {
		r.cancel(errTermOver)
		t.mu.reign = nil
		t.leads.Store(0)
	}
}

// watch ends a reign of which raft knows nothing any more. leaderTerm is faster, but raft awaits its senders when it is
// shut down, and those must not wait for a peer that is down for good.
func (t *transport) watch(r *reign) {
	tick := time.NewTicker(t.noticeTimeout)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if v := t.raft(); v != nil && (v.State() != raft.Leader || v.CurrentTerm() != r.term) {
				t.endReign(r.term)
			}
		case <-r.ctx.Done():
			return
		}
	}
}

// leaderTerm tells that this node leads term. What waits to be sent in an older term returns at once. endReign tells
// that a term is over.
func (t *transport) leaderTerm(term uint64) {
	t.endReign(term - 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.mu.closed && term > t.mu.over {
		t.beginReign(term)
	}
}
