//! The restore engine against a tree in memory: everything is as it was, nothing leaves the
//! destination, and a second run finishes what a first one began.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]

mod host;
#[path = "../model/mod.rs"]
mod model;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use model::{Model, ROOT};
use stratafs::cli::restore::engine::{Item, Options, Progress, Summary, restore};
use stratafs::error::{Error, Kind};
use stratafs::tree::{Device, FileKind, FileTree, NodeId, Time};

type Failures = Vec<(String, Kind, String)>;

fn run(
    model: &Model,
    items: &[Item],
    dir: &Path,
    options: &Options,
) -> (Result<Summary, Error>, Failures) {
    let failures = Mutex::new(vec![]);
    let stop = AtomicBool::new(false);
    let progress = Progress::default();
    let result = restore(model, items, dir, options, &progress, &stop, &|path, error| {
        let path = String::from_utf8_lossy(path).into_owned();
        failures.lock().unwrap().push((path, error.kind(), error.to_string()));
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by(|a, b| a.0.cmp(&b.0));
    (result, failures)
}

fn everything() -> Vec<Item> {
    vec![Item { node: ROOT, name: None }]
}

/// Tests need no stable storage.
fn plain() -> Options {
    Options { sync: false, ..Options::default() }
}

#[track_caller]
fn restored(model: &Model, dir: &Path, options: &Options) -> Summary {
    let (summary, failures) = run(model, &everything(), dir, options);
    assert_eq!(failures, []);
    let summary = summary.unwrap();
    assert!(summary.is_complete(), "{summary:?}");
    summary
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65536];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

/// Reads a file without changing its time of access.
fn read_quietly(path: &Path) -> Vec<u8> {
    let flags = rustix::fs::OFlags::NOATIME.bits() as i32;
    let mut contents = vec![];
    let mut file = fs::File::options().read(true).custom_flags(flags).open(path).unwrap();
    file.read_to_end(&mut contents).unwrap();
    contents
}

/// Compares what stands in `dir` with the entries of `node`, whole.
#[track_caller]
fn assert_equal(model: &Model, node: NodeId, dir: &Path, privileged: bool) {
    let root = rustix::process::geteuid().is_root();
    let mut expected: Vec<OsString> = vec![];
    for (name, node) in &model.body(node).entries {
        let attr = model.attr(*node).unwrap();
        let path = dir.join(OsStr::from_bytes(name));
        let device = matches!(attr.kind, FileKind::CharDevice(_) | FileKind::BlockDevice(_));
        if device && !privileged {
            assert!(fs::symlink_metadata(&path).is_err(), "{path:?} was not left out");
            continue;
        }
        expected.push(OsString::from_vec(name.clone()));
        let meta = fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        let kind = meta.file_type();
        let same_kind = match attr.kind {
            FileKind::Regular => kind.is_file(),
            FileKind::Directory => kind.is_dir(),
            FileKind::Symlink => kind.is_symlink(),
            FileKind::Fifo => kind.is_fifo(),
            FileKind::Socket => kind.is_socket(),
            FileKind::CharDevice(_) => kind.is_char_device(),
            FileKind::BlockDevice(_) => kind.is_block_device(),
        };
        assert!(same_kind, "{path:?} is {kind:?}");
        if let FileKind::CharDevice(device) | FileKind::BlockDevice(device) = attr.kind {
            assert_eq!(meta.rdev(), rustix::fs::makedev(device.major, device.minor), "{path:?}");
        }
        if attr.kind == FileKind::Symlink {
            let target = fs::read_link(&path).unwrap();
            assert_eq!(target.as_os_str().as_bytes(), model.read_link(*node).unwrap());
        } else {
            let kept = match (privileged, attr.kind) {
                (true, _) => 0o7777,
                (false, FileKind::Directory) => 0o3777,
                (false, _) => 0o1777,
            };
            assert_eq!(meta.mode() & 0o7777, u32::from(attr.mode & kept), "mode of {path:?}");
        }
        if root {
            assert_eq!((meta.uid(), meta.gid()), (attr.uid, attr.gid), "owner of {path:?}");
        }
        let modified = (attr.modified.seconds, i64::from(attr.modified.nanos));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), modified, "mtime of {path:?}");
        match attr.kind {
            FileKind::Directory => assert_equal(model, *node, &path, privileged),
            FileKind::Regular => {
                let accessed = (attr.accessed.seconds, i64::from(attr.accessed.nanos));
                assert_eq!((meta.atime(), meta.atime_nsec()), accessed, "atime of {path:?}");
                assert_eq!(meta.len(), attr.size, "size of {path:?}");
                assert!(meta.blocks() <= attr.blocks + 8, "holes of {path:?} were filled");
                if root || attr.mode & 0o400 != 0 {
                    assert!(read_quietly(&path) == model.contents(*node), "{path:?}");
                }
            }
            _ => {}
        }
        for (key, value) in &model.body(*node).xattrs {
            let key = String::from_utf8_lossy(key);
            let kept = privileged || !(key.starts_with("security.") || key.starts_with("trusted."));
            let found = xattr(&path, &key);
            assert_eq!(found.as_ref(), kept.then_some(value), "{key} of {path:?}");
        }
    }
    let mut found: Vec<OsString> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "entries of {dir:?}");
}

