//! One upper, two filesystems: `strata mount --cow`, and the kernel's overlayfs above strata's
//! read-only view of the same image. What one writes, the other shows.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output};

use support::{as_nobody, fixture, require_open_device, require_root, run, tool};

const NOBODY: u32 = 65534;

/// What the scripts below are made of. `listing DIR PATH...` tells all there is to tell of every file
/// in the folder, and the sums of the contents below each path.
const FUNCTIONS: &str = r#"
set -eu
export LC_ALL=C
listing() (
    cd "$1"
    shift
    find . -xdev -type d -printf "%P %y %m $OWNER %T@\n" -o -printf "%P %y %m $OWNER %T@ %s %l\n" | sort
    getfattr -R -h -d -m '^(user|security|system)\.' . | grep -v '^user\.containers\.' | awk -v RS= '/=/ { gsub(/\n/, " "); print }' | sort
    find "$@" -xdev -type f -print0 | sort -z | xargs -0 sha256sum
)
over() {
    "$STRATA" mount $OPTIONS --view files --cow upper/ "$IMAGE" merged
}
view() {
    "$STRATA" mount $OPTIONS --view files "$IMAGE" below
}
kernel() {
    mount -t overlay overlay -o "lowerdir=below,upperdir=upper,workdir=work,$1" merged
}
same() {
    diff -U0 "$1" "$2" >difference || { echo "$3"; head -n 30 difference; exit 1; }
}
"#;

/// An image, and a folder for everything else.
struct Place {
    dir: tempfile::TempDir,
    strata: PathBuf,
    image: PathBuf,
}

