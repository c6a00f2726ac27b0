//! `strata snapshot rollback`: a disk made equal to a snapshot, in place.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::tz::TimeZone;

use super::bar::Bar;
use super::stores::StoreArgs;
use super::{Outcome, output, stdout, stop_on_signals, text};
use crate::block::{BlockSink, BlockSource, Cache, FileSink, FileSource};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::qcow2::{self, Delta};
use crate::image::{self, Format};
use crate::open::{Opener, Reference, stored};
use crate::policy::Policy;
use crate::store::objects::Location;
use crate::store::{DiskRecord, Progress, Snapshot, Store, Target};

/// Memory for pages of maps and indexes.
const CACHE: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The snapshot: STORE::SERIES, STORE::SERIES@TIME or STORE::ID, and /NAME behind it for one of several disks
    #[arg(value_name = "SNAPSHOT")]
    reference: OsString,

    /// The disk: a block device, or a raw or qcow2 image without a backing file
    #[arg(value_name = "DISK")]
    disk: PathBuf,

    /// Take the disk for this format instead of finding out
    #[arg(long, value_name = "FORMAT", value_parser = super::format_parser())]
    format: Option<Format>,

    /// Only tell how much would be written
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Do not ask first
    #[arg(short, long)]
    yes: bool,

    /// Print neither progress nor summary
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    stores: StoreArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let Reference { path, snapshot } = Reference::from(args.reference.as_os_str());
    let at = Location::parse(path.as_os_str())?;
    let store = stored::store(&at, &args.stores.options(), &Cache::new(CACHE))?;
    let Some(name) = snapshot else {
        let error = Error::new(Kind::Usage, "names no snapshot").within(store.name());
        return Err(error.with_hint(format!("as {}::SERIES", path.display())));
    };
    let (snapshot, record) = store.select(&name).within(|| store.name())?;
    store.trust(&snapshot)?;
    let rollback = Rollback { args, store: &store, record: &record };
    let shown = || args.disk.display().to_string();
    let source = FileSource::open(&args.disk)?;
    let format = match args.format {
        Some(format) => format,
        None => image::probe(&source).within(shown)?,
    };
    let lies_in = |store: &Path| -> Result<bool> {
        let disk = fs::canonicalize(&args.disk).within(shown)?;
        Ok(disk.starts_with(fs::canonicalize(store).within(|| at.to_string())?))
    };
    if let Location::Folder(store) = &at
        && lies_in(store)?
    {
        return Err(Error::new(Kind::Refused, "lies in the store").within(shown()));
    }
    rollback.check(&source, format).within(shown)?;
    if !args.dry_run && !args.yes {
        confirm(args, &snapshot)?;
    }
    let stop = stop_on_signals()?;
    let progress = Progress::default();
    let before = source.len();
    drop(source);
    match (args.dry_run, format) {
        (true, _) => rollback.look(&stop, &progress),
        (false, Format::Raw) => rollback.raw(before, &stop, &progress),
        (false, Format::Qcow2) => rollback.qcow2(&stop, &progress),
    }?;
    if !args.quiet {
        let changed = text::size(progress.stored.load(Ordering::Relaxed));
        let (size, what) =
            (text::size(record.size), if args.dry_run { "differ" } else { "written" });
        let told = format!("{}: {changed} of {size} {what}\n", args.disk.display());
        let mut out = stdout()?;
        output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
    }
    Ok(Outcome::Done)
}

/// Asks whether that is meant.
fn confirm(args: &Args, snapshot: &Snapshot) -> Result<()> {
    if !io::stdin().is_terminal() {
        let error = Error::new(Kind::Usage, "what is on it now would be gone");
        let shown = args.disk.display().to_string();
        return Err(error.within(shown).with_hint("--yes says so; --dry-run tells how much"));
    }
    let time = super::snapshot::local(snapshot.record.time, &TimeZone::system());
    let question = format!(
        "{} becomes what {} was at {time}; what was written since is gone. Go on? [y/N] ",
        text::printable(args.disk.as_os_str().as_encoded_bytes()),
        snapshot.record.series,
    );
    output(io::stderr().write_all(question.as_bytes()))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).within(|| "standard input")?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Error::new(Kind::Usage, "nothing was changed")),
    }
}

struct Rollback<'a> {
    args: &'a Args,
    store: &'a Store,
    record: &'a DiskRecord,
}