fn partials(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else if entry.file_name().as_bytes().starts_with(b".strata-partial-") {
                found.push(entry.path());
            }
        }
    }
    found
}

/// A POSIX ACL in the kernel's form: rw- for the owner, r-- for user 1234, r-- for the others.
fn acl() -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 6_u16, u32::MAX),
        (0x02, 4, 1234),
        (0x04, 4, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 4, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add((n >> 8) as u8) ^ seed).collect()
}

/// Everything odd a folder can hold.
fn oddities() -> Model {
    oddities_and(3000)
}

/// The same with a folder of as many files.
fn oddities_and(files: u32) -> Model {
    let mut model = Model::new();
    let etc = model.dir(ROOT, b"etc", 0o755);
    let passwd = model.file(etc, b"passwd", 0o644, b"root:x:0:0::/root:/bin/sh\n");
    model.file(etc, b"shadow", 0o600, b"secret");
    model.file(etc, b"empty", 0o444, b"");
    model.file(etc, b"line\nbreak", 0o640, b"x");
    model.file(etc, b"caf\xe9", 0o644, b"Latin-1");
    model.file(etc, &[b'n'; 255], 0o644, b"long");
    model.file(etc, b" leading and \x1b[31m", 0o644, b"escape");
    model.name(ROOT, b"passwd.hard", passwd);
    let deep = model.dir(etc, b"deep", 0o2775);
    model.name(deep, b"third name", passwd);
    model.symlink(deep, b"dangling", b"/no/such/../file");
    let twice = model.symlink(deep, b"link", b"../passwd");
    model.name(deep, b"link, again", twice);
    model.add(deep, b"fifo", FileKind::Fifo, 0o620);
    model.add(deep, b"socket", FileKind::Socket, 0o755);
    model.add(deep, b"null", FileKind::CharDevice(Device { major: 1, minor: 3 }), 0o666);
    model.add(deep, b"disk", FileKind::BlockDevice(Device { major: 259, minor: 70_000 }), 0o660);
    let sparse = model.add(ROOT, b"sparse", FileKind::Regular, 0o600);
    model.put(sparse, 4 << 20, &bytes(10_000, 1));
    model.put(sparse, 40 << 20, &bytes(4096, 2));
    model.attr_mut(sparse).size = 64 << 20;
    let hole = model.add(ROOT, b"hole", FileKind::Regular, 0o600);
    model.attr_mut(hole).size = 1 << 30 >> 6;
    model.file(ROOT, b"large", 0o644, &bytes(3_000_000, 3));
    let old = model.file(ROOT, b"old", 0o644, b"1903");
    model.attr_mut(old).modified = Time { seconds: -2_100_000_000, nanos: 1 };
    model.attr_mut(old).accessed = Time { seconds: -1, nanos: 999_999_999 };
    let late = model.file(ROOT, b"late", 0o644, b"2100");
    model.attr_mut(late).modified = Time { seconds: 4_102_444_800, nanos: 5 };
    let tagged = model.file(ROOT, b"tagged", 0o644, b"tags");
    model.body_mut(tagged).xattrs.insert(b"user.comment".to_vec(), b"a\0b".to_vec());
    model.body_mut(tagged).xattrs.insert(b"user.empty".to_vec(), vec![]);
    let listed = model.file(ROOT, b"listed", 0o644, b"acl");
    model.body_mut(listed).xattrs.insert(b"system.posix_acl_access".to_vec(), acl());
    let shared = model.dir(ROOT, b"shared", 0o755);
    model.body_mut(shared).xattrs.insert(b"system.posix_acl_default".to_vec(), acl());
    model.body_mut(shared).xattrs.insert(b"user.folder".to_vec(), b"yes".to_vec());
    model.file(shared, b"inside", 0o600, b"no acl of its own");
    let closed = model.dir(ROOT, b"closed", 0o500);
    model.file(closed, b"inside", 0o400, b"read only");
    let setuid = model.file(ROOT, b"su", 0o4755, b"#!/bin/sh\n");
    let mut capability = 0x0200_0000_u32.to_le_bytes().to_vec();
    capability.extend([0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    model.body_mut(setuid).xattrs.insert(b"security.capability".to_vec(), capability);
    model.file(ROOT, b"sg", 0o2711, b"#!/bin/sh\n");
    let many = model.dir(ROOT, b"many", 0o711);
    for n in 0..files {
        model.file(many, format!("file {n}").as_bytes(), 0o644, &n.to_le_bytes());
    }
    if rustix::process::geteuid().is_root() {
        model.attr_mut(passwd).uid = 4_000_000_000;
        model.attr_mut(deep).gid = 12_345;
        model.attr_mut(twice).uid = 33;
    }
    model
}

#[test]
fn restores_everything_as_it_was() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let summary = restored(&model, dir.path(), &plain());
    assert_equal(&model, ROOT, dir.path(), false);
    assert_eq!(summary.devices_left_out, 2);
    assert_eq!(summary.setuid_left_out, 2);
    assert_eq!(summary.xattrs_left_out, 1);
    assert_eq!(summary.hard_links, 3);
    assert_eq!(summary.folders, 5);
    assert_eq!(summary.files, 3000 + 18);
    assert_eq!(summary.already_there, 0);
    let inode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().ino();
    assert_eq!(inode("etc/passwd"), inode("passwd.hard"));
    assert_eq!(inode("etc/passwd"), inode("etc/deep/third name"));
    assert_eq!(xattr(&dir.path().join("shared/inside"), "system.posix_acl_access"), None);
}

#[test]
fn a_second_run_finds_all_of_it_there() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let first = restored(&model, dir.path(), &plain());
    let inodes = |path: &str| fs::symlink_metadata(dir.path().join(path)).unwrap().ino();
    let before = ["large", "etc/deep/fifo", "etc/deep/link", "closed/inside"].map(inodes);
    let second = restored(&model, dir.path(), &plain());
    assert_equal(&model, ROOT, dir.path(), false);
    assert_eq!(before, ["large", "etc/deep/fifo", "etc/deep/link", "closed/inside"].map(inodes));
    let made = first.files + first.folders + first.others + first.hard_links;
    assert_eq!(second.already_there, made);
    let none = Summary { already_there: made, devices_left_out: 2, ..Summary::default() };
    // Folders are given their attributes again, so only theirs may be counted as lost.
    assert_eq!(Summary { setuid_left_out: 0, xattrs_left_out: 0, ..second }, none);
}

