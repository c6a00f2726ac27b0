//! The folder that keeps what was learnt of layers, so that the next mount is instant: their
//! indexes, what cannot be entered in the middle in a form that can, and what a registry sent.
//!
//! Everything in it can be made again, and whoever reads it checks it. Files appear whole, under
//! their name; what is in use may be removed at any time, as it stays open.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result, ResultExt};

/// What files begin with that are not whole yet.
const UNFINISHED: &str = ".new-";

/// What is kept of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Its entries and restart points.
    Index,
    /// Its contents, packed anew in spans: it has no restart points of its own.
    Spool,
    /// The layer itself, from a registry.
    Blob,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Index, Self::Spool, Self::Blob];

    /// What it is called, and how its files end.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Index => "index",
            Self::Spool => "spool",
            Self::Blob => "blob",
        }
    }
}

/// A cache folder.
#[derive(Debug, Clone)]
pub struct LayerCache {
    dir: PathBuf,
    /// Bytes it may take.
    limit: u64,
}

/// One file of the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The layer's key.
    pub key: String,
    /// What of it.
    pub part: Part,
    /// Bytes it takes.
    pub size: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// What pruning removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Files.
    pub files: u64,
    /// Bytes they took.
    pub bytes: u64,
}

impl LayerCache {
    /// The cache in the folder `dir`, which is made if it is not there, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Kind::Refused`] if others could write to it, and the host's.
    pub fn open(dir: PathBuf, limit: u64) -> Result<Self> {
        let named = || dir.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(&dir).within(named)?;
        let metadata = dir.metadata().within(named)?;
        let others = metadata.mode() & 0o022 != 0;
        if metadata.uid() != rustix::process::geteuid().as_raw() || others {
            let message = "others could write to this cache";
            return Err(Error::new(Kind::Refused, message)
                .within(named())
                .with_hint("name another folder: STRATA_CACHE_DIR=DIR"));
        }
        Ok(Self { dir, limit })
    }

    /// Where the cache of whoever runs this is: `$STRATA_CACHE_DIR`, else `stratafs` in
    /// `$XDG_CACHE_HOME` or in `.cache` of the home folder. Where `$HOME` is not set, as in jobs of
    /// cron or a service, that is `$CACHE_DIRECTORY`, which systemd makes for a service that asks for
    /// it, or else the home folder that `/etc/passwd` tells.
    pub fn user_dir() -> Option<PathBuf> {
        dir_of(
            |name| std::env::var_os(name),
            || {
                let user = rustix::process::geteuid().as_raw();
                std::fs::read("/etc/passwd").ok().and_then(|text| home_of(user, &text))
            },
        )
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes it may take.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Where a part of a layer is or would be.
    fn path(&self, key: &str, part: Part) -> PathBuf {
        self.dir.join(format!("{key}.{}", part.name()))
    }

    /// The part of the layer `key`, if it is there: it counts as used now.
    pub fn find(&self, key: &str, part: Part) -> Option<(PathBuf, File)> {
        let path = self.path(key, part);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return None;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let kept = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: kept, last_modification: now };
        // It is found all the same.
        let _ = rustix::fs::futimens(&file, &times);
        Some((path, file))
    }

