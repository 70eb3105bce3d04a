package command

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A result begins with version, code, revision and a mask that tells which of these follow, in this order. A part is
// there if and only if it is not zero. The bits reach disk and wire: append at the end, do not renumber.
const (
	hasPath = 1 << iota
	hasStat
	hasNumber
	hasGeneration
	hasQueued // no bytes follow
	hasSlot
	hasFloor
	hasSucceeded // no bytes follow
	hasEntries
	hasRight // a byte
	hasSeal
	hasEnd // first unknown bit
)

// AppendResult appends the encoding of r to dst. It keeps no part of r.
func AppendResult(dst []byte, r *Result) []byte {
	dst = append(dst, Version, byte(r.Code))
	dst = binary.AppendUvarint(dst, r.Revision)
	mask := r.mask()
	dst = binary.AppendUvarint(dst, mask)
	if mask&hasPath != 0 {
		dst = appendString(dst, r.Path)
	}
	if mask&hasStat != 0 {
		dst = appendStat(dst, &r.Stat)
	}
	if mask&hasNumber != 0 {
		dst = binary.AppendVarint(dst, r.Number)
	}
	if mask&hasGeneration != 0 {
		dst = binary.AppendUvarint(dst, r.Generation)
	}
	if mask&hasSlot != 0 {
		dst = binary.AppendUvarint(dst, uint64(r.Slot))
	}
	if mask&hasFloor != 0 {
		dst = binary.AppendUvarint(dst, r.Floor)
	}
	if mask&hasEntries != 0 {
		dst = binary.AppendUvarint(dst, uint64(len(r.Entries)))
		for i := range r.Entries {
			e := &r.Entries[i]
			dst = appendString(dst, e.Path)
			dst = appendBytes(dst, e.Data)
			dst = appendStat(dst, &e.Stat)
		}
	}
	if mask&hasRight != 0 {
		dst = append(dst, byte(r.Right))
	}
	if mask&hasSeal != 0 {
		dst = appendBytes(dst, r.Seal)
	}
	return dst
}

func (r *Result) mask() uint64 {
	var mask uint64
	for bit, set := range [...]bool{
		r.Path != "", r.Stat != Stat{}, r.Number != 0, r.Generation != 0, r.Queued,
		r.Slot != 0, r.Floor != 0, r.Succeeded, len(r.Entries) > 0, r.Right != 0, len(r.Seal) > 0,
	} {
		if set {
			mask |= 1 << bit
		}
	}
	return mask
}

func appendStat(dst []byte, s *Stat) []byte {
	for _, v := range [...]uint64{s.Instance, s.Generation, s.LockGeneration, s.ACLGeneration, s.Revision} {
		dst = binary.AppendUvarint(dst, v)
	}
	dst = binary.LittleEndian.AppendUint64(dst, s.Checksum) // all its bits are in use: a uvarint would be longer
	dst = binary.AppendUvarint(dst, uint64(s.Size))
	dst = binary.AppendUvarint(dst, uint64(s.Children))
	return append(dst, flags(s.Dir, flagDir)|flags(s.Ephemeral, flagEphem))
}

// DecodeResult reads one result from the front of b, as [AppendResult] wrote it, and gives what follows. It takes one
// form only for each result. Data of Entries and Seal alias b; strings are copies. Codes that this release does not know are
// passed on. After an error r is undefined.
func DecodeResult(b []byte, r *Result) (rest []byte, err error) {
	*r = Result{}
	d := reader{b: b}
	if err := d.version(); err != nil {
		return nil, err
	}
	r.Code = Code(d.byte())
	r.Revision = d.uvarint()
	mask := d.uvarint()
	if mask >= hasEnd {
		d.fail("result with parts %#x", mask)
		mask = 0
	}
	if mask&hasPath != 0 {
		r.Path = d.string()
	}
	if mask&hasStat != 0 {
		r.Stat = d.stat()
	}
	if mask&hasNumber != 0 {
		r.Number = d.varint()
	}
	if mask&hasGeneration != 0 {
		r.Generation = d.uvarint()
	}
	if mask&hasSlot != 0 {
		r.Slot = d.uint32()
	}
	if mask&hasFloor != 0 {
		r.Floor = d.uvarint()
	}
	r.Queued = mask&hasQueued != 0
	r.Succeeded = mask&hasSucceeded != 0
	if mask&hasEntries != 0 {
		for range d.count(OpsMax) {
			e := Entry{Path: d.string(), Data: d.bytes(), Stat: d.stat()}
			if d.err != nil {
				break
			}
			r.Entries = append(r.Entries, e)
		}
	}
	if mask&hasRight != 0 {
		r.Right = Right(d.byte())
	}
	if mask&hasSeal != 0 {
		r.Seal = d.bytes()
	}
	if d.err == nil && r.mask() != mask {
		d.fail("a part that is zero")
	}
	if d.err != nil {
		return nil, fmt.Errorf("result: %w", d.err)
	}
	return d.b, nil
}

func (r *reader) stat() Stat {
	s := Stat{
		Instance: r.uvarint(), Generation: r.uvarint(), LockGeneration: r.uvarint(), ACLGeneration: r.uvarint(),
		Revision: r.uvarint(),
	}
	if b := r.take(8); b != nil {
		s.Checksum = binary.LittleEndian.Uint64(b)
	}
	s.Size = r.int()
	s.Children = r.int()
	f := r.flags(flagDir | flagEphem)
	s.Dir, s.Ephemeral = f&flagDir != 0, f&flagEphem != 0
	return s
}

func (r *reader) int() int {
	v := r.uvarint()
	if v > math.MaxInt32 { // so that every machine reads what any machine wrote
		r.fail("size %d", v)
		return 0
	}
	return int(v)
}