#[test]
fn restores_privileged_things_only_when_asked() {
    assert!(rustix::process::geteuid().is_root(), "this test makes devices: run as root");
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let options = Options { privileged: true, ..plain() };
    let summary = restored(&model, dir.path(), &options);
    assert_equal(&model, ROOT, dir.path(), true);
    assert_eq!(summary.devices_left_out + summary.setuid_left_out + summary.xattrs_left_out, 0);
}

#[test]
fn restores_single_files_and_folders_by_their_name() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let item =
        |path: &[&[u8]]| Item { node: model.at(path), name: path.last().map(|name| name.to_vec()) };
    let items = [item(&[b"sparse"]), item(&[b"etc", b"deep"]), item(&[b"etc", b"passwd"])];
    let (summary, failures) = run(&model, &items, &dir.path().join("new/folder"), &plain());
    assert_eq!(failures, []);
    assert!(summary.unwrap().is_complete());
    let to = dir.path().join("new/folder");
    assert_equal(&model, model.at(&[b"etc", b"deep"]), &to.join("deep"), false);
    let sparse = fs::metadata(to.join("sparse")).unwrap();
    assert_eq!(sparse.len(), 64 << 20);
    assert!(sparse.blocks() < 64, "{} blocks", sparse.blocks());
    assert_eq!(fs::metadata(to.join("passwd")).unwrap().nlink(), 2);
    let (twice, _) = run(&model, &[item(&[b"sparse"]), item(&[b"sparse"])], &to, &plain());
    assert_eq!(twice.unwrap_err().kind(), Kind::Usage);
}

