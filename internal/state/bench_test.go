package state

import (
	"fmt"
	"io"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

func benchMachine(b *testing.B, entries int) *Machine {
	b.Helper()
	m := NewMachine(New("local", 7))
	for i := range entries {
		apply(b, m, &command.Command{Kind: command.KindSet, Path: benchPath(i), Data: make([]byte, 100)})
	}
	m.Publish()
	return m
}

func benchPath(i int) string { return fmt.Sprintf("/svc/directory-%04d/file-%02d", i/100, i%100) }

// Each operation is one command; 32 of them are a batch. session=1 adds the dedup window.
func BenchmarkApply(b *testing.B) {
	const entries = 100_000
	m := benchMachine(b, entries)
	openSessions(b, m, 1)
	seq := uint64(0)
	for _, session := range []uint64{0, 1} {
		b.Run(fmt.Sprintf("op=set/entries=%d/batch=32/session=%d", entries, session), func(b *testing.B) {
			b.ReportAllocs()
			c := &command.Command{Kind: command.KindSet, Session: session, Data: make([]byte, 100)}
			var raw []byte
			for b.Loop() {
				seq++
				c.Seq, c.AckedBelow, c.Path = seq, max(seq, 64)-64, benchPath(int(seq*7919%entries))
				raw = command.Append(raw[:0], c)
				if _, err := m.Apply(seq, 1, raw); err != nil {
					b.Fatal(err)
				}
				if seq%32 == 0 {
					m.Publish()
				}
			}
		})
	}
	b.Run("op=lock+unlock/batch=32", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			seq += 2
			r := apply(b, m, &command.Command{Kind: command.KindLock, Session: 1, Seq: seq, AckedBelow: seq - 64, Path: "/lock", Mode: fence.Exclusive})
			apply(b, m, &command.Command{Kind: command.KindUnlock, Session: 1, Seq: seq + 1, AckedBelow: seq - 64, Path: "/lock", LockSeq: seq, Generation: r.Generation})
			if seq%32 == 0 {
				m.Publish()
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	const entries = 100_000
	s := benchMachine(b, entries).State()
	paths := make([]string, entries)
	for i := range paths {
		paths[i] = benchPath(i)
	}
	b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if i++; i == entries {
				i = 0
			}
			if _, ok := s.Get(paths[i*7919%entries]); !ok {
				b.Fatal("gone")
			}
		}
	})
}

func BenchmarkSnapshot(b *testing.B) {
	const entries = 100_000
	s := benchMachine(b, entries).State()
	b.Run(fmt.Sprintf("op=write/entries=%d", entries), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n, err := s.WriteTo(io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(n)
		}
	})
	b.Run(fmt.Sprintf("op=read/entries=%d", entries), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			r, w := io.Pipe()
			go func() {
				n, err := s.WriteTo(w)
				b.SetBytes(n)
				w.CloseWithError(err)
			}()
			if _, err := Read(r); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// One operation is one hand-over to the next waiter, or one waiter that leaves from the middle of the queue; each is a
// batch of its own. The queue is filled again outside the clock when half of it is gone.
func BenchmarkQueue(b *testing.B) {
	for _, op := range []string{"handover", "cancel"} {
		for _, waiters := range []int{100, 10_000, 100_000} {
			b.Run(fmt.Sprintf("op=%s/waiters=%d", op, waiters), func(b *testing.B) {
				b.ReportAllocs()
				m, i := queueOf(b, waiters), 0
				for b.Loop() {
					if i == waiters/2 {
						b.StopTimer()
						m, i = queueOf(b, waiters), 0
						b.StartTimer()
					}
					if op == "handover" {
						handOver(b, m, i)
					} else {
						cancelQueued(b, m, waiters/2+i)
					}
					i++
				}
			})
		}
	}
}
