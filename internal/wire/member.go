package wire

import "fmt"

// MemberOp is what a MemberCall asks for. They cross the wire: do not renumber.
type MemberOp uint8

const (
	MemberList     MemberOp = iota + 1 // the members
	MemberAdd                          // take node ID at Addr in, and give it a vote if Vote
	MemberRemove                       // remove Server
	MemberTransfer                     // hand leadership of the cell to Server, or to the best candidate
	MemberAnnounce                     // Server is at Addr: does it still belong to the cell?
)

// MemberCall asks the cell leader about the members of the cell, or to change them.
type MemberCall struct {
	Op     MemberOp
	Vote   bool
	Cell   CellID // that of the node in question; zero if it belongs to none yet
	Name   string // the cell's name, as the node in question knows it
	ID     string // of a node
	Server string // raft server id; may be empty where ID tells enough
	Addr   string
}

// States of the member that a call is about. They cross the wire: do not renumber.
const (
	MemberUnsettled uint8 = iota // ask again
	MemberVoter
	MemberNonvoter
	MemberRemoved
)

// MemberAnswer tells what became of a MemberCall, and how the cell stands.
type MemberAnswer struct {
	State   uint8
	Cell    CellID
	Epoch   uint64
	Servers []MemberServer
}

// MemberServer is one member.
type MemberServer struct {
	Server, Addr  string
	Voter, Leader bool
	Index         uint64 // what it is known to have in its log
	Silent        uint64 // nanoseconds since it last answered
}

const serverBytes = 26 // without the strings

// AppendMemberCall encodes c.
func AppendMemberCall(b []byte, c *MemberCall) []byte {
	b = append(b, byte(c.Op))
	b = putBool(b, c.Vote)
	b = append(b, c.Cell[:]...)
	for _, s := range []string{c.Name, c.ID, c.Server, c.Addr} {
		b = putBytes(b, s)
	}
	return b
}

// ParseMemberCall decodes what AppendMemberCall made.
func ParseMemberCall(b []byte) (MemberCall, error) {
	d := decoder{b: b}
	c := MemberCall{Op: MemberOp(d.u8()), Vote: d.bool()}
	copy(c.Cell[:], d.take(len(c.Cell)))
	for _, s := range []*string{&c.Name, &c.ID, &c.Server, &c.Addr} {
		*s = string(d.bytes())
	}
	if err := d.end(); err != nil {
		return MemberCall{}, err
	}
	if c.Op < MemberList || c.Op > MemberAnnounce {
		return MemberCall{}, fmt.Errorf("%w: membership call %d", ErrMessage, c.Op)
	}
	return c, nil
}

// AppendMemberAnswer encodes a.
func AppendMemberAnswer(b []byte, a *MemberAnswer) []byte {
	b = append(b, a.State)
	b = append(b, a.Cell[:]...)
	b = le.AppendUint64(b, a.Epoch)
	b = le.AppendUint32(b, uint32(len(a.Servers)))
	for _, s := range a.Servers {
		b = putBytes(b, s.Server)
		b = putBytes(b, s.Addr)
		b = putBool(b, s.Voter)
		b = putBool(b, s.Leader)
		b = le.AppendUint64(b, s.Index)
		b = le.AppendUint64(b, s.Silent)
	}
	return b
}

// ParseMemberAnswer decodes what AppendMemberAnswer made.
func ParseMemberAnswer(b []byte) (MemberAnswer, error) {
	d := decoder{b: b}
	a := MemberAnswer{State: d.u8()}
	copy(a.Cell[:], d.take(len(a.Cell)))
	a.Epoch = d.u64()
	n := d.count(serverBytes)
	for range n {
		a.Servers = append(a.Servers, MemberServer{
			Server: string(d.bytes()), Addr: string(d.bytes()), Voter: d.bool(), Leader: d.bool(), Index: d.u64(), Silent: d.u64(),
		})
	}
	if err := d.end(); err != nil {
		return MemberAnswer{}, err
	}
	if a.State > MemberRemoved {
		return MemberAnswer{}, fmt.Errorf("%w: state %d of a member", ErrMessage, a.State)
	}
	return a, nil
}
