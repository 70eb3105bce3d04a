package chubby

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/hook"
)

// Tables of a memory disk.
const (
	diskLog   = "log"   // index, 8 bytes big-endian -> entry
	diskConf  = "conf"  // name -> record
	diskChunk = "chunk" // snapshot id, NUL, number, 8 bytes big-endian -> chunk
	diskMeta  = "snap"  // snapshot id -> description
)

// openDisk takes a memory disk, a new one if there is none in c, and makes its first records if there are none. It sets
// c.Boot, and c.Sync for a new one, which ends with its process.
func openDisk(c *storeConfig, first map[string][]byte) (logFile, snapFile, bool, error) {
	d := c.Disk
	if d == nil {
		d = new(hook.Disk)
		c.Sync = SyncAlways
	}
	h, err := d.Open()
	if err != nil {
		return nil, nil, false, fmt.Errorf("%w: memory disk", ErrInUse)
	}
	old, err := h.Keys(diskConf, "")
	created := err == nil && len(old) == 0
	if created {
		var changes []hook.DiskChange
		for k, v := range first {
			changes = append(changes, hook.DiskChange{Table: diskConf, Key: k, Value: v})
		}
		err = h.Write(true, changes...)
	}
	c.Boot = h.Boot()
	file := &diskLogFile{h: h, relaxed: c.Sync != SyncAlways}
	if err == nil {
		_, err = checkBoot(file, c.Boot, c.Lossy)
	}
	if err != nil {
		return nil, nil, false, errors.Join(err, h.Close())
	}
	return file, diskSnapFile{h}, created, nil
}

// isClosed reports whether err says that a file is not open any more.
func isClosed(err error) bool {
	return errors.Is(err, hook.ErrDiskGone) || isBoltClosed(err)
}

func diskKey(index uint64) string {
	return string(binary.BigEndian.AppendUint64(nil, index))
}

// diskLogFile is a logFile on a memory disk.
type diskLogFile struct {
	h       *hook.DiskHandle
	relaxed bool

	mu       sync.Mutex
	unsynced int // bytes of entries since the last sync: a journal syncs when it changes sides, this as often
}

func (f *diskLogFile) FirstIndex() (uint64, error) {
	first, _, err := f.h.Ends(diskLog)
	return diskIndex(first), err
}

func (f *diskLogFile) LastIndex() (uint64, error) {
	_, last, err := f.h.Ends(diskLog)
	return diskIndex(last), err
}

func diskIndex(key string) uint64 {
	if len(key) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64([]byte(key))
}

func (f *diskLogFile) GetLog(index uint64, e *raft.Log) error {
	b, err := f.h.Get(diskLog, diskKey(index))
	if err != nil {
		return err
	}
	if b == nil {
		return raft.ErrLogNotFound
	}
	return decodeDiskEntry(b, e)
}

func (f *diskLogFile) StoreLog(e *raft.Log) error { return f.StoreLogs([]*raft.Log{e}) }

func (f *diskLogFile) StoreLogs(entries []*raft.Log) error {
	changes := make([]hook.DiskChange, len(entries))
	size := 0
	for i, e := range entries {
		changes[i] = hook.DiskChange{Table: diskLog, Key: diskKey(e.Index), Value: encodeDiskEntry(e)}
		size += len(changes[i].Value)
	}
	if !f.relaxed {
		return f.h.Write(true, changes...)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.unsynced += size
	full := f.unsynced >= journalSide
	if full {
		f.unsynced = 0
	}
	return f.h.Write(full, changes...)
}

func (f *diskLogFile) Sync() error { return f.h.Write(true) }

func (f *diskLogFile) DeleteRange(from, to uint64) error {
	var changes []hook.DiskChange
	for i := from; i <= to; i++ {
		changes = append(changes, hook.DiskChange{Table: diskLog, Key: diskKey(i)})
	}
	return f.h.Write(true, changes...)
}

func (f *diskLogFile) Get(key []byte) ([]byte, error) {
	b, err := f.h.Get(diskConf, string(key))
	if err == nil && b == nil {
		err = keyNotFound
	}
	return slices.Clone(b), err
}

func (f *diskLogFile) Set(key, value []byte) error {
	return f.h.Write(true, hook.DiskChange{Table: diskConf, Key: string(key), Value: slices.Clone(value)})
}

func (f *diskLogFile) Close() error { return f.h.Close() }

// encodeDiskEntry: index, term, nanoseconds of AppendedAt, type, length of the extensions, extensions, data.
func encodeDiskEntry(e *raft.Log) []byte {
	b := make([]byte, 0, 27+len(e.Extensions)+len(e.Data))
	b = binary.BigEndian.AppendUint64(b, e.Index)
	b = binary.BigEndian.AppendUint64(b, e.Term)
	var at int64
	if !e.AppendedAt.IsZero() {
		at = e.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = append(b, byte(e.Type))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Extensions)))
	b = append(b, e.Extensions...)
	return append(b, e.Data...)
}

