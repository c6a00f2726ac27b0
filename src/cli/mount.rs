//! `strata mount`: serves a reference at a folder, in the background unless asked otherwise.
//!
//! Also what mount(8) and mount.fuse3(8) run for a line of fstab: [`from_mount_helper`] turns
//! their way of asking into ours.

mod helper;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, WaitOptions};

use super::TreeArgs;
use super::boot::Lease;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::mount;
use crate::open::Reference;
use crate::open::cow::{Cow, Purpose};

pub(super) use helper::from_mount_helper;

/// Options of `strata mount`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What to mount
    #[arg(value_name = "REF")]
    reference: OsString,

    /// The folder to mount it on
    dir: PathBuf,

    #[command(flatten)]
    tree: TreeArgs,

    /// Let the disk be written; its changes vanish with the mount
    #[arg(long, help_heading = "Changes", conflicts_with = "cow")]
    scratch: bool,

    /// Let the disk have this size, which is no less than it has
    #[arg(long, value_name = "SIZE", help_heading = "Changes", value_parser = super::parse_size)]
    size: Option<u64>,

    /// Show the disk with its changes and allow no more of them
    #[arg(long, help_heading = "Changes")]
    read_only: bool,

    /// Let other users in; the permissions of each file then hold
    #[arg(long)]
    allow_other: bool,

    /// Honour setuid and setgid bits
    #[arg(long)]
    suid: bool,

    /// Honour device nodes
    #[arg(long)]
    dev: bool,

    /// Run no program from it
    #[arg(long)]
    noexec: bool,

    /// Hold yourself, too, to the permissions of each file
    #[arg(long)]
    default_permissions: bool,

    /// Threads that serve it [default: one per processor, 2 to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// Stay in the foreground; interrupt to unmount
    #[arg(short, long)]
    foreground: bool,

    /// Write what goes wrong while serving to this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// The same options as mount(8) writes them: ro,allow_other,view=disk,cache_size=64M
    #[arg(short = 'o', long = "options", value_name = "OPTIONS")]
    options: Vec<OsString>,

    /// Check the command line and mount nothing, as mount -f asks
    #[arg(long, hide = true)]
    fake: bool,

    /// Unmount once nobody holds a lock on this file any more, and remove it and DIR
    #[arg(long, value_name = "FILE", hide = true)]
    while_locked: Option<PathBuf>,
}

/// Mounts, and returns once the mount serves; in the foreground, once it is unmounted.
///
/// # Errors
/// Whatever keeps the reference from being opened or mounted. In the background it is told by the
/// server, and this process ends with its exit status.
pub(super) fn run(args: &Args) -> Result<()> {
    if !args.options.is_empty() {
        return Err(Error::new(Kind::Usage, "-o belongs after the word mount"));
    }
    if args.fake {
        return Ok(());
    }
    if args.foreground { serve(args, None) } else { in_background(args) }
}

impl Args {
    /// Where changes go.
    fn cow(&self) -> Option<Cow> {
        if self.scratch { Some(Cow::Scratch { size: self.size }) } else { self.tree.cow(self.size) }
    }
}

