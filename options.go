package chubby

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/chubbygo/chubby/internal/hook"
	"github.com/chubbygo/chubby/internal/index"
)

// Options says what node Open makes. The zero value is a cell of one in memory. Open takes a copy; later changes have
// no effect.
type Options struct {
	// ID is the stable name of this node in the cell, independent of its address: 1 to 255 bytes of UTF-8 without
	// control characters. It may be empty only without Peers and Join, and is then "local".
	ID string
	// Cell is the cell's name, by the same rules and without "/". Empty means "local".
	Cell string
	// Dir is the data directory. It is created with mode 0700 and belongs to one node at a time. Empty keeps everything
	// in memory: such a node comes back from a restart as one with a wiped disk.
	Dir string
	// Listen is the "host:port" that other nodes connect to; port 0 takes a free one. Empty means no network, which only
	// a cell of one can do without.
	Listen string
	// Advertise is the "host:port" that peers dial. Empty means Listen with the bound port.
	Advertise string
	// Peers are the first members of the cell, ID to address, this node included, equal on every node. All of them must
	// be up once for the cell to be founded. Once a directory has state, Peers only adds addresses to try for members
	// known by ID, so it is always safe to pass again.
	Peers map[string]string
	// Join are addresses of running nodes of a cell, instead of Peers: any of them is asked, again and again, to have this
	// node taken in. It gets a vote once it has caught up. Once a directory has state, Join only adds addresses to try, so
	// it is always safe to pass again; a directory that is lost or wiped needs RemoveMember before its ID can join again.
	Join []string
	// Nonvoter joins without a vote: full local state, full API. AddVoter gives it a vote later. It needs Join, and means
	// nothing once the directory has state.
	Nonvoter bool

	// TLS turns on mutual TLS 1.3 under the cell's own CA: Certificates and RootCAs (or ClientCAs) must be set, and each
	// node's certificate must carry its ID as a subject alternative name.
	TLS *tls.Config
	// Secret, at least 32 random bytes shared by all nodes of the cell, turns on mutual TLS 1.3 without a PKI. Whoever
	// has it is trusted as a member.
	Secret []byte
	// Insecure allows addresses beyond this machine without TLS and Secret. Whoever reaches the port then owns the data.
	Insecure bool

	// Sync says when a write reaches the disk. With the zero value, SyncAlways, it has when it is acknowledged.
	Sync SyncPolicy
	// Map chooses what point reads of this node's state (Get, FastGet, Stat, Leader) look into first. Answers are the same
	// with all of them; nodes of one cell may differ. The default is what bench/maps says is best.
	Map MapStrategy
	// MaxLogBytes bounds the live log: at 85 % of it the node takes a snapshot and drops what that covers. 0 means
	// 64 MiB; at least 64 KiB. The file does not shrink, it is used again.
	MaxLogBytes int64
	// SessionLease is how long a session lives without hearing from the cell; 1 s to 1 h and at least 5 heartbeats.
	// 0 means 12 s (Chubby §2.8).
	SessionLease time.Duration
	// GracePeriod is how long a session in jeopardy waits to be saved before it counts as lost; up to 1 h. 0 means 45 s
	// (Chubby §2.9), negative none.
	GracePeriod time.Duration
	// HeartbeatTimeout is how long a follower waits for its leader before it calls an election; 20 ms to 1 min.
	// 0 means 200 ms, which suits a LAN; 50 ms suits a quiet one, 1 s several sites.
	HeartbeatTimeout time.Duration
	// ElectionTimeout is how long an election may take before it is repeated; at least HeartbeatTimeout, which 0 means.
	ElectionTimeout time.Duration
	// StartAttempts is how often WaitReady tries before it gives up. 0 means until its context ends.
	StartAttempts int
	// StartInterval is the time of the first try; it doubles, with jitter, up to 5 s. 0 means 200 ms.
	StartInterval time.Duration
	// Limits bounds what callers and the cell's state may use.
	Limits Limits
	// Logger receives what an operator should know. Nil discards it.
	Logger *slog.Logger
	// AutoReplace lets the cell replace dead members by itself. This version refuses it with ErrBadOptions.
	AutoReplace time.Duration
	// Network replaces TCP. Nil is TCP.
	Network Network
	// Hooks are seams for this module's tests.
	Hooks *hook.Hooks

	_ struct{}
}

