package recipes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/chubbygo/chubby"
)

// Group is a set of members that know each other, each with an ID and some metadata: an address, a version, a load. It
// serves for membership, for service discovery and as a name service.
//
// A member is there from Join until Leave or the end of its session, which Join opens for it. So a member that crashed
// is seen for as long as the session's lease, and no longer than it takes to end that; one that is in Members may have
// crashed meanwhile, which nothing can exclude. Who must be the only one to do something takes a lock, best in the
// member's own session: see [Membership.Session].
//
// A membership that was lost is not renewed by itself, since whatever the process did as a member may need to begin
// anew. To be a member for as long as a process runs, join again:
//
//	for ctx.Err() == nil {
//		m, err := group.Join(ctx, id, metadata)
//		if err != nil { ... }
//		select {
//		case <-m.Done(): // lost: join again
//		case <-ctx.Done():
//			m.Leave(context.WithoutCancel(ctx))
//		}
//	}
//
// The group is the directory at path, which stays, with an ephemeral file for each member. A program that makes such a
// file in a session of its own is a member too; other entries in the directory are not seen.
type Group struct {
	c    *chubby.Client
	path string
}

// Member is one member as the others see it.
type Member struct {
	ID       string
	Metadata []byte // belongs to the caller
	Joined   uint64 // revision of its Join: the least is that of the oldest member, and an ID that joins again gets another
	Revision uint64 // of its last Join or Update
}

// NewGroup names the group at path.
func NewGroup(c *chubby.Client, path string) (*Group, error) {
	if err := checkPlace("new group", c, path); err != nil {
		return nil, err
	}
	return &Group{c, path}, nil
}

// Join makes the caller a member. An id is a path's part of 1 to 255 printable bytes, and one member's at a time: while it
// is taken, maybe by the caller's own predecessor which crashed a moment ago, Join waits for it. If ctx ends meanwhile,
// the error matches chubby.ErrExists too.
//
// Whenever it returns an error the caller is no member; if its place could not be given back within a second of the end
// of ctx, it goes with its session's lease. Join returns chubby.ErrTooLarge for metadata beyond Limits.ValueBytes.
func (g *Group) Join(ctx context.Context, id string, metadata []byte) (*Membership, error) {
	if err := checkName("id", id); err != nil {
		return nil, fail("join", g.path, err)
	}
	session, err := g.c.NewSession(ctx, chubby.SessionOptions{Name: id})
	if err != nil {
		return nil, fail("join", g.path, err)
	}
	m := &Membership{g: g, session: session, id: id, turn: make(chan struct{}, 1)}
	if err := m.join(ctx, metadata); err != nil {
		end(ctx, session)
		return nil, fail("join", g.path, err)
	}
	return m, nil
}

// Members lists the members, sorted by ID. Whoever joined before the call is in the list, unless it is gone.
func (g *Group) Members(ctx context.Context) ([]Member, error) {
	list, _, err := g.members(ctx)
	return list, fail("list members", g.path, err)
}

// members returns also a revision up to which the list has everything.
func (g *Group) members(ctx context.Context) (list []Member, revision uint64, err error) {
	entries, err := g.c.List(ctx, g.path)
	if errors.Is(err, chubby.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for _, e := range entries {
		if e.Stat.Dir || !e.Stat.Ephemeral {
			continue
		}
		revision = max(revision, e.Stat.Revision)
		// From memory that is at least as new as the list: this Client has seen that.
		e, err := g.c.FastGet(ctx, e.Path)
		switch {
		case errors.Is(err, chubby.ErrNotFound) || errors.Is(err, chubby.ErrIsDir):
			continue
		case err != nil:
			return nil, 0, err
		case e.Stat.Ephemeral:
			list = append(list, Member{base(e.Path), e.Data, e.Stat.Instance, e.Stat.Generation})
		}
	}
	return list, revision, nil
}

// Watch tells who the members are: first as it is, then whenever that has changed, the metadata included. It yields all
// of them each time, sorted by ID. States that follow each other faster than the loop takes them may be left out, the
// last one never is; a change of many members at once may show in parts. It goes on through changes of the cell leader; while this node is cut off it tells nothing new.
//
// The loop ends with exactly one error, unless its body breaks off: the error of ctx, chubby.ErrClosed, or from the start
// those of chubby.Client.Watch. It can be looped over again, and begins anew each time. Lists belong to the caller.
func (g *Group) Watch(ctx context.Context) iter.Seq2[[]Member, error] {
	return func(yield func([]Member, error) bool) {
		var last []Member
		var seen uint64
		told := false
		look := func() (bool, error) {
			list, revision, err := g.members(ctx)
			if err != nil {
				return false, err
			}
			seen = max(seen, revision)
			if told && equal(list, last) {
				return false, nil
			}
			told, last = true, make([]Member, len(list))
			for i, m := range list { // a copy: the loop's body may change its own
				last[i] = m
				last[i].Metadata = bytes.Clone(m.Metadata)
			}
			return !yield(list, nil), nil
		}
		err := follow(ctx, g.c, g.path, chubby.WatchOptions{}, look, func(e chubby.Event) (bool, error) {
			if e.More || e.Kind == chubby.EventLeaderChanged || e.Revision <= seen {
				return false, nil // another comes, or it is in the list already
			}
			return look()
		})
		if err != nil {
			yield(nil, fail("watch group", g.path, err))
		}
	}
}

func equal(a, b []Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		// Revisions tell contents apart, and are cheaper to compare.
		if a[i].ID != b[i].ID || a[i].Joined != b[i].Joined || a[i].Revision != b[i].Revision {
			return false
		}
	}
	return true
}

