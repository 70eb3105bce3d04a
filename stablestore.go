package chubby

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// Raft's keys.
const (
	raftTerm     = "CurrentTerm"
	raftVoteTerm = "LastVoteTerm"
	raftVoteCand = "LastVoteCand"
)

// stableStore is raft's StableStore: term and vote in one record. Raft writes a vote as LastVoteTerm and then
// LastVoteCand, whose value alone would say that the old candidate has the new vote; here the first is only remembered,
// and the second makes both durable in one transaction. Its writes return no error but end raft's goroutine, which would
// panic on one. Safe for concurrent use, though raft writes from one goroutine.
type stableStore struct {
	s *store

	mu      sync.Mutex
	rec     voteRecord
	pending uint64 // LastVoteTerm as raft set it, in effect when LastVoteCand follows
}

var _ raft.StableStore = (*stableStore)(nil)

// voteRecord is what is on disk. No term, or no candidate, means that there is none yet.
type voteRecord struct {
	term, voteTerm uint64
	voted          bool
	candidate      []byte
}

func (r voteRecord) encode() []byte {
	b := []byte{storeFormat}
	b = binary.BigEndian.AppendUint64(b, r.term)
	b = binary.BigEndian.AppendUint64(b, r.voteTerm)
	if r.voted {
		b = append(append(b, 1), r.candidate...)
	}
	return b
}

func decodeVote(b []byte) (r voteRecord, ok bool) {
	if len(b) < 17 || b[0] != storeFormat {
		return r, false
	}
	r.term, r.voteTerm = binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:])
	if b = b[17:]; len(b) > 0 {
		r.voted, r.candidate = true, slices.Clone(b[1:])
		return r, b[0] == 1
	}
	return r, true
}

func (v *stableStore) load() error {
	b, err := v.s.record(keyVote)
	if err != nil {
		return err
	}
	rec, ok := decodeVote(b)
	if !ok {
		return corruptf(logFileName, "record %q has no known form", keyVote)
	}
	v.rec, v.pending = rec, rec.voteTerm
	return nil
}

// state gives the term and whether there was ever a vote.
func (v *stableStore) state() (term uint64, voted bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.rec.term, v.rec.voted
}

// update makes a changed record durable, then visible.
func (v *stableStore) update(f func(*voteRecord)) error {
	v.mu.Lock()
	rec := v.rec
	v.mu.Unlock()
	f(&rec)
	if err := v.s.write("vote", func() error { return v.s.file.Set(keyVote, sealRecord(rec.encode())) }); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.rec = rec
	return nil
}

func (v *stableStore) setTerm(term uint64) error {
	// Raft sets the term it has just read whenever it starts.
	if old, _ := v.state(); old == term {
		return v.s.err()
	}
	return v.update(func(r *voteRecord) { r.term = term })
}

// SetUint64 sets the current term, durably, or the term of the vote that Set is about to cast.
func (v *stableStore) SetUint64(key []byte, val uint64) error {
	switch string(key) {
	case raftTerm:
		must(v.setTerm(val))
	case raftVoteTerm:
		must(v.s.err())
		v.mu.Lock()
		defer v.mu.Unlock()
		v.pending = val
	default:
		must(v.s.fail(fmt.Errorf("raft sets an unknown number %q", key)))
	}
	return nil
}

// Set sets the candidate of the vote, durably.
func (v *stableStore) Set(key, val []byte) error {
	if string(key) != raftVoteCand {
		must(v.s.fail(fmt.Errorf("raft sets an unknown key %q", key)))
	}
	v.mu.Lock()
	term := v.pending
	v.mu.Unlock()
	must(v.update(func(r *voteRecord) { r.voteTerm, r.voted, r.candidate = term, true, slices.Clone(val) }))
	return nil
}

// GetUint64 gives the current term or that of the last vote, from memory.
func (v *stableStore) GetUint64(key []byte) (uint64, error) {
	must(v.s.err())
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case string(key) == raftTerm && v.rec.term > 0:
		return v.rec.term, nil
	case string(key) == raftVoteTerm && v.rec.voted:
		return v.rec.voteTerm, nil
	}
	return 0, keyNotFound
}

// Get gives the candidate of the last vote, from memory.
func (v *stableStore) Get(key []byte) ([]byte, error) {
	must(v.s.err())
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(key) == raftVoteCand && v.rec.voted {
		return slices.Clone(v.rec.candidate), nil
	}
	return nil, keyNotFound
}
