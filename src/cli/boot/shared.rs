//! The disk that all boots of one image share: one mount of it, read-only, with one cache.
//!
//! It is served by a process of its own, which the first boot starts and the last one's end ends
//! (see `lease`).

use std::collections::hash_map::DefaultHasher;
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, Metadata};
use std::hash::{Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

use super::lease::{self, Held};
use crate::cli::OpenArgs;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::{Disk, Reference};
use crate::store::{Keyring, Secret};

/// Bytes of a description at most.
const MOST_BYTES: u64 = 1 << 20;

/// Tries to get hold of locks whose files are being removed.
const TRIES: usize = 1000;

/// A mount of a disk that is shared, whether or not it is there yet.
#[derive(Debug)]
pub(super) struct Shared {
    folder: PathBuf,
    /// What is shared, in words: two boots share a mount if theirs are equal.
    description: Vec<u8>,
    key: String,
}

impl Shared {
    /// Of `reference`, which was opened as `disk` with the options of `open`.
    pub(super) fn new(reference: &Reference, disk: &Disk, open: &OpenArgs) -> Result<Self> {
        let description = describe(reference, disk, open)?;
        let mut hasher = DefaultHasher::new();
        description.hash(&mut hasher);
        Ok(Self { folder: runtime_folder(), description, key: format!("{:016x}", hasher.finish()) })
    }

    /// Where it is mounted.
    fn point(&self) -> PathBuf {
        self.folder.join(&self.key)
    }

    /// The disk, once it is mounted.
    pub(super) fn disk(&self) -> PathBuf {
        self.point().join("disk.img")
    }

    /// Joins those who use it, the first of whom starts it. It is served for as long as the file
    /// that is returned, or a copy of its descriptor, is open.
    ///
    /// # Errors
    /// Whatever keeps the image from being mounted.
    pub(super) fn join(
        &self,
        reference: &Reference,
        open: &OpenArgs,
        keyring: &Keyring,
    ) -> Result<File> {
        make_private(&self.folder)?;
        lease::sweep(&self.folder);
        let lock = self.folder.join(format!("{}.lock", self.key));
        for _ in 0..TRIES {
            let start = Held::wait(&lock.with_extension("start"), FlockOperation::LockExclusive)?;
            let held = Held::wait(&lock, FlockOperation::LockShared)?;
            if !start.is_current() || !held.is_current() {
                continue;
            }
            self.check_description(held.file(), &lock)?;
            if !self.is_served() {
                self.serve(reference, open, keyring, &lock)?;
            }
            return Ok(held.into_file());
        }
        Err(Error::new(Kind::Io, "is removed as fast as it is made").within(lock_name(&lock)))
    }

    /// The key is short; whoever could choose the names of images could make two that have it.
    fn check_description(&self, mut file: &File, lock: &Path) -> Result<()> {
        let mut found = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut found).within(|| lock_name(lock))?;
        if found.is_empty() {
            return file.write_all(&self.description).within(|| lock_name(lock));
        }
        if found == self.description {
            return Ok(());
        }
        Err(Error::new(Kind::Exists, "is of another image").within(lock_name(lock)))
    }

    /// Asks the server: the kernel answers other questions for one that is dead.
    fn is_served(&self) -> bool {
        rustix::fs::statfs(self.disk()).is_ok()
    }

    fn serve(
        &self,
        reference: &Reference,
        open: &OpenArgs,
        keyring: &Keyring,
        lock: &Path,
    ) -> Result<()> {
        let point = self.point();
        match DirBuilder::new().mode(0o700).create(&point) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.within(|| point.display().to_string())?,
        }
        // What this program was started from, even if another has taken that name since.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("strata").args(["mount", "--view=disk", "--while-locked"]).arg(lock);
        // What was typed here is not to be typed again, nor to be seen.
        let typed = match keyring.asked() {
            Some(Secret::Passphrase(typed)) => Some(typed),
            _ => None,
        };
        command.args(typed.as_ref().map(|_| "--passphrase-file=/dev/stdin"));
        let started = command
            .args(open.arguments())
            .arg("--")
            .args([reference.text().as_os_str(), point.as_os_str()])
            .stdin(if typed.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(|mut child| {
                if let (Some(mut stdin), Some(typed)) = (child.stdin.take(), typed) {
                    // One that has ended has said why.
                    let _ = stdin.write_all(&typed);
                }
                child.wait_with_output()
            });
        let output = started.within(|| "starting the server of the disk")?;
        if output.status.success() {
            return Ok(());
        }
        let _ = std::fs::remove_dir(&point);
        Err(as_told(&String::from_utf8_lossy(&output.stderr)))
    }
}

fn lock_name(lock: &Path) -> String {
    lock.display().to_string()
}

/// The error that a process of ours printed.
fn as_told(text: &str) -> Error {
    let hint = text.lines().filter_map(|line| line.strip_prefix("hint: ")).next_back();
    let mut errors = text.lines().filter_map(|line| line.strip_prefix("strata: "));
    let error = errors.rfind(|line| !line.starts_with("warning: "));
    let error = error.unwrap_or("the server of the disk could not be started").to_owned();
    match hint {
        Some(hint) => Error::new(Kind::Io, error).with_hint(hint.to_owned()),
        None => Error::new(Kind::Io, error),
    }
}

/// What is served: which files in which state, and how they are opened.
fn describe(reference: &Reference, disk: &Disk, open: &OpenArgs) -> Result<Vec<u8>> {
    let mut text = String::new();
    // A mount is seen in its own namespace only.
    let namespace = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    let _ = writeln!(text, "strata {} {}", env!("CARGO_PKG_VERSION"), namespace.display());
    let mut description = text.into_bytes();
    description.extend_from_slice(reference.text().as_bytes());
    for image in &disk.chain {
        let named = || image.path.display().to_string();
        let metadata = image.path.metadata().within(named)?;
        description.push(b'\n');
        description.extend_from_slice(image.path.as_os_str().as_bytes());
        description.extend_from_slice(state(&metadata).as_bytes());
    }
    for argument in open.arguments() {
        description.push(b'\n');
        description.extend_from_slice(argument.as_bytes());
    }
    Ok(description)
}

fn state(metadata: &Metadata) -> String {
    format!(
        "\n{} {} {} {} {}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.rdev(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec()
    )
}

/// A folder for what lasts as long as a session.
fn runtime_folder() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let theirs = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    // That of another user is inherited through su and sudo.
    let theirs = theirs.filter(|dir| dir.is_absolute() && is_private(dir, 0o022));
    theirs.map_or_else(|| format!("/tmp/strata-{uid}").into(), |dir| dir.join("strata"))
}

/// Whether `folder` is this user's, and others have none of the permissions `closed`.
fn is_private(folder: &Path, closed: u32) -> bool {
    folder.symlink_metadata().is_ok_and(|metadata| {
        metadata.is_dir()
            && metadata.uid() == rustix::process::geteuid().as_raw()
            && metadata.mode() & closed == 0
    })
}

fn make_private(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.within(|| folder.display().to_string())?,
    }
    if is_private(folder, 0o077) { Ok(()) } else { Err(lease::not_ours(folder)) }
}
