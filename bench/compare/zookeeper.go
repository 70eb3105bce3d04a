package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// zooKeeper is an ensemble of three servers from the distribution's package, with its default of syncing each write. It
// runs without the package's scripts, which are for one server of a machine.
type zooKeeper struct {
	servers
	addrs []string // of servers, for clients
}

func openZooKeeper(ctx context.Context, dir string) (_ setter, err error) {
	java, err := lookup("java")
	if err != nil {
		return nil, err
	}
	const jar = "/usr/share/java/zookeeper.jar"
	if _, err := os.Stat(jar); err != nil {
		return nil, fmt.Errorf("%w: there is no %s", errMissing, jar)
	}
	addrs, err := freeAddrs(3 * nodes) // for clients, for followers, for elections
	if err != nil {
		return nil, err
	}
	z := &zooKeeper{addrs: addrs[:nodes]}
	defer func() {
		if err != nil {
			err = errors.Join(err, z.Close())
		}
	}()
	var ensemble strings.Builder
	for i := range nodes {
		fmt.Fprintf(&ensemble, "server.%d=127.0.0.1:%s:%s\n", i+1, portOf(addrs[nodes+i]), portOf(addrs[2*nodes+i]))
	}
	for i, addr := range z.addrs {
		place := filepath.Join(dir, fmt.Sprint(i))
		config := fmt.Sprintf("tickTime=2000\ninitLimit=10\nsyncLimit=5\nadmin.enableServer=false\nmaxClientCnxns=0\ndataDir=%s\nclientPort=%s\n%s", place, portOf(addr), &ensemble)
		err := errors.Join(os.Mkdir(place, 0o700),
			os.WriteFile(filepath.Join(place, "myid"), fmt.Append(nil, i+1), 0o600),
			os.WriteFile(filepath.Join(place, "zoo.cfg"), []byte(config), 0o600))
		if err == nil {
			err = z.start(place, "zookeeper", java, "-cp", jar, "org.apache.zookeeper.server.quorum.QuorumPeerMain", "zoo.cfg")
		}
		if err != nil {
			return nil, err
		}
	}
	return z, await(ctx, func() error { return z.fill(ctx) })
}

func (z *zooKeeper) Name() string { return "zookeeper" }

// fill makes the nodes that Set writes to.
func (z *zooKeeper) fill(ctx context.Context) error {
	c, err := z.Caller(ctx, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := -1; i < tableKeys; i++ {
		path := zooPath(i)
		if i < 0 {
			path = "/table"
		}
		b := appendZooString(nil, path)
		b = appendZooString(b, "") // data
		b = binary.BigEndian.AppendUint32(b, 1)
		b = binary.BigEndian.AppendUint32(b, 31) // all rights for everybody
		b = appendZooString(appendZooString(b, "world"), "anyone")
		b = binary.BigEndian.AppendUint32(b, 0) // no flags
		if err := c.(*zooCaller).call(zooCreate, b); err != nil && !errors.Is(err, zooError(zooNodeExists)) {
			return err
		}
	}
	return nil
}

func zooPath(key int) string { return fmt.Sprintf("/table/%04d", key) }

// Codes of ZooKeeper's protocol.
const (
	zooCreate     = 1
	zooSetData    = 5
	zooNodeExists = -110
)

type zooError int32

func (e zooError) Error() string { return fmt.Sprintf("zookeeper: error %d", int32(e)) }

// Caller opens a session on one of the servers. It sends no pings: a caller is never idle for as long as its session lives.
func (z *zooKeeper) Caller(ctx context.Context, i int) (setCaller, error) {
	conn, err := dial(ctx, z.addrs[i%nodes])
	if err != nil {
		return nil, err
	}
	c := &zooCaller{Conn: conn}
	hello := make([]byte, 4+8) // protocol version, last transaction seen
	hello = binary.BigEndian.AppendUint32(hello, 30_000)
	hello = append(hello, make([]byte, 8)...) // a new session
	hello = appendZooString(hello, string(make([]byte, 16)))
	hello = append(hello, 0) // not read-only
	if err = c.send(hello); err == nil {
		_, err = c.receive()
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

type zooCaller struct {
	net.Conn
	last uint32 // request
	buf  []byte
}

func (c *zooCaller) Set(_ context.Context, key int, value string) error {
	b := appendZooString(appendZooString(nil, zooPath(key)), value)
	return c.call(zooSetData, binary.BigEndian.AppendUint32(b, ^uint32(0))) // whatever its version
}

// call sends one request and waits for its answer.
func (c *zooCaller) call(kind uint32, body []byte) error {
	c.last++
	b := binary.BigEndian.AppendUint32(nil, c.last)
	b = binary.BigEndian.AppendUint32(b, kind)
	if err := c.send(append(b, body...)); err != nil {
		return err
	}
	answer, err := c.receive()
	switch {
	case err != nil:
		return err
	case len(answer) < 16 || binary.BigEndian.Uint32(answer) != c.last:
		return fmt.Errorf("zookeeper: an answer of %d bytes to another request", len(answer))
	}
	if code := int32(binary.BigEndian.Uint32(answer[12:])); code != 0 {
		return zooError(code)
	}
	return nil
}

func (c *zooCaller) send(b []byte) error {
	c.buf = binary.BigEndian.AppendUint32(c.buf[:0], uint32(len(b)))
	c.buf = append(c.buf, b...)
	_, err := c.Write(c.buf)
	return err
}

func (c *zooCaller) receive() ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > 1<<20 {
		return nil, fmt.Errorf("zookeeper: a frame of %d bytes", size)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(c, b)
	return b, err
}

func appendZooString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
