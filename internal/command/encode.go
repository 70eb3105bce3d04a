package command

import (
	"encoding/binary"

	"github.com/chubbygo/chubby/fence"
)

// Version is the first byte of every command, result and log entry.
const Version = 1

// Bounds that the decoders set. A proposer keeps below them; what exceeds them is refused as ErrEncoding.
const (
	OpsMax      = 4096    // conditions, operations and entries in one list
	SessionsMax = 65536   // sessions ended by one command
	EntryMax    = 1024    // commands in a log entry
	EntryBytes  = 2 << 20 // bytes of a log entry
	flagDir     = 1       // flag bits reach disk: do not renumber
	flagEphem   = 2       // entry dies with its session
	flagACL     = 4       // ACL names follow
	flagCreate  = 8       // KindOpen, these four
	flagNew     = 16
	flagWrite   = 32
	flagChange  = 64
	flagTry     = 1 // KindLock
	flagHasData = 2 // KindLock
	flagCaching = 1 // KindOpenSession
	nonceBytes  = 16
	keyBytes    = 32
)

// Append appends the encoding of c to dst: version, kind, and those fields that the kind uses, in the order of
// docs/format.md. Other fields are not written. It keeps no part of c.
func Append(dst []byte, c *Command) []byte {
	dst = append(dst, Version, byte(c.Kind))
	switch c.Kind {
	case KindBarrier, KindProbe:
		return dst
	case KindRaiseLevel:
		dst = binary.AppendUvarint(dst, c.Term)
		return binary.AppendUvarint(dst, uint64(c.Level))
	case KindAssignSlot:
		return appendString(dst, c.Node)
	case KindOpenSession:
		dst = binary.AppendUvarint(dst, c.Session)
		dst = appendString(dst, c.Principal)
		dst = append(dst, c.Nonce[:]...)
		dst = binary.AppendUvarint(dst, uint64(c.Slot))
		dst = appendString(dst, c.Name)
		dst = appendString(dst, c.Node)
		dst = binary.AppendUvarint(dst, c.Lease)
		dst = binary.AppendUvarint(dst, c.Grace)
		return append(dst, flags(c.Caching, flagCaching))
	case KindCloseSession:
		dst = binary.AppendUvarint(dst, c.Session)
		return appendString(dst, c.Principal)
	case KindExpireSessions:
		dst = binary.AppendUvarint(dst, c.Term)
		dst = binary.AppendUvarint(dst, uint64(len(c.Sessions)))
		for _, id := range c.Sessions {
			dst = binary.AppendUvarint(dst, id)
		}
		return dst
	case KindClearDelay:
		dst = binary.AppendUvarint(dst, c.Term)
		dst = appendString(dst, c.Path)
		return binary.AppendUvarint(dst, c.Generation)
	case KindCellKey:
		return append(dst, c.Key[:]...)
	}
	dst = binary.AppendUvarint(dst, c.Session)
	dst = binary.AppendUvarint(dst, c.Seq)
	dst = binary.AppendUvarint(dst, c.AckedBelow)
	dst = appendString(dst, c.Principal)
	if c.Kind == KindTxn {
		dst = appendConds(dst, c.If)
		dst = appendOps(dst, c.Then)
		return appendOps(dst, c.Else)
	}
	dst = appendString(dst, c.Path)
	switch c.Kind {
	case KindSet:
		dst = appendBytes(dst, c.Data)
		dst = appendConds(dst, c.Conds)
	case KindCreate:
		dst = appendBytes(dst, c.Data)
		dst = appendMaking(dst, c.Dir, c.Ephemeral, c.ACL, 0)
	case KindCompareAndSwap:
		dst = append(dst, flags(c.HasOld, 1))
		if c.HasOld {
			dst = appendBytes(dst, c.Old)
		}
		dst = appendBytes(dst, c.Data)
	case KindAdd, KindSub:
		dst = binary.AppendVarint(dst, c.Number)
		dst = binary.AppendVarint(dst, c.Bound)
	case KindDelete:
		dst = appendConds(dst, c.Conds)
	case KindDeleteTree: // the path says it all
	case KindLock:
		dst = append(dst, byte(c.Mode), flags(c.Try, flagTry)|flags(c.HasData, flagHasData))
		dst = binary.AppendUvarint(dst, c.Delay)
		dst = binary.AppendUvarint(dst, c.Hold)
		if c.HasData {
			dst = appendBytes(dst, c.Data)
		}
		dst = appendConds(dst, c.Conds)
	case KindUnlock:
		dst = binary.AppendUvarint(dst, c.Generation)
		dst = binary.AppendUvarint(dst, c.LockSeq)
		dst = binary.AppendUvarint(dst, c.Term)
	case KindCancelLock:
		dst = binary.AppendUvarint(dst, c.LockSeq)
	case KindOpen:
		dst = appendBytes(dst, c.Data)
		dst = appendMaking(dst, c.Dir, c.Ephemeral, c.ACL,
			flags(c.Create, flagCreate)|flags(c.New, flagNew)|flags(c.Write, flagWrite)|flags(c.ChangeACL, flagChange))
		dst = appendConds(dst, c.Conds)
	case KindCloseHandle:
		dst = binary.AppendUvarint(dst, c.OpenSeq)
	case KindSetACL:
		dst = appendACL(dst, &c.ACL)
		dst = appendConds(dst, c.Conds)
	}
	return dst
}

