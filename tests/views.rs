//! What is shown of disks that real tools made.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

#[path = "support/contract.rs"]
mod contract;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratafs::block::Cache;
use stratafs::error::{Kind, Result};
use stratafs::open::survey::{Survey, survey};
use stratafs::open::view::{Shown, View, view};
use stratafs::open::{Opener, Reference};
use stratafs::policy::Policy;
use stratafs::tree::path::{Follow, resolve};
use stratafs::tree::{FileKind, FileTree};
use support::{fixture, qemu_img, run, tool};

const MIB: u64 = 1 << 20;

fn opener() -> Arc<Opener> {
    Arc::new(Opener::new(Policy::default(), Cache::new(64 << 20)))
}

fn show(path: &Path, of: View) -> Result<Shown> {
    view(&opener(), &Reference { path: path.into(), snapshot: None }, of, None)
}

fn surveyed(path: &Path) -> Survey {
    let opener = opener();
    let disk = opener.disk(&Reference { path: path.into(), snapshot: None }).unwrap();
    survey(&disk, &opener.cache).unwrap()
}

fn read(tree: &dyn FileTree, path: &str) -> Result<String> {
    let node = resolve(tree, path.as_bytes(), Follow::Always)?;
    let mut bytes = vec![0; 4096];
    let len = tree.read_at(node, 0, &mut bytes)?;
    Ok(String::from_utf8(bytes[..len].to_vec()).unwrap())
}

fn names(tree: &dyn FileTree, path: &str) -> Vec<String> {
    let mut names = Vec::new();
    let dir = resolve(tree, path.as_bytes(), Follow::Always).unwrap();
    tree.read_dir(dir, 0, &mut |entry| {
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        true
    })
    .unwrap();
    names.retain(|name| name != "lost+found");
    names.sort();
    names
}

