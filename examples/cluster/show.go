package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/fence"
)

// Where things are in the cell.
const (
	electionPath = "/service/primary"
	lockPath     = "/service/disk"
	namesPath    = "/names/"
	colorPath    = "/config/color"
)

// message is what the leader publishes.
const message = "maintenance at noon"

// performer is one of the three services. Its process changes when it is killed and started again.
type performer struct {
	name, config string
	opts         chubby.Options
	*process
}

// show is the play: three services, and what happens to them.
type show struct {
	out    io.Writer
	dir    string
	begun  time.Time
	client chubby.DialOptions
	cast   []*performer
	wg     sync.WaitGroup // calls that wait: campaigns and locks

	elected  chan win // an election's winners
	primary  *performer
	other    *performer // neither primary nor killed
	killed   *performer
	sequence chubby.Sequencer // of the primary
}

// win is the end of one service's campaign.
type win struct {
	who       *performer
	sequencer chubby.Sequencer
	err       error
}

func (s *show) title(t string) { fmt.Fprintf(s.out, "\n%s\n", t) }

func (s *show) say(format string, args ...any) { fmt.Fprintf(s.out, "   "+format+"\n", args...) }

// start starts the three processes, which found the cell once all of them are up.
func (s *show) start(ctx context.Context) error {
	s.title("start")
	begun := time.Now()
	for _, p := range s.cast {
		if err := s.launch(p); err != nil {
			return err
		}
	}
	for _, p := range s.cast {
		if _, err := p.call(ctx, request{Do: doReady}); err != nil {
			return err
		}
	}
	s.say("three processes have founded a cell, %d ms after the first was started", time.Since(begun).Milliseconds())

	r, err := s.cast[0].call(ctx, request{Do: doReady}) // once more: by now A knows what the others found out
	if err != nil {
		return err
	}
	var members []string
	for _, m := range r.Status.Members {
		members = append(members, m.Addr)
	}
	slices.Sort(members)
	addrs := slices.Sorted(slices.Values(s.client.Addrs))
	if !slices.Equal(members, addrs) {
		return fmt.Errorf("client_config.json names %v, the cell's members are %v", addrs, members)
	}
	s.say("%s leads the cell; its members are those that client_config.json names", r.Status.LeaderID)
	s.say("(in this version a client is a member: this process asks the three for what a client would)")
	for _, p := range s.cast {
		if err := s.register(ctx, p); err != nil {
			return err
		}
	}
	s.say("each service has entered its address in the name server, for as long as it lives")
	return nil
}

func (s *show) launch(p *performer) (err error) {
	p.process, err = startNode(s.dir, p.name, p.config)
	return err
}

// register enters a service in the name server. Its node's address serves as the service's.
func (s *show) register(ctx context.Context, p *performer) error {
	_, err := p.call(ctx, request{Do: doRegister, Path: namesPath + p.name, Value: p.opts.Listen})
	return err
}

// elect is the first use: of several servers at most one is the leader, also when processes die.
func (s *show) elect(ctx context.Context) error {
	s.title("1. leader election")
	s.elected = make(chan win, len(s.cast))
	for _, p := range s.cast {
		s.campaign(ctx, p)
	}
	first, err := s.winner(ctx)
	if err != nil {
		return err
	}
	s.primary, s.sequence = first.who, first.sequencer
	s.say("A, B and C stand for election at %s: %s wins, with sequencer generation %d", electionPath, first.who.name, first.sequencer.Generation)
	if err := s.agree(ctx); err != nil {
		return err
	}

	died := time.Now()
	if err := first.who.kill(); err != nil {
		return err
	}
	s.killed = first.who
	s.say("the process of %s is killed; the cell waits for its session's lease of %v, in case it is only slow", first.who.name, sessionLease)
	second, err := s.winner(ctx)
	if err != nil {
		return err
	}
	if second.sequencer.Compare(first.sequencer) <= 0 {
		return fmt.Errorf("the new leader's sequencer %v is not larger than %v", second.sequencer, first.sequencer)
	}
	s.primary, s.sequence = second.who, second.sequencer
	s.say("%s wins %.1fs later, with a larger sequencer: generation %d", second.who.name, time.Since(died).Seconds(), second.sequencer.Generation)
	for _, p := range s.cast {
		if p != s.primary && p != s.killed {
			s.other = p
		}
	}
	return s.agree(ctx)
}

