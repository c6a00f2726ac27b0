//! A disk in memory that can be written.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use stratafs::block::{BlockSink, BlockSource, Extent, Origin};
use stratafs::error::{Error, Kind, Result};

const BLOCK: usize = 4096;

#[derive(Debug)]
pub struct Sink {
    pub bytes: RwLock<Vec<u8>>,
    pub flushes: AtomicU64,
    pub zeroed: AtomicU64,
}

impl Sink {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: RwLock::new(bytes), flushes: AtomicU64::new(0), zeroed: AtomicU64::new(0) }
    }
}

fn range(len: usize, offset: u64, count: usize) -> Result<std::ops::Range<usize>> {
    let start = offset as usize;
    match start.checked_add(count) {
        Some(end) if end <= len => Ok(start..end),
        _ => Err(Error::new(Kind::OutOfBounds, "past the end")),
    }
}

impl BlockSource for Sink {
    fn len(&self) -> u64 {
        self.bytes.read().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read();
        buf.copy_from_slice(&bytes[range(bytes.len(), offset, buf.len())?]);
        Ok(())
    }

    /// Blocks of zeros are holes.
    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let bytes = self.bytes.read();
        let start = offset as usize;
        let mut blocks = bytes[start / BLOCK * BLOCK..].chunks(BLOCK);
        let is_hole = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let hole = blocks.next().is_some_and(is_hole);
        let more = blocks.take_while(|block| is_hole(block) == hole).count();
        let end = ((start / BLOCK + 1 + more) * BLOCK).min(bytes.len());
        Ok(Extent { len: (end - start) as u64, hole })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len() - offset))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

impl BlockSink for Sink {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut bytes = self.bytes.write();
        let range = range(bytes.len(), offset, data.len())?;
        bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zeroed.fetch_add(1, Ordering::Relaxed);
        let mut bytes = self.bytes.write();
        let range = range(bytes.len(), offset, len as usize)?;
        bytes[range].fill(0);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
