//! The command line: what there is to type, and how outcomes are told.
//!
//! Standard output carries what was asked for and nothing else; warnings, errors and progress go
//! to standard error. The exit status is 0 if all went well, 1 if something failed, 2 if the
//! command line made no sense, and 75 (try again later) if somebody else is at it.

mod bar;
mod boot;
mod cache;
mod cat;
mod commit;
mod completions;
mod convert;
mod copy;
mod diff;
mod info;
mod input;
mod keys;
pub mod ls;
mod man;
mod mount;
mod partial;
pub mod restore;
mod rollback;
mod schedule;
mod secrets;
mod sign;
mod snapshot;
mod store;
mod store_copy;
mod stores;
mod tag;
mod text;
mod unmount;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::block::Cache;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::Format;
use crate::oci::cache::LayerCache;
use crate::oci::prepare::Progress;
use crate::oci::{self, Platform, registry};
use crate::open::cow::{Cow, Purpose};
use crate::open::view::{self, Shown, View};
use crate::open::{Opener, layered, stored};
use crate::policy::Policy;
use crate::store::objects::Location;
use crate::tree::FileTree;
use bar::Bar;
use stores::StoreArgs;

/// Mount any disk image, snapshot chain or container image, look into it, and restore files from it.
///
/// REF names what to open: a disk image or block device (disk.qcow2, /dev/vdb), an internal
/// snapshot of an image (disk.qcow2::before-upgrade), a snapshot of a store (STORE::web01,
/// STORE::web01@2026-11-22, STORE::1f3a9c), all snapshots of a store (STORE), or a container image (oci:DIR:TAG,
/// oci-archive:FILE, docker-archive:FILE, docker://HOST/NAME:TAG, rootfs.tar.gz). Images are only ever read: changes, where they
/// are wanted, go beside them (--cow).
#[derive(Debug, Parser)]
#[command(name = "strata", version, max_term_width = 100)]
#[command(arg_required_else_help = true, disable_help_subcommand = true)]
#[command(after_help = "Example: strata ls -l disk.qcow2 /etc")]
struct Cli {
    /// Tell more on standard error; twice for all details
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount an image, or all snapshots of a store, on a folder
    ///
    /// A store shows a folder for each series, in it one for each snapshot, named by its time in UTC, and latest,
    /// which leads to the newest. Snapshots are opened when they are entered; new ones appear and removed ones
    /// disappear while it is mounted.
    Mount(mount::Args),
    /// Unmount what strata mounted
    #[command(visible_alias = "umount")]
    Unmount(unmount::Args),
    /// Tell what an image is and what lies on it
    Info(info::Args),
    /// List files in an image
    Ls(ls::Args),
    /// Write files in an image to standard output
    Cat(cat::Args),
    /// Copy files and folders out of an image, exactly as they were
    ///
    /// Each PATH is restored into DIR under its own last name: /etc becomes DIR/etc. A PATH that ends
    /// in a slash restores what is in the folder: /etc/ puts passwd at DIR/passwd, and / puts the whole
    /// tree into DIR. Links given as PATH are restored as links.
    ///
    /// Owner, mode, times, extended attributes, hard links and holes are as they were. Setuid and
    /// setgid bits, devices, and security.* and trusted.* attributes need --privileged; owners need
    /// root. DIR itself keeps its own.
    ///
    /// A file has its name only once it is whole. If a restore is interrupted, the same command
    /// finishes the rest. Files that are there already and are the same are left; files that differ
    /// are only replaced with --overwrite. A symbolic link in the way is replaced, never followed.
    Restore(restore::Args),
    /// Tell what differs between two images, snapshots or states of one
    ///
    /// A line for each file: A for added, D for removed, T for one that became something else, M for one
    /// that changed, with what of it did: contents, size, target, device, mode, owner, times
    /// (of modification), xattrs. Folders come before what is in them, names as bytes compare.
    ///
    /// Contents are read only of files of equal size whose bytes do not lie in the same place of the
    /// same image: what two snapshots or two disks of one chain share is known to be equal. With --cow, it
    /// tells what a delta or an upper changed.
    Diff(diff::Args),
    /// Turn a delta into a new image or layer, or an upper into a folder, a tar or a container image
    ///
    /// Of a delta, or any other disk image, the whole disk is written into a new qcow2 that stands alone;
    /// holes and zeros take no room in it. With --layer it holds only what the delta does, and has the
    /// same backing file; with --above BACKING, what all layers above that one hold together.
    ///
    /// Of an upper (a folder in the form of the kernel's overlayfs) the changes are written into a folder or,
    /// if its name ends in .tar, .tar.gz, .tgz or .tar.zst, a tar in the form of a container image's
    /// layer: .wh.NAME stands for what was removed, .wh..wh..opq for all that a folder hides.
    /// Where the upper holds only part of a file or has renamed folders, --cow UPPER/ REF brings in what
    /// lies below.
    ///
    /// With --to oci:DIR:NAME the changes become one more layer of the container image REF that the upper lies
    /// over: a new image NAME in the OCI layout DIR, which is made if it is not there. Its lower layers are
    /// the same blobs, copied only if DIR lacks them. Without REF it is the image NAME itself that gets the
    /// layer. skopeo copies it on, to a registry or anywhere else.
    ///
    /// What is made has its name only once it is whole and on stable storage.
    Commit(commit::Args),
    /// Write a disk out as a raw or qcow2 image that stands alone
    ///
    /// The whole disk, whatever it is: an image with all images below it, a snapshot, a disk below the changes of
    /// a delta. What is zeros takes no room: raw images are sparse, qcow2 clusters are left out.
    ///
    /// OUT has its name only once it is whole and on stable storage; - is standard output, and gets raw bytes.
    /// A block device is written in place, if --overwrite says so.
    Convert(convert::Args),
    /// Start a virtual machine from an image, and throw away or keep what it writes
    ///
    /// The image is never written: what the machine writes goes to a temporary file, or to the one named
    /// with --cow. Its console is this terminal; Ctrl-A X ends the machine at once, and Ctrl-C reaches
    /// the guest. This needs QEMU, and is it from then on: its exit status is QEMU's, and signals
    /// go to it. All machines started from one image share one cache.
    ///
    /// QEMU's own options come last, after --.
    Boot(boot::Args),
    /// Make snapshots of disks in a store, list and remove them
    ///
    /// The first snapshot of a series is full, later ones hold only what changed. Each reads as a whole disk by
    /// itself, as STORE::SERIES, and any one can be removed without harm to the others.
    Snapshot(snapshot::Args),
    /// Make a store for snapshots, look for damage in it, repair it
    Store(store::Args),
    /// Tell what is kept of container images, or remove it
    Cache(cache::Args),
    /// Print a shell's completion script
    Completions(completions::Args),
    /// Print the manual page, or write all of them into a folder
    Man(man::Args),
}

