package lincheck

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/anishathalye/porcupine"
)

// LockOp is what a call on one lock, or on the file at its path, was asked to do, or what befell its holder.
type LockOp int

const (
	Acquire LockOp = iota + 1 // by Owner
	Release                   // by Owner, of Generation
	// Lose is no call: from here on the holder's context is not known to be alive, so that the cell may have taken the
	// lock away, or may yet. An Unlock without an answer is one too.
	Lose
	// GiveUp is a lock call that returned an error: its command may hold the lock for a while, unseen.
	GiveUp
	Check     // is the lock held under Generation
	Inspect   // LockInfo
	FencedPut // write New to the file if the lock is held under Generation
	Read      // the file
)

// LockCall is one call. Each Acquire has an Owner of its own, from 1 on.
type LockCall struct {
	Path       string
	Op         LockOp
	Owner      uint32
	Shared     bool // Acquire, GiveUp
	Generation uint64
	New        string
}

// LockAnswer is what came of it.
type LockAnswer struct {
	Unknown    bool   // FencedPut: it may have happened, or may yet, at any time since the call
	Refused    bool   // Release: not held. Check, FencedPut: stale
	Shaky      bool   // Acquire: the holder's clock could not be trusted when it got the lock, so it may have been lost before
	Shared     bool   // Inspect
	Generation uint64 // Acquire, Inspect; 0 = free
	Value      string // Read; "" = no file
}

// lockState is one lock and the file at its path.
type lockState struct {
	last    uint64 // the newest generation
	shared  bool   // how it was granted
	holders string // of generation last, as holderSet
	// A lock call that was given up may hold the lock unseen: some call, and some shared one, whose holding would keep a
	// generation going.
	ghost, sharedGhost bool
	file               string
}

// Locks is the model of a set of locks with a file each, one partition per path. It knows of modes, owners and
// generations. It knows nothing of queues and delays, which only make calls wait.
//
// What is uncertain stays open. A holder that was lost may go on to hold or not, until an answer tells.
func Locks() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			return byPath(history, func(input any) string { return input.(LockCall).Path })
		},
		Init: func() []any { return []any{lockState{}} },
		Step: func(state, input, output any) []any {
			s, call, answer := state.(lockState), input.(LockCall), output.(LockAnswer)
			if call.Op == FencedPut && answer.Unknown {
				if !s.mayHold(call.Generation) {
					return []any{s}
				}
				next := s
				next.file = call.New
				return []any{s, next}
			}
			if next, ok := s.step(call, answer); ok {
				return []any{next}
			}
			return nil
		},
		DescribeOperation: func(input, output any) string {
			return fmt.Sprintf("%+v -> %+v", input, output)
		},
	}
	return m.ToModel()
}

// step is what becomes of the lock by a call with that answer. It reports false if the answer is wrong.
func (s lockState) step(c LockCall, a LockAnswer) (lockState, bool) {
	h := holderSet(s.holders)
	switch c.Op {
	case Acquire:
		return s.acquire(c, a)
	case Release:
		lost, held := h.find(c.Owner)
		switch {
		case a.Refused && held && !lost:
			return s, false // nobody took it
		case !a.Refused && !held:
			return s, false // what it freed was not its own
		}
		s.holders = string(h.without(c.Owner))
		return s, true
	case Lose:
		s.holders = string(h.lose(c.Owner))
		return s, true
	case GiveUp:
		s.ghost = true
		s.sharedGhost = s.sharedGhost || c.Shared
		return s, true
	case Check, FencedPut:
		if a.Refused {
			return s.notHeld(c.Generation)
		}
		if !s.mayHold(c.Generation) {
			return s, false
		}
		if c.Op == FencedPut {
			s.file = c.New
		}
		return s, true
	case Inspect:
		switch {
		case a.Generation == 0:
			return s.notHeld(s.last)
		case a.Generation == s.last && a.Shared == s.shared && s.mayHold(s.last):
			return s, true
		}
		// Then it is one that we did not see.
		if h.kept() || !s.ghost || a.Shared && !s.sharedGhost || a.Generation <= s.last {
			return s, false
		}
		s.last, s.shared, s.holders = a.Generation, a.Shared, string(holderSet("").with(nobody, true))
		return s, true
	case Read:
		return s, a.Value == s.file
	}
	panic(fmt.Sprintf("lincheck: no operation %d", c.Op))
}

func (s lockState) acquire(c LockCall, a LockAnswer) (lockState, bool) {
	h := holderSet(s.holders)
	if c.Shared && s.shared && a.Generation == s.last && s.mayHold(s.last) {
		s.holders = string(h.with(c.Owner, a.Shaky)) // joins those who share it
		return s, true
	}
	// Everybody before must be gone, and the generation new.
	if h.kept() || a.Generation <= s.last {
		return s, false
	}
	s.last, s.shared, s.holders = a.Generation, c.Shared, string(holderSet("").with(c.Owner, a.Shaky))
	return s, true
}

// mayHold reports whether the lock may be held under the generation.
func (s lockState) mayHold(generation uint64) bool {
	return generation == s.last && s.last > 0 && (s.holders != "" || s.shared && s.sharedGhost)
}

// notHeld is the state in which the lock is not held under the generation, if that can be.
func (s lockState) notHeld(generation uint64) (lockState, bool) {
	if generation != s.last {
		return s, true
	}
	if holderSet(s.holders).kept() {
		return s, false
	}
	s.holders = ""
	return s, true
}

// holderSet is the holders of a lock, five bytes each and in order, so that states can be compared: the owner, and
// whether it was lost.
type holderSet string

const holderBytes = 5

// nobody stands for an owner that we did not see. It may be gone at any time, like one that was lost.
const nobody = 0

func (h holderSet) all(f func(owner uint32, lost bool)) {
	for ; len(h) > 0; h = h[holderBytes:] {
		f(binary.BigEndian.Uint32([]byte(h[:4])), h[4] == 1)
	}
}

// find reports whether the owner is a holder, and whether it was lost.
func (h holderSet) find(owner uint32) (lost, held bool) {
	h.all(func(o uint32, l bool) {
		if o == owner {
			lost, held = l, true
		}
	})
	return lost, held
}

// kept reports whether there is a holder that was not lost.
func (h holderSet) kept() (kept bool) {
	h.all(func(_ uint32, lost bool) { kept = kept || !lost })
	return kept
}

func (h holderSet) without(owner uint32) holderSet {
	var out []byte
	h.all(func(o uint32, lost bool) {
		if o != owner {
			out = appendHolder(out, o, lost)
		}
	})
	return holderSet(out)
}

func (h holderSet) with(owner uint32, lost bool) holderSet {
	var list []string
	h.without(owner).all(func(o uint32, l bool) { list = append(list, string(appendHolder(nil, o, l))) })
	list = append(list, string(appendHolder(nil, owner, lost)))
	slices.Sort(list)
	out := ""
	for _, x := range list {
		out += x
	}
	return holderSet(out)
}

func (h holderSet) lose(owner uint32) holderSet {
	if _, held := h.find(owner); !held {
		return h
	}
	return h.with(owner, true)
}

func appendHolder(dst []byte, owner uint32, lost bool) []byte {
	dst = binary.BigEndian.AppendUint32(dst, owner)
	if lost {
		return append(dst, 1)
	}
	return append(dst, 0)
}
