// Package cell gives the example programs a cell to talk to, so that each of them can be about something else.
package cell

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
)

// Flags say which cell a program talks to. The zero value is three nodes in this process.
type Flags struct {
	// Client is a file like ChubbyGo's client_config.json. The nodes are those of other processes, such as
	// examples/server.
	Client string
	// Servers are files like ChubbyGo's server_config.json, one for each node to be opened in this process. Nodes that
	// the files name but that are not opened here must be opened by other processes.
	Servers []string

	network chubby.Network // of what comes from files; nil = TCP. For the test.
}

// Register adds the flags to a program's own.
func Register(fs *flag.FlagSet) *Flags {
	f := &Flags{}
	fs.StringVar(&f.Client, "client", "", "a `file` like client_config.json: be a client of that cell, instead of three nodes in memory")
	fs.Func("server", "a `file` like server_config.json: open that node in this process, instead of three nodes in memory; repeat it for more nodes", func(file string) error {
		f.Servers = append(f.Servers, file)
		return nil
	})
	return f
}

// Cell is a way into a cell.
type Cell struct {
	Clients []*chubby.Client // at least one: the nodes' own, or a dialled one
	Addrs   []string         // where members listen
	nodes   []*chubby.Node
}

// Open opens what the flags ask for and waits until it is ready. Whoever gets a Cell must Close it.
func (f *Flags) Open(ctx context.Context) (*Cell, error) {
	if f.Client != "" {
		return f.dial(ctx)
	}
	all, err := f.options()
	if err != nil {
		return nil, err
	}
	c := &Cell{}
	for _, o := range all {
		n, err := chubby.Open(o)
		if err != nil {
			return nil, errors.Join(err, c.each((*chubby.Node).Close))
		}
		c.nodes = append(c.nodes, n)
		c.Clients = append(c.Clients, n.Client)
		c.Addrs = append(c.Addrs, o.Listen)
	}
	for _, n := range c.nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, errors.Join(err, c.each((*chubby.Node).Close))
		}
	}
	return c, nil
}

func (f *Flags) dial(ctx context.Context) (*Cell, error) {
	if len(f.Servers) > 0 {
		return nil, errors.New("-client and -server: use one of them")
	}
	o, err := chubby.LoadClientConfig(f.Client)
	if err != nil {
		return nil, err
	}
	o.Network = f.network
	c, err := chubby.Dial(ctx, o)
	if err != nil {
		return nil, err
	}
	return &Cell{Clients: []*chubby.Client{c}, Addrs: o.Addrs}, nil
}

// Client gives client i, counting round and round.
func (c *Cell) Client(i int) *chubby.Client { return c.Clients[i%len(c.Clients)] }

// Close closes what Open opened. Sessions first, while there is a majority that can end them: the last node would wait
// for one in vain, as it does in a real cell that is closed as a whole.
func (c *Cell) Close() error {
	if len(c.nodes) == 0 {
		return c.Clients[0].Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	return errors.Join(
		c.each(func(n *chubby.Node) error {
			s, err := n.Session(ctx)
			if err != nil {
				return err
			}
			return s.Close(ctx)
		}),
		c.each((*chubby.Node).Close))
}

// each does something with all nodes at once.
func (c *Cell) each(f func(*chubby.Node) error) error {
	errs := make([]error, len(c.nodes))
	var wg sync.WaitGroup
	for i, n := range c.nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (f *Flags) options() ([]chubby.Options, error) {
	if len(f.Servers) == 0 {
		return inProcess()
	}
	var all []chubby.Options
	for _, file := range f.Servers {
		o, err := chubby.LoadServerConfig(file)
		if err != nil {
			return nil, err
		}
		o.Network = f.network
		all = append(all, o)
	}
	return all, nil
}

// inProcess makes a cell of three nodes in memory, which talk over loopback on ports that are free.
func inProcess() (all []chubby.Options, err error) {
	peers := make(map[string]string)
	net := &bound{listeners: make(map[string]net.Listener)}
	defer func() {
		if err != nil {
			net.close()
		}
	}()
	for _, id := range []string{"a", "b", "c"} {
		if peers[id], err = net.bind(); err != nil {
			return nil, err
		}
	}
	for id, addr := range peers {
		all = append(all, chubby.Options{ID: id, Listen: addr, Peers: peers, Network: net})
	}
	return all, nil
}

// bound is TCP on ports that were bound before the nodes are opened: each must know all addresses, and a port that was
// free a moment ago may be somebody else's now. A real cell has ports chosen by people and needs no Network.
type bound struct {
	net.Dialer
	listeners map[string]net.Listener // not changed once the first node is opened
}

func (b *bound) bind() (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr = l.Addr().String()
	b.listeners[addr] = l
	return addr, nil
}

// Listen hands out the listener of an address, once.
func (b *bound) Listen(_ context.Context, addr string) (net.Listener, error) {
	l, ok := b.listeners[addr]
	if !ok {
		return nil, fmt.Errorf("listen on %s: it was not bound; bound are %s", addr, strings.Join(b.addrs(), ", "))
	}
	return l, nil
}

// Dial is TCP's.
func (b *bound) Dial(ctx context.Context, addr string) (net.Conn, error) {
	return b.DialContext(ctx, "tcp", addr)
}

func (b *bound) addrs() (addrs []string) {
	for addr := range b.listeners {
		addrs = append(addrs, addr)
	}
	return addrs
}

func (b *bound) close() {
	for _, l := range b.listeners {
		l.Close()
	}
}
