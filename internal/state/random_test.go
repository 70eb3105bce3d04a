package state

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/chubbygo/chubby/internal/command"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 = from the clock")

func newRandom(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 0))
}

// compare says where the state differs from the model.
func compare(m *model, s *State) error {
	if m.revision != s.Revision() {
		return fmt.Errorf("revision %d, model %d", s.Revision(), m.revision)
	}
	for path, f := range m.files {
		e, ok := s.Get(path)
		if !ok || e.Stat != m.stat(path) || string(e.Data) != f.data {
			return fmt.Errorf("%s: %+v, model %+v", path, e, m.stat(path))
		}
	}
	if n := s.Counts().Entries + 1; n != len(m.files) {
		return fmt.Errorf("%d entries, model %d", n, len(m.files))
	}
	for _, path := range randomPaths {
		v, l := s.Lock(path), m.locks[path]
		holders := m.at(path, true)
		if v.Generation != l.generation || v.Delayed != (l.delay > 0 && len(holders) == 0) || v.Delayed && v.Delay != l.delay || v.Waiters != len(m.at(path, false)) || len(v.Holders) != len(holders) {
			return fmt.Errorf("%s: lock %+v, model %+v with %d holders", path, v, l, len(holders))
		}
		for i, h := range v.Holders {
			if o := holders[i]; h.Session != o.session || h.Seq != o.seq || h.Hold != o.hold || v.Mode != o.mode {
				return fmt.Errorf("%s: holder %+v, model %+v", path, h, o)
			}
			id := HoldID{path, v.Generation, h.Session, h.Seq}
			if hold, held := s.MaxHold(id); !held || hold != h.Hold {
				return fmt.Errorf("%s: MaxHold(%+v) = %d, %v", path, id, hold, held)
			}
			id.Generation++
			if _, held := s.MaxHold(id); held {
				return fmt.Errorf("%s: held as %+v", path, id)
			}
		}
	}
	for id := range m.sessions {
		if _, ok := s.Session(id); !ok {
			return fmt.Errorf("session %d is gone", id)
		}
	}
	if len(m.sessions) != s.Counts().Sessions {
		return fmt.Errorf("%d sessions, model %d", s.Counts().Sessions, len(m.sessions))
	}
	if why := compareHandles(m, s); why != "" {
		return fmt.Errorf("%s differs from the model", why)
	}
	return nil
}

// Goal: the state machine does what the contract says. Method: a second, stupid implementation gets the same random
// commands; every result and every visible part of the state must be equal after each, and every invariant hold.
func TestModel(t *testing.T) {
	random := newRandom(t)
	seen := map[string]int{}
	// The run is worth something only if the commands got somewhere: it goes on until each kind did, which it nearly always
	// has by then.
	succeeded := func(kind command.Kind) bool { return seen[fmt.Sprint(kind, command.OK)] > 0 }
	all := func() bool {
		for kind := command.KindBarrier; kind <= command.KindRaiseLevel; kind++ {
			if !succeeded(kind) {
				return false
			}
		}
		return true
	}
	for round := 0; round < 40 || round < 1000 && !all(); round++ {
		g, m, o := newGenerator(random.IntN), NewMachine(New("local", 7)), newModel()
		for i := range 250 {
			raw, term := g.next(m.State())
			step(t, m, o, uint64(i+1), term, raw, seen)
		}
	}
	for kind := command.KindBarrier; kind <= command.KindRaiseLevel; kind++ {
		if !succeeded(kind) {
			t.Errorf("no command of kind %d succeeded", kind)
		}
	}
}

