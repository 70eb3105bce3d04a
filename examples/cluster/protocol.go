package main

import (
	"time"

	"github.com/chubbygo/chubby"
)

// The parent drives its node processes with one JSON object a line: requests on their standard input, replies on their
// standard output. Replies come in any order, because a campaign waits while other requests are served. A service of
// your own would have HTTP or gRPC here, or need nothing, being the process that embeds the node.

// What a request can ask for.
const (
	doReady    = "ready"    // wait until the node has caught up with its cell
	doCampaign = "campaign" // stand for election at Path, with Value to publish; waits
	doPublish  = "publish"  // as the elected leader, publish Value at Path
	doLeader   = "leader"   // who is elected at Path
	doLock     = "lock"     // wait for the lock at Path
	doUnlock   = "unlock"   // give it back
	doRegister = "register" // a file at Path with Value that lives as long as this process's session
	doList     = "list"     // the files in directory Path
	doSet      = "set"
	doGet      = "get"
	doFastGet  = "fastget"
	doCAS      = "cas" // Value in place of Old; without Old there must be no file
)

type request struct {
	ID    int
	Do    string
	Path  string  `json:",omitempty"`
	Value string  `json:",omitempty"`
	Old   *string `json:",omitempty"`
}

type reply struct {
	ID       int    // of the request; 0: the node could not start
	Error    string `json:",omitempty"`
	Conflict bool   `json:",omitempty"` // the error is chubby.ErrConflict

	Value     string           `json:",omitempty"`
	Names     []string         `json:",omitempty"`
	Age       time.Duration    `json:",omitempty"`
	Sequencer chubby.Sequencer `json:",omitzero"`
	Status    *chubby.Status   `json:",omitempty"`
}
