//! Signing snapshots, and telling who has.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::secrets::signing_key;
use super::snapshot::{selected, short};
use super::stores::StoreArgs;
use super::{Outcome, output, stdout};
use crate::error::{Result, ResultExt};
use crate::store::{Signature, SigningKey, Snapshot, Store};

/// A snapshot, and who signed it.
#[derive(Debug, serde::Serialize)]
pub(super) struct Signed {
    #[serde(flatten)]
    pub(super) snapshot: Snapshot,
    pub(super) signatures: Vec<Signature>,
}

impl Signed {
    /// Snapshots with their signatures.
    pub(super) fn of(store: &Store, snapshots: Vec<Snapshot>) -> Result<Vec<Self>> {
        let mut signatures = store.signatures(&snapshots)?;
        let of = |snapshot: Snapshot| {
            let signatures = signatures.remove(&snapshot.id).unwrap_or_default();
            Self { snapshot, signatures }
        };
        Ok(snapshots.into_iter().map(of).collect())
    }

    /// In a word: whether a trusted key signed it, or another.
    pub(super) fn word(&self) -> &'static str {
        match self.signatures.iter().map(|signature| signature.trusted).max() {
            Some(true) => "trusted",
            Some(false) => "signed",
            None => "",
        }
    }

    /// A line for each signature.
    pub(super) fn facts(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.signatures.iter().map(|Signature { key, trusted }| {
            ("signed by", format!("{key}{}", if *trusted { " (trusted)" } else { "" }))
        })
    }
}

/// Signs snapshots that are there.
pub(super) fn sign(references: &[OsString], key: &Path, stores: &StoreArgs) -> Result<Outcome> {
    let key = signing_key(key)?;
    let options = stores.options();
    let found: Vec<_> =
        references.iter().map(|it| selected(it, &options)).collect::<Result<_>>()?;
    let mut out = stdout()?;
    for (store, snapshot) in found {
        store.sign(snapshot.id, &key)?;
        let Snapshot { record, .. } = &snapshot;
        output(writeln!(out, "signed {} {} {}", short(&snapshot), record.series, record.time))?;
    }
    output(out.flush())?;
    Ok(Outcome::Done)
}

/// Writes a new key to `path`, and what trusts it to `path`.pub.
pub(super) fn generate_key(path: &Path) -> Result<Outcome> {
    let (secret, public) = SigningKey::generate()?;
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    let write = |path: &Path, mode, text: &str| -> Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(mode).open(path);
        let written = file.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.within(|| path.display().to_string())
    };
    write(path, 0o600, &secret)?;
    write(Path::new(&public_path), 0o644, &public)?;
    Ok(Outcome::Done)
}
