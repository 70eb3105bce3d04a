//go:build !linux

package hook

func systemClock() Clock { return TimeClock() }
