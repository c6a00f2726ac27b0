//! `strata store check` and `repair`: what is damaged, what is lost with it, and what can be done.

use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;

use super::{spinner, write_json};
use crate::block::Cache;
use crate::cli::{Outcome, output, stdout, text};
use crate::error::Result;
use crate::open::damage::{DamagedFile, Part, damaged_files};
use crate::store::{Checked, Depth, Id, Lost, LostRange, Problem, Store};

/// Ranges that are shown of a disk.
const MOST_RANGES: usize = 8;

/// A problem in JSON; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    /// The files that are not whole, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<ToldFile>>,
}

#[derive(Debug, Serialize)]
struct ToldFile {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    part: &'static str,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    snapshots: u64,
    packs: u64,
    quarantined: u64,
    blocks: u64,
    problems: Vec<Told<'a>>,
}

pub(super) fn run(
    store: &Arc<Store>,
    depth: Depth,
    files: bool,
    json: bool,
    cache: &Arc<Cache>,
) -> Result<Outcome> {
    let spinner = spinner();
    let checked = store.check(depth, &|| spinner.inc(1));
    spinner.finish_and_clear();
    let checked = checked?;
    let files_of = |id: Id, lost: &Lost, tell: &mut dyn FnMut(DamagedFile) -> Result<()>| {
        damaged_files(store, id, lost, cache, tell)
    };
    if json {
        let told = |problem| -> Result<Told<'_>> {
            let mut found = Vec::new();
            let mut tell = |file: DamagedFile| {
                let is_text = std::str::from_utf8(&file.path).is_ok();
                found.push(ToldFile {
                    path: String::from_utf8_lossy(&file.path).into_owned(),
                    path_hex: (!is_text).then(|| text::hex(&file.path)),
                    part: file.part.name(),
                });
                Ok(())
            };
            let lost = lost_of(problem).filter(|_| files);
            let is_asked = lost.is_some();
            if let Some((id, lost)) = lost {
                files_of(id, lost, &mut tell)?;
            }
            Ok(Told { problem, files: is_asked.then_some(found) })
        };
        let Checked { snapshots, packs, quarantined, blocks, problems } = &checked;
        write_json(&Report {
            snapshots: *snapshots,
            packs: *packs,
            quarantined: *quarantined,
            blocks: *blocks,
            problems: problems.iter().map(told).collect::<Result<_>>()?,
        })?;
    } else {
        let mut out = stdout()?;
        for problem in &checked.problems {
            let Some((id, lost)) = lost_of(problem) else {
                output(writeln!(out, "{}: {}", problem.object, problem.what))?;
                continue;
            };
            output(writeln!(out, "not whole: {}", told(id, lost)))?;
            if files {
                let mut none = true;
                files_of(id, lost, &mut |file| {
                    none = false;
                    let part = match file.part {
                        Part::Contents => "",
                        Part::Attributes => " (what is said of it)",
                        Part::Names => " (names in it)",
                        Part::Filesystem => " (all of the filesystem)",
                    };
                    output(writeln!(out, "  {}{part}", text::printable(&file.path)))
                })?;
                if none {
                    output(writeln!(out, "  no file: it is room that none uses"))?;
                }
            }
        }
        summary(&mut out, &checked)?;
    }
    for hint in hints(&checked, &store.name(), depth, files) {
        // Nobody reads it where it cannot be written.
        let _ = writeln!(io::stderr(), "hint: {hint}");
    }
    Ok(if checked.problems.is_empty() { Outcome::Done } else { Outcome::Partly })
}

/// What is lost of which snapshot.
fn lost_of(problem: &Problem) -> Option<(Id, &Lost)> {
    problem.snapshots.first().copied().zip(problem.lost.as_ref())
}

