//! `strata snapshot`: snapshots of disks in a store.

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use super::bar::Bar;
use super::secrets::signing_key;
use super::sign::Signed;
use super::store::{write_facts, write_json, write_json_lines, write_rows};
use super::stores::{StoreArgs, location_parser};
use super::{
    OpenArgs, Outcome, input, output, rollback, schedule, sign, stdout, stop_on_signals, tag, text,
    warn,
};
use crate::block::Cache;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::stored::{self, Stored};
use crate::open::{Opener, Reference};
use crate::store::objects::Location;
use crate::store::{
    Decision, DiskSource, Keep, NewDisk, NewSnapshot, Progress, Reading, Snapshot, Store,
    check_name,
};

/// Digits of an id that are shown: enough to tell snapshots apart, and to be typed.
const DIGITS: usize = 12;

/// Options of `strata snapshot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata snapshot create /srv/snapshots web01 disk.qcow2")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a snapshot of a disk, or of several at once
    ///
    /// Each disk is anything strata opens as one. It must not be written meanwhile: a running machine is to be
    /// frozen, or a snapshot of its disk taken first. The snapshot exists once this ends, or not at all.
    Create(Box<Create>),
    /// List snapshots, the oldest first
    List {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// Only those of this series
        series: Option<String>,

        /// One JSON object a line (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Tell all there is to tell of a snapshot
    Show {
        /// The snapshot: STORE::SERIES, STORE::SERIES@TIME or STORE::ID
        #[arg(value_name = "SNAPSHOT")]
        reference: OsString,

        /// One JSON object (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Sign snapshots that are there
    Sign {
        /// The snapshots: STORE::SERIES, STORE::SERIES@TIME or STORE::ID
        #[arg(value_name = "SNAPSHOT", required = true)]
        references: Vec<OsString>,

        /// The key: a PEM file, of strata snapshot generate-key or openssl genpkey -algorithm ed25519
        #[arg(long, value_name = "FILE", help_heading = "Signatures")]
        sign_key: PathBuf,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Make a key that signs snapshots: FILE, and FILE.pub for those who are to trust it
    GenerateKey {
        /// The new file
        #[arg(value_name = "FILE")]
        path: PathBuf,
    },
    /// Give snapshots tags, or take them away
    ///
    /// A snapshot with other tags has another id. One that is signed has to be signed anew.
    Tag(tag::Args),
    /// Remove snapshots
    ///
    /// Others are not harmed, whichever they were made from. What no snapshot needs any more takes its room until
    /// `strata store collect` gives it back.
    Remove {
        /// The snapshots: STORE::ID, or STORE::SERIES@TIME
        #[arg(value_name = "SNAPSHOT", required = true)]
        references: Vec<OsString>,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Remove the snapshots that no rule keeps, of each series by itself
    ///
    /// Of each hour, day, week, month or year the newest snapshot counts, by this machine's calendar; periods
    /// without a snapshot do not count.
    Prune(Prune),
    /// Do what a schedule needs, as a file says: make snapshots, copy them, remove old ones, give back their room
    ///
    /// One series that fails does not keep the others from being made. The exit status is 1 if anything failed, and 75 if
    /// another run of the same file is not over yet; then nothing is done. docs/schedule.md has a whole example, and
    /// units for systemd.
    Run(schedule::Args),
    /// Make a disk what it was in a snapshot, by writing only what differs
    ///
    /// The disk is read and compared by hashes: what is equal is neither fetched nor written. A raw file gets the
    /// snapshot's size; what lies behind it on a larger device is left alone. Nobody may use the disk
    /// meanwhile: a device that is mounted, or an image that QEMU has open, is refused. If it is interrupted, the
    /// same command does the rest.
    Rollback(rollback::Args),
}

#[derive(Debug, clap::Args)]
struct Prune {
    /// The store
    #[arg(value_name = "STORE", value_parser = location_parser())]
    at: Location,

    /// Only this series
    series: Option<String>,

    /// Keep the newest N
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_last: usize,

    /// Keep one for each of N hours
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_hourly: usize,

    /// Keep one for each of N days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: usize,

    /// Keep one for each of N weeks
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: usize,

    /// Keep one for each of N months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: usize,

    /// Keep one for each of N years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: usize,

    /// Keep what is no more than this older than the newest: 30d, 12h, 1y2mo
    #[arg(long, value_name = "TIME")]
    keep_within: Option<Span>,

    /// Keep what has this tag
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,

    /// Only tell what would become of each, and why
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// One JSON object a line for each snapshot: it, and the rules that keep it (docs/json.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    stores: StoreArgs,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// The store
    #[arg(value_name = "STORE", value_parser = location_parser())]
    at: Location,

    /// Which series it belongs to, such as the name of the machine
    series: String,

    /// The disk; several may be given, as NAME=REF, and are one snapshot; - for a raw disk on standard input
    #[arg(value_name = "REF", required = true)]
    disks: Vec<OsString>,

    /// Give it a tag
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,

    /// Of when it is [default: now]
    #[arg(long, value_name = "TIME")]
    time: Option<Timestamp>,

    /// Compare with this snapshot instead of the newest of the series
    #[arg(long, value_name = "ID")]
    parent: Option<String>,

    /// Read all of the disks, even what the parent was made of and nobody wrote since
    #[arg(long)]
    read_all: bool,

    /// Go on where an attempt was interrupted, although nothing tells that the disk did not change since
    ///
    /// Of image files it is seen whether anybody wrote them since, and this happens by itself. Of a device nobody
    /// can see that: say it of one that is not written, such as a snapshot of a volume.
    #[arg(long, conflicts_with = "read_all")]
    resume: bool,

    /// Sign it with this key: a PEM file, of strata snapshot generate-key or openssl genpkey -algorithm ed25519
    #[arg(long, value_name = "FILE", help_heading = "Signatures")]
    sign_key: Option<PathBuf>,

    /// Print the new snapshot as one JSON object (docs/json.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    open: OpenArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    match &args.command {
        Command::Create(args) => create(args),
        Command::List { at, series, json, stores } => list(at, stores, series.as_deref(), *json),
        Command::Show { reference, json, stores } => show(reference, stores, *json),
        Command::Sign { references, sign_key, stores } => sign::sign(references, sign_key, stores),
        Command::GenerateKey { path } => sign::generate_key(path),
        Command::Remove { references, stores } => remove(references, stores),
        Command::Prune(args) => prune(args),
        Command::Run(args) => schedule::run(args),
        Command::Tag(args) => tag::run(args),
        Command::Rollback(args) => rollback::run(args),
    }
}

fn create(args: &Create) -> Result<Outcome> {
    check_name("series", &args.series)?;
    args.tags.iter().try_for_each(|tag| check_name("tag", tag))?;
    let stop = stop_on_signals()?;
    let sign = args.sign_key.as_deref().map(signing_key).transpose()?.map(Arc::new);
    let opener = args.open.opener_beside(Arc::clone(&stop), vec![args.at.clone()]);
    let store = stored::store(&args.at, &opener.stores, &opener.cache)?;
    let parent = match &args.parent {
        Some(parent) => Some(store.select_any(parent).within(|| store.name())?),
        None => newest(&store, &args.series)?,
    };
    let mut disks: Vec<NewDisk> = Vec::new();
    for text in &args.disks {
        let (name, reference) = named_disk(text, args.disks.len() == 1);
        check_name("disk", &name)?;
        if disks.iter().any(|disk| disk.name == name) {
            let error = Error::new(Kind::Usage, format!("two disks are called \"{name}\""));
            return Err(error.with_hint("give each a name: NAME=REF"));
        }
        let reference = match reference.path.as_os_str() == "-" {
            false => reference,
            true => match input::file() {
                Some(path) => Reference { path, ..reference },
                None if disks.iter().any(|disk| disk.size().is_none()) => {
                    return Err(Error::new(Kind::Usage, "standard input is one disk, not two"));
                }
                None => {
                    let is_stopped = || stop.load(Ordering::Relaxed);
                    let source = DiskSource::Stream(input::disk(args.open.format, is_stopped)?);
                    disks.push(NewDisk { name, source, layers: Vec::new() });
                    continue;
                }
            },
        };
        disks.push(new_disk(&opener, name, &reference)?);
    }
    let new = NewSnapshot {
        series: args.series.clone(),
        time: args.time.unwrap_or_else(Timestamp::now),
        tags: args.tags.clone(),
        parent,
        source: args.disks.iter().map(|disk| disk.to_string_lossy()).collect::<Vec<_>>().join(" "),
        host: host(),
        sign,
        reading: Reading { all: args.read_all, resume: args.resume, ..Reading::default() },
        disks,
    };
    let snapshot = watched(&store, new, stop)?;
    if args.json {
        write_json(&snapshot)?;
        return Ok(Outcome::Done);
    }
    let mut out = stdout()?;
    output(writeln!(out, "{}", summary(&snapshot)).and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}

/// Opens a disk that a snapshot is to be made of.
pub(super) fn new_disk(opener: &Opener, name: String, reference: &Reference) -> Result<NewDisk> {
    let disk = opener.disk(reference)?;
    warn(&disk.warnings);
    // Another snapshot of an image lies in the same file.
    let is_told = reference.snapshot.is_none();
    let layers = if is_told { disk.source_layers()? } else { Vec::new() };
    Ok(NewDisk { name, source: DiskSource::Image(disk.source), layers })
}

/// What this machine is called.
pub(super) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// A new snapshot, in a line.
pub(super) fn summary(snapshot: &Snapshot) -> String {
    let stored: u64 = snapshot.record.disks.iter().map(|disk| disk.new_bytes).sum();
    let size: u64 = snapshot.record.disks.iter().map(|disk| disk.size).sum();
    format!("{} of {}, {} stored", short(snapshot), text::size(size), text::size(stored))
}

/// Makes the snapshot, with a progress bar.
pub(super) fn watched(store: &Store, new: NewSnapshot, stop: Arc<AtomicBool>) -> Result<Snapshot> {
    let progress = Progress { stop, ..Progress::default() };
    let total = new.disks.iter().map(NewDisk::size).sum();
    let bar = Bar::new(!io::stderr().is_terminal(), total);
    let made = std::thread::scope(|scope| {
        bar.show(scope, || (progress.done.load(Ordering::Relaxed), String::new()));
        let made = store.create(new, &progress);
        bar.finish();
        made
    })?;
    let resumed = progress.resumed.load(Ordering::Relaxed);
    if resumed > 0 {
        log::info!("{} were read by an attempt before", text::size(resumed));
    }
    Ok(made)
}

/// A disk on the command line: `NAME=REF`, or a reference that gives the name. A file of the whole text wins.
fn named_disk(text: &OsStr, alone: bool) -> (String, Reference) {
    let whole = Reference::from(text);
    let bytes = text.as_bytes();
    if !whole.path.exists()
        && let Some(at) = bytes.iter().position(|&byte| byte == b'=')
        && let Ok(name) = std::str::from_utf8(&bytes[..at])
        && check_name("disk", name).is_ok()
    {
        return (name.to_owned(), Reference::from(OsStr::from_bytes(&bytes[at + 1..])));
    }
    let stem = whole.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = if alone { "disk".to_owned() } else { stem.unwrap_or_default() };
    (name, whole)
}

/// Text of a record that may be any.
pub(super) fn free(text: &str) -> String {
    text::printable(text.as_bytes()).into_owned()
}

pub(super) fn newest(store: &Store, series: &str) -> Result<Option<Snapshot>> {
    let snapshots = store.snapshots()?;
    Ok(snapshots.into_iter().rev().find(|snapshot| snapshot.record.series == series))
}

pub(super) fn short(snapshot: &Snapshot) -> String {
    snapshot.id.to_string().chars().take(DIGITS).collect()
}

pub(super) fn local(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn list(at: &Location, stores: &StoreArgs, series: Option<&str>, json: bool) -> Result<Outcome> {
    let store = stored::store(at, &stores.options(), &Cache::new(0))?;
    let mut snapshots = store.snapshots()?;
    snapshots.retain(|snapshot| series.is_none_or(|series| snapshot.record.series == series));
    let snapshots = Signed::of(&store, snapshots)?;
    if json {
        write_json_lines(&snapshots)?;
        return Ok(Outcome::Done);
    }
    let zone = TimeZone::system();
    let row = |signed: &Signed| {
        let Snapshot { record, .. } = &signed.snapshot;
        let stored = record.disks.iter().map(|disk| disk.new_bytes).sum();
        let size = record.disks.iter().map(|disk| disk.size).sum();
        [
            short(&signed.snapshot),
            local(record.time, &zone),
            record.series.clone(),
            text::size(size),
            text::size(stored),
            record.tags.join(","),
            signed.word().to_owned(),
        ]
    };
    let rows: Vec<[String; 7]> = snapshots.iter().map(row).collect();
    write_rows(&rows, [false, false, false, true, true, false, false])?;
    Ok(Outcome::Done)
}

/// The store and the snapshot that `reference` names.
pub(super) fn selected(
    reference: &OsStr,
    options: &stored::Options,
) -> Result<(Arc<Store>, Snapshot)> {
    let Reference { path, snapshot } = Reference::from(reference);
    let at = Location::parse(path.as_os_str())?;
    let store = stored::store(&at, options, &Cache::new(0))?;
    let Some(name) = snapshot else {
        let error = Error::new(Kind::Usage, "names no snapshot").within(store.name());
        return Err(error.with_hint(format!("as {at}::SERIES")));
    };
    let snapshot = store.select_any(&name).within(|| store.name())?;
    Ok((store, snapshot))
}

fn show(reference: &OsStr, stores: &StoreArgs, json: bool) -> Result<Outcome> {
    let (store, snapshot) = selected(reference, &stores.options())?;
    let signed = Signed::of(&store, vec![snapshot])?;
    let Some(signed) = signed.first() else { return Ok(Outcome::Done) };
    if json {
        write_json(signed)?;
        return Ok(Outcome::Done);
    }
    let snapshot = &signed.snapshot;
    let zone = TimeZone::system();
    let record = &snapshot.record;
    let mut facts = vec![
        ("snapshot", snapshot.id.to_string()),
        ("series", record.series.clone()),
        ("time", local(record.time, &zone)),
        ("tags", record.tags.join(", ")),
        ("parent", record.parent.map(|id| id.to_string()).unwrap_or_default()),
        ("copy of", record.copy_of.map(|id| id.to_string()).unwrap_or_default()),
        ("made of", free(&record.source)),
        ("made on", format!("{} by {}", free(&record.host), free(&record.program))),
    ];
    facts.retain(|(_, fact)| !fact.is_empty());
    facts.extend(signed.facts());
    for disk in &record.disks {
        let size = text::size(disk.size);
        let blocks = text::number(disk.blocks);
        let new = text::number(disk.new_blocks);
        let stored = text::size(disk.new_bytes);
        facts.push((
            "disk",
            format!("{}: {size}, {blocks} blocks, {new} of them new ({stored} stored)", disk.name),
        ));
    }
    write_facts(&facts)?;
    Ok(Outcome::Done)
}

/// What `strata info` tells of a snapshot.
pub(super) fn facts(stored: &Stored, zone: &TimeZone) -> Vec<(&'static str, String)> {
    let Stored { snapshot, disk } = stored;
    let record = &snapshot.record;
    let told = text::size(disk.new_bytes);
    vec![
        (
            "snapshot",
            format!("{} of {}, {}", short(snapshot), record.series, local(record.time, zone)),
        ),
        ("stored", format!("{told} that the store did not have before")),
    ]
}

fn remove(references: &[OsString], stores: &StoreArgs) -> Result<Outcome> {
    // All of them are looked for before the first is gone.
    let options = stores.options();
    let found: Vec<_> =
        references.iter().map(|it| selected(it, &options)).collect::<Result<_>>()?;
    let mut out = stdout()?;
    for (store, snapshot) in found {
        store.remove(snapshot.id)?;
        output(writeln!(
            out,
            "removed {} {} {}",
            short(&snapshot),
            snapshot.record.series,
            snapshot.record.time
        ))?;
    }
    output(out.flush())?;
    Ok(Outcome::Done)
}

fn prune(args: &Prune) -> Result<Outcome> {
    let store = stored::store(&args.at, &args.stores.options(), &Cache::new(0))?;
    let keep = Keep {
        last: args.keep_last,
        periods: [
            args.keep_hourly,
            args.keep_daily,
            args.keep_weekly,
            args.keep_monthly,
            args.keep_yearly,
        ],
        within: args.keep_within,
        tags: args.keep_tag.clone(),
    };
    let mut snapshots = store.snapshots()?;
    if let Some(series) = &args.series {
        snapshots.retain(|snapshot| snapshot.record.series == *series);
        if snapshots.is_empty() {
            let message = format!("no snapshot of a series {series}");
            return Err(Error::new(Kind::NotFound, message).within(store.name()));
        }
    }
    let zone = TimeZone::system();
    let decisions = keep.decide(snapshots, &zone)?;
    if !args.dry_run {
        for decision in decisions.iter().filter(|decision| decision.reasons.is_empty()) {
            store.remove(decision.snapshot.id)?;
        }
    }
    if args.json {
        let mut out = stdout()?;
        for decision in &decisions {
            let line = serde_json::to_string(decision)
                .map_err(|error| Error::caused_by(Kind::Io, error))?;
            output(writeln!(out, "{line}"))?;
        }
        output(out.flush())?;
        return Ok(Outcome::Done);
    }
    let row = |decision: &Decision| {
        let Decision { snapshot, reasons } = decision;
        let what = if reasons.is_empty() { "remove" } else { "keep" };
        let time = local(snapshot.record.time, &zone);
        [what.to_owned(), short(snapshot), time, snapshot.record.series.clone(), reasons.join(", ")]
    };
    let rows: Vec<[String; 5]> = decisions.iter().map(row).collect();
    write_rows(&rows, [false; 5])?;
    Ok(Outcome::Done)
}
