//! One folder of the destination, and the few ways to touch what is in it.
//!
//! Everything goes by one name relative to an open folder and never through a symbolic link, so
//! whatever another process plants in the destination can be replaced but not followed.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, Stat};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result};

/// What unfinished files are called; 16 hexadecimal digits follow.
pub(super) const PARTIAL: &str = ".strata-partial-";

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

/// Turns an errno into an error that says what could not be done.
pub(super) trait Told<T> {
    fn told(self, what: &'static str) -> Result<T>;
}

impl<T> Told<T> for rustix::io::Result<T> {
    fn told(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::io(errno.into()).within(what))
    }
}

/// A name that is safe to create in a folder: one component, and not the folder itself or its
/// parent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Name(CString);

impl Name {
    /// Refuses what an image may hold but no folder can.
    pub(super) fn new(name: &[u8]) -> Result<Self> {
        let fault = match name {
            b"" => "is empty",
            b"." | b".." => "stands for another folder",
            _ if name.contains(&b'/') => "contains a slash",
            _ if name.len() > 255 => "is longer than 255 bytes",
            _ => match CString::new(name) {
                Ok(name) => return Ok(Self(name)),
                Err(_) => "contains a zero byte",
            },
        };
        let shown = String::from_utf8_lossy(name);
        Err(Error::new(Kind::Corrupt, format!("the name \"{shown}\" {fault}")))
    }

    /// The name of the unfinished file that `identity` belongs to.
    pub(super) fn partial(identity: u64) -> Result<Self> {
        Self::new(format!("{PARTIAL}{identity:016x}").as_bytes())
    }
}

/// Which file something is on the host: device and inode number.
pub(super) type Identity = (u64, u64);

pub(super) fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// An open folder of the destination.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    identity: Identity,
    /// Made by this run: nothing but what this run put there is in it.
    fresh: bool,
    /// A default ACL hands entries to whatever is created here.
    inherits_acl: bool,
}

/// What came of asking for a folder of a name.
pub(super) enum Made {
    /// It is open.
    Open(Folder),
    /// Something that is neither a folder nor a symbolic link has the name.
    InTheWay,
}

