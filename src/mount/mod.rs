//! Trees as the kernel sees them: the FUSE side, and the only room that names its library.
//!
//! [`mount`] attaches a tree to a folder and serves it on threads of its own; [`Mounted::wait`]
//! sits there until somebody unmounts it. [`unmount`] is the other end.

mod adapter;
mod attach;
mod errno;
mod holders;
mod inode;
mod linger;
mod report;
mod stale;
mod table;
mod watch;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use rustix::process::{Pid, PidfdFlags};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::error::{Error, Kind, Result, ResultExt};
use crate::tree::{Served, WritableTree};

use linger::Linger;

pub use attach::{Busy, How};
pub use holders::Holder;
pub use report::answers_nobody;
pub use table::FSTYPE;

/// What a mount allows. The default is the safest: its owner only, no setuid, no devices.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Let other users in; the kernel then checks the permissions of every file.
    pub allow_other: bool,
    /// Honour setuid and setgid bits and file capabilities.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Run no program from it.
    pub noexec: bool,
    /// Check the permissions of every file, for its owner too.
    pub default_permissions: bool,
    /// Outlive the terminal: SIGHUP is ignored, where it would unmount.
    pub background: bool,
    /// Threads that answer requests; 0 for what suits the machine.
    pub threads: usize,
    /// What the table of mounts shows as the source: the reference.
    pub name: String,
}

impl Options {
    /// Whether the kernel checks permissions: always once others come in. An owner alone may
    /// read all of an image that is theirs, whoever owned the files inside.
    fn permissions(&self) -> bool {
        self.allow_other || self.default_permissions
    }

    fn threads(&self) -> usize {
        match self.threads {
            0 => thread::available_parallelism().map_or(2, usize::from).clamp(2, 8),
            threads => threads,
        }
    }
}

/// A tree being served at a folder. Dropped, it is unmounted.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    /// What tells this mount from a later one on the same folder.
    device: (u32, u32),
    serving: Option<JoinHandle<io::Result<()>>>,
    /// What is to be on stable storage at the end.
    changed: Option<Arc<dyn WritableTree>>,
    /// At its end once the last serving thread is.
    ended: UnixStream,
    signals: Signals,
}

/// Mounts `tree` on the folder `at`. It is served when this returns.
///
/// What a dead server of ours left on the folder is cleared away first. From here on SIGTERM,
/// SIGINT and SIGHUP no longer end the process: [`Mounted::wait`] answers them.
///
/// # Errors
/// [`Kind::Exists`] if one of our mounts is there already, and whatever keeps this user from
/// mounting, with a hint at the cure.
pub fn mount(tree: Served, at: &Path, options: &Options) -> Result<Mounted> {
    let named = || at.display().to_string();
    let point = stale::prepare(at)?;
    let signals = Signals::catch(options.background).within(|| "catching signals")?;
    let writable = matches!(tree, Served::Writable(_));
    let connection = attach::attach(&point, options, writable).within(named)?;
    serve(tree, &point, connection, signals, options)
        .inspect_err(|_| {
            let _ = attach::detach(&point, How::Lazy);
        })
        .within(named)
}

fn serve(
    tree: Served,
    point: &Path,
    connection: OwnedFd,
    signals: Signals,
    options: &Options,
) -> Result<Mounted> {
    let device = table::mount_at(point)?
        .filter(table::Entry::is_ours)
        .ok_or_else(|| Error::new(Kind::Io, "the mount did not appear in the table of mounts"))?
        .device;
    let mut config = Config::default();
    config.n_threads = Some(options.threads());
    config.clone_fd = true;
    let linger = Linger::new(&connection).within(|| "serving")?;
    // The kernel lets nobody in but the owner by itself: no second check per request.
    let (serving, changed, ended) = match tree {
        Served::ReadOnly(tree) => {
            let adapter = adapter::Adapter::new(tree, options.permissions(), linger, point);
            let session = Session::from_fd(adapter, connection, SessionACL::All, config);
            let (serving, ended) = run(session)?;
            (serving, None, ended)
        }
        Served::Writable(tree) => {
            let changed = Arc::clone(&tree);
            let adapter = adapter::WritableAdapter::new(tree, options.permissions(), linger, point);
            let session = Session::from_fd(adapter, connection, SessionACL::All, config);
            let (serving, ended) = run(session)?;
            (serving, Some(changed), ended)
        }
    };
    raise_readahead(device);
    let serving = Some(serving);
    Ok(Mounted { point: point.to_owned(), device, serving, changed, ended, signals })
}

