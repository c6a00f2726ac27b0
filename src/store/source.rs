//! What a disk was read from, so that what did not change since need not be read again.
//!
//! A file is taken as unchanged if it is the same one, as long, and was neither written nor otherwise changed since by
//! the host's clock. Of devices nobody can say so.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::block::{BlockSource, Home};
use crate::error::{Error, Result};

/// How long a file must have been left alone: two changes within a tick of the host's clock have one time.
const SETTLED: Duration = Duration::from_secs(2);

/// One image of a chain, and the files it is made of.
#[derive(Debug)]
pub struct SourceLayer {
    /// How it is read.
    pub format: String,
    /// Bytes of the disk it describes.
    pub size: u64,
    /// Its files.
    pub files: Vec<File>,
}

/// What is recorded of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerState {
    format: String,
    size: u64,
    files: Vec<FileState>,
}

/// Of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileState {
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// How the files of each layer are now; none of one whose state cannot tell whether it changes.
///
/// # Errors
/// The host's.
pub(super) fn states(layers: &[SourceLayer]) -> Result<Vec<Option<LayerState>>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let settled = now.saturating_sub(SETTLED);
    let state = |layer: &SourceLayer| {
        let mut files = Vec::with_capacity(layer.files.len());
        for file in &layer.files {
            // What is written through a mapping has its time once it was written back, and again with the next write. A
            // file that cannot be flushed tells nothing.
            if rustix::fs::fdatasync(file).is_err() {
                return Ok(None);
            }
            let found = file.metadata().map_err(Error::io)?;
            let modified = (found.mtime(), found.mtime_nsec());
            let changed = (found.ctime(), found.ctime_nsec());
            let last = u64::try_from(modified.0.max(changed.0)).unwrap_or(u64::MAX);
            if !found.is_file() || last >= settled.as_secs() {
                return Ok(None);
            }
            files.push(FileState {
                device: found.dev(),
                inode: found.ino(),
                len: found.len(),
                modified,
                changed,
            });
        }
        let state = LayerState { format: layer.format.clone(), size: layer.size, files };
        Ok(Some(state).filter(|state| !state.files.is_empty()))
    };
    layers.iter().map(state).collect()
}

/// The part of a disk that is as it was when its parent was made: what lies in these files.
#[derive(Debug)]
pub(super) struct Unchanged {
    files: Vec<(u64, u64)>,
    /// Whether that is all of it.
    pub(super) is_all: bool,
}

impl Unchanged {
    /// What did not change if the disk was made of `before`, and is of `now`: layers may have come above those that were there.
    pub(super) fn new(before: &[LayerState], now: &[Option<LayerState>]) -> Option<Self> {
        let above = now.len().checked_sub(before.len()).filter(|_| !before.is_empty())?;
        let mut pairs = before.iter().zip(now.get(above..)?);
        if !pairs.all(|(before, now)| now.as_ref() == Some(before)) {
            return None;
        }
        let files = before.iter().flat_map(|layer| &layer.files);
        let files = files.map(|file| (file.device, file.inode)).collect();
        Some(Self { files, is_all: above == 0 })
    }

    /// Whether each byte of `len` at `offset` lies in one of the files.
    pub(super) fn covers(&self, source: &dyn BlockSource, offset: u64, len: u64) -> Result<bool> {
        let mut at = offset;
        while at < offset + len {
            let origin = source.origin_at(at)?;
            let (Home::Stored { file, .. } | Home::Encoded { file, .. }) = origin.home else {
                return Ok(false);
            };
            if !self.files.contains(&file) {
                return Ok(false);
            }
            at += origin.len;
        }
        Ok(true)
    }
}
