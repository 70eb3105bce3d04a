package chubby

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// maxInFlight bounds the requests of one pipeline that are not answered.
const maxInFlight = 64

// AppendEntriesPipeline gives a pipeline on the open append stream.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	ctx, cancel := context.WithTimeout(t.ctx, t.noticeTimeout)
	defer cancel()
	p := t.peer(id, target)
	s, err := p.links[wire.Append].get(ctx, false)
	if err != nil {
		return nil, err
	}
	return &pipeline{
		t:     t,
		p:     p,
		s:     s,
		slots: make(chan struct{}, maxInFlight),
		done:  make(chan raft.AppendFuture, maxInFlight),
		over:  make(chan struct{}),
	}, nil
}

// pipeline sends AppendEntries without waiting for answers in between. It ends with its stream, with the term, and with
// the first answer that is not a success; raft then goes back to single requests.
//
// It cannot deadlock: raft's decoder stops taking futures after an answer without success only, or when its sender has
// stopped, and at the first such answer the pipeline is over, so that the sender is never held up by futures that nobody
// takes.
//
// Futures of requests that got no answer are not handed out, because raft takes any future for a contact with the peer.
type pipeline struct {
	t     *transport
	p     *peer
	s     *stream
	slots chan struct{}          // a place for each request in flight
	done  chan raft.AppendFuture // answered, in order
	over  chan struct{}          // closed by end
	once  sync.Once
}

var _ raft.AppendPipeline = (*pipeline)(nil)