/// An ext4 filesystem with these files, each holding the text after it; a name that ends in a
/// slash is a folder.
fn ext4(at: &Path, mebibytes: u64, label: &str, uuid: &str, files: &[(&str, &str)]) {
    let from = at.with_extension("files");
    fs::create_dir(&from).unwrap();
    for (name, text) in files {
        let path = from.join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    let mut command = tool("mkfs.ext4", "e2fsprogs");
    command.args(["-q", "-F", "-O", "^has_journal", "-L", label, "-U", uuid, "-d"]).arg(&from);
    run(command.arg(at).arg(format!("{mebibytes}M")));
    fs::remove_dir_all(from).unwrap();
}

/// A disk with a partition table that `sfdisk` makes from `script`, and these files copied to it,
/// each to a place in MiB.
fn disk(at: &Path, mebibytes: u64, script: &str, parts: &[(u64, &Path)]) {
    let disk = File::create(at).unwrap();
    disk.set_len(mebibytes * MIB).unwrap();
    let input = at.with_extension("script");
    fs::write(&input, script).unwrap();
    let mut command = tool("sfdisk", "fdisk");
    command.args(["--quiet", "--no-reread", "--no-tell-kernel"]).arg(at);
    run(command.stdin(File::open(input).unwrap()));
    for (place, part) in parts {
        disk.write_all_at(&fs::read(part).unwrap(), place * MIB).unwrap();
    }
}

const ROOT: &str = "11111111-2222-4333-8444-555555555555";
const BOOT: &str = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";
const HOME: &str = "99999999-8888-4777-8666-555555555555";

/// A server's disk: EFI (no filesystem of ours), boot, root, swap, home.
fn server(dir: &Path) -> PathBuf {
    let fstab = format!(
        "UUID={HOME} /home ext4 defaults 0 2\n\
         UUID={ROOT} / ext4 errors=remount-ro 0 1\n\
         UUID={BOOT} /boot ext4 defaults 0 2\n\
         UUID=1234-ABCD /boot/efi vfat umask=0077 0 1\n\
         PARTLABEL=swap none swap sw 0 0\n"
    );
    let [boot, root, home] = ["boot", "root", "home"].map(|name| dir.join(name));
    ext4(&boot, 16, "", BOOT, &[("vmlinuz", "kernel"), ("efi/", "")]);
    ext4(
        &root,
        32,
        "rootfs",
        ROOT,
        &[
            ("etc/fstab", &fstab),
            ("etc/os-release", "PRETTY_NAME=\"Test Server 1\"\n"),
            ("boot/hidden", "covered"),
            ("home/", ""),
        ],
    );
    ext4(&home, 16, "homes", HOME, &[("me/notes", "remember")]);
    let path = dir.join("server.raw");
    let script = "label: gpt\n\
        start=1MiB, size=8MiB, type=U, name=EFI\n\
        start=16MiB, size=16MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n\
        start=32MiB, size=32MiB, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=\"ro/ot\"\n\
        start=64MiB, size=8MiB, type=S, name=swap\n\
        start=80MiB, size=16MiB, type=L\n";
    disk(&path, 128, script, &[(16, &boot), (32, &root), (80, &home)]);
    path
}

#[test]
fn a_servers_disk_in_every_view() {
    let dir = tempfile::tempdir().unwrap();
    let raw = server(dir.path());
    let qcow2 = dir.path().join("server.qcow2");
    qemu_img(["convert".as_ref(), "-Oqcow2".as_ref(), raw.as_os_str(), qcow2.as_os_str()]);
    for path in [&raw, &qcow2] {
        for of in [View::Auto, View::Files] {
            let Shown { tree, view, warnings, .. } = show(path, of).unwrap();
            assert_eq!(view, View::Files);
            assert_eq!(names(&*tree.files(), "/"), ["boot", "etc", "home"]);
            assert_eq!(names(&*tree.files(), "boot"), ["efi", "vmlinuz"]);
            assert_eq!(read(&*tree.files(), "boot/vmlinuz").unwrap(), "kernel");
            assert_eq!(read(&*tree.files(), "home/me/notes").unwrap(), "remember");
            assert_eq!(
                warnings,
                ["/boot/efi of /etc/fstab is not shown: \
                  no filesystem that can be read here is UUID=1234-ABCD (vfat)"]
            );
            contract::check(&*tree.files());
        }

        let Shown { tree, warnings, .. } = show(path, View::Volumes).unwrap();
        assert_eq!(names(&*tree.files(), "/"), ["2-boot", "3-ro_ot", "5-homes"]);
        assert_eq!(names(&*tree.files(), "3-ro_ot/boot"), ["hidden"]);
        assert_eq!(
            warnings,
            ["not shown: volume 1 (EFI System), volume 4 (Linux swap) (--view disk has the bytes)"]
        );
        contract::check(&*tree.files());

        let Shown { tree, warnings, .. } = show(path, View::Disk).unwrap();
        let files = ["disk.img", "p1.img", "p2.img", "p3.img", "p4.img", "p5.img"];
        assert_eq!(names(&*tree.files(), "/"), files);
        assert_eq!(warnings, [""; 0]);
        let node = resolve(&*tree.files(), b"disk.img", Follow::Always).unwrap();
        let attr = tree.files().attr(node).unwrap();
        assert_eq!(attr.size, 128 * MIB);
        assert!(attr.blocks * 512 < attr.size, "a sparse disk shows that it has holes");
        contract::check(&*tree.files());

        let survey = surveyed(path);
        assert_eq!(survey.os.as_deref(), Some("Test Server 1"));
        assert_eq!(survey.volumes.len(), 5);
        let info = survey.volumes[2].filesystem.as_ref().unwrap();
        assert_eq!(info.label.as_deref(), Some("rootfs"));
        let json = serde_json::to_value(&survey).unwrap();
        assert_eq!(json["volumes"][2]["filesystem"]["uuid"], ROOT);
        assert_eq!(json["table"]["scheme"], "gpt");
    }
}

#[test]
fn a_filesystem_without_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data.raw");
    ext4(&path, 16, "my data", ROOT, &[("a/b", "c")]);
    let Shown { tree, view, warnings, .. } = show(&path, View::Auto).unwrap();
    assert_eq!((view, warnings), (View::Files, vec![]));
    assert_eq!(read(&*tree.files(), "a/b").unwrap(), "c");
    assert_eq!(names(&*show(&path, View::Volumes).unwrap().tree.files(), "/"), ["my data"]);
    assert_eq!(names(&*show(&path, View::Disk).unwrap().tree.files(), "/"), ["disk.img"]);
    let survey = surveyed(&path);
    assert!(survey.table.is_none() && survey.os.is_none());
    assert!(survey.volumes[0].volume.is_none() && survey.volumes[0].filesystem.is_some());
}

#[test]
fn two_filesystems_and_no_system_become_volumes() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = ["one", "two"].map(|name| dir.path().join(name));
    ext4(&one, 16, "one", ROOT, &[("1", "")]);
    ext4(&two, 16, "", HOME, &[("2", "")]);
    let path = dir.path().join("disk");
    let script = "label: dos\nstart=1MiB, size=16MiB\nstart=32MiB, size=20MiB, type=5\n\
                  start=33MiB, size=16MiB\n";
    disk(&path, 64, script, &[(1, &one), (33, &two)]);
    let Shown { tree, view, .. } = show(&path, View::Auto).unwrap();
    assert_eq!(view, View::Volumes);
    assert_eq!(names(&*tree.files(), "/"), ["1-one", "5-linux"]);
    let error = show(&path, View::Files).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.hint().unwrap().contains("--view volumes"), "{error}");
}

