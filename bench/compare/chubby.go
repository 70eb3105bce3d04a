package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/chubbygo/chubby"
)

// chubbySystem is a cell with its default options, in plain TCP as the others are.
type chubbySystem struct{ nodes []*chubby.Node }

func openChubby(ctx context.Context, dir string) (_ system, err error) {
	s := &chubbySystem{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	addrs, err := freeAddrs(nodes)
	if err != nil {
		return nil, err
	}
	peers := make(map[string]string)
	for i, addr := range addrs {
		peers[fmt.Sprint("n", i)] = addr
	}
	for i, addr := range addrs {
		id := fmt.Sprint("n", i)
		n, err := chubby.Open(chubby.Options{ID: id, Dir: filepath.Join(dir, id), Listen: addr, Peers: peers})
		if err != nil {
			return nil, err
		}
		s.nodes = append(s.nodes, n)
	}
	for _, n := range s.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *chubbySystem) Name() string { return "chubby" }

func (s *chubbySystem) Leader() int {
	return slices.IndexFunc(s.nodes, func(n *chubby.Node) bool { return n.Status().Role == chubby.RoleLeader })
}

func (s *chubbySystem) Put(ctx context.Context, node int, key, value string) error {
	_, err := s.nodes[node].Set(ctx, key, []byte(value))
	return err
}

func (s *chubbySystem) Get(ctx context.Context, node int, key string) (string, error) {
	e, err := s.nodes[node].Get(ctx, key)
	return string(e.Data), err
}

func (s *chubbySystem) StaleGet(ctx context.Context, node int, key string) (string, error) {
	e, err := s.nodes[node].FastGet(ctx, key)
	if errors.Is(err, chubby.ErrNotFound) {
		return "", nil
	}
	return string(e.Data), err
}

func (s *chubbySystem) Watch(ctx context.Context, node int, key string) (func(func(string)) error, error) {
	events := s.nodes[node].Watch(ctx, key, chubby.WatchOptions{})
	return func(told func(string)) error {
		for e, err := range events {
			switch {
			case ctx.Err() != nil:
				return nil
			case err != nil:
				return err
			case e.Kind == chubby.EventCreated || e.Kind == chubby.EventModified:
				told(string(e.Entry.Data))
			}
		}
		return nil
	}, nil
}

// NewLocker opens a session for each caller, as etcd's lockers have.
func (s *chubbySystem) NewLocker(ctx context.Context, node int) (locker, error) {
	session, err := s.nodes[node].NewSession(ctx, chubby.SessionOptions{Lease: time.Minute})
	if err != nil {
		return nil, err
	}
	return &chubbyLocker{session: session}, nil
}

func (s *chubbySystem) Close() error {
	var errs []error
	for _, n := range s.nodes {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

type chubbyLocker struct {
	session *chubby.Session
	held    *chubby.Lock
}

func (l *chubbyLocker) Lock(ctx context.Context, path string) (err error) {
	l.held, err = l.session.Lock(ctx, path)
	return err
}

func (l *chubbyLocker) Unlock(ctx context.Context) error { return l.held.Unlock(ctx) }

func (l *chubbyLocker) Close() error { return l.session.Close(context.Background()) }
