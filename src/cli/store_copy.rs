//! `strata store copy`: snapshots go into another store.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::bar::Bar;
use super::secrets::signing_key;
use super::store::{CACHE, write_json};
use super::stores::{StoreArgs, location_parser};
use super::{Outcome, output, stdout, stop_on_signals, text};
use crate::block::Cache;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::stored;
use crate::store::objects::Location;
use crate::store::{Copied, Progress, SigningKey, Snapshot, Store};

/// Options of `strata store copy`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example: strata store copy /srv/snapshots s3://bucket/snapshots --series web01"
)]
pub(super) struct Args {
    /// The store to copy from
    #[arg(value_name = "FROM", value_parser = location_parser())]
    from: Location,

    /// The store to copy to
    #[arg(value_name = "TO", value_parser = location_parser())]
    to: Location,

    /// Only the snapshots of this series; may be given several times
    #[arg(long, value_name = "SERIES")]
    series: Vec<String>,

    /// Only this snapshot: SERIES, SERIES@TIME or ID; may be given several times
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Vec<String>,

    /// One JSON object (docs/json.md)
    #[arg(long)]
    json: bool,

    /// Sign the copies with this key: a PEM file, of strata snapshot generate-key or openssl genpkey -algorithm ed25519
    #[arg(long, value_name = "FILE", help_heading = "Signatures")]
    sign_key: Option<PathBuf>,

    #[command(flatten)]
    stores: StoreArgs,

    /// What opens FROM, if it is not what opens TO: this file of random bytes, or $STRATA_FROM_KEY_FILE
    #[arg(long, value_name = "FILE", help_heading = "Encrypted stores")]
    #[arg(conflicts_with_all = ["from_passphrase_file", "from_unencrypted"])]
    from_key_file: Option<PathBuf>,

    /// The same: the passphrase in the first line of this file; or $STRATA_FROM_PASSPHRASE_FILE, $STRATA_FROM_PASSPHRASE
    #[arg(long, value_name = "FILE", help_heading = "Encrypted stores")]
    #[arg(conflicts_with = "from_unencrypted")]
    from_passphrase_file: Option<PathBuf>,

    /// FROM is not encrypted, though TO is
    #[arg(long, help_heading = "Encrypted stores")]
    from_unencrypted: bool,

    /// The URL of the server of FROM, if it is another than that of TO
    #[arg(long, value_name = "URL", help_heading = "Object storage")]
    from_endpoint: Option<String>,

    /// The region of FROM, if it is another
    #[arg(long, value_name = "NAME", help_heading = "Object storage")]
    from_region: Option<String>,

    /// The profile for FROM, if it is another
    #[arg(long, value_name = "NAME", help_heading = "Object storage")]
    from_profile: Option<String>,
}

/// What `--json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    copied: Copied,
    requests: u64,
    received: u64,
    sent: u64,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let stop = stop_on_signals()?;
    let sign = args.sign_key.as_deref().map(signing_key).transpose()?.map(Arc::new);
    let secrets = args.stores.secrets.elsewhere(
        args.from_key_file.as_ref(),
        args.from_passphrase_file.as_ref(),
        args.from_unencrypted,
    );
    let is_opened_alike = secrets.is_none();
    let there = args.stores.elsewhere(
        args.from_endpoint.as_ref(),
        args.from_region.as_ref(),
        args.from_profile.as_ref(),
        secrets,
    );
    let here = args.stores.options();
    let cache = Cache::new(CACHE);
    let from = stored::store(&args.from, &there, &cache).map_err(|error| match error.kind() {
        Kind::Refused if is_opened_alike => error.with_hint(
            "if that is as it should be, --from-unencrypted says so: then what is given opens only the other store",
        ),
        _ => error,
    })?;
    if args.from == args.to {
        return Err(Error::new(Kind::Usage, "both stores are the same").within(from.name()));
    }
    let snapshots = chosen(args, from.snapshots()?)?;
    for name in &args.snapshot {
        // It is told which one is not there before anything is copied.
        from.select_any(name).within(|| from.name())?;
    }
    let snapshots = match args.snapshot.is_empty() {
        true => snapshots,
        false => {
            let named: Vec<_> =
                args.snapshot.iter().map(|name| from.select_any(name)).collect::<Result<_>>()?;
            let is_named = |it: &Snapshot| named.iter().any(|named| named.id == it.id);
            snapshots.into_iter().filter(is_named).collect()
        }
    };
    let to = match stored::store(&args.to, &here, &cache) {
        // What is made has the keys of the other.
        Err(error) if error.kind() == Kind::NotFound && is_opened_alike => {
            from.twin(&*args.to.make(&here.bucket)?)?;
            stored::store(&args.to, &here, &cache)?
        }
        Err(error) if error.kind() == Kind::Refused && is_opened_alike => {
            let hint = "if that is as it should be, --from-key-file or --from-passphrase-file opens only the store that is copied from";
            return Err(error.with_hint(hint));
        }
        opened => opened?,
    };
    let copied = copied(&to, &from, &snapshots, sign.as_ref(), &stop)?;
    if args.json {
        let traffic = [&there.bucket.traffic, &here.bucket.traffic];
        let sum = |count: fn(&crate::store::objects::Traffic) -> u64| {
            traffic.iter().map(|traffic| count(traffic)).sum()
        };
        write_json(&Report {
            copied,
            requests: sum(|traffic| traffic.requests()),
            received: sum(|traffic| traffic.received.load(Ordering::Relaxed)),
            sent: sum(|traffic| traffic.sent.load(Ordering::Relaxed)),
        })?;
        return Ok(Outcome::Done);
    }
    let mut out = stdout()?;
    for id in &copied.unsigned {
        let line = format!("{id} was signed, and its copy is not: a signature names its store");
        output(writeln!(out, "{line}"))?;
    }
    let told = format!(
        "{} copied, {} there already, {} stored",
        text::count(copied.snapshots.len() as u64, "snapshot", "snapshots"),
        text::number(copied.already),
        text::size(copied.stored),
    );
    output(writeln!(out, "{told}").and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}

/// Copies snapshots, with a progress bar; `key` signs the copies.
pub(super) fn copied(
    to: &Arc<Store>,
    from: &Arc<Store>,
    snapshots: &[Snapshot],
    key: Option<&Arc<SigningKey>>,
    stop: &Arc<AtomicBool>,
) -> Result<Copied> {
    let progress = Progress { stop: Arc::clone(stop), ..Progress::default() };
    let bar = Bar::new(!io::stderr().is_terminal(), Some(0));
    std::thread::scope(|scope| {
        bar.show(scope, || {
            bar.set_total(progress.total.load(Ordering::Relaxed));
            (progress.done.load(Ordering::Relaxed), String::new())
        });
        let copied = to.copy_signed(from, snapshots, key, &progress);
        bar.finish();
        copied
    })
}

/// The snapshots of the series that are asked for.
fn chosen(args: &Args, mut snapshots: Vec<Snapshot>) -> Result<Vec<Snapshot>> {
    for series in &args.series {
        if !snapshots.iter().any(|snapshot| snapshot.record.series == *series) {
            let message = format!("no snapshot of a series {series}");
            return Err(Error::new(Kind::NotFound, message).within(args.from.to_string()));
        }
    }
    if !args.series.is_empty() {
        snapshots.retain(|snapshot| args.series.contains(&snapshot.record.series));
    }
    Ok(snapshots)
}
