package chubby

import (
	"github.com/chubbygo/chubby/internal/hook"
)

// RecoverDisk is Recover for a node whose state is in memory.
func RecoverDisk(d *hook.Disk) error { return recoverStore(storeConfig{Disk: d, Whoever: true}) }

// RestoreTemp is what a Restore that died leaves in a directory.
const RestoreTemp = restoreTemp
