//! `strata store`: the place for snapshots.

mod check;

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo};
use serde::Serialize;

use super::stores::{StoreArgs, location_parser};
use super::{Outcome, keys, output, parse_size, stdout, text};
use crate::block::Cache;
use crate::error::{Error, Kind, Result};
use crate::open::stored;
use crate::store::objects::Location;
use crate::store::{Collect, Collected, Depth, Settings, Store};

/// Memory for what is read again: map pages and pages of indexes.
pub(super) const CACHE: u64 = 64 << 20;

/// Options of `strata store`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata store init /srv/snapshots")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a store in a new or empty folder, or in a bucket
    Init {
        /// The folder, or s3://bucket/prefix
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// Bytes of a block, from 16K to 4M: small ones store less of scattered changes, large ones less of all else
        #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = parse_size)]
        block_size: u64,

        /// How hard to compress: zstd's levels
        #[arg(long, value_name = "LEVEL", default_value_t = 4)]
        #[arg(value_parser = clap::value_parser!(i32).range(1..=19))]
        level: i32,

        /// Encrypt all that is stored, with AES-256; --key-file, or a passphrase, opens it
        #[arg(long)]
        encrypt: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Tell what a store holds
    Info {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// One JSON object (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Look for damage: is all there that the snapshots need?
    ///
    /// Damage is told with the snapshots that are not whole because of it. The exit status is 1 if there is any.
    Check {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// Also read every byte of every pack
        #[arg(long)]
        read_data: bool,

        /// Also name the files that are not whole because of it
        #[arg(long)]
        files: bool,

        /// One JSON object (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Give back the room of what no snapshot needs
    ///
    /// What was removed is kept for a while for those who still read it, and so may take two runs. Snapshots can be
    /// made, read and removed meanwhile, here and elsewhere.
    Collect {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// How long to keep what nothing needs: 1h, 2d; 0s removes it at once if nobody is at work
        #[arg(long, value_name = "TIME", default_value = "1h")]
        grace: Span,

        /// Write packs anew until no more than so many per cent of them are of no use
        #[arg(long, value_name = "PERCENT", default_value_t = 10)]
        #[arg(value_parser = clap::value_parser!(u64).range(0..=100))]
        unused: u64,

        /// Only tell what would be done
        #[arg(short = 'n', long)]
        dry_run: bool,

        /// One JSON object (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Copy snapshots into another store, and of them only what it lacks
    ///
    /// All snapshots are copied, or those of some series, or some; those that are there already are left. A copy that
    /// was interrupted goes on where it was when it is started again. TO is made if there is no store yet: then it is of
    /// the same kind, and most of what it needs goes there without being unpacked.
    ///
    /// Where blocks are as large in both stores, and the same key names them, a snapshot has the same id in both. Into any
    /// other store - with another key, with one at all or without - its disks are read: the first one whole, and of one
    /// whose predecessor was copied before only what differs. --from-key-file and such open FROM then.
    Copy(super::store_copy::Args),
    /// Make indexes anew that are lost or damaged, and put damaged packs under quarantine
    ///
    /// Packs tell by themselves what is in them. What is whole of a damaged pack is written anew; what is lost comes
    /// back with the next snapshot of a disk that still holds it, and the snapshots that need it are whole again. No snapshot
    /// is changed or removed, and nothing that can be read.
    Repair {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// Also read every byte of every pack, to find those that are damaged inside
        #[arg(long)]
        read_data: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Tell and change which keys open an encrypted store
    #[command(subcommand)]
    Key(keys::Command),
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let cache = Cache::new(CACHE);
    match &args.command {
        Command::Init { at, block_size, level, encrypt, stores } => {
            let block_size = u32::try_from(*block_size).unwrap_or(u32::MAX);
            let settings = Settings { block_size, level: *level };
            if !encrypt && stores.secrets.are_given() {
                let message = "a key was given, and the store is not to be encrypted";
                return Err(Error::new(Kind::Usage, message).with_hint(
                    "--encrypt encrypts it; else leave --key-file and --passphrase-file out, and STRATA_KEY_FILE, \
                     STRATA_PASSPHRASE_FILE and STRATA_PASSPHRASE unset",
                ));
            }
            let secret = encrypt.then(|| stores.secrets.new_secret()).transpose()?;
            let objects = at.make(&stores.options().bucket)?;
            Store::init(objects, settings, secret.as_ref(), &cache)?;
            Ok(Outcome::Done)
        }
        Command::Info { at, json, stores } => {
            info(&*stored::store(at, &stores.options(), &cache)?, *json)
        }
        Command::Check { at, read_data, files, json, stores } => {
            let store = Arc::new(stored::damaged(at, &stores.options(), &cache)?);
            check::run(&store, depth(*read_data), *files, *json, &cache)
        }
        Command::Collect { at, grace, unused, dry_run, json, stores } => {
            let days = SpanRelativeTo::days_are_24_hours();
            let grace = grace.to_duration(days).ok().and_then(|grace| grace.try_into().ok());
            let grace: Duration = grace.ok_or_else(|| {
                let message = "--grace is how long, as 90m, 12h or 2d".to_owned();
                Error::new(Kind::Usage, message)
            })?;
            let how = Collect { grace, unused: *unused, dry_run: *dry_run };
            collect(&*stored::store(at, &stores.options(), &cache)?, &how, *json)
        }
        Command::Copy(args) => super::store_copy::run(args),
        Command::Repair { at, read_data, stores } => {
            check::repair(&stored::damaged(at, &stores.options(), &cache)?, depth(*read_data))
        }
        Command::Key(command) => keys::run(command),
    }
}

/// Writes each as JSON, one a line.
pub(super) fn write_json_lines<T: Serialize>(values: &[T]) -> Result<()> {
    let mut out = stdout()?;
    for value in values {
        let line =
            serde_json::to_string(value).map_err(|error| Error::caused_by(Kind::Io, error))?;
        output(writeln!(out, "{line}"))?;
    }
    output(out.flush())
}

/// Writes `value` as JSON that people can read, too.
pub(super) fn write_json(value: &impl Serialize) -> Result<()> {
    let mut json =
        serde_json::to_vec_pretty(value).map_err(|error| Error::caused_by(Kind::Io, error))?;
    json.push(b'\n');
    let mut out = stdout()?;
    output(out.write_all(&json).and_then(|()| out.flush()))
}

/// Writes facts, one a line, each behind its name.
pub(super) fn write_facts(facts: &[(&str, String)]) -> Result<()> {
    let rows: Vec<[String; 2]> =
        facts.iter().map(|(name, fact)| [format!("{name}:"), fact.clone()]).collect();
    write_rows(&rows, [false, false])
}

/// Writes a table; which columns are numbers says `right`.
pub(super) fn write_rows<const N: usize>(rows: &[[String; N]], right: [bool; N]) -> Result<()> {
    let mut told = String::new();
    for line in text::columns(rows, right, "  ") {
        told.push_str(&line);
        told.push('\n');
    }
    let mut out = stdout()?;
    output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))
}

pub(super) fn info(store: &Store, json: bool) -> Result<Outcome> {
    let usage = store.usage()?;
    if json {
        write_json(&usage)?;
        return Ok(Outcome::Done);
    }
    write_facts(&[
        ("store", store.name()),
        ("made", super::snapshot::local(usage.created, &TimeZone::system())),
        ("snapshots", text::number(usage.snapshots)),
        ("packs", format!("{} ({})", text::number(usage.packs), text::size(usage.pack_bytes))),
        (
            "indexes",
            format!(
                "{}, {} blocks and map pages",
                text::size(usage.index_bytes),
                text::number(usage.blobs)
            ),
        ),
        (
            "blocks",
            format!("of {}, zstd level {}", text::size(usage.block_size.into()), usage.level),
        ),
        ("encrypted", if usage.encrypted { "yes" } else { "no" }.to_owned()),
    ])?;
    Ok(Outcome::Done)
}

/// How closely to look.
fn depth(read_data: bool) -> Depth {
    if read_data { Depth::Data } else { Depth::Structure }
}

/// Something that turns while it is watched.
fn spinner() -> indicatif::ProgressBar {
    if !io::stderr().is_terminal() {
        return indicatif::ProgressBar::hidden();
    }
    indicatif::ProgressBar::new_spinner().with_style(super::bar::style("{spinner} {pos} objects"))
}

/// Collects, with something that turns.
pub(super) fn collected(store: &Store, how: &Collect) -> Result<Collected> {
    let spinner = spinner();
    let done = store.collect(how, &|| spinner.inc(1));
    spinner.finish_and_clear();
    done
}

fn collect(store: &Store, how: &Collect, json: bool) -> Result<Outcome> {
    let done = collected(store, how)?;
    if json {
        write_json(&done)?;
        return Ok(Outcome::Done);
    }
    let packs =
        |count, bytes| format!("{} ({})", text::count(count, "pack", "packs"), text::size(bytes));
    let mut facts = vec![
        ("snapshots", text::number(done.snapshots)),
        ("needed", text::size(done.needed_bytes)),
        ("removed", packs(done.removed_packs, done.removed_bytes)),
        ("written anew", text::count(done.rewritten_packs, "pack", "packs")),
    ];
    if done.waiting_packs > 0 {
        facts.push(("to go", packs(done.waiting_packs, done.waiting_bytes)));
    }
    if let Some(until) = done.waiting_until.filter(|_| done.waiting_packs > 0) {
        facts.push(("not before", super::snapshot::local(until, &TimeZone::system())));
    }
    if !done.waiting_for.is_empty() {
        facts.push(("in use by", done.waiting_for.join(", ")));
    }
    write_facts(&facts)?;
    Ok(Outcome::Done)
}
