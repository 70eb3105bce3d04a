// Command server is a node of a cell and nothing else, for a cell that is used by clients only.
//
//	go run ./examples/server examples/cluster/config/server_config_a.json     # and _b, and _c, in terminals of their own
//	go run ./examples/client_base -client examples/cluster/config/client_config.json
//
// Each names a file like ChubbyGo's server_config.json. You see when the node is ready, and who leads the cell whenever
// that changes; an interrupt ends it. The first time all three must be started; later two of them are enough.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/chubbygo/chubby"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	if len(args) != 1 {
		return errors.New("use: server FILE, with a file like server_config.json")
	}
	opts, err := chubby.LoadServerConfig(args[0])
	if err != nil {
		return err
	}
	return serve(ctx, out, opts)
}

// serve runs a node until ctx ends or the node stops by itself.
func serve(ctx context.Context, out io.Writer, opts chubby.Options) (err error) {
	n, err := chubby.Open(opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close(), n.Err()) }()
	fmt.Fprintf(out, "%s: data in %s, waiting for the cell\n", opts.ID, opts.Dir)
	if err := n.WaitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // as asked
		}
		return err
	}
	fmt.Fprintf(out, "%s: ready; the cell leader is %s\n", opts.ID, n.Status().LeaderID)
	for {
		for event, err := range n.Watch(ctx, "/", chubby.WatchOptions{}) {
			if err != nil {
				break
			}
			if event.Kind == chubby.EventLeaderChanged {
				fmt.Fprintf(out, "%s: the cell leader is %s\n", opts.ID, n.Status().LeaderID)
			}
		}
		select {
		case <-ctx.Done():
			fmt.Fprintf(out, "%s: closing\n", opts.ID)
			return nil
		case <-n.Done():
			return nil
		case <-time.After(time.Second): // the watch missed something, which does not matter here
		}
	}
}
