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
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/chubbygo/chubby"
)

const (
	// nodeEnv tells a process that it is a node, and its configuration.
	nodeEnv = "CHUBBY_OPERATIONS_NODE"
	// stopTime is how long a node process may take to close.
	stopTime = 20 * time.Second
)

// config is what a node process is started with.
type config struct {
	ID, Dir, Listen string
	Join            []string
	Nonvoter        bool
}

// request is a line to a node process, reply is one from it.
type request struct {
	N  int // the reply has the same
	Op string
	ID string
}

type reply struct {
	N      int
	Error  string
	Voters []string // of voters: "id=address", sorted
	Count  int      // of count
}

// runNode opens a node and does what the lines on in ask for until they end, which they also do when the parent dies.
func runNode(text string, in io.Reader, out io.Writer) error {
	signal.Ignore(os.Interrupt, syscall.SIGPIPE) // the end of the lines is the sign to go
	var c config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	node, err := chubby.Open(chubby.Options{
		ID: c.ID, Dir: c.Dir, Listen: c.Listen, Join: c.Join, Nonvoter: c.Nonvoter,
		HeartbeatTimeout: 300 * time.Millisecond, // machines that show examples are often busy
		Logger:           slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var mu sync.Mutex
	enc := json.NewEncoder(out)
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		var q request
		if err = json.Unmarshal(lines.Bytes(), &q); err != nil {
			break
		}
		wg.Go(func() {
			r, err := serve(ctx, node, q)
			if err != nil {
				r.Error = err.Error()
			}
			r.N = q.N
			mu.Lock()
			defer mu.Unlock()
			_ = enc.Encode(r) // a parent that is gone wants no reply
		})
	}
	cancel()
	err = errors.Join(err, lines.Err(), node.Close())
	wg.Wait()
	return err
}

func serve(ctx context.Context, node *chubby.Node, q request) (r reply, err error) {
	switch q.Op {
	case "ready":
		err = node.WaitReady(ctx)
	case "set":
		_, err = node.Set(ctx, "/writes/"+q.ID, []byte(q.ID))
	case "remove":
		err = node.RemoveMember(ctx, q.ID)
	case "voters":
		var list []chubby.Member
		if list, err = node.Members(ctx); err != nil {
			return r, err
		}
		for _, m := range list {
			if m.Voter {
				r.Voters = append(r.Voters, m.ID+"="+m.Addr)
			}
		}
		slices.Sort(r.Voters)
	case "count":
		var list []chubby.Entry
		list, err = node.List(ctx, "/writes")
		r.Count = len(list)
	default:
		err = fmt.Errorf("unknown operation %q", q.Op)
	}
	return r, err
}
