package chubby

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/backup"
	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/state"
)

// Backup writes a backup of the whole cell to w, from which Restore makes a cell again. It is the state of one moment: it
// has everything that was acknowledged, by any node, before the call, and nothing of a write is half there. It may be
// taken from any node; the cell goes on meanwhile, and pays with the memory for what it changes in the time.
//
// Every byte is under a checksum and the end has the totals, so Restore tells a damaged or cut backup from a whole one. A
// backup is whole only if Backup returned nil. It holds all contents of the cell, and the key under which texts of handles
// are made: keep it as the data itself.
//
// It returns the errors of Get, and those of w. ctx is looked at between writes to w; a write that blocks is w's affair.
func (n *Node) Backup(ctx context.Context, w io.Writer) error {
	if err := n.backup(ctx, w); err != nil {
		return &Error{Op: "backup", Path: n.opts.ID, Err: err}
	}
	return nil
}

func (n *Node) backup(ctx context.Context, w io.Writer) error {
	root, err := n.read(ctx)
	if err != nil {
		return err
	}
	k := backup.NewWriter(contextWriter{ctx, w})
	if _, err := root.WriteTo(k); err != nil {
		return err
	}
	return k.Close()
}

// contextWriter writes until ctx ends.
type contextWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w contextWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

// Restore makes opts.Dir the data directory of a cell that has what the backup in r has. The cell has one member,
// opts.ID, which is then opened with the same opts; others join it with Options.Join. It works on files only and opens no
// node. opts.Cell must be the name of the cell that was backed up.
//
// The cell begins a new epoch (see Sequencer), so every older sequencer is stale and members of the old cell are refused:
// theirs is another cell. Sessions and locks of the past are gone, and ephemeral files with them. All numbers (generations,
// revisions) go on above those of the old cell. Stop the old cell's processes first: what holds a lock there still believes in it.
// A new epoch takes its number from this machine's clock; see docs/guarantees.md.
//
// The directory must be absent or empty, and nothing is ever written over. It returns ErrExists if something is in it,
// ErrCorrupt with the place if the backup is damaged, ErrWrongCell, ErrBadOptions, or the errors of r and of the file
// system. After an error there is nothing that was not there before. If the process dies meanwhile, the directory may be
// left with something in it, which Open and Restore refuse until it is removed.
func Restore(r io.Reader, opts Options) error {
	if err := restore(r, opts.withDefaults()); err != nil {
		return &Error{Op: "restore", Path: opts.Dir, Err: err}
	}
	return nil
}

func restore(r io.Reader, o Options) error {
	if err := o.validate(); err != nil {
		return err
	}
	switch {
	case o.Nonvoter:
		return fmt.Errorf("%w: Nonvoter: the only member of a cell needs its vote", ErrBadOptions)
	case o.Dir == "" && o.Hooks.Disk == nil:
		return fmt.Errorf("%w: Dir: empty; name the directory to make", ErrBadOptions)
	}
	// First what costs nothing; whoever makes the directory looks again.
	if o.Dir != "" {
		if err := wantEmpty(o.Dir, ""); err != nil {
			return err
		}
	}
	root, err := readBackup(r)
	if err != nil {
		return err
	}
	if root.Cell() != o.Cell {
		return fmt.Errorf("%w: the backup is of cell %q, not %q; set Options.Cell to it", ErrWrongCell, root.Cell(), o.Cell)
	}
	if err := speaks(root, featureLevel); err != nil {
		return err
	}
	next, err := root.NewEpoch(epochAfter(root.Epoch()), max(root.Term(), 1))
	if err != nil {
		return fmt.Errorf("%w: backup: %w", ErrCorrupt, err)
	}
	build := func(c storeConfig) error {
		c.ID, c.Cell, c.Fault = o.ID, o.Cell, o.Hooks.Storage
		s, err := openStore(c)
		if err != nil {
			return err
		}
		return errors.Join(s.reign(next, o.address()), s.close())
	}
	if o.Dir == "" {
		disk := new(hook.Disk)
		if err := build(storeConfig{Disk: disk}); err != nil {
			return err
		}
		if err := o.Hooks.Disk.Become(disk); err != nil {
			return fmt.Errorf("%w: %w", ErrExists, err)
		}
		return nil
	}
	return makeWhole(o.Dir, func(dir string) error { return build(storeConfig{Dir: dir}) })
}

// address is where others are told to find a node of these options.
func (o Options) address() string {
	for _, addr := range []string{o.Advertise, o.Listen, o.Peers[o.ID]} {
		if addr != "" {
			return addr
		}
	}
	return o.ID // nobody dials it
}

