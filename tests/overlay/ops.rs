//! Operations on a tree of ours and, the same, on a folder of the host.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use stratafs::error::{Error, Kind};
use stratafs::tree::{
    Allocate, Caller, Changes, Device, FileKind, NewFile, NodeId, Rename, SetTime, SetXattr, Time,
    WritableTree,
};

use super::lower::NAMES;

/// One operation, told by numbers so that a failing sequence can be made shorter.
#[derive(Debug, Clone, Copy)]
pub struct Op {
    pub what: u8,
    pub path: u16,
    pub other: u16,
    pub number: u32,
}

/// A path of one to three names.
pub fn path(number: u16) -> Vec<&'static str> {
    let number = usize::from(number);
    let count = NAMES.len();
    let depth = [1, 2, 2, 3, 3, 3][number % 6];
    let number = number / 6;
    [number, number / count, number / count / count]
        .into_iter()
        .take(depth)
        .map(|digit| NAMES[digit % count])
        .collect()
}

/// What went wrong, as programs see it.
fn errno(error: &Error) -> i32 {
    if let Some(error) = error.cause::<io::Error>() {
        return error.raw_os_error().unwrap_or(-1);
    }
    match error.kind() {
        Kind::NotFound => libc::ENOENT,
        Kind::NotADirectory => libc::ENOTDIR,
        Kind::IsADirectory => libc::EISDIR,
        Kind::Exists => libc::EEXIST,
        Kind::NotEmpty => libc::ENOTEMPTY,
        kind => panic!("{kind:?}: {error}"),
    }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}

fn find(tree: &dyn WritableTree, path: &[&str]) -> Result<NodeId, i32> {
    let mut at = tree.root();
    for name in path {
        at =
            tree.lookup(at, name.as_bytes()).map_err(|error| errno(&error))?.ok_or(libc::ENOENT)?;
    }
    Ok(at)
}

fn caller(op: Op) -> Caller {
    if op.number.is_multiple_of(3) {
        Caller { uid: 1000, gid: 1002, umask: 0o022 }
    } else {
        Caller { uid: 0, gid: 0, umask: 0o022 }
    }
}

const ACL: &str = "system.posix_acl_default";

