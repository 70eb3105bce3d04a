package chubby

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/OneOfOne/xxhash"
	"github.com/hashicorp/raft"
)

// storeFormat is the version of all that a data directory holds. docs/format.md describes it.
const storeFormat = 1

// Keys of the records beside the log. Do not rename.
var (
	keyIdentity = []byte("chubby")
	keyVote     = []byte("vote")
	keyMark     = []byte("mark")
)

// keyNotFound has the text that raft looks for.
var keyNotFound = errors.New("not found")

// identity says who the node is whose state this is.
type identity struct {
	ID, Cell    string
	Incarnation string   // 128 random bits in hexadecimal, drawn when the state was made
	Epoch       uint64   // of the cell it belongs to; 0 = none yet
	CellID      [16]byte // as given to joined; zero for a founder, who computes it from its founding
	Joined      bool     // it was taken in, it did not found
	Removed     bool     // it was removed from its cell, for good
	Wish        bool     // it was taken in, wants a vote and has not got one yet
	Created     bool     // the state was made by this openStore
}

// founding is how a cell began: the same on each of its first members.
type founding struct {
	Epoch   uint64
	Servers []raft.Server
}

// identityRecord is what is stored of both. Fields may be added, not renamed: releases that do not know one keep away
// from directories that need it by Format.
type identityRecord struct {
	Format      int
	ID          string
	Cell        string
	Incarnation string
	Epoch       uint64           `json:",omitempty"`
	CellID      string           `json:",omitempty"` // hexadecimal
	Founders    []identityServer `json:",omitempty"` // ascending by ID
	Members     []identityServer `json:",omitempty"` // of the cell when it took this node in
	Wish        bool             `json:",omitempty"`
	Removed     bool             `json:",omitempty"`
}

type identityServer struct{ ID, Addr string }

// firstRecords gives the records that a new directory starts with.
func firstRecords(c storeConfig) map[string][]byte {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // never fails: it ends the process instead
	id := identityRecord{Format: storeFormat, ID: c.ID, Cell: c.Cell, Incarnation: hex.EncodeToString(random)}
	return map[string][]byte{
		string(keyIdentity): id.encode(),
		string(keyVote):     sealRecord(voteRecord{}.encode()),
		string(keyMark):     sealRecord(markRecord{}.encode()),
	}
}

func (r identityRecord) encode() []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings and numbers always have a form
	}
	return sealRecord(b)
}

// sealRecord puts the checksum of a record in front of it.
func sealRecord(b []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(b)), xxhash.Checksum64(b)), b...)
}

// openRecord takes it off again.
func openRecord(b []byte) ([]byte, bool) {
	if len(b) < 8 || binary.BigEndian.Uint64(b) != xxhash.Checksum64(b[8:]) {
		return nil, false
	}
	return b[8:], true
}

// record reads a record that every directory has.
func (s *store) record(key []byte) ([]byte, error) {
	b, err := s.file.Get(key)
	if err != nil && err.Error() != keyNotFound.Error() {
		return nil, fmt.Errorf("read record %q: %w", key, err)
	}
	if err != nil || b == nil {
		return nil, corruptf(logFileName, "record %q is missing", key)
	}
	b, ok := openRecord(b)
	if !ok {
		return nil, corruptf(logFileName, "record %q has a wrong checksum", key)
	}
	return b, nil
}

func (s *store) loadIdentity() error {
	m := &s.meta
	var b []byte
	err := guard(func() (err error) {
		b, err = s.record(keyIdentity)
		return err
	})
	if err != nil {
		return err
	}
	// The format comes first: what follows it may have changed its meaning.
	var f struct{ Format int }
	if err := json.Unmarshal(b, &f); err != nil {
		return corruptf(logFileName, "record %q: %v", keyIdentity, err)
	}
	if f.Format != storeFormat {
		return fmt.Errorf("the data has format %d, this release reads format %d; use the release that wrote it", f.Format, storeFormat)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m.identityRecord); err != nil {
		return corruptf(logFileName, "record %q: %v", keyIdentity, err)
	}
	if s.c.Whoever {
		s.c.ID, s.c.Cell = m.ID, m.Cell
	}
	if m.ID != s.c.ID {
		return fmt.Errorf("%w: the data is that of node %q, not %q; set Options.ID to it, or take another directory", ErrWrongCell, m.ID, s.c.ID)
	}
	if m.Cell != s.c.Cell {
		return fmt.Errorf("%w: the data is that of cell %q, not %q; set Options.Cell to it, or take another directory", ErrWrongCell, m.Cell, s.c.Cell)
	}
	return nil
}

// identity gives who the node is.
func (s *store) identity() identity {
	s.meta.Lock()
	defer s.meta.Unlock()
	m := &s.meta
	id := identity{ID: m.ID, Cell: m.Cell, Incarnation: m.Incarnation, Epoch: m.Epoch, Created: m.created, Joined: m.CellID != "", Wish: m.Wish, Removed: m.Removed}
	_, _ = hex.Decode(id.CellID[:], []byte(m.CellID)) // our own form under a checksum
	return id
}