/// How to open a reference.
#[derive(Debug, Args)]
#[command(next_help_heading = "Opening")]
pub(crate) struct OpenArgs {
    /// Take the image for this format instead of finding out
    #[arg(long, value_name = "FORMAT", value_parser = format_parser())]
    format: Option<Format>,

    /// Also let the image refer to files in this folder [default: only the image's own folder]
    #[arg(long, value_name = "DIR", conflicts_with = "no_backing")]
    allow_path: Vec<PathBuf>,

    /// Take backing files for this format where the image does not say theirs
    #[arg(long, value_name = "FORMAT", value_parser = format_parser())]
    backing_format: Option<Format>,

    /// Open the named image alone and refuse one that needs other files
    #[arg(long)]
    no_backing: bool,

    /// Memory for decoded and cached blocks (K, M and G are powers of 1024)
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = parse_size)]
    cache_size: u64,

    /// Of an image for several platforms, the one for this: linux/arm64 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", help_heading = "Layered images")]
    platform: Option<Platform>,

    /// Take any certificate of a registry, and plain HTTP
    #[arg(long, help_heading = "Layered images")]
    insecure: bool,

    /// What indexes and layers from registries may take in the cache folder
    ///
    /// The folder is $STRATA_CACHE_DIR, else stratafs in $XDG_CACHE_HOME or ~/.cache; without HOME, in
    /// $CACHE_DIRECTORY or the home folder of /etc/passwd. strata cache shows what is in it.
    #[arg(long, value_name = "SIZE", default_value = "16G", value_parser = parse_size)]
    #[arg(help_heading = "Layered images")]
    layer_cache_size: u64,

    #[command(flatten)]
    stores: StoreArgs,
}

