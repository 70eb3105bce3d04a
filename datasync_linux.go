package chubby

import (
	"os"
	"syscall"
)

// dataSync makes the contents of f durable, without its times: their change alone would cost a second flush.
func dataSync(f *os.File) error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			if err != nil {
				return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
			}
			return nil
		}
	}
}
