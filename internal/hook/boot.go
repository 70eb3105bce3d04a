package hook

// MachineBoot names the run of this machine from one start of its kernel to the next: what a process wrote and did not
// sync is safe from the process's end for as long as it stays the same. It is "" where the machine does not tell.
//
// On Linux it is the kernel's boot_id, on macOS its boot session. Other systems tell when they were started only, by a
// clock that is set while they run.
func MachineBoot() string { return machineBoot() }
