package chubby

import (
	"fmt"
	"runtime/debug"
)

const (
	logFileName     = "log.db"
	snapFileName    = "snap.db"
	journalFileName = "journal"
)

// corruptf says what is damaged, where, and what to do about it.
func corruptf(file, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s; remove the directory and rejoin as a new member, or Restore a backup",
		ErrCorrupt, file, fmt.Sprintf(format, args...))
}

// guard runs f, which works on mapped files: what a damaged or unreadable one makes bolt panic with, page faults
// included, becomes ErrCorrupt. Nothing may use the file after that but close.
func guard(f func() error) (err error) {
	old := debug.SetPanicOnFault(true)
	defer debug.SetPanicOnFault(old)
	defer func() {
		if p := recover(); p != nil {
			err = corruptf("storage", "%v", p)
		}
	}()
	return f()
}
