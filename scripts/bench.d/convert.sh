# A chain and a snapshot written out as one image, beside `qemu-img convert`. Sourced by scripts/bench.
# shellcheck shell=bash
#
# What is read is in the host's page cache, what is written stays there: both sync nothing but the end of the image
# (strata always does; qemu-img is told to by -t writeback and a sync of the file). "one" is qemu-img as it comes,
# "many" with -W and 16 coroutines, as far as it goes.

for tool in qemu-img:qemu-utils; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt-get install -y ${tool##*:}"
done

# convert_ours NAME OPTION...: the chain to $WORK/NAME.
convert_ours() { "$STRATA" convert --quiet --overwrite "${@:2}" "$CHAIN" "$WORK/$1"; }
convert_qemu() { qemu-img convert -t writeback -m 16 -W "${@:2}" "$CHAIN" "$WORK/$1" && sync "$WORK/$1"; }
convert_packed() { qemu-img convert -t writeback -m 16 "${@:2}" "$CHAIN" "$WORK/$1" && sync "$WORK/$1"; }
convert_snapshot() { "$STRATA" convert --quiet --overwrite "$WORK/store::web" "$WORK/ours.raw"; }
converted() { local name=$1; shift; sample "$name" "$(milliseconds "$@")"; }

group_convert() {
    local round CHAIN=$FIXTURES/debian-chain/layer-32.qcow2
    warm "$FIXTURES"/debian-chain/*
    rm -rf "$WORK/store"
    "$STRATA" store init "$WORK/store"
    "$STRATA" snapshot create "$WORK/store" web "$CHAIN" >/dev/null
    qemu-img convert -c -O qcow2 -o compression_type=zstd "$CHAIN" "$WORK/zstd.qcow2"
    for ((round = 0; round < rounds; round++)); do
        converted c-raw-qemu convert_qemu qemu.raw -O raw
        converted c-raw convert_ours ours.raw
        converted c-qcow2-qemu convert_qemu qemu.qcow2 -O qcow2
        converted c-qcow2 convert_ours ours.qcow2
        converted c-zlib-qemu convert_packed qemu.qcow2 -c -O qcow2
        converted c-zlib convert_ours ours.qcow2 --compress zlib
        converted c-zstd-qemu convert_packed qemu.qcow2 -c -O qcow2 -o compression_type=zstd
        converted c-zstd convert_ours ours.qcow2 --compress zstd
        sample c-size "$(stat -c %s "$WORK/ours.qcow2")"
        sample c-size-qemu "$(stat -c %s "$WORK/qemu.qcow2")"
        converted c-packed-qemu qemu-img convert -t writeback -m 16 -W -O raw "$WORK/zstd.qcow2" "$WORK/qemu.raw"
        converted c-stored convert_snapshot
        qemu-img compare -q "$CHAIN" "$WORK/ours.raw" || die 'another disk'
        qemu-img compare -q "$CHAIN" "$WORK/ours.qcow2" || die 'another disk'
        rm -f "$WORK"/ours.* "$WORK"/qemu.*
    done
    row 'convert a chain of 33 to raw: qemu-img -W' ms c-raw c-raw-qemu less 1
    row 'convert a chain of 33 to qcow2: qemu-img -W' ms c-qcow2 c-qcow2-qemu less 1
    row 'convert a chain of 33 to qcow2, zlib: qemu-img' ms c-zlib c-zlib-qemu less 1
    row 'convert a chain of 33 to qcow2, zstd: qemu-img' ms c-zstd c-zstd-qemu less 1
    row 'size of that: qemu-img' bytes c-size c-size-qemu less 1.05
    row 'convert a snapshot to raw: qemu-img -W of a zstd qcow2' ms c-stored c-packed-qemu less 1
}
