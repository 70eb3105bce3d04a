package state

import (
	"fmt"
	"math"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// generator makes commands that meet each other: few sessions, few paths, copies of earlier commands, and names of
// owners that are there.
type generator struct {
	n     func(int) int // a number below its argument
	seqs  map[uint64]uint64
	sent  [][]byte
	ids   uint64
	nonce byte
}

func newGenerator(n func(int) int) *generator { return &generator{n: n, seqs: map[uint64]uint64{}} }

var (
	randomPaths      = []string{"/a", "/b", "/a/x", "/a/y", "/b/x", "/a/x/deep", "/c/d/e", "/a-x", "/", "bad"}
	randomLists      = []string{"l", "m", "", "", "none", "bad/name"}
	randomPrincipals = []string{"alice", "bob", ""}
	randomData       = []string{"", "1", "41", "x", "9223372036854775807", "hello"}
)

// next gives an encoded command and the term of its entry.
func (g *generator) next(s *State) (raw []byte, term uint64) {
	term = 1 + uint64(s.Revision()/200)
	if len(g.sent) > 0 && g.n(8) == 0 {
		return g.sent[len(g.sent)-1-g.n(min(len(g.sent), 50))], term
	}
	c := g.command(s, term)
	if c.Principal = principalOf(c.Session); g.n(30) == 0 {
		c.Principal = randomPrincipals[g.n(len(randomPrincipals))]
	}
	raw = command.Append(nil, c)
	g.sent = append(g.sent, raw)
	return raw, term
}

// principalOf is who opens the session.
func principalOf(session uint64) string { return randomPrincipals[session%2] }

func (g *generator) path() string {
	return randomPaths[g.n(len(randomPaths))]
}
func (g *generator) data() []byte { return []byte(randomData[g.n(len(randomData))]) }

func (g *generator) command(s *State, term uint64) *command.Command {
	var live []uint64
	for v := range s.Sessions() {
		live = append(live, v.ID)
	}
	session := func() uint64 {
		if len(live) == 0 || g.n(20) == 0 {
			return uint64(g.n(int(g.ids) + 2))
		}
		return live[g.n(len(live))]
	}
	if len(live) < 3 && g.n(2) == 0 {
		g.ids += uint64(g.n(3))
		g.nonce++
		return &command.Command{Kind: command.KindOpenSession, Session: g.ids, Slot: uint32(g.n(2)), Nonce: [16]byte{g.nonce}, Lease: 1000, Caching: g.n(2) == 0}
	}
	c := &command.Command{Session: session(), Path: g.path()}
	g.seqs[c.Session]++
	c.Seq = g.seqs[c.Session]
	if g.n(4) == 0 {
		c.AckedBelow = c.Seq - min(uint64(g.n(8)), c.Seq)
	}
	var owners []*owner
	s.owners.all(func(_ string, o *owner) bool {
		owners = append(owners, o)
		return true
	})
	switch g.n(36) {
	case 0:
		c.Kind = command.KindBarrier
	case 1:
		c.Kind, c.Node = command.KindAssignSlot, fmt.Sprint("n", g.n(4), ".x")
	case 32, 33:
		c.Kind, c.Number, c.Bound = command.KindAdd, int64(g.n(50)), math.MaxInt64
	case 2:
		if c.Kind = command.KindCloseSession; g.n(2) == 0 {
			c.Kind, c.Term, c.Sessions = command.KindExpireSessions, term-uint64(g.n(8)/7), []uint64{session(), session(), session()}
		}
	case 3, 34, 35:
		c.Kind, c.Term, c.Generation = command.KindClearDelay, term-uint64(g.n(8)/7), 1
		for d := range s.Delays() {
			if c.Path, c.Generation = d.Path, d.Generation; g.n(2) == 0 {
				break
			}
		}
	case 4, 5:
		c.Kind, c.Data, c.Conds = command.KindSet, g.data(), g.conds(s, 1)
	case 6, 7:
		c.Kind, c.Ephemeral, c.ACL = command.KindCreate, g.n(2) == 0, g.acl()
		if c.Dir = g.n(2) == 0; !c.Dir || g.n(10) == 0 {
			c.Data = g.data()
		}
	case 8:
		c.Kind, c.Data, c.HasOld = command.KindCompareAndSwap, g.data(), g.n(2) == 0
		if c.HasOld {
			c.Old = g.data()
		}
	case 9:
		c.Kind, c.Number, c.Bound = command.KindAdd, int64(g.n(50)-2), int64(g.n(200))
	case 10:
		c.Kind, c.Number, c.Bound = command.KindSub, int64(g.n(50)-2), -int64(g.n(200))
	case 11:
		c.Kind, c.Conds = command.KindDelete, g.conds(s, 1)
	case 12:
		c.Kind = command.KindDeleteTree
	case 13, 14:
		c.Kind, c.If, c.Then, c.Else = command.KindTxn, g.conds(s, 2), g.ops(), g.ops()
	case 15, 16, 17, 18, 19:
		c.Kind, c.Mode, c.Try = command.KindLock, fence.Mode(1+g.n(9)%2), g.n(4) == 0
		if g.n(3) > 0 {
			c.Delay = uint64(g.n(3) * 1000)
		}
		if g.n(3) == 0 {
			c.Hold = uint64(g.n(3) * 1000)
		}
		if g.n(3) == 0 {
			c.HasData, c.Data = true, g.data()
		}
		c.Conds = g.conds(s, 1)
	case 20, 21, 22:
		c.Kind, c.Generation = command.KindUnlock, 1
		if len(owners) > 0 {
			o := owners[g.n(len(owners))]
			c.Path, c.LockSeq, c.Generation = o.path, o.seq, s.Lock(o.path).Generation
			if g.n(8) == 0 {
				c.Session, c.Seq, c.Term = o.session, 0, term-uint64(g.n(2))
			} else if g.n(8) > 0 {
				g.seqs[o.session]++
				c.Session, c.Seq = o.session, g.seqs[o.session]
			}
		}
	case 24, 25, 26:
		c.Kind, c.Write, c.ChangeACL = command.KindOpen, g.n(3) == 0, g.n(4) == 0
		if c.Create = g.n(3) > 0; c.Create {
			c.Dir, c.Ephemeral, c.New, c.ACL = g.n(3) == 0, g.n(3) > 0, g.n(4) == 0, g.acl()
			if !c.Dir {
				c.Data = g.data()
			}
		}
		if g.n(6) == 0 {
			c.Conds = g.conds(s, 1)
		}
	case 27, 28:
		c.Kind, c.OpenSeq = command.KindCloseHandle, c.Seq+1-min(uint64(g.n(4)), c.Seq)
		var opens []*open
		s.opens.all(func(_ string, o *open) bool {
			opens = append(opens, o)
			return true
		})
		if len(opens) > 0 && g.n(4) > 0 {
			o := opens[g.n(len(opens))]
			g.seqs[o.session]++
			c.Path, c.Session, c.Seq, c.OpenSeq = o.path, o.session, g.seqs[o.session], o.seq
		}
	case 29:
		c.Kind, c.ACL = command.KindSetACL, g.acl()
		if g.n(3) == 0 {
			c.Path = "/"
		}
	case 30: // lists come and go, and with them the checks
		c.Path = []string{"/acl/l", "/acl/m"}[g.n(2)]
		if c.Kind, c.Data = command.KindSet, []byte([]string{"*", "*", "alice", " bob \n\nalice\n", "bob\r\n", ""}[g.n(6)]); g.n(2) == 0 {
			c.Kind, c.Data, c.Path = command.KindDeleteTree, nil, "/acl"
		}
	case 31:
		switch g.n(3) {
		case 0:
			c.Kind = command.KindCellKey
		case 1:
			c.Kind, c.Key[0] = command.KindCellKey, byte(1+g.n(3))
		case 2:
			c.Kind, c.Term, c.Level = command.KindRaiseLevel, term-uint64(g.n(8)/7), uint32(g.n(5))
		}
	case 23:
		c.Kind, c.LockSeq = command.KindCancelLock, c.Seq+1-min(uint64(g.n(4)), c.Seq)
		if len(owners) > 0 && g.n(4) > 0 {
			o := owners[g.n(len(owners))]
			g.seqs[o.session]++
			c.Path, c.Session, c.Seq, c.LockSeq = o.path, o.session, g.seqs[o.session], o.seq
		}
	}
	return c
}

func (g *generator) conds(s *State, odds int) (list []command.Cond) {
	for g.n(3) < odds && len(list) < 3 {
		c := command.Cond{Kind: command.CondKind(1 + g.n(6)), Path: g.path()}
		switch c.Kind {
		case command.CondInstance:
			if e, ok := s.Get(c.Path); ok && g.n(3) > 0 {
				c.Generation = e.Stat.Instance
			}
		case command.CondGeneration:
			if e, ok := s.Get(c.Path); ok && g.n(3) > 0 {
				c.Generation = e.Stat.Generation
			}
		case command.CondValue:
			c.Value = g.data()
		case command.CondHolds:
			v := s.Lock(c.Path)
			c.Sequencer = fence.Sequencer{Cell: "local", Epoch: 7 - uint64(g.n(8)/7), Path: c.Path, Mode: v.Mode, Generation: v.Generation}
			c.Path = ""
		}
		list = append(list, c)
	}
	return list
}

// acl gives names, mostly none.
func (g *generator) acl() (a command.ACL) {
	if g.n(3) == 0 {
		a.Read, a.Write, a.Change = g.list(), g.list(), g.list()
	}
	return a
}

func (g *generator) list() string { return randomLists[g.n(len(randomLists))] }

func (g *generator) ops() (list []command.Op) {
	for g.n(4) > 0 && len(list) < 6 {
		o := command.Op{Kind: command.OpKind(1 + g.n(5)), Path: g.path()}
		switch o.Kind {
		case command.OpSet:
			o.Data = g.data()
		case command.OpCreate:
			o.ACL = g.acl()
			if o.Dir, o.Ephemeral = g.n(2) == 0, g.n(3) == 0; !o.Dir {
				o.Data = g.data()
			}
		case command.OpAdd:
			o.Number, o.Bound = int64(g.n(50)), int64(g.n(200))
		}
		list = append(list, o)
	}
	return list
}
