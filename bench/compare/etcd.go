package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// etcdQuotaBytes is the largest backend that etcd recommends. The default of 2 GiB would end a long run, because nothing
// compacts the history by default.
const etcdQuotaBytes = 8 << 30

// etcdSystem is embedded etcd with its default configuration. Its clients are clientv3's, over gRPC to their own node, or
// v3client's, which call into the server of their own node directly.
type etcdSystem struct {
	name    string
	members []*embed.Etcd
	clients []*clientv3.Client
}

func openEtcd(ctx context.Context, dir string) (system, error) {
	return openEtcdWith(ctx, dir, "etcd", func(m *embed.Etcd) (*clientv3.Client, error) {
		return clientv3.New(clientv3.Config{Endpoints: []string{m.Config().ListenClientUrls[0].Host}, Logger: zap.NewNop()})
	})
}

func openEtcdInProcess(ctx context.Context, dir string) (system, error) {
	return openEtcdWith(ctx, dir, "etcd-inprocess", func(m *embed.Etcd) (*clientv3.Client, error) {
		return v3client.New(m.Server), nil
	})
}

func openEtcdWith(ctx context.Context, dir, name string, connect func(*embed.Etcd) (*clientv3.Client, error)) (_ system, err error) {
	s := &etcdSystem{name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	// A peer's address stands in every member's configuration, so it must be known before anyone listens.
	addrs, err := freeAddrs(2 * nodes)
	if err != nil {
		return nil, err
	}
	var cell []string
	for i := range nodes {
		cell = append(cell, fmt.Sprintf("n%d=http://%s", i, addrs[i]))
	}
	for i := range nodes {
		cfg := embed.NewConfig()
		cfg.Name = fmt.Sprintf("n%d", i)
		cfg.Dir = filepath.Join(dir, cfg.Name)
		cfg.InitialCluster = strings.Join(cell, ",")
		cfg.ListenPeerUrls = []url.URL{{Scheme: "http", Host: addrs[i]}}
		cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
		cfg.ListenClientUrls = []url.URL{{Scheme: "http", Host: addrs[nodes+i]}}
		cfg.AdvertiseClientUrls = cfg.ListenClientUrls
		cfg.QuotaBackendBytes = etcdQuotaBytes
		cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
		member, err := embed.StartEtcd(cfg)
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", cfg.Name, err)
		}
		s.members = append(s.members, member)
	}
	for _, member := range s.members {
		select {
		case <-member.Server.ReadyNotify():
		case err := <-member.Err():
			return nil, fmt.Errorf("member stopped: %w", err)
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for members: %w", ctx.Err())
		}
		client, err := connect(member)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		s.clients = append(s.clients, client)
	}
	return s, nil
}

func (s *etcdSystem) Name() string { return s.name }

func (s *etcdSystem) Leader() int {
	return slices.IndexFunc(s.members, func(m *embed.Etcd) bool { return m.Server.Leader() == m.Server.MemberID() })
}

func (s *etcdSystem) Put(ctx context.Context, node int, key, value string) error {
	_, err := s.clients[node].Put(ctx, key, value)
	return err
}

func (s *etcdSystem) Get(ctx context.Context, node int, key string) (string, error) {
	r, err := s.clients[node].Get(ctx, key)
	if err != nil {
		return "", err
	}
	if len(r.Kvs) == 0 {
		return "", fmt.Errorf("%s: not found", key)
	}
	return string(r.Kvs[0].Value), nil
}

func (s *etcdSystem) StaleGet(ctx context.Context, node int, key string) (string, error) {
	r, err := s.clients[node].Get(ctx, key, clientv3.WithSerializable())
	if err != nil || len(r.Kvs) == 0 {
		return "", err
	}
	return string(r.Kvs[0].Value), nil
}

func (s *etcdSystem) Watch(ctx context.Context, node int, key string) (func(func(string)) error, error) {
	answers := s.clients[node].Watch(ctx, key, clientv3.WithCreatedNotify())
	if first, ok := <-answers; !ok || first.Err() != nil {
		return nil, fmt.Errorf("watch %s was not made: %v", key, errors.Join(first.Err(), ctx.Err()))
	}
	return func(told func(string)) error {
		for r := range answers {
			if ctx.Err() != nil {
				return nil
			}
			if err := r.Err(); err != nil {
				return err
			}
			for _, e := range r.Events {
				told(string(e.Kv.Value))
			}
		}
		if ctx.Err() == nil {
			return fmt.Errorf("watch %s: it ended", key)
		}
		return nil
	}, nil
}

func (s *etcdSystem) NewLocker(ctx context.Context, node int) (locker, error) {
	// The session outlives ctx, which bounds only its making: WithContext would end it with ctx.
	lease, err := s.clients[node].Grant(ctx, etcdSessionSeconds)
	if err != nil {
		return nil, err
	}
	session, err := concurrency.NewSession(s.clients[node], concurrency.WithLease(lease.ID))
	if err != nil {
		return nil, err
	}
	return &etcdLocker{session: session}, nil
}

// etcdSessionSeconds is concurrency.NewSession's default.
const etcdSessionSeconds = 60

func (s *etcdSystem) Close() error {
	var errs []error
	for _, c := range s.clients {
		// A client without connection of its own has nothing to close but its context, and says so by an error.
		if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
			errs = append(errs, err)
		}
	}
	for _, m := range s.members {
		m.Close()
	}
	return errors.Join(errs...)
}

// etcdLocker is one session, and one Mutex per acquisition, as etcd's documentation has it.
type etcdLocker struct {
	session *concurrency.Session
	held    *concurrency.Mutex
}

func (l *etcdLocker) Lock(ctx context.Context, path string) error {
	l.held = concurrency.NewMutex(l.session, path)
	return l.held.Lock(ctx)
}

func (l *etcdLocker) Unlock(ctx context.Context) error { return l.held.Unlock(ctx) }

func (l *etcdLocker) Close() error { return l.session.Close() }

// freeAddrs gives n distinct loopback addresses that nobody listened on a moment ago.
func freeAddrs(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // Held until all are chosen, so that none is given twice.
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
