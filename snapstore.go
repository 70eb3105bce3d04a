package chubby

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/OneOfOne/xxhash"
	"github.com/hashicorp/raft"
)

const (
	snapChunkBytes = 256 << 10
	snapBatch      = 8 // chunks in one transaction
	snapKeep       = 2
)

// errSnapshotGone is what a reader gets whose snapshot was removed because newer ones exist.
var errSnapshotGone = errors.New("snapshot was removed")

// errSinkLost is what a sink gets when another one's write failed.
var errSinkLost = errors.New("snapshot lost: the file failed under another one")

// snapStore is raft's SnapshotStore. A snapshot becomes visible when all of it is durable; two are kept. Memory use does
// not depend on size.
//
// A snapshot that cannot be written does not fail the node: nothing is lost, the log it would have replaced is still
// there and only grows, and raft tries again. A damaged one does: what it replaced is gone.
type snapStore struct {
	s     *store
	file  snapFile
	chunk int // bytes in each chunk but the last

	// turn holds one value while nobody writes to the file. It is a channel and not a mutex because its holder works on
	// the disk.
	turn chan struct{}

	mu     sync.Mutex
	live   []*snapMeta // complete ones, newest first
	made   uint64      // greatest Made in use
	broken bool        // an operation on the file failed: reset it before the next snapshot
	resets uint64      // grows when it fails; sinks from before are lost, for reset removes what they wrote
}

var _ raft.SnapshotStore = (*snapStore)(nil)

// snapMeta is what is stored of a snapshot. Do not rename fields.
type snapMeta struct {
	Format             int
	ID                 string
	Made               uint64 // orders snapshots of one index
	Epoch              uint64 // of the cell whose state it is: it counts while the node is one of that cell
	Version            raft.SnapshotVersion
	Index, Term        uint64
	Configuration      []byte // as raft encodes it
	ConfigurationIndex uint64
	Size               int64
	Sum                uint64 // xxhash64 of all bytes

	conf raft.Configuration
}

// chunkSum is the checksum of a chunk, which also says whose and which it is.
func chunkSum(id string, number uint64, data []byte) uint64 {
	return xxhash.Checksum64S(data, xxhash.ChecksumString64S(id, number))
}

func (t *snapStore) init(s *store, f snapFile) {
	t.s, t.file, t.chunk = s, f, snapChunkBytes
	t.turn = make(chan struct{}, 1)
	t.turn <- struct{}{}
}

// load reads and checks all complete snapshots of the node's cell and removes the others. One of another epoch is that of
// a Recover which a crash interrupted before the node was of that epoch, or what a finished Recover replaced.
func (t *snapStore) load() error {
	records, err := t.file.list()
	if err != nil {
		return err
	}
	epoch := t.s.identityRecord().Epoch
	for _, r := range records {
		var m *snapMeta
		if r.meta != nil {
			if m, err = decodeSnapMeta(r); err != nil {
				return err
			}
		}
		if m == nil || m.Epoch != epoch {
			if err := t.file.remove(r.id); err != nil {
				return err
			}
			continue
		}
		t.live = append(t.live, m)
		t.made = max(t.made, m.Made)
	}
	slices.SortFunc(t.live, newerFirst)
	for len(t.live) > snapKeep {
		// A crash came between the last snapshot and the removal of the oldest.
		n := len(t.live) - 1
		if err := t.file.remove(t.live[n].ID); err != nil {
			return err
		}
		t.live = t.live[:n]
	}
	for _, m := range t.live {
		r := &snapReader{t: t, m: m, sum: xxhash.New64()}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
	return nil
}

func newerFirst(a, b *snapMeta) int {
	return cmp.Or(cmp.Compare(b.Index, a.Index), cmp.Compare(b.Term, a.Term), cmp.Compare(b.Made, a.Made))
}

func decodeSnapMeta(r snapRecord) (*snapMeta, error) {
	b, ok := openRecord(r.meta)
	if !ok {
		return nil, corruptf(snapFileName, "snapshot %q has a description with a wrong checksum", r.id)
	}
	m := new(snapMeta)
	if err := json.Unmarshal(b, m); err != nil || m.ID != r.id || m.Format != storeFormat || m.Size < 0 || m.Index == 0 {
		return nil, corruptf(snapFileName, "snapshot %q has a description of unknown form", r.id)
	}
	// Raft's decoder panics on bytes that are no configuration.
	err := guard(func() error {
		m.conf = raft.DecodeConfiguration(m.Configuration)
		return nil
	})
	if err != nil {
		return nil, corruptf(snapFileName, "snapshot %q has a configuration of unknown form", r.id)
	}
	return m, nil
}

func (t *snapStore) head() snapMeta {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.live) == 0 {
		return snapMeta{}
	}
	return *t.live[0]
}

// newest gives the index of the newest snapshot, 0 if there is none.
func (t *snapStore) newest() uint64 { return t.head().Index }

func (t *snapStore) newestTerm() uint64 { return t.head().Term }

// snapshotBytes gives the size of the newest snapshot, 0 if there is none.
func (s *store) snapshotBytes() int64 { return s.snap.head().Size }

