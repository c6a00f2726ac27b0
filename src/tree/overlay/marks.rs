//! What overlayfs writes on the files of an upper: extended attributes
//! (Documentation/filesystems/overlayfs.rst of the kernel).

use std::fs::File;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::host::{self, Host};
use crate::error::Result;

/// The names of the marks: below `trusted.` where we may, else below `user.`, as the kernel's mount
/// option `userxattr` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// What they all begin with.
    pub(super) prefix: &'static str,
    /// On a folder: `y` if nothing of the lower is seen in it, `x` if it has whiteouts that are
    /// marked files.
    pub(super) opaque: &'static str,
    /// Where in the lower a renamed file or folder was: a path from the root, or a name.
    pub(super) redirect: &'static str,
    /// On a regular file whose data are the lower's.
    pub(super) metacopy: &'static str,
    /// On a folder that holds files that were in the lower.
    pub(super) impure: &'static str,
    /// On an empty regular file that is a whiteout.
    pub(super) whiteout: &'static str,
    /// The count of names, as a difference from the host's.
    pub(super) nlink: &'static str,
    /// The number a file had in the lower, and has. Ours; the kernel ignores it.
    pub(super) node: &'static str,
    /// What attributes that an ordinary user may not set are kept under. Ours.
    pub(super) kept: &'static str,
}

macro_rules! marks {
    ($space:literal) => {
        Marks {
            prefix: concat!($space, ".overlay."),
            opaque: concat!($space, ".overlay.opaque"),
            redirect: concat!($space, ".overlay.redirect"),
            metacopy: concat!($space, ".overlay.metacopy"),
            impure: concat!($space, ".overlay.impure"),
            whiteout: concat!($space, ".overlay.whiteout"),
            nlink: concat!($space, ".overlay.nlink"),
            node: concat!($space, ".overlay.strata.node"),
            kept: concat!($space, ".overlay.strata.xattr."),
        }
    };
}

pub(super) const TRUSTED: Marks = marks!("trusted");
pub(super) const USER: Marks = marks!("user");

/// What a name of the image is escaped with where it looks like a mark.
const ESCAPE: &str = "overlay.";

/// The marks of one file.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) node: Option<u64>,
    pub(super) opaque: bool,
    pub(super) marked_whiteouts: bool,
    pub(super) redirect: Option<Vec<u8>>,
    pub(super) metacopy: bool,
    pub(super) impure: bool,
    pub(super) links: bool,
}

impl Marks {
    /// The marks of the file behind `fd`.
    pub(super) fn read(&self, fd: &File) -> Result<Seen> {
        let mut seen = Seen::default();
        for name in host::list_xattrs(fd)? {
            let is = |mark: &str| name == mark.as_bytes();
            if is(self.node) {
                seen.node = host::get_xattr(fd, &name)?
                    .and_then(|value| str::from_utf8(&value).ok()?.parse().ok());
            } else if is(self.opaque) {
                let value = host::get_xattr(fd, &name)?;
                seen.opaque = value.as_deref() == Some(b"y");
                seen.marked_whiteouts = value.as_deref() == Some(b"x");
            } else if is(self.redirect) {
                seen.redirect = host::get_xattr(fd, &name)?;
            } else if is(self.metacopy) {
                seen.metacopy = true;
            } else if is(self.impure) {
                seen.impure = true;
            } else if is(self.nlink) {
                seen.links = true;
            }
        }
        Ok(seen)
    }

    /// Writes a mark.
    pub(super) fn set(&self, fd: &File, mark: &str, value: &[u8]) -> Result<()> {
        host::set_xattr(fd, mark.as_bytes(), value, XattrFlags::empty()).host()
    }

    /// Takes a mark away, if it is there.
    pub(super) fn clear(&self, fd: &File, mark: &str) -> Result<()> {
        match host::remove_xattr(fd, mark.as_bytes()) {
            Ok(()) | Err(Errno::NODATA) => Ok(()),
            Err(errno) => Err(host::errno(errno)),
        }
    }

    /// How many more names a file has than the host counts.
    pub(super) fn extra_links(&self, fd: &File) -> Result<i64> {
        let value = host::get_xattr(fd, self.nlink.as_bytes())?;
        Ok(value
            .as_deref()
            .and_then(|value| value.strip_prefix(b"U"))
            .and_then(|value| str::from_utf8(value).ok()?.parse().ok())
            .unwrap_or(0))
    }

    /// Notes how many more names a file has than the host counts.
    pub(super) fn set_extra_links(&self, fd: &File, extra: i64) -> Result<()> {
        self.set(fd, self.nlink, format!("U{extra:+}").as_bytes())
    }

    /// What the image's attribute `name` is called in the upper.
    pub(super) fn stored(&self, name: &[u8]) -> Vec<u8> {
        if let Some(rest) = name.strip_prefix(self.prefix.as_bytes()) {
            return [self.prefix.as_bytes(), ESCAPE.as_bytes(), rest].concat();
        }
        if !self.is_trusted() && (!name.starts_with(b"user.") || name == OVERRIDE.as_bytes()) {
            return [self.kept.as_bytes(), name].concat();
        }
        name.to_vec()
    }

    /// What the attribute `name` of a file in the upper is called in the image; `None` for a mark.
    pub(super) fn shown(&self, name: &[u8]) -> Option<Vec<u8>> {
        if let Some(rest) = name.strip_prefix(self.prefix.as_bytes()) {
            if let Some(kept) = name.strip_prefix(self.kept.as_bytes()) {
                return Some(kept.to_vec()).filter(|kept| !kept.is_empty());
            }
            let rest = rest.strip_prefix(ESCAPE.as_bytes())?;
            return Some([self.prefix.as_bytes(), rest].concat());
        }
        if !self.is_trusted() && (!name.starts_with(b"user.") || name == OVERRIDE.as_bytes()) {
            return None;
        }
        Some(name.to_vec())
    }

    /// Whether owners, modes and attributes are the host's own.
    pub(super) fn is_trusted(&self) -> bool {
        *self == TRUSTED
    }
}

/// Where an ordinary user keeps what owner, mode and type a file has: `uid:gid:mode:type`, as
/// containers/storage does.
pub(crate) const OVERRIDE: &str = "user.containers.override_stat";