/// A default ACL that gives user 1000 something.
fn acl(op: Op) -> Vec<u8> {
    let bits = (op.number >> 8) as u16;
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1u16, 7, u32::MAX),
        (2, bits & 7, 1000),
        (4, bits >> 3 & 7, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, bits >> 6 & 7, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(bits.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

fn data(op: Op) -> (u64, Vec<u8>) {
    let offset = u64::from(op.number % 7) * 1500;
    let len = (op.number as usize >> 4) % 6000;
    (offset, (0..len).map(|n| (n as u32 ^ op.number) as u8).collect())
}

fn size(op: Op) -> u64 {
    u64::from(op.number) % 9000
}

fn mode(op: Op) -> u16 {
    (op.number >> 3) as u16 & 0o777
}

pub const KINDS: u8 = 24;

/// Does it to a tree of ours.
pub fn to_tree(tree: &dyn WritableTree, op: Op) -> Result<(), i32> {
    let names = path(op.path);
    let (name, dir) = names.split_last().unwrap();
    let name = name.as_bytes();
    let told = |error: Error| errno(&error);
    let make = |kind, target: &[u8]| {
        let dir = find(tree, dir)?;
        let new = NewFile { kind, mode: mode(op), target };
        tree.create(dir, name, &new, &caller(op)).map(drop).map_err(told)
    };
    let rename = |how| {
        let names = path(op.other);
        let (to, to_dir) = names.split_last().unwrap();
        let (from, to_dir) = (find(tree, dir)?, find(tree, to_dir)?);
        tree.rename((from, name), (to_dir, to.as_bytes()), how).map_err(told)
    };
    let regular = || {
        let node = find(tree, &names)?;
        match tree.attr(node).map_err(told)?.kind {
            FileKind::Regular => Ok(node),
            _ => Err(libc::EBADF),
        }
    };
    match op.what % KINDS {
        0 | 1 => make(FileKind::Regular, b""),
        2 | 3 => make(FileKind::Directory, b""),
        4 => make(FileKind::Symlink, b"target"),
        5 => make(FileKind::Fifo, b""),
        6 => make(FileKind::CharDevice(Device { major: 1, minor: 5 }), b""),
        7 => {
            let node = find(tree, &names)?;
            let to = path(op.other);
            let (to, to_dir) = to.split_last().unwrap();
            let to_dir = find(tree, to_dir)?;
            tree.link(node, to_dir, to.as_bytes()).map_err(told)
        }
        8 | 9 => tree.unlink(find(tree, dir)?, name).map_err(told),
        10 => tree.remove_dir(find(tree, dir)?, name).map_err(told),
        11..=13 => rename(Rename::Replace),
        14 => rename(Rename::NoReplace),
        15 => rename(Rename::Exchange),
        16 | 17 => {
            let (offset, data) = data(op);
            tree.write_at(regular()?, offset, &data).map_err(told)
        }
        18 => {
            let changes = Changes { size: Some(size(op)), ..Changes::default() };
            tree.set_attr(regular()?, &changes).map_err(told)
        }
        19 => {
            let node = find(tree, &names)?;
            if tree.attr(node).map_err(told)?.kind == FileKind::Symlink {
                return Err(libc::EBADF);
            }
            let changes = Changes { mode: Some(mode(op)), ..Changes::default() };
            tree.set_attr(node, &changes).map_err(told)
        }
        20 => {
            let changes = Changes { uid: Some(op.number % 5), gid: Some(7), ..Changes::default() };
            tree.set_attr(find(tree, &names)?, &changes).map_err(told)
        }
        21 => {
            let time = SetTime::To(Time { seconds: i64::from(op.number), nanos: 5 });
            let changes =
                Changes { accessed: Some(time), modified: Some(time), ..Changes::default() };
            tree.set_attr(find(tree, &names)?, &changes).map_err(told)
        }
        22 => {
            let node = find(tree, &names)?;
            let kind = tree.attr(node).map_err(told)?.kind;
            if kind == FileKind::Directory && op.number.is_multiple_of(2) {
                return tree.set_xattr(node, ACL.as_bytes(), &acl(op), SetXattr::Any).map_err(told);
            }
            match op.number % 4 {
                1 => tree.remove_xattr(node, b"trusted.color").map_err(told),
                3 => tree
                    .set_xattr(node, b"trusted.overlay.opaque", b"y", SetXattr::Any)
                    .map_err(told),
                _ => tree
                    .set_xattr(node, b"trusted.color", &op.number.to_le_bytes(), SetXattr::Any)
                    .map_err(told),
            }
        }
        _ => {
            let how = match op.number % 3 {
                0 => Allocate::Punch,
                1 => Allocate::Reserve { grow: true },
                _ => Allocate::Zero { grow: false },
            };
            tree.allocate(regular()?, 1000, size(op) + 1, how).map_err(told)
        }
    }
}

fn system(error: rustix::io::Errno) -> i32 {
    error.raw_os_error()
}

/// Does it to a folder of the host.
pub fn to_folder(root: &Path, op: Op) -> Result<(), i32> {
    let at = root.join(path(op.path).iter().collect::<PathBuf>());
    let other = root.join(path(op.other).iter().collect::<PathBuf>());
    let told = |error: io::Error| number(&error);
    let raw_mode = Mode::from_raw_mode(mode(op).into());
    // As whoever called would have made it.
    let own = || {
        let Caller { uid, gid, .. } = caller(op);
        if uid == 0 {
            return Ok(());
        }
        let parent = fs::metadata(at.parent().unwrap()).unwrap();
        let gid = if parent.mode() & 0o2000 == 0 { gid } else { parent.gid() };
        lchown(&at, Some(uid), Some(gid)).map_err(told)
    };
    let node = |kind, device| {
        rustix::fs::mknodat(CWD, &at, kind, raw_mode, device).map_err(system)?;
        own()
    };
    let rename = |flags| rustix::fs::renameat_with(CWD, &at, CWD, &other, flags).map_err(system);
    let regular = || {
        let is_file = fs::symlink_metadata(&at).map_err(told)?.is_file();
        if !is_file {
            return Err(libc::EBADF);
        }
        OpenOptions::new().read(true).write(true).open(&at).map_err(told)
    };
    match op.what % KINDS {
        0 | 1 => node(FileType::RegularFile, 0),
        2 | 3 => {
            rustix::fs::mkdir(&at, raw_mode).map_err(system)?;
            own()
        }
        4 => {
            symlink("target", &at).map_err(told)?;
            own()
        }
        5 => node(FileType::Fifo, 0),
        6 => node(FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
        7 => rustix::fs::linkat(CWD, &at, CWD, &other, AtFlags::empty()).map_err(system),
        8 | 9 => rustix::fs::unlink(&at).map_err(system),
        10 => rustix::fs::rmdir(&at).map_err(system),
        11..=13 => rename(RenameFlags::empty()),
        14 => rename(RenameFlags::NOREPLACE),
        15 => rename(RenameFlags::EXCHANGE),
        16 | 17 => {
            let (offset, data) = data(op);
            regular()?.write_all_at(&data, offset).map_err(told)
        }
        18 => regular()?.set_len(size(op)).map_err(told),
        19 => {
            if fs::symlink_metadata(&at).map_err(told)?.is_symlink() {
                return Err(libc::EBADF);
            }
            fs::set_permissions(&at, Permissions::from_mode(mode(op).into())).map_err(told)
        }
        20 => lchown(&at, Some(op.number % 5), Some(7)).map_err(told),
        21 => {
            let time = Timespec { tv_sec: op.number.into(), tv_nsec: 5 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &at, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(system)
        }
        22 => {
            let any = XattrFlags::empty();
            let is_dir = fs::symlink_metadata(&at).map_err(told)?.is_dir();
            if is_dir && op.number.is_multiple_of(2) {
                return rustix::fs::lsetxattr(&at, ACL, &acl(op), any).map_err(system);
            }
            match op.number % 4 {
                1 => rustix::fs::lremovexattr(&at, "trusted.color").map_err(system),
                3 => {
                    rustix::fs::lsetxattr(&at, "trusted.overlay.opaque", b"y", any).map_err(system)
                }
                _ => {
                    let value = op.number.to_le_bytes();
                    rustix::fs::lsetxattr(&at, "trusted.color", &value, any).map_err(system)
                }
            }
        }
        _ => {
            let flags = match op.number % 3 {
                0 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                1 => FallocateFlags::empty(),
                _ => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            };
            let file: File = regular()?;
            rustix::fs::fallocate(file, flags, 1000, size(op) + 1).map_err(system)
        }
    }
}
