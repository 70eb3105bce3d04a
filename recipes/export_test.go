package recipes

import "strconv"

// RoundOf names the party's round.
func RoundOf(p *Party) string { return strconv.FormatUint(p.round, 10) }
