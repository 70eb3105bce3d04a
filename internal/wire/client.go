package wire

import "time"

// Kinds of calls of dialled clients. They cross the wire: do not renumber.
const (
	KindAttach    = FirstClientKind      // the cell's name; an Attached
	KindTouch     = FirstClientKind + 1  // nothing; a Touch
	KindPropose   = FirstClientKind + 2  // a command; its outcome
	KindUrgent    = FirstClientKind + 3  // the same, for what frees something
	KindEstablish = FirstClientKind + 4  // an Opening; an Opened
	KindRenew     = FirstClientKind + 5  // a KeepAlive; its answer
	KindQuery     = FirstClientKind + 6  // a Query; its Answer
	KindPeek      = FirstClientKind + 7  // a Peek; a Peeked
	KindTrack     = FirstClientKind + 8  // a KeepAlive whose sessions are to be told of; nothing
	KindWatch     = FirstClientKind + 9  // a WatchCall; a Watched
	KindNext      = FirstClientKind + 10 // the number of a watch; a Watched
	KindEnd       = FirstClientKind + 11 // the number of a watch; nothing
)

// Touch says whether a member is in touch with the cell leader.
type Touch struct {
	InTouch bool
	Leader  string // raft server id of the cell leader; empty: none is known
}

// Attached tells a client about the cell and the member that it reached.
type Attached struct {
	Touch
	Epoch      uint64
	Principal  string // who the client is to this cell
	Heartbeat  time.Duration
	ValueBytes uint32 // limits of the member, as in chubby.Limits
	PathBytes  uint32
	Depth      uint32
}

// Opening asks for a session.
type Opening struct {
	Name         string
	Lease, Grace uint64 // milliseconds
	Caching      bool   // the client keeps a consistent cache
}

// Opened is the session that an Opening made.
type Opened struct{ Session, Revision uint64 }

// Peek is a query to a member's memory.
type Peek struct {
	Seen  uint64 // the memory must have this revision
	Query Query
}

// Peeked is what a member's memory says.
type Peeked struct {
	Age    time.Duration
	Answer Answer
}

// WatchCall begins a watch, under a number that the client chose.
type WatchCall struct {
	Number    uint64
	Path      string
	Recursive bool
	From      uint64
}

// Watched is what a watch has to tell.
type Watched struct {
	Touch
	Now    uint64 // the revision of the member's state
	Done   uint64 // everything up to here has been told
	Led    bool   // another node leads the cell
	Events []Event
}

// Event mirrors the part of a state.Event that watches tell of.
type Event struct {
	Kind     uint8
	Path     string
	Revision uint64
	Entry    Stored
}

// Push kinds are the first byte of a TypePush frame. They cross the wire: do not renumber.
const (
	PushOwner  byte = iota + 1 // an Owner
	PushEnded                  // a session that ended (u64)
	PushReview                 // nothing: look after what waits, for events may have been missed
)

// Owner tells of a Lock command: granted, refused, or the end of what it held.
type Owner struct {
	Kind       OwnerKind
	Session    uint64
	Seq        uint64
	Generation uint64
}

// OwnerKind crosses the wire: do not renumber.
type OwnerKind uint8

// What can happen to the owner that a Lock command made.
const (
	OwnerGranted OwnerKind = iota + 1
	OwnerRefused
	OwnerReleased
	ownerEnd
)

func putTouch(b []byte, t *Touch) []byte { return putBytes(putBool(b, t.InTouch), t.Leader) }

func (d *decoder) touch() Touch { return Touch{InTouch: d.bool(), Leader: string(d.bytes())} }

// AppendTouch encodes t.
func AppendTouch(b []byte, t *Touch) []byte { return putTouch(b, t) }

// ParseTouch decodes what AppendTouch made.
func ParseTouch(b []byte) (Touch, error) {
	d := decoder{b: b}
	t := d.touch()
	return t, d.end()
}

// AppendAttached encodes a.
func AppendAttached(b []byte, a *Attached) []byte {
	b = putTouch(b, &a.Touch)
	b = le.AppendUint64(b, a.Epoch)
	b = putBytes(b, a.Principal)
	b = le.AppendUint64(b, uint64(a.Heartbeat))
	b = le.AppendUint32(b, a.ValueBytes)
	b = le.AppendUint32(b, a.PathBytes)
	return le.AppendUint32(b, a.Depth)
}

