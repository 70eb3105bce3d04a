package chubby

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/chubbygo/chubby/internal/wire"
)

// A cell is founded once. Each node draws an incarnation and syncs it before anybody hears of it; ID and incarnation
// together are its raft ServerID, so a node whose disk was wiped is another server, which cannot vote in the name of
// the one that perhaps voted before. The member with the smallest ID asks all Peers; when all have said that they are
// fresh it makes the founding list of their ServerIDs, syncs it, and only then shows it. The others adopt a list that
// has their own ServerID in it, sync it, and run.
//
// Why there is one cell: a node adopts one list in its life, and a cell runs with a majority of its list. Two lists
// with a majority each would share a node that adopted both. Different lists make different cell ids, and no stream
// crosses cells, because raft itself cannot tell two first entries apart.

// cellID is the same on all nodes of a cell and changes with the epoch.
func cellID(cell string, f founding) [16]byte {
	h := sha256.New()
	writeString := func(s string) {
		var n [8]byte
		binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	writeString("chubby cell 1")
	writeString(cell)
	var epoch [8]byte
	binary.LittleEndian.PutUint64(epoch[:], f.Epoch)
	h.Write(epoch[:])
	ids := make([]string, len(f.Servers))
	for i, s := range f.Servers {
		ids[i] = string(s.ID)
	}
	slices.Sort(ids)
	for _, id := range ids {
		writeString(id)
	}
	return [16]byte(h.Sum(nil)[:16])
}

// epochNow is the epoch of a cell that is founded now.
func epochNow() uint64 { return uint64(max(time.Now().UnixMilli(), 1)) }

// foundAlone founds a cell of one.
func (n *Node) foundAlone() error {
	addr := n.transport.addr()
	if addr == "" {
		addr = n.opts.ID // nobody dials it
	}
	f := founding{Epoch: epochNow(), Servers: []raft.Server{{Suffrage: raft.Voter, ID: n.server, Address: raft.ServerAddress(addr)}}}
	if err := n.store.found(f); err != nil {
		return err
	}
	return n.start(cellID(n.opts.Cell, f), f.Epoch)
}

// foundAnswer is what a node tells about itself to one that asks: another one during founding, or the leader of a cell
// before it takes the node in.
type foundAnswer struct {
	Cell    string
	ID      string
	Server  raft.ServerID
	Peers   []string // IDs, sorted
	Founded *founding
	Joins   bool // it is fresh and waits to be taken in
}

const foundAnswerMax = 64 << 10

// answerFound tells who this node is and which list it adopted, if any.
func (n *Node) answerFound(_ context.Context, _ peerInfo, _ []byte) ([]byte, error) {
	a := foundAnswer{Cell: n.opts.Cell, ID: n.opts.ID, Server: n.server, Peers: sortedKeys(n.opts.Peers)}
	if f, ok := n.store.founding(); ok {
		a.Founded = &f
	}
	a.Joins = len(n.opts.Join) > 0 && n.store.identity().Epoch == 0
	return json.Marshal(a)
}

func parseFoundAnswer(b []byte) (a foundAnswer, err error) {
	if len(b) > foundAnswerMax {
		return a, fmt.Errorf("%w: %d bytes", errBadMessage, len(b))
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("%w: %w", errBadMessage, err)
	}
	return a, nil
}

// founder remembers why the cell is not founded yet, for WaitReady to tell.
type founder struct {
	mu struct {
		sync.Mutex
		why error
	}
}

func (f *founder) obstacle() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.why
}

func (f *founder) setObstacle(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.why = err
}

// found asks around until there is a founding list with this node in it, and starts raft on it.
func (n *Node) found() {
	try := n.opts.StartInterval / 4
	for {
		f, err := n.findFounding()
		if err == nil {
			n.founder.setObstacle(nil)
			if err = n.store.found(f); err == nil {
				err = n.start(cellID(n.opts.Cell, f), f.Epoch)
			}
			if err != nil {
				n.fail(err)
			}
			return
		}
		if n.ctx.Err() != nil {
			return
		}
		n.founder.setObstacle(err)
		n.log.Debug("cell not founded yet", "err", err)
		t := time.NewTimer(jitter(try))
		select {
		case <-t.C:
		case <-n.ctx.Done():
			t.Stop()
			return
		}
		try = min(2*try, intervalMax)
	}
}

