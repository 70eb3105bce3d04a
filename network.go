package chubby

import (
	"context"
	"net"
	"time"
)

// Network gives streams between nodes. Both methods are safe for concurrent use. The default is TCP.
type Network interface {
	// Listen opens addr for others to dial. Its listener's Addr tells the bound port where addr asks for port 0.
	Listen(ctx context.Context, addr string) (net.Listener, error)
	// Dial opens a stream to whoever listens at addr. It may resolve names; it is called anew for each stream.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}

// tcpKeepAlive notices a dead machine under streams that have not yet said hello; the others have frames for that.
const tcpKeepAlive = 5 * time.Second

// tcpNetwork is the Network of a node that was given none.
type tcpNetwork struct{}

func (tcpNetwork) Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAlive: tcpKeepAlive}
	return lc.Listen(ctx, "tcp", addr)
}

func (tcpNetwork) Dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: tcpKeepAlive}
	return d.DialContext(ctx, "tcp", addr)
}
