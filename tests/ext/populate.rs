//! A folder of oddities, made through the kernel.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::Rng;
use crate::support::{run, tool};

/// What a filesystem is filled with, as far as its features allow.
#[derive(Clone, Copy)]
pub struct Contents {
    pub block_size: usize,
    /// Files in the large folder.
    pub many: usize,
    /// Whether files have extents, so that room can be allocated without being written.
    pub extents: bool,
    /// The largest attribute value that fits.
    pub large_attribute: usize,
    /// Where data is put in a sparse file: past the reach of two indirect blocks.
    pub far: u64,
}

impl Contents {
    pub fn new(block_size: usize) -> Self {
        Self {
            block_size,
            many: 3000,
            extents: true,
            large_attribute: (block_size / 2).min(3000),
            far: 0,
        }
    }
}

fn attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
        .unwrap_or_else(|error| panic!("{name} of {}: {error}", path.display()));
}

fn at(seconds: i64, nanos: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanos }
}

fn set_times(path: &Path, accessed: Timespec, modified: Timespec) {
    let times = Timestamps { last_access: accessed, last_modification: modified };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Fills the folder `root`.
pub fn populate(root: &Path, contents: Contents, seed: u64) {
    let mut rng = Rng(seed);
    files(root, &mut rng);
    links(root, contents);
    nodes(root);
    sparse(root, contents, &mut rng);
    times(root);
    names(root);
    attributes(root, contents, &mut rng);
    owners(root);
    deep(root);
    fragmented(root, &mut rng);
    many(root, contents);
    small_folders(root);
    // Free inodes and folder blocks with holes in them.
    for number in 0..40 {
        fs::write(root.join(format!("gone-{number}")), [7; 5000]).unwrap();
    }
    for number in 0..40 {
        fs::remove_file(root.join(format!("gone-{number}"))).unwrap();
    }
}

fn files(root: &Path, rng: &mut Rng) {
    let dir = root.join("files");
    fs::create_dir(&dir).unwrap();
    for len in [
        0, 1, 20, 59, 60, 61, 100, 130, 160, 1000, 1024, 4095, 4096, 4097, 65_536, 100_000,
        3_000_001,
    ] {
        fs::write(dir.join(format!("{len}")), rng.bytes(len)).unwrap();
    }
    // A file of the journal's own magic number, in every block.
    fs::write(dir.join("magic"), 0xc03b_3998_u32.to_be_bytes().repeat(16 << 10)).unwrap();
}

fn links(root: &Path, contents: Contents) {
    let dir = root.join("links");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("one"), b"the same").unwrap();
    fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    fs::hard_link(dir.join("one"), root.join("three")).unwrap();
    symlink("nowhere/at/all", dir.join("dangling")).unwrap();
    symlink("../files", dir.join("folder")).unwrap();
    for len in [1, 58, 59, 60, 61, 100, 150, 500, 1000, 4095.min(contents.block_size - 1)] {
        let target = OsStr::from_bytes(&b"long/".repeat(900)[..len]).to_owned();
        symlink(&target, dir.join(format!("long-{len}"))).unwrap();
    }
    rustix::fs::linkat(CWD, dir.join("dangling"), CWD, dir.join("dangling-2"), AtFlags::empty())
        .unwrap();
}

fn nodes(root: &Path) {
    let dir = root.join("nodes");
    fs::create_dir(&dir).unwrap();
    let node = |name: &str, kind, major, minor| {
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    node("fifo", FileType::Fifo, 0, 0);
    node("socket", FileType::Socket, 0, 0);
    node("null", FileType::CharacterDevice, 1, 3);
    node("disk", FileType::BlockDevice, 8, 255);
    node("large", FileType::BlockDevice, 4095, 1_048_575);
    node("wide", FileType::CharacterDevice, 200, 70_000);
    node("zero", FileType::CharacterDevice, 0, 0);
}

fn sparse(root: &Path, contents: Contents, rng: &mut Rng) {
    let file = File::create(root.join("sparse")).unwrap();
    file.set_len(64 << 20).unwrap();
    for _ in 0..50 {
        let len = rng.below(30_000) as usize;
        let offset = rng.below((64 << 20) - 30_000);
        file.write_all_at(&rng.bytes(len), offset).unwrap();
    }
    let hollow = File::create(root.join("hollow")).unwrap();
    hollow.set_len(10 << 20).unwrap();
    let far = File::create(root.join("far")).unwrap();
    far.write_all_at(b"near", 5).unwrap();
    far.write_all_at(&rng.bytes(9000), 3 << 20).unwrap();
    far.write_all_at(&rng.bytes(70_000), contents.far.max(100 << 20)).unwrap();
    if contents.extents {
        let file = File::create(root.join("allocated")).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4 << 20).unwrap();
        file.write_all_at(&rng.bytes(10_000), 1 << 20).unwrap();
        file.write_all_at(&rng.bytes(1), (4 << 20) - 1).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 4 << 20, 1 << 20).unwrap();
        let punched = File::create(root.join("punched")).unwrap();
        punched.write_all_at(&rng.bytes(1 << 20), 0).unwrap();
        let punch = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
        rustix::fs::fallocate(&punched, punch, 100_000, 300_000).unwrap();
        rustix::fs::fallocate(&punched, FallocateFlags::ZERO_RANGE, 600_000, 200_000).unwrap();
    }
}

