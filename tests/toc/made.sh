#!/usr/bin/env bash
# How estargz and zstd-chunked beside this were made: by the library of containerd's stargz-snapshotter, as
# Debian 12 has it. The tests have the digests that it prints.
#
# usage: tests/toc/made.sh FOLDER      needs: apt-get install golang-go golang-github-containerd-stargz-snapshotter-dev
set -euo pipefail
here=$(dirname "$(realpath "$0")")
python3 "$here/layer.py" "$1/layer.tar"
cp "$here/made.go" "$1"
cd "$1"
GO111MODULE=off GOPATH=/usr/share/gocode go build -o made made.go
for kind in estargz zstd-chunked; do ./made "$kind" layer.tar "$kind" 4096; done
# The seed of a fuzz target: by zlib and flatc (flatbuffers-compiler).
gzip -9nc layer.tar >layer.tar.gz
python3 "$here/../layered_images/ztoc.py" layer.tar.gz ztoc.json 4000
flatc --allow-non-utf8 --binary "$here/../layered_images/ztoc.fbs" ztoc.json
gzip -9nc ztoc.bin >ztoc.gz
