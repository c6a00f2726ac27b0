//! The restore itself: a walk over the tree and a few workers that write what it finds.
//!
//! The walk keeps its place on a stack of its own and holds few folders of the destination open.
//! Files are written under a name of their own and renamed when they are whole, contents, owner,
//! mode, attributes and times, so whatever has its final name is finished, and running again only
//! needs to compare what `stat` says. A folder gets its metadata when the last file in it is done.

mod walk;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use parking_lot::Mutex;
use rustix::fs::{self, FileType, FlockOperation};
use serde::Serialize;

use super::contents::{self, CHUNK, Halt};
use super::folder::{Folder, Identity, Name, Told, drop_acl, identity};
use super::metadata::{self, Losses, Rights, Target};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::{Attr, FileKind, FileTree, NodeId};
use walk::Walk;

/// Files waiting for a worker; each may hold a folder open.
const QUEUE: usize = 128;
/// An unfinished file of at least this many bytes is gone on with; others are begun anew.
const RESUMABLE: u64 = 8 << 20;

/// One thing to restore.
#[derive(Debug, Clone)]
pub struct Item {
    /// What it is in the tree.
    pub node: NodeId,
    /// The name it gets in the destination; without one, a folder's entries are restored instead
    /// of the folder itself.
    pub name: Option<Vec<u8>>,
}

/// How to restore.
#[derive(Debug, Clone)]
pub struct Options {
    /// Also setuid and setgid bits, devices, and `security.*` and `trusted.*` attributes.
    pub privileged: bool,
    /// Replace files that are there and differ.
    pub overwrite: bool,
    /// Ask the host to put everything on stable storage before returning.
    pub sync: bool,
    /// Threads that copy files; at least one.
    pub workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { privileged: false, overwrite: false, sync: true, workers: 4 }
    }
}

/// How far a restore has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files and folders dealt with.
    pub files: AtomicU64,
    /// Bytes of regular files dealt with, holes counted.
    pub bytes: AtomicU64,
}

/// What a restore did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Regular files written.
    pub files: u64,
    /// Folders made.
    pub folders: u64,
    /// Symbolic links, pipes, sockets and devices made.
    pub others: u64,
    /// Further names of files made as hard links.
    pub hard_links: u64,
    /// Bytes of the regular files written, holes counted.
    pub bytes: u64,
    /// Files and folders that were there already.
    pub already_there: u64,
    /// Files that exist and differ, not replaced without leave.
    pub in_the_way: u64,
    /// Everything else that could not be restored.
    pub failed: u64,
    /// Devices left out.
    pub devices_left_out: u64,
    /// Files without their setuid or setgid bit.
    pub setuid_left_out: u64,
    /// Extended attributes left out.
    pub xattrs_left_out: u64,
    /// Extended attributes the destination refused.
    pub xattrs_refused: u64,
    /// Files and folders whose owner or group could not be set.
    pub owners_not_set: u64,
    /// Whether it was stopped before the end.
    pub interrupted: bool,
}

impl Summary {
    /// Whether everything asked for is there now.
    pub fn is_complete(&self) -> bool {
        self.in_the_way == 0 && self.failed == 0 && !self.interrupted
    }
}

#[derive(Debug, Default)]
struct Tally {
    files: AtomicU64,
    folders: AtomicU64,
    others: AtomicU64,
    hard_links: AtomicU64,
    bytes: AtomicU64,
    already_there: AtomicU64,
    in_the_way: AtomicU64,
    failed: AtomicU64,
    devices_left_out: AtomicU64,
}

fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}

/// Whether to go on: the caller's flag, and our own for failures that concern everything.
pub(super) struct Stop<'a> {
    asked: &'a AtomicBool,
    hopeless: AtomicBool,
}

impl Stop<'_> {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.is_hopeless()
    }

    fn is_hopeless(&self) -> bool {
        self.hopeless.load(Ordering::Relaxed)
    }
}

