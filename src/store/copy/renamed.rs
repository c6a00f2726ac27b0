//! A disk of another store, of which some blocks are known by the names they have here.
//!
//! Stores that name blocks differently share no id. But of a snapshot whose predecessor was copied before, what did not
//! change since is what lies at the same place of that copy: its blocks are neither read nor hashed.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use crate::block::{BlockSource, Extent, Home, Origin};
use crate::error::{Kind, Result};
use crate::store::id::Id;
use crate::store::map::{FANOUT, Shape};
use crate::store::{DiskRecord, Store};

/// A disk that is copied into `store`.
#[derive(Debug)]
pub(super) struct Renamed {
    source: Arc<dyn BlockSource>,
    /// Where it may differ from the copy, in order.
    changed: Vec<Range<u64>>,
    store: Arc<Store>,
    /// The map of the copy.
    root: Id,
    shape: Shape,
}

impl Renamed {
    /// `source` is the disk `now` of `from`, where `before` was the one that `copy` is a copy of.
    ///
    /// # Errors
    /// Those of reading the maps of `from`.
    pub(super) fn new(
        source: Arc<dyn BlockSource>,
        from: &Store,
        [before, now]: [&DiskRecord; 2],
        store: &Arc<Store>,
        copy: &DiskRecord,
    ) -> Result<Self> {
        let mut changed = Vec::new();
        from.differences(before, now, &mut |range, _| {
            changed.push(range);
            Ok(())
        })?;
        let shape = Shape::new(copy.size, store.block_size().into())?;
        Ok(Self { source, changed, store: Arc::clone(store), root: copy.root, shape })
    }

    fn is_changed(&self, range: &Range<u64>) -> bool {
        let next = self.changed.partition_point(|changed| changed.end <= range.start);
        self.changed.get(next).is_some_and(|changed| changed.start < range.end)
    }

    /// What the block at `block` is called in the copy.
    fn name(&self, block: u64) -> Result<Id> {
        let page =
            self.store.map_page(self.store.leaf(self.root, self.shape, block / FANOUT)?)?;
        Ok(page.get(block % FANOUT))
    }
}

impl BlockSource for Renamed {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.source.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.source.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let block_size = u64::from(self.store.block_size());
        let block = offset / block_size;
        let start = block * block_size;
        let end = start.saturating_add(block_size).min(self.source.len());
        let len = end.saturating_sub(offset).max(1);
        if self.is_changed(&(start..end)) {
            return Ok(Origin::unknown(len));
        }
        let home = match self.name(block) {
            Ok(Id::ZERO) => Home::Zeros,
            Ok(Id(name)) => Home::Named { name, within: (offset - start) as u32 },
            // What is damaged there is read, and stored anew.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => Home::Unknown,
            Err(error) => return Err(error),
        };
        Ok(Origin { len, home })
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