/// How to open a reference as files.
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    #[command(flatten)]
    open: OpenArgs,

    /// What to show: auto, files, volumes, disk, snapshots or layers
    ///
    /// files: the operating system's own tree, or the one filesystem there is. volumes: one folder
    /// per volume. disk: disk.img and one .img per volume. snapshots: one folder per internal
    /// snapshot. layers: one folder per layer of a layered image. auto: the first that fits.
    #[arg(long, value_name = "VIEW", default_value = "auto", value_parser = view_parser())]
    #[arg(help_heading = "Opening")]
    view: View,

    /// With the changes in this delta (a qcow2 file) or upper (a folder)
    ///
    /// A file is a qcow2 overlay of the disk; what ends in a slash or is a folder is an upper in the
    /// form of the kernel's overlayfs.
    #[arg(long, value_name = "PATH", help_heading = "Changes")]
    cow: Option<PathBuf>,

    /// A folder for what is not finished, beside the upper [default: .NAME.work]
    #[arg(long, value_name = "DIR", help_heading = "Changes", requires = "cow")]
    work: Option<PathBuf>,
}

fn format_parser() -> impl TypedValueParser<Value = Format> {
    PossibleValuesParser::new(["raw", "qcow2"]).try_map(|name| name.parse::<Format>())
}

pub(crate) fn view_parser() -> impl TypedValueParser<Value = View> {
    PossibleValuesParser::new(View::ALL.map(View::name)).try_map(|name| name.parse::<View>())
}

/// A size in bytes, with an optional unit of 1024: `64M`, `1GiB`, `4096`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB") {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("expected a number with K, M, G or T".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number with K, M, G or T")?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

impl OpenArgs {
    /// The same options for another process of ours, which may be in another folder.
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = vec![OsString::from(format!("--cache-size={}", self.cache_size))];
        let formats = [("--format", self.format), ("--backing-format", self.backing_format)];
        for (name, format) in formats {
            arguments.extend(format.map(|format| format!("{name}={format}").into()));
        }
        for path in &self.allow_path {
            // One that cannot be made absolute cannot be opened either, which is told there.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let mut argument = OsString::from("--allow-path=");
            argument.push(path);
            arguments.push(argument);
        }
        if self.no_backing {
            arguments.push("--no-backing".into());
        }
        arguments.extend(self.stores.arguments());
        arguments
    }

    /// What opens references as these options say.
    pub(crate) fn opener(&self) -> Arc<Opener> {
        self.opener_until(Arc::default())
    }

    /// The same, which gives up reading layers once `stop` is set.
    fn opener_until(&self, stop: Arc<AtomicBool>) -> Arc<Opener> {
        self.opener_beside(stop, Vec::new())
    }

    /// The same where these stores were named, too.
    fn opener_beside(&self, stop: Arc<AtomicBool>, named: Vec<Location>) -> Arc<Opener> {
        Arc::new(Opener {
            format: self.format,
            policy: Policy {
                allow_paths: self.allow_path.clone(),
                no_backing: self.no_backing,
                backing_format: self.backing_format,
                ..Policy::default()
            },
            layered: layered::Options {
                image: oci::Options {
                    platform: self.platform.clone(),
                    registry: registry::Options { insecure: self.insecure, ..Default::default() },
                },
                cache_dir: LayerCache::user_dir(),
                cache_limit: self.layer_cache_size,
                progress: Arc::new(Progress { stop, ..Progress::default() }),
            },
            stores: stored::Options { named, ..self.stores.options() },
            cache: Cache::new(self.cache_size),
        })
    }
}

