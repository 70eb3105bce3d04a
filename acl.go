package chubby

import (
	"errors"
	"fmt"

	"github.com/chubbygo/chubby/internal/command"
	"github.com/chubbygo/chubby/internal/wire"
)

// ACLNames name the access control lists of an entry (Chubby §2.3). A name X stands for the file /acl/X, which lists
// principals, one on a line; "*" is everybody. A principal is a node's ID, or for a dialled Client the first name of its
// certificate, or "client" where the cell has no certificates. An empty name is inherited: a new entry takes its parent's
// as it is at that moment.
//
//   - Read: contents, Stat, children, lock and events of the entry; conditions about it.
//   - Write: its contents, its children's coming, its own going, and its lock in either mode.
//   - ChangeACL: these names.
//
// Nothing is checked until the directory /acl exists; from then on what is not granted is ErrPermission. A path without
// an entry has the names of its nearest ancestor. Rights are judged when a call is executed, so that a change of a list
// counts at once, for handles that are open too; what is held or queued stays.
//
// To turn the lists on without locking anybody out, first name the root's through [Client.OpenHandle] and
// [Handle.SetACL]; then make all their files in one Txn, whose rights are judged by the state before it. Whoever may change
// the names of the root may change those of every entry. While the root's list for that is missing or empty, each node of
// the cell may, which is the way back in.
type ACLNames struct{ Read, Write, ChangeACL string }

// errGone is what a handle's calls return when its entry is not there any more.
var errGone = fmt.Errorf("%w: deleted, or deleted and made again, since this handle was opened", ErrNotFound)

// commandACL judges names and gives them their form in a command.
func commandACL(field string, a ACLNames) (command.ACL, error) {
	var errs []error
	check := func(part, name string) {
		if name == "" {
			return
		}
		if p, err := cleanPath("/acl/"+name, "", Limits{PathBytes: pathMax, Depth: 2}); err != nil || p != "/acl/"+name {
			errs = append(errs, fmt.Errorf("%w: %s.%s %q: use the name of a file in /acl, without the directory", ErrBadOptions, field, part, name))
		}
	}
	check("Read", a.Read)
	check("Write", a.Write)
	check("ChangeACL", a.ChangeACL)
	return command.ACL{Read: a.Read, Write: a.Write, Change: a.ChangeACL}, errors.Join(errs...)
}

// permissionError names who may not do what to what.
func permissionError(principal, path string, right command.Right) error {
	does := "read"
	switch right {
	case command.RightWrite:
		does = "write"
	case command.RightChange:
		does = "change the ACL of"
	}
	return fmt.Errorf("%w: principal %q may not %s %s", ErrPermission, principal, does, path)
}

// resultError is the error for a command of principal that the state machine refused.
func resultError(principal string, r *command.Result) error {
	if r.Code == command.Permission && r.Right != 0 {
		return permissionError(principal, r.Path, r.Right)
	}
	return codeError(r.Code)
}

// answerError is the error for a question that was not answered, or nil.
func answerError(principal string, a *wire.Answer) error {
	switch {
	case a.Code == command.OK:
		return nil
	case a.Code == command.Permission && a.Right != 0:
		return permissionError(principal, a.Entry.Path, a.Right)
	}
	return codeError(a.Code)
}
