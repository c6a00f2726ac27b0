//! `strata mount`: serves a reference at a folder, in the background unless asked otherwise.
//!
//! Also what mount(8) and mount.fuse3(8) run for a line of fstab: [`from_mount_helper`] turns
//! their way of asking into ours.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::process::{Pid, WaitOptions};

use super::TreeArgs;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::mount;
use crate::open::Reference;
use crate::open::view::view;

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

/// Serves until unmounted; says so through `ready` once it does.
fn serve(args: &Args, ready: Option<OwnedFd>) -> Result<()> {
    let log = args.log.as_deref().map(open_log).transpose()?;
    let mut reference = Reference::from(args.reference.as_os_str());
    reference.path = absolute(&reference.path)?;
    let mut opener = args.tree.open.opener();
    if let Some(opener) = Arc::get_mut(&mut opener) {
        for path in &mut opener.policy.allow_paths {
            *path = absolute(path)?;
        }
    }
    let shown = view(&opener, &reference, args.tree.view)?;
    super::warn(&shown.warnings);
    let options = mount::Options {
        allow_other: args.allow_other,
        suid: args.suid,
        dev: args.dev,
        noexec: args.noexec,
        default_permissions: args.default_permissions,
        background: ready.is_some(),
        threads: args.threads.unwrap_or(0).into(),
        name: name(&reference),
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
    mounted.wait()
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

/// What the table of mounts shows as the source.
fn name(reference: &Reference) -> String {
    let path = reference.path.to_string_lossy();
    match &reference.snapshot {
        Some(snapshot) => format!("{path}::{snapshot}"),
        None => path.into_owned(),
    }
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

/// Mount options that say nothing to us: what mount(8), fstab and systemd use themselves, what
/// holds for every mount of ours, and what has no meaning for one that is never written to.
const MEANINGLESS: [&str; 28] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "defaults",
    "diratime",
    "dirsync",
    "exec",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodiratime",
    "nofail",
    "nolazytime",
    "nomand",
    "norelatime",
    "nouser",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "sync",
];

/// The same with a value, or with one of several.
const MEANINGLESS_PREFIXES: [&str; 6] = ["x-", "X-", "comment=", "user", "fsname=", "subtype="];

/// Rewrites how others ask for a mount into `strata mount`, and `-o` into long options.
///
/// - `mount.fuse.strata REF DIR [-sfnv] [-o OPTIONS]`, by the name of a link in `/sbin`, is what
///   mount(8) runs for a mount of type `fuse.strata`;
/// - `strata REF DIR -o OPTIONS` is what mount.fuse3(8) runs for it, which adds `dev,suid` to what
///   root asks for without being told to: these two then count for nothing;
/// - `strata mount REF DIR -o OPTIONS` is what a person may write.
///
/// The option `cache_size=64M` becomes `--cache-size=64M`; what is unknown is so to the command
/// line, too. Anything else passes unchanged.
pub(super) fn from_mount_helper(args: Vec<OsString>) -> Vec<OsString> {
    let program = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    if program == "mount.fuse.strata" || program == "mount.strata" {
        return helper(&args);
    }
    match args.as_slice() {
        [_, reference, dir, option, options] if option == "-o" && is_reference(reference) => {
            let flags = Flags { sloppy: false, modest: true };
            command(flags.of(options), [reference, dir])
        }
        _ => match args.iter().skip(1).position(|arg| !arg.as_bytes().starts_with(b"-")) {
            Some(at) if args[at + 1] == "mount" => written_out(&args, at + 2),
            _ => args,
        },
    }
}

/// Whether a first argument cannot be meant for us as a command.
fn is_reference(arg: &OsStr) -> bool {
    !arg.as_bytes().starts_with(b"-")
        && arg != "help"
        && super::command()
            .get_subcommands()
            .all(|known| known.get_name_and_visible_aliases().iter().all(|name| arg != *name))
}

fn command<'a>(
    flags: Vec<OsString>,
    operands: impl IntoIterator<Item = &'a OsString>,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["strata".into(), "mount".into()];
    args.extend(flags);
    args.push("--".into());
    args.extend(operands.into_iter().cloned());
    args
}

/// `mount.fuse.strata SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` (mount(8))
fn helper(args: &[OsString]) -> Vec<OsString> {
    let mut operands = Vec::new();
    let mut options = Vec::new();
    let mut flags = Flags { sloppy: false, modest: false };
    let mut fake = false;
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        match arg.as_bytes() {
            b"-o" => options.extend(rest.next()),
            b"-t" | b"-N" => drop(rest.next()),
            [b'-', letters @ ..]
                if !letters.is_empty() && letters.iter().all(|letter| b"sfnv".contains(letter)) =>
            {
                flags.sloppy |= letters.contains(&b's');
                fake |= letters.contains(&b'f');
            }
            _ => operands.push(arg),
        }
    }
    let options: Vec<_> = options.iter().map(|list| list.as_bytes()).collect();
    let mut long = flags.of(OsStr::from_bytes(&options.join(&b","[..])));
    if fake {
        long.push("--fake".into());
    }
    command(long, operands)
}

