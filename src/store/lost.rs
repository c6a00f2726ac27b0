//! What is lost, and which parts of which disks with it.
//!
//! From the roots down, each page is read once, level by level and in the order of ids, as collecting does; then
//! the blocks are looked for in the indexes, all in one pass. Only if something is lost, the pages that lead to it are found, from
//! below up, and then each disk's map is walked down where they are.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::Serialize;

use super::Store;
use super::check::{Packs, is_damage};
use super::id::{BlobKind, Id};
use super::index::{Index, Location};
use super::lease::Root;
use super::map::{FANOUT, Shape, span};
use super::merge::Merged;
use super::record::{DiskRecord, Snapshot};
use super::sorted::{Gathering, Sorted};
use crate::error::Result;

/// Map pages that are read at once.
const PAGES: usize = 64;
/// Ranges that are told of all disks together,
pub(super) const MOST_RANGES: usize = 1 << 20;
/// and of one that comes when those are used up.
const FEWEST_RANGES: usize = 16;
/// Pages of one map that are walked to tell what is lost exactly: those of 128 TiB in blocks of 128 KiB. A map that somebody made up may
/// have any number, one page in many places.
const MOST_PAGES: u64 = 1 << 20;

/// What of a disk is lost.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Lost {
    /// The series of the snapshot.
    pub series: String,
    /// Of when the snapshot is.
    pub time: Timestamp,
    /// Which of its disks.
    pub disk: String,
    /// Bytes of the disk that cannot be read.
    pub bytes: u64,
    /// Where they are, in order. Of very many the last one reaches to the end of what is lost.
    pub ranges: Vec<LostRange>,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LostRange {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
}

impl LostRange {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.length)
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { series, time, disk, bytes, ranges } = self;
        let first = ranges.first().map_or(0, |range| range.offset);
        write!(f, "{series} of {time} is not whole: {bytes} bytes of \"{disk}\" are lost, ")?;
        match ranges.len() {
            0 | 1 => write!(f, "at {first:#x}"),
            many => write!(f, "in {many} places from {first:#x} on"),
        }
    }
}

/// What maps lead to.
#[derive(Debug)]
pub(super) struct Reached {
    /// The pages, by their levels.
    levels: Vec<Sorted>,
    /// Those of them that cannot be read.
    pub(super) broken: Sorted,
    pub(super) blocks: Sorted,
}

/// What of it is lost.
#[derive(Debug)]
pub(super) struct Losses {
    /// The pages that are, or lead to what is, by their levels.
    levels: Vec<Sorted>,
    blocks: Sorted,
}

impl Losses {
    pub(super) fn is_nothing(&self) -> bool {
        self.levels.iter().all(Sorted::is_empty)
    }
}

impl Store {
    /// All pages and blocks that the disks with these roots need, as far as pages can be read.
    pub(super) fn reach(
        &self,
        roots: &BTreeSet<Root>,
        step: &(dyn Fn() + Sync),
    ) -> Result<Reached> {
        let mut levels: Vec<Gathering> = Vec::new();
        for root in roots.iter().filter(|root| !root.root.is_zero()) {
            let level = Shape::new(root.size, self.block_size().into())?.level as usize;
            levels.resize_with(levels.len().max(level + 1), Gathering::new);
            if let Some(level) = levels.get_mut(level) {
                level.add(root.root)?;
            }
        }
        let (mut reached, mut broken) = (Vec::new(), Gathering::new());
        let mut blocks = Gathering::new();
        while let Some(level) = levels.pop() {
            let sorted = level.finish();
            let below = levels.last_mut().unwrap_or(&mut blocks);
            self.each_page(&sorted, &mut |id, children| {
                step();
                match children {
                    Some(children) => children.iter().try_for_each(|id| below.add(*id)),
                    None => broken.add(id),
                }
            })?;
            reached.push(sorted);
        }
        reached.reverse();
        Ok(Reached { levels: reached, broken: broken.finish(), blocks: blocks.finish() })
    }

    /// Calls `each` with each of these pages, and what it leads to unless it cannot be read.
    fn each_page(
        &self,
        pages: &Sorted,
        each: &mut dyn FnMut(Id, Option<Vec<Id>>) -> Result<()>,
    ) -> Result<()> {
        let mut ids = pages.iter()?;
        loop {
            let mut batch = Vec::with_capacity(PAGES);
            while batch.len() < PAGES
                && let Some(id) = ids.next()?
            {
                batch.push(id);
            }
            if batch.is_empty() {
                return Ok(());
            }
            let read = |id: &Id| match self.map_page(*id) {
                Ok(page) => Ok((*id, Some(page.ids().collect()))),
                Err(error) if is_damage(&error) => Ok((*id, None)),
                Err(error) => Err(error),
            };
            for (id, children) in batch.par_iter().map(read).collect::<Result<Vec<_>>>()? {
                each(id, children)?;
            }
        }
    }

