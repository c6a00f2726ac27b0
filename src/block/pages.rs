//! A source read through the shared cache in pages: for metadata, which is read in small pieces
//! again and again.

use std::fs::File;
use std::sync::Arc;

use super::{BlockSource, Cache, Extent, Key, Origin, Owner, Unit, check_range};
use crate::error::Result;

/// A source whose reads go through the shared cache.
#[derive(Debug, Clone)]
pub struct Pages {
    source: Arc<dyn BlockSource>,
    cache: Arc<Cache>,
    owner: Owner,
}

impl Pages {
    /// Bytes of one page: a few dozen inodes, or one folder block and its neighbours.
    pub const SIZE: usize = 16 << 10;

    /// Reads `source` through `cache`.
    pub fn new(source: Arc<dyn BlockSource>, cache: Arc<Cache>) -> Self {
        let owner = cache.owner();
        Self { source, cache, owner }
    }

    /// Calls `read` with the bytes at `offset`, `len` of them, without a copy if they lie in one
    /// page.
    ///
    /// # Errors
    /// As [`BlockSource::read_at`].
    pub fn with<R>(&self, offset: u64, len: usize, read: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let within = (offset % Self::SIZE as u64) as usize;
        if within + len <= Self::SIZE {
            check_range(offset, len, self.source.len())?;
            if let Some(page) = self.page(offset / Self::SIZE as u64) {
                return Ok(read(&page.0[within..within + len]));
            }
        }
        let mut bytes = vec![0; len];
        self.read_at(offset, &mut bytes)?;
        Ok(read(&bytes))
    }

    /// The page of this number, or `None` if some part of it cannot be read: then the caller
    /// reads just what it needs, which may lie beside the damage.
    fn page(&self, number: u64) -> Option<Arc<Unit>> {
        self.cache
            .get_or_load(Key(self.owner, number), || {
                let start = number * Self::SIZE as u64;
                let len = (self.source.len() - start).min(Self::SIZE as u64) as usize;
                let mut bytes = vec![0; len].into_boxed_slice();
                self.source.read_at(start, &mut bytes)?;
                Ok(Unit(bytes))
            })
            .ok()
    }
}

impl BlockSource for Pages {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.source.len())?;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = (at % Self::SIZE as u64) as usize;
            let len = rest.len().min(Self::SIZE - within);
            let (piece, tail) = rest.split_at_mut(len);
            match self.page(at / Self::SIZE as u64) {
                Some(page) => piece.copy_from_slice(&page.0[within..within + len]),
                None => self.source.read_at(at, piece)?,
            }
            at += len as u64;
            rest = tail;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.source.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        self.source.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&File> {
        self.source.whole_file()
    }
}
