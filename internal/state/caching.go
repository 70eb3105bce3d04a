package state

import "slices"

// What the cell leader asks for the client cache; see internal/cache.

// Caches reports whether the session lives, and was opened by principal as one whose client caches, with a lease of at
// least so many milliseconds.
func (s *State) Caches(session uint64, principal string, least uint64) bool {
	v, ok := s.sessions.get(key64(session))
	return ok && v.caching && v.principal == principal && v.lease >= least
}

// Belongings gives the paths of all that the end of the session may change, sorted: its ephemeral entries, those that
// it has open, and the locks that it holds or waits for.
func (s *State) Belongings(session uint64) []string {
	key := key64(session)
	var paths []string
	s.ephemerals.prefix(key, func(_ string, path string) bool {
		paths = append(paths, path)
		return true
	})
	s.owners.prefix(key, func(_ string, o *owner) bool {
		paths = append(paths, o.path)
		return true
	})
	s.opens.prefix(key, func(_ string, o *open) bool {
		paths = append(paths, o.path)
		return true
	})
	slices.Sort(paths)
	return slices.Compact(paths)
}
