package recipes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/chubbygo/chubby"
)

const (
	partiesMax = 200 // a round begins in one Txn with a condition for each
	roundsMax  = 16  // outcomes remembered for parties that are slow to ask
)

// DoubleBarrier lets n parties begin together and end together: Enter returns once n have entered, Leave once all of
// those have left. That is a round; the next one begins when n more have entered and the last party of this one is gone.
// More than n may come; they make up later rounds, in the order in which they came.
//
// A party is bound to a session of its own, which Enter opens. One that is lost before the round begins is as if it had
// never come: the others wait for one more. One that is lost after the round began has left, so the others' Leave does
// not wait for it; but it tells all of them the same: ErrBroken, because somebody did not get to its end. That includes a
// caller whose Enter ended with its ctx at the moment when the round began.
//
// Under path stay two small files when everybody is gone, met and left, and the directory parties.
type DoubleBarrier struct {
	c    *chubby.Client
	path string
	n    int
}

// Party is one of the n that entered together.
type Party struct {
	b       *DoubleBarrier
	session *chubby.Session
	round   uint64          // Generation of the met file that began it
	others  map[string]bool // of the round, this one included
}

// met is what the file of that name says: who makes up the present round, and how the ones before ended.
type met struct {
	Parties []string `json:"parties"`
	Ended   []ended  `json:"ended,omitempty"` // newest first
}

type ended struct {
	Round uint64 `json:"round"`
	Lost  int    `json:"lost"`
}

// NewDoubleBarrier names the double barrier at path for n parties, 1 to 200. All parties must use the same n.
func NewDoubleBarrier(c *chubby.Client, path string, n int) (*DoubleBarrier, error) {
	if err := checkPlace("new double barrier", c, path); err != nil {
		return nil, err
	}
	if n < 1 || n > partiesMax {
		return nil, fail("new double barrier", path, fmt.Errorf("%w: n %d: use 1 to %d parties", chubby.ErrBadOptions, n, partiesMax))
	}
	return &DoubleBarrier{c, path, n}, nil
}

// Enter waits until n parties, this one included, have entered. Whenever it returns an error the caller is no party; if
// its place could not be given back within a second of the end of ctx, it goes with its session's lease.
func (b *DoubleBarrier) Enter(ctx context.Context) (*Party, error) {
	session, err := b.c.NewSession(ctx, chubby.SessionOptions{})
	if err != nil {
		return nil, fail("enter", b.path, err)
	}
	p := &Party{b: b, session: session}
	if err := p.enter(ctx); err != nil {
		end(ctx, session)
		return nil, fail("enter", b.path, err)
	}
	return p, nil
}

func (b *DoubleBarrier) metFile() string  { return b.path + "/met" }
func (b *DoubleBarrier) leftFile() string { return b.path + "/left" }
func (b *DoubleBarrier) party(id string) string {
	return b.path + "/parties/" + id
}

func (p *Party) id() string { return strconv.FormatUint(uint64(p.session.ID()), 10) }

func (p *Party) enter(ctx context.Context) error {
	b := p.b
	me, err := p.session.Create(ctx, b.party(p.id()), nil, chubby.CreateOptions{Ephemeral: true})
	if err != nil {
		return err
	}
	before := make(map[string]bool) // parties older than this one that are still there
	// Exactly one party has n-1 before it, and that one begins the round, so the others need not try.
	turn := func() (bool, error) {
		if len(before) != b.n-1 {
			return false, nil
		}
		return false, p.begin(ctx, before)
	}
	return follow(ctx, b.c, b.path, chubby.WatchOptions{Recursive: true}, func() (bool, error) {
		m, e, err := b.readMet(ctx)
		if err != nil || p.joins(m, e) {
			return p.round != 0, err
		}
		parties, err := b.c.List(ctx, b.path+"/parties")
		if err != nil {
			return false, err
		}
		clear(before)
		here := false
		for _, e := range parties {
			if e.Stat.Instance < me.Instance {
				before[base(e.Path)] = true
			}
			here = here || base(e.Path) == p.id()
		}
		if !here {
			return false, errPartyLost
		}
		return turn()
	}, func(e chubby.Event) (bool, error) {
		switch {
		case base(e.Path) == "met" && e.Entry.Data != nil:
			m, err := parseMet(e.Entry)
			return err == nil && p.joins(m, e.Entry), err
		case e.Kind == chubby.EventDeleted && base(e.Path) == p.id():
			return false, errPartyLost
		case e.Kind == chubby.EventDeleted && before[base(e.Path)]:
			delete(before, base(e.Path))
			return turn()
		}
		return false, nil
	})
}

var errPartyLost = fmt.Errorf("%w: this party was lost", chubby.ErrSessionExpired)

// joins notes the round if m has this party in it.
func (p *Party) joins(m met, e chubby.Entry) bool {
	all := make(map[string]bool, len(m.Parties))
	for _, id := range m.Parties {
		all[id] = true
	}
	if all[p.id()] {
		p.round, p.others = e.Stat.Generation, all
	}
	return p.round != 0
}

