//! The kernel's table of mounts, `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Result, ResultExt};

/// The filesystem type every mount of ours has.
pub const FSTYPE: &str = "fuse.strata";

/// One mount of this process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it is mounted: an absolute path without symlinks.
    pub(super) point: PathBuf,
    /// Major and minor number of its device: what `st_dev` shows for files in it.
    pub(super) device: (u32, u32),
    /// Filesystem type with its subtype, `fuse.strata`.
    pub(super) fstype: String,
    /// What is mounted: for a mount of ours the reference.
    pub(super) source: OsString,
    /// Whether it can be written to.
    pub(super) writable: bool,
}

impl Entry {
    /// Whether it is a mount of ours.
    pub(super) fn is_ours(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// The mount whose root `point` is, the top one if several are stacked there.
///
/// `point` must be absolute and free of symlinks; nothing is asked of the filesystem mounted.
///
/// # Errors
/// The host's, if the table cannot be read.
pub(super) fn mount_at(point: &Path) -> Result<Option<Entry>> {
    let table = std::fs::read("/proc/self/mountinfo").within(|| "/proc/self/mountinfo")?;
    Ok(entries(&table).filter(|entry| entry.point == point).last())
}

/// The entries of a table; lines that are none are passed over.
fn entries(table: &[u8]) -> impl Iterator<Item = Entry> {
    table.split(|&byte| byte == b'\n').filter_map(entry)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = fields.nth(1)?;
    let writable = fields.next()?.split(|&byte| byte == b',').any(|option| option == b"rw");
    // Optional fields end in a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let fstype = fields.next()?;
    let source = fields.next()?;
    Some(Entry {
        point: PathBuf::from(unescape(point)),
        device: (major.parse().ok()?, minor.parse().ok()?),
        fstype: unescape(fstype).to_string_lossy().into_owned(),
        source: unescape(source),
        writable,
    })
}

/// Space, tab, newline, backslash and `#` stand as a backslash and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] if byte == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(plain)
}

/// Whether `path` lies in `folder` or is it.
pub(super) fn lies_in(path: &Path, folder: &Path) -> bool {
    // Bytes, not components: `/proc` marks what was deleted behind the name.
    path.as_os_str()
        .as_bytes()
        .strip_prefix(folder.as_os_str().as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_with_spaces_and_optional_fields() {
        let table = b"36 35 0:61 / /mnt/a\\040b\\134 ro,nosuid shared:7 master:1 - fuse.strata \
                      disk.qcow2::x\\012y ro,user_id=0\nnonsense\n\
                      1 1 8:1 / / rw - ext4 /dev/sda1 rw\n";
        let all: Vec<_> = entries(table).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].point, Path::new("/mnt/a b\\"));
        assert_eq!(all[0].device, (0, 61));
        assert_eq!(all[0].source, "disk.qcow2::x\ny");
        assert!(all[0].is_ours() && !all[0].writable);
        assert_eq!(all[1].fstype, "ext4");
        assert!(!all[1].is_ours() && all[1].writable);
    }

    #[test]
    fn keeps_a_backslash_that_escapes_nothing() {
        assert_eq!(unescape(b"a\\9\\"), "a\\9\\");
    }

    #[test]
    fn a_neighbour_of_the_same_beginning_is_not_inside() {
        assert!(lies_in(Path::new("/mnt/a/b"), Path::new("/mnt/a")));
        assert!(lies_in(Path::new("/mnt/a"), Path::new("/mnt/a")));
        assert!(!lies_in(Path::new("/mnt/ab"), Path::new("/mnt/a")));
    }
}