impl TreeArgs {
    /// Where changes go, or come from.
    fn cow(&self, size: Option<u64>) -> Option<Cow> {
        let path = self.cow.clone()?;
        let is_folder = path.as_os_str().as_encoded_bytes().ends_with(b"/") || path.is_dir();
        Some(if is_folder {
            Cow::Upper { dir: path, work: self.work.clone() }
        } else {
            Cow::Delta { path, size }
        })
    }

    /// Opens `reference` as files, with its changes to be read, telling what there is to warn about.
    pub(crate) fn tree(&self, reference: &OsStr) -> Result<Files> {
        self.files(&self.open.opener(), reference, self.view, true)
    }

    /// The same in another view or without the changes.
    fn files(
        &self,
        opener: &Arc<Opener>,
        reference: &OsStr,
        as_view: View,
        changed: bool,
    ) -> Result<Files> {
        let cow = self.cow(None).filter(|_| changed);
        let cow = cow.as_ref().map(|cow| (cow, Purpose::Read));
        let shown = show(opener, reference, as_view, cow)?;
        warn(&shown.warnings);
        Ok(Files { tree: shown.tree.files(), no_files: shown.no_files })
    }
}

/// Opens `reference` and shows it as `as_view`, with a progress bar where layers have to be read.
fn show(
    opener: &Arc<Opener>,
    reference: &OsStr,
    as_view: View,
    cow: Option<(&Cow, Purpose)>,
) -> Result<Shown> {
    watched(opener, || view::show(opener, reference, as_view, cow))
}

/// Does what may have to read layers, with a progress bar.
fn watched<T>(opener: &Opener, open: impl FnOnce() -> T) -> T {
    let progress = &opener.layered.progress;
    let bar = Bar::new(!io::stderr().is_terminal(), Some(0));
    std::thread::scope(|scope| {
        bar.show(scope, || {
            bar.set_total(progress.total.load(Ordering::Relaxed));
            (progress.done.load(Ordering::Relaxed), String::new())
        });
        let opened = open();
        bar.finish();
        opened
    })
}

/// The files of a reference.
#[derive(Debug)]
pub(crate) struct Files {
    tree: Arc<dyn FileTree>,
    /// Why they are those of the disk view, if nobody asked for it.
    no_files: Option<Error>,
}

impl Files {
    /// What failed, told to somebody who expected the files of a system: where they cannot be read,
    /// that is why nothing was found.
    pub(crate) fn explain(&self, error: Error) -> Error {
        match &self.no_files {
            Some(why) if matches!(error.kind(), Kind::NotFound | Kind::NotADirectory) => {
                why.again().within(format!("{error}, as only the disk itself is shown")).with_hint(
                    "strata info tells what lies on the disk; disk.img has its bytes, for the \
                     filesystem's own tools to repair in a copy",
                )
            }
            _ => error,
        }
    }
}

impl std::ops::Deref for Files {
    type Target = dyn FileTree;

    fn deref(&self) -> &Self::Target {
        &*self.tree
    }
}

/// What SIGINT and SIGTERM set; the second of them ends the process at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
            .within(|| "cannot watch for signals")?;
    }
    Ok(stop)
}

/// The exit status of what somebody else is doing just now: `EX_TEMPFAIL` of `sysexits.h`.
const BUSY: u8 = 75;

