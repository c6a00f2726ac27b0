//! A range of another source: a partition, a member of an archive.

use std::fs::File;
use std::sync::Arc;

use super::{BlockSink, BlockSource, Extent, Origin, check_range};
use crate::error::{Error, Kind, Result};

/// `len` bytes of a source or sink from `start`, addressed from 0.
#[derive(Debug)]
pub struct Window<S: ?Sized = dyn BlockSource> {
    source: Arc<S>,
    start: u64,
    len: u64,
}

impl<S: BlockSource + ?Sized> Window<S> {
    /// The window of `len` bytes at `start`.
    ///
    /// # Errors
    /// [`Kind::OutOfBounds`] if it does not lie within `source`.
    pub fn new(source: Arc<S>, start: u64, len: u64) -> Result<Self> {
        if start.checked_add(len).is_none_or(|end| end > source.len()) {
            return Err(Error::new(
                Kind::OutOfBounds,
                format!("{len:#x} bytes at {start:#x} pass the end at {:#x}", source.len()),
            ));
        }
        Ok(Self { source, start, len })
    }

    /// Where the window begins in its source, in bytes.
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl<S: BlockSource + ?Sized> BlockSource for Window<S> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len)?;
        self.source.read_at(self.start + offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let extent = self.source.extent_at(self.start + offset)?;
        Ok(Extent { len: extent.len.min(self.len - offset), ..extent })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let origin = self.source.origin_at(self.start + offset)?;
        Ok(Origin { len: origin.len.min(self.len - offset), ..origin })
    }

    fn whole_file(&self) -> Option<&File> {
        (self.start == 0 && self.len == self.source.len())
            .then(|| self.source.whole_file())
            .flatten()
    }
}

impl<S: BlockSink + ?Sized> BlockSink for Window<S> {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(offset, data.len(), self.len)?;
        self.source.write_at(self.start + offset, data)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let message = format!("{len:#x} bytes at {offset:#x} pass the end at {:#x}", self.len);
            return Err(Error::new(Kind::OutOfBounds, message));
        }
        self.source.write_zeroes(self.start + offset, len)
    }

    fn flush(&self) -> Result<()> {
        self.source.flush()
    }
}