// do runs one write. Its error means that the snapshot is lost, and no more than that: see reset.
func (t *snapStore) do(f func() error) error {
	<-t.turn
	err := t.s.err()
	if err == nil {
		if err = t.s.fault("snapshot"); err == nil {
			w := t.s.watch.begin("snapshot", false)
			err = guard(f)
			t.s.watch.end(w)
		}
		switch {
		case errors.Is(err, ErrCorrupt):
			err = t.s.fail(err)
		case err != nil && !errors.Is(err, errSinkLost):
			err = fmt.Errorf("write snapshot: %w", err)
			t.mu.Lock()
			t.broken = true
			t.resets++
			t.mu.Unlock()
		}
	}
	t.turn <- struct{}{}
	t.s.c.Gate.Wait()
	return err
}

// reset makes the file usable again after a write failed. After a failed commit bolt's idea of its file and the file
// itself may differ, so it is opened anew.
func (t *snapStore) reset() error {
	t.mu.Lock()
	broken := t.broken
	t.mu.Unlock()
	if !broken {
		return nil
	}
	return t.do(func() error {
		err := t.file.reset()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.broken = err != nil
		return err
	})
}

// Create begins a snapshot.
func (t *snapStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport,
) (raft.SnapshotSink, error) {
	return t.create(t.s.identityRecord().Epoch, version, index, term, configuration, configurationIndex)
}

// create begins a snapshot of a cell that this node may be going to belong to.
func (t *snapStore) create(epoch uint64, version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64) (raft.SnapshotSink, error) {
	if index == 0 {
		return nil, errors.New("a snapshot of nothing")
	}
	if err := t.reset(); err != nil {
		return nil, err
	}
	if err := t.s.err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.made++
	made, resets := t.made, t.resets
	t.mu.Unlock()
	return &snapSink{t: t, resets: resets, sum: xxhash.New64(), m: snapMeta{
		Format: storeFormat, ID: fmt.Sprintf("%d-%d-%s", term, index, rand.Text()[:12]), Made: made, Epoch: epoch,
		Version: version, Index: index, Term: term, conf: configuration.Clone(),
		Configuration: raft.EncodeConfiguration(configuration), ConfigurationIndex: configurationIndex,
	}}, nil
}

func (m *snapMeta) forRaft() *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: m.Version, ID: m.ID, Index: m.Index, Term: m.Term,
		Configuration: m.conf.Clone(), ConfigurationIndex: m.ConfigurationIndex, Size: m.Size,
	}
}

// List gives the complete snapshots, newest first.
func (t *snapStore) List() ([]*raft.SnapshotMeta, error) {
	if err := t.s.err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var l []*raft.SnapshotMeta
	for _, m := range t.live {
		l = append(l, m.forRaft())
	}
	return l, nil
}

