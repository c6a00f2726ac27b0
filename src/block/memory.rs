//! Bytes held in memory: tests, fuzzing, and small patches over a source.

use std::fs::File;

use super::{BlockSource, Extent, Origin, check_range};
use crate::error::Result;

/// A source over bytes in memory.
#[derive(Debug, Clone)]
pub struct MemorySource(Vec<u8>);

impl MemorySource {
    /// A source of exactly `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl BlockSource for MemorySource {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len())?;
        let offset = offset as usize;
        buf.copy_from_slice(&self.0[offset..offset + buf.len()]);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.len().saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len().saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