#[test]
fn replaces_planted_symlinks_and_follows_none() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "host").unwrap();
    fs::write(outside.path().join("victim"), "host").unwrap();
    // At a folder, at a file, at a file in a folder, and at a file with several names.
    symlink(outside.path(), dir.path().join("etc")).unwrap();
    symlink(outside.path().join("victim"), dir.path().join("large")).unwrap();
    fs::create_dir(dir.path().join("shared")).unwrap();
    symlink(outside.path().join("victim"), dir.path().join("shared/inside")).unwrap();
    symlink(outside.path().join("victim"), dir.path().join("passwd.hard")).unwrap();
    restored(&model, dir.path(), &plain());
    assert_equal(&model, ROOT, dir.path(), false);
    let mut left: Vec<_> =
        fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["passwd", "victim"]);
    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"host");
    assert_eq!(fs::read(outside.path().join("passwd")).unwrap(), b"host");
}

#[test]
fn leaves_what_differs_alone_unless_told() {
    let mut model = Model::new();
    model.file(ROOT, b"file", 0o644, b"from the image");
    model.file(ROOT, b"other", 0o644, b"from the image");
    let folder = model.dir(ROOT, b"folder", 0o755);
    model.file(folder, b"in it", 0o644, b"from the image");
    model.file(ROOT, b"taken", 0o644, b"from the image");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "mine").unwrap();
    fs::write(dir.path().join("folder"), "mine").unwrap();
    fs::create_dir_all(dir.path().join("taken/deeper")).unwrap();
    let (summary, failures) = run(&model, &everything(), dir.path(), &plain());
    let summary = summary.unwrap();
    assert_eq!((summary.in_the_way, summary.failed, summary.files), (3, 0, 1));
    assert!(failures.iter().all(|(_, kind, _)| *kind == Kind::Exists), "{failures:?}");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("folder")).unwrap(), b"mine");

    let options = Options { overwrite: true, ..plain() };
    let (summary, failures) = run(&model, &everything(), dir.path(), &options);
    assert_eq!(summary.unwrap().in_the_way, 1);
    assert_eq!(failures[0].2, "a folder of that name is there");
    fs::remove_dir_all(dir.path().join("taken")).unwrap();
    restored(&model, dir.path(), &options);
    assert_equal(&model, ROOT, dir.path(), false);
}

#[test]
fn refuses_names_that_lead_elsewhere() {
    let mut model = Model::new();
    let folder = model.dir(ROOT, b"folder", 0o755);
    for name in [&b".."[..], b".", b"", b"a/b", b"/etc/x", b"../../x", b"zero\0byte", &[b'x'; 256]]
    {
        model.file(folder, name, 0o644, b"x");
        model.dir(folder, name, 0o755);
    }
    model.file(folder, b"...", 0o644, b"fine");
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("to");
    let (summary, failures) = run(&model, &everything(), &dir, &plain());
    assert_eq!(summary.unwrap().failed, 16);
    assert!(failures.iter().all(|(_, kind, _)| *kind == Kind::Corrupt), "{failures:?}");
    assert_eq!(fs::read_dir(above.path()).unwrap().count(), 1);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(fs::read_dir(dir.join("folder")).unwrap().count(), 1);
}