// Goal: the events tell every change of entries and holders. Method: what they tell, done to an empty tree, gives the tree
// that there is, after each random command; and each shows its entry as it then is.
func TestEventsTellAll(t *testing.T) {
	random := newRandom(t)
	seen := map[EventKind]int{}
	for range 40 {
		g, m := newGenerator(random.IntN), NewMachine(New("local", 7))
		tree, holders := map[string]command.Entry{}, map[string]map[[2]uint64]bool{}
		for i := range 250 {
			raw, term := g.next(m.State())
			before := m.State().Revision()
			if _, err := m.Apply(uint64(i+1), term, raw); err != nil {
				t.Fatal(err)
			}
			s, events := m.Publish()
			last := map[string]Event{}
			for k, e := range events {
				if e.Revision != s.Revision() || e.Revision == before || e.More != (k+1 < len(events)) {
					t.Fatalf("%+v is event %d of %d; revision %d after %d", e, k, len(events), s.Revision(), before)
				}
				seen[e.Kind]++
				last[e.Path] = e
				_, there := tree[e.Path]
				by := [2]uint64{e.Session, e.Seq}
				ok := true
				switch e.Kind {
				case Created:
					ok = !there
					tree[e.Path] = e.Entry
				case Modified:
					ok = there
					tree[e.Path] = e.Entry
				case ACLChanged:
					ok = there || e.Path == "/"
				case Deleted:
					ok = there
					delete(tree, e.Path)
				case LockAcquired:
					if holders[e.Path] == nil {
						holders[e.Path] = map[[2]uint64]bool{}
					}
					ok = !holders[e.Path][by]
					holders[e.Path][by] = true
				case LockReleased:
					ok = holders[e.Path][by]
					delete(holders[e.Path], by)
				}
				if !ok {
					t.Fatalf("%+v does not follow from what was told before", e)
				}
			}
			for _, path := range randomPaths {
				e, there := s.Get(path)
				if path != "/" {
					told, ok := tree[path]
					if ok != there || told.Stat.Instance != e.Stat.Instance || told.Stat.Generation != e.Stat.Generation || string(told.Data) != string(e.Data) {
						t.Fatalf("%s is %+v, told %+v", path, e, told)
					}
				}
				if at, ok := last[path]; ok && !e.Stat.Dir && (at.Entry.Path != path || there != (at.Entry.Stat.Instance != 0) || there && at.Entry.Stat != e.Stat) {
					t.Fatalf("%+v, and the entry is %+v", at, e)
				}
				held := s.Lock(path).Holders
				for _, h := range held {
					if !holders[path][[2]uint64{h.Session, h.Seq}] {
						t.Fatalf("%s has the holder %+v, which was not told", path, h)
					}
				}
				if len(held) != len(holders[path]) {
					t.Fatalf("%s has %d holders, told %d", path, len(held), len(holders[path]))
				}
			}
			if len(tree) != s.Counts().Entries {
				t.Fatalf("%d entries, told %d", s.Counts().Entries, len(tree))
			}
		}
	}
	for kind := Created; kind <= ACLChanged; kind++ {
		if seen[kind] == 0 {
			t.Errorf("no event of kind %d", kind)
		}
	}
}

func step(t *testing.T, m *Machine, o *model, index, term uint64, raw []byte, seen map[string]int) {
	t.Helper()
	var c command.Command
	if err := command.Decode(raw, &c); err != nil {
		t.Fatal(err)
	}
	r, err := m.Apply(index, term, raw)
	if err != nil {
		t.Fatal(err)
	}
	seen[fmt.Sprint(c.Kind, r.Code)]++
	want := o.apply(term, &c)
	if got, want := describe(&r), describe(&want); got != want {
		t.Fatalf("%d: %+v\ngot  %s\nwant %s", index, c, got, want)
	}
	s, events := m.Publish()
	if err := compare(o, s); err != nil {
		t.Fatalf("%d: %+v: %v", index, c, err)
	}
	if err := s.Check(); err != nil {
		t.Fatalf("%d: %+v: %v", index, c, err)
	}
	for i, e := range events {
		if e.Revision != s.Revision() || e.More != (i+1 < len(events)) {
			t.Fatalf("%d: event %d of %d is %+v", index, i+1, len(events), e)
		}
	}
}

func snapshot(t testing.TB, s *State) []byte {
	t.Helper()
	var b bytes.Buffer
	if n, err := s.WriteTo(&b); err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo: %d bytes of %d, %v", n, b.Len(), err)
	}
	return b.Bytes()
}

