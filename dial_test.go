package chubby_test

import (
	"testing"
	"time"

	"github.com/chubbygo/chubby"
	"github.com/chubbygo/chubby/chubbytest"
)

func TestDialBasics(t *testing.T) {
	inBubble(t, 3, func(t *testing.T, cell *chubbytest.Cell) {
		c := cell.Dial()
		if _, err := c.Set(within(t, time.Minute), "/a/b", []byte("x")); err != nil {
			t.Fatal(err)
		}
		e, err := c.Get(within(t, time.Minute), "/a/b")
		if err != nil || string(e.Data) != "x" {
			t.Fatal(e, err)
		}
		e, err = c.FastGet(within(t, time.Minute), "/a/b")
		if err != nil || string(e.Data) != "x" {
			t.Fatal(e, err)
		}
		t.Log(e.Age)
		w := c.Watch(t.Context(), "/a", chubby.WatchOptions{})
		l, err := c.Lock(within(t, time.Minute), "/l")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan *chubby.Lock)
		go func() {
			l2, err := cell.Node(0).Lock(within(t, time.Minute), "/l")
			if err != nil {
				t.Error(err)
			}
			l3, err := func() (*chubby.Lock, error) {
				time.AfterFunc(time.Second, func() { _ = l2.Unlock(t.Context()) })
				return c.Lock(within(t, time.Minute), "/l")
			}()
			if err != nil {
				t.Error(err)
			}
			done <- l3
		}()
		time.Sleep(time.Second)
		if err := l.Unlock(t.Context()); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		l3 := <-done
		t.Log(time.Since(start), l3.Sequencer())
		mustSet(t, cell.Node(1), "/a/c", "1")
		for e, err := range w {
			t.Log(e, err)
			break
		}
		time.Sleep(time.Minute)
		if l3.Err() != nil || l3.Context().Err() != nil {
			t.Error(l3.Err(), l3.Context().Err())
		}
	})
}
