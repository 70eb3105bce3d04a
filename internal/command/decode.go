package command

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/chubbygo/chubby/fence"
)

// What decoding can find. The text of an error says more.
var (
	// ErrVersion means that a newer release wrote this.
	ErrVersion = errors.New("unknown version of the encoding")
	// ErrKind means a kind of command, condition or operation that this release does not know.
	ErrKind = errors.New("unknown kind")
	// ErrEncoding means bytes that no release writes.
	ErrEncoding = errors.New("malformed encoding")
)

// Decode reads what [Append] wrote into c, whose slices it reuses. It takes one form only for each command, so that
// encoding again gives the same bytes, and allocates no more than a small multiple of len(b). Data, Old, Nonces and
// Values alias b; strings are copies. After an error c is undefined.
func Decode(b []byte, c *Command) error {
	conds, sessions := c.Conds[:0], c.Sessions[:0]
	ifs, then, els := c.If[:0], c.Then[:0], c.Else[:0]
	principal := c.Principal
	*c = Command{}
	r := reader{b: b}
	if err := r.version(); err != nil {
		return err
	}
	c.Kind = Kind(r.byte())
	if (c.Kind < KindBarrier || c.Kind > kindLast) && c.Kind != KindProbe {
		return fmt.Errorf("%w: command %d", ErrKind, c.Kind)
	}
	switch c.Kind {
	case KindBarrier, KindProbe:
		return r.end()
	case KindRaiseLevel:
		c.Term = r.uvarint()
		c.Level = r.uint32()
		return r.end()
	case KindAssignSlot:
		c.Node = r.string()
		return r.end()
	case KindOpenSession:
		c.Session = r.uvarint()
		c.Principal = r.string()
		copy(c.Nonce[:], r.take(nonceBytes))
		c.Slot = r.uint32()
		c.Name = r.string()
		c.Node = r.string()
		c.Lease = r.uvarint()
		c.Grace = r.uvarint()
		c.Caching = r.flags(flagCaching) != 0
		return r.end()
	case KindCloseSession:
		c.Session = r.uvarint()
		c.Principal = r.string()
		return r.end()
	case KindExpireSessions:
		c.Term = r.uvarint()
		for range r.count(SessionsMax) {
			sessions = append(sessions, r.uvarint())
		}
		c.Sessions = sessions
		return r.end()
	case KindClearDelay:
		c.Term = r.uvarint()
		c.Path = r.string()
		c.Generation = r.uvarint()
		return r.end()
	case KindCellKey:
		copy(c.Key[:], r.take(keyBytes))
		return r.end()
	}
	c.Session = r.uvarint()
	c.Seq = r.uvarint()
	c.AckedBelow = r.uvarint()
	if b := r.bytes(); string(b) == principal {
		c.Principal = principal // one process sends many commands in a row
	} else {
		c.Principal = string(b)
	}
	if c.Kind == KindTxn {
		c.If = r.conds(ifs)
		c.Then = r.ops(then)
		c.Else = r.ops(els)
		return r.end()
	}
	c.Path = r.string()
	switch c.Kind {
	case KindSet:
		c.Data = r.bytes()
		c.Conds = r.conds(conds)
	case KindCreate:
		c.Data = r.bytes()
		c.Dir, c.Ephemeral, c.ACL, _ = r.making(0)
	case KindCompareAndSwap:
		if c.HasOld = r.flags(1) != 0; c.HasOld {
			c.Old = r.bytes()
		}
		c.Data = r.bytes()
	case KindAdd, KindSub:
		c.Number = r.varint()
		c.Bound = r.varint()
	case KindDelete:
		c.Conds = r.conds(conds)
	case KindLock:
		c.Mode = fence.Mode(r.byte())
		f := r.flags(flagTry | flagHasData)
		c.Try, c.HasData = f&flagTry != 0, f&flagHasData != 0
		c.Delay = r.uvarint()
		c.Hold = r.uvarint()
		if c.HasData {
			c.Data = r.bytes()
		}
		c.Conds = r.conds(conds)
	case KindUnlock:
		c.Generation = r.uvarint()
		c.LockSeq = r.uvarint()
		c.Term = r.uvarint()
	case KindCancelLock:
		c.LockSeq = r.uvarint()
	case KindOpen:
		c.Data = r.bytes()
		var f byte
		c.Dir, c.Ephemeral, c.ACL, f = r.making(flagCreate | flagNew | flagWrite | flagChange)
		c.Create, c.New, c.Write, c.ChangeACL = f&flagCreate != 0, f&flagNew != 0, f&flagWrite != 0, f&flagChange != 0
		c.Conds = r.conds(conds)
	case KindCloseHandle:
		c.OpenSeq = r.uvarint()
	case KindSetACL:
		c.ACL = r.acl()
		c.Conds = r.conds(conds)
	}
	return r.end()
}

