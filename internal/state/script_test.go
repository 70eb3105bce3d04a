package state

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/chubbygo/chubby/fence"
	"github.com/chubbygo/chubby/internal/command"
)

var update = flag.Bool("update", false, "rewrite the transcripts in testdata")

// TestScripts runs the stories in testdata. A line is a command or, after "?", a question; what is indented below it is
// the answer and the events. Run with -update to rewrite the answers, and read the diff.
//
//	[term=T] [session/seq] [acked=N] [as=principal] command arguments
//
// An unlock that names no generation means the present one.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			s := newScript(t)
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "    ") {
					continue
				}
				out.WriteString(line)
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					for _, answer := range s.run(line) {
						fmt.Fprintf(&out, "    %s\n", answer)
					}
				}
			}
			if got := out.String(); *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("the transcript differs; got:\n%s", diff(string(text), got))
			}
		})
	}
}

// diff shows where got begins to differ from want.
func diff(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	i := 0
	for i < len(w) && i < len(g) && w[i] == g[i] {
		i++
	}
	show := func(l []string) string { return strings.Join(l[min(i, len(l)):min(i+5, len(l))], "\n") }
	return fmt.Sprintf("line %d: want\n%s\ngot\n%s", i+1, show(w), show(g))
}

type script struct {
	t     *testing.T
	m     *Machine
	index uint64
}

func newScript(t *testing.T) *script { return &script{t: t, m: NewMachine(New("local", 7))} }

func (s *script) run(line string) []string {
	if q, ok := strings.CutPrefix(line, "? "); ok {
		return s.ask(strings.Fields(q))
	}
	c, term, err := parseCommand(line)
	if err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	if c.Kind == command.KindUnlock && c.Generation == 0 {
		c.Generation = s.m.State().Lock(c.Path).Generation
	}
	s.index++
	r, err := s.m.Apply(s.index, term, command.Append(nil, c))
	if err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	st, events := s.m.Publish()
	if err := st.Check(); err != nil {
		s.t.Fatalf("%q: %v", line, err)
	}
	out := []string{describe(&r)}
	for _, e := range events {
		out = append(out, describeEvent(e))
	}
	return out
}

func (s *script) ask(q []string) []string {
	st := s.m.State()
	var out []string
	switch q[0] {
	case "get":
		e, ok := st.Get(q[1])
		if !ok {
			return []string{"no entry"}
		}
		return []string{describeEntry(e)}
	case "list":
		list, code := st.List(q[1])
		out = append(out, codeName(code))
		for _, e := range list {
			out = append(out, describeEntry(e))
		}
	case "lock":
		v := st.Lock(q[1])
		out = append(out, fmt.Sprintf("mode=%d generation=%d waiters=%d delayed=%v delay=%d", v.Mode, v.Generation, v.Waiters, v.Delayed, v.Delay))
		for _, h := range v.Holders {
			line := fmt.Sprintf("%d/%d %q since=%d", h.Session, h.Seq, h.Name, h.Since)
			if h.Hold > 0 {
				line += fmt.Sprintf(" hold=%d", h.Hold)
			}
			out = append(out, line)
		}
	case "grant":
		session, seq, _ := strings.Cut(q[1], "/")
		generation, held, waiting := st.Grant(number(session), number(seq), q[2])
		return []string{fmt.Sprintf("generation=%d held=%v waiting=%v", generation, held, waiting)}
	case "may": // principal, right, path
		right := map[string]command.Right{"read": command.RightRead, "write": command.RightWrite, "change": command.RightChange}[q[2]]
		return []string{fmt.Sprint(st.Allowed(strings.TrimPrefix(q[1], "_"), q[3], right))}
	case "acl":
		e := st.entry(q[1])
		if e.acl == nil {
			return []string{"no names"}
		}
		return []string{fmt.Sprintf("%s:%s:%s", e.acl.Read, e.acl.Write, e.acl.Change)}
	case "opens":
		st.opens.all(func(_ string, o *open) bool {
			out = append(out, fmt.Sprintf("%d/%d %s instance=%d", o.session, o.seq, o.path, o.instance))
			return true
		})
	case "counts":
		return []string{fmt.Sprintf("%+v", st.Counts())}
	case "sessions":
		for v := range st.Sessions() {
			out = append(out, fmt.Sprintf("%+v", v))
		}
	case "delays":
		for v := range st.Delays() {
			out = append(out, fmt.Sprintf("%s generation=%d delay=%d", v.Path, v.Generation, v.Delay))
		}
	default:
		s.t.Fatalf("unknown question %q", q)
	}
	return out
}

