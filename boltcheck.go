package chubby

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// Bolt's file format, in the byte order of the machine. See bbolt's internal/common.
const (
	boltMagic       = 0xED0CDAED
	boltVersion     = 2
	boltPageHeader  = 16 // id 8, flags 2, count 2, overflow 4
	boltMetaBytes   = 64 // magic, version, page size, flags 4 each; root, sequence, freelist, pages, tx, checksum 8 each
	boltElement     = 16 // branch: pos 4, key 4, page 8; leaf: flags, pos, key, value 4 each
	boltBucketBytes = 16 // root 8, sequence 8; root 0 = a page follows inline
	boltBranch      = 1
	boltLeaf        = 2
	boltInBucket    = 1
	boltNoFreelist  = 1<<64 - 1
	boltDepth       = 64 // deeper than any tree of 2^63 pages
)

// checkBolt reads the whole tree of a bolt file and returns ErrCorrupt unless it is sound: bolt itself panics, in a
// goroutine of its own, or loops, over a tree that is not. It also refuses a file with a damaged meta page, which bolt
// would take for a crash, going back to the state one transaction ago without a word; a crash does not leave one, since
// its 80 bytes lie in one sector. visit is told each bucket, with a nil key, and each key in it, in order; its errors end
// the check.
//
// It does not look at values: their own checksums do. It returns ErrInUse if somebody has the file open.
func checkBolt(path string, visit func(bucket, key []byte) error) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		return corruptf(fileName(path), "the file is empty") // bolt would take it for a new one
	}
	o := boltOptions()
	o.ReadOnly = true
	o.InitialMmapSize = 0
	// Bolt's lock, without its writer's scan of the pages: whoever writes to the file would make it look damaged.
	var db *bbolt.DB
	err = guard(func() (err error) {
		db, err = bbolt.Open(path, 0o600, o)
		return boltError(path, err)
	})
	var sys *os.PathError
	if err != nil && !errors.Is(err, ErrInUse) && !errors.Is(err, ErrCorrupt) && !errors.As(err, &sys) {
		err = corruptf(fileName(path), "%v", err)
	}
	if err != nil {
		return err
	}
	return errors.Join(checkBoltFile(path, visit), guard(db.Close))
}

func fileName(path string) string {
	if filepath.Base(path) == snapFileName {
		return snapFileName
	}
	return logFileName
}

func checkBoltFile(path string, visit func(bucket, key []byte) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // nothing was written
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return checkBoltPages(f, info.Size(), fileName(path), visit)
}

func checkBoltPages(f io.ReaderAt, size int64, name string, visit func(bucket, key []byte) error) error {
	c := &boltChecker{f: f, name: name, visit: visit}
	root, err := c.metas(size)
	if err != nil {
		return err
	}
	return c.page(root, nil, nil, nil, 0)
}

type boltChecker struct {
	f        io.ReaderAt
	name     string
	visit    func(bucket, key []byte) error
	pageSize uint64
	pages    uint64 // page ids are below
	used     []bool // by page id
}

func (c *boltChecker) corrupt(page uint64, format string, args ...any) error {
	return corruptf(c.name, "page %d: %s", page, fmt.Sprintf(format, args...))
}

// metas checks both meta pages and gives the root page of the newer.
func (c *boltChecker) metas(size int64) (root uint64, err error) {
	var newest uint64
	for i := range uint64(2) {
		b := make([]byte, boltPageHeader+boltMetaBytes)
		// The second meta page is one page further, and only the first one says how far that is.
		if _, err := c.f.ReadAt(b, int64(i*c.pageSize)); err != nil {
			return 0, c.corrupt(i, "%v", err)
		}
		m := b[boltPageHeader:]
		u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
		h := fnv.New64a()
		_, _ = h.Write(m[:56]) // never fails
		if u32(m) != boltMagic || u32(m[4:]) != boltVersion || u64(m[56:]) != h.Sum64() {
			return 0, c.corrupt(i, "meta page has a wrong checksum")
		}
		pageSize, tx := uint64(u32(m[8:])), u64(m[48:])
		if pageSize < 1024 || pageSize > 1<<26 || i == 1 && pageSize != c.pageSize {
			return 0, c.corrupt(i, "page size is %d", pageSize)
		}
		c.pageSize = pageSize
		if i == 0 || tx > newest {
			newest = tx
			root, c.pages = u64(m[16:]), u64(m[40:])
			if u64(m[32:]) != boltNoFreelist {
				return 0, c.corrupt(i, "meta page has a list of free pages")
			}
		}
	}
	if c.pages < 3 || c.pages > uint64(size)/c.pageSize {
		return 0, c.corrupt(0, "file of %d bytes should have %d pages", size, c.pages)
	}
	c.used = make([]bool, c.pages)
	c.used[0], c.used[1] = true, true
	return root, nil
}

