//! What differs between two disks of one store: equal pages of their maps are skipped unread.

use std::ops::Range;

use super::Store;
use super::id::{BlobKind, Id};
use super::map::{FANOUT, Shape, span};
use super::record::DiskRecord;
use crate::error::Result;

/// A map, or a part of one, that may be lower than the one it is compared with: then it is the first child of
/// what would be above it, and the others are zeros.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: Id,
    /// The level of the page.
    level: u32,
}

/// What is told of, in order.
type Emit<'a> = dyn FnMut(Range<u64>, bool) -> Result<()> + 'a;

impl Store {
    /// What a block with these bytes is called, filled up with zeros to a whole one. A block of zeros is
    /// [`Id::ZERO`] where it is stored, which this does not say.
    pub fn block_id(&self, block: &[u8]) -> Id {
        self.keys.id(BlobKind::Block, block)
    }

    /// The ids of the blocks that the page `leaf` of level 0 of a disk's map tells of; zeros at the end are left out.
    ///
    /// # Errors
    /// Those of reading its map.
    pub fn block_ids(&self, disk: &DiskRecord, leaf: u64) -> Result<Vec<Id>> {
        let shape = Shape::new(disk.size, self.block_size().into())?;
        let page = self.map_page(self.leaf(disk.root, shape, leaf)?)?;
        let left = shape.blocks.saturating_sub(leaf.saturating_mul(FANOUT)).min(FANOUT);
        let mut ids: Vec<Id> = (0..left).map(|nth| page.get(nth)).collect();
        ids.truncate(ids.iter().rposition(|id| !id.is_zero()).map_or(0, |last| last + 1));
        Ok(ids)
    }

    /// Blocks of a disk that one page of its map tells of.
    pub const fn blocks_of_page() -> u64 {
        FANOUT
    }

    /// Calls `emit` with the ranges in which `after` does not hold the blocks that `before` does, in order,
    /// and whether it holds zeros there. Past the end of either all of it is told. No block is read.
    ///
    /// # Errors
    /// Those of reading the maps, and of `emit`.
    pub fn differences(
        &self,
        before: &DiskRecord,
        after: &DiskRecord,
        emit: &mut dyn FnMut(Range<u64>, bool) -> Result<()>,
    ) -> Result<()> {
        let block_size = u64::from(self.block_size());
        let shape = |disk: &DiskRecord| Shape::new(disk.size, block_size);
        let (old, new) = (shape(before)?, shape(after)?);
        let level = old.level.max(new.level);
        let both = before.size.min(after.size);
        let parts =
            [Part { id: before.root, level: old.level }, Part { id: after.root, level: new.level }];
        let mut runs = Runs { last: None, emit };
        self.walk(parts, level, 0, &mut |block, zeros| {
            let start = block * block_size;
            runs.add(start..start.saturating_add(block_size).min(both), zeros)
        })?;
        if after.size > both {
            let nothing = Part { id: Id::ZERO, level };
            let mut at = both;
            self.walk([nothing, parts[1]], level, 0, &mut |block, _| {
                let start = (block * block_size).max(at);
                let end = (block + 1).saturating_mul(block_size).min(after.size);
                if start < end {
                    runs.add(at..start, true)?;
                    runs.add(start..end, false)?;
                    at = end;
                }
                Ok(())
            })?;
            runs.add(at..after.size, true)?;
        } else {
            runs.add(both..before.size, true)?;
        }
        runs.last.take().map_or(Ok(()), |(range, zeros)| (runs.emit)(range, zeros))
    }

    /// Calls `each` with the blocks that two parts of maps differ in, and whether the second is zeros there.
    fn walk(
        &self,
        parts: [Part; 2],
        level: u32,
        first: u64,
        each: &mut dyn FnMut(u64, bool) -> Result<()>,
    ) -> Result<()> {
        let [before, after] = parts;
        // The same page stands for the same at one level only.
        if before.id == after.id && (before.level == after.level || before.id.is_zero()) {
            return Ok(());
        }
        let (before, after) = (self.children(before, level)?, self.children(after, level)?);
        for nth in 0..before.len().max(after.len()) {
            let child =
                |ids: &[Part]| ids.get(nth).copied().unwrap_or(Part { id: Id::ZERO, level: 0 });
            let (before, after) = (child(&before), child(&after));
            if level == 0 {
                if before.id != after.id {
                    each(first + nth as u64, after.id.is_zero())?;
                }
            } else {
                let first = first + nth as u64 * (span(level) / FANOUT);
                self.walk([before, after], level - 1, first, each)?;
            }
        }
        Ok(())
    }

    /// What lies below a part at `level`.
    fn children(&self, part: Part, level: u32) -> Result<Vec<Part>> {
        if part.id.is_zero() {
            return Ok(Vec::new());
        }
        if part.level < level {
            return Ok(vec![part]);
        }
        let page = self.map_page(part.id)?;
        let below = part.level.saturating_sub(1);
        Ok((0..FANOUT).map(|nth| Part { id: page.get(nth), level: below }).collect())
    }
}

/// Ranges on their way, those that go on joined.
struct Runs<'a, 'b> {
    last: Option<(Range<u64>, bool)>,
    emit: &'a mut Emit<'b>,
}

impl Runs<'_, '_> {
    fn add(&mut self, range: Range<u64>, zeros: bool) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        match &mut self.last {
            Some((last, kind)) if last.end == range.start && *kind == zeros => {
                last.end = range.end;
                Ok(())
            }
            last => match last.replace((range, zeros)) {
                Some((range, zeros)) => (self.emit)(range, zeros),
                None => Ok(()),
            },
        }
    }
}