/// The arguments from `at` on with each `-o` written out.
fn written_out(args: &[OsString], at: usize) -> Vec<OsString> {
    let flags = Flags { sloppy: false, modest: false };
    let mut out = args[..at].to_vec();
    let mut rest = args[at..].iter();
    while let Some(arg) = rest.next() {
        let list = match arg.as_bytes() {
            b"--" => {
                out.push(arg.clone());
                out.extend(rest.cloned());
                break;
            }
            b"-o" | b"--options" => rest.next().map(OsString::as_os_str),
            [b'-', b'o', attached @ ..] => Some(OsStr::from_bytes(attached)),
            long => long.strip_prefix(b"--options=").map(OsStr::from_bytes),
        };
        match list {
            Some(list) => out.extend(flags.of(list)),
            None => out.push(arg.clone()),
        }
    }
    out
}

/// How a list of mount options becomes long options.
#[derive(Debug, Clone, Copy)]
struct Flags {
    /// Leave out what is unknown.
    sloppy: bool,
    /// Leave out `dev` and `suid`.
    modest: bool,
}

impl Flags {
    fn of(self, list: &OsStr) -> Vec<OsString> {
        let mut flags: Vec<OsString> = Vec::new();
        for option in split(list.as_bytes()) {
            let text = String::from_utf8_lossy(&option);
            let opposite = match text.as_ref() {
                "nosuid" => "--suid",
                "nodev" => "--dev",
                "suid" | "dev" if self.modest => continue,
                "" => continue,
                _ if MEANINGLESS.contains(&text.as_ref()) => continue,
                _ if MEANINGLESS_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) => continue,
                _ => {
                    flags.extend(self.long(&option));
                    continue;
                }
            };
            flags.retain(|flag| flag != opposite);
        }
        flags
    }

    /// `allow_path=/x` is `--allow-path=/x`.
    fn long(self, option: &[u8]) -> Option<OsString> {
        let end = option.iter().position(|&byte| byte == b'=').unwrap_or(option.len());
        let (name, value) = option.split_at(end);
        let name = String::from_utf8_lossy(name).replace('_', "-");
        if self.sloppy && !is_known(&name) {
            return None;
        }
        let mut flag = format!("--{name}").into_bytes();
        flag.extend_from_slice(value);
        Some(OsString::from_vec(flag))
    }
}

fn is_known(name: &str) -> bool {
    let command = super::command();
    let mount = command.find_subcommand("mount");
    mount.is_some_and(|mount| mount.get_arguments().any(|arg| arg.get_long() == Some(name)))
}

/// The options of a list: apart at commas, but for those that a backslash stands before.
fn split(list: &[u8]) -> Vec<Vec<u8>> {
    let mut options = vec![Vec::new()];
    let mut bytes = list.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, options.last_mut()) {
            (b',', _) => options.push(Vec::new()),
            (b'\\', Some(option)) => match bytes.next() {
                Some(b',') => option.push(b','),
                Some(&other) => option.extend([b'\\', other]),
                None => option.push(b'\\'),
            },
            (byte, Some(option)) => option.push(byte),
            (_, None) => {}
        }
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(args: &[&str]) -> Vec<String> {
        from_mount_helper(args.iter().map(Into::into).collect())
            .into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_line_of_fstab_becomes_a_command() {
        assert_eq!(
            rewritten(&[
                "/sbin/mount.fuse.strata",
                "disk.qcow2::a b",
                "/mnt",
                "-n",
                "-sv",
                "-o",
                "rw,noauto,nofail,_netdev,x-systemd.automount,user=joe,allow_other,view=disk,\
                 cache_size=64M,allow_path=/a\\,b,frobnicate=1,suid,dev,nodev",
            ]),
            [
                "strata",
                "mount",
                "--allow-other",
                "--view=disk",
                "--cache-size=64M",
                "--allow-path=/a,b",
                "--suid",
                "--",
                "disk.qcow2::a b",
                "/mnt",
            ]
        );
        assert_eq!(
            rewritten(&["mount.fuse.strata", "-f", "-t", "fuse.strata", "-", "/mnt"]),
            ["strata", "mount", "--fake", "--", "-", "/mnt"]
        );
    }

    #[test]
    fn an_unknown_option_is_left_for_the_command_line_to_refuse() {
        assert_eq!(
            rewritten(&["mount.strata", "a", "/mnt", "-o", "frob_nicate=1,allow_root"]),
            ["strata", "mount", "--frob-nicate=1", "--allow-root", "--", "a", "/mnt"]
        );
    }

    #[test]
    fn what_mount_fuse_adds_for_root_does_not_open_the_mount() {
        assert_eq!(
            rewritten(&["strata", "disk.img", "/mnt", "-o", "ro,format=raw,dev,suid"]),
            ["strata", "mount", "--format=raw", "--", "disk.img", "/mnt"]
        );
    }

    #[test]
    fn a_person_may_write_mount_options_too() {
        assert_eq!(
            rewritten(&[
                "strata",
                "-v",
                "mount",
                "-oro,suid",
                "a",
                "b",
                "--options=dev",
                "-o",
                "noexec"
            ]),
            ["strata", "-v", "mount", "--suid", "a", "b", "--dev", "--noexec"]
        );
        assert_eq!(
            rewritten(&["strata", "mount", "--", "-o", "b"]),
            ["strata", "mount", "--", "-o", "b"]
        );
    }

    #[test]
    fn other_commands_pass_unchanged() {
        for args in [
            &["strata"][..],
            &["strata", "ls", "a", "-o", "b"],
            &["strata", "unmount", "a", "-o", "b"],
            &["strata", "a", "b"],
            &["strata", "--help", "a", "-o", "b"],
        ] {
            assert_eq!(rewritten(args), args);
        }
    }
}