// ParseAttached decodes what AppendAttached made.
func ParseAttached(b []byte) (Attached, error) {
	d := decoder{b: b}
	a := Attached{
		Touch: d.touch(), Epoch: d.u64(), Principal: string(d.bytes()), Heartbeat: d.duration(),
		ValueBytes: d.u32(), PathBytes: d.u32(), Depth: d.u32(),
	}
	return a, d.end()
}

// duration reads one that is not negative.
func (d *decoder) duration() time.Duration {
	v := time.Duration(d.u64())
	if v < 0 {
		d.fail("duration %d", v)
		return 0
	}
	return v
}

// AppendOpening encodes o.
func AppendOpening(b []byte, o *Opening) []byte {
	b = putBytes(b, o.Name)
	b = le.AppendUint64(b, o.Lease)
	b = le.AppendUint64(b, o.Grace)
	return putBool(b, o.Caching)
}

// ParseOpening decodes what AppendOpening made.
func ParseOpening(b []byte) (Opening, error) {
	d := decoder{b: b}
	o := Opening{Name: string(d.bytes()), Lease: d.u64(), Grace: d.u64(), Caching: d.bool()}
	return o, d.end()
}

// AppendOpened encodes o.
func AppendOpened(b []byte, o *Opened) []byte {
	return le.AppendUint64(le.AppendUint64(b, o.Session), o.Revision)
}

// ParseOpened decodes what AppendOpened made.
func ParseOpened(b []byte) (Opened, error) {
	d := decoder{b: b}
	o := Opened{Session: d.u64(), Revision: d.u64()}
	return o, d.end()
}

// AppendWatchCall encodes w.
func AppendWatchCall(b []byte, w *WatchCall) []byte {
	b = le.AppendUint64(b, w.Number)
	b = putBytes(b, w.Path)
	b = putBool(b, w.Recursive)
	return le.AppendUint64(b, w.From)
}

// ParseWatchCall decodes what AppendWatchCall made.
func ParseWatchCall(b []byte) (WatchCall, error) {
	d := decoder{b: b}
	w := WatchCall{Number: d.u64(), Path: string(d.bytes()), Recursive: d.bool(), From: d.u64()}
	return w, d.end()
}

// AppendNumber encodes the number of a watch, or of a session.
func AppendNumber(b []byte, n uint64) []byte { return le.AppendUint64(b, n) }

// ParseNumber decodes what AppendNumber made.
func ParseNumber(b []byte) (uint64, error) {
	d := decoder{b: b}
	n := d.u64()
	return n, d.end()
}

// AppendWatched encodes w.
func AppendWatched(b []byte, w *Watched) []byte {
	b = putTouch(b, &w.Touch)
	b = le.AppendUint64(b, w.Now)
	b = le.AppendUint64(b, w.Done)
	b = putBool(b, w.Led)
	b = le.AppendUint32(b, uint32(len(w.Events)))
	for i := range w.Events {
		e := &w.Events[i]
		b = append(b, e.Kind)
		b = putBytes(b, e.Path)
		b = le.AppendUint64(b, e.Revision)
		b = putStored(b, &e.Entry)
	}
	return b
}

// ParseWatched decodes what AppendWatched made. Contents alias b.
func ParseWatched(b []byte) (Watched, error) {
	d := decoder{b: b}
	w := Watched{Touch: d.touch(), Now: d.u64(), Done: d.u64(), Led: d.bool()}
	if n := d.count(1 + 4 + 8 + storedBytes); n > 0 {
		w.Events = make([]Event, 0, n)
		for range n {
			w.Events = append(w.Events, Event{Kind: d.u8(), Path: string(d.bytes()), Revision: d.u64(), Entry: d.stored()})
		}
	}
	if err := d.end(); err != nil {
		return Watched{}, err
	}
	return w, nil
}

// AppendOwner encodes o.
func AppendOwner(b []byte, o *Owner) []byte {
	b = append(b, byte(o.Kind))
	b = le.AppendUint64(b, o.Session)
	b = le.AppendUint64(b, o.Seq)
	return le.AppendUint64(b, o.Generation)
}

// ParseOwner decodes what AppendOwner made.
func ParseOwner(b []byte) (Owner, error) {
	d := decoder{b: b}
	o := Owner{Kind: OwnerKind(d.u8()), Session: d.u64(), Seq: d.u64(), Generation: d.u64()}
	if d.err == nil && (o.Kind == 0 || o.Kind >= ownerEnd) {
		d.fail("owner of kind %d", o.Kind)
	}
	return o, d.end()
}
