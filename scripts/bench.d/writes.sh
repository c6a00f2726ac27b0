# Writes into a delta, beside a qcow2 overlay that qemu-storage-daemon exports. Sourced by scripts/bench.
# shellcheck shell=bash
#
# Both write an overlay of debian.qcow2 on the same filesystem, through the host's page cache, and take
# a flush for an fdatasync. QEMU's is measured as qemu-img makes it, which the targets are for, and with
# extended_l2 (128 KiB clusters of 4 KiB subclusters), which has to be as fast at most. "fresh" writes each
# block once into an empty delta, "over" writes where the delta has its own data already.

BASE=$FIXTURES/debian.qcow2

# strata_cow DELTA DIR
strata_cow() {
    mkdir -p "$2"
    "$STRATA" mount --foreground --view disk --cow "$1" "$BASE" "$2" >"$WORK/log" 2>&1 &
    SERVER[$2]=$!
    until_there $! mountpoint -q "$2"
}

# qemu_cow DELTA FILE OPTION...
qemu_cow() {
    local delta=$1 file=$2
    shift 2
    qemu-img create -q -f qcow2 -b "$BASE" -F qcow2 "$@" "$delta"
    : >"$file"
    qemu-storage-daemon --blockdev "driver=file,node-name=file,filename=$delta,discard=unmap" \
        --blockdev 'driver=qcow2,node-name=disk,file=file,discard=unmap' \
        --export "type=fuse,id=export,node-name=disk,mountpoint=$file,writable=on,growable=off,allow-other=off" \
        >"$WORK/log" 2>&1 &
    SERVER[$file]=$!
    until_there $! test -s "$file"
}

# fresh_delta WHO: an empty delta, served as $disk.
fresh_delta() {
    stop_all
    rm -f "$WORK/delta.qcow2"
    case $1 in
        ours) strata_cow "$WORK/delta.qcow2" "$WORK/cow"; disk=$WORK/cow/disk.img ;;
        default) qemu_cow "$WORK/delta.qcow2" "$WORK/cow.img"; disk=$WORK/cow.img ;;
        extended) qemu_cow "$WORK/delta.qcow2" "$WORK/cow.img" -o extended_l2=on,cluster_size=128k; disk=$WORK/cow.img ;;
    esac
}

# written COLUMN OPTION...: a figure of fio's terse output, of writes to $disk in 512 MiB near its start.
written() {
    local column=$1
    shift
    # What the run before left to be written back is not this one's to pay for.
    sync -f "$WORK"
    fio --name=w --filename="$disk" --offset=80M --size=512M --thread --group_reporting --randrepeat=1 \
        --output-format=terse --terse-version=3 "$@" | awk -F';' -v c="$column" '{ print $c }'
}
# Columns of fio's terse output, version 3.
READ_IOPS=8 WRITE_KB=48 WRITE_IOPS=49

# write_random DIRECTION JOBS DEPTH OPTION...: writes per second of 4 KiB, past the page cache.
write_random() {
    local direction=$1 jobs=$2 depth=$3 engine=psync
    shift 3
    [ "$depth" -eq 1 ] || engine=libaio
    written "$WRITE_IOPS" --rw="$direction" --bs=4k --direct=1 --numjobs="$jobs" --ioengine="$engine" --iodepth="$depth" "$@"
}
# once JOBS: the options that let JOBS write 128 MiB in all, or 16 if in a hurry, no block twice; less if it
# takes too long.
once() {
    local mib=128
    [ "$seconds" -gt 1 ] || mib=16
    # Each job in a part of its own.
    printf '%s\n' "--size=$((512 / $1))M" "--offset_increment=$((512 / $1))M" "--io_size=$((mib / $1))M" \
        "--runtime=$((seconds * 3))"
}
write_all() { written "$WRITE_KB" --rw=write --bs=1M --direct=1 --ioengine=psync "$@" | awk '{ print $1 / 1000 }'; }

group_writes() {
    local who round disk limit jobs depth key label target unit
    local -a once
    limit=(--time_based --runtime="$seconds" --norandommap)
    warm "$BASE"
    for ((round = 0; round < rounds; round++)); do
        for who in default ours extended; do
            for jobs in 1 4; do
                fresh_delta "$who"
                mapfile -t once < <(once "$jobs")
                sample "w-fresh-$jobs-$who" "$(write_random randwrite "$jobs" 1 "${once[@]}")"
            done
            fresh_delta "$who"
            mapfile -t once < <(once 1)
            sample "w-fresh-32-$who" "$(write_random randwrite 1 32 "${once[@]}")"
            fresh_delta "$who"
            sample "w-seq-$who" "$(write_all)"
            # All of it is the delta's own now.
            sample "w-seq-over-$who" "$(write_all)"
            sample "w-over-1-$who" "$(write_random randwrite 1 1 "${limit[@]}")"
            sample "w-over-4-$who" "$(write_random randwrite 4 1 "${limit[@]}")"
            sample "w-over-32-$who" "$(write_random randwrite 1 32 "${limit[@]}")"
            sample "w-flush-$who" "$(written "$WRITE_IOPS" --rw=randwrite --bs=4k --direct=0 --fsync=1 --ioengine=psync "${limit[@]}")"
            sample "w-mixed-$who" "$(written "$READ_IOPS" --rw=randrw --rwmixread=70 --bs=4k --direct=1 --numjobs=4 --ioengine=psync "${limit[@]}")"
        done
    done
    stop_all
    while read -r key target unit label; do
        row "$label" "$unit" "$key-ours" "$key-default" more "$target"
        row "  the same: QEMU with subclusters" "$unit" "$key-ours" "$key-extended" more 1
    done <<'ROWS'
w-fresh-1 2 IOPS fresh delta, 4 KiB random direct writes, 1 job
w-fresh-4 2 IOPS fresh delta, 4 KiB random direct writes, 4 jobs
w-fresh-32 2 IOPS fresh delta, 4 KiB random direct writes, depth 32
w-over-1 2 IOPS over own data, 4 KiB random direct writes, 1 job
w-over-4 2 IOPS over own data, 4 KiB random direct writes, 4 jobs
w-over-32 2 IOPS over own data, 4 KiB random direct writes, depth 32
w-seq 1.5 MB/s fresh delta, 1 MiB direct writes
w-seq-over 1.5 MB/s over own data, 1 MiB direct writes
w-flush 1 IOPS 4 KiB random writes, each flushed
w-mixed 2 IOPS over own data, 70 % reads of 4 KiB among writes, 4 jobs, reads
ROWS
}