// page checks the tree below a page of bucket (nil = the root bucket), whose keys must be >= min and < max (nil = any).
func (c *boltChecker) page(id uint64, bucket, min, max []byte, depth int) error {
	if id >= c.pages || depth > boltDepth {
		return c.corrupt(id, "there is no such page")
	}
	b := make([]byte, c.pageSize)
	if _, err := c.f.ReadAt(b, int64(id*c.pageSize)); err != nil {
		return c.corrupt(id, "%v", err)
	}
	overflow := uint64(binary.NativeEndian.Uint32(b[12:]))
	if got := binary.NativeEndian.Uint64(b); got != id || overflow >= c.pages-id {
		return c.corrupt(id, "header has id %d and %d more pages", got, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if c.used[i] {
			return c.corrupt(i, "used twice")
		}
		c.used[i] = true
	}
	if overflow > 0 {
		b = make([]byte, (overflow+1)*c.pageSize)
		if _, err := c.f.ReadAt(b, int64(id*c.pageSize)); err != nil {
			return c.corrupt(id, "%v", err)
		}
	}
	return c.elements(id, b, bucket, min, max, depth)
}

// elements checks the elements of a page, which may be an inline one.
func (c *boltChecker) elements(id uint64, b, bucket, min, max []byte, depth int) error {
	flags, count := binary.NativeEndian.Uint16(b[8:]), int(binary.NativeEndian.Uint16(b[10:]))
	if flags != boltBranch && flags != boltLeaf || flags == boltBranch && count == 0 ||
		boltPageHeader+count*boltElement > len(b) {
		return c.corrupt(id, "header has flags %#x and %d elements", flags, count)
	}
	keys := make([][]byte, count)
	for i := range keys {
		e := b[boltPageHeader+i*boltElement:]
		pos, size := binary.NativeEndian.Uint32(e), binary.NativeEndian.Uint32(e[4:])
		if flags == boltLeaf {
			pos, size = binary.NativeEndian.Uint32(e[4:]), binary.NativeEndian.Uint32(e[8:])
		}
		end := uint64(pos) + uint64(size)
		if flags == boltLeaf {
			end += uint64(binary.NativeEndian.Uint32(e[12:]))
		}
		if end > uint64(len(e)) {
			return c.corrupt(id, "element %d reaches beyond the page", i)
		}
		keys[i] = e[pos : uint64(pos)+uint64(size)]
		switch {
		case size == 0:
			return c.corrupt(id, "element %d has no key", i)
		case i == 0 && min != nil && bytes.Compare(keys[i], min) < 0,
			i > 0 && bytes.Compare(keys[i], keys[i-1]) <= 0,
			max != nil && bytes.Compare(keys[i], max) >= 0:
			return c.corrupt(id, "key of element %d is out of order", i)
		}
	}
	for i, key := range keys {
		e := b[boltPageHeader+i*boltElement:]
		if flags == boltBranch {
			next := max
			if i+1 < count {
				next = keys[i+1]
			}
			if err := c.page(binary.NativeEndian.Uint64(e[8:]), bucket, key, next, depth+1); err != nil {
				return err
			}
			continue
		}
		value := e[uint64(binary.NativeEndian.Uint32(e[4:]))+uint64(len(key)):][:binary.NativeEndian.Uint32(e[12:])]
		if err := c.leaf(id, binary.NativeEndian.Uint32(e), bucket, key, value, depth); err != nil {
			return err
		}
	}
	return nil
}

// leaf checks one element of a leaf: a bucket in the root bucket, else a key.
func (c *boltChecker) leaf(id uint64, flags uint32, bucket, key, value []byte, depth int) error {
	if bucket != nil {
		if flags != 0 {
			return c.corrupt(id, "key has flags %#x", flags)
		}
		return c.visit(bucket, key)
	}
	if flags != boltInBucket || len(value) < boltBucketBytes {
		return c.corrupt(id, "bucket has flags %#x and %d bytes", flags, len(value))
	}
	if err := c.visit(key, nil); err != nil {
		return err
	}
	if root := binary.NativeEndian.Uint64(value); root != 0 {
		return c.page(root, key, nil, nil, depth+1)
	}
	inline := value[boltBucketBytes:]
	if len(inline) < boltPageHeader || binary.NativeEndian.Uint16(inline[8:]) != boltLeaf {
		return c.corrupt(id, "inline bucket is no leaf")
	}
	return c.elements(id, inline, key, nil, nil, depth+1)
}

// logFileChecker gives a visitor that refuses what does not belong into log.db, and ends with what is missing.
func logFileChecker() (visit func(bucket, key []byte) error, end func() error) {
	var logs, conf bool
	var last uint64
	visit = func(bucket, key []byte) error {
		switch {
		case bytes.Equal(bucket, boltConf):
			conf = true
		case !bytes.Equal(bucket, boltLogs):
			return corruptf(logFileName, "there is an unknown bucket %q", bucket)
		case key == nil:
			logs = true
		case len(key) != 8:
			return corruptf(logFileName, "there is a key %x in the log", key)
		default:
			index := binary.BigEndian.Uint64(key)
			if index == 0 || last > 0 && index != last+1 {
				return corruptf(logFileName, "there is nothing between entries %d and %d", last, index)
			}
			last = index
		}
		return nil
	}
	end = func() error {
		if !logs || !conf {
			return corruptf(logFileName, "a bucket is missing")
		}
		return nil
	}
	return visit, end
}

// checkSnapKey is a visitor that refuses what does not belong into snap.db.
func checkSnapKey(_, key []byte) error {
	if key != nil && len(key) != 8 && !bytes.Equal(key, boltMeta) {
		return corruptf(snapFileName, "there is a key %q in a snapshot", key)
	}
	return nil
}