func number(s string) uint64 {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

var kinds = map[string]command.Kind{
	"barrier": command.KindBarrier, "slot": command.KindAssignSlot, "open": command.KindOpenSession, "close": command.KindCloseSession,
	"expire": command.KindExpireSessions, "cleardelay": command.KindClearDelay, "set": command.KindSet, "create": command.KindCreate,
	"cas": command.KindCompareAndSwap, "add": command.KindAdd, "sub": command.KindSub, "delete": command.KindDelete,
	"deletetree": command.KindDeleteTree, "txn": command.KindTxn, "lock": command.KindLock, "unlock": command.KindUnlock, "cancel": command.KindCancelLock,
	"key": command.KindCellKey, "openhandle": command.KindOpen, "closehandle": command.KindCloseHandle, "setacl": command.KindSetACL,
}

// parseCommand reads one line of a script. Of a txn, words beginning with if:, then: and else: have the arguments of
// conditions and operations after commas: then:set,/a,x.
func parseCommand(line string) (c *command.Command, term uint64, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	c, term = &command.Command{Slot: 1}, 1
	words := strings.Fields(line)
	if session, seq, ok := strings.Cut(words[0], "/"); ok {
		c.Session, c.Seq = number(session), number(seq)
		words = words[1:]
	}
	var plain []string
	for _, w := range words {
		name, v, ok := strings.Cut(w, "=")
		if !ok {
			plain = append(plain, w)
			continue
		}
		switch name {
		case "term":
			term = number(v)
		case "as":
			c.Principal = v
		case "acl":
			c.ACL = parseACL(v)
		case "acked":
			c.AckedBelow = number(v)
		case "in":
			c.Term = number(v)
		case "slot":
			c.Slot = uint32(number(v))
		case "nonce":
			c.Nonce[0] = byte(number(v))
		case "name":
			c.Name = v
		case "delay":
			c.Delay = number(v)
		case "hold":
			c.Hold = number(v)
		case "data":
			c.Data, c.HasData = []byte(v), true
		case "old":
			c.Old, c.HasOld = []byte(v), true
		case "if":
			c.Conds = append(c.Conds, parseCond(strings.Split(v, ",")))
		default:
			return nil, 0, fmt.Errorf("unknown %q", w)
		}
	}
	kind, args := plain[0], plain[1:]
	flag := func(name string) bool {
		i := slices.Index(args, name)
		if i >= 0 {
			args = slices.Delete(args, i, i+1)
		}
		return i >= 0
	}
	if c.Kind = kinds[kind]; c.Kind == 0 {
		return nil, 0, fmt.Errorf("unknown command %q", kind)
	}
	arg := func(i int) string {
		if i < len(args) {
			return args[i]
		}
		return ""
	}
	switch kind {
	case "slot":
		c.Node = strings.TrimPrefix(args[0], "_") // nothing can be said as _
		return c, term, nil
	case "key":
		copy(c.Key[:], strings.TrimPrefix(args[0], "_"))
		return c, term, nil
	case "open", "close":
		c.Session = number(args[0])
		return c, term, nil
	case "expire":
		for _, id := range args {
			c.Sessions = append(c.Sessions, number(id))
		}
		return c, term, nil
	case "txn":
		for _, w := range args {
			what, v, _ := strings.Cut(w, ":")
			switch parts := strings.Split(v, ","); what {
			case "if":
				c.If = append(c.If, parseCond(parts))
			case "then":
				c.Then = append(c.Then, parseOp(parts))
			case "else":
				c.Else = append(c.Else, parseOp(parts))
			default:
				return nil, 0, fmt.Errorf("unknown %q", w)
			}
		}
		return c, term, nil
	case "create":
		c.Dir, c.Ephemeral = flag("dir"), flag("ephemeral")
	case "openhandle":
		c.Dir, c.Ephemeral, c.Create, c.New, c.Write, c.ChangeACL = flag("dir"), flag("ephemeral"), flag("create"), flag("new"), flag("write"), flag("change")
	case "lock":
		c.Try, c.Mode = flag("try"), fence.Exclusive
		if flag("shared") {
			c.Mode = fence.Shared
		}
	}
	c.Path = arg(0)
	switch kind {
	case "set", "create", "cas", "openhandle":
		c.Data = []byte(arg(1))
	case "add", "sub":
		c.Number, _ = strconv.ParseInt(args[1], 10, 64)
		c.Bound, _ = strconv.ParseInt(args[2], 10, 64)
	case "cleardelay":
		c.Generation = number(args[1])
	case "unlock":
		if c.LockSeq = number(args[1]); len(args) > 2 {
			c.Generation = number(args[2])
		}
	case "closehandle":
		c.OpenSeq = number(args[1])
	case "cancel":
		c.LockSeq = number(args[1])
	}
	return c, term, nil
}

// parseACL reads read:write:change.
func parseACL(v string) command.ACL {
	p := strings.Split(v, ":")
	return command.ACL{Read: p[0], Write: p[1], Change: p[2]}
}

func parseCond(p []string) command.Cond {
	c := command.Cond{Path: p[1]}
	switch p[0] {
	case "absent":
		c.Kind = command.CondAbsent
	case "exists":
		c.Kind = command.CondExists
	case "generation":
		c.Kind, c.Generation = command.CondGeneration, number(p[2])
	case "instance":
		c.Kind, c.Generation = command.CondInstance, number(p[2])
	case "value":
		c.Kind, c.Value = command.CondValue, []byte(p[2])
	case "holds":
		mode := fence.Exclusive
		if len(p) > 3 {
			mode = fence.Shared
		}
		c = command.Cond{Kind: command.CondHolds, Sequencer: fence.Sequencer{Cell: "local", Epoch: 7, Path: p[1], Mode: mode, Generation: number(p[2])}}
	default:
		panic("unknown condition " + p[0])
	}
	return c
}

func parseOp(p []string) command.Op {
	o := command.Op{Path: p[1]}
	switch p[0] {
	case "get":
		o.Kind = command.OpGet
	case "set":
		o.Kind, o.Data = command.OpSet, []byte(p[2])
	case "delete":
		o.Kind = command.OpDelete
	case "create":
		o.Kind, o.Data = command.OpCreate, []byte(p[2])
		o.Dir, o.Ephemeral = slices.Contains(p[3:], "dir"), slices.Contains(p[3:], "ephemeral")
		if i := slices.IndexFunc(p[3:], func(s string) bool { return strings.Contains(s, ":") }); i >= 0 {
			o.ACL = parseACL(p[3+i])
		}
	case "add":
		o.Kind = command.OpAdd
		o.Number, _ = strconv.ParseInt(p[2], 10, 64)
		o.Bound, _ = strconv.ParseInt(p[3], 10, 64)
	default:
		panic("unknown operation " + p[0])
	}
	return o
}

var codeNames = [...]string{
	"ok", "not found", "exists", "conflict", "bound", "not a number", "not empty", "is a directory", "not a directory", "lock held",
	"not held", "stale sequencer", "session expired", "session refused", "old", "window full", "void", "slots", "cancelled", "bad command",
	"permission", "gone", "bad seal",
}

func codeName(c command.Code) string { return codeNames[c] }

func describe(r *command.Result) string {
	b := fmt.Appendf(nil, "%s @%d", codeName(r.Code), r.Revision)
	if r.Path != "" {
		b = fmt.Appendf(b, " path=%s", r.Path)
	}
	if r.Right != 0 {
		b = fmt.Appendf(b, " right=%s", [...]string{"", "read", "write", "change"}[r.Right])
	}
	if r.Stat != (command.Stat{}) {
		b = fmt.Appendf(b, " %s", describeStat(r.Stat))
	}
	if r.Number != 0 {
		b = fmt.Appendf(b, " number=%d", r.Number)
	}
	if r.Generation != 0 {
		b = fmt.Appendf(b, " generation=%d", r.Generation)
	}
	if r.Queued {
		b = append(b, " queued"...)
	}
	if r.Slot != 0 {
		b = fmt.Appendf(b, " slot=%d", r.Slot)
	}
	if r.Floor != 0 {
		b = fmt.Appendf(b, " floor=%d", r.Floor)
	}
	if r.Succeeded {
		b = append(b, " succeeded"...)
	}
	for _, e := range r.Entries {
		b = fmt.Appendf(b, " [%s]", describeEntry(e))
	}
	return string(b)
}

func describeStat(s command.Stat) string {
	b := fmt.Appendf(nil, "i%d g%d l%d r%d", s.Instance, s.Generation, s.LockGeneration, s.Revision)
	if s.Dir {
		b = fmt.Appendf(b, " dir children=%d", s.Children)
	} else {
		b = fmt.Appendf(b, " size=%d", s.Size)
	}
	if s.Ephemeral {
		b = append(b, " ephemeral"...)
	}
	if s.ACLGeneration != 0 {
		b = fmt.Appendf(b, " a%d", s.ACLGeneration)
	}
	return string(b)
}

func describeEntry(e command.Entry) string {
	if e.Stat.Instance == 0 {
		return e.Path + " -"
	}
	if len(e.Data) == 0 {
		return e.Path + " " + describeStat(e.Stat)
	}
	return fmt.Sprintf("%s %s %q", e.Path, describeStat(e.Stat), e.Data)
}

var eventNames = map[EventKind]string{
	Created: "created", Modified: "modified", Deleted: "deleted", LockAcquired: "acquired", LockReleased: "released", LockContended: "contended", ACLChanged: "acl",
	SessionOpened: "opened", SessionEnded: "ended", LockDelayed: "delayed", LockRefused: "refused",
}

func describeEvent(e Event) string {
	b := fmt.Appendf(nil, "- %s @%d", eventNames[e.Kind], e.Revision)
	if e.Session != 0 {
		b = fmt.Appendf(b, " %d", e.Session)
	}
	if e.Seq != 0 {
		b = fmt.Appendf(b, "/%d", e.Seq)
	}
	if e.Generation != 0 {
		b = fmt.Appendf(b, " generation=%d", e.Generation)
	}
	if e.Path != "" {
		b = fmt.Appendf(b, " [%s]", describeEntry(e.Entry))
	}
	if e.More {
		b = append(b, " ..."...)
	}
	return string(b)
}
