package recipes

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/chubbygo/chubby"
)

// ErrBroken means that a session was lost that the others relied on: what they waited for will not happen, or did not
// happen as it should.
var ErrBroken = errors.New("broken by a lost session")

// fail gives err the name of what the recipe was doing. The step that the recipe was at is an implementation's concern,
// so its own op and path give way.
func fail(op, path string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*chubby.Error); ok {
		err = e.Err
	}
	return &chubby.Error{Op: op, Path: path, Err: err}
}

// checkPlace judges what every constructor is given.
func checkPlace(what string, c *chubby.Client, path string) error {
	switch {
	case c == nil:
		return fail(what, path, fmt.Errorf("%w: Client: nil; pass node.Client", chubby.ErrBadOptions))
	case strings.Trim(path, "/") == "":
		return fail(what, path, fmt.Errorf("%w: %q: the root is no place for it; name an entry", chubby.ErrBadPath, path))
	}
	return nil
}

// checkName judges a name that becomes one part of a path.
func checkName(field, name string) error {
	if name == "" || strings.ContainsRune(name, '/') {
		return fmt.Errorf("%w: %s %q: use a name of 1 to 255 bytes without \"/\"", chubby.ErrBadOptions, field, name)
	}
	return nil
}

// base is the last part of a path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// cleanupTime is how long a call may go on after its ctx has ended, to take back what it left in the cell.
const cleanupTime = time.Second

// end closes a session that was opened for one purpose. If the cell cannot be told, the session ends with its lease,
// since nobody keeps it alive any more.
func end(ctx context.Context, s *chubby.Session) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	_ = s.Close(ctx)
}

// follow registers a watch at path, calls read, and then event for every event, until one of them says that it is done
// or fails. What is acknowledged after read began is an event, maybe also of what read has seen already. When events
// were lost it begins again.
func follow(ctx context.Context, c *chubby.Client, path string, o chubby.WatchOptions, read func() (done bool, err error), event func(chubby.Event) (done bool, err error)) error {
	for {
		err := followOnce(ctx, c, path, o, read, event)
		if !errors.Is(err, chubby.ErrLagged) {
			return err
		}
	}
}

func followOnce(ctx context.Context, c *chubby.Client, path string, o chubby.WatchOptions, read func() (bool, error), event func(chubby.Event) (bool, error)) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel() // frees a watch that is not looped over
	events := c.Watch(watching, path, o)
	if done, err := read(); done || err != nil {
		return err
	}
	for e, err := range events {
		if err != nil {
			return err
		}
		if done, err := event(e); done || err != nil {
			return err
		}
	}
	return ctx.Err()
}
