//! Maps: which block of a disk has which id (`docs/store-format.md`, "Map").

use super::cause::Cause;
use super::id::{ID, Id};

/// Ids of a page.
pub(super) const FANOUT: u64 = 1024;
/// The highest level: more than any disk needs.
const MOST_LEVEL: u32 = 5;

/// How large the map of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Blocks of the disk.
    pub(super) blocks: u64,
    /// The level of the root page.
    pub(super) level: u32,
}

impl Shape {
    /// Of a disk of `size` bytes in blocks of `block_size`.
    pub(super) fn new(size: u64, block_size: u64) -> Result<Self, Cause> {
        let blocks = size.div_ceil(block_size);
        let level = (0..=MOST_LEVEL).find(|&level| span(level) >= blocks);
        Ok(Self { blocks, level: level.ok_or(Cause::DiskSize(size))? })
    }

    /// How many pages of level 0 there are.
    pub(super) fn leaves(&self) -> u64 {
        self.blocks.div_ceil(FANOUT)
    }
}

/// Blocks that a page of that level covers.
pub(super) fn span(level: u32) -> u64 {
    FANOUT.saturating_pow(level + 1)
}

/// The stored form of a page: its ids without the zeros at its end. Empty if all are.
pub(super) fn page_bytes(ids: &[Id]) -> Vec<u8> {
    let used = ids.iter().rposition(|id| !id.is_zero()).map_or(0, |last| last + 1);
    let mut bytes = Vec::with_capacity(used * ID);
    for id in ids.iter().take(used) {
        bytes.extend_from_slice(&id.0);
    }
    bytes
}

/// The ids of a page.
pub(super) fn page_ids(bytes: &[u8]) -> Result<Box<[Id]>, Cause> {
    if !bytes.len().is_multiple_of(ID) || bytes.len() as u64 > FANOUT * ID as u64 {
        return Err(Cause::MapPage(bytes.len() as u64));
    }
    Ok(crate::wire::records::<Id>(bytes).into())
}