/// Runs the program with these arguments, the first of which is its own name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = mount::from_mount_helper(args.into_iter().collect());
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log(cli.verbose);
    let outcome = match &cli.command {
        Command::Mount(args) => mount::run(args).map(|()| Outcome::Done),
        Command::Unmount(args) => unmount::run(args).map(|()| Outcome::Done),
        Command::Info(args) => info::run(args),
        Command::Ls(args) => ls::run(args),
        Command::Cat(args) => cat::run(args),
        Command::Restore(args) => restore::run(args),
        Command::Commit(args) => commit::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Boot(args) => boot::run(args).map(|()| Outcome::Done),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Store(args) => store::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    };
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Partly) => ExitCode::FAILURE,
        Ok(Outcome::Trouble) => ExitCode::from(2),
        Ok(Outcome::Busy) => ExitCode::from(BUSY),
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&error);
            ExitCode::from(if error.kind() == Kind::Usage { 2 } else { 1 })
        }
    }
}

fn command() -> clap::Command {
    Cli::command()
}

fn start_log(verbose: u8) {
    let level = ["warn", "info", "debug"].get(usize::from(verbose)).unwrap_or(&"trace");
    let mut log = env_logger::Builder::new();
    log.parse_filters(level);
    if let Ok(filters) = std::env::var("STRATA_LOG") {
        log.parse_filters(&filters);
    }
    log.format(|out, record| {
        if crate::mount::answers_nobody(record) {
            return Ok(());
        }
        let level = match record.level() {
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            log::Level::Info | log::Level::Debug | log::Level::Trace => "",
        };
        writeln!(out, "strata: {level}{}", record.args())
    });
    // A second start can only come from a test that calls `main` twice.
    let _ = log.try_init();
}

/// Tells what clap found wrong the way every other error is told; help goes to standard output.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let message: Vec<&str> =
        text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    let mut told = Error::new(Kind::Usage, message.join(" "));
    let suggested = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand];
    let suggestion = suggested.iter().find_map(|kind| match error.get(*kind) {
        Some(ContextValue::String(one)) => Some(one.clone()),
        Some(ContextValue::Strings(some)) => some.first().cloned(),
        _ => None,
    });
    told = match suggestion {
        Some(suggestion) => told.with_hint(format!("did you mean {suggestion}?")),
        None => told.with_hint("strata --help and strata COMMAND --help tell what there is"),
    };
    tell(&told);
    ExitCode::from(2)
}

fn is_broken_pipe(error: &Error) -> bool {
    let cause = error.cause::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// One line for what failed, and one for what to do about it.
fn tell(error: &Error) {
    let mut text = format!("strata: {error}\n");
    if let Some(hint) = error.hint() {
        text.push_str("hint: ");
        text.push_str(&text::printable(hint.as_bytes()));
        text.push('\n');
    }
    // With standard error gone there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// One line for each thing an operator should know.
fn warn(warnings: &[String]) {
    for warning in warnings {
        let line = format!("strata: warning: {}\n", text::printable(warning.as_bytes()));
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Standard output, written in large pieces. Must be flushed: an error on the way out counts.
pub(crate) fn stdout() -> Result<BufWriter<File>> {
    let fd = io::stdout().as_fd().try_clone_to_owned().within(|| "standard output")?;
    Ok(BufWriter::with_capacity(64 << 10, File::from(fd)))
}

/// An error of standard output.
pub(crate) fn output(result: io::Result<()>) -> Result<()> {
    result.within(|| "standard output")
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// All is done.
    Done,
    /// Something failed and was told; the rest is done. Or, if that was asked: something differs.
    Partly,
    /// It failed, and was told, where 1 means something else.
    Trouble,
    /// Nothing was done, as somebody else is at it, and that was told.
    Busy,
}

/// Tells failures that concern one file while the rest goes on.
#[derive(Debug, Default)]
struct Failures {
    any: bool,
}

impl Failures {
    fn tell(&mut self, error: &Error) {
        self.any = true;
        tell(error);
    }

    fn outcome(&self) -> Outcome {
        if self.any { Outcome::Partly } else { Outcome::Done }
    }
}

#[cfg(test)]
mod tests;
