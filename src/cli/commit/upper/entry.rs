//! One folder of an upper and what is in it, by handles: no symbolic link in it is ever followed.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::overlay::{OVERRIDE, Owner};
use crate::tree::{Device, FileKind, Time};

/// What strata keeps attributes under that an ordinary user may not set, behind overlayfs's prefix.
const KEPT: &[u8] = b"strata.xattr.";

/// Bytes of one attribute or of the list of them: the kernel's own limit.
const MOST: usize = 64 << 10;

/// Which attributes are overlayfs's own: those of one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flavour {
    /// `trusted.overlay.`: written by root.
    Trusted,
    /// `user.overlay.`: written with `userxattr`.
    User,
    /// Nothing tells: either.
    Either,
}

impl Flavour {
    /// The name behind overlayfs's own prefix.
    pub(super) fn own(self, name: &[u8]) -> Option<&[u8]> {
        let trusted = name.strip_prefix(b"trusted.overlay.");
        let user = name.strip_prefix(b"user.overlay.");
        match self {
            Flavour::Trusted => trusted,
            Flavour::User => user,
            Flavour::Either => trusted.or(user),
        }
    }
}

/// A file in an upper.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) stat: Stat,
    /// Who it belongs to and what it is: the host's, or what an ordinary user could not give it.
    owner: Owner,
    pub(super) kind: FileKind,
    /// The attributes a user sees.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Those of overlayfs, by what is behind the prefix.
    own: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn new(stat: Stat, all: Vec<(Vec<u8>, Vec<u8>)>, flavour: Flavour) -> Result<Self> {
        let mut xattrs = Vec::new();
        let mut own = Vec::new();
        let mut overridden = None;
        for (name, value) in all {
            if flavour != Flavour::Trusted && name == OVERRIDE.as_bytes() {
                overridden = Some(value);
                continue;
            }
            match flavour.own(&name) {
                // An attribute that an ordinary user could not give it.
                Some(inner) if flavour != Flavour::Trusted && inner.starts_with(KEPT) => {
                    xattrs.push((inner.get(KEPT.len()..).unwrap_or_default().to_vec(), value));
                }
                // An attribute of the tree itself that looks like one of overlayfs.
                Some(inner) if inner.starts_with(b"overlay.") => {
                    let prefix = name.len() - inner.len();
                    let shown = inner.strip_prefix(b"overlay.").unwrap_or(inner);
                    let prefix = name.get(..prefix).unwrap_or_default();
                    xattrs.push(([prefix, shown].concat(), value));
                }
                Some(inner) => own.push((inner.to_vec(), value)),
                None => xattrs.push((name, value)),
            }
        }
        xattrs.sort();
        let device = Device { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharDevice(device),
            FileType::BlockDevice => FileKind::BlockDevice(device),
            FileType::Unknown => {
                let message = format!("is a file of unknown type {:o}", stat.st_mode);
                return Err(Error::new(Kind::Unsupported, message));
            }
        };
        let mode = (stat.st_mode & 0o7777) as u16;
        let host = Owner { uid: stat.st_uid, gid: stat.st_gid, mode, kind };
        let owner = match overridden {
            Some(value) if matches!(kind, FileKind::Regular | FileKind::Directory) => {
                host.overridden(&value).unwrap_or(host)
            }
            _ => host,
        };
        Ok(Self { stat, owner, kind: owner.kind, xattrs, own })
    }

    /// Who it belongs to.
    pub(super) fn owner(&self) -> (u32, u32) {
        (self.owner.uid, self.owner.gid)
    }

    fn own(&self, name: &[u8]) -> Option<&[u8]> {
        let found = self.own.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// Whether it stands for a file of the lower tree that was removed.
    pub(super) fn is_whiteout(&self) -> bool {
        match self.kind {
            FileKind::CharDevice(device) => device == Device { major: 0, minor: 0 },
            FileKind::Regular => self.stat.st_size == 0 && self.own(b"whiteout").is_some(),
            _ => false,
        }
    }

    /// Whether a folder hides all that the lower tree has there. (`x` says only that whiteouts in
    /// it may be regular files.)
    pub(super) fn is_opaque(&self) -> bool {
        self.own(b"opaque") == Some(b"y")
    }

    /// Where its lower part is, if not under its own name: a name, or a path from the root.
    pub(super) fn redirect(&self) -> Option<&[u8]> {
        self.own(b"redirect")
    }

    /// Whether it has the metadata alone, and the contents are those of its lower part.
    pub(super) fn is_metacopy(&self) -> bool {
        self.kind == FileKind::Regular && self.own(b"metacopy").is_some()
    }

    pub(super) fn modified(&self) -> Time {
        Time {
            seconds: self.stat.st_mtime,
            nanos: u32::try_from(self.stat.st_mtime_nsec).unwrap_or(0),
        }
    }

    pub(super) fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    pub(super) fn mode(&self) -> u16 {
        self.owner.mode
    }

    /// What is the same for all names of one file.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.stat.st_dev, self.stat.st_ino)
    }
}

