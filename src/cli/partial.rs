//! What is being made has its name only once it is whole.
//!
//! It grows in a folder of its own beside that name, `.NAME.partial`, which is locked for as long
//! as that goes on. If we are killed, the folder stays without its lock, and the next one to make a
//! thing of that name clears it away. In the end the finished thing is renamed, in one step.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result, ResultExt};

/// A thing that has no name yet.
#[derive(Debug)]
pub(super) struct Partial {
    /// What it is to be called.
    target: PathBuf,
    /// The folder it grows in.
    folder: PathBuf,
    /// The same, locked.
    _lock: File,
    done: bool,
}

impl Partial {
    /// Begins to make `target`, which must not be there unless it may be replaced.
    pub(super) fn begin(target: &Path, overwrite: bool) -> Result<Self> {
        let shown = || target.display().to_string();
        let name = target
            .file_name()
            .ok_or_else(|| Error::new(Kind::Usage, "is no name for a new file").within(shown()))?;
        if !overwrite && fs::symlink_metadata(target).is_ok() {
            return Err(exists(target));
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(".partial");
        let folder = target.with_file_name(hidden);
        let made = fs::DirBuilder::new().mode(0o700).create(&folder);
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.within(|| folder.display().to_string())?,
        }
        let flags = rustix::fs::OFlags::RDONLY
            | rustix::fs::OFlags::DIRECTORY
            | rustix::fs::OFlags::NOFOLLOW
            | rustix::fs::OFlags::CLOEXEC;
        let lock = rustix::fs::open(&folder, flags, rustix::fs::Mode::empty())
            .map_err(io::Error::from)
            .within(|| folder.display().to_string())?;
        let lock = File::from(lock);
        // On filesystems without locks nothing saves two runs from each other.
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            == Err(Errno::WOULDBLOCK)
        {
            let message = "is being made by another process";
            return Err(Error::new(Kind::Exists, message).within(shown()));
        }
        let partial = Self { target: target.to_owned(), folder, _lock: lock, done: false };
        partial.clear().within(|| partial.folder.display().to_string())?;
        Ok(partial)
    }

    /// Where it is until it is whole.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.join(self.target.file_name().unwrap_or_default())
    }

    /// Gives the thing its name. It has been put on stable storage; so is its name, then.
    pub(super) fn finish(mut self, overwrite: bool) -> Result<()> {
        let from = self.path();
        let to = &self.target;
        let shown = || to.display().to_string();
        if overwrite && to.is_dir() && !to.is_symlink() {
            // A folder takes the place of a folder, which goes with what is left here.
            rustix::fs::renameat_with(CWD, &from, CWD, to, RenameFlags::EXCHANGE)
                .map_err(io::Error::from)
                .within(shown)?;
        } else if overwrite {
            fs::rename(&from, to).within(shown)?;
        } else {
            match rustix::fs::renameat_with(CWD, &from, CWD, to, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => return Err(exists(to)),
                // Filesystems without the flag: the look before has to do.
                Err(Errno::INVAL | Errno::NOSYS) => fs::rename(&from, to).within(shown)?,
                other => other.map_err(io::Error::from).within(shown)?,
            }
        }
        self.done = true;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).within(shown)
    }

    /// Removes what is in the folder, whoever left it there.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // What cannot be removed is cleared away by the next run.
        let _ = self.clear();
        let _ = fs::remove_dir(&self.folder);
        log::debug!("{}: {}", self.target.display(), if self.done { "made" } else { "given up" });
    }
}

fn exists(target: &Path) -> Error {
    Error::new(Kind::Exists, "is there already")
        .within(target.display().to_string())
        .with_hint("--overwrite replaces it")
}