// Goal: replicas agree whatever the batching, and a snapshot is the whole state. Method: one log goes to a machine that
// publishes after each command, to one that publishes at random, and at each index to one that begins with a snapshot of
// the first and gets the rest. All must end with equal bytes.
func TestReplicas(t *testing.T) {
	random := newRandom(t)
	const length = 300
	g, a, b := newGenerator(random.IntN), NewMachine(New("local", 7)), NewMachine(New("local", 7))
	type item struct {
		index, term uint64
		raw         []byte
	}
	var log []item
	var states []*State
	var snapshots [][]byte
	index := uint64(900)
	for range length {
		raw, term := g.next(a.State())
		if random.IntN(3) == 0 {
			index += uint64(random.IntN(20)) // entries without commands, and several commands in one entry
		}
		index = max(index, 1)
		log = append(log, item{index, term, raw})
		ra, err := a.Apply(index, term, raw)
		if err != nil {
			t.Fatal(err)
		}
		rb, err := b.Apply(index, term, raw)
		if err != nil || describe(&ra) != describe(&rb) {
			t.Fatalf("%s and %s, %v", describe(&ra), describe(&rb), err)
		}
		s, _ := a.Publish()
		states, snapshots = append(states, s), append(snapshots, snapshot(t, s))
		if random.IntN(4) == 0 {
			b.Publish()
		}
	}
	want := snapshots[length-1]
	s, _ := b.Publish()
	if !bytes.Equal(snapshot(t, s), want) {
		t.Error("batching makes a difference")
	}
	for i, at := range snapshots {
		if !bytes.Equal(snapshot(t, states[i]), at) {
			t.Fatalf("state %d changed after it was published", i)
		}
		s, err := Read(bytes.NewReader(at))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(snapshot(t, s), at) {
			t.Fatalf("snapshot %d: written again it differs", i)
		}
		m := NewMachine(s)
		for _, e := range log[i+1:] {
			if _, err := m.Apply(e.index, e.term, e.raw); err != nil {
				t.Fatal(err)
			}
		}
		if s, _ = m.Publish(); !bytes.Equal(snapshot(t, s), want) {
			t.Fatalf("from snapshot %d the end differs", i)
		}
	}
}

// FuzzApply turns bytes into commands that mean something and compares with the model.
func FuzzApply(f *testing.F) {
	for s := range uint64(8) {
		random := rand.New(rand.NewPCG(s, 0))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g := newGenerator(func(n int) int {
			if len(b) == 0 {
				return 0
			}
			v := int(b[0]) % n
			b = b[1:]
			return v
		})
		m, o := NewMachine(New("local", 7)), newModel()
		for i := uint64(1); len(b) > 0 && i < 200; i++ {
			raw, term := g.next(m.State())
			step(t, m, o, i, term, raw, map[string]int{})
		}
	})
}

// FuzzApplyRaw gives a machine with some state whatever decodes.
func FuzzApplyRaw(f *testing.F) {
	for _, line := range []string{"1/9 set /a x", "1/9 lock /a", "close 1", "txn then:set,/a,x then:get,/a then:delete,/a", "1/9 cancel /l 1", "expire in=1 1 2", "1/9 openhandle /h x create new ephemeral write acl=r:w:c if=instance,/d,5", "1/9 closehandle /h 8", "1/9 setacl / acl=r::c", "key k"} {
		c, _, err := parseCommand(line)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(command.Append(nil, c))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := newScript(t)
		for _, line := range []string{"open 1", "open 2", "1/1 lock /l", "2/1 lock /l", "1/2 create /d/e x ephemeral", "set /a/b/c 5"} {
			s.run(line)
		}
		before := snapshot(t, s.m.State())
		for range 2 {
			if _, err := s.m.Apply(10, 1, raw); err != nil {
				if st, _ := s.m.Publish(); !bytes.Equal(snapshot(t, st), before) {
					t.Fatal("a command that cannot be decoded left a trace")
				}
				return
			}
		}
		st, _ := s.m.Publish()
		if err := st.Check(); err != nil {
			t.Fatal(err)
		}
		if again, err := Read(bytes.NewReader(snapshot(t, st))); err != nil || again.Hash() != st.Hash() {
			t.Fatal(err)
		}
	})
}

// FuzzRead: what reads, writes again as it was; nothing else happens.
func FuzzRead(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	g, m := newGenerator(random.IntN), NewMachine(New("local", 7))
	for i := range 200 {
		raw, term := g.next(m.State())
		if _, err := m.Apply(uint64(i+1), term, raw); err != nil {
			f.Fatal(err)
		}
		if s, _ := m.Publish(); i%50 == 0 {
			f.Add(snapshot(f, s))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, resum(b)} {
			if s, err := Read(bytes.NewReader(b)); err == nil && !bytes.Equal(snapshot(t, s), b) {
				t.Error("written again it differs")
			}
		}
	})
}

func commandBytes(c *command.Command) []byte { return command.Append(nil, c) }
