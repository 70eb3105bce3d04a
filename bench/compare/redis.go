package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// redis is what ChubbyGo compared itself with: a leader, two replicas and a sentinel. The leader syncs each write
// (appendfsync always); replicas get it later, so a write is acknowledged when one disk has it.
type redis struct {
	servers
	leader string
}

func openRedis(ctx context.Context, dir string) (_ setter, err error) {
	program, err := lookup("redis-server")
	if err != nil {
		return nil, err
	}
	addrs, err := freeAddrs(4)
	if err != nil {
		return nil, err
	}
	r := &redis{leader: addrs[0]}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for i, addr := range addrs[:3] {
		place := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(place, 0o700); err != nil {
			return nil, err
		}
		args := []string{"--bind", "127.0.0.1", "--port", portOf(addr), "--save", "", "--appendonly", "yes", "--appendfsync", "always"}
		if i > 0 {
			args = append(args, "--replicaof", "127.0.0.1", portOf(r.leader))
		}
		if err := r.start(place, "redis", program, args...); err != nil {
			return nil, err
		}
	}
	config := filepath.Join(dir, "sentinel.conf")
	text := fmt.Sprintf("port %s\nbind 127.0.0.1\nsentinel monitor cell 127.0.0.1 %s 1\n", portOf(addrs[3]), portOf(r.leader))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if err := r.start(dir, "sentinel", program, config, "--sentinel"); err != nil {
		return nil, err
	}
	return r, await(ctx, func() error {
		c, err := r.Caller(ctx, 0)
		if err != nil {
			return err
		}
		defer c.Close()
		info, err := c.(*redisCaller).call("INFO", "replication")
		if err == nil && strings.Count(info, "state=online") != 2 {
			err = fmt.Errorf("the replicas are not in step: %q", info)
		}
		return err
	})
}

func (r *redis) Name() string { return "redis" }

func (r *redis) Caller(ctx context.Context, _ int) (setCaller, error) {
	conn, err := dial(ctx, r.leader)
	if err != nil {
		return nil, err
	}
	return &redisCaller{Conn: conn, r: bufio.NewReader(conn)}, nil
}

type redisCaller struct {
	net.Conn
	r   *bufio.Reader
	out []byte
}

func (c *redisCaller) Set(_ context.Context, key int, value string) error {
	answer, err := c.call("SET", fmt.Sprintf("table/%04d", key), value)
	if err == nil && answer != "OK" {
		err = fmt.Errorf("redis answers %q", answer)
	}
	return err
}

// call sends one command in redis' protocol and reads a line or a string as its answer.
func (c *redisCaller) call(words ...string) (string, error) {
	c.out = fmt.Appendf(c.out[:0], "*%d\r\n", len(words))
	for _, w := range words {
		c.out = fmt.Appendf(c.out, "$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := c.Write(c.out); err != nil {
		return "", err
	}
	return readRESP(c.r)
}

func readRESP(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	kind, rest := line[0], strings.TrimRight(line[1:], "\r\n")
	switch kind {
	case '+':
		return rest, nil
	case '$':
		n, err := strconv.Atoi(rest)
		if err != nil || n < 0 || n > 1<<20 {
			return "", fmt.Errorf("redis: a string of %q bytes", rest)
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(r, b)
		return string(b[:n]), err
	}
	return "", fmt.Errorf("redis: %s", strings.TrimSpace(line))
}