/// Serves `session` on a thread of its own; the stream ends when that does.
fn run<F: Filesystem>(
    session: io::Result<Session<F>>,
) -> Result<(JoinHandle<io::Result<()>>, UnixStream)> {
    let session = session.within(|| "greeting the kernel")?;
    let (ended, guard) = UnixStream::pair().within(|| "serving")?;
    let serving = thread::Builder::new()
        .name("strata-serve".to_owned())
        .spawn(move || {
            let _until_the_end = guard;
            session.run()
        })
        .within(|| "serving")?;
    Ok((serving, ended))
}

/// The signals that unmount.
#[derive(Debug)]
struct Signals {
    /// A byte for each that came.
    came: UnixStream,
    caught: Vec<SigId>,
}

impl Signals {
    fn catch(background: bool) -> io::Result<Self> {
        let (came, coming) = UnixStream::pair()?;
        came.set_nonblocking(true)?;
        let mut signals = Self { came, caught: Vec::new() };
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            let action = if signal == SIGHUP && background {
                signal_hook::flag::register(signal, Arc::default())
            } else {
                signal_hook::low_level::pipe::register(signal, coming.try_clone()?)
            };
            signals.caught.push(action?);
        }
        Ok(signals)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for signal in self.caught.drain(..) {
            signal_hook::low_level::unregister(signal);
        }
    }
}

/// Lets the kernel read ahead 1 MiB, its largest request, instead of 128 KiB. Only root may ask.
fn raise_readahead((major, minor): (u32, u32)) {
    let _ = std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), "1024");
}

impl Mounted {
    /// Where it is mounted: an absolute path without symlinks.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Serves until somebody unmounts it, or until SIGTERM, SIGINT or SIGHUP, which unmount it.
    ///
    /// If it is in use at that moment, it is taken out of the tree of names and served on until
    /// its last user is gone, or until the next signal.
    ///
    /// What was written is on stable storage when this returns.
    ///
    /// # Errors
    /// What ended the serving, if not an unmount, and what kept changes from stable storage.
    pub fn wait(mut self) -> Result<()> {
        let mut leaving = false;
        loop {
            let mut waiting = [
                PollFd::new(&self.ended, PollFlags::IN),
                PollFd::new(&self.signals.came, PollFlags::IN),
            ];
            match rustix::event::poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::io(errno.into()).within("waiting")),
            }
            if !waiting[0].revents().is_empty() {
                return self.finish();
            }
            if waiting[1].revents().is_empty() {
                continue;
            }
            let mut signals = [0; 64];
            let _ = (&self.signals.came).read(&mut signals);
            if leaving {
                // The process ends, and with it what is left of the mount.
                self.serving = None;
                return self.sync();
            }
            leaving = true;
            self.leave()?;
        }
    }

    /// Unmounts, lazily if it is in use.
    fn leave(&self) -> Result<()> {
        if !self.is_attached() {
            return Ok(());
        }
        match attach::detach(&self.point, How::Idle) {
            Err(error) if error.cause::<Busy>().is_some() => {
                log::warn!(
                    "{} is in use: served until its last user is gone, or until the next signal",
                    self.point.display()
                );
                attach::detach(&self.point, How::Lazy)
            }
            detached => detached,
        }
    }

    /// Whether this very mount, and no later one, is on top at its folder.
    fn is_attached(&self) -> bool {
        matches!(table::mount_at(&self.point), Ok(Some(top)) if top.device == self.device)
    }

    fn finish(&mut self) -> Result<()> {
        let Some(serving) = self.serving.take() else { return Ok(()) };
        let served = serving
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a serving thread panicked")))
            .within(|| self.point.display().to_string());
        // An aborted connection leaves its mount behind.
        if self.is_attached() {
            let _ = attach::detach(&self.point, How::Lazy);
        }
        self.sync().and(served)
    }

    /// Brings what was written to stable storage.
    fn sync(&mut self) -> Result<()> {
        match self.changed.take() {
            Some(changed) => changed.sync_all().within(|| self.point.display().to_string()),
            None => Ok(()),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.serving.is_some() && self.is_attached() {
            let _ = attach::detach(&self.point, How::Lazy);
            // Threads that still serve an open file end with it, or with the process.
        }
    }
}

/// How long a server that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the end of a server is waited for once it is unmounted.
const FAREWELL: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The same where it has changes to bring to stable storage.
const LONG_FAREWELL: Timespec = Timespec { tv_sec: 600, tv_nsec: 0 };

/// How [`unmount`] goes about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unmount {
    /// Detach it even if it is in use.
    pub lazy: bool,
    /// Cut its connection first: whatever waits for its server fails.
    pub force: bool,
}

