module github.com/chubbygo/chubby/bench/maps

go 1.25.0

require (
	github.com/hashicorp/go-immutable-radix/v2 v2.1.0
	github.com/tidwall/btree v1.8.2
)

require github.com/OneOfOne/xxhash v1.2.8 // indirect

require (
	github.com/chubbygo/chubby v0.0.0
	github.com/hashicorp/golang-lru/v2 v2.0.0 // indirect
)

replace github.com/chubbygo/chubby => ../..
