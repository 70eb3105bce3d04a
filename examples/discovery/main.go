// Command discovery shows how programs find the instances of a service.
//
//	go run ./examples/discovery
//
// It opens a cell of three nodes and starts three instances of a service, each a process of its own, a client of the cell
// and a member of the group at /services/web with its address as metadata. You see who finds whom; an instance that
// says it is draining; one that leaves; and one that is killed, and is gone once its session's lease is over.
//
// It takes about 2 s, ends by itself and leaves nothing running.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/examples/internal/cell"
	"github.com/chubbygo/chubby/recipes"
)

const (
	path        = "/services/web"
	instanceEnv = "CHUBBY_EXAMPLE_INSTANCE" // "id address member,member,...": makes this program an instance
	lease       = time.Second               // of an instance: how long it is seen after a crash. The default is 12 s.
)

func main() {
	var err error
	if spec := os.Getenv(instanceEnv); spec != "" {
		err = runInstance(spec, os.Stdin)
	} else {
		err = run(context.Background(), os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "discovery:", err)
		os.Exit(1)
	}
}

// runInstance is a member of the group for as long as its parent lets it. A line on in is its new metadata; the end of in
// means to leave.
func runInstance(spec string, in io.Reader) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f := strings.Fields(spec)
	if len(f) != 3 {
		return fmt.Errorf("%s=%q: use three fields", instanceEnv, spec)
	}
	c, err := chubby.Dial(ctx, chubby.DialOptions{Addrs: strings.Split(f[2], ","), SessionLease: lease})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	group, err := recipes.NewGroup(c, path)
	if err != nil {
		return err
	}
	news := make(chan string)
	go func() { // ends with its process
		defer close(news)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			news <- lines.Text()
		}
	}()
	metadata := f[1]
	for {
		m, err := group.Join(ctx, f[0], []byte(metadata))
		if err != nil {
			return err
		}
		for lost := false; !lost; {
			select {
			case text, ok := <-news:
				if !ok {
					return m.Leave(ctx)
				}
				metadata = text
				err := m.Update(ctx, []byte(metadata))
				if lost = errors.Is(err, chubby.ErrSessionExpired); err != nil && !lost {
					return err
				}
			case <-m.Done(): // this process stood still for longer than its lease: it joins again
				lost = true
			}
		}
	}
}

// instance is a process of the service.
type instance struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

func start(ctx context.Context, id, addr string, members []string) (*instance, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", instanceEnv, id, addr, strings.Join(members, ",")))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	return &instance{cmd, in}, cmd.Start()
}

func run(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := (&cell.Flags{}).Open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	group, err := recipes.NewGroup(c.Client(0), path)
	if err != nil {
		return err
	}
	var all []*instance
	defer func() {
		for _, i := range all {
			// The end of its input ends an instance; one that was killed has ended, and says so here.
			i.in.Close()
			i.cmd.Wait()
		}
	}()
	for _, id := range []string{"web-1", "web-2", "web-3"} {
		i, err := start(ctx, id, "10.0.0."+id[len("web-"):]+":80", c.Addrs)
		if err != nil {
			return err
		}
		all = append(all, i)
	}
	await := func(what, want string) error {
		for members, err := range group.Watch(ctx) {
			if err != nil {
				return fmt.Errorf("%s: waiting for %q: %w", what, want, err)
			}
			if got := list(members); got == want {
				fmt.Fprintf(out, "%s: %s\n", what, got)
				break
			}
		}
		return nil
	}
	for _, step := range []struct {
		what string
		do   func() error
		want string // the members then
	}{
		{"three instances", func() error { return nil }, "web-1 at 10.0.0.1:80, web-2 at 10.0.0.2:80, web-3 at 10.0.0.3:80"},
		{"web-1 drains", func() error {
			_, err := io.WriteString(all[0].in, "10.0.0.1:80 draining\n")
			return err
		}, "web-1 at 10.0.0.1:80 draining, web-2 at 10.0.0.2:80, web-3 at 10.0.0.3:80"},
		{"web-2 leaves", func() error { return all[1].in.Close() }, "web-1 at 10.0.0.1:80 draining, web-3 at 10.0.0.3:80"},
		{"web-3 is killed", func() error { return all[2].cmd.Process.Kill() }, "web-1 at 10.0.0.1:80 draining"},
	} {
		if err := step.do(); err != nil {
			return err
		}
		if err := await(step.what, step.want); err != nil {
			return err
		}
	}
	return nil
}

func list(members []recipes.Member) string {
	var all []string
	for _, m := range members {
		all = append(all, fmt.Sprintf("%s at %s", m.ID, m.Metadata))
	}
	return strings.Join(all, ", ")
}
