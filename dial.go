package chubby

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/chubbygo/chubby/internal/cache"
	"github.com/chubbygo/chubby/internal/hook"
)

// addrsMax is how many members a client connects to.
const addrsMax = 16

// Dial gives a Client of a cell of which this process is no member. It connects to each of Addrs and returns when a
// majority of them has answered; the connections are made again whenever they break, for as long as the Client lives.
// Calls go to one member, its home, the nearest of those that are in touch with the cell leader; when it is lost, to
// another. The Client has sessions of its own, and everything holds for it that holds for a node's.
//
// FastGet asks the home's memory, so it is one hop away. Watches and waiting Lock calls go on at another member when the
// home is lost.
//
// It returns ErrBadOptions with all that is wrong, ErrInsecureListen, ErrWrongCell or ErrPermission as soon as one member
// answers so, and the error of ctx, or after MaxRetries, with ErrNoQuorum and what each address said. ctx bounds Dial
// only. Whoever gets a Client must Close it.
func Dial(ctx context.Context, opts DialOptions) (*Client, error) {
	c, err := dial(ctx, opts.withDefaults())
	if err != nil {
		return nil, &Error{Op: "dial", Path: strings.Join(opts.Addrs, ","), Err: err}
	}
	return c, nil
}

func dial(ctx context.Context, o DialOptions) (*Client, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	security, err := newSecurity(o.TLS, o.Secret, "")
	if err != nil {
		return nil, err
	}
	if o.Network == nil {
		addrs := make(map[string]string, len(o.Addrs))
		for i, addr := range o.Addrs {
			addrs[fmt.Sprintf("Addrs[%d]", i)] = addr
		}
		if err := checkExposure(addrs, security != nil, o.Insecure); err != nil {
			return nil, err
		}
		o.Network = tcpNetwork{}
	}
	r, err := newRemote(o, security, hook.SystemClock())
	if err != nil {
		return nil, err
	}
	c, err := r.meet(ctx)
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return c, nil
}

// withDefaults returns a copy in which every field that is zero has its default.
func (o DialOptions) withDefaults() DialOptions {
	o.Addrs = slices.Clone(o.Addrs)
	o.Secret = slices.Clone(o.Secret)
	setDefault(&o.Cell, "local")
	setDefault(&o.SessionLease, 12*time.Second)
	setDefault(&o.GracePeriod, 45*time.Second)
	o.GracePeriod = max(o.GracePeriod, 0) // negative means none
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// validate judges options that withDefaults has filled. It reports all that is wrong at once.
func (o DialOptions) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: %s", ErrBadOptions, fmt.Sprintf(format, args...)))
	}
	if len(o.Addrs) == 0 {
		bad("Addrs: empty; list the addresses of the cell's members")
	}
	if len(o.Addrs) > addrsMax {
		bad("Addrs: %d addresses, at most %d", len(o.Addrs), addrsMax)
	}
	for i, addr := range o.Addrs {
		if err := checkAddr(addr); err != nil {
			bad("Addrs[%d] %q: %v", i, addr, err)
		}
		if slices.Contains(o.Addrs[:i], addr) {
			bad("Addrs[%d] %q: listed twice; it would count twice in a majority", i, addr)
		}
	}
	if err := checkName(o.Cell); err != nil || strings.Contains(o.Cell, "/") {
		bad("Cell %q: it must be 1 to %d bytes of printable UTF-8 without \"/\"", o.Cell, nameMax)
	}
	if o.TLS != nil && len(o.Secret) > 0 {
		bad("TLS and Secret: choose one of them")
	}
	if o.Secret != nil && len(o.Secret) < secretMin {
		bad("Secret: %d bytes; use the cell's, which has at least %d", len(o.Secret), secretMin)
	}
	if o.MaxRetries < 0 {
		bad("MaxRetries %d: use 0 for no bound, or a positive number", o.MaxRetries)
	}
	if o.CacheBytes < 0 {
		bad("CacheBytes %d: use 0 for no cache, or a positive number", o.CacheBytes)
	}
	if o.CacheBytes > 0 && o.SessionLease < cache.ClientLease {
		bad("SessionLease %v: with CacheBytes at least %v, which is how long the cell waits for a cache", o.SessionLease, cache.ClientLease)
	}
	if err := checkLease("SessionLease", o.SessionLease, o.GracePeriod, 0); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