// ForLeader reports whether an encoded command is one that only the cell leader may decide to propose: the barrier of its
// term, and what its clocks tell it. It looks at the first fields only; what cannot be decoded is none.
func ForLeader(raw []byte) bool {
	if len(raw) < 2 || raw[0] != Version {
		return false
	}
	switch Kind(raw[1]) {
	case KindBarrier, KindExpireSessions, KindClearDelay, KindRaiseLevel:
		return true
	case KindUnlock:
		_, n := binary.Uvarint(raw[2:]) // Session
		if n <= 0 {
			return false
		}
		seq, m := binary.Uvarint(raw[2+n:])
		return m > 0 && seq == 0
	}
	return false
}

// PrincipalOf gives the principal that an encoded command names. It looks at the first fields only. ok is false for
// commands that have none, which are the cell's own, and for what cannot be decoded.
func PrincipalOf(raw []byte) (principal string, ok bool) {
	r := reader{b: raw}
	if r.version() != nil {
		return "", false
	}
	switch kind := Kind(r.byte()); {
	case kind == KindOpenSession, kind == KindCloseSession:
		r.uvarint() // Session
	case KindSet <= kind && kind <= kindLast && kind != KindCellKey && kind != KindRaiseLevel:
		r.uvarint() // Session
		r.uvarint() // Seq
		r.uvarint() // AckedBelow
	default:
		return "", false
	}
	principal = r.string()
	return principal, r.err == nil
}

func appendConds(dst []byte, conds []Cond) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(conds)))
	for i := range conds {
		c := &conds[i]
		dst = append(dst, byte(c.Kind))
		if c.Kind == CondHolds {
			dst = appendSequencer(dst, &c.Sequencer)
			continue
		}
		dst = appendString(dst, c.Path)
		switch c.Kind {
		case CondGeneration, CondInstance:
			dst = binary.AppendUvarint(dst, c.Generation)
		case CondValue:
			dst = appendBytes(dst, c.Value)
		}
	}
	return dst
}

func appendOps(dst []byte, ops []Op) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(ops)))
	for i := range ops {
		o := &ops[i]
		dst = append(dst, byte(o.Kind))
		dst = appendString(dst, o.Path)
		switch o.Kind {
		case OpSet:
			dst = appendBytes(dst, o.Data)
		case OpCreate:
			dst = appendBytes(dst, o.Data)
			dst = appendMaking(dst, o.Dir, o.Ephemeral, o.ACL, 0)
		case OpAdd:
			dst = binary.AppendVarint(dst, o.Number)
			dst = binary.AppendVarint(dst, o.Bound)
		}
	}
	return dst
}

// appendMaking writes how an entry is made: flags, and ACL names where there are any.
func appendMaking(dst []byte, dir, ephemeral bool, acl ACL, more byte) []byte {
	named := acl != (ACL{})
	dst = append(dst, more|flags(dir, flagDir)|flags(ephemeral, flagEphem)|flags(named, flagACL))
	if named {
		dst = appendACL(dst, &acl)
	}
	return dst
}

func appendACL(dst []byte, a *ACL) []byte {
	return appendString(appendString(appendString(dst, a.Read), a.Write), a.Change)
}

// appendSequencer writes no checksum: the log has its own.
func appendSequencer(dst []byte, s *fence.Sequencer) []byte {
	dst = appendString(dst, s.Cell)
	dst = binary.AppendUvarint(dst, s.Epoch)
	dst = appendString(dst, s.Path)
	dst = append(dst, byte(s.Mode))
	return binary.AppendUvarint(dst, s.Generation)
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func flags(set bool, bit byte) byte {
	if set {
		return bit
	}
	return 0
}