#[test]
fn a_name_that_comes_twice_is_never_a_way_out() {
    let outside = tempfile::tempdir().unwrap();
    let mut model = Model::new();
    let target = outside.path().as_os_str().as_bytes().to_vec();
    model.symlink(ROOT, b"x", &target);
    let folder = model.dir(ROOT, b"x", 0o755);
    model.file(folder, b"evil", 0o644, b"x");
    for workers in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let _ = run(&model, &everything(), dir.path(), &Options { workers, ..plain() });
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[test]
fn folders_in_circles_end() {
    let mut model = Model::new();
    let folder = model.dir(ROOT, b"folder", 0o755);
    model.name(folder, b"again", folder);
    model.name(folder, b"root", ROOT);
    let dir = tempfile::tempdir().unwrap();
    let (summary, failures) = run(&model, &everything(), dir.path(), &plain());
    assert_eq!(summary.unwrap().failed, 2);
    assert!(failures.iter().all(|(_, kind, _)| *kind == Kind::Corrupt), "{failures:?}");
}

#[test]
fn goes_4096_folders_deep_with_few_descriptors() {
    let mut model = Model::new();
    let mut at = ROOT;
    let first = model.file(ROOT, b"first name", 0o644, b"linked");
    for n in 0..4096 {
        model.file(at, b"before", 0o644, b"b");
        at = model.dir(at, format!("level {n}").as_bytes(), 0o755);
    }
    model.name(at, b"second name", first);
    let mut up = ROOT;
    for n in 0..4096 {
        let next = model.lookup(up, format!("level {n}").as_bytes()).unwrap().unwrap();
        model.file(up, b"after", 0o644, b"a");
        up = next;
    }
    let dir = tempfile::tempdir().unwrap();
    let summary = restored(&model, dir.path(), &plain());
    assert_eq!((summary.files, summary.hard_links), (8193, 1));
    let again = restored(&model, dir.path(), &plain());
    assert_eq!(again.already_there, 8193 + 4096 + 1);
    // Deeper than what recursion in the standard library bears.
    let gone = Command::new("rm").arg("-rf").arg(dir.path()).status().unwrap();
    assert!(gone.success());
}

#[test]
fn a_damaged_file_leaves_nothing_and_the_rest_is_there() {
    let mut model = oddities();
    let large = model.at(&[b"large"]);
    let passwd = model.at(&[b"etc", b"passwd"]);
    model.damaged.insert(large, 2_000_000);
    model.damaged.insert(passwd, 0);
    let dir = tempfile::tempdir().unwrap();
    let (summary, failures) = run(&model, &everything(), dir.path(), &plain());
    let summary = summary.unwrap();
    // Each name of the file with three of them.
    assert_eq!((summary.failed, summary.interrupted), (4, false));
    assert!(failures.iter().all(|(_, kind, _)| *kind == Kind::Corrupt), "{failures:?}");
    assert!(!dir.path().join("large").exists());
    assert_eq!(partials(dir.path()), Vec::<PathBuf>::new());
    model.damaged.clear();
    restored(&model, dir.path(), &plain());
    assert_equal(&model, ROOT, dir.path(), false);
}

#[test]
fn a_run_cut_short_anywhere_is_finished_by_the_next() {
    let model = oddities_and(50);
    for cut in (0..3_000_000).step_by(250_000) {
        let dir = tempfile::tempdir().unwrap();
        model.fail_after.store(cut as i64, Ordering::Relaxed);
        let (summary, _) = run(&model, &everything(), dir.path(), &plain());
        assert!(summary.unwrap().failed > 0, "cut at {cut}");
        assert_eq!(partials(dir.path()), Vec::<PathBuf>::new());
        model.fail_after.store(i64::MAX, Ordering::Relaxed);
        restored(&model, dir.path(), &plain());
        assert_equal(&model, ROOT, dir.path(), false);
    }
}

#[test]
fn a_stopped_run_goes_on_inside_a_large_file() {
    let mut model = Model::new();
    let large = model.file(ROOT, b"large", 0o644, &bytes(24 << 20, 9));
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let progress = Progress::default();
    let summary = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            restore(&model, &everything(), dir.path(), &plain(), &progress, &stop, &|_, _| {})
        });
        while progress.bytes.load(Ordering::Relaxed) < 4 << 20 {
            std::hint::spin_loop();
        }
        stop.store(true, Ordering::Relaxed);
        running.join().unwrap().unwrap()
    });
    if summary.interrupted && summary.files == 0 {
        assert!(!dir.path().join("large").exists());
        let unfinished = partials(dir.path());
        assert_eq!(unfinished.len(), 1);
        assert!(fs::metadata(&unfinished[0]).unwrap().len() >= 4 << 20);
        // What was read once is not read again.
        model.fail_after.store(21 << 20, Ordering::Relaxed);
    }
    restored(&model, dir.path(), &plain());
    assert_eq!(partials(dir.path()), Vec::<PathBuf>::new());
    assert!(fs::read(dir.path().join("large")).unwrap() == model.contents(large));
}

