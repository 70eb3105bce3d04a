package chubby

import (
	"os"

	"golang.org/x/sys/windows"
)

// freeBytes is what the disk of dir has left for this user.
func freeBytes(dir string) (int64, error) {
	var free uint64
	p, err := windows.UTF16PtrFromString(dir)
	if err == nil {
		err = windows.GetDiskFreeSpaceEx(p, &free, nil, nil)
	}
	if err != nil {
		return 0, &os.PathError{Op: "GetDiskFreeSpaceEx", Path: dir, Err: err}
	}
	return int64(free), nil
}
