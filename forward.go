package chubby

import (
	"context"
	"errors"
	"fmt"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// forward sends a batch to the cell leader in one frame and completes it with the answers. A frame that certainly did
// not arrive is refused; one that perhaps did, without an answer, has an unknown outcome.
func (p *proposer) forward(b *batch, r route) {
	frame := make([]byte, 0, int(b.bytes)+6*len(b.props))
	for _, x := range b.props {
		frame = wire.AppendCommand(frame, x.urgent, x.raw)
	}
	ctx, cancel := context.WithTimeout(r.ctx, p.node.callTimeout())
	answer, err := p.node.transport.call(ctx, r.server, wire.KindForward, frame)
	cancel()
	if err != nil {
		s := statusUnknown
		if errors.Is(err, errNotSent) {
			s = statusRefused
		}
		for _, x := range b.props {
			x.complete(s, nil)
		}
		return
	}
	for i, x := range b.props {
		s, result, rest, err := parseOutcome(answer)
		if err != nil {
			p.node.log.Warn("answer of the cell leader makes no sense", "leader", nodeID(r.server), "err", err)
			for _, y := range b.props[i:] {
				y.complete(statusUnknown, nil)
			}
			return
		}
		answer = rest
		x.complete(s, &result)
	}
}

// answerForward is the leader's side: it puts the commands of another node into its own queue and answers when all of
// them are decided.
func (n *Node) answerForward(ctx context.Context, _ peerInfo, frame []byte) ([]byte, error) {
	g := &group{done: make(chan struct{})}
	var props []*proposal
	for rest := frame; len(rest) > 0; {
		urgent, raw, next, err := wire.NextCommand(rest)
		if err != nil || len(props) == wire.CommandsMax || len(raw) > commandMax {
			return nil, fmt.Errorf("%w: a frame of forwarded commands", errBadMessage)
		}
		props = append(props, &proposal{raw: raw, urgent: urgent, group: g})
		rest = next
	}
	if len(props) == 0 {
		return nil, nil
	}
	g.left.Store(int64(len(props)))
	if n.stalled() || n.proposer.enqueueGroup(allowed(props)) == statusRefused {
		answer := make([]byte, len(props))
		for i := range answer {
			answer[i] = byte(statusRefused)
		}
		return answer, nil
	}
	select {
	case <-g.done:
	case <-ctx.Done():
		return nil, ctx.Err() // nobody waits for the answer any more
	}
	answer := make([]byte, 0, 48*len(props))
	for _, x := range props {
		answer = appendOutcome(answer, x.status, &x.result)
	}
	return answer, nil
}

// allowed refuses what only the cell leader itself may decide, and gives the rest. An honest node sends such a command
// when it has just lost the leadership in which it decided it; the leader that it reaches now has its own.
func allowed(props []*proposal) []*proposal {
	kept := make([]*proposal, 0, len(props))
	for _, p := range props {
		if command.ForLeader(p.raw) {
			p.complete(statusRefused, nil)
		} else {
			kept = append(kept, p)
		}
	}
	return kept
}

func appendOutcome(dst []byte, s status, r *command.Result) []byte {
	dst = append(dst, byte(s))
	if s == statusApplied {
		dst = command.AppendResult(dst, r)
	}
	return dst
}

func parseOutcome(b []byte) (s status, r command.Result, rest []byte, err error) {
	if len(b) == 0 || b[0] < byte(statusApplied) || b[0] > byte(statusNoSpace) {
		return 0, r, nil, fmt.Errorf("%w: outcome of a command", errBadMessage)
	}
	s, rest = status(b[0]), b[1:]
	if s == statusApplied {
		rest, err = command.DecodeResult(rest, &r)
	}
	return s, r, rest, err
}
