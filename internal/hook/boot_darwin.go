package hook

import "golang.org/x/sys/unix"

func machineBoot() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
