package chubby

import (
	"reflect"

	"github.com/hashicorp/raft"
)

// promise waits for one of raft's futures, and never for ever.
//
// raft forgets futures when it is shut down: an entry on its way from raft's main goroutine to its FSM goroutine is
// answered by neither. For some futures raft itself sets the field ShutdownCh, at whose end they give
// ErrRaftShutdown; promise does so for all, with a channel that is closed once raft has ended, when nobody else can
// answer any more. TestForgottenFutures tells when a version of raft has no such field.
func (n *Node) promise(f raft.Future) error {
	if v := reflect.ValueOf(f); v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
		if c := v.Elem().FieldByName("ShutdownCh"); c.CanSet() && c.Type() == reflect.TypeOf(n.raftEnded) {
			c.Set(reflect.ValueOf(n.raftEnded))
		}
	}
	return f.Error()
}