/// An open folder of an upper.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

const FOLDER: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Folder {
    /// Opens the upper itself, and finds out whose attributes are overlayfs's in it.
    pub(super) fn root(path: &Path) -> Result<(Self, Entry, Flavour)> {
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        let fd = fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let folder = Self(fd.within(|| path.display().to_string())?);
        let all = folder.attributes(c".")?;
        let has = |prefix: &[u8]| all.iter().any(|(name, _)| name.starts_with(prefix));
        let flavour = match (has(b"trusted.overlay."), has(b"user.overlay.")) {
            (true, _) => Flavour::Trusted,
            (false, true) => Flavour::User,
            (false, false) => Flavour::Either,
        };
        let stat = fs::fstat(&folder.0).map_err(|errno| Error::io(errno.into()))?;
        let entry = Entry::new(stat, all, flavour)?;
        Ok((folder, entry, flavour))
    }

    pub(super) fn folder(&self, name: &CStr) -> Result<Self> {
        fs::openat(&self.0, name, FOLDER, Mode::empty())
            .map(Self)
            .map_err(|errno| Error::io(errno.into()))
    }

    pub(super) fn file(&self, name: &CStr) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = fs::openat(&self.0, name, flags, Mode::empty());
        fd.map(File::from).map_err(|errno| Error::io(errno.into()))
    }

    pub(super) fn entry(&self, name: &CStr, flavour: Flavour) -> Result<Entry> {
        let stat = fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|errno| Error::io(errno.into()))?;
        Entry::new(stat, self.attributes(name)?, flavour)
    }

    pub(super) fn target(&self, name: &CStr) -> Result<Vec<u8>> {
        let target = fs::readlinkat(&self.0, name, Vec::new());
        target.map(CString::into_bytes).map_err(|errno| Error::io(errno.into()))
    }

    /// The names in it, in order.
    pub(super) fn names(&self) -> Result<Vec<CString>> {
        // A handle of its own, whose position is at the beginning.
        let fd = fs::openat(&self.0, c".", FOLDER, Mode::empty());
        let fd = fd.map_err(|errno| Error::io(errno.into()))?;
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| Error::io(errno.into()))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// All attributes of the entry `name`, which may be a link.
    fn attributes(&self, name: &CStr) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // Only paths reach the attributes of a link: here one through this very folder.
        let handle = format!("/proc/self/fd/{}/", self.0.as_fd().as_raw_fd());
        let path = CString::new([handle.as_bytes(), name.to_bytes()].concat());
        let path = path.map_err(|_| Error::new(Kind::Usage, "a name with a zero byte"))?;
        let mut list = vec![0; MOST];
        let len = match fs::llistxattr(&path, &mut list) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => return Err(Error::io(errno.into()).within("attributes")),
        };
        let list = list.get(..len).unwrap_or_default();
        let mut found = Vec::new();
        let mut value = vec![0; MOST];
        for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            match fs::lgetxattr(&path, name, &mut value) {
                Ok(len) => {
                    found.push((name.to_vec(), value.get(..len).unwrap_or_default().to_vec()));
                }
                Err(Errno::NODATA) => {}
                Err(errno) => return Err(Error::io(errno.into()).within("attributes")),
            }
        }
        Ok(found)
    }
}
