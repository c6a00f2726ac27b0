//! How mount(8), mount.fuse3(8) and fstab ask for a mount, put in our words.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Mount options that say nothing to us: what mount(8), fstab and systemd use themselves, what
/// holds for every mount of ours, and what has no meaning for one that is never written to.
const MEANINGLESS: [&str; 26] = [
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
pub(in crate::cli) fn from_mount_helper(args: Vec<OsString>) -> Vec<OsString> {
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
        && crate::cli::command()
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
                "ro" => {
                    flags.retain(|flag| flag != "--read-only");
                    flags.push("--read-only".into());
                    continue;
                }
                "rw" => "--read-only",
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
    let command = crate::cli::command();
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