// reader takes an encoding apart. The first fault stays in err, and everything read after it is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: "+format, append([]any{ErrEncoding}, args...)...)
	}
	r.b = nil
}

func (r *reader) version() error {
	switch {
	case len(r.b) == 0:
		return fmt.Errorf("%w: no bytes", ErrEncoding)
	case r.b[0] != Version:
		return fmt.Errorf("%w: %d; this release reads %d", ErrVersion, r.b[0], Version)
	}
	r.b = r.b[1:]
	return nil
}

func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail("%d bytes too many", len(r.b))
	}
	return r.err
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail("cut off")
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

// flags reads a byte of which only the bits in known may be set.
func (r *reader) flags(known byte) byte {
	v := r.byte()
	if v&^known != 0 {
		r.fail("flags %#x", v)
		return 0
	}
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // cut off or above 64 bits; a longer form than needed
		r.fail("number")
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	u := r.uvarint()
	v := int64(u >> 1)
	if u&1 != 0 {
		v = ^v
	}
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.fail("%d does not fit 32 bits", v)
		return 0
	}
	return uint32(v)
}

// count reads the length of a list. Each of its elements takes at least a byte, so a length beyond the input is refused
// before anything is allocated for it.
func (r *reader) count(limit int) int {
	n := r.uvarint()
	if n > uint64(limit) || n > uint64(len(r.b)) {
		r.fail("a list of %d", n)
		return 0
	}
	return int(n)
}

// take gives n bytes, which alias the input; nil for none.
func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail("%d bytes announced, %d there", n, len(r.b))
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes() []byte  { return r.take(r.uvarint()) }
func (r *reader) string() string { return string(r.bytes()) }

// making reads how an entry is made. more are the further flags that may be set.
func (r *reader) making(more byte) (dir, ephemeral bool, acl ACL, f byte) {
	f = r.flags(flagDir | flagEphem | flagACL | more)
	if f&flagACL != 0 {
		if acl = r.acl(); acl == (ACL{}) {
			r.fail("ACL names that are empty")
		}
	}
	return f&flagDir != 0, f&flagEphem != 0, acl, f
}

func (r *reader) acl() ACL { return ACL{Read: r.string(), Write: r.string(), Change: r.string()} }

func (r *reader) conds(list []Cond) []Cond {
	for range r.count(OpsMax) {
		c := Cond{Kind: CondKind(r.byte())}
		switch {
		case r.err != nil:
			return nil
		case c.Kind < CondGeneration || c.Kind > CondInstance:
			r.fail("%w: condition %d", ErrKind, c.Kind)
			return nil
		case c.Kind == CondHolds:
			c.Sequencer.Cell = r.string()
			c.Sequencer.Epoch = r.uvarint()
			c.Sequencer.Path = r.string()
			c.Sequencer.Mode = fence.Mode(r.byte())
			c.Sequencer.Generation = r.uvarint()
		default:
			c.Path = r.string()
			switch c.Kind {
			case CondGeneration, CondInstance:
				c.Generation = r.uvarint()
			case CondValue:
				c.Value = r.bytes()
			}
		}
		list = append(list, c)
	}
	return list
}

func (r *reader) ops(list []Op) []Op {
	for range r.count(OpsMax) {
		o := Op{Kind: OpKind(r.byte())}
		if r.err != nil {
			return nil
		}
		if o.Kind < OpGet || o.Kind > OpAdd {
			r.fail("%w: operation %d", ErrKind, o.Kind)
			return nil
		}
		o.Path = r.string()
		switch o.Kind {
		case OpSet:
			o.Data = r.bytes()
		case OpCreate:
			o.Data = r.bytes()
			o.Dir, o.Ephemeral, o.ACL, _ = r.making(0)
		case OpAdd:
			o.Number = r.varint()
			o.Bound = r.varint()
		}
		list = append(list, o)
	}
	return list
}