// findFounding asks all peers once. It returns a list that somebody adopted, or one made here if this is the member to
// make it and all others are fresh.
func (n *Node) findFounding() (founding, error) {
	type reply struct {
		id     string
		answer foundAnswer
		err    error
	}
	ids := sortedKeys(n.opts.Peers)
	replies := make(chan reply, len(ids))
	asked := 0
	for _, id := range ids {
		if id == n.opts.ID {
			continue
		}
		asked++
		if !n.spawn(func() {
			a, err := n.askFound(id)
			replies <- reply{id, a, err}
		}) {
			return founding{}, ErrClosed
		}
	}
	servers := []raft.Server{{Suffrage: raft.Voter, ID: n.server, Address: raft.ServerAddress(n.opts.Peers[n.opts.ID])}}
	var errs []error
	var list *founding
	for range asked {
		r := <-replies
		switch {
		case r.err != nil:
			errs = append(errs, fmt.Errorf("peer %s at %s: %w", r.id, n.opts.Peers[r.id], r.err))
		case r.answer.Founded != nil:
			if !slices.ContainsFunc(r.answer.Founded.Servers, func(s raft.Server) bool { return s.ID == n.server }) {
				return founding{}, errOtherDisk(n.opts.ID)
			}
			list = r.answer.Founded
		default:
			servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: r.answer.Server, Address: raft.ServerAddress(n.opts.Peers[r.id])})
		}
	}
	if list != nil {
		return *list, nil
	}
	if len(errs) > 0 {
		return founding{}, fmt.Errorf("all of Peers must be up once to found the cell: %w", errors.Join(errs...))
	}
	if n.opts.ID != ids[0] {
		return founding{}, fmt.Errorf("waiting for %s, the smallest ID of Peers, to found the cell", ids[0])
	}
	slices.SortFunc(servers, func(a, b raft.Server) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return founding{Epoch: epochNow(), Servers: servers}, nil
}

// askFound asks the peer that should be id, and checks that it is, and that it wants the same cell.
func (n *Node) askFound(id string) (foundAnswer, error) {
	ctx, cancel := context.WithTimeout(n.ctx, max(time.Second, 2*n.opts.HeartbeatTimeout))
	defer cancel()
	_, b, err := n.transport.callAddr(ctx, n.opts.Peers[id], wire.KindFound, nil)
	if err != nil {
		return foundAnswer{}, err
	}
	a, err := parseFoundAnswer(b)
	switch {
	case err != nil:
		return a, err
	case a.Cell != n.opts.Cell:
		return a, fmt.Errorf("%w: it belongs to cell %q, not %q; check Options.Cell and Peers", ErrWrongCell, a.Cell, n.opts.Cell)
	case a.ID != id:
		return a, fmt.Errorf("%w: node %q answers there; check Options.Peers", ErrWrongCell, a.ID)
	case nodeID(a.Server) != a.ID:
		return a, fmt.Errorf("%w: server %q calls itself %q", errBadMessage, a.Server, a.ID)
	case !slices.Equal(a.Peers, sortedKeys(n.opts.Peers)) && a.Founded == nil:
		return a, fmt.Errorf("%w: its Peers are %q, ours %q; Peers must be equal on every node", ErrBadOptions, a.Peers, sortedKeys(n.opts.Peers))
	}
	return a, nil
}

// addresses are where a member may be reached: where Options say, and where the cell recorded it. Addresses may change
// all at once; identity is the ServerID, which the handshake checks. So the addresses of Join may be tried for anybody.
func (n *Node) addresses(id raft.ServerID, recorded raft.ServerAddress) []string {
	var list []string
	add := func(addr string) {
		if checkAddr(addr) == nil && !slices.Contains(list, addr) {
			list = append(list, addr)
		}
	}
	add(n.opts.Peers[nodeID(id)])
	add(string(recorded))
	add(string(n.registrar.trusted(id).Address))
	for _, addr := range n.opts.Join {
		add(addr)
	}
	return list
}

// checkExposure refuses addresses beyond this machine for a cell that would talk plainly. A Network of the caller's own
// has addresses of its own.
func (o Options) checkExposure(secured bool) error {
	if o.Network != nil {
		return nil
	}
	addrs := map[string]string{"Listen": o.Listen, "Advertise": o.Advertise}
	for id, addr := range o.Peers {
		addrs[fmt.Sprintf("Peers[%q]", id)] = addr
	}
	for i, addr := range o.Join {
		addrs[fmt.Sprintf("Join[%d]", i)] = addr
	}
	return checkExposure(addrs, secured, o.Insecure)
}

// jitter spreads d over three quarters to all of it, so that nodes started together do not ask in step.
func jitter(d time.Duration) time.Duration { return d*3/4 + rand.N(d/4+1) }