// Open gives a reader of a snapshot. It verifies as it goes: what it returns is what was written, up to an error. When
// the snapshot is removed meanwhile that error is errSnapshotGone; damage is ErrCorrupt and fails the store.
func (t *snapStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := t.s.err(); err != nil {
		return nil, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.live {
		if m.ID == id {
			return m.forRaft(), &snapReader{t: t, m: m, sum: xxhash.New64()}, nil
		}
	}
	return nil, nil, errSnapshotGone
}

// add makes a durable snapshot visible and removes those beyond the two newest.
func (t *snapStore) add(m *snapMeta) {
	t.mu.Lock()
	t.live = append(t.live, m)
	slices.SortFunc(t.live, newerFirst)
	var old []*snapMeta
	if len(t.live) > snapKeep {
		old = slices.Clone(t.live[snapKeep:])
		clear(t.live[snapKeep:])
		t.live = t.live[:snapKeep]
	}
	t.mu.Unlock()
	for _, o := range old {
		if err := t.do(func() error { return t.file.remove(o.ID) }); err != nil {
			// It takes space until the file is reset or opened; the new one is safe.
			t.s.c.Logger.Warn("an old snapshot was not removed", "id", o.ID, "err", err)
		}
	}
}

// snapSink writes a snapshot. Raft uses it from one goroutine.
type snapSink struct {
	t      *snapStore
	m      snapMeta
	resets uint64 // of the store when this began
	sum    *xxhash.XXHash64
	buf    []byte   // less than a chunk
	chunks [][]byte // full ones, sealed, to be written
	number uint64   // of the first of chunks
	err    error    // why no more can be written; sticky
	closed bool
}

// ID gives the name under which List and Open know the snapshot once it is complete.
func (k *snapSink) ID() string { return k.m.ID }

// Write adds to the snapshot. After an error only Cancel and Close make sense.
func (k *snapSink) Write(p []byte) (int, error) {
	if k.closed && k.err == nil {
		k.err = errors.New("snapshot is closed")
	}
	n := 0
	for k.err == nil && len(p) > 0 {
		if k.buf == nil {
			k.buf = make([]byte, 8, 8+k.t.chunk)
		}
		c := min(len(p), cap(k.buf)-len(k.buf))
		_, _ = k.sum.Write(p[:c]) // never fails
		k.buf = append(k.buf, p[:c]...)
		p = p[c:]
		n += c
		if len(k.buf) == cap(k.buf) {
			k.seal()
			if len(k.chunks) == snapBatch {
				k.flush()
			}
		}
	}
	k.m.Size += int64(n)
	return n, k.err
}

// seal ends the chunk in buf, whose first 8 bytes are kept for its checksum.
func (k *snapSink) seal() {
	binary.BigEndian.PutUint64(k.buf, chunkSum(k.m.ID, k.number+uint64(len(k.chunks)), k.buf[8:]))
	k.chunks = append(k.chunks, k.buf)
	k.buf = nil
}

func (k *snapSink) flush() {
	if k.err == nil && len(k.chunks) > 0 {
		k.err = k.do(func() error { return k.t.file.append(k.m.ID, k.number, k.chunks) })
		k.number += uint64(len(k.chunks))
		k.chunks = nil
	}
}

// do runs a write of this snapshot, unless what was written of it is gone.
func (k *snapSink) do(f func() error) error {
	return k.t.do(func() error {
		k.t.mu.Lock()
		lost := k.resets != k.t.resets
		k.t.mu.Unlock()
		if lost {
			return errSinkLost
		}
		return f()
	})
}

// Close completes the snapshot and returns when it is durable and visible. On an error it is neither, and what was
// written of it is removed, now or when the store is next opened.
func (k *snapSink) Close() error {
	if k.closed {
		return k.err
	}
	if len(k.buf) > 0 {
		k.seal()
	}
	k.flush()
	if k.err == nil {
		k.m.Sum = k.sum.Sum64()
		k.err = k.do(func() error {
			b, err := json.Marshal(&k.m)
			if err != nil {
				return err
			}
			return k.t.file.complete(k.m.ID, sealRecord(b))
		})
	}
	if k.err != nil {
		err := k.err
		return errors.Join(err, k.Cancel())
	}
	k.closed = true
	k.t.add(&k.m)
	return nil
}

// Cancel gives the snapshot up. After Close it does nothing.
func (k *snapSink) Cancel() error {
	if k.closed {
		return nil
	}
	k.closed = true
	k.buf, k.chunks = nil, nil
	failed := k.err != nil
	if k.err == nil {
		k.err = errors.New("snapshot was cancelled")
	}
	if failed || k.number == 0 {
		return nil // nothing was written, or reset will remove it
	}
	return k.t.do(func() error { return k.t.file.remove(k.m.ID) })
}

// snapReader streams a snapshot, one short transaction for each chunk: a long one would keep bolt from using pages again.
type snapReader struct {
	t      *snapStore
	m      *snapMeta
	sum    *xxhash.XXHash64
	rest   []byte // of the current chunk
	number uint64 // of the next
	read   int64  // bytes of all chunks so far
	err    error  // sticky
}

func (r *snapReader) Read(p []byte) (int, error) {
	for r.err == nil && len(r.rest) == 0 {
		r.rest, r.err = r.next()
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// next gives the data of the next chunk, or io.EOF after the last one.
func (r *snapReader) next() ([]byte, error) {
	if err := r.t.s.err(); err != nil {
		return nil, err
	}
	if r.read == r.m.Size {
		if r.sum.Sum64() != r.m.Sum {
			return nil, r.damaged("has a wrong checksum")
		}
		return nil, io.EOF
	}
	var b []byte
	err := guard(func() (err error) {
		b, err = r.t.file.chunk(r.m.ID, r.number)
		return err
	})
	r.t.s.c.Gate.Wait()
	switch {
	case err != nil && !errors.Is(err, ErrCorrupt):
		return nil, fmt.Errorf("read snapshot: %w", err)
	case err != nil:
		return nil, r.damaged(err.Error())
	case b == nil && !r.t.has(r.m):
		return nil, errSnapshotGone
	case b == nil:
		return nil, r.damaged(fmt.Sprintf("lacks chunk %d", r.number))
	case len(b) <= 8 || int64(len(b)-8) > r.m.Size-r.read || binary.BigEndian.Uint64(b) != chunkSum(r.m.ID, r.number, b[8:]):
		return nil, r.damaged(fmt.Sprintf("has a damaged chunk %d", r.number))
	}
	b = b[8:]
	_, _ = r.sum.Write(b) // never fails
	r.number++
	r.read += int64(len(b))
	return b, nil
}

func (r *snapReader) damaged(what string) error {
	err := corruptf(snapFileName, "snapshot %q %s", r.m.ID, what)
	if r.t.has(r.m) {
		return r.t.s.fail(err)
	}
	return err
}

// has reports whether a snapshot is still kept.
func (t *snapStore) has(m *snapMeta) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Contains(t.live, m)
}

// Close ends the reader. It holds nothing that needs releasing.
func (r *snapReader) Close() error {
	if r.err == nil {
		r.err = errors.New("snapshot reader is closed")
		r.rest = nil
	}
	return nil
}