#[test]
fn removes_unfinished_files_of_another_time() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    for place in ["", "etc/"] {
        let name = format!("{place}.strata-partial-0123456789abcdef");
        fs::write(dir.path().join(name), "left over").unwrap();
    }
    restored(&model, dir.path(), &plain());
    assert_eq!(partials(dir.path()), Vec::<PathBuf>::new());
    assert_equal(&model, ROOT, dir.path(), false);
}

#[test]
fn takes_away_what_a_default_acl_hands_down() {
    let mut model = Model::new();
    model.file(ROOT, b"file", 0o640, b"x");
    let folder = model.dir(ROOT, b"folder", 0o750);
    model.file(folder, b"inside", 0o640, b"x");
    let dir = tempfile::tempdir().unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir.path(), "system.posix_acl_default", &acl(), flags).unwrap();
    restored(&model, dir.path(), &plain());
    assert_equal(&model, ROOT, dir.path(), false);
    for path in ["file", "folder", "folder/inside"] {
        let path = dir.path().join(path);
        assert_eq!(xattr(&path, "system.posix_acl_access"), None, "{path:?}");
        assert_eq!(xattr(&path, "system.posix_acl_default"), None, "{path:?}");
    }
}

#[test]
fn two_runs_into_one_folder_do_not_mix() {
    let model = oddities();
    let dir = tempfile::tempdir().unwrap();
    let held = fs::File::open(dir.path()).unwrap();
    held.lock().unwrap();
    let (result, _) = run(&model, &everything(), dir.path(), &plain());
    assert_eq!(result.unwrap_err().kind(), Kind::Exists);
    drop(held);
    restored(&model, dir.path(), &plain());
}

#[test]
fn goes_on_only_with_a_file_of_its_own() {
    let mut model = Model::new();
    let large = model.file(ROOT, b"large", 0o644, &bytes(9 << 20, 7));
    let dir = tempfile::tempdir().unwrap();
    // Learn the name of the unfinished file from a run that is stopped in it.
    let stop = AtomicBool::new(false);
    let progress = Progress::default();
    model.damaged.insert(large, u64::MAX);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            restore(&model, &everything(), dir.path(), &plain(), &progress, &stop, &|_, _| {})
        });
        while progress.bytes.load(Ordering::Relaxed) == 0 {
            std::hint::spin_loop();
        }
        stop.store(true, Ordering::Relaxed);
        running.join().unwrap().unwrap();
    });
    let unfinished = partials(dir.path());
    if let Some(name) = unfinished.first() {
        // Somebody else's contents under that name, readable by others: not ours.
        let file = fs::File::options().write(true).open(name).unwrap();
        file.write_all_at(&[0xee; 4096], 0).unwrap();
        fs::set_permissions(name, fs::Permissions::from_mode(0o644)).unwrap();
    } else {
        fs::remove_file(dir.path().join("large")).unwrap();
    }
    restored(&model, dir.path(), &plain());
    assert!(fs::read(dir.path().join("large")).unwrap() == model.contents(large));
}
