//! What snapshots need, found from their maps.
//!
//! The maps of a disk are gone through from the oldest to the newest, and what one has in common with the one before is left
//! out: so pages are read as they lie in packs, each once or twice, and what comes to be sorted is little more than what
//! there is.

use std::collections::HashSet;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::Store;
use super::id::Id;
use super::lease::Root;
use super::map::{FANOUT, Shape};
use super::sorted::{Gathering, Sorted};
use crate::error::Result;

/// Map pages that are read at once.
const PAGES: usize = 64;
/// Pages that are remembered, for disks that have them in common: 40 MiB.
const REMEMBERED: usize = 1 << 19;

/// What the snapshots need.
#[derive(Debug)]
pub(super) struct Needed {
    pub(super) pages: Sorted,
    pub(super) blocks: Sorted,
}

/// Finds out what is needed.
pub(super) struct Marks<'a> {
    store: &'a Store,
    step: &'a (dyn Fn() + Sync),
    pages: Gathering,
    blocks: Gathering,
    /// Pages all below which was gone through, by their levels.
    done: HashSet<(u32, Id)>,
}

impl<'a> Marks<'a> {
    pub(super) fn new(store: &'a Store, step: &'a (dyn Fn() + Sync)) -> Self {
        let (pages, blocks) = (Gathering::new(), Gathering::new());
        Self { store, step, pages, blocks, done: HashSet::new() }
    }

    /// All pages and blocks that are below these roots: for each disk, those of its snapshots in order.
    ///
    /// # Errors
    /// Those of reading a page, which may be damaged.
    pub(super) fn all(mut self, disks: impl Iterator<Item = Vec<Root>>) -> Result<Needed> {
        for snapshots in disks {
            let mut before: Option<(u32, Id)> = None;
            for Root { root, size } in snapshots {
                let level = Shape::new(size, self.store.block_size().into())?.level;
                let before = before.replace((level, root));
                let before = before.filter(|(before, _)| *before == level);
                self.below(level, &[(root, before.map_or(Id::ZERO, |(_, root)| root))])?;
            }
        }
        Ok(Needed { pages: self.pages.finish(), blocks: self.blocks.finish() })
    }

    /// Marks pages of a level and what is below them. Each comes with one all below which is marked: the one in its
    /// place before.
    fn below(&mut self, level: u32, pages: &[(Id, Id)]) -> Result<()> {
        for batch in pages.chunks(PAGES) {
            let mut wanted = Vec::with_capacity(PAGES);
            for &(page, before) in batch {
                if page.is_zero() || page == before || self.done.contains(&(level, page)) {
                    continue;
                }
                self.pages.add(page)?;
                if self.done.len() < REMEMBERED {
                    self.done.insert((level, page));
                }
                wanted.push((page, before));
            }
            let (store, step) = (self.store, self.step);
            let read = |&(page, before): &(Id, Id)| {
                step();
                Ok((store.map_page(page)?, store.map_page(before)?))
            };
            for (page, before) in wanted.par_iter().map(read).collect::<Result<Vec<_>>>()? {
                let ids = (0..FANOUT).map(|number| (page.get(number), before.get(number)));
                let mut new = ids.filter(|(id, before)| !id.is_zero() && id != before);
                match level.checked_sub(1) {
                    None => new.try_for_each(|(id, _)| self.blocks.add(id))?,
                    Some(level) => self.below(level, &new.collect::<Vec<_>>())?,
                }
            }
        }
        Ok(())
    }
}