// campaign lets p stand for election. It is over when p wins.
func (s *show) campaign(ctx context.Context, p *performer) {
	proc := p.process // p's changes when it is started again
	s.wg.Go(func() {
		r, err := proc.call(ctx, request{Do: doCampaign, Path: electionPath, Value: "primary is " + p.name})
		s.elected <- win{p, r.Sequencer, err} // cap: one for each service
	})
}

func (s *show) winner(ctx context.Context) (win, error) {
	select {
	case w := <-s.elected:
		return w, w.err
	case <-ctx.Done():
		return win{}, fmt.Errorf("nobody was elected: %w", ctx.Err())
	}
}

// agree asks all who live who the leader is.
func (s *show) agree(ctx context.Context) error {
	var asked []string
	for _, p := range s.cast {
		if p == s.killed {
			continue
		}
		r, err := p.call(ctx, request{Do: doLeader, Path: electionPath})
		if err != nil {
			return err
		}
		if want := "primary is " + s.primary.name; r.Value != want {
			return fmt.Errorf("%s was told %q, want %q", p.name, r.Value, want)
		}
		asked = append(asked, p.name)
	}
	s.say("asked who leads, %s answer: %s", strings.Join(asked, ", "), s.primary.name)
	return nil
}

// protect is the second use: a lock for a resource, which checks sequencers because no lock can stop a late request.
func (s *show) protect(ctx context.Context) error {
	s.title("2. a lock that protects a resource")
	disk := &resource{cell: s.sequence.Cell, path: lockPath}
	p, q := s.primary, s.other
	first, err := p.call(ctx, request{Do: doLock, Path: lockPath})
	if err != nil {
		return err
	}
	if err := disk.write(first.Sequencer, p.name+"'s data"); err != nil {
		return err
	}
	s.say("%s holds the lock %s and writes to the disk, showing sequencer %v", p.name, lockPath, first.Sequencer)

	granted := make(chan win, 1)
	s.wg.Go(func() {
		r, err := q.call(ctx, request{Do: doLock, Path: lockPath})
		granted <- win{q, r.Sequencer, err}
	})
	s.say("%s asks for it too", q.name)
	if _, err := p.call(ctx, request{Do: doUnlock, Path: lockPath}); err != nil {
		return err
	}
	second := <-granted // the call has a ctx
	if second.err != nil {
		return second.err
	}
	if err := disk.write(second.sequencer, q.name+"'s data"); err != nil {
		return err
	}
	s.say("%s gives it back; %s has it now and writes, showing sequencer %v", p.name, q.name, second.sequencer)

	err = disk.write(first.Sequencer, p.name+"'s late data")
	if !errors.Is(err, fence.ErrStale) {
		return fmt.Errorf("the disk answered a late write with %v, want %v", err, fence.ErrStale)
	}
	s.say("a write that %s had sent before comes late; the disk refuses it:", p.name)
	s.say("    %v", err)
	s.say("the disk holds %q", disk.contents)
	_, err = q.call(ctx, request{Do: doUnlock, Path: lockPath})
	return err
}

// publish is the third use: the leader's messages stand at the path of its election, so they cannot meet others'.
func (s *show) publish(ctx context.Context) error {
	s.title("3. a message from the leader")
	if _, err := s.primary.call(ctx, request{Do: doPublish, Path: electionPath, Value: message}); err != nil {
		return err
	}
	s.say("%s publishes %q at %s", s.primary.name, message, electionPath)
	for _, do := range []string{doGet, doFastGet} {
		r, err := s.other.call(ctx, request{Do: do, Path: electionPath})
		if err != nil {
			return err
		}
		switch {
		case do == doGet && r.Value != message:
			return fmt.Errorf("%s reads %q, want %q", s.other.name, r.Value, message)
		case do == doGet:
			s.say("%s gets %q", s.other.name, r.Value)
		default: // linearizable it is not, so an old value is no error; Age says how old
			s.say("%s gets %q from its own memory, at most %v old", s.other.name, r.Value, r.Age.Round(time.Millisecond))
		}
	}
	return nil
}

