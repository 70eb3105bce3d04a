package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/fence"
)

// open gives the examples a cell of one in memory.
func open() *chubby.Node {
	node, err := chubby.Open(chubby.Options{})
	if err != nil {
		log.Fatal(err)
	}
	return node
}

func ExampleOpen() {
	// A cell of one, in memory. With ID, Dir, Listen and Peers it is one node of three.
	node, err := chubby.Open(chubby.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := node.WaitReady(ctx); err != nil {
		log.Fatal(err)
	}
	s := node.Status()
	fmt.Println(s.Cell, s.ID, s.Role)
	// Output: local local leader
}

func ExampleClient_Set() {
	node, ctx := open(), context.Background()
	defer node.Close()

	stat, err := node.Set(ctx, "/config/limits", []byte("100"))
	if err != nil {
		log.Fatal(err)
	}
	// A condition makes a read and a write one: whoever wrote in between is not overwritten.
	if _, err := node.Set(ctx, "/config/limits", []byte("200"), chubby.IfGeneration(stat.Generation)); err != nil {
		log.Fatal(err)
	}
	_, err = node.Set(ctx, "/config/limits", []byte("300"), chubby.IfGeneration(stat.Generation))
	fmt.Println(errors.Is(err, chubby.ErrConflict), err)
	// Output: true chubby: set /config/limits: condition not met
}

func ExampleClient_Get() {
	node, ctx := open(), context.Background()
	defer node.Close()

	if _, err := node.Set(ctx, "/names/db", []byte("10.0.0.7:5432")); err != nil {
		log.Fatal(err)
	}
	entry, err := node.Get(ctx, "/ls/local/names/db") // the entry's full name
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s = %s, %d bytes\n", entry.Path, entry.Data, entry.Stat.Size)
	_, err = node.Get(ctx, "/names/cache")
	fmt.Println(errors.Is(err, chubby.ErrNotFound))
	// Output:
	// /names/db = 10.0.0.7:5432, 13 bytes
	// true
}

func ExampleClient_FastGet() {
	node, ctx := open(), context.Background()
	defer node.Close()

	if _, err := node.Set(ctx, "/names/db", []byte("10.0.0.7:5432")); err != nil {
		log.Fatal(err)
	}
	// From this process's memory: no other node is asked. It has this Client's own writes, and Age bounds how old it is.
	entry, err := node.FastGet(ctx, "/names/db")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, old by at most a minute: %t\n", entry.Data, entry.Age < time.Minute)
	// Output: 10.0.0.7:5432, old by at most a minute: true
}

func ExampleClient_CompareAndSwap() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// No old contents: there must be no entry yet.
	if _, err := node.CompareAndSwap(ctx, "/deploy/version", nil, []byte("v1")); err != nil {
		log.Fatal(err)
	}
	if _, err := node.CompareAndSwap(ctx, "/deploy/version", []byte("v1"), []byte("v2")); err != nil {
		log.Fatal(err)
	}
	_, err := node.CompareAndSwap(ctx, "/deploy/version", []byte("v1"), []byte("v3"))
	fmt.Println(errors.Is(err, chubby.ErrConflict))
	// Output: true
}

