//! `strata info`.

mod layered;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Write;

use jiff::tz::TimeZone;
use serde::Serialize;

use super::{OpenArgs, Outcome, output, stdout, text, warn};
use crate::error::{Error, Kind, Result};
use crate::fs::Info;
use crate::image::{Details, ImageInfo, SnapshotInfo};
use crate::open::cow::OWN_NAME;
use crate::open::view::{Survey, SurveyedVolume, survey};
use crate::open::{Disk, Reference};
use crate::tree::Time;
use crate::volume::{Table, Volume};

/// Options of `strata info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata info --json disk.qcow2 | jq '.volumes[].filesystem.uuid'")]
pub(super) struct Args {
    /// What to open
    #[arg(value_name = "REF")]
    reference: OsString,

    /// One JSON object (docs/json.md)
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    open: OpenArgs,
}

#[cfg(test)]
impl Args {
    pub(super) fn open(&self) -> &OpenArgs {
        &self.open
    }
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let opener = args.open.opener();
    if let Some(layered) = opener.layered_reference(&args.reference)? {
        let image = super::watched(&opener, || opener.layered(&layered))?;
        return layered::run(&args.reference, &image, args.json);
    }
    let reference = Reference::from(args.reference.as_os_str());
    if reference.is_whole_store() {
        return super::store::info(&*opener.store(&reference.path)?, args.json);
    }
    let disk = opener.disk(&reference)?;
    let survey = survey(&disk, &opener.cache)?;
    let mut out = stdout()?;
    if args.json {
        let report = Report::new(&args.reference, &disk, &survey);
        let mut json = serde_json::to_vec_pretty(&report)
            .map_err(|error| Error::caused_by(Kind::Io, error))?;
        json.push(b'\n');
        output(out.write_all(&json).and_then(|()| out.flush()))?;
        return Ok(Outcome::Done);
    }
    let told = tell(&args.reference, &disk, &survey, &TimeZone::system());
    output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
    warn(&warnings(&disk, &survey));
    Ok(Outcome::Done)
}

/// The survey's warnings hold those of the partition table and of the filesystems.
fn warnings(disk: &Disk, survey: &Survey) -> Vec<String> {
    disk.warnings.iter().chain(&survey.warnings).cloned().collect()
}

/// What `--json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    reference: Cow<'a, str>,
    format: String,
    virtual_size: u64,
    allocated: u64,
    chain: &'a [ImageInfo],
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<&'a crate::store::Snapshot>,
    snapshots: Vec<Snapshot<'a>>,
    partition_table: Option<PartitionTable<'a>>,
    volumes: Vec<OnVolume<'a>>,
    system: Option<&'a str>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Snapshot<'a> {
    id: &'a str,
    name: &'a str,
    created: String,
    virtual_size: u64,
    vm_state_size: u64,
}

#[derive(Debug, Serialize)]
struct PartitionTable<'a> {
    scheme: crate::volume::Scheme,
    sector_size: u32,
    id: &'a str,
}

#[derive(Debug, Serialize)]
struct OnVolume<'a> {
    partition: Option<&'a Volume>,
    contents: Option<&'a str>,
    filesystem: Option<&'a Info>,
}

impl<'a> Report<'a> {
    fn new(reference: &'a OsString, disk: &'a Disk, survey: &'a Survey) -> Self {
        Self {
            reference: reference.to_string_lossy(),
            format: match disk.chain.first() {
                Some(top) => top.format.to_string(),
                None => "snapshot".to_owned(),
            },
            stored: disk.stored.as_ref().map(|stored| &stored.snapshot),
            virtual_size: disk.source.len(),
            allocated: disk.chain.iter().map(|image| image.allocated).sum(),
            chain: &disk.chain,
            snapshots: disk.snapshots.iter().map(Snapshot::new).collect(),
            partition_table: survey.table.as_ref().map(|table| PartitionTable {
                scheme: table.scheme,
                sector_size: table.sector_size,
                id: &table.id,
            }),
            volumes: survey
                .volumes
                .iter()
                .map(|volume| OnVolume {
                    partition: volume.volume.as_ref(),
                    contents: contents(volume),
                    filesystem: volume.filesystem.as_ref(),
                })
                .collect(),
            system: survey.os.as_deref(),
            warnings: warnings(disk, survey),
        }
    }
}

impl<'a> Snapshot<'a> {
    fn new(snapshot: &'a SnapshotInfo) -> Self {
        Self {
            id: &snapshot.id,
            name: &snapshot.name,
            created: text::exact_time(created(snapshot)),
            virtual_size: snapshot.virtual_size,
            vm_state_size: snapshot.vm_state_size,
        }
    }
}

fn created(snapshot: &SnapshotInfo) -> Time {
    let (seconds, nanos) = snapshot.created;
    Time { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanos }
}

/// The name of what lies on a volume.
fn contents(volume: &SurveyedVolume) -> Option<&str> {
    match &volume.filesystem {
        Some(filesystem) => Some(&filesystem.kind),
        None => volume.identified.as_deref(),
    }
}

