//! `strata cache`: what is kept of layered images and of stores in buckets, and giving its room back.

use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo};
use serde::Serialize;

use super::{Outcome, output, parse_size, stdout, stores, text};
use crate::error::{Error, Kind, Result};
use crate::oci::cache::{Kept, LayerCache, Part};
use crate::store::objects::{PieceCache, PieceCount};
use crate::tree::Time;

/// Options of `strata cache`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata cache prune --unused-for 30d")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what is kept, what was used longest ago first
    Info {
        /// One JSON object (docs/json.md)
        #[arg(long)]
        json: bool,
    },
    /// Remove what was used longest ago, or all of it
    ///
    /// What is kept of stores in buckets goes first: it is fetched again piece by piece.
    /// What is mounted goes on working: its files vanish when it is unmounted.
    Prune {
        /// Leave as much as this
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        max_size: Option<u64>,

        /// Remove only what was not used for so long: 30d, 12h
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        unused_for: Option<Duration>,
    },
}

fn parse_time(text: &str) -> Result<Duration, String> {
    let told = |_| "expected a time such as 30d, 2w or 12h".to_owned();
    let span: Span = text.parse().map_err(told)?;
    let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(told)?;
    Duration::try_from(span).map_err(|_| "expected a time that is not negative".to_owned())
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let Some(dir) = LayerCache::user_dir() else {
        let error = Error::new(Kind::NotFound, "nobody says where the cache folder is");
        return Err(error.with_hint("set HOME, XDG_CACHE_HOME or STRATA_CACHE_DIR"));
    };
    let cache = LayerCache::open(dir, u64::MAX)?;
    match args.command {
        Command::Info { json } => info(&cache, json),
        Command::Prune { max_size, unused_for } => {
            // An age alone leaves what is younger, however much that is.
            let most = max_size.unwrap_or(if unused_for.is_some() { u64::MAX } else { 0 });
            let layers: u64 = cache.list()?.iter().map(|kept| kept.size).sum();
            let pieces = pieces(&cache)?.prune(most.saturating_sub(layers), unused_for)?;
            let pruned = cache.prune(most, unused_for)?;
            let files = text::count(pruned.files + pieces.pieces, "file", "files");
            let bytes = text::size(pruned.bytes + pieces.bytes);
            let mut out = stdout()?;
            output(writeln!(out, "{files} removed, {bytes}"))?;
            Ok(Outcome::Done)
        }
    }
}

/// What is kept of stores in buckets.
fn pieces(cache: &LayerCache) -> Result<PieceCache> {
    PieceCache::open(&cache.dir().join(stores::PIECES), u64::MAX)
}

/// What `--json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    dir: String,
    size: u64,
    kept: Vec<Row<'a>>,
    stores: PieceCount,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    layer: &'a str,
    part: &'static str,
    size: u64,
    used: String,
}

fn info(cache: &LayerCache, json: bool) -> Result<Outcome> {
    let kept = cache.list()?;
    let pieces = pieces(cache)?.count()?;
    let size = kept.iter().map(|kept| kept.size).sum();
    let mut out = stdout()?;
    if json {
        let row = |kept: &Kept| text::exact_time(time(kept.used));
        let rows = kept.iter().map(|it| Row {
            layer: &it.key,
            part: it.part.name(),
            size: it.size,
            used: row(it),
        });
        let dir = cache.dir().display().to_string();
        let report =
            Report { dir, size: size + pieces.bytes, kept: rows.collect(), stores: pieces };
        let mut json = serde_json::to_vec_pretty(&report)
            .map_err(|error| Error::caused_by(Kind::Io, error))?;
        json.push(b'\n');
        output(out.write_all(&json).and_then(|()| out.flush()))?;
        return Ok(Outcome::Done);
    }
    let zone = TimeZone::system();
    let rows: Vec<[String; 4]> = kept
        .iter()
        .map(|kept| {
            let used = text::local_time(time(kept.used), &zone);
            [text::size(kept.size), used, kept.part.name().to_owned(), kept.key.clone()]
        })
        .collect();
    let mut told = String::new();
    for line in text::columns(&rows, [true, false, false, false], "  ") {
        told.push_str(&line);
        told.push('\n');
    }
    let count = |part| kept.iter().filter(|kept| kept.part == part).count() as u64;
    let layers = text::count(count(Part::Index), "layer", "layers");
    told.push_str(&format!("{} of {layers} in {}\n", text::size(size), cache.dir().display()));
    if pieces.pieces > 0 {
        let count = text::count(pieces.pieces, "piece", "pieces");
        told.push_str(&format!("{} in {count} of stores in buckets\n", text::size(pieces.bytes)));
    }
    output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}

fn time(time: SystemTime) -> Time {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}