/// Restores `items` of `tree` into the folder `destination`, which is made if it is not there.
///
/// A failure that concerns one file is told to `failed` with the file's path below the
/// destination, and the rest goes on. `stop` may be set at any time: the restore then ends soon,
/// and running it again finishes the rest.
///
/// # Errors
/// What keeps everything from being restored: the destination cannot be opened, is being restored
/// to by another process, is full or read-only, or two items have the same name
/// ([`Kind::Usage`]).
pub fn restore(
    tree: &dyn FileTree,
    items: &[Item],
    destination: &Path,
    options: &Options,
    progress: &Progress,
    stop: &AtomicBool,
    failed: &(dyn Fn(&[u8], &Error) + Sync),
) -> Result<Summary> {
    let mut names = HashSet::new();
    for name in items.iter().filter_map(|item| item.name.as_ref()) {
        if !names.insert(name) {
            let name = String::from_utf8_lossy(name);
            return Err(Error::new(
                Kind::Usage,
                format!("two of the paths would both be restored as \"{name}\""),
            )
            .with_hint("restore them one by one, each into a folder of its own"));
        }
    }
    let place = || destination.display().to_string();
    let root = Arc::new(Folder::destination(destination).within(place)?);
    // On filesystems without locks nothing saves two runs from each other.
    if fs::flock(&*root, FlockOperation::NonBlockingLockExclusive)
        == Err(rustix::io::Errno::WOULDBLOCK)
    {
        return Err(Error::new(Kind::Exists, "another restore into this folder is running")
            .within(place())
            .with_hint("wait until it ends, or name another folder"));
    }
    let run = Run {
        tree,
        options,
        progress,
        failed,
        root: Arc::clone(&root),
        stop: Stop { asked: stop, hopeless: AtomicBool::new(false) },
        fatal: Mutex::new(None),
        rights: Rights::of_this_process(options.privileged),
        salt: std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        tally: Tally::default(),
        losses: Losses::default(),
    };
    let (sender, receiver) = sync_channel(QUEUE);
    let receiver = Mutex::new(receiver);
    std::thread::scope(|scope| {
        for _ in 0..options.workers.max(1) {
            scope.spawn(|| run.work(&receiver));
        }
        let mut walk = Walk::new(&run, sender);
        if let Err(error) = walk.all(items) {
            run.give_up(error);
        }
    });
    if options.sync && !run.stop.is_hopeless() {
        fs::syncfs(&*root).told("cannot put the files on stable storage").within(place)?;
    }
    if let Some(error) = run.fatal.lock().take() {
        return Err(error.within(place()));
    }
    Ok(run.summary())
}

/// How many files and bytes there are to restore, as [`Progress`] counts them; `None` if
/// `given_up` says so first. What cannot be read is not counted.
pub fn measure(
    tree: &dyn FileTree,
    items: &[Item],
    given_up: &dyn Fn() -> bool,
) -> Option<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0_u64);
    let mut seen = HashSet::new();
    let mut left: Vec<NodeId> = items.iter().map(|item| item.node).collect();
    while let Some(node) = left.pop() {
        if given_up() {
            return None;
        }
        let Ok(attr) = tree.attr(node) else { continue };
        files += 1;
        match attr.kind {
            FileKind::Regular => bytes = bytes.saturating_add(attr.size),
            FileKind::Directory if seen.insert(node) => {
                // A folder that cannot be read is told of by the restore itself.
                let _ = tree.read_dir(node, 0, &mut |entry| {
                    left.push(entry.node);
                    true
                });
            }
            _ => {}
        }
    }
    Some((files, bytes))
}

/// What the walk and the workers share.
struct Run<'a> {
    tree: &'a dyn FileTree,
    options: &'a Options,
    progress: &'a Progress,
    failed: &'a (dyn Fn(&[u8], &Error) + Sync),
    root: Arc<Folder>,
    stop: Stop<'a>,
    fatal: Mutex<Option<Error>>,
    rights: Rights,
    /// Differs from boot to boot: after a crash, the length of an unfinished file proves nothing
    /// about its contents, so it must not be found again.
    salt: Vec<u8>,
    tally: Tally,
    losses: Losses,
}

