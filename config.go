package chubby

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serverConfig is the seed's server_config.json, field by field as ChubbyGo names them.
type serverConfig struct {
	ServersAddress   []string `json:"servers_address"` // the other servers
	MyPort           string   `json:"myport"`          // ":8902"
	MaxRetries       int      `json:"maxreries"`       // sic
	TimeoutEntry     int      `json:"timeout_entry"`   // milliseconds
	MaxRaftState     int64    `json:"maxraftstate"`    // bytes
	SnapshotFilename string   `json:"snapshotfilename"`
	RaftStateFile    string   `json:"raftstatefilename"`
	Persistence      string   `json:"persistencestrategy"` // always, everysec, no
	Map              string   `json:"chubbygomapstrategy"` // concurrentmap, syncmap
}

// clientConfig is the seed's client_config.json.
type clientConfig struct {
	ClientAddress []string `json:"client_address"`
	MaxRetries    int      `json:"maxreries"`
}

// configMax bounds a configuration file.
const configMax = 1 << 20

// LoadServerConfig makes Options from ChubbyGo's server_config.json.
//
// servers_address and myport become Peers and Listen, with "host:port" as the members' IDs; a myport without a host takes
// the host that the other addresses share. maxreries and timeout_entry (milliseconds) become StartAttempts and
// StartInterval, maxraftstate MaxLogBytes, persistencestrategy Sync, chubbygomapstrategy Map. The two file names become
// one directory, Dir, relative to the working directory, because both are parts of what chubby keeps together.
//
// It returns ErrBadOptions naming the file, each field that makes no sense, and the cure; or the error of reading the
// file. Unknown fields are refused. Fields of Options that the file has no word for may be set before Open.
func LoadServerConfig(file string) (Options, error) {
	var c serverConfig
	o, err := Options{}, readConfig(file, &c)
	if err == nil {
		o, err = c.options()
	}
	if err != nil {
		return Options{}, &Error{Op: "load server config", Path: file, Err: err}
	}
	return o, nil
}

func (c serverConfig) options() (Options, error) {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrBadOptions, fmt.Sprintf(format, args...)))
	}
	var hosts []string // of the other servers, each once
	peers := make(map[string]string)
	for i, addr := range c.ServersAddress {
		host, _, err := splitConfigAddr(addr)
		if err != nil || host == "" {
			bad("servers_address[%d] %q: use host:port", i, addr)
			continue
		}
		if peers[addr] != "" {
			bad("servers_address[%d] %q: listed twice", i, addr)
		}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
		peers[addr] = addr
	}
	self := c.MyPort
	mine, port, err := splitConfigAddr(c.MyPort)
	switch {
	case err != nil:
		bad("myport %q: use \":port\" or host:port", c.MyPort)
	case mine != "": // as it stands: it is also this server's ID, which the others spell the same way
	case len(hosts) > 1:
		// Any of them would be a guess, and a wrong one makes another list of members than the others have.
		bad("myport %q: the other servers are on %d hosts; use host:port to say which is this one's", c.MyPort, len(hosts))
	case len(hosts) == 1:
		self = net.JoinHostPort(hosts[0], port)
	default:
		self = net.JoinHostPort("localhost", port)
	}
	if peers[self] != "" {
		bad("myport %q: servers_address lists this server too; it names the others only", c.MyPort)
	}
	peers[self] = self
	if c.MaxRetries < 0 {
		bad("maxreries %d: use 0 for no bound, or a positive number", c.MaxRetries)
	}
	if c.TimeoutEntry < 0 || c.TimeoutEntry > 60_000 {
		bad("timeout_entry %d: use 1 to 60000 milliseconds, or 0 for 200", c.TimeoutEntry)
	}
	if c.MaxRaftState != 0 && c.MaxRaftState < logBytesMin {
		bad("maxraftstate %d: use at least %d bytes, or 0 for the default", c.MaxRaftState, logBytesMin)
	}
	o := Options{
		ID: self, Listen: self, Peers: peers,
		StartAttempts: c.MaxRetries, StartInterval: time.Duration(c.TimeoutEntry) * time.Millisecond, MaxLogBytes: c.MaxRaftState,
	}
	switch c.Persistence {
	case "", "always":
	case "everysec":
		o.Sync = SyncEverySecond
	case "no":
		o.Sync = SyncNever
	default:
		bad("persistencestrategy %q: use always, everysec or no", c.Persistence)
	}
	switch c.Map {
	case "":
	case "concurrentmap":
		o.Map = ConcurrentMap
	case "syncmap":
		o.Map = SyncMap
	default:
		bad("chubbygomapstrategy %q: use concurrentmap or syncmap", c.Map)
	}
	name := c.RaftStateFile
	if name == "" {
		name = c.SnapshotFilename
	}
	if name == "" {
		bad("raftstatefilename: empty; name a file, whose place becomes the data directory")
	}
	o.Dir = configDir(name)
	if errs != nil {
		return Options{}, errors.Join(errs...)
	}
	// What the file has no rule for, such as the number of servers, Open would refuse later and without its name.
	if err := o.withDefaults().validate(); err != nil {
		return Options{}, err
	}
	return o, nil
}

