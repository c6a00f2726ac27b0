# Campaigns of copy-on-write. Sourced by scripts/soak.
# shellcheck shell=bash

campaign_kill() {
    [ "$(id -u)" -eq 0 ] || die 'kill mounts as root'
    STRATA_KILLS=$kills STRATA_SEED=${STRATA_SEED:-$RANDOM} tests_named --test cow_kill --test cow_kill_upper -E 'test(/a_killed_server/)'
}

campaign_model() {
    [ "$(id -u)" -eq 0 ] || die 'model mounts as root'
    local seed=${STRATA_SEED:-$RANDOM}
    STRATA_DELTA_OPERATIONS=$(((operations + 9) / 10)) STRATA_CRASH_STATES=$crashes STRATA_RANDOM_SEED=$seed \
        tests_named --test delta -E 'test(/^model::|^crash::/)'
    STRATA_OVERLAY_CASES=$(((operations + 4999) / 5000)) STRATA_SEED=$seed \
        tests_named --test overlay -E 'test(/^random_operations|^a_users_upper|^an_upper_of_the_kernel/)'
}

campaign_fsx() {
    [ "$(id -u)" -eq 0 ] || die 'fsx mounts as root'
    STRATA_FSX_OPERATIONS=$operations STRATA_SEED=${STRATA_SEED:-$RANDOM} tests_named --test cow_fsx -E 'test(/^fsx_on_a/)'
}

# ---- fio -----------------------------------------------------------------------------------------

# build_strata: the program to run, in $strata.
build_strata() {
    strata=${STRATA_PROGRAM:-}
    [ -z "$strata" ] || return 0
    cargo build --release --quiet
    strata=$(realpath "${CARGO_TARGET_DIR:-target}/release/strata")
}

# attended DIR COMMAND...: runs a server in the foreground until it serves DIR; its pid in $server.
attended() {
    local dir=$1
    shift
    mkdir -p "$dir"
    "$@" &
    server=$!
    mounts+=("$dir")
    until mountpoint -q "$dir"; do
        kill -0 "$server" 2>/dev/null || die "the server of $dir ended"
        sleep 0.02
    done
}

# ended DIR: ends what attended began. It must end well.
ended() {
    kill "$server"
    wait "$server" || die "the server of $1 did not end well on SIGTERM"
    server=''
    ! mountpoint -q "$1" || die "$1 is still mounted"
}

# verified SEED FILE OFFSET OPTION...: 256 MiB of pieces in random order, each with its checksum. All are
# of one size in a round: fio cannot tell which of two that overlap was first.
verified() {
    local seed=$1 file=$2 offset=$3
    shift 3
    fio --name=v --filename="$file" --offset="$offset" --size=256M --randseed="$seed" --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
        --bs="$((4 << seed % 5))k" --output-format=terse "$@" >"$WORK/fio.log" 2>&1 ||
        die "fio: $(tail -n 5 "$WORK/fio.log")"
    ! grep -qi 'verify:' "$WORK/fio.log" || die "fio: $(grep -i 'verify:' "$WORK/fio.log" | head -n 5)"
}

# fio_rounds END FILE BEGIN FINISH: writes and verifies, opens anew and verifies, until END.
fio_rounds() {
    local until=$1 file=$2 begin=$3 finish=$4 seed=0 direct
    while [ "$SECONDS" -lt "$until" ] || [ "$seed" -lt 2 ]; do
        seed=$((seed + 1)) direct=$((seed % 2))
        "$begin"
        verified "$seed" "$file" 80M --rw=randwrite --do_verify=1 --verify_backlog=256 --direct="$direct" \
            --ioengine=libaio --iodepth=16 --fsync=1000
        "$finish"
        "$begin"
        # A file of another order of writes would not be found: the seed is the same.
        verified "$seed" "$file" 80M --rw=randwrite --verify_only=1 --direct="$direct" --ioengine=libaio --iodepth=16
        "$finish"
    done
    say "fio: $seed rounds on $file"
}

campaign_fio() {
    local strata
    [ "$(id -u)" -eq 0 ] || die 'fio mounts as root'
    command -v fio >/dev/null || die 'fio is missing: apt-get install -y fio'
    build_strata
    if [ "$on" = strata ]; then
        begin_disk() { attended "$WORK/mnt" "$strata" mount --foreground --view disk --cow "$WORK/delta.qcow2" "$STRATA_FIXTURES/debian.qcow2" "$WORK/mnt"; }
        finish_disk() {
            ended "$WORK/mnt"
            qemu-img check -q "$WORK/delta.qcow2" || die 'qemu-img check does not like the delta'
        }
        fio_rounds $((SECONDS + seconds / 2)) "$WORK/mnt/disk.img" begin_disk finish_disk
        rm -f "$WORK/delta.qcow2"
    fi
    prepare_tree fio
    begin_tree() { mount_tree fio; }
    finish_tree() { unmount_tree fio; }
    fio_rounds $((SECONDS + seconds / 2)) "$TREE/fio.data" begin_tree finish_tree
    drop_tree fio
}

# ---- twenty --------------------------------------------------------------------------------------

# load_one N DIR: writes of a pattern of its own to a throw-away disk, and what must be read then.
load_one() {
    local n=$1 file=$2/disk.img at what i
    local -a writes=() reads=()
    RANDOM=$n
    for ((i = 0; i < 40; i++)); do
        # Not twice in one place: pieces of at most 128 KiB, 95 MiB apart.
        at=$((i * 95 * 1048576 + RANDOM % 8192 * 512))
        what="-P $((n + i)) $at $((512 * (1 + RANDOM % 256)))"
        writes+=(-c "write $what")
        reads+=(-c "read $what")
    done
    qemu-io -f raw "${writes[@]}" -c flush "$file" && qemu-io -f raw "${reads[@]}" "$file"
}

campaign_twenty() {
    local strata image=$STRATA_FIXTURES/debian.qcow2 n before dir log
    local -a servers=() loads=()
    build_strata
    before=$(sha256sum <"$image")
    for ((n = 1; n <= 20; n++)); do
        attended "$WORK/scratch-$n" "$strata" mount --foreground --view disk --scratch "$image" "$WORK/scratch-$n"
        servers+=("$server")
        readers+=("$server")
        server=''
    done
    for ((n = 1; n <= 20; n++)); do
        load_one "$n" "$WORK/scratch-$n" >"$WORK/scratch-$n.log" 2>&1 &
        loads+=($!)
    done
    for n in "${!loads[@]}"; do
        log=$WORK/scratch-$((n + 1)).log
        # qemu-io tells what it found wrong, and not every version by its exit code.
        wait "${loads[n]}" || die "load $((n + 1)): $(tail -n 5 "$log")"
        ! grep -q 'verification failed' "$log" || die "load $((n + 1)): $(grep -m 3 'verification failed' "$log")"
    done
    for ((n = 1; n <= 20; n++)); do
        dir=$WORK/scratch-$n
        # What nobody wrote is the image's.
        cmp <(dd if="$dir/disk.img" bs=1M skip=3900 count=64 status=none) \
            <(dd if="$STRATA_FIXTURES/debian.raw" bs=1M skip=3900 count=64 status=none) || die "$dir differs from the image"
        server=${servers[n - 1]}
        ended "$dir"
    done
    readers=()
    [ "$(sha256sum <"$image")" = "$before" ] || die 'the image was written'
}