impl Folder {
    /// The destination itself, made with its parents if it is not there. Symbolic links on the
    /// way are followed: the person named this one.
    pub(super) fn destination(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path)
            .map_err(|error| Error::io(error).within("cannot create the folder"))?;
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        let fd = fs::open(path, flags, Mode::empty()).told("cannot open the folder")?;
        Self::new(fd, false)
    }

    fn new(fd: OwnedFd, fresh: bool) -> Result<Self> {
        let stat = fs::fstat(&fd).told("cannot read its attributes")?;
        let acl = fs::fgetxattr_query(&fd, c"system.posix_acl_default");
        Ok(Self {
            identity: identity(&stat),
            fd,
            fresh,
            inherits_acl: acl.is_ok_and(|len| len > 0),
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    pub(super) fn inherits_acl(&self) -> bool {
        self.inherits_acl
    }

    /// The attributes of `name`, of the link itself if it is one.
    pub(super) fn stat(&self, name: &Name) -> Result<Option<Stat>> {
        match fs::statat(&self.fd, &name.0, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno).told("cannot read the attributes of what is there"),
        }
    }

    /// The target of the symbolic link `name`.
    pub(super) fn read_link(&self, name: &Name) -> Result<Vec<u8>> {
        let target = fs::readlinkat(&self.fd, &name.0, Vec::new()).told("cannot read the link")?;
        Ok(target.into_bytes())
    }

    /// The folder `name`, made (mode 0700) unless there is one. A symbolic link of that name is
    /// replaced; anything else only if `overwrite` says so.
    pub(super) fn enter(&self, name: &Name, overwrite: bool) -> Result<Made> {
        // Each round either ends or has removed something; a third means somebody keeps planting.
        for _ in 0..3 {
            match fs::mkdirat(&self.fd, &name.0, Mode::RWXU) {
                Ok(()) => {
                    let fd = fs::openat(&self.fd, &name.0, FOLDER, Mode::empty())
                        .told("cannot open the folder just made")?;
                    let mut folder = Self::new(fd, true)?;
                    if folder.inherits_acl || self.inherits_acl {
                        drop_acl(folder.as_fd());
                        folder.inherits_acl = false;
                    }
                    return Ok(Made::Open(folder));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno).told("cannot create the folder"),
            }
            match self.stat(name)? {
                None => {}
                Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        if let Some(folder) = self.reopen(name)? {
                            return Ok(Made::Open(folder));
                        }
                    }
                    FileType::Symlink => self.remove(name)?,
                    _ if overwrite => self.remove(name)?,
                    _ => return Ok(Made::InTheWay),
                },
            }
        }
        Err(Error::new(Kind::Exists, "something else changes the folder at the same time"))
    }

    /// Opens a folder that is there, making it usable for its owner while we work in it.
    fn reopen(&self, name: &Name) -> Result<Option<Self>> {
        let open = |flags| fs::openat(&self.fd, &name.0, flags, Mode::empty());
        let fd = match open(FOLDER) {
            Err(Errno::ACCESS) => {
                let handle = open(FOLDER.union(OFlags::PATH)).told("cannot open the folder")?;
                let path = through(&handle, None);
                fs::chmod(path.as_c_str(), Mode::RWXU).told("cannot open the folder")?;
                fs::openat(&handle, c".", FOLDER, Mode::empty()).told("cannot open the folder")?
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => return Ok(None),
            other => other.told("cannot open the folder")?,
        };
        let stat = fs::fstat(&fd).told("cannot read its attributes")?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        let mine = stat.st_uid == rustix::process::geteuid().as_raw();
        if !mode.contains(Mode::RWXU) && mine {
            fs::fchmod(&fd, mode.union(Mode::RWXU)).told("cannot make the folder writable")?;
        }
        Self::new(fd, false).map(Some)
    }

    /// The folder this one is in, provided that it is still the one of that `identity`.
    pub(super) fn parent(&self, identity: Identity, fresh: bool) -> Result<Self> {
        let fd = fs::openat(&self.fd, c"..", FOLDER, Mode::empty())
            .told("cannot return to the folder above")?;
        let parent = Self::new(fd, fresh)?;
        if parent.identity != identity {
            return Err(Error::new(Kind::Io, "the folder was moved away while it was restored"));
        }
        Ok(parent)
    }

    /// The folder at `path` below this one, going through no symbolic link.
    pub(super) fn descend(&self, path: &[u8]) -> Result<Self> {
        let mut fd =
            fs::openat(&self.fd, c".", FOLDER, Mode::empty()).told("cannot open the folder")?;
        for part in path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()) {
            let name = Name::new(part)?;
            fd = fs::openat(&fd, &name.0, FOLDER.union(OFlags::PATH), Mode::empty())
                .told("cannot open the folder of the first name")?;
        }
        Ok(Self { identity: (0, 0), fd, fresh: false, inherits_acl: false })
    }

    /// Starts the unfinished file `name`, or goes on with the one an earlier run left if
    /// `resume`: the second value is how many bytes of it are there.
    pub(super) fn create(&self, name: &Name, resume: bool) -> Result<(OwnedFd, u64)> {
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let make = || {
            let mode = Mode::RUSR | Mode::WUSR;
            fs::openat(&self.fd, &name.0, flags | OFlags::CREATE | OFlags::EXCL, mode)
        };
        match make() {
            Ok(fd) => return Ok((fd, 0)),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).told("cannot create the file"),
        }
        if resume
            && let Ok(fd) = fs::openat(&self.fd, &name.0, flags, Mode::empty())
            && let Ok(stat) = fs::fstat(&fd)
            && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            // Anything but a file that only we could have written is not ours to go on with.
            && stat.st_uid == rustix::process::geteuid().as_raw()
            && stat.st_nlink == 1
            && Mode::from_raw_mode(stat.st_mode) == (Mode::RUSR | Mode::WUSR)
        {
            return Ok((fd, u64::try_from(stat.st_size).unwrap_or(0)));
        }
        self.remove(name)?;
        make().map(|fd| (fd, 0)).told("cannot create the file")
    }

    /// Makes the symbolic link `name`, in place of an unfinished one.
    pub(super) fn symlink(&self, name: &Name, target: &[u8]) -> Result<()> {
        let target = CString::new(target)
            .map_err(|_| Error::new(Kind::Corrupt, "the link's target contains a zero byte"))?;
        self.in_place_of_unfinished(name, || fs::symlinkat(&target, &self.fd, &name.0))
            .told("cannot create the link")
    }

    /// Makes the pipe, socket or device `name` (mode 0600), in place of an unfinished one.
    pub(super) fn make_node(&self, name: &Name, kind: FileType, device: u64) -> Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        self.in_place_of_unfinished(name, || fs::mknodat(&self.fd, &name.0, kind, mode, device))
            .told("cannot create the file")
    }

    /// Makes `name` a hard link to `source` of the folder `at`, in place of an unfinished one.
    pub(super) fn link(&self, name: &Name, at: &Self, source: &Name) -> Result<()> {
        let link = || fs::linkat(&at.fd, &source.0, &self.fd, &name.0, AtFlags::empty());
        self.in_place_of_unfinished(name, link).told("cannot create the hard link")
    }

    fn in_place_of_unfinished(
        &self,
        name: &Name,
        make: impl Fn() -> rustix::io::Result<()>,
    ) -> rustix::io::Result<()> {
        match make() {
            Err(Errno::EXIST) => {
                fs::unlinkat(&self.fd, &name.0, AtFlags::empty())?;
                make()
            }
            other => other,
        }
    }

    /// A handle on `name`, just made, that reaches its attributes whatever it is. Refuses what
    /// somebody may have put in its place: a regular file, or one with another name elsewhere.
    pub(super) fn handle(&self, name: &Name) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let what = "cannot open the file just made";
        let handle = fs::openat(&self.fd, &name.0, flags, Mode::empty()).told(what)?;
        let stat = fs::fstat(&handle).told(what)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if matches!(kind, FileType::RegularFile | FileType::Directory) || stat.st_nlink != 1 {
            return Err(Error::new(Kind::Io, "the file just made was replaced by another"));
        }
        Ok(handle)
    }

    /// The path by which calls that know only paths reach `name` in this very folder.
    pub(super) fn path_to(&self, name: &Name) -> CString {
        through(&self.fd, Some(name))
    }

    /// Gives the finished file its name. What has the name goes if `replace`, otherwise nothing
    /// may have it.
    pub(super) fn commit(&self, from: &Name, to: &Name, replace: bool) -> Result<()> {
        if !replace {
            let flags = RenameFlags::NOREPLACE;
            match fs::renameat_with(&self.fd, &from.0, &self.fd, &to.0, flags) {
                // Filesystems without the flag: the check before has to do.
                Err(Errno::INVAL | Errno::NOSYS) => {}
                other => return other.told("cannot give the file its name"),
            }
        }
        fs::renameat(&self.fd, &from.0, &self.fd, &to.0).told("cannot give the file its name")
    }

    /// Removes `name`, which is no folder; it may be gone already.
    pub(super) fn remove(&self, name: &Name) -> Result<()> {
        match fs::unlinkat(&self.fd, &name.0, AtFlags::empty()) {
            Err(Errno::NOENT) | Ok(()) => Ok(()),
            Err(errno) => Err(errno).told("cannot remove what is in the way"),
        }
    }

    /// The unfinished files that an earlier run left here.
    pub(super) fn partials(&self) -> Result<Vec<Name>> {
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut found = Vec::new();
        let fd =
            fs::openat(&self.fd, c".", FOLDER, Mode::empty()).told("cannot read the folder")?;
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.told("cannot read the folder")?;
            let name = entry.file_name();
            let digits = name.to_bytes().strip_prefix(PARTIAL.as_bytes());
            if digits.is_some_and(|d| d.len() == 16 && d.iter().all(u8::is_ascii_hexdigit)) {
                found.push(Name(name.to_owned()));
            }
        }
        Ok(found)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes away what a default ACL gave to a new file or folder.
pub(super) fn drop_acl(fd: BorrowedFd<'_>) {
    for name in [c"system.posix_acl_access", c"system.posix_acl_default"] {
        // Either there is none, or the filesystem knows none.
        let _ = fs::fremovexattr(fd, name);
    }
}

/// A path through `/proc` to an open file, or to `name` in an open folder.
pub(super) fn through(fd: &OwnedFd, name: Option<&Name>) -> CString {
    let mut path = format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes();
    if let Some(name) = name {
        path.push(b'/');
        path.extend_from_slice(name.0.as_bytes());
    }
    // Neither part can hold a zero byte.
    CString::new(path).unwrap_or_default()
}
