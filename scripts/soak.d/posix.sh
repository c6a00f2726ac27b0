# Other people's suites, on an overlay. Sourced by scripts/soak.
# shellcheck shell=bash

# prepare_tree NAME: an empty filesystem and an empty upper; TREE is where they will be mounted.
prepare_tree() {
    local dir=$WORK/$1
    [ "$(id -u)" -eq 0 ] || die "$1 mounts as root"
    mkdir -p "$dir/upper" "$dir/work" "$dir/lower" "$dir/mnt"
    truncate -s 4G "$dir/lower.ext4"
    mkfs.ext4 -q -F "$dir/lower.ext4"
    TREE=$dir/mnt
}

# mount_tree NAME: mounts it in the way of $on. All of them honour setuid bits and devices, and check
# permissions for every user.
mount_tree() {
    local dir=$WORK/$1 options
    options=lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work
    case $on in
        strata)
            attended "$dir/mnt" "$strata" mount --foreground --allow-other --suid --dev --view files \
                --work "$dir/work" --cow "$dir/upper/" "$dir/lower.ext4" "$dir/mnt"
            ;;
        fuse-overlayfs)
            mounts+=("$dir/lower")
            mount -o loop,ro "$dir/lower.ext4" "$dir/lower"
            attended "$dir/mnt" fuse-overlayfs -f -o "$options,allow_other,suid,dev" "$dir/mnt"
            ;;
        kernel)
            mounts+=("$dir/lower" "$dir/mnt")
            mount -o loop,ro "$dir/lower.ext4" "$dir/lower"
            mount -t overlay overlay -o "$options" "$dir/mnt"
            ;;
        ext4) mounts+=("$dir/mnt"); mount -o loop "$dir/lower.ext4" "$dir/mnt" ;;
        *) die "--on $on: strata, ext4, kernel or fuse-overlayfs" ;;
    esac
}

unmount_tree() {
    local dir=$WORK/$1
    case $on in
        strata) ended "$dir/mnt" ;;
        *) umount "$dir/mnt" ;;
    esac
    if [ "$on" = fuse-overlayfs ]; then wait "$server" || true; server=''; fi
    ! mountpoint -q "$dir/lower" || umount "$dir/lower"
}

drop_tree() { rm -rf --one-file-system "${WORK:?}/$1"; }

# ---- pjdfstest -----------------------------------------------------------------------------------

# failed_tests LOG: each failure in the log of prove -v, as "chmod/05.t 8".
failed_tests() {
    awk '/\/tests\/.*\.t \.\.+/ { n = split($1, part, "/"); file = part[n - 1] "/" part[n] }
         /^not ok [0-9]+/ && !/# TODO/ { print file, $3 }' "$1" | sort -u
}

campaign_pjdfstest() {
    local strata log=$WORK/pjdfstest.log excluded=scripts/soak.d/pjdfstest.excluded new fixed status=0
    [ -n "$pjdfstest" ] || die 'pjdfstest needs --pjdfstest DIR: a folder where the C suite pjd/pjdfstest was cloned and built'
    pjdfstest=$(realpath "$pjdfstest")
    [ -x "$pjdfstest/pjdfstest" ] || die "$pjdfstest/pjdfstest is not there: its README tells how to build it"
    command -v prove >/dev/null || die 'prove is missing: apt-get install -y perl'
    build_strata
    prepare_tree pjdfstest
    mount_tree pjdfstest
    mkdir "$TREE/tests"
    (cd "$TREE/tests" && prove -rv --merge "$pjdfstest/tests") >"$log" 2>&1 </dev/null || status=$?
    unmount_tree pjdfstest
    drop_tree pjdfstest
    say "pjdfstest on $on: $(grep '^Files=' "$log" || echo 'it did not finish'), failed: $(failed_tests "$log" | wc -l)"
    failed_tests "$log" >"$WORK/failed"
    if [ "$on" != strata ]; then cat "$WORK/failed"; return; fi
    sed '/^#/d; /^$/d' "$excluded" | awk '{ print $1, $2 }' | sort -u >"$WORK/excluded"
    new=$(comm -23 "$WORK/failed" "$WORK/excluded")
    fixed=$(comm -13 "$WORK/failed" "$WORK/excluded")
    [ -z "$fixed" ] || say "excluded, and did not fail: ${fixed//$'\n'/, }"
    if [ -n "$new" ]; then
        grep '^not ok' "$log" | grep -v '# TODO' | head -n 50 | sed -E 's/[0-9a-f/]{60,}/.../g' >&2
        die "pjdfstest failed: ${new//$'\n'/, }"
    fi
    # A script that died counts as failed and fails no test by name.
    ! grep -E 'Parse errors|Dubious|Bailout' "$log" >&2 || die 'a script of pjdfstest died'
    [ "$status" -eq 0 ] || [ -s "$WORK/failed" ] || die "prove ended with $status: $(tail -n 5 "$log")"
}

