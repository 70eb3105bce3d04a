// Command kv shows the files of a cell as a key-value store: conditions, counters, transactions, names that go with
// their owner.
//
//	go run ./examples/kv
//
// It runs on a cell of one in memory and prints what each call did: a lost update that is refused, a quota that is not
// exceeded, a transfer that happens whole or not at all.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/chubbygo/chubby"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "kv:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	node, err := chubby.Open(chubby.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.Close()) }()
	for _, step := range []func(context.Context, io.Writer, *chubby.Node) error{update, count, transfer, names} {
		if err := step(ctx, out, node); err != nil {
			return err
		}
	}
	return nil
}

// update changes a file that somebody else changes too.
func update(ctx context.Context, out io.Writer, node *chubby.Node) error {
	if _, err := node.Set(ctx, "/config/limits", []byte("rate=10")); err != nil {
		return err
	}
	mine, err := node.Get(ctx, "/config/limits")
	if err != nil {
		return err
	}
	// Somebody else is faster.
	if _, err := node.CompareAndSwap(ctx, "/config/limits", []byte("rate=10"), []byte("rate=20")); err != nil {
		return err
	}
	_, err = node.Set(ctx, "/config/limits", append(mine.Data, " burst=5"...), chubby.IfGeneration(mine.Stat.Generation))
	if !errors.Is(err, chubby.ErrConflict) {
		return fmt.Errorf("an update of what had changed: %v, want %v", err, chubby.ErrConflict)
	}
	fmt.Fprintln(out, "update refused:", err)

	now, err := node.FastGet(ctx, "/config/limits") // from this process's memory
	if err != nil {
		return err
	}
	if _, err := node.Set(ctx, now.Path, append(now.Data, " burst=5"...), chubby.IfGeneration(now.Stat.Generation)); err != nil {
		return err
	}
	if now, err = node.Get(ctx, now.Path); err != nil {
		return err
	}
	fmt.Fprintf(out, "updated: %s = %s\n", now.Path, now.Data)
	return nil
}

// count uses up a quota that must not be exceeded, whoever counts at the same time.
func count(ctx context.Context, out io.Writer, node *chubby.Node) error {
	if _, err := node.Create(ctx, "/quota/used", []byte("0"), chubby.CreateOptions{}); err != nil {
		return err
	}
	for {
		used, err := node.Add(ctx, "/quota/used", 30, 100)
		if errors.Is(err, chubby.ErrBound) {
			fmt.Fprintln(out, "quota:", err)
			break
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "quota: %d of 100\n", used)
	}
	used, err := node.Sub(ctx, "/quota/used", 60, 0)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "quota: %d of 100\n", used)
	return nil
}

// transfer moves an amount between two accounts.
func transfer(ctx context.Context, out io.Writer, node *chubby.Node) error {
	for path, balance := range map[string]string{"/account/alice": "70", "/account/bob": "0"} {
		if _, err := node.Set(ctx, path, []byte(balance)); err != nil {
			return err
		}
	}
	for _, balances := range [][2]string{{"70", "20"}, {"70", "-30"}} { // the second time Alice no longer has 70
		result, err := node.Txn(ctx, chubby.Txn{
			If: []chubby.Cond{chubby.At("/account/alice", chubby.IfValue([]byte(balances[0])))},
			Then: []chubby.Op{
				chubby.OpSet("/account/alice", []byte(balances[1])),
				chubby.OpAdd("/account/bob", 50, math.MaxInt64),
				chubby.OpGet("/account/alice"), // operations see what those before them did
				chubby.OpGet("/account/bob"),
			},
			Else: []chubby.Op{chubby.OpGet("/account/alice")},
		})
		if err != nil {
			return err
		}
		if result.Succeeded {
			fmt.Fprintf(out, "transfer: alice has %s, bob has %s\n", result.Entries[2].Data, result.Entries[3].Data)
		} else {
			fmt.Fprintf(out, "no transfer: alice has %s\n", result.Entries[0].Data)
		}
	}
	return nil
}

// names is a name server whose entries go with the sessions of those who made them.
func names(ctx context.Context, out io.Writer, node *chubby.Node) error {
	list := func(when string) error {
		entries, err := node.List(ctx, "/names")
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "names %s:", when)
		for _, e := range entries {
			fmt.Fprintf(out, " %s", e.Path)
		}
		fmt.Fprintln(out)
		return nil
	}
	if _, err := node.Set(ctx, "/names/database", []byte("10.0.0.7:5432")); err != nil {
		return err
	}
	worker, err := node.NewSession(ctx, chubby.SessionOptions{Name: "worker"})
	if err != nil {
		return err
	}
	if _, err := worker.Create(ctx, "/names/worker", []byte("10.0.0.9:80"), chubby.CreateOptions{Ephemeral: true}); err != nil {
		return err
	}
	if err := list("while the worker lives"); err != nil {
		return err
	}
	if err := worker.Close(ctx); err != nil { // or it dies, and its lease runs out
		return err
	}
	if err := list("afterwards"); err != nil {
		return err
	}
	return node.DeleteTree(ctx, "/names")
}