// DialOptions says which cell to reach from a process that is no member of it.
type DialOptions struct {
	// Addrs are members' addresses.
	Addrs []string
	// Cell is the cell's name. Empty means "local".
	Cell string
	// TLS, Secret and Insecure are as in Options.
	TLS      *tls.Config
	Secret   []byte
	Insecure bool
	// MaxRetries bounds how often an unreachable cell is tried. 0 means until the context ends.
	MaxRetries int
	// CacheBytes, if positive, is the size of a consistent client cache (Chubby §2.7): Get and Stat of files, and of what
	// does not exist, are answered from memory and are as linearizable as without it. Directories and lists are not cached.
	// Whoever changes an entry waits until every client that caches it has dropped it; for a client that is gone, or
	// silent, at most 2 s. SessionLease must be at least 1.5 s then. 0 means none.
	CacheBytes int64
	// SessionLease and GracePeriod are as in Options.
	SessionLease time.Duration
	GracePeriod  time.Duration
	// Logger receives what an operator should know. Nil discards it.
	Logger *slog.Logger
	// Network replaces TCP. Nil is TCP.
	Network Network

	_ struct{}
}

// SyncPolicy says when a write reaches the disk. Term and vote, and all that is no entry of the log, always do before they
// count, and no policy loses anything when a process ends, killed or not.
//
// With SyncEverySecond and SyncNever a machine that loses its power, or whose kernel dies, takes along writes that were
// acknowledged: those of the last second, or about the last 2 MiB of the log. Its node does not come back as if nothing had
// happened: Open finds that the machine was started again without a Close of the node before, and returns ErrCorrupt, as
// for a lost disk. While a majority of the cell is not hit by the same, nothing is lost: remove the directory and let the
// node rejoin as a new member. If a majority is, Recover one of them, or Restore a backup.
//
// Where a machine cannot tell one start from another, which Linux (by /proc) and macOS can, every policy is SyncAlways.
type SyncPolicy int

const (
	SyncAlways      SyncPolicy = iota // before it is acknowledged
	SyncEverySecond                   // once a second
	SyncNever                         // when the operating system sees fit, and when the node is closed
)

// MapStrategy names the index in front of the ordered tree that holds the state. An index makes point reads faster, and
// costs memory for each entry and time with each write, with each start and with each snapshot from another node.
type MapStrategy int

const (
	TreeMap       MapStrategy = iota // none: the tree itself
	ConcurrentMap                    // Go maps under locks of their own, chosen by xxhash of the path
	SyncMap                          // sync.Map
)

func (m MapStrategy) index() index.Kind {
	return [...]index.Kind{TreeMap: index.None, ConcurrentMap: index.Shards, SyncMap: index.Sync}[m]
}

// Limits bounds what callers and the cell's state may use. Zero means the default. A negative Children, Entries,
// Sessions, Waiters, Watchers, TotalBytes or MinFreeDisk means no limit; a negative value elsewhere is ErrBadOptions.
// Limits are judged where a command enters or by the cell leader, so what is in flight may overshoot them.
type Limits struct {
	ValueBytes      int   // contents of one entry; 256 KiB, at most 512 KiB; beyond: ErrTooLarge
	PathBytes       int   // a path in the form "/a/b"; 1 KiB, at most 4 KiB; beyond: ErrBadPath
	Depth           int   // parts of a path; 32, at most 255; beyond: ErrBadPath
	Children        int   // entries in one directory; 1,000,000; beyond: ErrNoSpace
	Entries         int   // entries in the cell; 10,000,000; beyond: ErrNoSpace
	Sessions        int   // sessions in the cell; 100,000; beyond: ErrOverloaded
	Waiters         int   // waiting lock calls in the cell; 1,000,000; beyond: ErrOverloaded
	Watchers        int   // watches on this node; 100,000; beyond: ErrOverloaded
	PendingCommands int   // commands in flight on this node; 65,536; beyond: ErrOverloaded
	PendingBytes    int64 // their bytes; 64 MiB; beyond: ErrOverloaded
	TotalBytes      int64 // contents and paths in the cell; 4 GiB; beyond: ErrNoSpace
	MinFreeDisk     int64 // free bytes on the disk of Dir, below which nothing is added; 64 MiB; below: ErrNoSpace
}

const (
	leaseMin     = time.Second
	leaseMax     = time.Hour
	graceMax     = time.Hour
	heartbeatMin = 20 * time.Millisecond
	heartbeatMax = time.Minute
	logBytesMin  = 64 << 10
	valueMax     = 512 << 10 // so that a command with a few of them stays below commandMax
	pathMax      = 4 << 10
	depthMax     = 255
	nameMax      = 255
	secretMin    = 32
	intervalMax  = 5 * time.Second // StartInterval grows up to it
)

