//! Who uses a shared mount: the lock that its users hold together, and its end once none is left.
//!
//! A mount named KEY has, in a folder of this user alone, the mountpoint `KEY` and two files:
//!
//! - `KEY.lock`: each user holds a shared lock on it for as long as he lives, however he ends. The
//!   server waits for the exclusive lock: once it has that, nobody uses the mount, nobody can begin
//!   to, and it ends.
//! - `KEY.start`: whoever looks whether the mount is there, or starts it, holds it exclusively.
//!
//! Both are removed at the end, by whoever holds `KEY.lock` exclusively, and `KEY.lock` last. So a
//! lock counts only if, once held, its file still has its name; if not, its holder begins anew.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::Signal;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::mount::{self, Unmount};

/// How long a mount that nobody uses may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// A lock on a file.
#[derive(Debug)]
pub(super) struct Held {
    file: File,
    path: PathBuf,
}

impl Held {
    /// Waits for the lock on the file at `path`, which is made if need be.
    pub(super) fn wait(path: &Path, how: FlockOperation) -> Result<Self> {
        let file = open(path, true)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, how))
            .map_err(io::Error::from)
            .within(|| path.display().to_string())?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Whether the file still has its name.
    pub(super) fn is_current(&self) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let named = self.path.symlink_metadata().map(identity);
        let held = self.file.metadata().map(identity);
        matches!((named, held), (Ok(named), Ok(held)) if named == held)
    }

    /// The file. It is locked for as long as a copy of this descriptor is open anywhere.
    pub(super) fn into_file(self) -> File {
        self.file
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

fn open(path: &Path, create: bool) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
        .within(|| path.display().to_string())
}

/// The server's side of the lock.
#[derive(Debug)]
pub(in crate::cli) struct Lease {
    lock: File,
    path: PathBuf,
}

impl Lease {
    /// The lock at `path`, which its users hold already.
    ///
    /// # Errors
    /// The host's.
    pub(in crate::cli) fn open(path: &Path) -> Result<Self> {
        Ok(Self { lock: open(path, false)?, path: path.to_owned() })
    }

    /// Sends this process SIGTERM, which unmounts, once nobody holds the lock; and again if that
    /// has not ended it soon. A copy of the mount in somebody else's namespace may keep it in use.
    ///
    /// # Errors
    /// The host's.
    pub(in crate::cli) fn end_when_free(&self) -> Result<()> {
        let lock = self.lock.try_clone().within(|| self.path.display().to_string())?;
        let wait = move || {
            let flock = || rustix::fs::flock(&lock, FlockOperation::LockExclusive);
            if rustix::io::retry_on_intr(flock).is_err() {
                return;
            }
            loop {
                let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
                thread::sleep(GRACE);
            }
        };
        thread::Builder::new().name("strata-lease".to_owned()).spawn(wait).within(|| "serving")?;
        Ok(())
    }

    /// Removes what the mount had on the host, unless somebody has begun to use it again.
    pub(in crate::cli) fn clear(self) {
        // If the lock was waited for in vain, somebody uses what was unmounted, or starts it anew.
        if rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            remove(&self.path);
        }
    }
}

/// Removes the files and the mountpoint of the lock at `lock`, which is held exclusively.
fn remove(lock: &Path) {
    // What is not there, or not empty, stays as it is: the next user comes by here again.
    let _ = std::fs::remove_file(lock.with_extension("start"));
    let _ = std::fs::remove_dir(lock.with_extension(""));
    let _ = std::fs::remove_file(lock);
}

/// Clears what servers that were killed left in `folder`: every mount that nobody uses.
pub(super) fn sweep(folder: &Path) {
    let Ok(entries) = folder.read_dir() else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "lock") {
            sweep_one(&path);
        }
    }
}

fn sweep_one(path: &Path) {
    let Ok(file) = open(path, false) else { return };
    let lock = Held { file, path: path.to_owned() };
    let flock = rustix::fs::flock(&lock.file, FlockOperation::NonBlockingLockExclusive);
    if flock.is_err() || !lock.is_current() {
        return;
    }
    match mount::unmount(&path.with_extension(""), Unmount { lazy: true, force: false }) {
        Err(error) if error.kind() != Kind::Usage && error.kind() != Kind::NotFound => {
            log::debug!("{error}");
        }
        Ok(()) | Err(_) => remove(path),
    }
}

/// An error of a folder or file that somebody else has a hand in.
pub(super) fn not_ours(path: &Path) -> Error {
    Error::new(Kind::Refused, "is not a folder of this user alone")
        .within(path.display().to_string())
        .with_hint("remove it, or name another in XDG_RUNTIME_DIR")
}