/// Serves until unmounted; says so through `ready` once it does.
fn serve(args: &Args, ready: Option<OwnedFd>) -> Result<()> {
    let log = args.log.as_deref().map(open_log).transpose()?;
    let lease = args.while_locked.as_deref().map(Lease::open).transpose()?;
    let mut opener = args.tree.open.opener();
    if let Some(opener) = Arc::get_mut(&mut opener) {
        for path in &mut opener.policy.allow_paths {
            *path = absolute(path)?;
        }
    }
    let mut cow = args.cow();
    if let Some(Cow::Delta { path, .. } | Cow::Upper { dir: path, .. }) = &mut cow {
        *path = absolute(path)?;
    }
    let purpose = if args.read_only { Purpose::Read } else { Purpose::Change };
    let cow = cow.as_ref().map(|cow| (cow, purpose));
    let reference = if opener.layered_reference(&args.reference)?.is_some() {
        args.reference.clone()
    } else {
        Reference::from(args.reference.as_os_str()).absolute()?.text()
    };
    let shown = super::show(&opener, &reference, args.tree.view, cow)?;
    super::warn(&shown.warnings);
    let options = mount::Options {
        allow_other: args.allow_other,
        suid: args.suid,
        dev: args.dev,
        noexec: args.noexec,
        default_permissions: args.default_permissions,
        background: ready.is_some(),
        threads: args.threads.unwrap_or(0).into(),
        name: reference.to_string_lossy().into_owned(),
    };
    let mounted = mount::mount(shown.tree, &args.dir, &options)?;
    if let Some(log) = &log {
        redirect(rustix::stdio::dup2_stderr(log))?;
    }
    if let Some(ready) = ready {
        leave_terminal(log.is_some())?;
        // Whoever waits for it may have gone: the mount stands all the same.
        let _ = rustix::io::write(ready, &[READY]);
    }
    if let Some(lease) = &lease {
        lease.end_when_free()?;
    }
    let served = mounted.wait();
    let closed = shown.delta.map_or(Ok(()), |delta| delta.close());
    if let Some(lease) = lease {
        lease.clear();
    }
    closed.and(served)
}

/// What says that the mount serves.
const READY: u8 = 1;

/// Leaves terminal, session and working folder behind, so that nothing there is kept busy. Names
/// that are opened later are absolute by now.
fn leave_terminal(keep_stderr: bool) -> Result<()> {
    let null =
        OpenOptions::new().read(true).write(true).open("/dev/null").within(|| "/dev/null")?;
    redirect(rustix::stdio::dup2_stdin(&null))?;
    redirect(rustix::stdio::dup2_stdout(&null))?;
    if !keep_stderr {
        redirect(rustix::stdio::dup2_stderr(&null))?;
    }
    // Fails only for the leader of a process group, which a child just forked is not.
    let _ = rustix::process::setsid();
    std::env::set_current_dir("/").within(|| "/")
}

fn redirect(result: rustix::io::Result<()>) -> Result<()> {
    result.map_err(io::Error::from).within(|| "redirecting the standard streams")
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).open(path).within(|| path.display().to_string())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).within(|| path.display().to_string())
}

/// Starts a server and waits until it serves. It is this program gone on in a second process, so
/// that all that can go wrong is told on this terminal.
fn in_background(args: &Args) -> Result<()> {
    let (ready, ours) = pipe()?;
    match fork()? {
        None => {
            drop(ready);
            serve(args, Some(ours))
        }
        Some(server) => {
            drop(ours);
            let mut byte = [0];
            if matches!(File::from(ready).read(&mut byte), Ok(1)) {
                return Ok(());
            }
            let status = wait_for(server)?;
            match (status.code(), status.signal()) {
                // It has said why.
                (Some(code), _) => std::process::exit(code),
                (None, signal) => {
                    let signal = signal.map_or_else(String::new, |signal| format!(" {signal}"));
                    Err(Error::new(Kind::Io, format!("the server was ended by signal{signal}")))
                }
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .within(|| "starting the server")
}

fn wait_for(child: Pid) -> Result<ExitStatus> {
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))
            .map_err(io::Error::from)
            .within(|| "waiting for the server")?;
    Ok(ExitStatus::from_raw(status.map_or(0, |(_, status)| status.as_raw())))
}

/// Splits this process in two; the number of the child, or `None` in the child.
fn fork() -> Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task").within(|| "/proc/self/task")?.count();
    if threads != 1 {
        // A lock that another thread holds would stay locked in the child for ever.
        return Err(Error::new(Kind::Unsupported, "going to the background with several threads"));
    }
    #[expect(unsafe_code, reason = "the standard library cannot fork")]
    // SAFETY: this is the only thread (just counted, and nothing else could start one), so that
    // the child's copy of the process is whole: no lock is held and no invariant is in suspense.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(Error::io(io::Error::last_os_error()).within("starting the server"));
    }
    Ok(Pid::from_raw(pid))
}

#[cfg(test)]
mod tests;