// withDefaults returns a copy in which every field that is zero has its default.
func (o Options) withDefaults() Options {
	if o.ID == "" && len(o.Peers) == 0 && len(o.Join) == 0 {
		o.ID = "local"
	}
	setDefault(&o.Cell, "local")
	setDefault(&o.MaxLogBytes, 64<<20)
	setDefault(&o.SessionLease, 12*time.Second)
	setDefault(&o.GracePeriod, 45*time.Second)
	o.GracePeriod = max(o.GracePeriod, 0) // negative means none
	setDefault(&o.HeartbeatTimeout, 200*time.Millisecond)
	setDefault(&o.ElectionTimeout, o.HeartbeatTimeout)
	setDefault(&o.StartInterval, 200*time.Millisecond)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Hooks == nil {
		o.Hooks = &hook.Hooks{}
	}
	peers := make(map[string]string, len(o.Peers))
	for id, addr := range o.Peers {
		peers[id] = addr
	}
	o.Peers = peers
	o.Join = slices.Clone(o.Join)
	o.Limits = o.Limits.withDefaults()
	return o
}

func (l Limits) withDefaults() Limits {
	setDefault(&l.ValueBytes, 256<<10)
	setDefault(&l.PathBytes, 1<<10)
	setDefault(&l.Depth, 32)
	setDefault(&l.PendingCommands, 65536)
	setDefault(&l.PendingBytes, 64<<20)
	for _, f := range []struct {
		p *int
		d int
	}{{&l.Children, 1_000_000}, {&l.Entries, 10_000_000}, {&l.Sessions, 100_000}, {&l.Waiters, 1_000_000}, {&l.Watchers, 100_000}} {
		setDefault(f.p, f.d)
		if *f.p < 0 {
			*f.p = math.MaxInt
		}
	}
	setDefault(&l.TotalBytes, 4<<30)
	if l.TotalBytes < 0 {
		l.TotalBytes = math.MaxInt64
	}
	setDefault(&l.MinFreeDisk, 64<<20)
	return l
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// validate judges options that withDefaults has filled. It reports all that is wrong at once.
func (o Options) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrBadOptions, fmt.Sprintf(format, args...)))
	}
	if err := checkName(o.ID); err != nil {
		bad("ID %q: %v; give the node a name that stays the same", o.ID, err)
	}
	if err := checkName(o.Cell); err != nil || strings.Contains(o.Cell, "/") {
		bad("Cell %q: it must be 1 to %d bytes of printable UTF-8 without \"/\"", o.Cell, nameMax)
	}
	o.validateMembers(bad)
	if o.TLS != nil && len(o.Secret) > 0 {
		bad("TLS and Secret: choose one of them")
	}
	if o.Secret != nil && len(o.Secret) < secretMin {
		bad("Secret: %d bytes; use at least %d random bytes", len(o.Secret), secretMin)
	}
	if o.Sync < SyncAlways || o.Sync > SyncNever {
		bad("Sync %d: use SyncAlways, SyncEverySecond or SyncNever", o.Sync)
	}
	if o.Map < TreeMap || o.Map > SyncMap {
		bad("Map %d: use TreeMap, ConcurrentMap or SyncMap", o.Map)
	}
	if o.MaxLogBytes < logBytesMin {
		bad("MaxLogBytes %d: use at least %d, or 0 for the default", o.MaxLogBytes, logBytesMin)
	}
	if o.HeartbeatTimeout < heartbeatMin || o.HeartbeatTimeout > heartbeatMax {
		bad("HeartbeatTimeout %v: use %v to %v, or 0 for 200ms", o.HeartbeatTimeout, heartbeatMin, heartbeatMax)
	}
	if o.ElectionTimeout < o.HeartbeatTimeout || o.ElectionTimeout > heartbeatMax {
		bad("ElectionTimeout %v: use HeartbeatTimeout (%v) to %v, or 0", o.ElectionTimeout, o.HeartbeatTimeout, heartbeatMax)
	}
	if err := checkLease("SessionLease", o.SessionLease, o.GracePeriod, o.HeartbeatTimeout); err != nil {
		errs = append(errs, err)
	}
	if o.StartAttempts < 0 {
		bad("StartAttempts %d: use 0 for no bound, or a positive number", o.StartAttempts)
	}
	if o.StartInterval < time.Millisecond || o.StartInterval > time.Minute {
		bad("StartInterval %v: use 1ms to 1m, or 0 for 200ms", o.StartInterval)
	}
	if o.AutoReplace != 0 {
		bad("AutoReplace %v: this version does not replace members by itself; leave it 0", o.AutoReplace)
	}
	o.Limits.validate(bad)
	return errors.Join(errs...)
}

