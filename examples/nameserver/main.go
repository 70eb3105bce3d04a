// Command nameserver is a DNS server for names that are stored in a cell.
//
//	go -C examples/nameserver run .
//
// It opens a cell of three nodes in this process, stores a few names, and asks for them over DNS, as any program would. You
// see the answers; a change that the next query sees; a name that is there for as long as the session of who made it; and
// what is said of names that are not there.
//
//	go -C examples/nameserver run . -serve -listen 127.0.0.1:5300 -server server_config.json
//	dig @127.0.0.1 -p 5300 web.chubby A
//
// With -serve it only answers, until it is interrupted. Run it on several nodes, and each answers the same at every
// moment.
//
// Reading: zone.go has the names and their form, server.go what DNS wants. The module is one of its own so that the
// library does not need a DNS library.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/examples/internal/cell"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nameserver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	fs := flag.NewFlagSet("nameserver", flag.ContinueOnError)
	listen := fs.String("listen", "127.0.0.1:0", "the `address` to answer on, UDP and TCP")
	name := fs.String("zone", "chubby.", "the `domain` whose names are in the cell")
	stay := fs.Bool("serve", false, "answer until interrupted, instead of showing something")
	where := cell.Register(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if _, ok := dns.IsDomainName(*name); !ok {
		return fmt.Errorf("-zone %q: use a domain name, such as chubby", *name)
	}
	opening, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := where.Open(opening)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	s, err := serve(ctx, *listen, zone{c.Client(0), dns.CanonicalName(*name)}, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if !*stay {
		return show(ctx, out, s, c.Client(1))
	}
	fmt.Fprintf(out, "answering for %s on %s\n", s.zone.name, s.addr)
	select {
	case <-ctx.Done():
		return nil // as asked
	case err := <-s.failed:
		return err
	}
}

// show changes names through another node than the one that answers, and asks for them.
func show(ctx context.Context, out io.Writer, s *server, c *chubby.Client) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ask := func(name, kind string) error {
		m := new(dns.Msg).SetQuestion(name+"."+s.zone.name, dns.StringToType[kind])
		reply, _, err := (&dns.Client{}).ExchangeContext(ctx, m, s.addr)
		if err != nil {
			return err
		}
		answers := []string{dns.RcodeToString[reply.Rcode]}
		for _, rr := range reply.Answer {
			answers = append(answers, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		fmt.Fprintf(out, "%s %s? %s\n", name, kind, strings.Join(answers, "; "))
		return nil
	}
	for file, records := range map[string]string{
		"web":        "60 A 10.0.0.7\n60 A 10.0.0.8\nAAAA fd00::7",
		"_http._tcp": "SRV 0 50 80 web." + s.zone.name,
		"motto":      `TXT "one cell, one truth"`,
	} {
		if _, err := c.Set(ctx, dir+"/"+file, []byte(records)); err != nil {
			return err
		}
	}
	for _, q := range [][2]string{{"web", "A"}, {"web", "AAAA"}, {"_http._tcp", "SRV"}, {"motto", "TXT"}, {"web", "TXT"}, {"nobody", "A"}} {
		if err := ask(q[0], q[1]); err != nil {
			return err
		}
	}

	fmt.Fprintln(out, "web moves")
	if _, err := c.Set(ctx, dir+"/web", []byte("60 A 10.0.0.9")); err != nil {
		return err
	}
	if err := ask("web", "A"); err != nil {
		return err
	}

	fmt.Fprintln(out, "a worker comes")
	worker, err := c.NewSession(ctx, chubby.SessionOptions{Name: "worker"})
	if err != nil {
		return err
	}
	if _, err := worker.Create(ctx, dir+"/worker", []byte("5 A 10.0.0.20"), chubby.CreateOptions{Ephemeral: true}); err != nil {
		return err
	}
	if err := ask("worker", "A"); err != nil {
		return err
	}
	fmt.Fprintln(out, "and goes") // or it crashes, and its lease runs out
	if err := worker.Close(ctx); err != nil {
		return err
	}
	if err := ask("worker", "A"); err != nil {
		return err
	}
	return c.DeleteTree(ctx, dir)
}
