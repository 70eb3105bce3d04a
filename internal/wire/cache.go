package wire

// Kinds of calls of dialled clients that cache. They cross the wire: do not renumber.
const (
	KindCacheFill  = FirstClientKind + 16 // a CacheCall; a CacheAnswer
	KindCacheRenew = FirstClientKind + 17 // the same
	KindCachePoll  = FirstClientKind + 18 // the same, when there is something to drop
)

// CacheCall is what a caching client asks the cell leader: to fill its cache with an entry, to renew its lease, or to be
// told what to drop. Each carries what the leader has to know.
type CacheCall struct {
	Session uint64
	Term    uint64 // of the lease under which the client holds things; 0 = it holds nothing
	Lease   uint64 // the lease's number in that term
	Dropped uint64 // the client has done all invalidations up to this number
	Path    string // of the entry to fill with
}

// CacheAnswer is the leader's answer.
type CacheAnswer struct {
	Term, Lease uint64         // the client's lease with this leader; 0 = none
	Granted     bool           // it is renewed from the sending of the call
	Keep        bool           // the entry is registered: the client may keep it
	Number      uint64         // of the client's newest invalidation when it was
	Drop        []Invalidation // what is to be dropped, in order
	Answer      Answer         // to a fill: the entry
}

// Invalidation names what a caching client has to drop.
type Invalidation struct {
	Number uint64
	Path   string // "" = everything
}

const invalidationBytes = 8 + 4

// AppendCacheCall encodes c.
func AppendCacheCall(b []byte, c *CacheCall) []byte {
	b = le.AppendUint64(b, c.Session)
	b = le.AppendUint64(b, c.Term)
	b = le.AppendUint64(b, c.Lease)
	b = le.AppendUint64(b, c.Dropped)
	return putBytes(b, c.Path)
}

// ParseCacheCall decodes what AppendCacheCall made.
func ParseCacheCall(b []byte) (CacheCall, error) {
	d := decoder{b: b}
	c := CacheCall{Session: d.u64(), Term: d.u64(), Lease: d.u64(), Dropped: d.u64(), Path: string(d.bytes())}
	return c, d.end()
}

// AppendCacheAnswer encodes a.
func AppendCacheAnswer(b []byte, a *CacheAnswer) []byte {
	b = le.AppendUint64(b, a.Term)
	b = le.AppendUint64(b, a.Lease)
	b = putBool(b, a.Granted)
	b = putBool(b, a.Keep)
	b = le.AppendUint64(b, a.Number)
	b = le.AppendUint32(b, uint32(len(a.Drop)))
	for _, i := range a.Drop {
		b = le.AppendUint64(b, i.Number)
		b = putBytes(b, i.Path)
	}
	return AppendAnswer(b, &a.Answer)
}

// ParseCacheAnswer decodes what AppendCacheAnswer made. Contents alias b.
func ParseCacheAnswer(b []byte) (CacheAnswer, error) {
	d := decoder{b: b}
	a := CacheAnswer{Term: d.u64(), Lease: d.u64(), Granted: d.bool(), Keep: d.bool(), Number: d.u64()}
	if n := d.count(invalidationBytes); n > 0 {
		a.Drop = make([]Invalidation, 0, n)
		for range n {
			a.Drop = append(a.Drop, Invalidation{Number: d.u64(), Path: string(d.bytes())})
		}
	}
	if d.err != nil {
		return CacheAnswer{}, d.err
	}
	var err error
	a.Answer, err = ParseAnswer(d.b)
	return a, err
}