// AppendEntries queues a request. It waits for a place in flight, and while this node's disk hangs.
func (l *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	ctx, err := l.t.reignOf(args.Term)
	if err != nil {
		return nil, err
	}
	if err := l.t.awaitDisk(ctx); err != nil {
		return nil, err
	}
	select {
	case <-l.over:
		return nil, raft.ErrPipelineShutdown
	default:
	}
	select {
	case l.slots <- struct{}{}:
	case <-l.over:
		return nil, raft.ErrPipelineShutdown
	case <-l.s.ctx.Done():
		return nil, l.s.reason()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l.p.sends(args)
	f := newAppendFuture(args, resp, l)
	if err := l.p.post(ctx, l.s, f); err != nil {
		l.end()
		return nil, err
	}
	return f, nil
}

// Consumer gives the answered requests in order.
func (l *pipeline) Consumer() <-chan raft.AppendFuture { return l.done }

// Close ends the pipeline. The stream stays for single requests.
func (l *pipeline) Close() error {
	l.end()
	return nil
}

func (l *pipeline) end() { l.once.Do(func() { close(l.over) }) }

// completed hands an answered request to raft. Called by the stream's reader, in order.
func (l *pipeline) completed(f *appendFuture) {
	if f.err != nil {
		l.end()
		return
	}
	<-l.slots
	select {
	case <-l.over:
		return // after a failure raft would take this for one more contact
	default:
	}
	if !f.resp.Success || f.resp.Term > f.args.Term {
		// The sender must be free before raft's decoder goes. If the decoder goes first, it learns the same from the
		// next single request.
		l.end()
		select {
		case l.done <- f:
		default:
		}
		return
	}
	select {
	case l.done <- f:
	case <-l.over:
	case <-l.s.ctx.Done():
	}
}

// appendFuture is a request to append on its way. Requests above the frame size travel in several parts.
type appendFuture struct {
	start time.Time
	args  *raft.AppendEntriesRequest
	resp  *raft.AppendEntriesResponse
	pipe  *pipeline // nil: a single request
	left  int       // parts without an answer; written by the stream's reader once they are queued
	over  bool      // finished before its last part
	err   error
	done  chan struct{} // closed when resp and err are final
}

func newAppendFuture(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse, l *pipeline) *appendFuture {
	return &appendFuture{start: time.Now(), args: args, resp: resp, pipe: l, done: make(chan struct{})}
}

// Error waits for the answer.
func (f *appendFuture) Error() error {
	<-f.done
	return f.err
}

// Start is when raft handed the request over.
func (f *appendFuture) Start() time.Time { return f.start }

// Request is what raft handed over.
func (f *appendFuture) Request() *raft.AppendEntriesRequest { return f.args }

// Response is valid after Error returned nil.
func (f *appendFuture) Response() *raft.AppendEntriesResponse { return f.resp }

// appendPart waits for the answer to one frame of a request.
type appendPart struct {
	p           *peer
	s           *stream
	f           *appendFuture
	index, term uint64 // of its last entry, or of the entry before it if it has none
}

var errOversizedEntry = errors.New("log entry is larger than a frame")

// post queues f's request on s, in parts that fit in frames. After an error nobody may wait for f.
func (p *peer) post(ctx context.Context, s *stream, f *appendFuture) error {
	parts := splitAppend(f.args, wire.MaxAppendPayload-appendOverhead(f.args))
	f.left = len(parts)
	for i := range parts {
		part := &parts[i]
		w := &appendPart{p: p, s: s, f: f, index: part.PrevLogEntry, term: part.PrevLogTerm}
		if n := len(part.Entries); n > 0 {
			w.index, w.term = part.Entries[n-1].Index, part.Entries[n-1].Term
		}
		_, err := s.send(ctx.Done(), w, wire.TypeAppend, 0, func(b []byte) []byte {
			if part.LeaderCommitIndex > s.told.Load() {
				s.told.Store(part.LeaderCommitIndex)
			}
			return wire.AppendAppendEntries(b, part)
		})
		if err == nil {
			continue
		}
		if i > 0 {
			s.fail(err) // the other parts are on their way; their waiters end with the stream
		}
		return err
	}
	return nil
}

// appendOverhead is the size of args without its entries, with room to spare.
func appendOverhead(args *raft.AppendEntriesRequest) int {
	return 128 + len(args.ID) + len(args.Addr) + len(args.Leader)
}

// splitAppend cuts a request into truthful requests of at most maxBytes of entries each; an entry above that is alone.
//
// Each part tells no commit index above its own last entry. Raft's followers commit up to min(LeaderCommitIndex, their
// own last index); with this bound nothing is committed that the request itself has not made equal to the leader's log.
func splitAppend(args *raft.AppendEntriesRequest, maxBytes int) []raft.AppendEntriesRequest {
	parts := make([]raft.AppendEntriesRequest, 0, 1)
	rest := args.Entries
	index, term := args.PrevLogEntry, args.PrevLogTerm
	for {
		n, size := 0, 0
		for n < len(rest) && (n == 0 || size+wire.LogSize(rest[n]) <= maxBytes) {
			size += wire.LogSize(rest[n])
			n++
		}
		part := *args
		part.PrevLogEntry, part.PrevLogTerm, part.Entries = index, term, rest[:n]
		if n > 0 {
			index, term = rest[n-1].Index, rest[n-1].Term
		}
		part.LeaderCommitIndex = min(args.LeaderCommitIndex, index)
		parts = append(parts, part)
		if rest = rest[n:]; len(rest) == 0 {
			return parts
		}
	}
}

func (w *appendPart) finish(payload []byte, err error) {
	f := w.f
	if f.over {
		return
	}
	var resp *raft.AppendEntriesResponse
	if err == nil {
		resp, err = wire.DecodeAppendEntriesResponse(payload)
	}
	if err == nil {
		if w.p.acked(f.args.Term, w.index, w.term, resp.Success) && w.p.t.commit.Load() > w.s.told.Load() {
			signal(w.s.wake) // a kick may be due
		}
		*f.resp = *resp
		f.left--
		if f.left > 0 && resp.Success {
			return
		}
	}
	f.over, f.err = true, err
	close(f.done)
	if f.pipe != nil {
		f.pipe.completed(f)
	}
}
