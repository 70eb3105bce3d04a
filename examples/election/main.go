// Command election shows an election that goes on while nodes leave.
//
//	go run ./examples/election
//
// Three services, each with a node of one cell, run in this process and talk over loopback. All stand for election. You
// see one win and publish where it can be reached; the others agree who it is; its node is closed, which hands the
// leadership on at once; then the next one resigns. Each leader's sequencer is larger than the last. For a leader that
// is killed without a chance to say goodbye see examples/cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
)

const path = "/service/leader"

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "election:", err)
		os.Exit(1)
	}
}

// win is how one service's campaign ended.
type win struct {
	name       string
	leadership *chubby.Leadership
	err        error
}

func run(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	names := []string{"a", "b", "c"}
	peers, err := loopback(names)
	if err != nil {
		return err
	}
	nodes := make(map[string]*chubby.Node)
	won := make(chan win, len(names)) // one for each campaign
	var wg sync.WaitGroup
	defer func() {
		cancel() // who still waits withdraws
		wg.Wait()
		for _, n := range nodes {
			err = errors.Join(err, n.Close()) // closing twice is allowed
		}
	}()
	for _, name := range names {
		if nodes[name], err = chubby.Open(chubby.Options{ID: name, Listen: peers[name], Peers: peers}); err != nil {
			delete(nodes, name)
			return err
		}
	}
	for name, node := range nodes {
		wg.Go(func() {
			l, err := node.Campaign(ctx, path, []byte(name+" at "+peers[name]))
			won <- win{name, l, err}
		})
	}

	var last chubby.Sequencer
	for reign := range names {
		w := <-won // the campaigns have a ctx
		if w.err != nil {
			return w.err
		}
		fmt.Fprintf(out, "%s is elected\n", w.name)
		s := w.leadership.Sequencer()
		if reign > 0 {
			fmt.Fprintf(out, "  with a larger sequencer than the leader before: %t\n", s.Compare(last) > 0)
		}
		last = s
		// The value was published in the step that granted the leadership, so everybody sees both or neither.
		for _, name := range names {
			node := nodes[name]
			if node == nil {
				continue
			}
			info, err := node.Leader(ctx, path)
			if err != nil {
				return err
			}
			fmt.Fprintf(out, "  %s says: the leader is %s\n", name, info.Value)
		}
		if reign == 0 {
			fmt.Fprintf(out, "  %s closes its node\n", w.name)
			err = nodes[w.name].Close()
			delete(nodes, w.name)
		} else {
			fmt.Fprintf(out, "  %s resigns\n", w.name)
			err = w.leadership.Resign(ctx)
		}
		if err != nil {
			return err
		}
		<-w.leadership.Done()
	}
	return nil
}

// loopback finds an address for each name. The ports could be taken until they are used, which a real cell, whose ports
// are chosen by people, need not fear.
func loopback(names []string) (map[string]string, error) {
	peers := make(map[string]string)
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // when all are found, so that they differ
		peers[name] = l.Addr().String()
	}
	return peers, nil
}
