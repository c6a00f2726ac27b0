//! What a restored file is given besides its contents: owner, mode, attributes, times.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::engine::as_damage;
use super::folder::{Folder, Name, Told, through};
use crate::error::{Error, Kind, Result};
use crate::tree::{Attr, FileKind, FileTree};

/// What could not be given as it was, counted.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) owners: AtomicU64,
    pub(super) setuid: AtomicU64,
    pub(super) xattrs_left_out: AtomicU64,
    pub(super) xattrs_refused: AtomicU64,
}

/// What this process may give, and what it was asked to.
#[derive(Debug)]
pub(super) struct Rights {
    uid: u32,
    groups: Vec<u32>,
    /// Root over every owner there is, not just over those of a user namespace.
    every_owner: bool,
    privileged: bool,
}

/// What a file is to be given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    mode: u16,
    uid: Option<u32>,
    gid: Option<u32>,
    times: (Timespec, Timespec),
    lost_owner: bool,
    lost_setuid: bool,
}

impl Rights {
    pub(super) fn of_this_process(privileged: bool) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let mut groups: Vec<u32> = rustix::process::getgroups()
            .map(|groups| groups.into_iter().map(|gid| gid.as_raw()).collect())
            .unwrap_or_default();
        groups.push(rustix::process::getegid().as_raw());
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
        Self { uid, groups, every_owner: uid == 0 && whole, privileged }
    }

    pub(super) fn privileged(&self) -> bool {
        self.privileged
    }

    /// What of `attr` can be given.
    pub(super) fn wanted(&self, attr: &Attr) -> Wanted {
        let root = self.uid == 0;
        let owner = root || attr.uid == self.uid;
        let group = root || self.groups.contains(&attr.gid);
        let folder = attr.kind == FileKind::Directory;
        // On a folder, setgid only says which group new files get.
        let mut kept = 0o1777;
        if owner && self.privileged {
            kept |= 0o4000;
        }
        if group && (self.privileged || folder) {
            kept |= 0o2000;
        }
        let time = |time: crate::tree::Time| Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanos.min(999_999_999).into(),
        };
        Wanted {
            mode: attr.mode & kept,
            uid: root.then_some(attr.uid),
            gid: group.then_some(attr.gid),
            times: (time(attr.accessed), time(attr.modified)),
            lost_owner: !(owner && group),
            lost_setuid: attr.mode & 0o6000 & !kept != 0,
        }
    }

    /// Whether `stat` is what restoring `attr` as `wanted` leaves behind. Contents and extended
    /// attributes follow from size and time: nothing unfinished ever has a final name.
    pub(super) fn complete(&self, stat: &Stat, attr: &Attr, wanted: &Wanted) -> bool {
        let kind = match attr.kind {
            FileKind::Regular => FileType::RegularFile,
            FileKind::Directory => FileType::Directory,
            FileKind::Symlink => FileType::Symlink,
            FileKind::Fifo => FileType::Fifo,
            FileKind::Socket => FileType::Socket,
            FileKind::CharDevice(_) => FileType::CharacterDevice,
            FileKind::BlockDevice(_) => FileType::BlockDevice,
        };
        let device = match attr.kind {
            FileKind::CharDevice(device) | FileKind::BlockDevice(device) => {
                stat.st_rdev == fs::makedev(device.major, device.minor)
            }
            _ => true,
        };
        let regular = kind == FileType::RegularFile;
        let modes = if self.every_owner || self.uid != 0 { 0o7777 } else { 0o1777 };
        let mode_differs = (stat.st_mode ^ u32::from(wanted.mode)) & modes != 0;
        FileType::from_raw_mode(stat.st_mode) == kind
            && device
            && (!regular || u64::try_from(stat.st_size) == Ok(attr.size))
            && stat.st_mtime == wanted.times.1.tv_sec
            && i64::try_from(stat.st_mtime_nsec) == Ok(wanted.times.1.tv_nsec)
            && (kind == FileType::Symlink || !mode_differs)
            && (!self.every_owner || (stat.st_uid, stat.st_gid) == (attr.uid, attr.gid))
    }
}

