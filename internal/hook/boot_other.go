//go:build !linux && !darwin

package hook

func machineBoot() string { return "" }