/// A line about a disk that is not whole.
fn told(id: Id, lost: &Lost) -> String {
    let Lost { series, time, disk, bytes, ranges } = lost;
    let range = |range: &LostRange| format!("{:#x}-{:#x}", range.offset, range.end());
    let mut places: Vec<String> = ranges.iter().take(MOST_RANGES).map(range).collect();
    if ranges.len() > MOST_RANGES {
        places.push(format!("{} more", text::number((ranges.len() - MOST_RANGES) as u64)));
    }
    let bytes = text::size(*bytes);
    format!("{series}@{time} {id}, {disk}: {bytes} lost at {}", places.join(", "))
}

fn summary(out: &mut impl Write, checked: &Checked) -> Result<()> {
    let mut looked = vec![
        text::count(checked.snapshots, "snapshot", "snapshots"),
        text::count(checked.blocks, "block", "blocks"),
        text::count(checked.packs, "pack", "packs"),
    ];
    if checked.quarantined > 0 {
        looked.push(format!("{} of them under quarantine", text::number(checked.quarantined)));
    }
    let problems = text::count(checked.problems.len() as u64, "problem", "problems");
    output(writeln!(out, "{}: {problems}", looked.join(", ")))?;
    output(out.flush())
}

/// What can be done.
fn hints(checked: &Checked, store: &str, depth: Depth, files: bool) -> Vec<String> {
    let mut hints = Vec::new();
    let of = |sort: &str| {
        checked.problems.iter().any(|it| it.object.starts_with(sort) && it.lost.is_none())
    };
    let is_lost = checked.problems.iter().any(|it| it.lost.is_some());
    let (packs, indexes) = (of("packs/"), of("index/") || of("condemned/"));
    if is_lost && !files {
        hints.push("--files names the files that are not whole".to_owned());
    }
    if packs || indexes || is_lost && checked.quarantined == 0 {
        let read = if depth == Depth::Data && packs { " --read-data" } else { "" };
        hints.push(format!(
            "strata store repair{read} {store} makes indexes anew and keeps what is whole of damaged packs"
        ));
    }
    if is_lost {
        hints.push(
            "what is lost comes back, once it is repaired, with the next snapshot of a disk that still holds it"
                .to_owned(),
        );
    }
    if of("snapshots/") {
        hints.push(format!(
            "a damaged record cannot be mended: put it back from a copy of the store, or remove it, as {store}::ID"
        ));
    }
    hints
}

pub(super) fn repair(store: &Store, depth: Depth) -> Result<Outcome> {
    let spinner = spinner();
    let repaired = store.repair(depth, &|| spinner.inc(1));
    spinner.finish_and_clear();
    let repaired = repaired?;
    let mut out = stdout()?;
    let packs = text::count(repaired.indexed_packs, "pack", "packs");
    let indexes = text::count(repaired.removed_indexes, "damaged index", "damaged indexes");
    output(writeln!(out, "{packs} indexed, {indexes} removed"))?;
    if repaired.removed_lists > 0 {
        let lists = "damaged lists of condemned packs";
        let lists = text::count(repaired.removed_lists, "damaged list of condemned packs", lists);
        output(writeln!(out, "{lists} removed"))?;
    }
    if repaired.released > 0 {
        let packs = text::count(repaired.released, "pack is", "packs are");
        output(writeln!(out, "{packs} what was written again: no longer under quarantine"))?;
    }
    for pack in &repaired.damaged_packs {
        output(writeln!(out, "packs/{:02x}/{pack}: damaged, and under quarantine", pack.0[0]))?;
    }
    if repaired.moved > 0 {
        let blobs = text::count(repaired.moved, "block or map page", "blocks and map pages");
        output(writeln!(out, "{blobs} of them whole, and written anew"))?;
    }
    output(out.flush())?;
    if repaired.damaged_packs.is_empty() {
        return Ok(Outcome::Done);
    }
    let hint = format!(
        "hint: the next snapshot of a disk that still holds what is lost brings it back; strata store check --files {} \
         tells what is lost until then",
        store.name()
    );
    let _ = writeln!(io::stderr(), "{hint}");
    Ok(Outcome::Partly)
}
