//go:build !linux && !darwin && !freebsd && !windows

package chubby

import "errors"

// freeBytes is not known here: Limits.MinFreeDisk has no effect.
func freeBytes(string) (int64, error) { return 0, errors.ErrUnsupported }
