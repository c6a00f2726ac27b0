# A container image of four gzip layers, beside what else makes its files readable. Sourced by scripts/bench.
# shellcheck shell=bash
#
# The first layer is the Debian root; the others put parts of it elsewhere, as applications do, and remove
# some files. Peers: `umoci unpack`; `gzip -d` of the layers one after another, which reads them and does
# nothing else; the kernel's overlayfs and fuse-overlayfs over the unpacked layers, which somebody has to
# unpack before; ratarmount on the first layer alone (if $RATARMOUNT or the PATH has it: `pip install ratarmount`).
# The blobs are in the host's page cache. "first" is without anything in the cache folder, "cold" is a fresh
# mount with the index made; the unpacked layers lie in an ext4 of their own that is mounted anew.

for tool in umoci:umoci fuse-overlayfs:fuse-overlayfs python3:python3; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt-get install -y ${tool##*:}"
done
RATARMOUNT=${RATARMOUNT:-$(command -v ratarmount || true)}

umoci_quiet() { umoci "$@" >"$WORK/log" 2>&1 || die "umoci: $(cat "$WORK/log")"; }

# make_image: the layout $WORK/L with the image v1, its layers' tars, and $WORK/layers.ext4 with them unpacked.
make_image() {
    local n gone path
    kernel "$FIXTURES/debian.raw" "$WORK/lower"
    mkdir -p "$WORK/tars"
    # Not the oddities, which are for tests: they would more than double the entries.
    tar --xattrs -C "$WORK/lower" --exclude=./oddities -cf "$WORK/tars/1.tar" .
    tar -C "$WORK/lower" --transform 's,^,opt/one/,S' -cf "$WORK/tars/2.tar" usr/lib/x86_64-linux-gnu
    tar -C "$WORK/lower" --transform 's,^,opt/two/,S' -cf "$WORK/tars/3.tar" usr/share/perl usr/share/doc
    tar -C "$WORK/lower" --transform 's,^,opt/three/,S' -cf "$WORK/tars/4.tar" usr/bin etc
    mkdir -p "$WORK/gone"
    for gone in usr/share/man usr/share/locale var/cache; do
        [ -e "$WORK/lower/$gone" ] || continue
        mkdir -p "$WORK/gone/${gone%/*}"
        : >"$WORK/gone/${gone%/*}/.wh.${gone##*/}"
    done
    (cd "$WORK/gone" && find . -name '.wh.*' -printf '%P\0') |
        tar -C "$WORK/gone" --null -T - -rf "$WORK/tars/3.tar"
    stop_all
    umoci_quiet init --layout "$WORK/L"
    umoci_quiet new --image "$WORK/L:v1"
    truncate -s 3G "$WORK/layers.ext4"
    mkfs.ext4 -q -N 200000 -E lazy_itable_init=0,lazy_journal_init=0 "$WORK/layers.ext4"
    mkdir -p "$WORK/layers" && mount -o loop "$WORK/layers.ext4" "$WORK/layers"
    SERVER[$WORK/layers]=kernel
    for n in 1 2 3 4; do
        umoci_quiet raw add-layer --image "$WORK/L:v1" "$WORK/tars/$n.tar"
        mkdir "$WORK/layers/$n"
        tar --xattrs --xattrs-include='*' -C "$WORK/layers/$n" -xpf "$WORK/tars/$n.tar"
        find "$WORK/layers/$n" -name '.wh.*' -print0 | while IFS= read -r -d '' path; do
            rm "$path"
            mknod "${path%/*}/$(basename "$path" | sed 's/^\.wh\.//')" c 0 0
        done
    done
    stop_all
    # The blobs in the order of the layers.
    BLOBS=()
    while read -r n; do BLOBS+=("$WORK/L/blobs/sha256/$n"); done < <(
        python3 - "$WORK/L" <<'PYTHON'
import json, sys
blob = lambda digest: json.load(open(f"{sys.argv[1]}/blobs/sha256/{digest.split(':')[1]}"))
newest = json.load(open(f"{sys.argv[1]}/index.json"))["manifests"][-1]
for layer in blob(newest["digest"])["layers"]:
    print(layer["digest"].split(":")[1])
PYTHON
    )
    [ "${#BLOBS[@]}" -eq 4 ] || die 'the image has not four layers'
    cp "${BLOBS[0]}" "$WORK/first.tar.gz"
    # A large file in one gzip member.
    dd if="$FIXTURES/debian.raw" of="$WORK/big" bs=1M skip=80 count=256 status=none
    tar -C "$WORK" -c big | gzip -1 >"$WORK/big.tar.gz"
    rm "$WORK/big"
}

# over WHO: the unpacked layers merged at $WORK/tree.
over() {
    local below=$WORK/layers/4:$WORK/layers/3:$WORK/layers/2:$WORK/layers/1
    mkdir -p "$WORK/tree"
    mount -o loop,ro,noload "$WORK/layers.ext4" "$WORK/layers"
    SERVER[$WORK/layers]=kernel
    if [ "$1" = kernel ]; then
        mount -t overlay overlay -o "lowerdir=$below" "$WORK/tree"
        SERVER[$WORK/tree]=kernel
    else
        fuse-overlayfs -f -o "lowerdir=$below" "$WORK/tree" >"$WORK/log" 2>&1 &
        SERVER[$WORK/tree]=$!
        until_there $! mountpoint -q "$WORK/tree"
    fi
}
# What lies above goes first.
stop_over() { stop "$WORK/tree"; stop_all; }

first_listing() { "$STRATA" mount "$1" "$WORK/first" && list_all "$WORK/first"; }
first_byte() { "$STRATA" mount "$1" "$WORK/first" && head -c 1 "$WORK/first/etc/os-release"; }
unmount_first() {
    mountpoint -q "$WORK/first" || die "did not mount: $("$STRATA" mount "$1" "$WORK/first" 2>&1)"
    "$STRATA" unmount "$WORK/first"
}
unpack_image() { umoci unpack --image "$WORK/L:v1" "$WORK/bundle"; }
gunzip_all() { local blob; for blob in "${BLOBS[@]}"; do gzip -dc "$blob"; done; }
# reads FILE JOBS: 4 KiB reads per second of a large file, past the page cache.
reads() {
    fio --name=r --filename="$1" --readonly --rw=randread --bs=4k --direct=1 --size=256M --norandommap --thread \
        --numjobs="$2" --group_reporting --ioengine=psync --time_based --runtime="$seconds" \
        --output-format=terse --terse-version=3 | awk -F';' '{ print $8 }'
}
ratar() {
    mkdir -p "$WORK/rtree"
    "$RATARMOUNT" -f --index-file "$WORK/ratar.index" "$1" "$WORK/rtree" >"$WORK/log" 2>&1 &
    SERVER[$WORK/rtree]=$!
    until_there $! mountpoint -q "$WORK/rtree"
}

group_layers() {
    local round who image size first=$WORK/first.tar.gz big=$WORK/big.tar.gz
    make_image
    image=oci:$WORK/L:v1
    export STRATA_CACHE_DIR=$WORK/cache
    mkdir -p "$WORK/first"
    warm "${BLOBS[@]}" "$WORK/layers.ext4" "$first" "$big"
    for ((round = 0; round < rounds; round++)); do
        rm -rf "$WORK/bundle"
        sample l-umoci "$(milliseconds unpack_image)"
        [ -e "$WORK/bundle/rootfs/opt/three/etc" ] || die "umoci did not unpack"
        rm -rf "$WORK/bundle"
        sample l-gunzip "$(milliseconds gunzip_all)"
        rm -rf "$WORK/cache"
        sample l-first "$(milliseconds first_listing "$image")"
        unmount_first "$image"
        for who in 1 2 3; do
            sample l-byte "$(milliseconds first_byte "$image")"
            unmount_first "$image"
        done
        size=$(cat "$WORK"/cache/*.index | wc -c)
        sample l-index "$(awk -v i="$size" -v b="$(cat "${BLOBS[@]}" | wc -c)" 'BEGIN { print i / b * 100 }')"
        for who in kernel fuse ours; do
            begin() { if [ "$who" = ours ]; then strata files "$image" "$WORK/tree"; else over "$who"; fi; }
            begin
            sample "l-find-cold-$who" "$(milliseconds list_all "$WORK/tree")"
            sample "l-find-warm-$who" "$(milliseconds list_all "$WORK/tree")"
            stop_over
            begin
            sample "l-tar-$who" "$(milliseconds tar_all "$WORK/tree")"
            stop_over
        done
        if [ -n "$RATARMOUNT" ]; then
            rm -f "$WORK/ratar.index"
            ratar "$first"
            stop_all
            ratar "$first"
            sample l-ratar-tar "$(milliseconds tar_all "$WORK/rtree")"
            stop_all
        fi
        "$STRATA" ls "$first" >/dev/null
        strata files "$first" "$WORK/tree"
        sample l-first-tar "$(milliseconds tar_all "$WORK/tree")"
        stop_all
        "$STRATA" ls "$big" >/dev/null
        strata files "$big" "$WORK/tree"
        sample l-random "$(reads "$WORK/tree/big" 1)"
        stop_all
        # Too little memory to keep what was decompressed.
        mkdir -p "$WORK/tree"
        "$STRATA" mount --foreground --cache-size 16M "$big" "$WORK/tree" >"$WORK/log" 2>&1 &
        SERVER[$WORK/tree]=$!
        until_there $! mountpoint -q "$WORK/tree"
        sample l-random-small "$(reads "$WORK/tree/big" 1)"
        sample l-random-small-4 "$(reads "$WORK/tree/big" 4)"
        stop_all
    done
    row 'layers, first mount to complete listing: umoci unpack' ms l-first l-umoci less 0.2
    row 'layers, first mount to complete listing: gzip -d of each' ms l-first l-gunzip less 1
    row 'layers, second mount to first byte: 30 ms' ms l-byte 30 less 1
    row 'layers, index: 1 % of the compressed layers' % l-index 1 less 1
    row 'layers, find, cold: kernel overlayfs' ms l-find-cold-ours l-find-cold-kernel less 2
    row 'layers, find, warm: kernel overlayfs' ms l-find-warm-ours l-find-warm-kernel less 2
    row 'layers, tar of everything, cold: fuse-overlayfs' ms l-tar-ours l-tar-fuse less 1
    row 'layers, tar of everything, cold: kernel overlayfs' ms l-tar-ours l-tar-kernel less 2
    [ -z "$RATARMOUNT" ] || row 'first layer, tar of everything: ratarmount' ms l-first-tar l-ratar-tar less 0.667
    row '256 MiB in one gzip member, 4 KiB random, 1 job: 2000' IOPS l-random 2000 more 1
    row 'same with a cache of 16 MiB: 2000' IOPS l-random-small 2000 more 1
    row 'same with a cache of 16 MiB, 4 jobs: 2000' IOPS l-random-small-4 2000 more 1
}