    /// Begins a file, which has no name of its own until it is kept.
    ///
    /// # Errors
    /// The host's.
    pub fn begin(&self) -> Result<Unfinished> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = self.dir.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
            let named = || path.display().to_string();
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true).mode(0o600);
            let file = options.custom_flags(libc::O_NOFOLLOW).open(&path).within(named)?;
            // Tells whoever prunes that somebody is at work; it ends with the process. Whoever was faster
            // with the lock holds it for a moment, and has removed the file by then.
            let lock = || rustix::fs::flock(&file, FlockOperation::LockExclusive);
            match rustix::io::retry_on_intr(lock) {
                Ok(()) => {}
                // Then nobody who prunes has a lock either, and nothing is cleared.
                Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(io::Error::from(error)).within(named),
            }
            if file.metadata().within(named)?.nlink() > 0 {
                return Ok(Unfinished { file, path, kept: false });
            }
        }
    }

    /// Gives a finished file its name, in place of one that has it, and makes room if need be.
    ///
    /// # Errors
    /// The host's.
    pub fn keep(&self, mut new: Unfinished, key: &str, part: Part) -> Result<PathBuf> {
        let path = self.path(key, part);
        std::fs::rename(&new.path, &path).within(|| path.display().to_string())?;
        new.kept = true;
        self.prune(self.limit, None)?;
        Ok(path)
    }

    /// Removes a part that turned out to be of no use.
    pub fn forget(&self, key: &str, part: Part) {
        // It is made anew whether it could be removed or not.
        let _ = std::fs::remove_file(self.path(key, part));
    }

    /// All that is kept, what was used longest ago first.
    ///
    /// # Errors
    /// The host's.
    pub fn list(&self) -> Result<Vec<Kept>> {
        let named = || self.dir.display().to_string();
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(&self.dir).within(named)? {
            let entry = entry.within(named)?;
            let name = entry.file_name();
            let Some((key, part)) = name.to_str().and_then(taken_apart) else { continue };
            // Somebody else may prune at the same time.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            kept.push(Kept { key: key.to_owned(), part, size: metadata.blocks() * 512, used });
        }
        kept.sort_by(|a, b| (a.used, &a.key, a.part).cmp(&(b.used, &b.key, b.part)));
        Ok(kept)
    }

    /// Removes what was used longest ago until no more than `limit` bytes are left, what was not
    /// used for `unused`, and what a killed process left unfinished.
    ///
    /// # Errors
    /// The host's.
    pub fn prune(&self, limit: u64, unused: Option<Duration>) -> Result<Pruned> {
        self.clear_unfinished()?;
        let kept = self.list()?;
        let mut total: u64 = kept.iter().map(|kept| kept.size).sum();
        let mut pruned = Pruned::default();
        let now = SystemTime::now();
        for file in kept {
            let age = now.duration_since(file.used).unwrap_or_default();
            if total <= limit && unused.is_none_or(|unused| age < unused) {
                continue;
            }
            match std::fs::remove_file(self.path(&file.key, file.part)) {
                Ok(()) => {
                    pruned.files += 1;
                    pruned.bytes += file.size;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).within(|| self.dir.display().to_string()),
            }
            total = total.saturating_sub(file.size);
        }
        Ok(pruned)
    }

    fn clear_unfinished(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir).within(|| self.dir.display().to_string())? {
            let Ok(entry) = entry else { continue };
            if !entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                continue;
            }
            let Ok(file) = File::open(entry.path()) else { continue };
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    }
}

fn dir_of(
    variable: impl Fn(&str) -> Option<OsString>,
    home: impl FnOnce() -> Option<PathBuf>,
) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let below = |dir: PathBuf| dir.join("stratafs");
    let below_home = |home: PathBuf| below(home.join(".cache"));
    absolute("STRATA_CACHE_DIR")
        .or_else(|| absolute("XDG_CACHE_HOME").map(below))
        .or_else(|| absolute("HOME").map(below_home))
        // Of several that are made for a service the first one.
        .or_else(|| {
            let dirs = variable("CACHE_DIRECTORY")?;
            let first = dirs.as_bytes().split(|&byte| byte == b':').next().unwrap_or_default();
            Some(PathBuf::from(OsStr::from_bytes(first)))
                .filter(|path| path.is_absolute())
                .map(below)
        })
        .or_else(|| home().map(below_home))
}

/// The home folder of a user, if passwd(5) tells one that is there.
fn home_of(user: u32, passwd: &[u8]) -> Option<PathBuf> {
    let home = passwd.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b':');
        let id = std::str::from_utf8(fields.nth(2)?).ok()?.parse::<u32>().ok()?;
        fields.nth(2).filter(|_| id == user)
    })?;
    Some(PathBuf::from(OsStr::from_bytes(home))).filter(|home| home.is_absolute() && home.is_dir())
}

fn taken_apart(name: &str) -> Option<(&str, Part)> {
    let (key, ending) = name.rsplit_once('.')?;
    let part = Part::ALL.into_iter().find(|part| part.name() == ending)?;
    (!key.is_empty()).then_some((key, part))
}

/// A file of the cache that is being written. It goes with this unless it is kept.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Unfinished {
    /// The file, open for reading and writing.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