#[test]
fn damage_of_one_volume_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = server(dir.path());
    let file = File::options().write(true).open(&path).unwrap();
    // Home's superblock: block size 2^42.
    file.write_all_at(&[32, 0, 0, 0], 80 * MIB + 1024 + 24).unwrap();
    let Shown { tree, view, warnings, .. } = show(&path, View::Auto).unwrap();
    assert_eq!(view, View::Files);
    assert_eq!(names(&*tree.files(), "boot"), ["efi", "vmlinuz"]);
    assert_eq!(names(&*tree.files(), "home"), [""; 0]);
    assert!(warnings[0].starts_with("volume 5 (Linux filesystem): "), "{warnings:?}");
    assert!(warnings.iter().any(|line| line.starts_with("/home of /etc/fstab is not shown")));
    let survey = surveyed(&path);
    assert!(survey.volumes[4].filesystem.is_none());
    assert!(survey.warnings[0].starts_with("volume 5 (Linux filesystem): "), "{survey:?}");
}

/// A disk with two snapshots of one name and one of another; now, and then, the file `when` says
/// which it is.
fn with_snapshots(dir: &Path) -> PathBuf {
    let path = dir.join("disk.qcow2");
    for (step, snapshot) in
        [("first", "same"), ("second", "same"), ("third", "a/b"), ("now", "")].into_iter()
    {
        let raw = dir.join(step);
        ext4(&raw, 16, "", ROOT, &[("when", step)]);
        let mut args = vec!["convert".as_ref(), "-Oqcow2".as_ref()];
        if path.exists() {
            args.push("-n".as_ref());
        }
        args.extend([raw.as_os_str(), path.as_os_str()]);
        qemu_img(args);
        if !snapshot.is_empty() {
            let args = ["snapshot".as_ref(), "-c".as_ref(), snapshot.as_ref(), path.as_os_str()];
            qemu_img(args);
        }
    }
    path
}

#[test]
fn every_snapshot_is_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let path = with_snapshots(dir.path());
    assert_eq!(read(&*show(&path, View::Auto).unwrap().tree.files(), "when").unwrap(), "now");

    let Shown { tree, view, .. } = show(&path, View::Snapshots).unwrap();
    assert_eq!(view, View::Snapshots);
    assert_eq!(names(&*tree.files(), "/"), ["a_b", "same (1)", "same (2)"]);
    let folder = resolve(&*tree.files(), b"a_b", Follow::Always).unwrap();
    let before = tree.files().attr(folder).unwrap();
    assert_eq!(before.kind, FileKind::Directory);
    assert!(before.modified.seconds > 1_600_000_000, "when it was taken");
    assert_eq!(read(&*tree.files(), "same (1)/when").unwrap(), "first");
    assert_eq!(read(&*tree.files(), "same (2)/when").unwrap(), "second");
    assert_eq!(read(&*tree.files(), "a_b/when").unwrap(), "third");
    assert_eq!(tree.files().attr(folder).unwrap(), before);
    contract::check(&*tree.files());
}

#[test]
fn a_file_put_in_the_place_of_the_image_is_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = with_snapshots(dir.path());
    let Shown { tree, .. } = show(&path, View::Snapshots).unwrap();
    assert_eq!(read(&*tree.files(), "a_b/when").unwrap(), "third");
    let other = dir.path().join("other");
    fs::copy(&path, &other).unwrap();
    fs::rename(&other, &path).unwrap();
    // What is open stays what it was; what is not does not open.
    assert_eq!(read(&*tree.files(), "a_b/when").unwrap(), "third");
    let error = read(&*tree.files(), "same (1)/when").unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("is another file than when it was mounted"), "{error}");
}

#[test]
fn a_whole_debian_keeps_the_contract() {
    let path = fixture("debian.qcow2");
    let Shown { tree, view, .. } = show(&path, View::Auto).unwrap();
    assert_eq!(view, View::Files);
    assert!(surveyed(&path).os.unwrap().starts_with("Debian GNU/Linux 12"));
    assert!(names(&*tree.files(), "/usr/bin").contains(&"dpkg".to_owned()));
    contract::check(&*tree.files());
}