func decodeDiskEntry(b []byte, e *raft.Log) error {
	if len(b) < 27 || len(b)-27 < int(binary.BigEndian.Uint16(b[25:])) {
		return errors.New("too short")
	}
	*e = raft.Log{Index: binary.BigEndian.Uint64(b), Term: binary.BigEndian.Uint64(b[8:]), Type: raft.LogType(b[24])}
	if at := int64(binary.BigEndian.Uint64(b[16:])); at != 0 {
		e.AppendedAt = time.Unix(0, at)
	}
	n := 27 + int(binary.BigEndian.Uint16(b[25:]))
	e.Extensions, e.Data = slices.Clone(b[27:n]), slices.Clone(b[n:])
	return nil
}

// diskSnapFile is a snapFile on a memory disk. Its chunks are synced by complete, so that a crash before that drops them.
type diskSnapFile struct{ h *hook.DiskHandle }

func (f diskSnapFile) list() ([]snapRecord, error) {
	ids, err := f.h.Keys(diskMeta, "")
	if err != nil {
		return nil, err
	}
	var records []snapRecord
	complete := make(map[string]bool)
	for _, id := range ids {
		meta, err := f.h.Get(diskMeta, id)
		if err != nil {
			return nil, err
		}
		records = append(records, snapRecord{id, slices.Clone(meta)})
		complete[id] = true
	}
	chunks, err := f.h.Keys(diskChunk, "")
	if err != nil {
		return nil, err
	}
	for _, key := range chunks {
		if id, _, _ := strings.Cut(key, "\x00"); !complete[id] {
			complete[id] = true
			records = append(records, snapRecord{id: id})
		}
	}
	return records, nil
}

func (f diskSnapFile) append(id string, from uint64, chunks [][]byte) error {
	var changes []hook.DiskChange
	for i, c := range chunks {
		changes = append(changes, hook.DiskChange{Table: diskChunk, Key: id + "\x00" + diskKey(from+uint64(i)), Value: slices.Clone(c)})
	}
	return f.h.Write(false, changes...)
}

func (f diskSnapFile) complete(id string, meta []byte) error {
	return f.h.Write(true, hook.DiskChange{Table: diskMeta, Key: id, Value: slices.Clone(meta)})
}

func (f diskSnapFile) remove(id string) error {
	keys, err := f.h.Keys(diskChunk, id+"\x00")
	if err != nil {
		return err
	}
	changes := []hook.DiskChange{{Table: diskMeta, Key: id}}
	for _, k := range keys {
		changes = append(changes, hook.DiskChange{Table: diskChunk, Key: k})
	}
	return f.h.Write(true, changes...)
}

func (f diskSnapFile) chunk(id string, number uint64) ([]byte, error) {
	b, err := f.h.Get(diskChunk, id+"\x00"+diskKey(number))
	return slices.Clone(b), err
}

// reset removes incomplete snapshots.
func (f diskSnapFile) reset() error {
	records, err := f.list()
	for _, r := range records {
		if err == nil && r.meta == nil {
			err = f.remove(r.id)
		}
	}
	return err
}

func (f diskSnapFile) close() error { return nil } // the log's handle owns the disk
