package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	lookupTime  = 2 * time.Second // after which a client asks again anyway
	lookupsMax  = 1024            // at once
	udpSize     = 1232            // bytes of an answer that fit into one packet nearly everywhere
	udpSizeBare = 512             // for those who do not say what they can take (RFC 1035)
)

// server answers queries about a zone, over UDP and TCP on one port.
type server struct {
	zone    zone
	log     *slog.Logger
	lookups chan struct{} // has room for lookupsMax
	addr    string
	udp     *dns.Server
	tcp     *dns.Server
	wg      sync.WaitGroup
	failed  chan error // cap 2: why serving ended, of each
}

// serve begins to answer on addr; port 0 takes one that is free for both protocols.
func serve(ctx context.Context, addr string, z zone, log *slog.Logger) (*server, error) {
	l, pc, err := listen(ctx, addr)
	if err != nil {
		return nil, err
	}
	s := &server{zone: z, log: log, lookups: make(chan struct{}, lookupsMax), addr: l.Addr().String(), failed: make(chan error, 2)}
	s.tcp = &dns.Server{Listener: l, Handler: s}
	s.udp = &dns.Server{PacketConn: pc, Handler: s}
	var started sync.WaitGroup // Shutdown fails before that
	for _, d := range []*dns.Server{s.tcp, s.udp} {
		started.Add(1)
		d.NotifyStartedFunc = started.Done
		s.wg.Go(func() { s.failed <- d.ActivateAndServe() })
	}
	started.Wait()
	return s, nil
}

func listen(ctx context.Context, addr string) (net.Listener, net.PacketConn, error) {
	var lc net.ListenConfig
	for attempt := 1; ; attempt++ {
		l, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, nil, err
		}
		pc, err := lc.ListenPacket(ctx, "udp", l.Addr().String())
		if err == nil {
			return l, pc, nil
		}
		err = errors.Join(err, l.Close())
		if l.Addr().String() == addr || attempt == 10 {
			return nil, nil, err
		}
		// Port 0 gave one that is free for TCP only.
	}
}

// close ends both and waits for the answers that are under way.
func (s *server) close() error {
	err := errors.Join(s.udp.Shutdown(), s.tcp.Shutdown())
	s.wg.Wait()
	return err
}

// ServeDNS answers one query. It may be called by many goroutines.
func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	reply := s.answer(q)
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := udpSizeBare
		if opt := q.IsEdns0(); opt != nil {
			size = min(max(int(opt.UDPSize()), udpSizeBare), udpSize)
		}
		reply.Truncate(size) // says so in the answer, and the client asks again over TCP
	}
	if err := w.WriteMsg(reply); err != nil {
		s.log.Warn("answer", "to", w.RemoteAddr(), "err", err)
	}
}

func (s *server) answer(q *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	if len(q.Question) != 1 {
		return reply.SetRcodeFormatError(q)
	}
	reply.SetReply(q)
	if opt := q.IsEdns0(); opt != nil {
		reply.SetEdns0(udpSize, false)
		if opt.Version() != 0 {
			reply.Rcode = dns.RcodeBadVers
			return reply
		}
	}
	question := q.Question[0]
	name := dns.CanonicalName(question.Name)
	switch {
	case q.Opcode != dns.OpcodeQuery:
		reply.Rcode = dns.RcodeNotImplemented
		return reply
	case question.Qclass != dns.ClassINET || !dns.IsSubDomain(s.zone.name, name):
		reply.Rcode = dns.RcodeRefused
		return reply
	}
	reply.Authoritative = true
	select {
	case s.lookups <- struct{}{}:
		defer func() { <-s.lookups }()
	default:
		reply.Rcode = dns.RcodeServerFailure // too much at once: the client tries again, here or elsewhere
		return reply
	}
	ctx, cancel := context.WithTimeout(context.Background(), lookupTime)
	defer cancel()
	records, err := s.zone.lookup(ctx, name)
	switch {
	case errors.Is(err, errNoName):
		reply.Rcode = dns.RcodeNameError
	case err != nil:
		s.log.Warn("lookup", "name", name, "err", err)
		reply.Rcode = dns.RcodeServerFailure
		return reply
	}
	if name == s.zone.name && question.Qtype == dns.TypeSOA {
		reply.Answer = append(reply.Answer, s.zone.soa())
		return reply
	}
	for _, rr := range records {
		if t := rr.Header().Rrtype; t == question.Qtype || question.Qtype == dns.TypeANY {
			rr.Header().Name = question.Name // in the case in which it was asked
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = append(reply.Ns, s.zone.soa())
	}
	return reply
}
