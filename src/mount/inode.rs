//! Nodes of a tree as the kernel knows them: inode numbers and attributes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::tree::{Attr, Device, FileKind, NodeId, SetTime, Time};

/// Which node has which inode number.
///
/// The kernel calls the root 1 and reads 0 as "nothing there", so these three are translated; every
/// other node has its own number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbering {
    root: NodeId,
}

/// Where nodes 0 and 1 go when they are not the root: node numbers stay below 2^63.
const DISPLACED: u64 = 1 << 63;

impl Numbering {
    pub(super) fn new(root: NodeId) -> Self {
        Self { root }
    }

    /// What the kernel calls `node`.
    pub(super) fn ino(self, node: NodeId) -> INodeNo {
        if node == self.root { INodeNo::ROOT } else { self.shown(node) }
    }

    /// The node the kernel calls `ino`.
    pub(super) fn node(self, ino: INodeNo) -> NodeId {
        if ino == INodeNo::ROOT { self.root } else { NodeId(ino.0 & !DISPLACED) }
    }

    /// What `stat` shows for `node`: the root, too, has its own number there.
    pub(super) fn shown(self, node: NodeId) -> INodeNo {
        match node.0 {
            0 | 1 if node == self.root => INodeNo::ROOT,
            number @ (0 | 1) => INodeNo(number | DISPLACED),
            number => INodeNo(number),
        }
    }
}

/// Attributes as `stat` shows them under the number `ino`.
pub(super) fn file_attr(ino: INodeNo, attr: &Attr) -> FileAttr {
    let (kind, rdev) = file_type(attr.kind);
    FileAttr {
        ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.accessed),
        mtime: system_time(attr.modified),
        ctime: system_time(attr.changed),
        crtime: UNIX_EPOCH,
        kind,
        perm: attr.mode & 0o7777,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// What stands for a file whose attributes cannot be read, or (number 0) that is not there.
pub(super) fn blank_attr(ino: INodeNo) -> FileAttr {
    FileAttr {
        ino,
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// The file type, and the device number in the kernel's `new_encode_dev` form.
pub(super) fn file_type(kind: FileKind) -> (FileType, u32) {
    match kind {
        FileKind::Regular => (FileType::RegularFile, 0),
        FileKind::Directory => (FileType::Directory, 0),
        FileKind::Symlink => (FileType::Symlink, 0),
        FileKind::Fifo => (FileType::NamedPipe, 0),
        FileKind::Socket => (FileType::Socket, 0),
        FileKind::CharDevice(device) => (FileType::CharDevice, encode_device(device)),
        FileKind::BlockDevice(device) => (FileType::BlockDevice, encode_device(device)),
    }
}

/// 12 bits of major number, 20 of minor, of which the upper 12 lie above the major's.
fn encode_device(Device { major, minor }: Device) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// What a file of this `mode` is, with the device number `rdev` in the kernel's `new_encode_dev`
/// form; `None` for what no file is.
pub(super) fn file_kind(mode: u32, rdev: u32) -> Option<FileKind> {
    let device =
        Device { major: rdev >> 8 & 0xfff, minor: (rdev & 0xff) | (rdev >> 12 & 0xf_ff00) };
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Some(FileKind::Regular),
        libc::S_IFIFO => Some(FileKind::Fifo),
        libc::S_IFSOCK => Some(FileKind::Socket),
        libc::S_IFCHR => Some(FileKind::CharDevice(device)),
        libc::S_IFBLK => Some(FileKind::BlockDevice(device)),
        _ => None,
    }
}

/// Permission bits with setuid, setgid and sticky.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The moment the kernel sets. Of one before 1970 `fuser` takes the nanoseconds away from the
/// second instead of adding them: they are put right here.
pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    let time = match time {
        TimeOrNow::Now => return SetTime::Now,
        TimeOrNow::SpecificTime(time) => time,
    };
    SetTime::To(match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Time {
            seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nanos: after.subsec_nanos(),
        },
        Err(before) => Time {
            seconds: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |n| -n),
            nanos: before.duration().subsec_nanos(),
        },
    })
}

fn system_time(Time { seconds, nanos }: Time) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second =
        if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second
        .and_then(|second| second.checked_add(Duration::from_nanos(nanos.min(999_999_999).into())))
        .unwrap_or(UNIX_EPOCH)
}
