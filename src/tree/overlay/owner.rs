//! Owner, mode and type of a file in the upper: the host's own, or, where an ordinary user may not
//! set them, what an attribute says, in the form containers/storage gave it: `uid:gid:mode:type`.

use std::fs::File;

use rustix::fs::{self, AtFlags, Gid, Stat, Uid, XattrFlags};

use super::host::{self, Host};
use super::marks::{Marks, OVERRIDE};
use crate::error::Result;
use crate::tree::{Device, FileKind};

/// Who a file belongs to, who may do what, and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u16,
    pub(crate) kind: FileKind,
}

impl Owner {
    fn of_host(stat: &Stat) -> Self {
        Self { uid: stat.st_uid, gid: stat.st_gid, mode: host::mode(stat), kind: host::kind(stat) }
    }

    /// What a file in the upper is to show.
    pub(super) fn read(marks: &Marks, fd: &File, stat: &Stat) -> Result<Self> {
        let own = Self::of_host(stat);
        if marks.is_trusted() || !matches!(own.kind, FileKind::Regular | FileKind::Directory) {
            return Ok(own);
        }
        let value = host::get_xattr(fd, OVERRIDE.as_bytes())?;
        Ok(value.and_then(|value| own.overridden(&value)).unwrap_or(own))
    }

    /// What the attribute says instead; `None` if it says nothing that makes sense.
    pub(crate) fn overridden(self, value: &[u8]) -> Option<Self> {
        let mut parts = str::from_utf8(value).ok()?.trim_end_matches('\0').split(':');
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let mode = u16::from_str_radix(parts.next()?, 8).ok()? & 0o7777;
        let kind = match parts.next() {
            Some(kind) if self.kind == FileKind::Regular => kind_of(kind)?,
            _ => self.kind,
        };
        Some(Self { uid, gid, mode, kind })
    }

    /// Gives the file behind `fd` this owner and mode; `stat` is what it has.
    pub(super) fn give(&self, marks: &Marks, fd: &File, stat: &Stat) -> Result<()> {
        let own = Self::of_host(stat);
        if marks.is_trusted() {
            let mut mode = own.mode;
            if (own.uid, own.gid) != (self.uid, self.gid) {
                set_owner(fd, Some(self.uid), Some(self.gid))?;
                // The host takes setuid and setgid away by that.
                if own.kind != FileKind::Directory {
                    mode &= 0o1777;
                }
            }
            if mode != self.mode && own.kind != FileKind::Symlink {
                host::chmod(fd, self.mode).host()?;
            }
            return Ok(());
        }
        if !matches!(own.kind, FileKind::Regular | FileKind::Directory) {
            // Attributes of users are for files and folders: a link is ours.
            return Ok(());
        }
        let mode = open_mode(self.mode, self.kind);
        if own.mode != mode {
            host::chmod(fd, mode).host()?;
        }
        let value = if self.kind == own.kind {
            format!("{}:{}:{:04o}", self.uid, self.gid, self.mode)
        } else {
            format!("{}:{}:{:04o}:{}", self.uid, self.gid, self.mode, name_of(self.kind))
        };
        let plain = Self { mode, ..own };
        if *self == plain && host::get_xattr(fd, OVERRIDE.as_bytes())?.is_none() {
            return Ok(());
        }
        host::set_xattr(fd, OVERRIDE.as_bytes(), value.as_bytes(), XattrFlags::empty()).host()
    }
}

/// Changes the host's owner.
pub(super) fn set_owner(fd: &File, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw_unchecked), gid.map(Gid::from_raw_unchecked));
    fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH).host()
}

/// The host's mode of a file whose mode is kept in the attribute: we can always get at it.
pub(super) fn open_mode(mode: u16, kind: FileKind) -> u16 {
    match kind {
        FileKind::Directory => mode & 0o777 | 0o700,
        _ => mode & 0o777 | 0o600,
    }
}

/// The kind a file of the host has that stands for one of `kind`.
pub(super) fn host_kind(marks: &Marks, kind: FileKind) -> FileKind {
    match kind {
        FileKind::Regular | FileKind::Directory | FileKind::Symlink => kind,
        _ if marks.is_trusted() => kind,
        _ => FileKind::Regular,
    }
}

fn name_of(kind: FileKind) -> String {
    match kind {
        FileKind::Regular => "file".into(),
        FileKind::Directory => "dir".into(),
        FileKind::Symlink => "symlink".into(),
        FileKind::Fifo => "pipe".into(),
        FileKind::Socket => "socket".into(),
        FileKind::CharDevice(Device { major, minor }) => format!("char-{major}-{minor}"),
        FileKind::BlockDevice(Device { major, minor }) => format!("block-{major}-{minor}"),
    }
}

fn kind_of(name: &str) -> Option<FileKind> {
    let mut parts = name.split('-');
    let kind = parts.next()?;
    let mut number = || parts.next()?.parse().ok();
    Some(match kind {
        "file" => FileKind::Regular,
        "pipe" => FileKind::Fifo,
        "socket" => FileKind::Socket,
        "char" => FileKind::CharDevice(Device { major: number()?, minor: number()? }),
        "block" => FileKind::BlockDevice(Device { major: number()?, minor: number()? }),
        _ => return None,
    })
}
