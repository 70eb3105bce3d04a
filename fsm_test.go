package chubby

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// What raft must never be configured to do, with the reasons in docs/architecture.md.
func TestRaftConfig(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c := n.raftConfig()
	if c.RestoreCommittedLogs || c.BatchApplyCh || c.ShutdownOnRemove || c.PreVoteDisabled || c.NotifyCh == nil || c.SnapshotThreshold != math.MaxUint64 {
		t.Errorf("%+v", c)
	}
	if trailingFloor <= entriesInFlight+3 {
		t.Errorf("trailing log of %d: not longer than what a deposed leader can have of its own", trailingFloor)
	}
	if _, ok := any(n.fsm).(raft.BatchingFSM); !ok {
		t.Error("the fsm would not see configurations")
	}
	if _, ok := any(n.transport).(raft.WithPreVote); !ok {
		t.Error("raft would not ask for pre-votes")
	}
}

// A committed entry that cannot be decoded stops the node with index and term. It is never skipped.
func TestUndecodableEntryStopsNode(t *testing.T) {
	newer := map[string]bool{"unknown version": true, "unknown command": true, "unknown version of a command": true}
	for name, data := range map[string][]byte{
		"garbage":                      []byte("\x01garbage"),
		"unknown version":              {250, 1, 2, 3},
		"unknown command":              command.AppendEntryCommand(command.AppendEntryHeader(nil, 1, 1, 1), []byte{1, 250}),
		"unknown version of a command": command.AppendEntryCommand(command.AppendEntryHeader(nil, 1, 1, 1), []byte{250, 1}),
		"cut off":                      command.AppendEntryHeader(nil, 1, 1, 2),
		"empty":                        {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, err := Open(Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer n.Close()
				if _, err := n.Set(t.Context(), "/x", []byte("1")); err != nil {
					t.Fatal(err)
				}
				if err := n.raft.Load().ApplyLog(raft.Log{Data: data}, 0).Error(); err != nil {
					t.Logf("raft: %v", err)
				}
				select {
				case <-n.Done():
				case <-time.After(time.Minute):
					t.Fatal("the node goes on")
				}
				if err := n.Err(); errors.Is(err, ErrCorrupt) == newer[name] || bytes.Contains(fmt.Append(nil, err), []byte("newer release")) != newer[name] ||
					!bytes.Contains(fmt.Append(nil, err), []byte("entry ")) {
					t.Errorf("Err = %v", err)
				}
			})
		})
	}
}

// A snapshot of another cell or epoch is not taken over.
func TestForeignSnapshotStopsNode(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	var b bytes.Buffer
	if _, err := state.New("other", 1).WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	f := newFSM(n, state.New("local", 1))
	if err := f.Restore(nopCloser{&b}); !errors.Is(err, ErrWrongCell) {
		t.Errorf("Restore: %v", err)
	}
	<-n.Done()
	if err := n.Err(); !errors.Is(err, ErrWrongCell) {
		t.Errorf("Err = %v", err)
	}
}

// The voter's side of a confirm round: yes to its present term and to no other, whoever asks.
func TestAnswerConfirm(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := n.Set(t.Context(), "/x", nil); err != nil {
		t.Fatal(err)
	}
	term := n.raft.Load().CurrentTerm()
	for asked, want := range map[uint64]byte{term - 1: 0, term: 1, term + 1: 0} {
		answer, err := n.answerConfirm(t.Context(), peerInfo{}, binary.LittleEndian.AppendUint64(nil, asked))
		if err != nil || len(answer) != 1 || answer[0] != want {
			t.Errorf("term %d, asked for %d: %v, %v", term, asked, answer, err)
		}
	}
	if _, err := n.answerConfirm(t.Context(), peerInfo{}, []byte{1}); !errors.Is(err, errBadMessage) {
		t.Errorf("a question of one byte: %v", err)
	}
}

// A leadership that is over, or that raft has lost, proves nothing.
func TestLeadershipStands(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	for term, want := range map[uint64]bool{n.raft.Load().CurrentTerm(): true, n.raft.Load().CurrentTerm() + 1: false} {
		l := n.newLeadership(term)
		if l.stands() != want {
			t.Errorf("term %d stands: %v", term, !want)
		}
		l.cancel()
		if l.stands() {
			t.Errorf("term %d stands after its end", term)
		}
	}
}

// An expiry that another term decided is void: the session lives.
func TestExpiryOfAnotherTerm(t *testing.T) {
	n, err := Open(Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	s, err := n.NewSession(t.Context(), SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, stale := range []bool{true, false} {
		term := n.raft.Load().CurrentTerm()
		if stale {
			term--
		}
		c := command.Command{Kind: command.KindExpireSessions, Term: term, Sessions: []uint64{uint64(s.ID())}}
		if _, err := n.propose(t.Context(), command.Append(nil, &c), true, nil); err != nil {
			t.Fatal(err)
		}
		if _, live := n.fsm.root.Load().Session(uint64(s.ID())); live != stale {
			t.Errorf("decided by an old leader: %v, session lives: %v", stale, live)
		}
	}
	if !errors.Is(s.Err(), ErrSessionExpired) {
		t.Errorf("Err = %v", s.Err())
	}
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

// Outcomes of forwarded commands survive the wire, and nothing else is taken for one.
func FuzzParseOutcome(f *testing.F) {
	f.Add(appendOutcome(nil, statusApplied, &command.Result{Code: command.Conflict, Revision: 7}))
	f.Add([]byte{byte(statusRefused), byte(statusUnknown)})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, r, rest, err := parseOutcome(b)
		if err != nil {
			return
		}
		again := appendOutcome(nil, s, &r)
		if !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("%x decodes and encodes to %x", b, again)
		}
	})
}

func FuzzParseFoundAnswer(f *testing.F) {
	f.Add([]byte(`{"Cell":"local","ID":"a","Server":"a.1","Peers":["a"],"Founded":{"Epoch":1,"Servers":[]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseFoundAnswer(b); err != nil && !errors.Is(err, errBadMessage) {
			t.Fatal(err)
		}
	})
}

func FuzzCleanPath(f *testing.F) {
	for _, p := range []string{"/a/b", "a", "/ls/local/a", "/ls", "//", "/a/..", "/\xff"} {
		f.Add(p)
	}
	l := Limits{}.withDefaults()
	f.Fuzz(func(t *testing.T, p string) {
		c, err := cleanPath(p, "local", l)
		if err != nil {
			if !errors.Is(err, ErrBadPath) {
				t.Fatal(err)
			}
			return
		}
		again, err := cleanPath(c, "local", l)
		if err != nil || again != c {
			t.Fatalf("%q is %q, which is %q, %v", p, c, again, err)
		}
	})
}
