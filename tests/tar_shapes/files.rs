//! A folder with one of everything, to be put into tars.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::support::{run, tool};

/// What a format can hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Has {
    /// Names of any length and any bytes; otherwise less than 100 bytes of ASCII.
    pub(crate) names: bool,
    /// Fifos and devices.
    pub(crate) special: bool,
    /// Owners beyond 2^21, times before 1970.
    pub(crate) numbers: bool,
    /// Extended attributes and access control lists.
    pub(crate) attributes: bool,
    /// Files with holes, one of them of 10 GiB.
    pub(crate) holes: bool,
}

pub(crate) const PLAIN: Has =
    Has { names: false, special: true, numbers: false, attributes: false, holes: false };
pub(crate) const LONG: Has = Has { names: true, ..PLAIN };
pub(crate) const ALL: Has = Has { numbers: true, attributes: true, ..LONG };

/// Fills `dir`.
pub(crate) fn fill(dir: &Path, has: Has) {
    let data: Vec<u8> = (0..70_000_u32).map(|at| (at * 7 + at / 251) as u8).collect();
    for (name, len) in [("empty", 0), ("one", 1), ("block", 512), ("odd", 513), ("large", 70_000)] {
        fs::write(dir.join(name), &data[..len]).unwrap();
    }
    fs::create_dir_all(dir.join("folder/below")).unwrap();
    fs::create_dir(dir.join("empty-folder")).unwrap();
    fs::write(dir.join("folder/below/file"), "below\n").unwrap();
    fs::hard_link(dir.join("odd"), dir.join("folder/hard")).unwrap();
    symlink("../odd", dir.join("folder/soft")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    for (at, mode) in [0o644, 0o755, 0o4755, 0o2755, 0o600, 0].into_iter().enumerate() {
        let path = dir.join(format!("mode-{mode:o}"));
        fs::write(&path, &data[..at]).unwrap();
        chown(&path, Some(1000 + at as u32), Some(50)).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::set_permissions(dir.join("folder"), PermissionsExt::from_mode(0o1777)).unwrap();
    if has.special {
        node(&dir.join("fifo"), FileType::Fifo, 0);
        node(&dir.join("char"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        node(&dir.join("block-device"), FileType::BlockDevice, rustix::fs::makedev(259, 1000));
    }
    if has.names {
        names(dir);
    }
    if has.numbers {
        fs::write(dir.join("owner"), "owner").unwrap();
        chown(dir.join("owner"), Some(3_000_000), Some(u32::MAX - 1)).unwrap();
    }
    if has.attributes {
        attributes(dir);
    }
    if has.holes {
        holes(dir, &data);
    }
    times(dir, has);
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device).unwrap();
}

/// Names at the borders of every field that holds them.
fn names(dir: &Path) {
    for len in [98, 99, 100, 101, 102, 154, 155, 156, 200, 250] {
        let name = "n".repeat(len);
        fs::write(dir.join(&name), len.to_string()).unwrap();
        symlink(&name, dir.join(format!("link-{len}"))).unwrap();
        // Below a folder: cut in two by those that have a prefix.
        let folder = dir.join(format!("f{}", "d".repeat(len - 1)));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("e".repeat(99)), "e").unwrap();
        fs::write(folder.join("e".repeat(100)), "e").unwrap();
    }
    let deep = dir.join("deep-folder/".repeat(90));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::hard_link(deep.join("file"), dir.join("hard-to-deep")).unwrap();
    symlink("x".repeat(1500), dir.join("far")).unwrap();
    for name in [
        &b"latin-\xe4\xf6\xfc"[..],
        "utf8-äöü-\u{1f980}".as_bytes(),
        b" spaces = % ",
        b"-dash",
        b"back\\slash",
    ] {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
}

fn attributes(dir: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::setxattr(dir.join(name), key, value, XattrFlags::empty()).unwrap();
    };
    set("one", "user.text", b"value");
    set("one", "user.bytes", b"\0\n\xff=\0");
    set("one", "user.empty", b"");
    set("block", "user.long", &[b'l'; 3000]);
    set("block", "user.a=b c%d", b"=");
    set("folder", "user.folder", b"folder");
    set("large", "trusted.secret", b"root");
    run(tool("setfacl", "acl").args(["-m", "u:12345:rwx,g:54321:r,u:0:x"]).arg(dir.join("odd")));
    run(tool("setfacl", "acl")
        .args(["-m", "u:12345:rwx,d:u:12345:rw,d:o:-"])
        .arg(dir.join("folder/below")));
    run(tool("setcap", "libcap2-bin").arg("cap_net_raw+ep").arg(dir.join("mode-755")));
}

fn holes(dir: &Path, data: &[u8]) {
    let file = |name: &str, len: u64| {
        let file = File::create(dir.join(name)).unwrap();
        file.set_len(len).unwrap();
        file
    };
    file("all-hole", 1 << 20);
    let ends = file("hole-at-the-end", 300_000);
    ends.write_all_at(&data[..5000], 0).unwrap();
    let starts = file("hole-at-the-start", 300_000);
    starts.write_all_at(&data[..5000], 295_000).unwrap();
    // More pieces than a header or one more block have room for.
    let many = file("many-holes", 60 * 65_536);
    for at in 0..60 {
        many.write_all_at(&data[at as usize..][..4096], at * 65_536).unwrap();
    }
    let huge = file("huge", 10 << 30);
    huge.write_all_at(b"start", 0).unwrap();
    huge.write_all_at(b"beyond 8 GiB", 9 << 30).unwrap();
    huge.write_all_at(b"end", (10 << 30) - 3).unwrap();
}

/// Times of everything, the folders' last.
fn times(dir: &Path, has: Has) {
    let mut at = 1_234_567_890;
    let mut stack = vec![dir.to_path_buf()];
    let mut all = vec![];
    while let Some(path) = stack.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.push(path);
    }
    all.sort();
    for path in all.iter().rev() {
        at += 1001;
        let before = has.numbers && path.ends_with("one");
        let time = Timespec {
            tv_sec: if before { -987_654 } else { at },
            tv_nsec: (at * 7919) % 1_000_000_000,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