/// Unmounts the mount of ours on the folder `at` and waits until its server is gone, and with it
/// the image files it had open. Mounts whose server died are cleared.
///
/// A mount with changes that find no room stays, as room can be made.
///
/// # Errors
/// [`Kind::Usage`] if nothing of ours is mounted there; with [`Busy`] as the cause if it is in use;
/// [`Kind::NoSpace`] if there is no room for its changes. It is unmounted, and yet an error, if
/// changes could not be kept for another reason.
pub fn unmount(at: &Path, how: Unmount) -> Result<()> {
    let named = || at.display().to_string();
    let point = stale::resolve(at)?;
    let there = match table::mount_at(&point)? {
        Some(there) if there.is_ours() => there,
        Some(there) => {
            let message = format!("is a mount of type {}, not one of strata", there.fstype);
            return Err(Error::new(Kind::Usage, message)
                .within(named())
                .with_hint(format!("umount {}", at.display())));
        }
        None => {
            return Err(Error::new(Kind::Usage, "nothing is mounted here").within(named()));
        }
    };
    if how.force && abort(there.device, &point) {
        return Ok(());
    }
    if how.force || how.lazy {
        return attach::detach(&point, How::Lazy).within(named);
    }
    let server = server(there.device);
    // The server may have no terminal left to tell of what it cannot keep.
    let kept = if there.writable && server.is_some() { sync(&point) } else { Ok(()) };
    let kept = kept.map_err(|error| not_kept(Error::io(error), at));
    if matches!(&kept, Err(error) if error.kind() == Kind::NoSpace) {
        return kept;
    }
    match attach::detach(&point, How::Idle) {
        Err(error) if error.cause::<Busy>().is_some() => {
            if server.is_some() || patiently(&point, stale::is_dead) != Some(true) {
                return Err(busy(at, &point));
            }
            // Nobody can use a dead mount for anything.
            return attach::detach(&point, How::Lazy).within(named);
        }
        detached => detached.within(named)?,
    }
    if let Some(server) = server {
        let mut end = [PollFd::new(&server, PollFlags::IN)];
        let farewell = if there.writable { &LONG_FAREWELL } else { &FAREWELL };
        let _ = rustix::event::poll(&mut end, Some(farewell));
    }
    kept
}

/// The error of changes of the mount on `at` that did not get to stable storage.
fn not_kept(error: Error, at: &Path) -> Error {
    let at = at.display();
    if error.kind() == Kind::NoSpace {
        return error
            .within("not all changes are stored, and it stays mounted")
            .within(at.to_string())
            .with_hint(format!(
                "make room where the changes go and unmount again; \
                 or give up what no fsync has stored: strata unmount --lazy {at}"
            ));
    }
    error.within("unmounted, but changes may be lost").within(at.to_string()).with_hint(
        "the image is as it was, and what an fsync stored is safe: strata diff --cow shows it; \
         see dmesg for why the host could not write",
    )
}

/// Brings what was written to the mount on `point` to stable storage.
fn sync(point: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(point, flags, Mode::empty())?;
    rustix::fs::syncfs(&root)?;
    Ok(rustix::fs::fsync(&root)?)
}

/// The error of a mount in use, which names who uses it.
fn busy(at: &Path, point: &Path) -> Error {
    let holders = holders::holders(point, 3);
    let mut error = Error::caused_by(Kind::Io, Busy);
    if !holders.is_empty() {
        let names: Vec<_> = holders.iter().map(ToString::to_string).collect();
        error = error.within(names.join(", "));
    }
    error.within(at.display().to_string()).with_hint(format!(
        "end its users, or detach it now: strata unmount --lazy {}",
        at.display()
    ))
}

/// Cuts the connection of the mount on `point`; whether that unmounted it, too.
fn abort((_, minor): (u32, u32), point: &Path) -> bool {
    // Without that filesystem root can still do it.
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").is_err()
        && rustix::mount::unmount(point, UnmountFlags::FORCE | UnmountFlags::NOFOLLOW).is_ok()
}

/// A handle on the process that serves the mount on this device, unless that is this one.
fn server((_, minor): (u32, u32)) -> Option<OwnedFd> {
    let pid = holders::server(minor).filter(|&pid| pid != std::process::id())?;
    let pid = Pid::from_raw(pid.try_into().ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Asks the mount on `point` from a thread that may be left behind if there is no answer.
fn patiently<T: Send + 'static>(
    point: &Path,
    ask: impl FnOnce(&Path) -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = mpsc::channel();
    let point = point.to_owned();
    thread::spawn(move || answer.send(ask(&point)));
    answered.recv_timeout(PATIENCE).ok()
}

#[cfg(test)]
mod tests;
