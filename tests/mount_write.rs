//! Writing through a mount: a tree that can be changed, seen through the kernel.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fsx;
mod model;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom, Timespec, Timestamps};
use rustix::fs::{UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;
use stratafs::mount::{Mounted, Options, mount};
use stratafs::tree::{Served, WritableTree};

use fsx::mapped::Mapped;
use model::writable::Writable;
use support::{as_nobody, require_root, run};

/// A tree mounted in a temporary folder.
struct Fixture {
    tree: Arc<Writable>,
    // In this order: unmounted before the folder goes.
    mounted: Option<Mounted>,
    dir: tempfile::TempDir,
}

fn options() -> Options {
    Options { name: "model".to_owned(), ..Options::default() }
}

impl Fixture {
    fn new(tree: Writable, options: &Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tree = Arc::new(tree);
        let served = Served::Writable(Arc::clone(&tree) as Arc<dyn WritableTree>);
        let mounted = mount(served, dir.path(), options)
            .unwrap_or_else(|error| panic!("{error}\n{:?}", error.hint()));
        Self { tree, mounted: Some(mounted), dir }
    }

    fn plain() -> Self {
        Self::new(Writable::new(), &options())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Unmounts and waits for the end.
    fn end(&mut self) {
        let mounted = self.mounted.take().unwrap();
        rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::empty()).unwrap();
        mounted.wait().unwrap();
    }
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// Waits until what the kernel tells late has arrived.
fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

#[test]
fn files_of_every_kind_are_made_and_removed() {
    require_root();
    let mut fixture = Fixture::plain();
    let path = |name: &str| fixture.path(name);
    fs::create_dir(path("folder")).unwrap();
    assert_eq!(fs::metadata(fixture.dir.path()).unwrap().nlink(), 3);
    fs::write(path("folder/file"), b"hello").unwrap();
    assert_eq!(fs::read(path("folder/file")).unwrap(), b"hello");
    std::os::unix::fs::symlink("file", path("folder/link")).unwrap();
    assert_eq!(fs::read_link(path("folder/link")).unwrap(), Path::new("file"));
    assert_eq!(fs::symlink_metadata(path("folder/link")).unwrap().len(), 4);
    let made = |name: &str, kind, device| {
        let mode = rustix::fs::Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, path(name), kind, mode, device).unwrap();
        fs::symlink_metadata(path(name)).unwrap()
    };
    assert!(made("fifo", rustix::fs::FileType::Fifo, 0).file_type().is_fifo());
    assert!(made("socket", rustix::fs::FileType::Socket, 0).file_type().is_socket());
    let device = rustix::fs::makedev(259, 0x1_2345);
    let block = made("block", rustix::fs::FileType::BlockDevice, device);
    assert!(block.file_type().is_block_device());
    assert_eq!(block.rdev(), device);
    assert!(made("mknod", rustix::fs::FileType::RegularFile, 0).is_file());

    assert_eq!(errno(fs::remove_dir(path("folder"))), Some(libc::ENOTEMPTY));
    assert_eq!(errno(fs::remove_dir(path("fifo"))), Some(libc::ENOTDIR));
    assert_eq!(errno(fs::remove_file(path("folder"))), Some(libc::EISDIR));
    assert_eq!(errno(fs::create_dir(path("fifo"))), Some(libc::EEXIST));
    let exclusive = OpenOptions::new().write(true).create_new(true).open(path("fifo"));
    assert_eq!(errno(exclusive), Some(libc::EEXIST));
    fs::remove_dir_all(path("folder")).unwrap();
    for name in ["fifo", "socket", "block", "mknod"] {
        fs::remove_file(path(name)).unwrap();
    }
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
    assert_eq!(fs::metadata(fixture.dir.path()).unwrap().nlink(), 2);
    let tree = Arc::clone(&fixture.tree);
    eventually("all are forgotten", || tree.nodes() == 1);
    fixture.end();
    assert_eq!(tree.held(), 0);
    assert!(tree.syncs.load(Ordering::Relaxed) > 0, "the end of a mount syncs");
}

#[test]
fn what_others_look_like_after_a_change_is_never_stale() {
    let fixture = Fixture::plain();
    let path = |name: &str| fixture.path(name);
    let links = |name: &str| fs::symlink_metadata(path(name)).unwrap().nlink();
    let changed = |name: &str| {
        let metadata = fs::symlink_metadata(path(name)).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let pause = || std::thread::sleep(Duration::from_millis(20));
    fs::write(path("a"), b"1").unwrap();
    let before = changed("a");
    pause();
    fs::hard_link(path("a"), path("b")).unwrap();
    assert_eq!((links("a"), links("b")), (2, 2));
    assert!(changed("a") > before);
    let before = changed("a");
    pause();
    fs::remove_file(path("b")).unwrap();
    assert_eq!(links("a"), 1);
    assert!(changed("a") > before);

    // Replaced while it is open: the old one has no names left, and goes on.
    fs::write(path("c"), b"22").unwrap();
    let mut old = File::open(path("c")).unwrap();
    let before = changed("a");
    pause();
    fs::rename(path("a"), path("c")).unwrap();
    assert_eq!(old.metadata().unwrap().nlink(), 0);
    assert_eq!(old.metadata().unwrap().len(), 2);
    let mut text = String::new();
    old.read_to_string(&mut text).unwrap();
    assert_eq!(text, "22");
    assert_eq!(fs::read(path("c")).unwrap(), b"1");
    assert_eq!(links("c"), 1);
    assert!(changed("c") > before);
    assert!(!path("a").exists());

    let file = OpenOptions::new().append(true).read(true).open(path("c")).unwrap();
    let modified = |file: &File| {
        let metadata = file.metadata().unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    let before = modified(&file);
    pause();
    (&file).write_all(b"more").unwrap();
    assert_eq!(fs::metadata(path("c")).unwrap().len(), 5);
    assert!(modified(&file) > before);
    let before = modified(&file);
    pause();
    file.set_len(2).unwrap();
    assert_eq!(fs::read(path("c")).unwrap(), b"1m");
    assert!(modified(&file) > before);

    fs::create_dir(path("d")).unwrap();
    fs::create_dir(path("e")).unwrap();
    fs::create_dir(path("d/sub")).unwrap();
    assert_eq!((links("d"), links("e")), (3, 2));
    let dir = |name: &str| fs::metadata(path(name)).unwrap().modified().unwrap();
    let before = (dir("d"), dir("e"));
    pause();
    fs::rename(path("d/sub"), path("e/sub")).unwrap();
    assert_eq!((links("d"), links("e")), (2, 3));
    assert!(dir("d") > before.0 && dir("e") > before.1);
    let up = fs::metadata(path("e/sub/..")).unwrap().ino();
    assert_eq!(up, fs::metadata(path("e")).unwrap().ino());
    let listed = run(Command::new("ls").arg("-ai").arg(path("e/sub")));
    assert!(String::from_utf8(listed.stdout).unwrap().contains(&format!("{up} ..")));
}

#[test]
fn rename_knows_its_flags_and_errors() {
    let fixture = Fixture::plain();
    let path = |name: &str| fixture.path(name);
    let rename = |from: &str, to: &str, flags| {
        rustix::fs::renameat_with(CWD, path(from), CWD, path(to), flags)
    };
    fs::write(path("a"), b"a").unwrap();
    fs::write(path("b"), b"b").unwrap();
    assert_eq!(rename("a", "b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename("a", "b", RenameFlags::EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(path("a")).unwrap(), fs::read(path("b")).unwrap()),
        (b"b".into(), b"a".into())
    );
    rename("a", "new", RenameFlags::NOREPLACE).unwrap();
    assert!(!path("a").exists() && path("new").exists());
    assert_eq!(rename("new", "elsewhere", RenameFlags::empty()), Err(Errno::XDEV));
    assert_eq!(errno(fs::hard_link(path("new"), path("too many"))), Some(libc::EMLINK));
    fs::create_dir(path("d")).unwrap();
    fs::create_dir(path("full")).unwrap();
    fs::write(path("full/x"), b"").unwrap();
    assert_eq!(rename("d", "full", RenameFlags::empty()), Err(Errno::NOTEMPTY));
    assert_eq!(rename("d", "missing/x", RenameFlags::empty()), Err(Errno::NOENT));
}

#[test]
fn every_attribute_can_be_set() {
    require_root();
    let fixture = Fixture::plain();
    let path = fixture.path("file");
    fs::write(&path, b"x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o4751);
    std::os::unix::fs::chown(&path, Some(12), None).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (12, 0));
    assert_eq!(metadata.mode() & 0o7777, 0o751, "chown clears setuid");

    let set = |access, modification| {
        let times = Timestamps { last_access: access, last_modification: modification };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        fs::metadata(&path).unwrap()
    };
    let old = Timespec { tv_sec: -2, tv_nsec: 800_000_000 };
    let late = Timespec { tv_sec: 5_000_000_000, tv_nsec: 1 };
    let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let metadata = set(old, late);
    assert_eq!((metadata.atime(), metadata.atime_nsec()), (-2, 800_000_000));
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (5_000_000_000, 1));
    let metadata = set(omitted, old);
    assert_eq!((metadata.atime(), metadata.mtime()), (-2, -2));
    let start = SystemTime::now() - Duration::from_secs(5);
    let metadata = set(Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, omitted);
    assert!(metadata.accessed().unwrap() > start);
    assert!(metadata.modified().unwrap() < UNIX_EPOCH);

    let name = "user.comment";
    let set = |value: &[u8], flags| rustix::fs::setxattr(&path, name, value, flags);
    assert_eq!(set(b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
    set(b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(set(b"2", XattrFlags::CREATE), Err(Errno::EXIST));
    set(b"22", XattrFlags::REPLACE).unwrap();
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(&path, name, &mut value), Ok(2));
    rustix::fs::removexattr(&path, name).unwrap();
    assert_eq!(rustix::fs::removexattr(&path, name), Err(Errno::NODATA));
    let fs = rustix::fs::statvfs(&path).unwrap();
    assert_eq!((fs.f_blocks, fs.f_bfree, fs.f_bavail), (1 << 20, 1 << 19, 1 << 18));
}

#[test]
fn open_flags_and_fallocate_do_what_they_say() {
    let fixture = Fixture::plain();
    let path = fixture.path("file");
    fs::write(&path, vec![7; 10_000]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let allocate = |flags, offset, len| rustix::fs::fallocate(&file, flags, offset, len);
    let keep = FallocateFlags::KEEP_SIZE;
    allocate(FallocateFlags::PUNCH_HOLE | keep, 4096, 4096).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(4096));
    allocate(FallocateFlags::ZERO_RANGE, 9000, 2000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 11_000);
    allocate(FallocateFlags::empty(), 0, 20_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_000);
    allocate(keep, 0, 40_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_000);
    assert!(file.metadata().unwrap().blocks() >= 40_000 / 512);
    assert_eq!(allocate(FallocateFlags::COLLAPSE_RANGE, 0, 4096), Err(Errno::OPNOTSUPP));
    let data = fs::read(&path).unwrap();
    let want = |at: usize| if (4096..8192).contains(&at) || at >= 9000 { 0 } else { 7 };
    assert!(data.iter().enumerate().all(|(at, &byte)| byte == want(at)));

    let mut appending = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all_at(b"first", 20_000).unwrap();
    appending.write_all(b" second").unwrap();
    assert_eq!(&fs::read(&path).unwrap()[20_000..], b"first second");
    File::create(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    let copied = fixture.path("copied");
    file.write_all_at(&[9; 300_000], 0).unwrap();
    assert_eq!(fs::copy(&path, &copied).unwrap(), 300_000);
    assert_eq!(fs::read(&copied).unwrap(), [9; 300_000]);
    let syncs = fixture.tree.syncs.load(Ordering::Relaxed);
    file.sync_all().unwrap();
    File::open(fixture.dir.path()).unwrap().sync_all().unwrap();
    assert_eq!(fixture.tree.syncs.load(Ordering::Relaxed), syncs + 2);

    // A lock is between the processes of this machine: the kernel keeps it.
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let other = rustix::fs::flock(
        File::open(&path).unwrap(),
        rustix::fs::FlockOperation::NonBlockingLockShared,
    );
    assert_eq!(other, Err(Errno::WOULDBLOCK));
}

#[test]
fn a_failed_write_is_told_with_the_errno_of_the_host() {
    let fixture = Fixture::plain();
    let path = fixture.path("file");
    let mut file = File::create(&path).unwrap();
    for raw in [libc::ENOSPC, libc::EDQUOT, libc::EIO] {
        fixture.tree.failing.store(raw, Ordering::Relaxed);
        let failed = file.write_all(b"x").and_then(|()| file.sync_all());
        assert_eq!(errno(failed), Some(raw));
    }
    fixture.tree.failing.store(0, Ordering::Relaxed);
    file.write_all_at(b"fine", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"fine");
}

#[test]
fn a_file_lives_on_while_it_is_open() {
    let mut fixture = Fixture::plain();
    let path = fixture.path("file");
    fs::write(&path, b"contents").unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all_at(b"C", 0).unwrap();
    let mut text = [0; 8];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"Contents");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    let tree = Arc::clone(&fixture.tree);
    eventually("it is closed", || tree.held() == 0);
    eventually("it is forgotten", || tree.forgotten.load(Ordering::Relaxed) > 0);
    fixture.end();
}

#[test]
fn a_reader_and_a_mapping_see_each_write() {
    for (passes_through, only_written) in [(false, false), (true, false), (true, true)] {
        let mut tree = Writable::new();
        tree.passes_through = passes_through;
        tree.only_written = only_written;
        let fixture = Fixture::new(tree, &options());
        let path = fixture.path("file");
        fs::write(&path, vec![1; 8192]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        // Open while it is first written to, be that through another way.
        let reader = File::open(&path).unwrap();
        let mut byte = [0; 1];
        reader.read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [1]);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[2], 5000).unwrap();
        reader.read_exact_at(&mut byte, 5000).unwrap();
        assert_eq!(byte, [2]);
        let map = Mapped::new(&file, 8192);
        map.read(5000, &mut byte);
        assert_eq!(byte, [2]);
        map.write(5001, &[3]);
        reader.read_exact_at(&mut byte, 5001).unwrap();
        assert_eq!(byte, [3]);
        file.write_all_at(&[4], 5002).unwrap();
        map.read(5002, &mut byte);
        assert_eq!(byte, [4]);
        map.sync();
        drop((map, file, reader));
        assert_eq!(fs::read(&path).unwrap()[4999..5004], [1, 2, 3, 4, 1]);
        let modified = fs::metadata(&path).unwrap().len();
        assert_eq!(modified, 8192);
    }
}

#[test]
fn root_writes_past_us_where_the_tree_lets_it() {
    require_root();
    let mut tree = Writable::new();
    tree.passes_through = true;
    let fixture = Fixture::new(tree, &options());
    let path = fixture.path("file");
    fs::write(&path, vec![5; 100_000]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), vec![5; 100_000]);
    assert_eq!(fixture.tree.writes.load(Ordering::Relaxed), 0);
    assert_eq!(fixture.tree.reads.load(Ordering::Relaxed), 0);
    assert_eq!(fs::metadata(&path).unwrap().len(), 100_000);
}

#[test]
fn permissions_hold_for_others_and_setuid_falls_with_a_write() {
    require_root();
    let options = Options { allow_other: true, ..options() };
    for passes_through in [false, true] {
        let mut tree = Writable::new();
        tree.passes_through = passes_through;
        let fixture = Fixture::new(tree, &options);
        let path = fixture.path("file");
        let shell = |script: &str| {
            let arg = [OsStr::new("sh"), OsStr::new("-c"), OsStr::new(script), OsStr::new("sh")];
            as_nobody(arg.into_iter().chain([path.as_os_str()])).output().unwrap()
        };
        fs::write(&path, b"text").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o6757)).unwrap();
        assert!(shell("echo more >> \"$1\"").status.success());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o757);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4757)).unwrap();
        assert!(shell(": > \"$1\"").status.success());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o757);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(!shell("echo more >> \"$1\"").status.success());
        assert!(!shell("chmod 777 \"$1\"").status.success());
        // The umask counts, and the file belongs to who made it.
        assert!(shell("umask 027; : > \"$1.new\"; mkdir \"$1.dir\"").status.success());
        let new = fs::metadata(fixture.path("file.new")).unwrap();
        assert_eq!((new.uid(), new.gid(), new.mode() & 0o7777), (65534, 65534, 0o640));
        assert_eq!(fs::metadata(fixture.path("file.dir")).unwrap().mode() & 0o7777, 0o750);
    }
}