// configDir makes a directory's name of a file's: "Persister/raftstate1.hdb" becomes "Persister/raftstate1".
func configDir(name string) string {
	name = filepath.FromSlash(name)
	if stem := strings.TrimSuffix(name, filepath.Ext(name)); stem != "" && !os.IsPathSeparator(stem[len(stem)-1]) {
		return stem
	}
	return name // ".hdb": without its extension there is no name left, and no Dir means memory
}

// splitConfigAddr takes "host:port" or ":port" with a port that somebody else can connect to.
func splitConfigAddr(addr string) (host, port string, err error) {
	if err := checkAddr(addr); err != nil {
		return "", "", err
	}
	host, port, err = net.SplitHostPort(addr)
	if n, convErr := strconv.ParseUint(port, 10, 16); err == nil && (convErr != nil || n == 0) {
		err = fmt.Errorf("port %q: use 1 to 65535", port)
	}
	return host, port, err
}

// LoadClientConfig makes DialOptions from ChubbyGo's client_config.json: client_address becomes Addrs and maxreries
// MaxRetries. Its errors are those of LoadServerConfig.
func LoadClientConfig(file string) (DialOptions, error) {
	var c clientConfig
	err := readConfig(file, &c)
	if err == nil {
		err = c.validate()
	}
	if err != nil {
		return DialOptions{}, &Error{Op: "load client config", Path: file, Err: err}
	}
	return DialOptions{Addrs: c.ClientAddress, MaxRetries: c.MaxRetries}, nil
}

func (c clientConfig) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrBadOptions, fmt.Sprintf(format, args...)))
	}
	if len(c.ClientAddress) == 0 {
		bad("client_address: empty; list the members' addresses")
	}
	for i, addr := range c.ClientAddress {
		if host, _, err := splitConfigAddr(addr); err != nil || host == "" {
			bad("client_address[%d] %q: use host:port", i, addr)
		}
		if slices.Contains(c.ClientAddress[:i], addr) {
			bad("client_address[%d] %q: listed twice", i, addr) // it would count twice in a majority
		}
	}
	if c.MaxRetries < 0 {
		bad("maxreries %d: use 0 for no bound, or a positive number", c.MaxRetries)
	}
	return errors.Join(errs...)
}

// readConfig reads one JSON object without unknown fields and with nothing behind it.
func readConfig(file string, into any) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, configMax+1))
	if err != nil {
		return err
	}
	return parseConfig(b, into)
}

func parseConfig(b []byte, into any) error {
	if len(b) > configMax {
		return fmt.Errorf("%w: more than %d bytes", ErrBadOptions, configMax)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: not a configuration: %w; its fields are %s", ErrBadOptions, err, configFields(into))
	}
	// Not Decoder.More, which takes a closing bracket for an end.
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: something follows the configuration's closing bracket", ErrBadOptions)
	}
	return nil
}

// configFields names the fields of a configuration, for whoever spelled one as English does.
func configFields(config any) string {
	t := reflect.TypeOf(config).Elem()
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("json")
	}
	return strings.Join(names, ", ")
}