// readBackup reads a backup to its end. What it returns is what was backed up.
func readBackup(r io.Reader) (*state.State, error) {
	root, err := state.Read(backup.NewReader(r))
	switch {
	case errors.Is(err, backup.ErrFormat), errors.Is(err, state.ErrVersion):
		return nil, fmt.Errorf("%w; use the release that wrote it, or a newer one", err)
	case errors.Is(err, backup.ErrCorrupt), errors.Is(err, state.ErrCorrupt):
		return nil, fmt.Errorf("%w: %w; use another backup", ErrCorrupt, err)
	}
	return root, err
}

// epochAfter is the epoch of a cell that takes the place of one of epoch old. Two cells that take the place of the same one
// have different epochs if the clocks of the machines tell which came later.
func epochAfter(old uint64) uint64 { return max(old+1, epochNow()) }

// reign makes the node the only member of a cell whose state is next, under another incarnation. Nothing counts before the
// identity is written, which is the last step: a snapshot of another epoch is invisible, see snapStore.load. The log that
// the snapshot replaces goes when the store is next opened.
func (s *store) reign(next *state.State, addr string) error {
	old := s.identityRecord()
	var random [16]byte
	_, _ = rand.Read(random[:]) // never fails: it ends the process instead
	r := identityRecord{Format: storeFormat, ID: old.ID, Cell: old.Cell, Incarnation: hex.EncodeToString(random[:]), Epoch: next.Epoch()}
	server := r.ID + "." + r.Incarnation
	r.Founders = []identityServer{{server, addr}}
	if term, _ := s.vote.state(); term < next.Term() {
		if err := s.vote.setTerm(next.Term()); err != nil {
			return err
		}
	}
	alone := raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: raft.ServerID(server), Address: raft.ServerAddress(addr)}}}
	sink, err := s.snap.create(next.Epoch(), raft.SnapshotVersionMax, next.Index(), next.Term(), alone, next.Index())
	if err != nil {
		return err
	}
	if err := (rootSnapshot{next}).Persist(sink); err != nil {
		return err
	}
	return s.setIdentity(r)
}

// restoreTemp is where a directory is built, inside itself: a file system of its own may be mounted there.
const restoreTemp = "restore" + tempSuffix

// wantEmpty returns ErrExists if there is anything in dir but what is named besides. There need be no dir.
func wantEmpty(dir, besides string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != besides {
			return fmt.Errorf("%w: %s is in the directory, and nothing is written over; name another one, or remove what is in it", ErrExists, e.Name())
		}
	}
	return err
}

// makeWhole has build make the files of a node's directory aside, and moves them into place when all of them are whole.
// log.db comes last: without it there is no node. On an error it removes what it made, and nothing else.
func makeWhole(dir string, build func(dir string) error) (err error) {
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			if u := undo[i](); u != nil && !errors.Is(u, fs.ErrNotExist) {
				err = errors.Join(err, u)
			}
		}
	}()
	for missing := dir; ; missing = filepath.Dir(missing) {
		if _, statErr := os.Stat(missing); !errors.Is(statErr, fs.ErrNotExist) {
			break
		}
		undo = append([]func() error{func() error { return os.Remove(missing) }}, undo...)
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	temp := filepath.Join(dir, restoreTemp)
	if err := os.Mkdir(temp, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: another Restore is under way, or died; then remove what is in the directory: %w", ErrExists, err)
		}
		return err
	}
	undo = append(undo, func() error { return os.RemoveAll(temp) })
	if err := wantEmpty(dir, restoreTemp); err != nil {
		return err
	}
	if err := build(temp); err != nil {
		return err
	}
	for _, name := range []string{snapFileName, journalFileName, logFileName} {
		to := filepath.Join(dir, name)
		if name == logFileName {
			if err := syncDir(dir); err != nil {
				return err
			}
		}
		if err := moveNew(filepath.Join(temp, name), to); err != nil {
			return err
		}
		undo = append(undo, func() error { return os.Remove(to) })
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	_ = os.RemoveAll(temp) // else the next open does it
	return nil
}

// moveNew gives a file another name, which nothing must have.
func moveNew(from, to string) error {
	err := os.Link(from, to) // a link, unlike a rename, never replaces anything
	if err == nil {
		return nil
	}
	if _, statErr := os.Lstat(to); statErr == nil {
		return fmt.Errorf("%w: %s has come meanwhile", ErrExists, filepath.Base(to))
	}
	return os.Rename(from, to) // not every file system has links
}