impl Place {
    fn new(image: PathBuf) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        // The build folder may be closed to other users.
        let strata = dir.path().join("strata");
        fs::copy(env!("CARGO_BIN_EXE_strata"), &strata).unwrap();
        for name in ["upper", "work", "merged", "below"] {
            fs::create_dir_all(dir.path().join("home").join(name)).unwrap();
        }
        Self { dir, strata, image }
    }

    /// Small, with something for each of the changes.
    fn small() -> Self {
        let mut place = Self::new(PathBuf::new());
        place.image = place.dir.path().join("image");
        let tree = place.dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let fill = "mkdir -p a/a b c/d opaque/hidden
            seq 20000 >b/a; echo short >b/b; echo whole >b/c; echo deep >c/d/e
            echo x >opaque/hidden/x; seq 3 >a/a/file; ln -s a/none l
            truncate -s 300000 sparse; echo end >>sparse
            chmod 4755 b/c; chmod 600 b/b; setfattr -n user.color -v blue b/c
            echo one >links; ln links c/other; echo other >b/d; chown -R 0:0 .; chown 7:8 b/d; chmod 755 .
            find . -exec touch -h -d @1500000000 {} +";
        run(Command::new("sh").args(["-eu", "-c", fill]).current_dir(&tree));
        fs::File::create(&place.image).unwrap().set_len(16 << 20).unwrap();
        let mut mke2fs = tool("mke2fs", "e2fsprogs");
        run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&place.image));
        place
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    /// Hands the folder to the ordinary user.
    fn owned_by_nobody(self) -> Self {
        for name in ["", "upper", "work", "merged", "below"] {
            chown(self.home().join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        self
    }

    /// Runs a script there; `before` is what starts a shell.
    #[track_caller]
    fn script(&self, mut shell: Command, owner: &str, options: &str, script: &str) -> Output {
        tool("getfattr", "attr");
        tool("setfattr", "attr");
        shell.arg("-c").arg(format!("{FUNCTIONS}\n{script}")).current_dir(self.home());
        shell.env("STRATA", &self.strata).env("IMAGE", &self.image);
        run(shell.env("OWNER", owner).env("OPTIONS", options))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever a failed script left, the newest first.
        for name in ["merged", "merged", "below"] {
            let flags = rustix::mount::UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(self.home().join(name), flags);
        }
    }
}

/// A shell of the ordinary user; in a user namespace of its own, where it is root, if `inside`.
fn of_nobody(inside: bool) -> Command {
    if inside { as_nobody(["unshare", "-Urm", "--", "bash"]) } else { as_nobody(["bash"]) }
}

#[test]
fn the_kernel_above_our_view_of_a_debian_root() {
    require_root();
    let place = Place::new(fixture("debian.qcow2"));
    place.script(
        Command::new("bash"),
        "%U:%G",
        "--allow-other --suid --dev",
        r#"
        what='etc usr/bin var/lib/dpkg/info'
        over
        cd merged
        echo web01 >etc/hostname; echo 'add 1/tcp' >>etc/services
        chmod 600 etc/passwd; chown 5:6 etc/group; touch -d @1234567890 etc/issue
        rm etc/fstab; truncate -s 3 etc/profile
        mv usr/share/doc usr/share/papers; mv usr/bin/bash usr/bin/shell
        mv usr/share/papers/bash usr/share/shell
        rm -r var/lib/dpkg/info; mkdir var/lib/dpkg/info; echo x >var/lib/dpkg/info/y
        ln etc/issue etc/issue.too; ln -s issue etc/issue.link
        setfattr -n user.color -v blue etc/hosts; mkfifo var/pipe; mknod var/null c 1 3
        cp -a etc var/etc; rm -r var/etc/init.d; chmod 4711 usr/bin/perl
        dd if=/dev/zero of=usr/bin/perl bs=1000 seek=7 count=3 conv=notrunc status=none
        cd ..
        listing merged $what >ours
        "$STRATA" unmount merged
        view
        # Both ways to follow a folder that was renamed, and all that index and xino ask of what is below.
        for options in redirect_dir=on,metacopy=on redirect_dir=on,metacopy=on,index=on,xino=on; do
            kernel "$options"
            listing merged $what >theirs
            same ours theirs "strata's upper by the kernel with $options"
            umount merged
            rm -r work
            mkdir work
        done

        kernel redirect_dir=on,metacopy=on
        cd merged
        mv etc/hostname etc/name; rm etc/issue; echo 2 >>etc/services; chmod 640 etc/shadow
        mv usr/share/papers usr/share/doc; mv usr/share/zoneinfo usr/share/zones
        rm -r usr/share/doc/apt; mkdir usr/share/doc/apt; touch usr/share/doc/apt/new
        mv usr/bin/shell usr/bin/bash; chown 1:2 usr/bin/find; rm -r var/etc; mkdir etc/new
        mv etc/default etc/new/; ln -s bash usr/bin/rbash2; setfattr -n user.a -v b etc/new
        cd ..
        listing merged $what >theirs
        umount merged
        over
        listing merged $what >ours
        same theirs ours "the kernel's upper by strata"
        "$STRATA" unmount merged
        "$STRATA" unmount below
        [ "$(wc -l <ours)" -gt 30000 ]
        "#,
    );
}

/// What an ordinary user does to the small image in `merged`.
const CHANGE: &str = r#"
change() (
    cd merged
    echo new >new; mkdir folder; echo in >folder/file; ln new folder/second
    echo more >>b/a; chmod 750 b/c; mv b/c b/renamed; mv b/a folder/moved; rm b/b
    rm -r opaque; mkdir opaque; echo inside >opaque/new; ln -s new link; rm l
    truncate -s 10 sparse; mv a elsewhere; touch -d @1400000000 c/d/e
    setfattr -n user.a -v 1 folder; echo two >links; mkdir -m 711 c/mode
)
change_more() (
    cd merged
    mv folder/moved back; rm -r elsewhere; mkdir elsewhere; echo 1 >elsewhere/1
    echo and >>new; mv link b/; rm b/renamed; ln -s b b/to
)
"#;

/// As in a container: root of a user namespace, where FUSE and overlayfs both can be mounted.
#[test]
fn an_ordinary_users_upper_in_a_namespace() {
    require_root();
    require_open_device();
    let place = Place::small().owned_by_nobody();
    let script = r#"
        over
        change
        listing merged . >ours
        "$STRATA" unmount merged
        over
        listing merged . >again
        same ours again 'mounted again'
        "$STRATA" unmount merged
        view
        kernel userxattr
        listing merged . >theirs
        same ours theirs "strata's upper by the kernel"
        change_more
        chmod 640 merged/sparse merged/new
        listing merged . >theirs
        umount merged
        over
        listing merged . >ours
        same theirs ours "the kernel's upper by strata"
        "$STRATA" unmount merged
        "$STRATA" unmount below
        "#;
    // The owner of a link is not kept in the upper of an ordinary user, who owns it.
    place.script(of_nobody(true), "", "", &format!("{CHANGE}{script}"));
    let new = fs::metadata(place.home().join("upper/new")).unwrap();
    assert_eq!(new.uid(), NOBODY);
}

/// Through fusermount3, without a namespace; the kernel shows the upper in one. What it does to modes is
/// not tried: those of files with owners that the user cannot give are kept where it does not look.
#[test]
fn an_ordinary_users_upper_without_one() {
    require_root();
    require_open_device();
    tool("fusermount3", "fuse3");
    let place = Place::small().owned_by_nobody();
    let script = r#"
        [ "$(id -u)" = 65534 ]
        over
        change
        # In a namespace the kernel refuses this: the owner is nobody there.
        chmod 640 merged/b/d
        [ "$(stat -c %u:%g:%a merged/b/d)" = 7:8:640 ]
        chown 1000:1001 merged/new merged/folder
        [ "$(stat -c %u:%g merged/folder/second)" = 1000:1001 ]
        OWNER=%U:%G
        listing merged . >ours
        "$STRATA" unmount merged
        over
        listing merged . >again
        same ours again 'mounted again'
        OWNER=
        listing merged . >ours
        "$STRATA" unmount merged
        [ -z "$(find upper .upper.work ! -uid 65534)" ]
        "#;
    place.script(of_nobody(false), "", "", &format!("{CHANGE}{script}"));
    let script = r#"
        view
        kernel userxattr
        listing merged . >theirs
        same ours theirs "strata's upper by the kernel"
        change_more
        listing merged . >theirs
        umount merged
        "$STRATA" unmount below
        "#;
    place.script(of_nobody(true), "", "", &format!("{CHANGE}{script}"));
    let script = r#"
        over
        listing merged . >ours
        same theirs ours "the kernel's upper by strata"
        [ "$(stat -c %u:%g merged/new)" = 1000:1001 ]
        "$STRATA" unmount merged
        "#;
    place.script(of_nobody(false), "", "", script);
}