// founding gives the list by which this node founded its cell, and whether it did.
func (s *store) founding() (founding, bool) {
	s.meta.Lock()
	defer s.meta.Unlock()
	f := founding{Epoch: s.meta.Epoch}
	for _, p := range s.meta.Founders {
		f.Servers = append(f.Servers, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
	}
	return f, len(f.Servers) > 0
}

// found makes this node a founder of its cell: it keeps the list, then bootstraps raft with all of it as voters. When it
// returns nil both are synced. After a crash in between openStore finishes the work. A second call with the same list does
// nothing, one with another is ErrWrongCell. Call it before raft uses the store, and not from two goroutines.
func (s *store) found(f founding) error {
	if err := s.err(); err != nil {
		return err
	}
	r := s.identityRecord()
	var founders []identityServer
	for _, p := range f.Servers {
		if p.ID == "" || p.Address == "" || p.Suffrage != raft.Voter {
			return fmt.Errorf("%w: founder %q at %q must have an ID, an address and a vote", ErrBadOptions, p.ID, p.Address)
		}
		founders = append(founders, identityServer{string(p.ID), string(p.Address)})
	}
	slices.SortFunc(founders, func(a, b identityServer) int { return strings.Compare(a.ID, b.ID) })
	for i := 1; i < len(founders); i++ {
		if founders[i].ID == founders[i-1].ID {
			return fmt.Errorf("%w: founder %q stands twice in the list", ErrBadOptions, founders[i].ID)
		}
	}
	if len(founders) == 0 || f.Epoch == 0 {
		return fmt.Errorf("%w: a cell needs founders and an epoch", ErrBadOptions)
	}
	if r.Epoch != 0 {
		if r.Epoch != f.Epoch || !slices.Equal(r.Founders, founders) {
			return fmt.Errorf("%w: this node already belongs to a cell of epoch %d", ErrWrongCell, r.Epoch)
		}
		return s.resumeFounding()
	}
	r.Epoch, r.Founders = f.Epoch, founders
	if err := s.setIdentity(r); err != nil {
		return err
	}
	return s.resumeFounding()
}

// joining is what a node learns when a cell takes it in.
type joining struct {
	Epoch   uint64
	CellID  [16]byte
	Members []raft.Server // then: who may speak raft to this node, and where they are, until the log tells
	Wish    bool          // this node wants a vote
}

// joined notes the cell that took this node in. Raft gets its log from the others.
func (s *store) joined(j joining) error {
	if err := s.err(); err != nil {
		return err
	}
	r := s.identityRecord()
	id := hex.EncodeToString(j.CellID[:])
	if j.Epoch == 0 {
		return fmt.Errorf("%w: a cell has an epoch", ErrBadOptions)
	}
	if r.Epoch != 0 {
		if r.Epoch != j.Epoch || r.CellID != id {
			return fmt.Errorf("%w: this node already belongs to a cell of epoch %d", ErrWrongCell, r.Epoch)
		}
		return nil
	}
	r.Epoch, r.CellID, r.Wish = j.Epoch, id, j.Wish
	for _, m := range j.Members {
		r.Members = append(r.Members, identityServer{string(m.ID), string(m.Address)})
	}
	return s.setIdentity(r)
}

// granted notes that this node has the vote that it wanted, so that it asks no more, even if it should lose it again.
func (s *store) granted() error {
	r := s.identityRecord()
	if !r.Wish {
		return nil
	}
	r.Wish = false
	return s.setIdentity(r)
}

// removed notes that this node was removed from its cell. No later node may take its place under its raft id.
func (s *store) removed() error {
	r := s.identityRecord()
	r.Removed, r.Wish = true, false
	return s.setIdentity(r)
}

// takers gives the members that the cell had when it took this node in.
func (s *store) takers() []raft.Server {
	var list []raft.Server
	for _, p := range s.identityRecord().Members {
		list = append(list, raft.Server{ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
	}
	return list
}

func (s *store) identityRecord() identityRecord {
	s.meta.Lock()
	defer s.meta.Unlock()
	return s.meta.identityRecord
}

func (s *store) setIdentity(r identityRecord) error {
	if err := s.write("meta", func() error { return s.file.Set(keyIdentity, r.encode()) }); err != nil {
		return err
	}
	s.meta.Lock()
	defer s.meta.Unlock()
	s.meta.identityRecord = r
	return nil
}

// resumeFounding bootstraps raft if the founding list is there and raft has never run: term 1 and the configuration as
// entry 1, byte for byte the same on every founder, because raft tells entries apart by index and term only. It refuses
// what no crash can explain, for a node that forgot its vote or its log would break the cell's promises.
func (s *store) resumeFounding() error {
	r := s.identityRecord()
	term, voted := s.vote.state()
	first, last := s.log.ends()
	snap := s.snap.newest()
	switch {
	case last > 0 && term == 0:
		return corruptf(logFileName, "there are log entries %d to %d but no term", first, last)
	case last > 0 || snap > 0:
		if r.Epoch == 0 {
			return corruptf(logFileName, "there are log entries or snapshots, but the node belongs to no cell")
		}
		return nil
	case len(r.Founders) == 0:
		if r.Epoch == 0 && (term > 0 || voted) {
			return corruptf(logFileName, "there is a term, but the node belongs to no cell")
		}
		return nil // fresh, or joined and not yet reached by the leader
	case term > 1 || voted:
		return corruptf(logFileName, "term is %d but the log is empty and there is no snapshot", term)
	}
	var conf raft.Configuration
	for _, p := range r.Founders {
		conf.Servers = append(conf.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Addr)})
	}
	if err := s.vote.setTerm(1); err != nil {
		return err
	}
	return s.log.append([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(conf)}})
}
