// Package recipes has what processes build on locks, files and sessions most often: [Semaphore], [Barrier],
// [DoubleBarrier], [CountDownLatch], [Counter] and [Group]. It uses the public interface of package chubby only, so each
// recipe is also an example of it.
//
//	seats, err := recipes.NewSemaphore(node.Client, "/importer/seats", 3)
//	if err != nil { ... }
//	seat, err := seats.Acquire(ctx)
//	if err != nil { ... }
//	defer seat.Release(ctx)
//
// # What they have in common
//
// A recipe is a name: a value made by New... says where in the tree the thing is and sends nothing to the cell. All
// processes that mean the same thing use the same path and the same numbers. Values are safe for concurrent use, and
// every process can have any number of them. A path belongs to one recipe; nothing else should be kept at it or below.
//
// Whatever a process has, it has through a session, and loses with it. Permits and holds are locks of the Client's
// default session. Parties and members are ephemeral files, each in a session of its own, so that one call, or else the
// session's lease, takes away every trace of it.
//
// Nothing polls. Who waits stands in a lock's fair queue, or has a watch that was registered before the state was read,
// so no change can fall between the two. Waits go on through changes of the cell leader, and while the node is cut off.
//
// # Errors
//
// Errors are of type *chubby.Error and match the sentinels of package chubby. Every call that waits ends with the error
// of its ctx when that ends. Arguments that make no sense are chubby.ErrBadOptions, paths chubby.ErrBadPath, both when
// they are given. Any call can return chubby.ErrClosed, chubby.ErrOverloaded and chubby.ErrNoSpace. What
// chubby.ErrUncertain means, each recipe says for itself; where nothing is said, calling again is safe and finds out.
package recipes
