//! Snapshot records: what makes a snapshot exist (`docs/store-format.md`, "Snapshot record").

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::Id;
use super::source::LayerState;

/// A snapshot: one or more disks as they were at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The series it belongs to.
    pub series: String,
    /// Of when it is.
    pub time: Timestamp,
    /// What it was given besides, in order.
    pub tags: Vec<String>,
    /// What it was compared with when it was made.
    pub parent: Option<Id>,
    /// What it was made of.
    pub source: String,
    /// Where it was made.
    pub host: String,
    /// By what program.
    pub program: String,
    /// What it is a copy of, if blocks are named differently there: the snapshot that was made first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<Id>,
    /// Its disks, one at least.
    pub disks: Vec<DiskRecord>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRecord {
    /// What it is called among the disks of the snapshot.
    pub name: String,
    /// Bytes of the disk.
    pub size: u64,
    /// How the files were that it was read from, top first, if that tells whether they changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_of: Option<Vec<LayerState>>,
    /// The root page of its map.
    pub root: Id,
    /// Blocks that are not zeros.
    pub blocks: u64,
    /// Blocks that the store did not have before.
    pub new_blocks: u64,
    /// What was stored for them and for new pages, in bytes.
    pub new_bytes: u64,
}

/// A snapshot that is in a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// The id of its record.
    pub id: Id,
    /// What the record says.
    #[serde(flatten)]
    pub record: Record,
}

impl Snapshot {
    /// What it has in common with its copies in stores that name blocks differently: the id of the first of them all.
    pub(super) fn origin(&self) -> Id {
        self.record.copy_of.unwrap_or(self.id)
    }
}
