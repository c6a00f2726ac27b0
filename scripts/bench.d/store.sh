# Snapshots of the Debian disk beside restic, borg and a zstd qcow2. Sourced by scripts/bench.
# shellcheck shell=bash
#
# "first" goes into a new store, "again" is the same disk unchanged, "changed" has one hundredth of it rewritten in one
# piece. restic and borg read the raw disk, which is what they can do; strata reads the qcow2, and the raw disk where
# it is said. All of them write to the same filesystem, and the disk is in the host's page cache.

for tool in restic:restic borg:borgbackup qemu-img:qemu-utils; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt-get install -y ${tool##*:}"
done

# bytes DIR-OR-FILE
bytes() { du -sb "$1" | cut -f 1; }
snapshot() { "$STRATA" snapshot create "$WORK/store" "$1" "$2"; }
restic_quiet() { restic -q -r "$WORK/restic" "$@"; }
timed() { local name=$1; shift; sample "$name" "$(milliseconds "$@")"; }
first_stored_byte() {
    "$STRATA" mount --view disk "$WORK/store::web" "$WORK/first" && head -c 1 "$WORK/first/disk.img"
}

group_store() {
    local round n raw=$FIXTURES/debian.raw
    export RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=$WORK/restic-cache
    warm "$raw" "$FIXTURES/debian.qcow2"
    cp --sparse=always "$raw" "$WORK/changed.raw"
    # One hundredth of what is used.
    dd if=/dev/urandom of="$WORK/changed.raw" bs=1M seek=200 count=6 conv=notrunc status=none
    mkdir -p "$WORK/first"
    for ((round = 0; round < rounds; round++)); do
        rm -rf "$WORK/store" "$WORK/restic" "$WORK/borg" "$WORK/packed.qcow2"
        "$STRATA" store init "$WORK/store"
        restic_quiet init
        borg init -e none "$WORK/borg" 2>/dev/null
        timed s-restic restic_quiet backup "$raw"
        timed s-borg borg create -C zstd,3 "$WORK/borg::a" "$raw"
        timed s-qemu qemu-img convert -c -O qcow2 -o compression_type=zstd "$FIXTURES/debian.qcow2" "$WORK/packed.qcow2"
        timed s-ours snapshot web "$FIXTURES/debian.qcow2"
        sample s-size "$(bytes "$WORK/store")"
        sample s-size-restic "$(bytes "$WORK/restic")"
        timed s-again snapshot web "$FIXTURES/debian.qcow2"
        # Both by the file's times, and then with all of it read.
        snapshot raw "$raw" >/dev/null
        timed s-again-raw snapshot raw "$raw"
        timed s-again-restic restic_quiet backup "$raw"
        timed s-all-raw "$STRATA" snapshot create --read-all "$WORK/store" raw "$raw"
        timed s-all-restic restic_quiet backup --force "$raw"
        n=$(bytes "$WORK/store")
        snapshot web "$WORK/changed.raw" >/dev/null
        sample s-changed "$(($(bytes "$WORK/store") - n))"
        "$STRATA" snapshot remove "$WORK/store::web" >/dev/null
        for n in 1 2 3; do
            sample s-byte "$(milliseconds first_stored_byte)"
            "$STRATA" unmount "$WORK/first"
        done
        # Fresh mounts: nothing decoded is at hand.
        strata disk "$WORK/store::web" "$WORK/ours"
        sample s-random "$(random "$WORK/ours/disk.img" 1 1)"
        stop_all
        strata disk "$WORK/store::web" "$WORK/ours"
        sample s-random-4 "$(random "$WORK/ours/disk.img" 4 1)"
        stop_all
        strata disk "$WORK/store::web" "$WORK/ours"
        sample s-seq "$(sequential "$WORK/ours/disk.img" 1)"
        stop_all
        qemu qcow2 "$WORK/packed.qcow2" "$WORK/qemu.img"
        sample s-random-qemu "$(random "$WORK/qemu.img" 1 1)"
        sample s-random-4-qemu "$(random "$WORK/qemu.img" 4 1)"
        stop_all
        mkdir -p "$WORK/restic-mount"
        restic -q -r "$WORK/restic" mount "$WORK/restic-mount" >"$WORK/log" 2>&1 &
        SERVER[$WORK/restic-mount]=$!
        until_there $! mountpoint -q "$WORK/restic-mount"
        n=$WORK/restic-mount/snapshots/latest$(realpath "$raw")
        # It opens nothing for direct reads.
        sample s-random-restic "$(fio --name=r --filename="$n" --readonly --rw=randread --bs=4k --direct=0 --invalidate=0 \
            --offset=80M --size=512M --norandommap --ioengine=psync --time_based --runtime="$seconds" \
            --output-format=terse --terse-version=3 | awk -F';' '{ print $8 }')"
        sample s-seq-restic "$(sequential "$n" 0)"
        stop_all
    done
    row 'first snapshot: restic' ms s-ours s-restic less 0.25
    row 'first snapshot: borg, zstd 3' ms s-ours s-borg less 0.5
    row 'first snapshot: qemu-img convert -c, zstd' ms s-ours s-qemu less 1
    row 'size of the store: restic' bytes s-size s-size-restic less 1.05
    row 'unchanged, qcow2: 200 ms' ms s-again 200 less 1
    row 'unchanged, raw: restic' ms s-again-raw s-again-restic less 0.1
    row 'unchanged, raw, --read-all: restic --force' ms s-all-raw s-all-restic less 0.1
    row '6 MiB that do not compress changed: 1.3 times as much' bytes s-changed $((6 << 20)) less 1.3
    row 'mount to first byte: 50 ms' ms s-byte 50 less 1
    row 'snapshot, 4 KiB random direct, 1 job: QEMU, zstd qcow2' IOPS s-random s-random-qemu more 1
    row 'snapshot, 4 KiB random direct, 4 jobs: QEMU, zstd qcow2' IOPS s-random-4 s-random-4-qemu more 1
    row "snapshot, 4 KiB random, 1 job: restic's mount" IOPS s-random s-random-restic more 10
    row "snapshot, 1 MiB sequential: restic's mount" MB/s s-seq s-seq-restic more 3
}