// lookUp is the fourth use: small files make a name server, ephemeral ones one that forgets the dead.
func (s *show) lookUp(ctx context.Context) error {
	s.title("4. a name server")
	if err := s.names(ctx, s.primary.name, s.other.name); err != nil {
		return err
	}
	s.say("%s went with its session; nobody had to clean up", s.killed.name)
	r, err := s.other.call(ctx, request{Do: doGet, Path: "/ls/local" + namesPath + s.primary.name})
	if err != nil {
		return err
	}
	s.say("%s looks up %s, by its full name /ls/local%s%s: %s", s.other.name, s.primary.name, namesPath, s.primary.name, r.Value)
	return nil
}

// names lists the name server, which must have just these names.
func (s *show) names(ctx context.Context, want ...string) error {
	r, err := s.other.call(ctx, request{Do: doList, Path: namesPath[:len(namesPath)-1]})
	if err != nil {
		return err
	}
	slices.Sort(want)
	for i, name := range want {
		want[i] = namesPath + name
	}
	if !slices.Equal(r.Names, want) {
		return fmt.Errorf("the name server has %v, want %v", r.Names, want)
	}
	s.say("the name server has %s", strings.Join(r.Names, ", "))
	return nil
}

// store is the fifth use: a reliable key-value store.
func (s *show) store(ctx context.Context) error {
	s.title("5. a key-value store")
	p, q := s.primary, s.other
	red := "red"
	if _, err := p.call(ctx, request{Do: doSet, Path: colorPath, Value: red}); err != nil {
		return err
	}
	r, err := q.call(ctx, request{Do: doGet, Path: colorPath})
	if err != nil {
		return err
	}
	if r.Value != red {
		return fmt.Errorf("%s reads %q, want %q", q.name, r.Value, red)
	}
	s.say("%s sets %s to red; %s gets %s", p.name, colorPath, q.name, r.Value)
	if _, err := q.call(ctx, request{Do: doCAS, Path: colorPath, Old: &red, Value: "green"}); err != nil {
		return err
	}
	s.say("%s swaps red for green", q.name)
	if r, err = p.call(ctx, request{Do: doCAS, Path: colorPath, Old: &red, Value: "blue"}); !r.Conflict {
		return fmt.Errorf("swapping red for blue: %v, want a conflict", err)
	}
	s.say("%s would swap red for blue: %s", p.name, r.Error)
	return nil
}

// comeBack starts the killed process again.
func (s *show) comeBack(ctx context.Context) error {
	p := s.killed
	s.title(p.name + " comes back")
	begun := time.Now()
	if err := s.launch(p); err != nil {
		return err
	}
	r, err := p.call(ctx, request{Do: doReady})
	if err != nil {
		return err
	}
	s.killed = nil
	s.say("started again on its data, it has caught up after %d ms; the cell is at revision %d", time.Since(begun).Milliseconds(), r.Status.Revision)
	for _, missed := range []struct{ path, value string }{{electionPath, message}, {colorPath, "green"}} {
		if r, err = p.call(ctx, request{Do: doFastGet, Path: missed.path}); err != nil {
			return err
		}
		if r.Value != missed.value {
			return fmt.Errorf("%s has %q at %s, want %q", p.name, r.Value, missed.path, missed.value)
		}
		s.say("in its own memory is what it missed: %s is %q", missed.path, r.Value)
	}
	if err := s.register(ctx, p); err != nil {
		return err
	}
	return s.names(ctx, "A", "B", "C")
}

// close lets all processes close at once: the last one alone has no majority to tell. Calling it again does nothing.
func (s *show) close() error {
	errs := make([]error, len(s.cast))
	var stops sync.WaitGroup
	for i, p := range s.cast {
		if p.process != nil {
			stops.Go(func() { errs[i] = p.stop() })
		}
	}
	stops.Wait()
	s.wg.Wait() // answered, or told that the process has ended
	for _, p := range s.cast {
		p.process = nil
	}
	return errors.Join(errs...)
}