// begin begins a round of the parties before this one and this one, provided that all are there and that nobody of the
// last round is. If it cannot, an event will tell when to try again.
func (p *Party) begin(ctx context.Context, before map[string]bool) error {
	b := p.b
	last, file, err := b.readMet(ctx)
	if err != nil {
		return err
	}
	for _, id := range last.Parties {
		if before[id] || id == p.id() {
			return nil
		}
	}
	var next met
	if file.Stat.Generation != 0 {
		left, err := b.readLeft(ctx)
		if err != nil {
			return err
		}
		next.Ended = append([]ended{{file.Stat.Generation, len(last.Parties) - left}}, last.Ended...)
		next.Ended = next.Ended[:min(len(next.Ended), roundsMax)]
	}
	next.Parties = append(next.Parties, p.id())
	conds := []chubby.Cond{chubby.At(b.metFile(), chubby.IfGeneration(file.Stat.Generation)), chubby.At(b.party(p.id()), chubby.IfExists())}
	for id := range before {
		next.Parties = append(next.Parties, id)
		conds = append(conds, chubby.At(b.party(id), chubby.IfExists()))
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	_, err = txn(ctx, b.c, chubby.Txn{If: conds, Then: []chubby.Op{chubby.OpSet(b.metFile(), data), chubby.OpSet(b.leftFile(), []byte("0"))}})
	return err
}

// Leave leaves and waits until all parties of the round have left or are lost. It returns nil if all have left,
// ErrBroken if some were lost, chubby.ErrSessionExpired if this one was. If ctx ends first, this party has left or, with
// chubby.ErrUncertain, may have: calling Leave again goes on, closing Session gives up. chubby.ErrUncertain alone means
// that so many rounds have ended since, while this node was cut off, that the outcome is forgotten.
func (p *Party) Leave(ctx context.Context) error {
	return fail("leave", p.b.path, p.leave(ctx))
}

func (p *Party) leave(ctx context.Context) error {
	b, mine := p.b, p.b.party(p.id())
	r, err := txn(ctx, b.c, chubby.Txn{
		If:   []chubby.Cond{chubby.At(mine, chubby.IfExists())},
		Then: []chubby.Op{chubby.OpDelete(mine), chubby.OpAdd(b.leftFile(), 1, partiesMax)},
	})
	if err != nil {
		return err
	}
	// An entry that is gone went with its session, unless an attempt before this one left and was not told.
	if !r.Succeeded && p.session.Err() != nil {
		return errPartyLost
	}
	here := make(map[string]bool) // parties of the round that are still there
	err = follow(ctx, b.c, b.path+"/parties", chubby.WatchOptions{}, func() (bool, error) {
		parties, err := b.c.List(ctx, b.path+"/parties")
		clear(here)
		for _, e := range parties {
			if id := base(e.Path); p.others[id] {
				here[id] = true
			}
		}
		return len(here) == 0, err
	}, func(e chubby.Event) (bool, error) {
		if e.Kind == chubby.EventDeleted {
			delete(here, base(e.Path))
		}
		return len(here) == 0, nil
	})
	if err != nil {
		return err
	}
	end(ctx, p.session)
	lost, err := p.lost(ctx)
	if err == nil && lost > 0 {
		err = fmt.Errorf("%w: %d of %d parties", ErrBroken, lost, len(p.others))
	}
	return err
}

// lost tells how many parties of the round were lost, now that none is there any more.
func (p *Party) lost(ctx context.Context) (int, error) {
	left, err := p.b.readLeft(ctx) // before met: it is of this round if that still is
	if err != nil {
		return 0, err
	}
	m, file, err := p.b.readMet(ctx)
	if err != nil {
		return 0, err
	}
	if file.Stat.Generation == p.round {
		return len(p.others) - left, nil
	}
	for _, e := range m.Ended {
		if e.Round == p.round {
			return e.Lost, nil
		}
	}
	return 0, fmt.Errorf("%w: more than %d rounds have ended since", chubby.ErrUncertain, roundsMax)
}

// txn is Txn, repeated when its outcome is unknown although ctx lives. Its conditions must be such that it happens once.
func txn(ctx context.Context, c *chubby.Client, t chubby.Txn) (chubby.TxnResult, error) {
	for {
		r, err := c.Txn(ctx, t)
		if !errors.Is(err, chubby.ErrUncertain) || ctx.Err() != nil {
			return r, err
		}
	}
}

// Session returns the party's session, lost when the party is. Others learn of that when the cell ends it.
func (p *Party) Session() *chubby.Session { return p.session }

// readMet reads the file of that name; where there is none, Generation is 0.
func (b *DoubleBarrier) readMet(ctx context.Context) (met, chubby.Entry, error) {
	e, err := b.c.Get(ctx, b.metFile())
	if errors.Is(err, chubby.ErrNotFound) {
		return met{}, chubby.Entry{}, nil
	}
	if err != nil {
		return met{}, chubby.Entry{}, err
	}
	m, err := parseMet(e)
	return m, e, err
}

func parseMet(e chubby.Entry) (m met, err error) {
	if err := json.Unmarshal(e.Data, &m); err != nil {
		return met{}, fmt.Errorf("%w: %s was not written by a double barrier: %w", chubby.ErrConflict, e.Path, err)
	}
	return m, nil
}

func (b *DoubleBarrier) readLeft(ctx context.Context) (int, error) {
	e, err := b.c.Get(ctx, b.leftFile())
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(string(e.Data))
	if err != nil {
		return 0, fmt.Errorf("%w: %s was not written by a double barrier", chubby.ErrNotNumber, e.Path)
	}
	return n, nil
}
