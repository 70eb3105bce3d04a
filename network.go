package chubby

import (
	"context"
	"net"
)

// Network gives streams between nodes. Both methods are safe for concurrent use. The default is TCP.
type Network interface {
	// Listen opens addr for others to dial. Its listener's Addr tells the bound port where addr asks for port 0.
	Listen(ctx context.Context, addr string) (net.Listener, error)
	// Dial opens a stream to whoever listens at addr. It may resolve names; it is called anew for each stream.
	Dial(ctx context.Context, addr string) (net.Conn, error)
}
