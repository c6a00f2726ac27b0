// Writes a tar as an eStargz or zstd:chunked layer: made estargz|zstd-chunked TAR LAYER CHUNK
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
)

type zstdChunked struct {
	*zstdchunked.Decompressor
	*zstdchunked.Compressor
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	tar, err := os.Open(os.Args[2])
	check(err)
	stat, err := tar.Stat()
	check(err)
	chunk, err := strconv.Atoi(os.Args[4])
	check(err)
	annotations := map[string]string{}
	options := []estargz.Option{estargz.WithChunkSize(chunk)}
	if os.Args[1] == "zstd-chunked" {
		compressor := &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: annotations}
		options = append(options, estargz.WithCompression(zstdChunked{&zstdchunked.Decompressor{}, compressor}))
	}
	blob, err := estargz.Build(io.NewSectionReader(tar, 0, stat.Size()), options...)
	check(err)
	layer, err := os.Create(os.Args[3])
	check(err)
	_, err = io.Copy(layer, blob)
	check(err)
	check(blob.Close())
	fmt.Println(os.Args[1], blob.TOCDigest(), annotations)
}
