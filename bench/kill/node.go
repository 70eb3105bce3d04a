package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
)

// nodeArgument, as the only one, makes this program a node: the first line of its standard input is a nodeConfig, each
// further line a request; each line of its standard output is a response. It ends when the input does, so that no node
// outlives the driver, however that ends.
const nodeArgument = "be-a-node"

type nodeConfig struct {
	ID        string
	Dir       string
	Peers     map[string]string
	Heartbeat time.Duration // 0: the default of chubby.Options, as the next one
	LogBytes  int64
	Sync      chubby.SyncPolicy
}

// request is one call of the node's API.
type request struct {
	ID      uint64 // answered by the response of this ID
	Call    call
	Path    string
	Counter string // callTxn: the counter that moves together with Path's creation
	Data    string
	Delta   int64
	Timeout time.Duration
}

type call string

const (
	callReady  call = "ready"  // WaitReady
	callStatus call = "status" // Status
	callSet    call = "set"    // Set Path to Data
	callAdd    call = "add"    // Add Delta to Path
	callTxn    call = "txn"    // create Path with Data and add Delta to Counter, in one step
	callDump   call = "dump"   // everything in the directory Path, by linearizable and by local reads
	callCheck  call = "check"  // Check
)

// response tells what became of a request. The one with ID 0 comes first, unasked, when the node is open.
type response struct {
	ID      uint64
	Outcome outcome
	Err     string // with any outcome but done
	Number  int64  // callAdd, callTxn: the counter's new value
	Leader  string // callStatus
	Term    uint64
	Entries []entry // callDump, sorted by name
}

// outcome is what a caller knows about a call that has ended. An outcome the library may not give, such as ErrExists for
// a path that is written only once, is wrong, and a violation.
type outcome uint8

const (
	wrong     outcome = iota
	done              // acknowledged
	refused           // it did not happen and will not
	uncertain         // it may have happened, or may yet
)

// entry is one child of a dumped directory.
type entry struct {
	Path       string
	Instance   uint64
	Generation uint64
	Checksum   uint64
	Dir        bool
	Data       string       // of a file, by FastGet; of a counter, by Get
	Fast       *chubby.Stat // by FastGet; nil: it found none
}

const (
	counterName = "n"     // of the file in each chain's directory that is a counter
	handlersMax = 256     // requests that a node works on at once; beyond, it stops reading
	requestMax  = 1 << 16 // bytes; the driver sends far less
)

// serve runs one node until in ends. It returns an error if the node could not be opened or stopped by itself.
func serve(in io.Reader, out io.Writer) (err error) {
	// A terminal's interrupt reaches the whole process group; the node is to end with its driver, not before.
	signal.Ignore(os.Interrupt)
	requests := json.NewDecoder(in)
	var cfg nodeConfig
	if err := requests.Decode(&cfg); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	node, err := chubby.Open(chubby.Options{
		ID: cfg.ID, Dir: cfg.Dir, Listen: cfg.Peers[cfg.ID], Peers: cfg.Peers,
		HeartbeatTimeout: cfg.Heartbeat, MaxLogBytes: cfg.LogBytes, Sync: cfg.Sync, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(context.Background())
	responses := make(chan response)
	var writer, handlers sync.WaitGroup
	writer.Go(func() {
		enc := json.NewEncoder(out)
		for r := range responses {
			if enc.Encode(r) != nil {
				cancel() // The driver is gone. Go on draining, for the handlers' sake.
			}
		}
	})
	// Whatever ends the input ends the calls in flight, then the node.
	defer func() {
		cancel()
		handlers.Wait()
		close(responses)
		writer.Wait()
		err = errors.Join(err, node.Close(), node.Err())
	}()
	responses <- response{Outcome: done}

	incoming := make(chan request)
	ended := make(chan error, 1)
	// Not waited for: it may stand in a read that only the driver can end, and the process is about to.
	go func() {
		for {
			var r request
			if err := requests.Decode(&r); err != nil {
				ended <- err
				return
			}
			select {
			case incoming <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	slots := make(chan struct{}, handlersMax)
	for {
		select {
		case r := <-incoming:
			slots <- struct{}{}
			handlers.Go(func() {
				defer func() { <-slots }()
				responses <- answer(ctx, node, r)
			})
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("reading a request: %w", err)
		case <-node.Done():
			return errors.New("the node stopped by itself")
		}
	}
}

// answer carries out one request.
func answer(ctx context.Context, node *chubby.Node, r request) response {
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	out := response{ID: r.ID}
	var err error
	switch r.Call {
	case callReady:
		err = node.WaitReady(ctx)
	case callStatus:
		s := node.Status()
		out.Leader, out.Term = s.LeaderID, s.Term
	case callSet:
		_, err = node.Set(ctx, r.Path, []byte(r.Data))
	case callAdd:
		out.Number, err = node.Add(ctx, r.Path, r.Delta, counterMax)
	case callTxn:
		out.Number, err = createAndAdd(ctx, node, r)
	case callDump:
		out.Entries, err = dump(ctx, node, r.Path)
	case callCheck:
		err = node.Check(ctx)
	default:
		err = fmt.Errorf("no call %q", r.Call)
	}
	out.Outcome = judgeError(err)
	if err != nil {
		out.Err = err.Error()
	}
	return out
}

// createAndAdd fails with ErrExists if it is executed twice.
func createAndAdd(ctx context.Context, node *chubby.Node, r request) (int64, error) {
	result, err := node.Txn(ctx, chubby.Txn{Then: []chubby.Op{
		chubby.OpCreate(r.Path, []byte(r.Data), chubby.CreateOptions{}),
		chubby.OpAdd(r.Counter, r.Delta, counterMax),
	}})
	if err != nil {
		return 0, err
	}
	if len(result.Entries) != 2 {
		return 0, fmt.Errorf("a Txn of two operations gave %d entries", len(result.Entries))
	}
	return strconv.ParseInt(string(result.Entries[1].Data), 10, 64)
}

// judgeError sorts errors into outcomes. The calls here cannot fail for any reason but an ended ctx or overload: each
// file is made once, by a known call, and read and counted up only afterwards.
func judgeError(err error) outcome {
	switch {
	case err == nil:
		return done
	case errors.Is(err, chubby.ErrUncertain):
		return uncertain
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled), errors.Is(err, chubby.ErrOverloaded):
		return refused
	}
	return wrong
}

// dump reads a directory as a list, which is linearizable, and each file in it from this node's own memory, which must
// not be older than the list that the same Client has seen. A directory that does not exist is empty.
func dump(ctx context.Context, node *chubby.Node, dir string) ([]entry, error) {
	list, err := node.List(ctx, dir)
	if errors.Is(err, chubby.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	entries := make([]entry, len(list))
	for i, e := range list {
		entries[i] = entry{Path: e.Path, Instance: e.Stat.Instance, Generation: e.Stat.Generation, Checksum: e.Stat.Checksum, Dir: e.Stat.Dir}
		if e.Stat.Dir {
			continue
		}
		fast, err := node.FastGet(ctx, e.Path)
		if err != nil && !errors.Is(err, chubby.ErrNotFound) {
			return nil, err
		}
		if err == nil {
			entries[i].Fast, entries[i].Data = &fast.Stat, string(fast.Data)
		}
		if e.Path == dir+"/"+counterName {
			exact, err := node.Get(ctx, e.Path)
			if err != nil {
				return nil, err
			}
			entries[i].Data = string(exact.Data)
		}
	}
	return entries, nil
}
