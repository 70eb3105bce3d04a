//go:build !linux

package chubby

import "os"

// dataSync makes the contents of f durable.
func dataSync(f *os.File) error { return f.Sync() }