/// The report for a person.
fn tell(reference: &OsString, disk: &Disk, survey: &Survey, zone: &TimeZone) -> String {
    let mut told = String::new();
    let size = disk.source.len();
    let mut facts = vec![("image", reference.to_string_lossy().into_owned())];
    if let Some(top) = disk.chain.first() {
        facts.push(("format", format(top)));
    }
    if let Some(stored) = &disk.stored {
        facts.extend(super::snapshot::facts(stored, zone));
    }
    facts.push(("size", format!("{} ({} bytes)", text::size(size), text::number(size))));
    let allocated: u64 = disk.chain.iter().map(|image| image.allocated).sum();
    let images = match disk.chain.len() {
        0 | 1 => String::new(),
        many => format!(", {many} images"),
    };
    if !disk.chain.is_empty() {
        facts.push(("on the host", text::size(allocated) + &images));
    }
    if let Some(table) = &survey.table {
        facts.push(("partitions", partitions(table)));
    }
    if let Some(system) = &survey.os {
        facts.push(("system", system.clone()));
    }
    let facts: Vec<[String; 2]> =
        facts.into_iter().map(|(name, fact)| [format!("{name}:"), fact]).collect();
    for line in text::columns(&plain(&facts), [false, false], "  ") {
        told.push_str(&line);
        told.push('\n');
    }
    section(&mut told, "volumes", &volumes(survey), [true, false, true, true, true, false]);
    if disk.chain.len() > 1 {
        let rows: Vec<[String; 4]> = disk.chain.iter().map(image).collect();
        section(&mut told, "chain, top first", &rows, [true, true, false, false]);
    }
    let snapshots: Vec<[String; 5]> = disk.snapshots.iter().map(|s| snapshot(s, zone)).collect();
    section(&mut told, "snapshots", &snapshots, [false, false, true, true, false]);
    section(&mut told, "bitmaps", &bitmaps(disk), [false, false, false]);
    told
}

fn section<const N: usize>(told: &mut String, title: &str, rows: &[[String; N]], right: [bool; N]) {
    if !rows.is_empty() {
        let _ = write!(told, "\n{title}:\n");
        for line in text::columns(&plain(rows), right, "  ") {
            let _ = writeln!(told, "  {line}");
        }
    }
}

/// Names in the report come from the image: none may break a line or reach the terminal.
fn plain<const N: usize>(rows: &[[String; N]]) -> Vec<[String; N]> {
    let plain = |cell: &String| text::printable(cell.as_bytes()).into_owned();
    rows.iter().map(|row| row.each_ref().map(plain)).collect()
}

/// `qcow2 v3, 64 KiB clusters, zstd, extended L2, dirty`.
fn format(image: &ImageInfo) -> String {
    let Details::Qcow2(details) = &image.details else { return image.format.to_string() };
    let mut told = format!("{} v{}", image.format, details.version);
    let _ = write!(told, ", {} clusters", text::size(details.cluster_size));
    let _ = write!(told, ", {}", details.compression);
    for (is_so, name) in [
        (details.extended_l2, "extended L2"),
        (details.lazy_refcounts, "lazy refcounts"),
        (details.dirty, "dirty"),
        (details.corrupt, "marked corrupt"),
    ] {
        if is_so {
            let _ = write!(told, ", {name}");
        }
    }
    if let Some(file) = &details.data_file {
        let raw = if details.data_file_raw { "raw " } else { "" };
        let _ = write!(told, ", {raw}data file {file}");
    }
    if image.backing.as_deref().is_some_and(|name| name.starts_with(OWN_NAME)) {
        told.push_str(", a delta above a snapshot, which only strata can name");
    }
    told
}

fn partitions(table: &Table) -> String {
    let (name, sector) = (table.scheme.name(), text::number(table.sector_size.into()));
    format!("{name}, {sector}-byte sectors, id {}", table.id)
}

fn image(image: &ImageInfo) -> [String; 4] {
    let allocated = format!("{} used", text::size(image.allocated));
    let path = image.path.display().to_string();
    [text::size(image.virtual_size), allocated, path, format(image)]
}

fn snapshot(snapshot: &SnapshotInfo, zone: &TimeZone) -> [String; 5] {
    let state = match snapshot.vm_state_size {
        0 => String::new(),
        size => format!("with {} of machine state", text::size(size)),
    };
    [
        snapshot.id.clone(),
        snapshot.name.clone(),
        text::local_time(created(snapshot), zone),
        text::size(snapshot.virtual_size),
        state,
    ]
}

fn bitmaps(disk: &Disk) -> Vec<[String; 3]> {
    let details = disk.chain.first().map(|top| &top.details);
    let Some(Details::Qcow2(details)) = details else { return Vec::new() };
    let row = |bitmap: &crate::image::BitmapInfo| {
        let state = match (bitmap.consistent, bitmap.enabled) {
            (false, _) => "inconsistent",
            (true, true) => "recording",
            (true, false) => "disabled",
        };
        let granularity = format!("{} granularity", text::size(bitmap.granularity));
        [bitmap.name.clone(), granularity, state.into()]
    };
    details.bitmaps.iter().map(row).collect()
}

/// Number, type, start, size, use, and what is there.
fn volumes(survey: &Survey) -> Vec<[String; 6]> {
    let row = |surveyed: &SurveyedVolume| {
        let mut what = contents(surveyed).unwrap_or("unknown").to_owned();
        let mut used = String::new();
        if let Some(filesystem) = &surveyed.filesystem {
            used = format!("{} used", text::size(filesystem.used));
            if let Some(label) = &filesystem.label {
                let _ = write!(what, " \"{label}\"");
            }
            if let Some(uuid) = &filesystem.uuid {
                let _ = write!(what, " {uuid}");
            }
        }
        match &surveyed.volume {
            Some(volume) => {
                let mut kind = volume.kind.clone();
                if let Some(name) = volume.name.as_ref().filter(|name| !name.is_empty()) {
                    let _ = write!(kind, " \"{name}\"");
                }
                if volume.active {
                    kind.push_str(", active");
                }
                let start = format!("at {}", text::size(volume.start));
                [volume.number.to_string(), kind, start, text::size(volume.len), used, what]
            }
            None => {
                let size = surveyed.filesystem.as_ref().map(|filesystem| filesystem.size);
                let size = size.map(text::size).unwrap_or_default();
                [String::from("-"), "whole disk".into(), String::new(), size, used, what]
            }
        }
    };
    survey.volumes.iter().map(row).collect()
}
