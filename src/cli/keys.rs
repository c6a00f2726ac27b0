//! `strata store key`: what opens an encrypted store.

use std::io::Write;
use std::sync::Arc;

use jiff::tz::TimeZone;

use super::secrets::NewSecretArgs;
use super::store::write_rows;
use super::stores::{StoreArgs, location_parser};
use super::{Outcome, output, stdout};
use crate::block::Cache;
use crate::error::{Error, Kind, Result};
use crate::open::stored;
use crate::store::objects::Location;
use crate::store::{KeyInfo, KeyKind, Store};

/// Digits of an id that are enough to be meant as one.
const FEWEST_DIGITS: usize = 4;
/// Digits that are shown.
const DIGITS: usize = 12;

/// Any of the keys opens all of the store. Adding, removing and changing them writes nothing else anew.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Add a key: another passphrase, or a key file
    Add {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// What to call it, for people; it can be read without a key
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        name: String,

        #[command(flatten)]
        new: NewSecretArgs,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// List the keys, the oldest first; an asterisk marks the one that was used
    List {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// One JSON object a line (docs/json.md)
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Remove a key; the last one stays
    ///
    /// It opens the store no more. Whoever opened the store with it before may have kept a copy of what it opens: a
    /// store that they must not read from now on is one with other keys, into which the snapshots are copied.
    Remove {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        /// How the key's id begins
        #[arg(value_name = "ID")]
        id: String,

        #[command(flatten)]
        stores: StoreArgs,
    },
    /// Put another passphrase in the place of the one that opens the store
    ChangePassphrase {
        /// The store
        #[arg(value_name = "STORE", value_parser = location_parser())]
        at: Location,

        #[command(flatten)]
        new: NewSecretArgs,

        #[command(flatten)]
        stores: StoreArgs,
    },
}

pub(super) fn run(command: &Command) -> Result<Outcome> {
    match command {
        Command::Add { at, name, new, stores } => {
            let store = open(at, stores)?;
            // Before somebody types a new passphrase in vain.
            store.keys()?;
            let id = store.add_key(&new.secret()?, name)?;
            tell(&format!("added {}", short(&id.to_string())))
        }
        Command::List { at, json, stores } => list(&open(at, stores)?.keys()?, *json),
        Command::Remove { at, id, stores } => {
            let store = open(at, stores)?;
            let key = select(&store, id)?;
            store.remove_key(key.id)?;
            tell(&format!("removed {} {}", short(&key.id.to_string()), kind(key.kind)))
        }
        Command::ChangePassphrase { at, new, stores } => change(&*open(at, stores)?, new),
    }
}

fn open(at: &Location, stores: &StoreArgs) -> Result<Arc<Store>> {
    stored::store(at, &stores.options(), &Cache::new(0))
}

fn change(store: &Store, new: &NewSecretArgs) -> Result<Outcome> {
    let keys = store.keys()?;
    let old = keys.iter().find(|key| key.used && key.kind == KeyKind::Passphrase);
    let Some(old) = old.filter(|_| new.is_passphrase()) else {
        let error =
            Error::new(Kind::Usage, "no passphrase in the place of a key file, or the other way");
        return Err(error.with_hint("strata store key add, and then strata store key remove"));
    };
    // The old one goes last: at no moment does none open it.
    let id = store.add_key(&new.secret()?, &old.name)?;
    store.remove_key(old.id)?;
    tell(&format!("{} instead of {}", short(&id.to_string()), short(&old.id.to_string())))
}

/// The key whose id begins so.
fn select(store: &Store, digits: &str) -> Result<KeyInfo> {
    let digits = digits.to_ascii_lowercase();
    let keys = store.keys()?;
    let mut found = keys.iter().filter(|key| key.id.to_string().starts_with(&digits));
    match (found.next(), found.next()) {
        (Some(key), None) if digits.len() >= FEWEST_DIGITS => Ok(key.clone()),
        (Some(_), _) => {
            let message = format!("\"{digits}\" is too little to tell which key is meant");
            Err(Error::new(Kind::Usage, message).with_hint("give more digits"))
        }
        (None, _) => {
            let error = Error::new(Kind::NotFound, format!("no key {digits}")).within(store.name());
            Err(error.with_hint("strata store key list tells which there are"))
        }
    }
}

fn list(keys: &[KeyInfo], json: bool) -> Result<Outcome> {
    if json {
        return super::store::write_json_lines(keys).map(|()| Outcome::Done);
    }
    let zone = TimeZone::system();
    let row = |key: &KeyInfo| {
        [
            if key.used { "*" } else { "" }.to_owned(),
            short(&key.id.to_string()),
            kind(key.kind).to_owned(),
            super::snapshot::local(key.created, &zone),
            key.name.clone(),
        ]
    };
    let rows: Vec<[String; 5]> = keys.iter().map(row).collect();
    write_rows(&rows, [false; 5])?;
    Ok(Outcome::Done)
}

fn kind(kind: KeyKind) -> &'static str {
    match kind {
        KeyKind::Passphrase => "passphrase",
        KeyKind::KeyFile => "key file",
    }
}

fn short(id: &str) -> String {
    id.chars().take(DIGITS).collect()
}

fn tell(line: &str) -> Result<Outcome> {
    let mut out = stdout()?;
    output(writeln!(out, "{line}").and_then(|()| out.flush()))?;
    Ok(Outcome::Done)
}
