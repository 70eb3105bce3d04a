package chubby

import (
	"context"
	"sync"

	"github.com/chubbygo/chubby/internal/wire"
)

// guest answers the calls of one dialled client's stream.
type guest interface {
	// call answers one call, in a goroutine of its own. ctx ends when the client gives up, and with the stream.
	call(ctx context.Context, k wire.Kind, payload []byte) ([]byte, error)
	// leave is called when the stream is gone and none of its calls runs any more.
	leave()
}

// lane is a kind of traffic with places of its own, so that what frees something, and what keeps sessions alive, gets
// through however many writes and reads are running.
type lane struct {
	perStream int           // calls of one stream that run at a time
	places    chan struct{} // one for each running call of all streams
}

// lanes are those of one transport.
type lanes struct {
	node   lane // between nodes
	guest  lane // reads and writes of dialled clients
	urgent lane // KeepAlives of dialled clients, and what frees something
	watch  lane // watches of dialled clients that wait for something to tell
}

const (
	maxGuestCalls    = 1024 // of one dialled client, of either lane
	maxAllGuestCalls = 16384
	maxAllUrgent     = 8192
	maxGuestWatches  = 16384 // of one dialled client
	maxAllWatches    = 1 << 20
)

func newLanes() lanes {
	return lanes{
		node:   lane{maxStreamCalls, make(chan struct{}, maxCalls)},
		guest:  lane{maxGuestCalls, make(chan struct{}, maxAllGuestCalls)},
		urgent: lane{maxGuestCalls, make(chan struct{}, maxAllUrgent)},
		watch:  lane{maxGuestWatches, make(chan struct{}, maxAllWatches)},
	}
}

// of is the lane of a client's call.
func (l *lanes) of(k wire.Kind) *lane {
	switch k {
	case wire.KindUrgent, wire.KindRenew, wire.KindTouch, wire.KindAttach, wire.KindTrack, wire.KindEnd,
		wire.KindCacheRenew:
		return &l.urgent
	case wire.KindNext, wire.KindCachePoll:
		return &l.watch
	}
	return &l.guest
}

// running are the calls of one accepted stream that have not been answered.
type running struct {
	mu    sync.Mutex
	m     map[uint64]context.CancelFunc
	lanes map[*lane]int // how many of each
}

func newRunning() *running {
	return &running{m: make(map[uint64]context.CancelFunc), lanes: make(map[*lane]int)}
}

// begin registers a call. It reports false if there are too many, or if the id is taken.
func (r *running) begin(id uint64, l *lane, cancel context.CancelFunc) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, taken := r.m[id]; taken || r.lanes[l] >= l.perStream {
		return false
	}
	r.m[id] = cancel
	r.lanes[l]++
	return true
}

func (r *running) end(id uint64, l *lane) {
	r.mu.Lock()
	cancel := r.m[id]
	delete(r.m, id)
	r.lanes[l]--
	r.mu.Unlock()
	cancel()
}

func (r *running) cancel(id uint64) {
	r.mu.Lock()
	cancel := r.m[id]
	r.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}
