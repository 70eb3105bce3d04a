// Command cluster shows the five uses of chubby on three processes, with the configuration files of ChubbyGo.
//
//	go run ./examples/cluster
//
// It writes config/*.json to a temporary directory, starts three node processes on ports 8900, 8901 and 8902 with their
// data below that directory, and then you see:
//
//   - what each field of the files became;
//   - the three services, each with a node in it, elect a leader; its process is killed, and another wins, with a larger
//     sequencer;
//   - a lock that protects a resource: a request under an old sequencer comes late and is refused;
//   - a message that the leader publishes and others read;
//   - a name server, from which the killed service has gone by itself;
//   - set, get and compare-and-swap on different nodes;
//   - the killed process come back and catch up with what it missed.
//
// It takes about 5 s, ends by itself, leaves nothing running and nothing on disk. If other programs have the ports, use
// -ports 9000,9001,9002.
//
// Reading: main.go sets the stage, show.go is the play, node.go what a service does with chubby, resource.go what a lock
// protects. process.go and protocol.go are how the parent talks to its processes, which has nothing to do with chubby.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chubbygo/chubby"
)

// configs are the files as the seed prints them.
//
//go:embed config
var configs embed.FS

const (
	seedPorts = "8900,8901,8902"
	showTime  = 2 * time.Minute // for all of it; on a machine that is not overloaded it takes a tenth of that
)

func main() {
	var err error
	if config := os.Getenv(nodeEnv); config != "" {
		err = runNode(config, os.Stdin, os.Stdout)
	} else {
		ports := flag.String("ports", seedPorts, "three ports in place of those in the configuration files")
		flag.Parse()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = run(ctx, os.Stdout, strings.Split(*ports, ","))
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// run gives the whole show on three ports and writes what happens to out.
func run(ctx context.Context, out io.Writer, ports []string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, showTime)
	defer cancel()
	dir, err := os.MkdirTemp("", "chubby-cluster-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &show{out: out, dir: dir, begun: time.Now()}
	if err := s.configure(ports); err != nil {
		return err
	}
	defer func() {
		cancel() // whoever still waits for an answer
		err = errors.Join(err, s.close())
	}()
	for _, step := range []func(context.Context) error{
		s.start, s.elect, s.protect, s.publish, s.lookUp, s.store, s.comeBack,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	s.title("end")
	if err := s.close(); err != nil {
		return err
	}
	s.say("three processes closed, %.1fs in all", time.Since(s.begun).Seconds())
	return nil
}

// configure writes the configuration files, reads them as every program would, and tells what they say.
func (s *show) configure(ports []string) error {
	seed := strings.Split(seedPorts, ",")
	if len(ports) != len(seed) || slices.Contains(ports, "") {
		return fmt.Errorf("-ports %s: use three ports, such as %s", strings.Join(ports, ","), seedPorts)
	}
	var pairs []string
	for i := range seed {
		pairs = append(pairs, ":"+seed[i], ":"+ports[i])
	}
	rewrite := strings.NewReplacer(pairs...)
	files, err := fs.ReadDir(configs, "config")
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := configs.ReadFile("config/" + f.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(s.dir, f.Name()), []byte(rewrite.Replace(string(text))), 0o600); err != nil {
			return err
		}
	}
	s.title("configuration, in " + s.dir)
	for _, name := range []string{"A", "B", "C"} {
		p := &performer{name: name, config: "server_config_" + strings.ToLower(name) + ".json"}
		if p.opts, err = chubby.LoadServerConfig(filepath.Join(s.dir, p.config)); err != nil {
			return err
		}
		s.cast = append(s.cast, p)
		s.say("%s: %s: listens on %s, keeps its data in %s", name, p.config, p.opts.Listen, p.opts.Dir)
	}
	o := s.cast[0].opts
	s.say("all: maxreries %d tries to get ready, the first of timeout_entry %v; maxraftstate %d bytes of log, compacted at 85 %%",
		o.StartAttempts, o.StartInterval, o.MaxLogBytes)
	s.say("     persistencestrategy %s, chubbygomapstrategy %s: taken, but this version does more than they ask for:",
		[]string{"always", "everysec", "no"}[o.Sync], []string{"none", "concurrentmap", "syncmap"}[o.Map])
	s.say("     it syncs every write before it is acknowledged, and reads the tree itself, without an index in front")
	if s.client, err = chubby.LoadClientConfig(filepath.Join(s.dir, "client_config.json")); err != nil {
		return err
	}
	s.say("client_config.json: a cell at %s, maxreries %d", strings.Join(s.client.Addrs, ", "), s.client.MaxRetries)
	return s.checkPorts()
}

// checkPorts tells in time, and with the cure, that somebody else has a port.
func (s *show) checkPorts() error {
	var errs []error
	for _, p := range s.cast {
		l, err := net.Listen("tcp", p.opts.Listen)
		if err == nil {
			err = l.Close()
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if errs != nil {
		return fmt.Errorf("the nodes cannot have their ports: stop what uses them, or choose others with -ports 9000,9001,9002: %w", errors.Join(errs...))
	}
	return nil
}
