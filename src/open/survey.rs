//! What is on a disk, without showing it: for `strata info`.

use std::sync::Arc;

use serde::Serialize;

use super::Disk;
use super::system::{Contents, Found};
use crate::block::Cache;
use crate::error::{Kind, Result};
use crate::fs::{self, Info};
use crate::volume::{Table, Volume};

/// What is on a disk.
#[derive(Debug, Clone, Serialize)]
pub struct Survey {
    /// The partition table, if there is one.
    pub table: Option<Table>,
    /// What is on each volume; or one entry, without a volume, for the disk as a whole.
    pub volumes: Vec<SurveyedVolume>,
    /// What the operating system calls itself: `PRETTY_NAME` of its `/etc/os-release`.
    pub os: Option<String>,
    /// What an operator should know, one line each.
    pub warnings: Vec<String>,
}

/// A volume, or the disk as a whole, and what is on it.
#[derive(Debug, Clone, Serialize)]
pub struct SurveyedVolume {
    /// Where it is; `None` for the disk as a whole.
    pub volume: Option<Volume>,
    /// The filesystem, if it could be opened.
    pub filesystem: Option<Info>,
    /// What its signature says it is, if it could not be opened.
    pub identified: Option<String>,
}

/// Looks at all that is on `disk`. Damage is told in the warnings.
///
/// # Errors
/// The host's, when the partition table cannot be read.
pub fn survey(disk: &Disk, cache: &Arc<Cache>) -> Result<Survey> {
    let contents = match Contents::look(&disk.source, cache) {
        Ok(contents) => contents,
        Err(error) if error.kind() == Kind::Corrupt => {
            let warnings = vec![error.to_string()];
            return Ok(Survey { table: None, volumes: Vec::new(), os: None, warnings });
        }
        Err(error) => return Err(error),
    };
    let warnings = contents.warnings();
    let os = contents.system_name();
    let Contents { table, places } = contents;
    let volumes = places.into_iter().map(|place| {
        let (filesystem, identified) = match place.found {
            Found::Filesystem(filesystem) => (Some(filesystem.info), None),
            Found::Unknown(what) => (None, what),
            Found::Failed(_) => {
                let source = place.volume.as_ref().map(|volume| volume.window(&disk.source));
                let source = source.unwrap_or_else(|| Ok(Arc::clone(&disk.source)));
                let what = source.and_then(|source| fs::identify(&*source));
                // Why it cannot be opened is among the warnings.
                (None, what.unwrap_or_default())
            }
        };
        let identified = identified.map(str::to_owned);
        SurveyedVolume { volume: place.volume, filesystem, identified }
    });
    Ok(Survey { volumes: volumes.collect(), table, os, warnings })
}
