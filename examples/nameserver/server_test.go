package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

const patience = 30 * time.Second // for what takes milliseconds on a machine that is not overloaded

// bench is a name server on one node of a cell of three.
type bench struct {
	*testing.T
	cell *chubbytest.Cell
	*server
}

func newBench(t *testing.T) *bench {
	t.Helper()
	c := chubbytest.NewCell(t, 3)
	s, err := serve(t.Context(), "127.0.0.1:0", zone{c.Node(0).Client, "test."}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return &bench{t, c, s}
}

// set stores records through another node.
func (b *bench) set(file, records string) {
	b.Helper()
	if _, err := b.cell.Node(1).Set(b.Context(), dir+"/"+file, []byte(records)); err != nil {
		b.Fatal(err)
	}
}

// ask sends a query over "udp" or "tcp", again if a packet was lost.
func (b *bench) ask(network string, m *dns.Msg) *dns.Msg {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), patience)
	defer cancel()
	client := &dns.Client{Net: network, Timeout: 5 * time.Second}
	for {
		reply, _, err := client.ExchangeContext(ctx, m, b.addr)
		if err == nil {
			return reply
		}
		if ctx.Err() != nil {
			b.Fatal(err)
		}
	}
}

// wants asks for a name and compares the answer, its records without tabs.
func (b *bench) wants(name, kind, rcode string, records ...string) {
	b.Helper()
	for _, network := range []string{"udp", "tcp"} {
		reply := b.ask(network, new(dns.Msg).SetQuestion(name, dns.StringToType[kind]))
		if got := dns.RcodeToString[reply.Rcode]; got != rcode {
			b.Errorf("%s %s over %s: %s, want %s", name, kind, network, got, rcode)
		}
		var got []string
		for _, rr := range reply.Answer {
			got = append(got, strings.ReplaceAll(rr.String(), "\t", " "))
		}
		if strings.Join(got, "\n") != strings.Join(records, "\n") {
			b.Errorf("%s %s over %s: got\n%s\nwant\n%s", name, kind, network, strings.Join(got, "\n"), strings.Join(records, "\n"))
		}
		if inside := rcode != "REFUSED"; reply.Authoritative != inside {
			b.Errorf("%s %s: authoritative: %t", name, kind, reply.Authoritative)
		}
		denies := (rcode == "NXDOMAIN" || rcode == "NOERROR") && len(records) == 0
		if (len(reply.Ns) == 1 && reply.Ns[0].Header().Rrtype == dns.TypeSOA) != denies {
			b.Errorf("%s %s: %v says for how long there is no answer; want one: %t", name, kind, reply.Ns, denies)
		}
	}
}

func TestRecords(t *testing.T) {
	b := newBench(t)
	b.set("web", "60 A 10.0.0.7\n; a comment\n\nA 10.0.0.8\n60 AAAA fd00::7\n")
	b.set("_http._tcp.shop", "5 SRV 1 50 80 web.test.")
	b.set("motto", `TXT "one cell" "one truth"`)
	b.set(apex, "A 10.0.0.1")

	b.wants("web.test.", "A", "NOERROR", "web.test. 60 IN A 10.0.0.7", "web.test. 30 IN A 10.0.0.8")
	b.wants("web.test.", "AAAA", "NOERROR", "web.test. 60 IN AAAA fd00::7")
	b.wants("_http._tcp.shop.test.", "SRV", "NOERROR", "_http._tcp.shop.test. 5 IN SRV 1 50 80 web.test.")
	b.wants("motto.test.", "TXT", "NOERROR", `motto.test. 30 IN TXT "one cell" "one truth"`)
	b.wants("WeB.Test.", "AAAA", "NOERROR", "WeB.Test. 60 IN AAAA fd00::7")
	b.wants("web.test.", "ANY", "NOERROR", "web.test. 60 IN A 10.0.0.7", "web.test. 30 IN A 10.0.0.8", "web.test. 60 IN AAAA fd00::7")
	b.wants("test.", "A", "NOERROR", "test. 30 IN A 10.0.0.1")
	b.wants("test.", "SOA", "NOERROR", "test. 1 IN SOA test. hostmaster.test. 1 3600 600 86400 1")

	b.wants("web.test.", "TXT", "NOERROR")       // the name is there
	b.wants("_tcp.shop.test.", "SRV", "NOERROR") // and so is what lies between it and the zone
	b.wants("nobody.test.", "A", "NXDOMAIN")     //
	b.wants("op.test.", "A", "NXDOMAIN")         // "shop" ends like it
	b.wants(`a\.b.test.`, "A", "NXDOMAIN")       // no path
	b.wants(`\047etc.test.`, "A", "NXDOMAIN")    // nor this
	b.wants("web.example.", "A", "REFUSED")      //
	b.wants("testtest.", "A", "REFUSED")         //
}