// validateMembers judges the fields that say who is in the cell and where.
func (o Options) validateMembers(bad func(string, ...any)) {
	if o.Listen != "" {
		if err := checkAddr(o.Listen); err != nil {
			bad("Listen %q: %v", o.Listen, err)
		}
	}
	if o.Advertise != "" {
		if err := checkAddr(o.Advertise); err != nil {
			bad("Advertise %q: %v", o.Advertise, err)
		}
		if o.Listen == "" {
			bad("Advertise %q: there is no Listen to advertise", o.Advertise)
		}
	}
	for i, addr := range o.Join {
		if err := checkAddr(addr); err != nil {
			bad("Join[%d] %q: %v", i, addr, err)
		} else if _, port, _ := net.SplitHostPort(addr); port == "0" {
			bad("Join[%d] %q: port 0 tells nobody where to connect; name the port", i, addr)
		}
	}
	if len(o.Join) > 0 && o.Listen == "" {
		bad("Listen: empty, but Join is set; give the address at which the cell reaches this node")
	}
	if len(o.Join) > 0 && o.Advertise == "" && everywhere(o.Listen) {
		bad("Listen %q: it names no host that the cell could dial, and Join is set; set Advertise", o.Listen)
	}
	if o.Nonvoter && len(o.Join) == 0 {
		bad("Nonvoter: only a node that joins can do without a vote; set Join")
	}
	if len(o.Peers) == 0 {
		return
	}
	if _, ok := o.Peers[o.ID]; !ok {
		bad("Peers: no entry for this node's ID %q; list every first member, this one included", o.ID)
	}
	if o.Listen == "" && len(o.Peers) > 1 {
		bad("Listen: empty, but Peers has %d members; give the address the others reach", len(o.Peers))
	}
	if len(o.Peers) > 7 {
		bad("Peers: %d members; a cell has at most 7 voters", len(o.Peers))
	}
	seen := make(map[string]string)
	for _, id := range sortedKeys(o.Peers) {
		addr := o.Peers[id]
		if err := checkName(id); err != nil {
			bad("Peers: ID %q: %v", id, err)
		}
		if err := checkAddr(addr); err != nil {
			bad("Peers[%q] %q: %v", id, addr, err)
		}
		if _, port, _ := net.SplitHostPort(addr); port == "0" && len(o.Peers) > 1 {
			bad("Peers[%q] %q: port 0 tells nobody where to connect; name the port", id, addr)
		}
		if other, ok := seen[addr]; ok {
			bad("Peers[%q] %q: the same address as Peers[%q]", id, addr, other)
		}
		seen[addr] = id
	}
}

func (l Limits) validate(bad func(string, ...any)) {
	between := func(field string, v, lo, hi int64) {
		if v < lo || v > hi {
			bad("Limits.%s %d: use %d to %d, or 0 for the default", field, v, lo, hi)
		}
	}
	between("ValueBytes", int64(l.ValueBytes), 1, valueMax)
	between("PathBytes", int64(l.PathBytes), 2, pathMax)
	between("Depth", int64(l.Depth), 1, depthMax)
	between("PendingCommands", int64(l.PendingCommands), 1, 1<<20)
	between("PendingBytes", l.PendingBytes, commandMax, 1<<40)
}

// checkLease judges the times of a session against each other and the cell's heartbeat.
func checkLease(field string, lease, grace, heartbeat time.Duration) error {
	var errs []error
	if lease < leaseMin || lease > leaseMax {
		errs = append(errs, fmt.Errorf("%w: %s %v: use %v to %v, or 0 for the default", ErrBadOptions, field, lease, leaseMin, leaseMax))
	} else if lease < 5*heartbeat {
		errs = append(errs, fmt.Errorf("%w: %s %v: shorter than 5 heartbeats of %v, so that one election would end it; use a longer lease or a shorter HeartbeatTimeout", ErrBadOptions, field, lease, heartbeat))
	}
	if grace > graceMax {
		errs = append(errs, fmt.Errorf("%w: grace period %v: use at most %v, or a negative one for none", ErrBadOptions, grace, graceMax))
	}
	return errors.Join(errs...)
}

// checkName judges IDs and names of cells and sessions.
func checkName(s string) error {
	switch {
	case s == "":
		return errors.New("empty")
	case len(s) > nameMax:
		return fmt.Errorf("%d bytes, at most %d", len(s), nameMax)
	case !printable(s):
		return errors.New("not printable UTF-8")
	}
	return nil
}

// checkAddr judges the form of an address; whether anybody is there shows later.
func checkAddr(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("not of the form host:port: %v", err)
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' }) || port == "" {
		return errors.New("not of the form host:port")
	}
	return nil
}

// everywhere reports whether addr is that of a listener on all interfaces, which nobody can dial from elsewhere.
func everywhere(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
