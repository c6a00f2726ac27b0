//! Host calls on the files of an upper: by descriptor, one name at a time, no link ever followed.
//!
//! A file is mostly held by an `O_PATH` descriptor, which may be had of anything. What such a
//! descriptor does not do by itself goes through `/proc/self/fd`, which leads to that very file.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::tree::{Device, FileKind, SetTime, Time};

/// An error of that number, which whoever mounts the tree passes on.
pub(super) fn errno(errno: Errno) -> Error {
    Error::io(errno.into())
}

/// The host's error as ours.
pub(super) trait Host<T> {
    fn host(self) -> Result<T>;
}

impl<T> Host<T> for rustix::io::Result<T> {
    fn host(self) -> Result<T> {
        self.map_err(errno)
    }
}

/// Any file, to be looked at.
pub(super) fn open_path(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// A folder of ours, to name things in.
pub(super) fn open_dir(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty()).map(File::from)
}

/// The path that leads to the file `fd` holds.
pub(super) fn through(fd: &File) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The regular file or folder behind `fd`, opened anew.
pub(super) fn reopen(fd: &File, flags: OFlags) -> rustix::io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    fs::open(through(fd), flags, Mode::empty()).map(File::from)
}

/// The names in the folder behind `fd`, without dots.
pub(super) fn list(fd: &File, each: &mut dyn FnMut(&[u8], FileType, u64)) -> Result<()> {
    let open =
        fs::openat(fd, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .host()?;
    for entry in fs::Dir::new(open).host()? {
        let entry = entry.host()?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name, entry.file_type(), entry.ino());
        }
    }
    Ok(())
}

/// Values and lists of attributes are mostly short: a first try of this many bytes.
const USUAL: usize = 1024;

/// A result of unknown length, asked for with room that grows until it fits.
fn sized(
    mut ask: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
    mut size: impl FnMut() -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut short = [0; USUAL];
    match ask(&mut short) {
        Ok(len) => return Ok(short.get(..len).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // It may grow between the two calls, but nobody else changes an upper.
    let mut value = vec![0; size()?.max(1)];
    let len = ask(&mut value)?;
    value.truncate(len);
    Ok(value)
}

/// An attribute, or `None`.
pub(super) fn get_xattr(fd: &File, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let path = through(fd);
    let path = path.as_str();
    let value = sized(|room| fs::getxattr(path, name, room), || fs::getxattr_query(path, name));
    match value {
        Ok(value) => Ok(Some(value)),
        // A name of no namespace, and a filesystem without attributes, have none.
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE | Errno::INVAL) => Ok(None),
        Err(error) => Err(errno(error)),
    }
}

/// The names of all attributes.
pub(super) fn list_xattrs(fd: &File) -> Result<Vec<Vec<u8>>> {
    let path = through(fd);
    let path = path.as_str();
    let list = match sized(|room| fs::listxattr(path, room), || fs::listxattr_query(path)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => Vec::new(),
        Err(error) => return Err(errno(error)),
    };
    Ok(list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Sets an attribute.
pub(super) fn set_xattr(
    fd: &File,
    name: &[u8],
    value: &[u8],
    flags: XattrFlags,
) -> rustix::io::Result<()> {
    fs::setxattr(through(fd), name, value, flags)
}

/// Removes an attribute.
pub(super) fn remove_xattr(fd: &File, name: &[u8]) -> rustix::io::Result<()> {
    fs::removexattr(through(fd), name)
}

/// Sets permission bits.
pub(super) fn chmod(fd: &File, mode: u16) -> rustix::io::Result<()> {
    fs::chmod(through(fd), Mode::from_raw_mode(mode.into()))
}

/// Sets times; `None` leaves one as it is.
pub(super) fn set_times(
    fd: &File,
    accessed: Option<SetTime>,
    modified: Option<SetTime>,
) -> rustix::io::Result<()> {
    let time = |time| match time {
        None => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW },
        Some(SetTime::To(time)) => {
            Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.min(999_999_999).into() }
        }
    };
    let times = Timestamps { last_access: time(accessed), last_modification: time(modified) };
    fs::utimensat(fd, c"", &times, AtFlags::EMPTY_PATH)
}

/// When a file was last read and changed.
pub(super) fn times(stat: &Stat) -> (Time, Time) {
    let time = |seconds: i64, nanos| Time { seconds, nanos: u32::try_from(nanos).unwrap_or(0) };
    (time(stat.st_atime, stat.st_atime_nsec), time(stat.st_mtime, stat.st_mtime_nsec))
}

/// What the host says a file is.
pub(super) fn kind(stat: &Stat) -> FileKind {
    let device = Device { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDevice(device),
        FileType::BlockDevice => FileKind::BlockDevice(device),
        FileType::RegularFile | FileType::Unknown => FileKind::Regular,
    }
}

/// Permission bits.
pub(super) fn mode(stat: &Stat) -> u16 {
    u16::try_from(stat.st_mode & 0o7777).unwrap_or(0)
}

/// Type and device number for `mknod`.
pub(super) fn type_of(kind: FileKind) -> (FileType, u64) {
    match kind {
        FileKind::Regular => (FileType::RegularFile, 0),
        FileKind::Directory => (FileType::Directory, 0),
        FileKind::Symlink => (FileType::Symlink, 0),
        FileKind::Fifo => (FileType::Fifo, 0),
        FileKind::Socket => (FileType::Socket, 0),
        FileKind::CharDevice(device) => {
            (FileType::CharacterDevice, fs::makedev(device.major, device.minor))
        }
        FileKind::BlockDevice(device) => {
            (FileType::BlockDevice, fs::makedev(device.major, device.minor))
        }
    }
}

/// Removes `name` and, if it is a folder, all in it.
pub(super) fn remove_all(dir: &File, name: &[u8]) -> Result<()> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(errno(error)),
    }
    // Each folder is emptied into this list, so the depth costs no stack.
    let mut folders = vec![(open_dir(dir, name).host()?, name.to_vec())];
    let mut done = Vec::new();
    while let Some((folder, name)) = folders.pop() {
        let mut inner = Vec::new();
        list(&folder, &mut |entry, _, _| inner.push(entry.to_vec()))?;
        let mut below = Vec::new();
        for entry in inner {
            match fs::unlinkat(&folder, entry.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    below.push((open_dir(&folder, &entry).host()?, entry));
                }
                Err(error) => return Err(errno(error)),
            }
        }
        folders.extend(below);
        done.push((folder, name));
    }
    // A folder comes after the one it lies in.
    for (folder, name) in done.into_iter().rev() {
        let parent = open_dir(&folder, b"..").host()?;
        fs::unlinkat(&parent, name.as_slice(), AtFlags::REMOVEDIR).host()?;
    }
    Ok(())
}
