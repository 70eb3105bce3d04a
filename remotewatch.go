package chubby

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/chubbygo/chubby/internal/state"
	"github.com/chubbygo/chubby/internal/wire"
)

// remoteWatch is a watch at the home of a dialled Client. All members have the same events under the same revisions, so
// when the home is lost it goes on at another from the revision after the last one that it was told whole.
type remoteWatch struct {
	remote *remote
	key    topicKey
	epoch  uint64 // of the revisions that it has seen

	done   uint64         // everything up to here is in told, or was given
	given  uint64         // everything up to here was given
	told   []*state.Event // not given yet
	led    bool           // another node leads, since what is in told
	leader string         // who, as far as this watch knows

	mu struct {
		sync.Mutex
		conn   *memberConn // where it is registered; nil: nowhere
		number uint64      // there
	}
}

// watchPause is before a watch that failed is begun again.
const watchPause = 20 * time.Millisecond

func (r *remote) register(ctx context.Context, key topicKey, from uint64) (watcher, uint64, error) {
	w := &remoteWatch{remote: r, key: key}
	now, err := w.join(ctx, from)
	if err != nil {
		return nil, 0, err
	}
	w.given = w.done
	return w, now, nil
}

// join registers the watch at the home, for revisions from the given one on; 0 means what is acknowledged after the call.
func (w *remoteWatch) join(ctx context.Context, from uint64) (now uint64, err error) {
	r := w.remote
	call := wire.WatchCall{Path: w.key.path, Recursive: w.key.recursive, From: from}
	err = r.try(ctx, nil, func(m *memberConn, _ bool) verdict {
		if w.epoch != 0 && m.attached.Epoch != w.epoch {
			return verdict{done: true, err: fmt.Errorf("%w: revision %d is of another epoch; read the state and watch again", ErrLagged, from)}
		}
		// A number of its own for each attempt: what became of the last one is not known.
		call.Number = r.watches.Add(1)
		b, err := m.call(ctx, wire.KindWatch, wire.AppendWatchCall(nil, &call), callTime)
		if err != nil {
			m.forgetWatch(call.Number)
			return faultVerdict(err, true)
		}
		told, err := wire.ParseWatched(b)
		if err != nil {
			m.stream.fail(err)
			return verdict{err: err}
		}
		now = told.Now
		w.epoch, w.done = m.attached.Epoch, told.Done
		if told.Leader != "" {
			w.led = w.led || w.leader != "" && w.leader != told.Leader
			w.leader = told.Leader
		}
		w.mu.Lock()
		w.mu.conn, w.mu.number = m, call.Number
		w.mu.Unlock()
		return verdict{done: true}
	})
	return now, err
}

func (w *remoteWatch) next(ctx context.Context) (sight, error) {
	for {
		if err := ctx.Err(); err != nil {
			return sight{}, err
		}
		if n := len(w.told); n > 0 {
			i := 1
			for i < n && w.told[i].Revision == w.told[0].Revision {
				i++
			}
			events := w.told[:i:i]
			w.told, w.given = w.told[i:], events[0].Revision
			return sight{done: w.given, events: events}, nil
		}
		w.given = max(w.given, w.done)
		if w.led {
			w.led = false
			return sight{led: true, done: w.given}, nil
		}
		if err := w.fetch(ctx); err != nil {
			return sight{}, err
		}
	}
}

// fetch waits for more.
func (w *remoteWatch) fetch(ctx context.Context) error {
	r := w.remote
	w.mu.Lock()
	m, number := w.mu.conn, w.mu.number
	w.mu.Unlock()
	if m == nil || m.ctx.Err() != nil {
		w.close() // at a member that is home no longer
		_, err := w.join(ctx, w.done+1)
		return err
	}
	bounded, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	b, err := m.call(bounded, wire.KindNext, wire.AppendNumber(nil, number), watchTime+callTime)
	stop()
	cancel()
	var told wire.Watched
	if err == nil {
		if told, err = wire.ParseWatched(b); err != nil {
			m.stream.fail(err)
		}
	}
	if err != nil {
		var remote *remoteError
		if errors.As(err, &remote) && errors.Is(err, ErrLagged) {
			return err
		}
		w.close()
		select { // a member that answers with errors must not be asked in a circle
		case <-time.After(watchPause):
		case <-ctx.Done():
		case <-r.halt:
			return r.stopCause()
		}
		return nil
	}
	if !told.InTouch {
		r.doubt()
	}
	if told.Led {
		w.led = true
	}
	if told.Leader != "" {
		w.leader = told.Leader
	}
	w.done = max(w.done, told.Done)
	for i := range told.Events {
		e := &told.Events[i]
		w.told = append(w.told, &state.Event{Kind: state.EventKind(e.Kind), Path: e.Path, Revision: e.Revision, Entry: e.Entry})
	}
	return nil
}

// rejoin goes on from the present.
func (w *remoteWatch) rejoin(ctx context.Context) error {
	w.close()
	w.told, w.epoch = nil, 0
	now, err := w.join(ctx, 0)
	w.given = w.done
	w.remote.client.Load().saw(now)
	return err
}

// close ends the registration, if there is one.
func (w *remoteWatch) close() {
	w.mu.Lock()
	m, number := w.mu.conn, w.mu.number
	w.mu.conn = nil
	w.mu.Unlock()
	if m != nil {
		m.forgetWatch(number)
	}
}

// forgetWatch tells a member that a watch is over. It waits for nothing: with the stream all its watches end.
func (m *memberConn) forgetWatch(number uint64) {
	_, _, _ = m.stream.trySend(unheard{}, wire.TypeCall, 0, func(b []byte) []byte {
		return wire.AppendNumber(append(b, byte(wire.KindEnd)), number)
	})
}

// unheard is a waiter for an answer that nobody wants.
type unheard struct{}

func (unheard) finish([]byte, error) {}
