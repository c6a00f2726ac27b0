//! The disk as it would be after its journal is replayed. The image is never written, and nothing
//! is copied: for each block that the journal has a newer copy of, it is known where that is.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use super::cause::Cause;
use super::journal;
use crate::block::{BlockSource, Extent, Origin};
use crate::error::Result;

/// The journal's copy of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Copy {
    /// The block of the volume where it is.
    pub(super) place: u64,
    /// Whether its first four bytes were set to zero, since they were the journal's own magic.
    pub(super) escaped: bool,
    /// Whether it does not match its checksum. The block in its place is then outdated, so that
    /// there is nothing right to show.
    pub(super) damaged: bool,
}

/// A source with the blocks of a journal laid over it.
#[derive(Debug)]
pub(super) struct Replayed {
    source: Arc<dyn BlockSource>,
    block_size: u64,
    copies: BTreeMap<u64, Copy>,
}

impl Replayed {
    pub(super) fn new(
        source: Arc<dyn BlockSource>,
        block_size: u64,
        copies: BTreeMap<u64, Copy>,
    ) -> Self {
        Self { source, block_size, copies }
    }

    /// The first replayed block at or after `block`.
    fn next_copy(&self, block: u64) -> Option<(u64, Copy)> {
        self.copies.range(block..).next().map(|(&block, &copy)| (block, copy))
    }

    fn read_copy(&self, block: u64, copy: Copy, within: u64, buf: &mut [u8]) -> Result<()> {
        if copy.damaged {
            return Err(Cause::JournalCopy(block).into());
        }
        self.source.read_at(copy.place * self.block_size + within, buf)?;
        if copy.escaped {
            let magic = journal::MAGIC.to_be_bytes();
            let from = (within as usize).min(magic.len());
            for (byte, &right) in buf.iter_mut().zip(&magic[from..]) {
                *byte = right;
            }
        }
        Ok(())
    }
}

impl BlockSource for Replayed {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let block = at / self.block_size;
            let copied = self.next_copy(block);
            let (len, copy) = match copied {
                Some((copied, copy)) if copied == block => {
                    (self.block_size - at % self.block_size, Some(copy))
                }
                Some((copied, _)) => (copied.saturating_mul(self.block_size) - at, None),
                None => (rest.len() as u64, None),
            };
            let (piece, tail) = rest.split_at_mut((rest.len() as u64).min(len) as usize);
            match copy {
                Some(copy) => self.read_copy(block, copy, at % self.block_size, piece)?,
                None => self.source.read_at(at, piece)?,
            }
            at += piece.len() as u64;
            rest = tail;
        }
        // An empty read, too, must lie within.
        if at == offset { self.source.read_at(offset, &mut []) } else { Ok(()) }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let block = offset / self.block_size;
        match self.next_copy(block) {
            Some((copied, _)) if copied == block => {
                let len = self.block_size - offset % self.block_size;
                Ok(Extent { len: len.min(self.len().saturating_sub(offset)).max(1), hole: false })
            }
            Some((copied, _)) => {
                let extent = self.source.extent_at(offset)?;
                let free = copied.saturating_mul(self.block_size) - offset;
                Ok(Extent { len: extent.len.min(free), ..extent })
            }
            None => self.source.extent_at(offset),
        }
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let block = offset / self.block_size;
        let within = offset % self.block_size;
        let Some((copied, copy)) = self.next_copy(block) else {
            return self.source.origin_at(offset);
        };
        if copied != block {
            let origin = self.source.origin_at(offset)?;
            let free = copied.saturating_mul(self.block_size) - offset;
            return Ok(Origin { len: origin.len.min(free), ..origin });
        }
        let rest = self.block_size - within;
        let len = rest.min(self.len().saturating_sub(offset)).max(1);
        // An escaped block is not what is stored.
        if copy.escaped || copy.damaged {
            return Ok(Origin::unknown(len));
        }
        let origin = self.source.origin_at(copy.place * self.block_size + within)?;
        Ok(Origin { len: origin.len.min(len), ..origin })
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