fn times(root: &Path) {
    let dir = root.join("times");
    fs::create_dir(&dir).unwrap();
    let moments = [
        at(0, 0),
        at(-1, 999_999_999),
        at(-1_000_000_000, 123_456_789),
        at(i64::from(i32::MIN), 1),
        at(i64::from(i32::MAX), 2),
        at(i64::from(i32::MAX) + 1, 3),
        at(i64::from(u32::MAX) + 7, 999_999_999),
        at(9_000_000_000, 5),
        at(15_032_385_535, 6),
    ];
    for (number, moment) in moments.into_iter().enumerate() {
        let path = dir.join(format!("{number}"));
        fs::write(&path, b"x").unwrap();
        set_times(&path, moment, at(moment.tv_sec / 2, 77));
    }
}

fn names(root: &Path) {
    let dir = root.join("names");
    fs::create_dir(&dir).unwrap();
    let long = [b'n'; 255];
    for name in [
        &b"caf\xe9"[..],
        b"two\nlines",
        "日本語".as_bytes(),
        b" ",
        b"...",
        b"-rf",
        b"\x01\x7f\xff",
        &long,
    ] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

fn attributes(root: &Path, contents: Contents, rng: &mut Rng) {
    let dir = root.join("attributes");
    fs::create_dir(&dir).unwrap();
    let file = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, name).unwrap();
        path
    };
    let small = file("small");
    attribute(&small, "user.comment", b"in the inode");
    attribute(&small, "user.empty", b"");
    let many = file("many");
    for number in 0..20 {
        let value = rng.bytes(number);
        attribute(&many, &format!("user.number-{number}"), &value);
    }
    attribute(&many, "trusted.secret", &rng.bytes(40));
    attribute(&many, "security.label", b"anything\0");
    attribute(&file("large"), "user.large", &rng.bytes(contents.large_attribute));
    // Two files with the same attributes share a block of them.
    for name in ["shared-1", "shared-2"] {
        attribute(&file(name), "user.shared", &[b's'; 600]);
    }
    attribute(&dir, "user.of-a-folder", b"value");
    run(tool("setfacl", "acl")
        .args(["-m", "u:1000:rw,u:70000:r,g:4000000000:rwx"])
        .arg(file("acl")));
    run(tool("setfacl", "acl").args(["-d", "-m", "u:1000:rwx,g:7:r-x,o::-"]).arg(&dir));
    file("inherits");
    fs::create_dir(dir.join("inherits-too")).unwrap();
    run(tool("setcap", "libcap2-bin").arg("cap_net_raw,cap_chown+ep").arg(file("capable")));
    let link = dir.join("link");
    symlink("target", &link).unwrap();
    attribute(&link, "trusted.of-a-link", &rng.bytes(300));
    // Short enough to lie in the inode, with attributes in a block beside.
    let link = dir.join("short-link");
    symlink("t", &link).unwrap();
    attribute(&link, "trusted.of-a-link", &rng.bytes(700));
}

fn owners(root: &Path) {
    let dir = root.join("owners");
    fs::create_dir(&dir).unwrap();
    let own = |name: &str, uid: u32, gid: u32, mode: u32| {
        let path = dir.join(name);
        fs::write(&path, b"#!/bin/sh\n").unwrap();
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    own("big", 4_000_000_000, 3_999_999_999, 0o600);
    own("edge", 65_535, 65_536, 0o000);
    own("setuid", 0, 0, 0o4755);
    own("setgid", 12, 34, 0o2711);
    own("sticky", 1, 2, 0o1777);
    fs::create_dir(dir.join("tmp")).unwrap();
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
}

fn deep(root: &Path) {
    let mut dir = root.to_owned();
    for depth in 0..60 {
        dir.push(format!("deep-{depth}"));
        fs::create_dir(&dir).unwrap();
    }
    fs::write(dir.join("bottom"), b"here").unwrap();
}

/// Data in every second block: no two extents can be joined.
fn fragmented(root: &Path, rng: &mut Rng) {
    let file = File::create(root.join("fragmented")).unwrap();
    for number in 0..1500 {
        file.write_all_at(&rng.bytes(700), number * 2 * 4096 + rng.below(300)).unwrap();
    }
}

fn many(root: &Path, contents: Contents) {
    let dir = root.join("many");
    fs::create_dir(&dir).unwrap();
    for number in 0..contents.many {
        File::create(dir.join(format!("file-with-a-number-{number:05}"))).unwrap();
    }
    for number in (0..contents.many).step_by(7) {
        fs::remove_file(dir.join(format!("file-with-a-number-{number:05}"))).unwrap();
    }
}

/// One to a few entries: folders that may lie in their inodes, and those that just do not.
fn small_folders(root: &Path) {
    let dir = root.join("small");
    fs::create_dir(&dir).unwrap();
    for count in 0..12 {
        let dir = dir.join(format!("{count}"));
        fs::create_dir(&dir).unwrap();
        for number in 0..count {
            fs::write(dir.join(format!("entry-{number}")), b"").unwrap();
        }
        if count > 2 {
            fs::remove_file(dir.join("entry-1")).unwrap();
        }
    }
}