// Membership is the caller's own place in a group. All methods are safe for concurrent use.
type Membership struct {
	g       *Group
	session *chubby.Session
	id      string
	joined  uint64        // Instance of the file
	turn    chan struct{} // cap 1: whoever put something in may use what follows
	written uint64        // Generation of the file, as far as is known
}

func (m *Membership) path() string { return m.g.path + "/" + m.id }

func (m *Membership) join(ctx context.Context, metadata []byte) error {
	for {
		stat, err := m.session.Create(ctx, m.path(), metadata, chubby.CreateOptions{Ephemeral: true})
		if err == nil {
			m.joined, m.written = stat.Instance, stat.Generation
			return nil
		}
		if !errors.Is(err, chubby.ErrExists) {
			return err
		}
		err = follow(ctx, m.g.c, m.path(), chubby.WatchOptions{}, func() (bool, error) {
			_, err := m.g.c.Stat(ctx, m.path())
			if errors.Is(err, chubby.ErrNotFound) {
				return true, nil
			}
			return false, err
		}, func(e chubby.Event) (bool, error) { return e.Kind == chubby.EventDeleted, nil })
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: id %q: %w", chubby.ErrExists, m.id, err)
		}
		if err != nil {
			return err
		}
	}
}

// Update replaces the metadata. Updates that are called at the same time take effect one after the other. It returns
// chubby.ErrSessionExpired when the membership is gone, and never writes to a successor's place. With
// chubby.ErrUncertain the metadata may be the new or the old; the next Update settles it.
func (m *Membership) Update(ctx context.Context, metadata []byte) error {
	select {
	case m.turn <- struct{}{}:
		defer func() { <-m.turn }()
	case <-ctx.Done():
		return fail("update", m.path(), ctx.Err())
	}
	for {
		stat, err := m.g.c.Set(ctx, m.path(), metadata, chubby.IfGeneration(m.written))
		if err == nil {
			m.written = stat.Generation
			return nil
		}
		// An Update before this one may have been done without our learning of it.
		if errors.Is(err, chubby.ErrConflict) {
			stat, err = m.g.c.Stat(ctx, m.path())
			if err == nil && stat.Instance == m.joined {
				m.written = stat.Generation
				continue
			}
		}
		if err == nil || errors.Is(err, chubby.ErrNotFound) {
			err = fmt.Errorf("%w: no member any more", chubby.ErrSessionExpired)
		}
		return fail("update", m.path(), err)
	}
}

// Leave ends the membership and its session. It may be called again. If ctx ends before the cell has answered it returns
// chubby.ErrUncertain, and the others see this member until its lease is over at the latest.
func (m *Membership) Leave(ctx context.Context) error {
	return fail("leave", m.path(), m.session.Close(ctx))
}

// ID returns the member's ID.
func (m *Membership) ID() string { return m.id }

// Session returns the member's own session. Locks and ephemeral entries made in it share the membership's fate.
func (m *Membership) Session() *chubby.Session { return m.session }

// Done is closed when the membership is gone for good: left, or lost with its session.
func (m *Membership) Done() <-chan struct{} { return m.session.Done() }

// Err returns nil until Done is closed, then chubby.ErrSessionExpired, or chubby.ErrClosed after Leave.
func (m *Membership) Err() error { return m.session.Err() }
