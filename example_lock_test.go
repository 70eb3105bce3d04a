package chubby_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/chubbygo/chubby"
)

func ExampleClient_RLock() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// Any number of readers, and no writer beside them.
	first, err := node.RLock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	defer first.Unlock(ctx)
	second, err := node.RLock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	defer second.Unlock(ctx)
	_, err = node.TryLock(ctx, "/table")
	fmt.Println(first.Mode(), second.Mode(), err)
	// Output: shared shared chubby: trylock /table: lock is held
}

func ExampleClient_TryLock() {
	node, ctx := open(), context.Background()
	defer node.Close()

	for range 2 {
		lock, err := node.TryLock(ctx, "/job/42")
		if errors.Is(err, chubby.ErrLockHeld) {
			fmt.Println("somebody does it already")
			continue
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("ours:", lock.Path())
		defer lock.Unlock(ctx)
	}
	// Output:
	// ours: /job/42
	// somebody does it already
}

func ExampleClient_TryRLock() {
	node, ctx := open(), context.Background()
	defer node.Close()

	writer, err := node.Lock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	_, err = node.TryRLock(ctx, "/table")
	fmt.Println(errors.Is(err, chubby.ErrLockHeld))
	if err := writer.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	reader, err := node.TryRLock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(reader.Mode(), reader.Unlock(ctx))
	// Output:
	// true
	// shared <nil>
}

func ExampleClient_LockInfo() {
	node, ctx := open(), context.Background()
	defer node.Close()

	session, err := node.NewSession(ctx, chubby.SessionOptions{Name: "worker 7"})
	if err != nil {
		log.Fatal(err)
	}
	lock, err := session.Lock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	info, err := node.LockInfo(ctx, "/table") // on any node
	if err != nil {
		log.Fatal(err)
	}
	h := info.Holders[0]
	fmt.Println(info.Mode, h.Name, h.Session == session.ID(), h.Since == lock.Sequencer().Generation, info.Waiters, info.Delayed)
	// Output: exclusive worker 7 true true 0 false
}

func ExampleClient_CheckSequencer() {
	node, ctx := open(), context.Background()
	defer node.Close()

	lock, err := node.Lock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	proof := lock.Sequencer() // travels with each request, as text or bytes
	fmt.Println("held:", node.CheckSequencer(ctx, proof))
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	err = node.CheckSequencer(ctx, proof)
	fmt.Println("unlocked:", errors.Is(err, chubby.ErrStaleSequencer))
	// Output:
	// held: <nil>
	// unlocked: true
}

func ExampleLockDelay() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// For a resource that cannot check sequencers: should this holder be lost, its requests have half a minute to arrive
	// or get lost too, before anybody else has the lock. Unlock frees it at once.
	lock, err := node.Lock(ctx, "/printer", chubby.LockDelay(30*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lock.Unlock(ctx))
	_, err = node.Lock(ctx, "/printer", chubby.LockDelay(2*time.Minute))
	fmt.Println(err)
	// Output:
	// <nil>
	// chubby: lock /printer: bad options: LockDelay 2m0s: use 0 to 1m0s
}

func ExampleMaxHold() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// Whatever becomes of the work, the lock is free again after 50 ms, and the worker knows before.
	lock, err := node.Lock(ctx, "/job", chubby.MaxHold(50*time.Millisecond))
	if err != nil {
		log.Fatal(err)
	}
	<-lock.Done()
	fmt.Println(lock.Err())
	next, err := node.Lock(ctx, "/job")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(lock.Unlock(ctx)) // names its own grant, so the next holder keeps the lock
	fmt.Println(next.Unlock(ctx))
	// Output:
	// lock lost
	// chubby: unlock /job: lock is not held
	// <nil>
}

func ExampleLock_Context() {
	node, ctx := open(), context.Background()
	defer node.Close()

	lock, err := node.Lock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	held := lock.Context() // ends before the cell may give the lock to another
	fmt.Println(held.Err())
	if err := lock.Unlock(ctx); err != nil {
		log.Fatal(err)
	}
	<-held.Done()
	fmt.Println(context.Cause(held))
	// Output:
	// <nil>
	// lock is not held
}

func ExampleClient_Session() {
	node, ctx := open(), context.Background()
	defer node.Close()

	// The session of all calls on the Client itself.
	session, err := node.Session(ctx)
	if err != nil {
		log.Fatal(err)
	}
	lock, err := node.Lock(ctx, "/table")
	if err != nil {
		log.Fatal(err)
	}
	info, err := node.LockInfo(ctx, lock.Path())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Holders[0].Session == session.ID(), session.State())
	// Output: true active
}

func ExampleSession_States() {
	node, ctx := open(), context.Background()
	defer node.Close()

	session, err := node.NewSession(ctx, chubby.SessionOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for state := range session.States(ctx) {
		fmt.Println(state)
		if state == chubby.SessionActive { // in jeopardy it would be time to stop what locks protect
			if err := session.Close(ctx); err != nil {
				log.Fatal(err)
			}
		}
	}
	<-session.Done()
	fmt.Println(session.Err())
	// Output:
	// active
	// expired
	// closed
}

func ExampleClient_RunLeader() {
	node, ctx := open(), context.Background()
	defer node.Close()

	terms := 0
	err := node.RunLeader(ctx, "/service/leader", []byte("10.0.0.1:80"), func(ctx context.Context, l *chubby.Leadership) error {
		terms++
		if terms == 1 {
			<-ctx.Done() // lost: return, and it campaigns again
			fmt.Println("lost:", context.Cause(ctx))
			return ctx.Err()
		}
		// Returning while it leads ends RunLeader.
		info, err := node.Leader(ctx, "/service/leader")
		fmt.Printf("%s leads again\n", info.Value)
		return err
	}, chubby.MaxHold(200*time.Millisecond))
	fmt.Println(err)
	// Output:
	// lost: lock lost
	// 10.0.0.1:80 leads again
	// <nil>
}

func ExampleLeadership_Publish() {
	node, ctx := open(), context.Background()
	defer node.Close()

	leadership, err := node.Campaign(ctx, "/service/leader", []byte("10.0.0.1:80"))
	if err != nil {
		log.Fatal(err)
	}
	if err := leadership.Publish(ctx, []byte("10.0.0.1:8080")); err != nil {
		log.Fatal(err)
	}
	info, err := node.Leader(ctx, "/service/leader")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", info.Value)
	if err := leadership.Resign(ctx); err != nil {
		log.Fatal(err)
	}
	err = leadership.Publish(ctx, []byte("too late"))
	fmt.Println(errors.Is(err, chubby.ErrStaleSequencer))
	// Output:
	// 10.0.0.1:8080
	// true
}