func ExampleClient_Add() {
	node, ctx := open(), context.Background()
	defer node.Close()

	if _, err := node.Set(ctx, "/quota/used", []byte("0")); err != nil {
		log.Fatal(err)
	}
	for range 3 {
		n, err := node.Add(ctx, "/quota/used", 40, 100)
		if errors.Is(err, chubby.ErrBound) {
			fmt.Println("the quota is used up")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(n)
	}
	n, err := node.Sub(ctx, "/quota/used", 80, math.MinInt64)
	fmt.Println(n, err)
	// Output:
	// 40
	// 80
	// the quota is used up
	// 0 <nil>
}

func ExampleClient_Txn() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// A job goes from one place to the other: both operations happen, or none.
	if _, err := node.Set(ctx, "/jobs/waiting/7", []byte("resize")); err != nil {
		log.Fatal(err)
	}
	result, err := node.Txn(ctx, chubby.Txn{
		If: []chubby.Cond{chubby.At("/jobs/waiting/7", chubby.IfValue([]byte("resize")))},
		Then: []chubby.Op{
			chubby.OpDelete("/jobs/waiting/7"),
			chubby.OpSet("/jobs/running/7", []byte("resize")),
			chubby.OpGet("/jobs/running/7"), // sees what the operation before it did
		},
		Else: []chubby.Op{chubby.OpGet("/jobs/running/7")},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(result.Succeeded, result.Entries[2].Path, string(result.Entries[2].Data))
	// Output: true /jobs/running/7 resize
}

func ExampleClient_List() {
	node, ctx := open(), context.Background()
	defer node.Close()

	for _, path := range []string{"/names/web/b", "/names/web/a", "/names/db"} {
		if _, err := node.Set(ctx, path, []byte("address")); err != nil {
			log.Fatal(err)
		}
	}
	list, err := node.List(ctx, "/names")
	if err != nil {
		log.Fatal(err)
	}
	for _, entry := range list {
		fmt.Println(entry.Path, entry.Stat.Dir, entry.Stat.Children)
	}
	// Output:
	// /names/db false 0
	// /names/web true 2
}

func ExampleClient_Lock() {
	node, ctx := open(), context.Background()
	defer node.Close()
	var guard fence.Guard // stands in the resource, which may be another process and need not run chubby

	first, err := node.Lock(ctx, "/service/primary")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("first:", guard.Check(first.Sequencer()))
	_, err = node.TryLock(ctx, "/service/primary")
	fmt.Println("meanwhile:", err)
	if err := first.Unlock(ctx); err != nil {
		log.Fatal(err)
	}

	second, err := node.Lock(ctx, "/service/primary")
	if err != nil {
		log.Fatal(err)
	}
	defer second.Unlock(ctx)
	fmt.Println("second:", guard.Check(second.Sequencer()))
	// A request of the first holder was under way all the time and arrives now.
	fmt.Println("late:", errors.Is(guard.Check(first.Sequencer()), chubby.ErrStaleSequencer))
	// Output:
	// first: <nil>
	// meanwhile: chubby: trylock /service/primary: lock is held
	// second: <nil>
	// late: true
}

func ExampleClient_WithLock() {
	node, ctx := open(), context.Background()
	defer node.Close()

	err := node.WithLock(ctx, "/report/daily", func(ctx context.Context, l *chubby.Lock) error {
		// ctx ends when the lock is lost. The write happens only while the lock is held, whatever ctx says.
		_, err := node.Set(ctx, "/report/last", []byte("monday"), chubby.IfHolds(l.Sequencer()))
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	info, err := node.LockInfo(ctx, "/report/daily")
	fmt.Println("holders afterwards:", len(info.Holders), err)
	// Output: holders afterwards: 0 <nil>
}

func ExampleClient_Campaign() {
	node, ctx := open(), context.Background()
	defer node.Close()

	leadership, err := node.Campaign(ctx, "/service/leader", []byte("10.0.0.1:80"))
	if err != nil {
		log.Fatal(err)
	}
	info, err := node.Leader(ctx, "/service/leader") // on any node
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s leads, as its sequencer says: %t\n", info.Value, info.Generation == leadership.Sequencer().Generation)
	if err := leadership.Resign(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = node.Leader(ctx, "/service/leader")
	fmt.Println(err)
	// Output:
	// 10.0.0.1:80 leads, as its sequencer says: true
	// chubby: leader /service/leader: no leader
}

func ExampleClient_Watch() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// Watch first and read then: whatever the read does not have comes as an event.
	events := node.Watch(ctx, "/config", chubby.WatchOptions{})
	list, err := node.List(ctx, "/")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(list), "entries at first")

	// In a program these calls come from anywhere in the cell.
	if _, err := node.Set(ctx, "/config/limits", []byte("100")); err != nil {
		log.Fatal(err)
	}
	if _, err := node.Set(ctx, "/elsewhere", nil); err != nil {
		log.Fatal(err)
	}
	if err := node.Delete(ctx, "/config/limits"); err != nil {
		log.Fatal(err)
	}

	for e, err := range events {
		if errors.Is(err, chubby.ErrLagged) {
			log.Fatal("watch again, and read the state again: ", err)
		} else if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%v %s %q, more of this revision: %t\n", e.Kind, e.Path, e.Entry.Data, e.More)
		if e.Kind == chubby.EventDeleted {
			break // and the watch is gone
		}
	}
	// Output:
	// 0 entries at first
	// created /config "", more of this revision: true
	// created /config/limits "100", more of this revision: false
	// deleted /config/limits "", more of this revision: false
}

func ExampleClient_ObserveLeader() {
	node, ctx := open(), context.Background()
	defer node.Close()

	var leadership *chubby.Leadership
	for info, err := range node.ObserveLeader(ctx, "/service/leader") {
		if err != nil {
			log.Fatal(err)
		}
		// The body may do anything. Here it plays the candidate too.
		switch {
		case info.Generation == 0 && leadership == nil:
			fmt.Println("nobody leads")
			if leadership, err = node.Campaign(ctx, "/service/leader", []byte("10.0.0.1:80")); err != nil {
				log.Fatal(err)
			}
			continue
		case info.Generation != 0:
			fmt.Printf("%s leads\n", info.Value)
			if err := leadership.Resign(ctx); err != nil {
				log.Fatal(err)
			}
			continue
		}
		fmt.Println("nobody leads any more")
		break
	}
	// Output:
	// nobody leads
	// 10.0.0.1:80 leads
	// nobody leads any more
}

func ExampleClient_NewSession() {
	node, ctx := open(), context.Background()
	defer node.Close()

	session, err := node.NewSession(ctx, chubby.SessionOptions{Name: "worker", Lease: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := session.Create(ctx, "/alive/worker", []byte("10.0.0.3:80"), chubby.CreateOptions{Ephemeral: true}); err != nil {
		log.Fatal(err)
	}
	lock, err := session.Lock(ctx, "/task")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(session.State(), lock.Err())

	// Everything that hangs on the session goes with it.
	if err := session.Close(ctx); err != nil {
		log.Fatal(err)
	}
	_, err = node.Stat(ctx, "/alive/worker")
	fmt.Println(session.State(), lock.Err() != nil, errors.Is(err, chubby.ErrNotFound))
	// Output:
	// active <nil>
	// expired true true
}
