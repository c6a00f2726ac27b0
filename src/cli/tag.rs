//! `strata snapshot tag`.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use super::secrets::signing_key;
use super::snapshot::{selected, short};
use super::stores::StoreArgs;
use super::{Outcome, output, stdout};
use crate::error::Result;

/// Options of `strata snapshot tag`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata snapshot tag --add keep /srv/snapshots::web01@2026-11-22")]
pub(super) struct Args {
    /// The snapshots: STORE::SERIES, STORE::SERIES@TIME or STORE::ID
    #[arg(value_name = "SNAPSHOT", required = true)]
    references: Vec<OsString>,

    /// Give them this tag
    #[arg(long, value_name = "TAG", required_unless_present = "remove")]
    add: Vec<String>,

    /// Take this tag from them
    #[arg(long, value_name = "TAG")]
    remove: Vec<String>,

    /// Sign them anew with this key: a PEM file
    #[arg(long, value_name = "FILE", help_heading = "Signatures")]
    sign_key: Option<PathBuf>,

    #[command(flatten)]
    stores: StoreArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let key = args.sign_key.as_deref().map(signing_key).transpose()?;
    let options = args.stores.options();
    // All of them are looked for before the first is changed.
    let found: Vec<_> =
        args.references.iter().map(|it| selected(it, &options)).collect::<Result<_>>()?;
    let mut out = stdout()?;
    for (store, snapshot) in found {
        let mut tags = snapshot.record.tags.clone();
        tags.retain(|tag| !args.remove.contains(tag));
        for tag in &args.add {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        let tagged = store.tag(&snapshot, tags, key.as_ref())?;
        let record = &tagged.record;
        let tags = record.tags.join(", ");
        output(writeln!(out, "{} {} {} {tags}", short(&tagged), record.series, record.time))?;
    }
    output(out.flush())?;
    Ok(Outcome::Done)
}
