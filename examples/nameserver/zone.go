package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/miekg/dns"

	"github.com/chubbygo/chubby"
)

const (
	dir        = "/dns" // a file for each name, called as the name below the zone
	apex       = "@"    // the file of the zone itself
	ttlDefault = 30     // seconds, of records that name none
	ttlDenial  = 1      // seconds for which others may remember that a name is not there
)

// zone looks names up in the cell. Each file has the records of one name, one in a line, as in a zone file without the
// name: "60 A 10.0.0.7", "SRV 0 0 80 web.chubby.", "TXT hello". The name server needs nothing else, so whoever can write to the
// cell can change names with Set, or for as long as it lives with an ephemeral file.
type zone struct {
	client *chubby.Client
	name   string // canonical: lower case, with a dot at the end
}

// errNoName means that there is no such name, of whatever type.
var errNoName = errors.New("no such name")

// lookup returns all records of a canonical name inside the zone. A name that has none, but has names below it, has no
// records and no error.
func (z zone) lookup(ctx context.Context, name string) ([]dns.RR, error) {
	file, ok := z.file(name)
	if !ok {
		return nil, errNoName
	}
	// Get asks the cell, so a change is seen by the next query at whichever node. FastGet would do without asking.
	e, err := z.client.Get(ctx, dir+"/"+file)
	if errors.Is(err, chubby.ErrNotFound) {
		return nil, z.above(ctx, file)
	}
	if err != nil {
		return nil, err
	}
	return parse(name, string(e.Data))
}

// above returns nil if there are names below that of file, which then is a name too (RFC 8020), and errNoName otherwise.
func (z zone) above(ctx context.Context, file string) error {
	if file == apex {
		return nil
	}
	entries, err := z.client.List(ctx, dir)
	if err != nil && !errors.Is(err, chubby.ErrNotFound) {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Path, "."+file) {
			return nil
		}
	}
	return errNoName
}

// file is what the file of a name is called. Names with characters that those of hosts and services do not have are not
// stored.
func (z zone) file(name string) (file string, ok bool) {
	if name == z.name {
		return apex, true
	}
	file, ok = strings.CutSuffix(name, "."+z.name)
	return file, ok && file != "" && !strings.ContainsFunc(file, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.')
	})
}

// parse reads the records of a name.
func parse(name, text string) (records []dns.RR, err error) {
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == ';' {
			continue
		}
		p := dns.NewZoneParser(strings.NewReader(name+" "+line+"\n"), ".", "")
		p.SetDefaultTTL(ttlDefault)
		rr, ok := p.Next()
		if !ok {
			return nil, fmt.Errorf("%s: line %d %q: %w", name, i+1, line, p.Err())
		}
		switch rr.(type) {
		case *dns.A, *dns.AAAA, *dns.SRV, *dns.TXT:
			records = append(records, rr)
		default:
			return nil, fmt.Errorf("%s: line %d %q: use A, AAAA, SRV or TXT", name, i+1, line)
		}
	}
	return records, nil
}

// soa is what a zone says of itself, and what a denial carries so that others know how long it holds. There are no zone
// transfers, for which a serial number would be.
func (z zone) soa() dns.RR {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: z.name, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttlDenial},
		Ns:  z.name, Mbox: "hostmaster." + z.name, Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttlDenial,
	}
}