/// What metadata is given to.
pub(super) enum Target<'a> {
    /// A regular file or folder, open.
    Open(BorrowedFd<'a>),
    /// Anything else, by its name in a folder and a handle on it.
    Named { folder: &'a Folder, name: &'a Name, handle: &'a OwnedFd },
}

/// Gives `target` what the file `attr.node` of `tree` had. Times come last: all else changes them.
pub(super) fn apply(
    tree: &dyn FileTree,
    attr: &Attr,
    rights: &Rights,
    target: &Target<'_>,
    losses: &Losses,
) -> Result<()> {
    let wanted = rights.wanted(attr);
    let mut mode = wanted.mode;
    let mut lost_owner = wanted.lost_owner;
    let mut lost_setuid = wanted.lost_setuid;
    if wanted.uid.is_some() || wanted.gid.is_some() {
        let uid = wanted.uid.map(Uid::from_raw);
        let gid = wanted.gid.map(Gid::from_raw);
        let done = match target {
            Target::Open(fd) => fs::fchown(fd, uid, gid),
            Target::Named { handle, .. } => fs::chownat(handle, c"", uid, gid, AtFlags::EMPTY_PATH),
        };
        match done {
            Ok(()) => {}
            // Setuid would now serve another user than the one it was meant for.
            Err(Errno::PERM | Errno::INVAL) => {
                lost_owner = true;
                lost_setuid |= mode & 0o6000 != 0;
                mode &= 0o1777;
            }
            Err(errno) => return Err(errno).told("cannot set the owner"),
        }
    }
    if lost_owner {
        losses.owners.fetch_add(1, Ordering::Relaxed);
    }
    if lost_setuid {
        losses.setuid.fetch_add(1, Ordering::Relaxed);
    }
    let mode = Mode::from_raw_mode(mode.into());
    match target {
        Target::Open(fd) => fs::fchmod(fd, mode).told("cannot set the mode")?,
        Target::Named { .. } if attr.kind == FileKind::Symlink => {}
        Target::Named { handle, .. } => {
            fs::chmod(through(handle, None).as_c_str(), mode).told("cannot set the mode")?;
        }
    }
    for name in tree.xattr_names(attr.node).map_err(as_damage)? {
        give_xattr(tree, attr, rights, target, &name, losses)?;
    }
    let (last_access, last_modification) = wanted.times;
    let times = Timestamps { last_access, last_modification };
    match target {
        Target::Open(fd) => fs::futimens(fd, &times),
        Target::Named { folder, name, .. } => {
            let path = folder.path_to(name);
            fs::utimensat(fs::CWD, path.as_c_str(), &times, AtFlags::SYMLINK_NOFOLLOW)
        }
    }
    .told("cannot set the times")
}

fn give_xattr(
    tree: &dyn FileTree,
    attr: &Attr,
    rights: &Rights,
    target: &Target<'_>,
    name: &[u8],
    losses: &Losses,
) -> Result<()> {
    let ordinary = name.starts_with(b"user.")
        || name == b"system.posix_acl_access"
        || name == b"system.posix_acl_default";
    let special = name.starts_with(b"security.") || name.starts_with(b"trusted.");
    let permitted = ordinary || special && rights.privileged;
    if !permitted {
        losses.xattrs_left_out.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let Some(value) = tree.xattr(attr.node, name).map_err(as_damage)? else { return Ok(()) };
    let flags = XattrFlags::empty();
    let done = match target {
        Target::Open(fd) => fs::fsetxattr(fd, name, &value, flags),
        Target::Named { folder, name: file, .. } => {
            fs::lsetxattr(folder.path_to(file).as_c_str(), name, &value, flags)
        }
    };
    match done {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => {
            losses.xattrs_refused.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        // Here "no space" may only mean that this file's attributes are too large.
        Err(errno) => Err(Error::new(
            Kind::Io,
            format!(
                "cannot set the attribute {}: {}",
                String::from_utf8_lossy(name),
                std::io::Error::from(errno)
            ),
        )),
    }
}
