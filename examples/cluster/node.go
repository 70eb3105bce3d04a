package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/chubbygo/chubby"
)

const (
	// sessionLease is short so that the show is: it is how long the others wait for a leader that was killed. The seed's
	// files have no word for it, and its default of 12 s is the better choice for a service.
	sessionLease = 2 * time.Second
	requestTime  = time.Minute // for one request; only a show that has gone wrong takes so long
)

// service is the life of a node process: an application with a chubby node in it.
type service struct {
	node *chubby.Node

	out struct {
		sync.Mutex
		*json.Encoder
	}
	mu struct {
		sync.Mutex
		leads map[string]*chubby.Leadership
		locks map[string]*chubby.Lock
	}
}

// runNode opens a node as the configuration file says, and does what the lines on in ask for until they end, which
// they also do when the parent dies.
func runNode(config string, in io.Reader, out io.Writer) error {
	// The end of the lines is the sign to go, and leaves time for Close. Ctrl-C, which reaches every process at the
	// terminal, must not come before it; nor must the signal for a reply to a parent that has just died, which without
	// this ends a process that writes to a broken standard output.
	signal.Ignore(os.Interrupt, syscall.SIGPIPE)

	s := &service{}
	s.out.Encoder = json.NewEncoder(out)
	s.mu.leads, s.mu.locks = make(map[string]*chubby.Leadership), make(map[string]*chubby.Lock)
	opts, err := chubby.LoadServerConfig(config)
	if err == nil {
		opts.SessionLease = sessionLease
		opts.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		s.node, err = chubby.Open(opts)
	}
	if err != nil {
		s.reply(reply{Error: err.Error()})
		return err
	}

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var q request
		if err = json.Unmarshal(lines.Bytes(), &q); err != nil {
			break
		}
		wg.Go(func() { s.reply(s.serve(ctx, q)) })
	}
	cancel()
	// Closing gives the locks back, so that the others need not wait for the lease.
	err = errors.Join(err, lines.Err(), s.node.Close())
	wg.Wait()
	return err
}

func (s *service) reply(r reply) {
	s.out.Lock()
	defer s.out.Unlock()
	_ = s.out.Encode(r) // without a parent to read it there is nobody to tell
}

func (s *service) serve(ctx context.Context, q request) reply {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	r, err := s.do(ctx, q)
	r.ID = q.ID
	if err != nil {
		r.Error, r.Conflict = err.Error(), errors.Is(err, chubby.ErrConflict)
	}
	return r
}

// do carries out one request: this is how each use of chubby looks in a program.
func (s *service) do(ctx context.Context, q request) (r reply, err error) {
	switch q.Do {
	case doReady:
		err = s.node.WaitReady(ctx)
		status := s.node.Status()
		r.Status = &status

	case doCampaign:
		var l *chubby.Leadership
		if l, err = s.node.Campaign(ctx, q.Path, []byte(q.Value)); err == nil {
			r.Sequencer = l.Sequencer()
			s.mu.Lock()
			s.mu.leads[q.Path] = l
			s.mu.Unlock()
		}
	case doPublish:
		s.mu.Lock()
		l := s.mu.leads[q.Path]
		s.mu.Unlock()
		if l == nil {
			return r, fmt.Errorf("publish %s: this service is not the elected leader", q.Path)
		}
		err = l.Publish(ctx, []byte(q.Value))
	case doLeader:
		var info chubby.LeaderInfo
		info, err = s.node.Leader(ctx, q.Path)
		r.Value = string(info.Value)

	case doLock:
		var l *chubby.Lock
		if l, err = s.node.Lock(ctx, q.Path); err == nil {
			r.Sequencer = l.Sequencer()
			s.mu.Lock()
			s.mu.locks[q.Path] = l
			s.mu.Unlock()
		}
	case doUnlock:
		s.mu.Lock()
		l := s.mu.locks[q.Path]
		delete(s.mu.locks, q.Path)
		s.mu.Unlock()
		if l == nil {
			return r, fmt.Errorf("unlock %s: this service does not hold the lock", q.Path)
		}
		err = l.Unlock(ctx)

	case doRegister:
		_, err = s.node.Create(ctx, q.Path, []byte(q.Value), chubby.CreateOptions{Ephemeral: true})
	case doList:
		var list []chubby.Entry
		list, err = s.node.List(ctx, q.Path)
		for _, e := range list {
			r.Names = append(r.Names, e.Path)
		}

	case doSet:
		_, err = s.node.Set(ctx, q.Path, []byte(q.Value))
	case doGet, doFastGet:
		get := s.node.Get
		if q.Do == doFastGet {
			get = s.node.FastGet
		}
		var e chubby.Entry
		e, err = get(ctx, q.Path)
		r.Value, r.Age = string(e.Data), e.Age
	case doCAS:
		var old []byte
		if q.Old != nil {
			old = []byte(*q.Old)
		}
		_, err = s.node.CompareAndSwap(ctx, q.Path, old, []byte(q.Value))

	default:
		err = fmt.Errorf("unknown request %q", q.Do)
	}
	return r, err
}