// A change that was acknowledged anywhere is in the next answer, and a name goes with its session.
func TestChanges(t *testing.T) {
	b := newBench(t)
	for i := range 5 {
		addr := "10.0.0." + string(rune('1'+i))
		b.set("web", "1 A "+addr)
		b.wants("web.test.", "A", "NOERROR", "web.test. 1 IN A "+addr)
	}
	if err := b.cell.Node(2).Delete(t.Context(), dir+"/web"); err != nil {
		t.Fatal(err)
	}
	b.wants("web.test.", "A", "NXDOMAIN")

	worker, err := b.cell.Node(2).NewSession(t.Context(), chubby.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := worker.Create(t.Context(), dir+"/worker", []byte("A 10.0.0.20"), chubby.CreateOptions{Ephemeral: true}); err != nil {
		t.Fatal(err)
	}
	b.wants("worker.test.", "A", "NOERROR", "worker.test. 30 IN A 10.0.0.20")
	if err := worker.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wants("worker.test.", "A", "NXDOMAIN")
}

// What does not fit into a packet is cut, says so, and is whole over TCP.
func TestTruncation(t *testing.T) {
	b := newBench(t)
	b.set("big", strings.Repeat(`TXT "`+strings.Repeat("x", 200)+"\"\n", 10))
	m := new(dns.Msg).SetQuestion("big.test.", dns.TypeTXT)
	if reply := b.ask("udp", m); !reply.Truncated || reply.Len() > udpSizeBare {
		t.Errorf("over UDP: truncated %t, %d bytes", reply.Truncated, reply.Len())
	}
	m.SetEdns0(4096, false)
	reply := b.ask("udp", m)
	if !reply.Truncated || reply.Len() > udpSize || reply.Len() < udpSizeBare || reply.IsEdns0() == nil {
		t.Errorf("over UDP with EDNS0: truncated %t, %d bytes", reply.Truncated, reply.Len())
	}
	if reply := b.ask("tcp", m); reply.Truncated || len(reply.Answer) != 10 {
		t.Errorf("over TCP: truncated %t, %d records", reply.Truncated, len(reply.Answer))
	}
}

// What cannot be answered is refused in DNS's words.
func TestFaults(t *testing.T) {
	b := newBench(t)
	b.set("bad", "A 10.0.0.300")
	b.set("mail", "MX 10 mail.test.")
	b.set("include", "$INCLUDE zone.go")
	for _, name := range []string{"bad", "mail", "include"} {
		b.wants(name+".test.", "A", "SERVFAIL")
	}
	for name, c := range map[string]struct {
		change func(*dns.Msg)
		want   int
	}{
		"an update":     {func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented},
		"another class": {func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused},
		"a newer EDNS":  {func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, dns.RcodeBadVers},
		"two questions": {func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError},
		"no question":   {func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError},
	} {
		m := new(dns.Msg).SetQuestion("web.test.", dns.TypeA)
		c.change(m)
		// Not over the network, whose other side has a mind of its own about some of these.
		if reply := b.answer(m); reply.Rcode != c.want || reply.Id != m.Id {
			t.Errorf("%s: %s, want %s", name, dns.RcodeToString[reply.Rcode], dns.RcodeToString[c.want])
		}
	}
	for range lookupsMax {
		b.lookups <- struct{}{}
	}
	if reply := b.answer(new(dns.Msg).SetQuestion("web.test.", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("with %d lookups at once: %s, want SERVFAIL", lookupsMax, dns.RcodeToString[reply.Rcode])
	}
	for range lookupsMax {
		<-b.lookups
	}
	// A node that reaches no majority answers nothing old.
	b.cell.Partition([]int{0}, []int{1, 2})
	if reply := b.answer(new(dns.Msg).SetQuestion("bad.test.", dns.TypeA)); reply.Rcode != dns.RcodeServerFailure {
		t.Errorf("without a majority: %s, want SERVFAIL", dns.RcodeToString[reply.Rcode])
	}
}

// The same port cannot be had twice.
func TestPortTaken(t *testing.T) {
	b := newBench(t)
	if s, err := serve(t.Context(), b.addr, b.zone, b.log); err == nil {
		s.close()
		t.Error("a second server on the same port")
	}
}
