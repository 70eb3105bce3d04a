package chubby

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
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
// the host that the other addresses have. maxreries and timeout_entry (milliseconds) become StartAttempts and
// StartInterval, maxraftstate MaxLogBytes, persistencestrategy Sync, chubbygomapstrategy Map. The two file names become
// one directory, Dir, relative to the working directory, because both are parts of what chubby keeps together.
//
// It returns ErrBadOptions naming the file, each field that makes no sense, and the cure. Unknown fields are refused.
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
	host := ""
	peers := make(map[string]string)
	for i, addr := range c.ServersAddress {
		h, _, err := net.SplitHostPort(addr)
		if err != nil || h == "" {
			bad("servers_address[%d] %q: use host:port", i, addr)
			continue
		}
		if peers[addr] != "" {
			bad("servers_address[%d] %q: listed twice", i, addr)
		}
		if host == "" {
			host = h
		}
		peers[addr] = addr
	}
	mine, port, err := net.SplitHostPort(c.MyPort)
	if err != nil || port == "" || port == "0" {
		bad("myport %q: use \":port\" or host:port", c.MyPort)
	}
	if mine == "" {
		mine = host
	}
	if mine == "" {
		mine = "localhost"
	}
	self := net.JoinHostPort(mine, port)
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
	if errs != nil {
		return Options{}, errors.Join(errs...)
	}
	o.Dir = strings.TrimSuffix(filepath.FromSlash(name), filepath.Ext(name))
	return o, nil
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
	if len(c.ClientAddress) == 0 {
		errs = append(errs, fmt.Errorf("%w: client_address: empty; list the members' addresses", ErrBadOptions))
	}
	for i, addr := range c.ClientAddress {
		if err := checkAddr(addr); err != nil {
			errs = append(errs, fmt.Errorf("%w: client_address[%d] %q: %v", ErrBadOptions, i, addr, err))
		}
	}
	if c.MaxRetries < 0 {
		errs = append(errs, fmt.Errorf("%w: maxreries %d: use 0 for no bound, or a positive number", ErrBadOptions, c.MaxRetries))
	}
	return errors.Join(errs...)
}

// readConfig reads one JSON object without unknown fields and with nothing behind it.
func readConfig(file string, into any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return parseConfig(b, into)
}

func parseConfig(b []byte, into any) error {
	if len(b) > configMax {
		return fmt.Errorf("%w: %d bytes, at most %d", ErrBadOptions, len(b), configMax)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: not the JSON of a configuration: %w", ErrBadOptions, err)
	}
	if d.More() {
		return fmt.Errorf("%w: more than one JSON value", ErrBadOptions)
	}
	return nil
}