#[test]
fn names_are_counted_however_the_kernel_learns_them() {
    let mut fixture = Fixture::plain();
    for n in 0..500 {
        fs::write(fixture.path(&format!("file {n}")), b"x").unwrap();
    }
    std::thread::scope(|scope| {
        for from in 0..4 {
            let fixture = &fixture;
            scope.spawn(move || {
                for round in 0..5 {
                    // The others may be done with theirs.
                    assert!(fs::read_dir(fixture.dir.path()).unwrap().count() >= 125);
                    for n in (from..500).step_by(4) {
                        let path = fixture.path(&format!("file {n}"));
                        if round == 4 {
                            fs::remove_file(path).unwrap();
                        } else {
                            assert_eq!(fs::read(path).unwrap(), b"x");
                        }
                    }
                }
            });
        }
    });
    let tree = Arc::clone(&fixture.tree);
    eventually("all are forgotten", || tree.nodes() == 1);
    fixture.end();
}

#[test]
fn random_operations_leave_what_they_should() {
    for (seed, passes_through, maps) in [(1, false, false), (2, false, true), (3, true, true)] {
        let mut tree = Writable::new();
        tree.passes_through = passes_through;
        let fixture = Fixture::new(tree, &options());
        let path = fsx::file(fixture.dir.path(), "file", b"");
        let what = fsx::Fsx { max: 3 << 20, resizes: true, maps, seed: seed * 0x9e37_79b9 };
        let left = what.run(&path, Vec::new(), fsx::operations(3000));
        assert!(fs::read(&path).unwrap() == left);
    }
}
