package chubby

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/state"
)

// Recover makes the node whose data directory is dir the only member of its cell, in a new epoch. It is for a cell that has
// lost a majority of its voters for good, and works on files only: the node must be closed. Open it then with the options
// that it had; others join it, with empty directories, by Options.Join.
//
// It takes a node, too, that Open refuses because its machine went down under a relaxed Options.Sync: without the entries
// that went with it.
//
// The cell has what this node had applied and what stands in its log. The last of that may never have been acknowledged, and
// what was acknowledged without this node is lost: of several survivors take the one with the greatest
// Status.AppliedIndex. Use Recover on one of them only, and never open the others again but with empty directories.
//
// The epoch is new (see Sequencer), so every older sequencer is stale and members of the old epoch are refused. Sessions
// and locks of the past are gone, and ephemeral files with them. Stop the holders of old locks: they may still believe in
// them. A new epoch takes its number from this machine's clock; see docs/guarantees.md.
//
// It returns ErrInUse while the node is open, ErrRemoved if it was removed from its cell, ErrCorrupt for damage, and the errors of the file system. Until it is done
// nothing has changed: when it fails, or the process dies, the node is what it was, and Recover can be used again.
func Recover(dir string) error {
	err := errors.New("the path is empty")
	if dir != "" {
		// Nothing is made where nothing is.
		if _, err = os.Stat(filepath.Join(dir, logFileName)); err == nil {
			err = recoverStore(storeConfig{Dir: dir, Whoever: true, Lossy: true})
		}
	}
	if err != nil {
		return &Error{Op: "recover", Path: dir, Err: err}
	}
	return nil
}

// recoverStore is Recover for what a store is kept in.
func recoverStore(c storeConfig) error {
	s, err := openStore(c)
	if err != nil {
		return err
	}
	err = s.succeed()
	if err == nil {
		err = s.boot.forgive()
	}
	if err := errors.Join(err, s.close()); err != nil {
		return err
	}
	// Opening it drops what the new snapshot replaced, and proves that it can be opened.
	if s, err = openStore(c); err != nil {
		return err
	}
	return s.close()
}

// succeed makes the node the only member of its cell, with everything that it has.
func (s *store) succeed() error {
	r := s.identityRecord()
	if r.Removed {
		return errWasRemoved // perhaps long before the rest was lost
	}
	if r.Epoch == 0 || s.snap.newest() == 0 && s.lastIndex() == 0 {
		return fmt.Errorf("%w: the node has never had anything of a cell; there is nothing to recover", ErrWrongCell)
	}
	root, conf, err := s.latest()
	if err != nil {
		return err
	}
	addr := r.ID
	for _, m := range conf.Servers {
		if string(m.ID) == r.ID+"."+r.Incarnation && m.Address != "" {
			addr = string(m.Address)
		}
	}
	term, _ := s.vote.state()
	next, err := root.NewEpoch(epochAfter(root.Epoch()), max(term, root.Term()))
	if err != nil {
		return corruptf(logFileName, "%v", err)
	}
	return s.reign(next, addr)
}

// latest gives the state after everything that is stored, committed or not, and the last configuration in it.
func (s *store) latest() (*state.State, raft.Configuration, error) {
	r := s.identityRecord()
	root := state.New(r.Cell, r.Epoch)
	var conf raft.Configuration
	if newest := s.snap.head(); newest.Index > 0 {
		conf = newest.conf
		_, from, err := s.snap.Open(newest.ID)
		if err != nil {
			return nil, conf, err
		}
		root, err = state.Read(from)
		if err := errors.Join(err, from.Close()); err != nil {
			return nil, conf, corruptf(snapFileName, "snapshot %q: %v", newest.ID, err)
		}
		if root.Cell() != r.Cell || root.Epoch() != r.Epoch || root.Index() > newest.Index {
			return nil, conf, corruptf(snapFileName, "snapshot %q of index %d is the state of cell %q, epoch %d, at index %d", newest.ID, newest.Index, root.Cell(), root.Epoch(), root.Index())
		}
	}
	m := state.NewMachine(root)
	from := root.Index()
	if newest := s.snap.head(); newest.Index > from {
		m.Advance(newest.Index, newest.Term) // raft's own entries do not reach the state
		from = newest.Index
	}
	for index, last := from+1, s.lastIndex(); index <= last; index++ {
		var e raft.Log
		err := guard(func() (err error) {
			if _, err = s.log.read(index, &e); err == nil && e.Type == raft.LogConfiguration {
				conf = raft.DecodeConfiguration(e.Data) // panics on what is none
			}
			return err
		})
		if err == nil {
			err = execute(m, &e)
		}
		if err != nil {
			return nil, conf, fmt.Errorf("entry %d of term %d: %w", index, e.Term, err)
		}
		m.Publish() // its events are nobody's
	}
	root, _ = m.Publish()
	return root, conf, speaks(root, featureLevel)
}

// execute applies an entry whose results nobody waits for.
func execute(m *state.Machine, l *raft.Log) error {
	m.Advance(l.Index, l.Term)
	if l.Type != raft.LogCommand {
		return nil
	}
	e, err := command.ParseEntry(l.Data)
	for err == nil {
		var raw []byte
		var ok bool
		if raw, ok, err = e.Next(); err == nil && !ok {
			return nil
		}
		if err == nil {
			if _, err := understood(m, l, raw, featureLevel); err != nil {
				return err
			}
		}
	}
	return undecodable(err)
}