    /// What is lost of what was reached, and how many blocks that was.
    pub(super) fn losses(
        &self,
        reached: &Reached,
        indexes: &[Arc<Index>],
        packs: &Packs,
    ) -> Result<(u64, Losses)> {
        let mut room = (Vec::new(), Vec::new());
        let (count, blocks) = absent(&reached.blocks, indexes, &mut |place| {
            self.is_readable(place, packs, &mut room)
        })?;
        let mut levels: Vec<Sorted> = Vec::new();
        if blocks.is_empty() && reached.broken.is_empty() {
            return Ok((count, Losses { levels, blocks }));
        }
        for pages in &reached.levels {
            let below = levels.last().unwrap_or(&blocks);
            let mut leading = Gathering::new();
            self.each_page(pages, &mut |id, children| {
                let leads = match children {
                    None => true,
                    Some(children) => any(&children, below)?,
                };
                if leads { leading.add(id) } else { Ok(()) }
            })?;
            levels.push(leading.finish());
        }
        Ok((count, Losses { levels, blocks }))
    }

    /// Whether a blob can be read where it lies. Only what is doubtful is tried.
    pub(super) fn is_readable(
        &self,
        place: &Location,
        packs: &Packs,
        (stored, plain): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<bool> {
        if !packs.there.contains_key(&place.pack) {
            return Ok(false);
        }
        if !packs.doubtful.contains(&place.pack) {
            return Ok(true);
        }
        match self.stored_bytes(place, stored, plain) {
            Ok(()) => Ok(true),
            Err(error) if is_damage(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What of a disk is lost, if anything. `ranges_left` is how many ranges may still be told of.
    pub(super) fn lost_of(
        &self,
        snapshot: &Snapshot,
        disk: &DiskRecord,
        losses: &Losses,
        ranges_left: &mut usize,
    ) -> Result<Option<Lost>> {
        let block_size = u64::from(self.block_size());
        let Shape { level, blocks: end } = Shape::new(disk.size, block_size)?;
        let most = (*ranges_left).max(FEWEST_RANGES);
        let (mut bytes, mut ranges) = (0, Vec::<LostRange>::new());
        let root = Part { id: disk.root, level, first: 0 };
        let mut walk = Walk { losses, end, pages: MOST_PAGES };
        self.lost_below(root, &mut walk, &mut |blocks| {
            let offset = blocks.start.saturating_mul(block_size);
            let end = blocks.end.saturating_mul(block_size).min(disk.size);
            let length = end.saturating_sub(offset);
            bytes += length;
            let is_full = ranges.len() >= most;
            match ranges.last_mut() {
                Some(last) if last.end() == offset || is_full => last.length = end - last.offset,
                _ => ranges.push(LostRange { offset, length }),
            }
        })?;
        *ranges_left = ranges_left.saturating_sub(ranges.len());
        let (series, time) = (snapshot.record.series.clone(), snapshot.record.time);
        let lost = || Lost { series, time, disk: disk.name.clone(), bytes, ranges };
        Ok((bytes > 0).then(lost))
    }

    /// Calls `each` with the blocks that are lost of what a page covers.
    fn lost_below(
        &self,
        part: Part,
        walk: &mut Walk<'_>,
        each: &mut dyn FnMut(Range<u64>),
    ) -> Result<()> {
        let Part { id, level, first } = part;
        let leading = walk.losses.levels.get(level as usize);
        if first >= walk.end
            || id.is_zero()
            || !leading.map_or(Ok(false), |leading| leading.contains(&id))?
        {
            return Ok(());
        }
        let whole = first..first.saturating_add(span(level)).min(walk.end);
        let Some(left) = walk.pages.checked_sub(1) else {
            each(whole);
            return Ok(());
        };
        walk.pages = left;
        let page = match self.map_page(id) {
            Ok(page) => page,
            Err(error) if is_damage(&error) => {
                each(whole);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for number in 0..FANOUT {
            let id = page.get(number);
            let first = first.saturating_add(number.saturating_mul(span(level) / FANOUT));
            if first >= walk.end {
                break;
            }
            if level > 0 {
                self.lost_below(Part { id, level: level - 1, first }, walk, each)?;
            } else if !id.is_zero() && walk.losses.blocks.contains(&id)? {
                each(first..first + 1);
            }
        }
        Ok(())
    }
}

/// A walk through the map of one disk.
struct Walk<'a> {
    losses: &'a Losses,
    /// How many blocks the disk has.
    end: u64,
    /// Pages that may still be read.
    pages: u64,
}

/// A page in its place.
#[derive(Debug, Clone, Copy)]
struct Part {
    id: Id,
    level: u32,
    /// The first block that it covers.
    first: u64,
}

fn any(ids: &[Id], of: &Sorted) -> Result<bool> {
    for id in ids {
        if of.contains(id)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How many blocks these are, and those of them that lie in no place that is good.
pub(super) fn absent(
    blocks: &Sorted,
    indexes: &[Arc<Index>],
    is_good: &mut dyn FnMut(&Location) -> Result<bool>,
) -> Result<(u64, Sorted)> {
    let mut merged = Merged::new(indexes)?;
    let mut wanted = blocks.iter()?;
    let (mut count, mut absent) = (0, Gathering::new());
    let mut places: Vec<Location> = Vec::new();
    let place = |places: &[Location]| places.first().map(|it| (it.blob.id, it.blob.kind));
    merged.next(&mut places)?;
    while let Some(id) = wanted.next()? {
        count += 1;
        let block = (id, BlobKind::Block);
        while place(&places).is_some_and(|found| found < block) {
            merged.next(&mut places)?;
        }
        let mut is_there = false;
        if place(&places) == Some(block) {
            for place in &places {
                is_there = is_there || is_good(place)?;
            }
        }
        if !is_there {
            absent.add(id)?;
        }
    }
    Ok((count, absent.finish()))
}
