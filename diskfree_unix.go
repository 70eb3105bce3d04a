//go:build linux || darwin || freebsd

package chubby

import (
	"os"

	"golang.org/x/sys/unix"
)

// freeBytes is what the file system of dir has left for users other than root.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	for {
		if err := unix.Statfs(dir, &st); err != unix.EINTR {
			if err != nil {
				return 0, &os.PathError{Op: "statfs", Path: dir, Err: err}
			}
			return int64(st.Bavail) * int64(st.Bsize), nil
		}
	}
}