/// What to do once nothing in a folder is left to do.
struct Closing {
    /// The folder's own attributes; none for the destination.
    attr: Option<Attr>,
    path: Vec<u8>,
    /// Unfinished files found in it.
    partials: Vec<Name>,
    /// The walk and the files it handed out.
    pending: AtomicUsize,
}

/// One file for a worker.
struct Job {
    folder: Arc<Folder>,
    closing: Arc<Closing>,
    name: Name,
    path: Vec<u8>,
    attr: Attr,
}

/// What became of a file.
#[derive(PartialEq, Eq)]
enum Outcome {
    Done,
    LeftOut,
    Stopped,
}

impl Run<'_> {
    fn work(&self, receiver: &Mutex<Receiver<Job>>) {
        let mut buffer = vec![0; CHUNK];
        loop {
            let job = receiver.lock().recv();
            let Ok(job) = job else { return };
            if !self.stop.is_asked() {
                self.file(&job.folder, &job.name, &job.path, &job.attr, &mut buffer);
            }
            self.leave(&job.folder, &job.closing);
        }
    }

    /// Stops everything because of `error`; the first one is the one told.
    fn give_up(&self, error: Error) {
        self.fatal.lock().get_or_insert(error);
        self.stop.hopeless.store(true, Ordering::Relaxed);
    }

    fn fail(&self, path: &[u8], error: Error) {
        match error.kind() {
            Kind::NoSpace => {
                let error = error.within(String::from_utf8_lossy(path).into_owned());
                self.give_up(error.with_hint("make room; the same command finishes the rest"));
            }
            Kind::ReadOnly => {
                self.give_up(error.within(String::from_utf8_lossy(path).into_owned()));
            }
            Kind::Exists => {
                add(&self.tally.in_the_way, 1);
                (self.failed)(path, &error);
            }
            _ => {
                add(&self.tally.failed, 1);
                (self.failed)(path, &error);
            }
        }
    }

    /// Restores anything but a folder, and tells a failure. Whether it is there now.
    fn file(
        &self,
        folder: &Folder,
        name: &Name,
        path: &[u8],
        attr: &Attr,
        buffer: &mut [u8],
    ) -> bool {
        let before = self.progress.bytes.load(Ordering::Relaxed);
        let outcome = self.try_file(folder, name, path, attr, buffer);
        if outcome.is_err() && attr.kind == FileKind::Regular {
            // Concurrent files make this an estimate, which is all that a progress bar needs.
            let seen = self.progress.bytes.load(Ordering::Relaxed).saturating_sub(before);
            add(&self.progress.bytes, attr.size.saturating_sub(seen));
        }
        add(&self.progress.files, 1);
        match outcome {
            Ok(outcome) => outcome == Outcome::Done,
            Err(error) => {
                self.fail(path, error);
                false
            }
        }
    }

    fn try_file(
        &self,
        folder: &Folder,
        name: &Name,
        path: &[u8],
        attr: &Attr,
        buffer: &mut [u8],
    ) -> Result<Outcome> {
        let device = matches!(attr.kind, FileKind::CharDevice(_) | FileKind::BlockDevice(_));
        if device && !self.rights.privileged() {
            add(&self.tally.devices_left_out, 1);
            log::info!("{}: device left out", String::from_utf8_lossy(path).escape_debug());
            return Ok(Outcome::LeftOut);
        }
        let mut replace = false;
        if !folder.is_fresh()
            && let Some(stat) = folder.stat(name)?
        {
            if self.is_there(folder, name, attr, &stat)? {
                add(&self.tally.already_there, 1);
                if attr.kind == FileKind::Regular {
                    add(&self.progress.bytes, attr.size);
                }
                return Ok(Outcome::Done);
            }
            self.may_replace(&stat)?;
            replace = true;
        }
        let temporary = Name::partial(self.partial_identity(name, attr))?;
        let counter = match attr.kind {
            FileKind::Regular => {
                match self.write(folder, &temporary, attr, buffer) {
                    Ok(()) => {}
                    Err(Halt::Stopped) => {
                        // On a full disk it would only take room, and a small file is begun anew.
                        if self.stop.is_hopeless() || attr.size < RESUMABLE {
                            let _ = folder.remove(&temporary);
                        }
                        return Ok(Outcome::Stopped);
                    }
                    Err(Halt::Source(error)) => {
                        let _ = folder.remove(&temporary);
                        // Never taken for a failure of the destination.
                        return Err(as_damage(error));
                    }
                    Err(Halt::Target(error)) => {
                        let _ = folder.remove(&temporary);
                        return Err(error);
                    }
                }
                add(&self.tally.bytes, attr.size);
                &self.tally.files
            }
            _ => {
                self.make(folder, &temporary, attr).inspect_err(|_| {
                    let _ = folder.remove(&temporary);
                })?;
                &self.tally.others
            }
        };
        folder.commit(&temporary, name, replace).inspect_err(|_| {
            let _ = folder.remove(&temporary);
        })?;
        add(counter, 1);
        Ok(Outcome::Done)
    }

    fn is_there(&self, folder: &Folder, name: &Name, attr: &Attr, stat: &fs::Stat) -> Result<bool> {
        if !self.rights.complete(stat, attr, &self.rights.wanted(attr)) {
            return Ok(false);
        }
        if attr.kind != FileKind::Symlink {
            return Ok(true);
        }
        Ok(folder.read_link(name)? == self.tree.read_link(attr.node).map_err(as_damage)?)
    }

    /// Whether what has the name may go: a symbolic link always, a folder never.
    fn may_replace(&self, stat: &fs::Stat) -> Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => Ok(()),
            FileType::Directory => Err(Error::new(Kind::Exists, "a folder of that name is there")),
            _ if self.options.overwrite => Ok(()),
            _ => Err(Error::new(Kind::Exists, "a different file of that name is there")),
        }
    }

    /// The same for the same state of the same file, within one boot of the host.
    fn partial_identity(&self, name: &Name, attr: &Attr) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.salt.hash(&mut hasher);
        name.hash(&mut hasher);
        let times = [attr.modified, attr.changed].map(|time| (time.seconds, time.nanos));
        (attr.node, attr.size, times).hash(&mut hasher);
        hasher.finish()
    }

    fn write(
        &self,
        folder: &Folder,
        temporary: &Name,
        attr: &Attr,
        buffer: &mut [u8],
    ) -> Result<(), Halt> {
        let resume = attr.size >= RESUMABLE;
        let (file, length) = folder.create(temporary, resume).map_err(Halt::Target)?;
        // Whole chunks only, so that a write cut in two is written again.
        let from = length.min(attr.size) / CHUNK as u64 * CHUNK as u64;
        add(&self.progress.bytes, from);
        contents::copy(self.tree, attr, &file, from, buffer, self.progress, &self.stop)?;
        if folder.inherits_acl() {
            drop_acl(file.as_fd());
        }
        let target = Target::Open(file.as_fd());
        metadata::apply(self.tree, attr, &self.rights, &target, &self.losses).map_err(Halt::Target)
    }

    fn make(&self, folder: &Folder, temporary: &Name, attr: &Attr) -> Result<()> {
        let device = |device: crate::tree::Device| fs::makedev(device.major, device.minor);
        match attr.kind {
            FileKind::Symlink => {
                let target = self.tree.read_link(attr.node).map_err(as_damage)?;
                folder.symlink(temporary, &target)?;
            }
            FileKind::Socket => folder.make_node(temporary, FileType::Socket, 0)?,
            FileKind::CharDevice(number) => {
                folder.make_node(temporary, FileType::CharacterDevice, device(number))?;
            }
            FileKind::BlockDevice(number) => {
                folder.make_node(temporary, FileType::BlockDevice, device(number))?;
            }
            FileKind::Fifo | FileKind::Regular | FileKind::Directory => {
                folder.make_node(temporary, FileType::Fifo, 0)?;
            }
        }
        let handle = folder.handle(temporary)?;
        let target = Target::Named { folder, name: temporary, handle: &handle };
        metadata::apply(self.tree, attr, &self.rights, &target, &self.losses)
    }

    /// One less to do in a folder; after the last, the folder gets its metadata.
    fn leave(&self, folder: &Folder, closing: &Closing) {
        if closing.pending.fetch_sub(1, Ordering::AcqRel) != 1 || self.stop.is_asked() {
            return;
        }
        for partial in &closing.partials {
            if let Err(error) = folder.remove(partial) {
                self.fail(&closing.path, error);
            }
        }
        if let Some(attr) = &closing.attr {
            let target = Target::Open(folder.as_fd());
            let done = metadata::apply(self.tree, attr, &self.rights, &target, &self.losses);
            if let Err(error) = done {
                self.fail(&closing.path, error);
            }
        }
    }

    /// Makes `name` a further name of the file restored as `first`.
    fn link(&self, folder: &Folder, name: &Name, attr: &Attr, first: &FirstName) -> Result<()> {
        add(&self.progress.files, 1);
        if attr.kind == FileKind::Regular {
            add(&self.progress.bytes, attr.size);
        }
        let mut replace = false;
        if !folder.is_fresh()
            && let Some(stat) = folder.stat(name)?
        {
            if identity(&stat) == first.identity {
                add(&self.tally.already_there, 1);
                return Ok(());
            }
            // A copy of the same file may become a link to it.
            if !self.is_there(folder, name, attr, &stat)? {
                self.may_replace(&stat)?;
            }
            replace = true;
        }
        let at = self.root.descend(&first.folder)?;
        let temporary = Name::partial(self.partial_identity(name, attr))?;
        folder.link(&temporary, &at, &first.name)?;
        let same = folder.stat(&temporary)?.is_some_and(|stat| identity(&stat) == first.identity);
        let committed = if same {
            folder.commit(&temporary, name, replace)
        } else {
            Err(Error::new(Kind::Io, "the file to link to was replaced by another"))
        };
        committed.inspect_err(|_| {
            let _ = folder.remove(&temporary);
        })?;
        add(&self.tally.hard_links, 1);
        Ok(())
    }

    fn summary(&self) -> Summary {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Summary {
            files: value(&self.tally.files),
            folders: value(&self.tally.folders),
            others: value(&self.tally.others),
            hard_links: value(&self.tally.hard_links),
            bytes: value(&self.tally.bytes),
            already_there: value(&self.tally.already_there),
            in_the_way: value(&self.tally.in_the_way),
            failed: value(&self.tally.failed),
            devices_left_out: value(&self.tally.devices_left_out),
            setuid_left_out: value(&self.losses.setuid),
            xattrs_left_out: value(&self.losses.xattrs_left_out),
            xattrs_refused: value(&self.losses.xattrs_refused),
            owners_not_set: value(&self.losses.owners),
            interrupted: self.stop.is_asked(),
        }
    }
}

/// An error of the image, whatever its kind, never means that the destination is full, read-only
/// or taken.
pub(super) fn as_damage(error: Error) -> Error {
    match error.kind() {
        Kind::NoSpace | Kind::ReadOnly | Kind::Exists => {
            Error::new(Kind::Io, format!("cannot read the image: {error}"))
        }
        _ => error,
    }
}

/// Where the first name of a file with several was restored.
struct FirstName {
    folder: Vec<u8>,
    name: Name,
    identity: Identity,
    /// Names still to come.
    left: u32,
}
