package state

import (
	"errors"
	"fmt"
	"math"

	"github.com/OneOfOne/xxhash"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

// checker collects violations of invariants.
type checker struct {
	*State
	errs []error
}

func (c *checker) want(ok bool, format string, args ...any) {
	if !ok {
		c.errs = append(c.errs, fmt.Errorf(format, args...))
	}
}

// Check returns every violation of an invariant that it finds, joined, or nil. It reads the whole state.
func (s *State) Check() error {
	c := &checker{State: s}
	c.checkEntries()
	c.checkSessions()
	c.checkLocks()
	c.checkIndex()
	c.checkOpens()
	c.want(len(c.key) == 0 || len(c.key) == keySize, "a key of %d bytes", len(c.key))
	c.want(0 < s.level && s.level <= math.MaxUint32, "feature level %d", s.level)
	c.want(s.mark.Index <= s.index && s.mark.Index%markEvery == 0, "mark at %d, index %d", s.mark.Index, s.index)
	return errors.Join(c.errs...)
}

// checkEntries looks at every entry, of which there may be millions: it formats nothing for those that are sound.
func (c *checker) checkEntries() {
	n, size, ephemerals := 0, int64(0), 0
	root := c.entry("/")
	lists := c.entry(aclDir)
	c.want(c.guarded == (lists != nil && lists.dir), "ACLs are on: %v, and %s is %+v", c.guarded, aclDir, lists)
	c.want(root != nil && root.dir && !root.ephemeral, "no root directory")
	parent := root // of the last entry: siblings stand side by side
	c.entries.all(func(key string, e *entry) bool {
		if !canonical(e.path) || !isTreeKey(key, e.path) {
			c.want(false, "entry %q is under key %q", e.path, key)
			return true
		}
		if e.path != "/" {
			n++
			size += e.bytes()
			if up := parentOf(e.path); parent == nil || parent.path != up {
				parent = c.entry(up)
			}
			if parent == nil || !parent.dir {
				c.want(false, "%s has no directory above it", e.path)
			}
		}
		if e.session != 0 {
			ephemerals++
			c.want(e.ephemeral, "permanent entry %s has session %d", e.path, e.session)
			c.want(c.sessions.has(key64(e.session)), "%s outlived session %d", e.path, e.session)
			c.want(c.ephemerals.has(key64(e.session)+e.path), "%s is unknown to session %d", e.path, e.session)
		}
		if why := c.unsound(e); why != "" {
			c.want(false, "%s: %s: %+v", e.path, why, e.stat())
		}
		return true
	})
	c.want(n == c.counts.Entries, "%d entries counted, %d found", c.counts.Entries, n)
	c.want(size == c.counts.Bytes, "%d bytes counted, %d found", c.counts.Bytes, size)
	c.want(ephemerals == c.ephemerals.len(), "%d ephemeral entries indexed, %d found", c.ephemerals.len(), ephemerals)
}

// checkIndex looks whether the index would mislead a reader of this state, which need not be the newest.
func (c *checker) checkIndex() {
	if c.hint == nil {
		return
	}
	c.entries.all(func(_ string, e *entry) bool {
		if c.find(e.path) != e {
			c.want(false, "%s: the index holds another record", e.path)
		}
		return true
	})
	for path := range c.hint.All() {
		if c.find(path) != c.entry(path) {
			c.want(false, "%s: the index holds an entry that is not there", path)
		}
	}
}

// unsound says what is wrong with an entry's own record, or "".
func (c *checker) unsound(e *entry) string {
	switch {
	case e.instance == 0 || e.instance > e.revision || e.revision > c.revision:
		return "made or changed by commands to come"
	case e.generation > e.revision || e.lockGen > e.revision || e.aclGen > e.revision:
		return "a number beyond its revision"
	case c.abandoned(e):
		return "ephemeral, and nothing keeps it"
	case e.acl != nil && (*e.acl == command.ACL{} || !areListNames(*e.acl)):
		return "bad ACL names"
	}
	if !e.dir {
		switch { // that nothing is below it, the entries below would tell
		case e.children != 0:
			return "a file with children"
		case e.checksum != xxhash.Checksum64(e.data):
			return "wrong checksum"
		case e.generation < e.instance:
			return "written before it was made"
		}
		return ""
	}
	children := 0
	c.children(e.path, func(*entry) { children++ })
	switch {
	case children != e.children:
		return fmt.Sprintf("%d children found", children)
	case len(e.data) > 0 || e.checksum != 0 || e.generation != 0:
		return "a directory with contents"
	}
	return ""
}

func (c *checker) checkSessions() {
	c.sessions.all(func(key string, s *session) bool {
		c.want(key == key64(s.id) && s.id != 0, "session %d is under key %x", s.id, key)
		c.want(len(s.principal) <= principalMax, "session %d: a principal of %d bytes", s.id, len(s.principal))
		floor, _ := c.floors.get(slotKey(s.slot))
		c.want(s.id <= floor && s.slot < slotsMax, "session %d is above the floor %d of slot %d", s.id, floor, s.slot)
		c.want(0 < s.opened && s.opened <= c.revision, "session %d was opened at %d of %d", s.id, s.opened, c.revision)
		size, last, waits := 0, uint64(0), 0
		for _, a := range s.answers {
			size += len(a.raw)
			c.want(a.seq > last && a.seq >= s.acked, "session %d: answer %d after %d, acknowledged below %d", s.id, a.seq, last, s.acked)
			last = a.seq
			var r command.Result
			rest, err := command.DecodeResult(a.raw, &r)
			c.want(err == nil && len(rest) == 0, "session %d: answer %d: %v", s.id, a.seq, err)
		}
		c.owners.prefix(key, func(_ string, o *owner) bool {
			if !o.held() {
				waits++
				_, answered := s.search(o.seq)
				c.want(!answered, "session %d: %d waits and has an answer", s.id, o.seq)
			}
			return true
		})
		c.want(size == s.bytes, "session %d: %d bytes of answers counted, %d found", s.id, s.bytes, size)
		c.want(waits == s.waits, "session %d: %d waiting commands counted, %d found", s.id, s.waits, waits)
		return true
	})
	c.want(c.sessions.len() == c.counts.Sessions, "%d sessions counted, %d found", c.counts.Sessions, c.sessions.len())

	n := uint32(0)
	c.slots.all(func(key string, v *slot) bool {
		at, ok := c.nodes.get(v.node)
		c.want(ok && at == n && key == slotKey(n), "slot %d of node %q is under key %x, its node has %d", n, v.node, key, at)
		n++
		return true
	})
	c.want(c.nodes.len() == int(n) && n <= slotsMax, "%d nodes in %d slots", c.nodes.len(), n)
}

func (c *checker) checkLocks() {
	held, waiting, shut := 0, 0, 0
	c.locks.all(func(path string, l *lock) bool {
		c.want(fits(path), "lock at %q", path)
		c.want(l.holders > 0 || l.waiters > 0 || l.delay > 0, "%s: free lock is remembered", path)
		c.want((l.holders > 0) == (l.mode != 0), "%s: %d holders in mode %v", path, l.holders, l.mode)
		c.want((l.holders > 0 || l.shut()) == (l.generation != 0) && l.generation <= c.revision, "%s: generation %d with %d holders, delay %d", path, l.generation, l.holders, l.delay)
		c.want(l.mode != fence.Exclusive || l.holders == 1, "%s: %d exclusive holders", path, l.holders)
		if l.holders > 0 {
			held++
		}
		if e := c.entry(path); l.holders > 0 && e != nil {
			c.want(e.lockGen == l.generation, "%s: held under %d, its entry says %d", path, l.generation, e.lockGen)
		}
		if l.shut() {
			shut++
			d, ok := c.delays.get(path)
			c.want(ok && *d == *l, "%s: shut but not indexed so", path)
		}
		n, last := 0, uint64(0)
		c.holders.prefix(path+"\x00", func(key string, o *owner) bool {
			n++
			c.checkOwner(key, path, o)
			c.want(o.held() && o.mode == l.mode && o.since >= l.generation, "%s: holder %d/%d in mode %v since %d", path, o.session, o.seq, o.mode, o.since)
			last = o.ticket
			return true
		})
		c.want(n == l.holders, "%s: %d holders counted, %d found", path, l.holders, n)
		n = 0
		c.waiters.prefix(path+"\x00", func(key string, o *owner) bool {
			if n == 0 {
				c.want(!l.admits(o.mode), "%s: %d/%d waits for a lock that it could have", path, o.session, o.seq)
				c.want(o.ticket > last, "%s: %d/%d was overtaken", path, o.session, o.seq)
			}
			n++
			c.checkOwner(key, path, o)
			c.want(!o.held(), "%s: holder %d/%d in the queue", path, o.session, o.seq)
			return true
		})
		c.want(n == l.waiters, "%s: %d waiters counted, %d found", path, l.waiters, n)
		waiting += n
		return true
	})
	c.owners.all(func(key string, o *owner) bool {
		list := &c.waiters
		if o.held() {
			list = &c.holders
		}
		found, _ := list.get(ticketKey(o.path, o.ticket))
		c.want(found == o && key == key128(o.session, o.seq), "owner %d/%d of %s is not in its list", o.session, o.seq, o.path)
		return true
	})
	c.want(c.owners.len() == c.holders.len()+c.waiters.len(), "%d owners, %d holders, %d waiters", c.owners.len(), c.holders.len(), c.waiters.len())
	c.want(held == c.counts.Locks, "%d held locks counted, %d found", c.counts.Locks, held)
	c.want(waiting == c.counts.Waiters && waiting == c.waiters.len(), "%d waiters counted, %d found", c.counts.Waiters, waiting)
	c.want(shut == c.delays.len(), "%d shut locks indexed, %d found", c.delays.len(), shut)
}

func (c *checker) checkOpens() {
	c.opens.all(func(key string, o *open) bool {
		c.want(key == key128(o.session, o.seq) && o.seq > 0, "handle %d/%d is under key %x", o.session, o.seq, key)
		c.want(c.sessions.has(key64(o.session)), "handle %d/%d outlived its session", o.session, o.seq)
		e := c.entry(o.path)
		c.want(e != nil && e.ephemeral && e.instance == o.instance, "handle %d/%d is on instance %d of %s: %+v", o.session, o.seq, o.instance, o.path, e)
		found, _ := c.openers.get(openKey(o))
		c.want(found == o, "handle %d/%d on %s is not indexed", o.session, o.seq, o.path)
		return true
	})
	c.want(c.opens.len() == c.openers.len(), "%d handles, %d indexed", c.opens.len(), c.openers.len())
}

func (c *checker) checkOwner(key, path string, o *owner) {
	c.want(o.path == path && key == ticketKey(path, o.ticket), "%s: owner %d/%d of %s", path, o.session, o.seq, o.path)
	c.want(c.sessions.has(key64(o.session)) && o.seq > 0, "%s: session %d of an owner does not live", path, o.session)
	c.want(0 < o.ticket && o.ticket <= c.revision && o.since <= c.revision, "%s: owner %d/%d of revisions to come", path, o.session, o.seq)
	found, _ := c.owners.get(key128(o.session, o.seq))
	c.want(found == o && (!o.held() || o.instance == 0), "%s: owner %d/%d is not indexed", path, o.session, o.seq)
}
