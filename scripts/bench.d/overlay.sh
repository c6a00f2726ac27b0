# The files of a Debian root made writable, beside fuse-overlayfs and the kernel's overlayfs. Sourced by
# scripts/bench.
# shellcheck shell=bash
#
# Both peers lie over the kernel's own read-only mount of the ext4 that strata reads by itself. All
# uppers are on new filesystems: ext4 searches long for an inode number where many files were removed
# in the last minute, so whoever came after the removals would pay for them. "cold" is a fresh mount, "warm" the same again.
# "floor" is a bare FUSE server that answers at once and keeps all in memory (benches/fuse_floor): its ratio
# to the kernel's overlayfs says what the questions and answers cost alone. "above" is the kernel's overlayfs over
# strata's read-only view, with the same upper: what root can do where changes have to be as fast as the kernel makes them.

for tool in fuse-overlayfs:fuse-overlayfs tar:tar; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt-get install -y ${tool##*:}"
done

# overlay WHO: a new upper over the Debian root, at $WORK/tree.
overlay() {
    local options
    stop_all
    rm -f "$WORK/uppers.ext4"
    truncate -s 2G "$WORK/uppers.ext4"
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$WORK/uppers.ext4"
    mkdir -p "$WORK/uppers" "$WORK/tree"
    mount -o loop "$WORK/uppers.ext4" "$WORK/uppers"
    SERVER[$WORK/uppers]=kernel
    mkdir "$WORK/uppers/upper" "$WORK/uppers/.upper.work"
    options=lowerdir=$WORK/lower,upperdir=$WORK/uppers/upper,workdir=$WORK/uppers/.upper.work
    case $1 in
        ours)
            "$STRATA" mount --foreground --view files --cow "$WORK/uppers/upper/" "$FIXTURES/debian.qcow2" "$WORK/tree" >"$WORK/log" 2>&1 &
            SERVER[$WORK/tree]=$!
            until_there $! mountpoint -q "$WORK/tree"
            ;;
        fuse)
            kernel "$FIXTURES/debian.raw" "$WORK/lower"
            fuse-overlayfs -f -o "$options" "$WORK/tree" >"$WORK/log" 2>&1 &
            SERVER[$WORK/tree]=$!
            until_there $! mountpoint -q "$WORK/tree"
            ;;
        floor)
            "$FLOOR" "$WORK/tree" >"$WORK/log" 2>&1 &
            SERVER[$WORK/tree]=$!
            until_there $! mountpoint -q "$WORK/tree"
            ;;
        above)
            strata files "$FIXTURES/debian.qcow2" "$WORK/view"
            mount -t overlay overlay -o "${options/"$WORK/lower"/"$WORK/view"}" "$WORK/tree"
            SERVER[$WORK/tree]=kernel
            ;;
        kernel)
            kernel "$FIXTURES/debian.raw" "$WORK/lower"
            mount -t overlay overlay -o "$options" "$WORK/tree"
            SERVER[$WORK/tree]=kernel
            ;;
    esac
}

small_files() {
    local i
    mkdir -p "$1/build"
    for ((i = 0; i < 500; i++)); do printf '%4000d\n' "$i" >"$1/build/file-$i.o"; done
}
copy_tree() { cp -a "$1/usr/share/doc" "$1/usr/share/copy"; }
# What was copied, and what lies in the image: files that vanish and files that get whiteouts.
delete_tree() { rm -rf "$1/usr/share/copy" "$1/usr/share/zoneinfo"; }
unpack() { tar -C "$1/build" -xf "$WORK/some.tar"; }

group_overlay() {
    local round who us what peer target
    warm "$FIXTURES/debian.raw" "$FIXTURES/debian.qcow2"
    kernel "$FIXTURES/debian.raw" "$WORK/lower"
    tar -C "$WORK/lower/usr" -cf "$WORK/some.tar" share/perl lib/python3 share/doc 2>/dev/null ||
        tar -C "$WORK/lower/usr" -cf "$WORK/some.tar" share/doc share/zoneinfo
    for ((round = 0; round < rounds; round++)); do
        for who in fuse ours above kernel; do
            overlay "$who"
            sample "o-cold-$who" "$(milliseconds tar_all "$WORK/tree")"
            sample "o-warm-$who" "$(milliseconds tar_all "$WORK/tree")"
            overlay "$who"
            for what in small_files copy_tree delete_tree unpack; do
                sync -f "$WORK/uppers"
                sample "o-$what-$who" "$(milliseconds "$what" "$WORK/tree")"
            done
            [ -e "$WORK/tree/build/file-499.o" ] || die "$who: the files that were written are not there"
            [ ! -e "$WORK/tree/usr/share/copy" ] || die "$who: what was removed is still there"
        done
        overlay floor
        for what in small_files unpack; do
            sample "o-$what-floor" "$(milliseconds "$what" "$WORK/tree")"
        done
    done
    stop_all
    for what in 'ours overlay' 'above kernel overlayfs over strata'; do
        read -r us what <<<"$what"
        for peer in 'fuse 0.5 fuse-overlayfs' 'kernel 2 kernel overlayfs'; do
            read -r who target peer <<<"$peer"
            row "$what, tar of everything, cold: $peer" ms "o-cold-$us" "o-cold-$who" less "$target"
            row "$what, tar of everything, warm: $peer" ms "o-warm-$us" "o-warm-$who" less "$target"
            row "$what, 500 small files written: $peer" ms "o-small_files-$us" "o-small_files-$who" less "$target"
            row "$what, /usr/share/doc copied: $peer" ms "o-copy_tree-$us" "o-copy_tree-$who" less "$target"
            row "$what, two trees deleted: $peer" ms "o-delete_tree-$us" "o-delete_tree-$who" less "$target"
            row "$what, an archive unpacked: $peer" ms "o-unpack-$us" "o-unpack-$who" less "$target"
        done
    done
    row 'a bare FUSE server, 500 small files: kernel overlayfs' ms o-small_files-floor o-small_files-kernel less 2
    row 'a bare FUSE server, an archive unpacked: kernel overlayfs' ms o-unpack-floor o-unpack-kernel less 2
}
