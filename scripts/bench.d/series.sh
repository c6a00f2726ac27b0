# A long series of snapshots, and a large disk with little on it. Sourced by scripts/bench.
# shellcheck shell=bash

command -v qemu-io >/dev/null || die 'qemu-io is missing: apt-get install -y qemu-utils'
[ -x /usr/bin/time ] || die 'time is missing: apt-get install -y time'

# How many snapshots, and what each writes: so many pieces of 64 KiB that do not compress, anywhere in what is read
# afterwards.
snapshots=${STRATA_BENCH_SNAPSHOTS:-500}
pieces=4

# fresh WHAT DO...: does it with the snapshot mounted at $WORK/at, with nothing decoded at hand.
fresh() {
    strata disk "$1" "$WORK/at"
    "${@:2}"
    stop_all
}
first_byte() { "$STRATA" mount --view disk "$1" "$WORK/at" && head -c 1 "$WORK/at/disk.img"; }
divided() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.4f", a / b }'; }

# Compares the first snapshot of the series with the last, and the last with the same disk in a store that has nothing
# else: whatever differs then is the length of the series. They take turns, and the median of the ratios counts.
group_series() {
    local n i round at script who what first last
    declare -A figure
    rm -rf "$WORK/store" "$WORK/alone"
    "$STRATA" store init "$WORK/store"
    "$STRATA" store init "$WORK/alone"
    qemu-img create -q -f qcow2 -b "$FIXTURES/debian.qcow2" -F qcow2 "$WORK/disk.qcow2"
    RANDOM=1
    first=$(new_snapshot "$WORK/store")
    for ((n = 2; n <= snapshots; n++)); do
        script=()
        head -c 65536 /dev/urandom >"$WORK/noise"
        for ((i = 0; i < pieces; i++)); do
            at=$(((80 << 20) + (RANDOM * 32768 + RANDOM) % (512 << 4) * 65536))
            script+=(-c "write -q -s $WORK/noise $at 64k")
        done
        qemu-io "${script[@]}" "$WORK/disk.qcow2"
        last=$(new_snapshot "$WORK/store")
    done
    new_snapshot "$WORK/alone" >/dev/null
    for ((round = 0; round < rounds; round++)); do
        for who in "first $WORK/store::$first" "last $WORK/store::$last" "alone $WORK/alone::web"; do
            at=${who#* } who=${who%% *}
            figure[$who-random]=$(fresh "$at" random "$WORK/at/disk.img" 1 1)
            figure[$who-sequential]=$(fresh "$at" sequential "$WORK/at/disk.img" 1)
            mkdir -p "$WORK/at"
            for i in 1 2 3 4 5; do
                sample byte "$(milliseconds first_byte "$at")"
                "$STRATA" unmount "$WORK/at"
            done
            figure[$who-byte]=$(median byte)
            unset 'SAMPLES[byte]'
        done
        for what in random sequential byte; do
            sample "last-$what" "${figure[last-$what]}"
            sample "first-$what" "${figure[first-$what]}"
            sample "$what-to-first" "$(divided "${figure[last-$what]}" "${figure[first-$what]}")"
            sample "$what-to-alone" "$(divided "${figure[last-$what]}" "${figure[alone-$what]}")"
        done
    done
    row "snapshot $snapshots of a series, 4 KiB random: the first" IOPS last-random first-random more 0
    row "snapshot $snapshots of a series, 1 MiB sequential: the first" MB/s last-sequential first-sequential more 0
    row "snapshot $snapshots of a series, mount to first byte: the first" ms last-byte first-byte less 10
    row '    the same, median of the ratios: random' '' random-to-first 1 more 0.95
    row '    sequential' '' sequential-to-first 1 more 0.95
    row '    first byte' '' byte-to-first 1 less 1.05
    row "snapshot $snapshots beside the same disk alone in a store: random" '' random-to-alone 1 more 0.95
    row '    sequential' '' sequential-to-alone 1 more 0.95
    row '    first byte' '' byte-to-alone 1 less 1.05
    rm -rf "$WORK/store" "$WORK/alone" "$WORK/disk.qcow2"
}

# new_snapshot STORE: makes one of the disk; its id.
new_snapshot() {
    "$STRATA" snapshot create --allow-path "$FIXTURES" --json "$1" web "$WORK/disk.qcow2" |
        sed -n 's/^  "id": "\([0-9a-f]*\)".*/\1/p'
}

# stretch FILE N: 128 MiB, of which no two blocks are the same, to the Nth eightieth of a disk of 1 TiB: noise to every
# fourth, and lines that count up to the others.
stretch() {
    { if (($2 % 4 == 0)); then cat /dev/urandom; else seq "$((1000000000000000 + $2 * 1000000000000))" inf; fi || true; } \
        2>/dev/null | head -c 128M | dd of="$1" bs=1M seek="$(($2 * 13107))" conv=notrunc iflag=fullblock status=none
}
# measured NAME STORE OPTION... DISK: seconds of making a snapshot, and MiB of memory it had at most.
measured() {
    local name=$1
    shift
    /usr/bin/time -o "$WORK/figures" -f '%e %M' "$STRATA" snapshot create "$1" big "${@:2}" >/dev/null
    sample "$name-s" "$(cut -d ' ' -f 1 "$WORK/figures")"
    sample "$name-mib" "$(awk '{ print $2 / 1024 }' "$WORK/figures")"
}
new_store() { rm -rf "$WORK/store" && "$STRATA" store init "$WORK/store"; }

# A disk of 1 TiB with 1 GiB and with 10 GiB on it: a quarter is noise, and of the rest zstd makes a fiftieth. So this
# needs 13 GB of room. One round.
group_sparse() {
    local n disk=$WORK/big
    new_store
    truncate -s 1T "$disk.raw"
    for ((n = 0; n < 8; n++)); do stretch "$disk.raw" "$n"; done
    measured one "$WORK/store" "$disk.raw"
    for (( ; n < 80; n++)); do stretch "$disk.raw" "$n"; done
    new_store
    measured raw "$WORK/store" "$disk.raw"
    measured raw-again "$WORK/store" --read-all "$disk.raw"
    # Both at once would be 20 GiB.
    rm "$disk.raw"
    "$STRATA" convert --quiet "$WORK/store::big" "$disk.qcow2"
    new_store
    # What was written just now is not taken as unchanged later.
    sleep 3
    measured qcow2 "$WORK/store" "$disk.qcow2"
    measured qcow2-unchanged "$WORK/store" "$disk.qcow2"
    measured qcow2-again "$WORK/store" --read-all "$disk.qcow2"
    sample bound "$(awk -v s="$(median one-s)" 'BEGIN { print 10 * s }')"
    row '1 TiB with 10 GiB of data: ten times what 1 GiB takes' s raw-s bound less 1.1
    row '    as qcow2: the same' s qcow2-s bound less 1.1
    row '    read again (--read-all), raw: the first time' s raw-again-s raw-s less 1
    row '    read again, qcow2: the first time' s qcow2-again-s qcow2-s less 1
    row '    unchanged, qcow2: 0.2 s' s qcow2-unchanged-s 0.2 less 1
    row 'memory at most, raw, first: 300 MiB' MiB raw-mib 300 less 1
    row '    raw, read again' MiB raw-again-mib 300 less 1
    row '    qcow2, first' MiB qcow2-mib 300 less 1
    row '    qcow2, read again' MiB qcow2-again-mib 300 less 1
    rm -rf "$WORK/store" "$disk.qcow2"
}