impl Rollback<'_> {
    /// Fails for a disk that cannot become the snapshot, or that somebody uses.
    fn check(&self, source: &FileSource, format: Format) -> Result<()> {
        if source.is_device() {
            if format == Format::Qcow2 {
                return Err(Error::new(Kind::Unsupported, "a qcow2 on a device"));
            }
            if source.len() < self.record.size {
                let (has, needs) = (source.len(), self.record.size);
                let message = format!("has {has} bytes, and the snapshot {needs}");
                return Err(Error::new(Kind::NoSpace, message));
            }
            return Ok(());
        }
        if let Some(device) = loop_device(&self.args.disk) {
            let error = Error::new(Kind::Refused, format!("is in use as {device}"));
            return Err(error.with_hint(format!("losetup -d {device} gives it back")));
        }
        if source.has_qemu_writer() {
            let error = Error::new(Kind::Refused, "a running QEMU has it open for writing");
            return Err(error.with_hint("shut the machine down first"));
        }
        if format == Format::Raw {
            return Ok(());
        }
        let image = qcow2::open(Arc::new(FileSource::open(&self.args.disk)?), "")?;
        if let Some(parent) = image.parent() {
            let message = format!("has a backing file, \"{}\"", parent.name.display());
            let error = Error::new(Kind::Unsupported, message);
            return Err(error
                .with_hint("strata convert SNAPSHOT NEW.qcow2 makes an image that stands alone"));
        }
        if image.virtual_size() > self.record.size.next_multiple_of(512) {
            let (has, needs) = (image.virtual_size(), self.record.size);
            let message = format!("shrinking a qcow2, from {has} to {needs} bytes");
            let error = Error::new(Kind::Unsupported, message);
            return Err(error.with_hint("strata convert SNAPSHOT NEW.qcow2 makes a new one"));
        }
        Ok(())
    }

    fn raw(&self, before: u64, stop: &AtomicBool, progress: &Progress) -> Result<()> {
        let size = self.record.size;
        let mut sink = FileSink::open(&self.args.disk)?;
        let is_file = !sink.source().is_device();
        if before < size {
            sink = sink.resized(size)?;
        }
        self.watched(Target::Sink(&sink), stop, progress)?;
        if is_file && before > size {
            sink = sink.resized(size)?;
        }
        sink.flush()
    }

    fn qcow2(&self, stop: &AtomicBool, progress: &Progress) -> Result<()> {
        let sink = Delta::open(&self.args.disk, None, None)?;
        let size = self.record.size.next_multiple_of(512);
        let sink = if sink.len() < size {
            drop(sink);
            Delta::open(&self.args.disk, None, Some(size))?
        } else {
            sink
        };
        let done = self.watched(Target::Sink(&sink), stop, progress);
        let flushed = sink.flush().and_then(|()| sink.close());
        done.and(flushed)
    }

    fn look(&self, stop: &AtomicBool, progress: &Progress) -> Result<()> {
        let mut opener = Opener::new(Policy::default(), Cache::new(CACHE));
        opener.format = self.args.format;
        let reference = Reference { path: self.args.disk.clone(), snapshot: None };
        let disk = opener.disk(&reference)?;
        self.watched(Target::Source(&*disk.source), stop, progress)
    }

    /// Does it, with a progress bar.
    fn watched(&self, target: Target<'_>, stop: &AtomicBool, progress: &Progress) -> Result<()> {
        let hidden = self.args.quiet || !io::stderr().is_terminal();
        let bar = Bar::new(hidden, Some(self.record.size));
        std::thread::scope(|scope| {
            bar.show(scope, || (progress.done.load(Ordering::Relaxed), String::new()));
            let rolled = self.store.roll_back(self.record, target, progress, stop);
            bar.finish();
            rolled.map_err(|error| match target {
                Target::Sink(_) => {
                    error.with_hint("some of it is done; the same command does the rest")
                }
                Target::Source(_) => error,
            })
        })
    }
}

/// The loop device that shows a file, if there is one.
fn loop_device(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let devices = fs::read_dir("/sys/block").ok()?;
    devices.flatten().find_map(|device| {
        let file = fs::read(device.path().join("loop/backing_file")).ok()?;
        let name = device.file_name();
        (file.trim_ascii_end() == path.as_os_str().as_encoded_bytes())
            .then(|| format!("/dev/{}", name.to_string_lossy()))
    })
}