# ---- unionmount ----------------------------------------------------------------------------------

campaign_unionmount() {
    local strata log=$WORK/unionmount.log dir=$WORK/unionmount status=0
    local -a arguments
    [ -n "$unionmount" ] || die 'unionmount needs --unionmount DIR: a folder where amir73il/unionmount-testsuite was cloned'
    unionmount=$(realpath "$unionmount")
    [ -x "$unionmount/run" ] || die "$unionmount/run is not there"
    [ "$(id -u)" -eq 0 ] || die 'unionmount mounts as root'
    build_strata
    case $on in
        strata) arguments=(--ov --fuse=strata-over) ;;
        # It renames no folders.
        fuse-overlayfs) arguments=(--ov --fuse=fuse-overlayfs --xdev) ;;
        kernel) arguments=(--ov) ;;
        *) die "unionmount cannot run on $on" ;;
    esac
    mkdir -p "$dir/lower" "$dir/base" "$dir/mnt" "$dir/images" "$dir/bin"
    ln -s "$PWD/scripts/soak.d/strata-over" "$dir/bin/mount"
    # Not by the names that the suite unmounts.
    mount -t tmpfs soak "$dir/lower"
    mount -t tmpfs soak "$dir/base"
    mounts+=("$dir/lower" "$dir/base" "$dir/mnt")
    (
        cd "$unionmount"
        export UNIONMOUNT_LOWERDIR=$dir/lower UNIONMOUNT_BASEDIR=$dir/base UNIONMOUNT_MNTPOINT=$dir/mnt
        export PATH=$dir/bin:$PATH STRATA_OVER_PROGRAM=$strata STRATA_OVER_IMAGES=$dir/images PYTHONDONTWRITEBYTECODE=1
        ./run "${arguments[@]}"
    ) >"$log" 2>&1 </dev/null || status=$?
    umount "$dir/mnt" "$dir/base" "$dir/lower" 2>/dev/null || true
    say "unionmount on $on: $(grep -c '^\*\*\* .* --' "$log" || true) scripts, $(grep -c '^TEST ' "$log" || true) tests"
    [ "$status" -eq 0 ] || die "unionmount failed: $(tail -n 4 "$log")"
}

# ---- stress --------------------------------------------------------------------------------------

campaign_stress() {
    local strata log=$WORK/stress.log status=0 each
    command -v stress-ng >/dev/null || die 'stress-ng is missing: apt-get install -y stress-ng'
    build_strata
    prepare_tree stress
    mount_tree stress
    mkdir "$TREE/stress"
    # About forty of them, one after the other, in a tenth of the time that campaigns have.
    each=$((seconds / 400 > 2 ? seconds / 400 : 2))
    stress-ng --class filesystem --sequential 1 --verify --timeout "$each" --temp-path "$TREE/stress" \
        --metrics-brief >"$log" 2>&1 </dev/null || status=$?
    unmount_tree stress
    drop_tree stress
    say "stress-ng on $on: $(grep -c ' completed\|bogo ops\|metrc:' "$log" || true) lines of figures, $(tail -n 1 "$log" | sed 's/.*\] //')"
    grep -E 'skipped|unsupported|not supported' "$log" | sed 's/^stress-ng: //' >&2 || true
    ! grep -E 'fail:|error:' "$log" >&2 || die 'stress-ng found something'
    # 3 and 4: some could not run here at all, which the lines above tell.
    case $status in
        0 | 3 | 4) ;;
        *) die "stress-ng ended with $status: $(tail -n 5 "$log")" ;;
    esac
}
