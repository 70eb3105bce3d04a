//go:build unix

// Command clients has many dialled clients, each with a session and a lock, on one cell of three nodes over TCP, all in this
// process, and prints what their KeepAlives cost and what a change of the cell leader loses.
//
//	go run ./bench/clients [-clients 1000] [-measure 30s] [-dir D]
//
// The cost is the process's CPU time with the sessions, less that with the same connections and no session: both ends of
// every call are in it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/chubbygo/chubby"
)

func main() {
	clients := flag.Int("clients", 1000, "how many")
	measure := flag.Duration("measure", 30*time.Second, "how long CPU time is taken")
	dir := flag.String("dir", "", "where the nodes keep their data; empty: a temporary directory")
	flag.Parse()
	if err := run(*clients, *measure, *dir); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		os.Exit(1)
	}
}

func run(n int, measure time.Duration, dir string) error {
	if dir == "" {
		temp, err := os.MkdirTemp("", "clients")
		if err != nil {
			return err
		}
		defer os.RemoveAll(temp)
		dir = temp
	}
	nodes, addrs, err := openCell(dir)
	for _, node := range nodes {
		defer node.Close()
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	list := make([]*chubby.Client, n)
	defer func() {
		each(list, func(c *chubby.Client) error {
			if c != nil {
				return c.Close()
			}
			return nil
		})
	}()
	start := time.Now()
	if err := eachIndex(n, func(i int) (err error) {
		list[i], err = chubby.Dial(ctx, chubby.DialOptions{Addrs: addrs})
		return err
	}); err != nil {
		return err
	}
	fmt.Printf("clients                     %d, connected after %.1f s\n", n, time.Since(start).Seconds())
	time.Sleep(2 * time.Second)
	idle := usage(measure)
	fmt.Printf("CPU without sessions        %.1f %% of a core: heartbeats of the cell and 3 connections each\n", 100*idle)

	start = time.Now()
	if err := eachIndex(n, func(i int) error {
		_, err := list[i].Session(ctx)
		return err
	}); err != nil {
		return err
	}
	fmt.Printf("sessions                    %d, after %.1f s\n", n, time.Since(start).Seconds())
	time.Sleep(5 * time.Second)
	busy := usage(measure)
	fmt.Printf("CPU with sessions           %.1f %% of a core\n", 100*busy)
	fmt.Printf("CPU of KeepAlives           %.1f %% of a core\n", 100*(busy-idle))

	start = time.Now()
	locks := make([]*chubby.Lock, n)
	if err := eachIndex(n, func(i int) (err error) {
		locks[i], err = list[i].Lock(ctx, fmt.Sprintf("/clients/%d", i))
		return err
	}); err != nil {
		return err
	}
	fmt.Printf("locks                       %d, after %.1f s\n", n, time.Since(start).Seconds())
	time.Sleep(5 * time.Second)
	fmt.Printf("CPU with locks held         %.1f %% of a core: each client looks at its clock 20 times a second\n", 100*usage(measure))

	for _, how := range []string{"handed over", "gone"} {
		if err := changeLeader(ctx, nodes, how == "gone"); err != nil {
			return err
		}
		time.Sleep(20 * time.Second) // more than a lease
		lost, shaken := 0, 0
		for _, l := range locks {
			switch {
			case l.Err() != nil:
				lost++
			case l.Context().Err() != nil:
				shaken++
			}
		}
		fmt.Printf("cell leader %-15s %d sessions lost, %d in jeopardy\n", how, lost, shaken)
		if lost+shaken > 0 {
			return errors.New("sessions were lost")
		}
	}
	return nil
}

func openCell(dir string) (nodes []*chubby.Node, addrs []string, err error) {
	peers := make(map[string]string)
	for i := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		defer l.Close()
		peers[fmt.Sprint("n", i)] = l.Addr().String()
		addrs = append(addrs, l.Addr().String())
		if err := l.Close(); err != nil {
			return nil, nil, err
		}
	}
	for id, addr := range peers {
		n, err := chubby.Open(chubby.Options{ID: id, Dir: filepath.Join(dir, id), Listen: addr, Peers: peers})
		if err != nil {
			return nodes, nil, err
		}
		nodes = append(nodes, n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nodes, nil, err
		}
	}
	return nodes, addrs, nil
}

// changeLeader has another node lead the cell: by a transfer, or because the leader goes.
func changeLeader(ctx context.Context, nodes []*chubby.Node, gone bool) error {
	for ctx.Err() == nil {
		for _, n := range nodes {
			if n.Status().Role != chubby.RoleLeader {
				continue
			}
			if gone {
				return n.Close()
			}
			return n.TransferLeadership(ctx, "")
		}
		time.Sleep(10 * time.Millisecond) // an election is on its way
	}
	return ctx.Err()
}

// usage is the CPU time of this process in d, as a share of one core.
func usage(d time.Duration) float64 {
	before, start := cpu(), time.Now()
	time.Sleep(d)
	return (cpu() - before).Seconds() / time.Since(start).Seconds()
}

func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// eachIndex calls f for 0 to n-1, 50 at a time, and returns the first error.
func eachIndex(n int, f func(i int) error) (err error) {
	var wg sync.WaitGroup
	var once sync.Once
	places := make(chan struct{}, 50)
	for i := range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if e := f(i); e != nil {
				once.Do(func() { err = e })
			}
		})
	}
	wg.Wait()
	return err
}

func each(list []*chubby.Client, f func(*chubby.Client) error) {
	if err := eachIndex(len(list), func(i int) error { return f(list[i]) }); err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
	}
}
