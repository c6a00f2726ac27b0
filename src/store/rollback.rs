//! A disk made equal to a snapshot: what is equal already is neither fetched nor written.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::Mutex;

use super::create::Progress;
use super::id::{BlobKind, Id};
use super::record::DiskRecord;
use super::{MOST_WORKERS, Store};
use crate::block::{BlockSink, BlockSource, is_zero};
use crate::error::{Error, Kind, Result, ResultExt};

/// Of a block that differs, only pieces of this size that differ are written.
const GRAIN: usize = 4096;

/// What is made equal to a snapshot.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// It is written.
    Sink(&'a dyn BlockSink),
    /// It is only looked at, to tell how much would be. It may be shorter.
    Source(&'a dyn BlockSource),
}

impl<'a> Target<'a> {
    fn source(self) -> &'a dyn BlockSource {
        match self {
            Self::Sink(sink) => sink,
            Self::Source(source) => source,
        }
    }
}

impl Store {
    /// Makes `target` hold what `disk` does, from its first byte to the end of the disk: `progress.stored` counts
    /// what is written, or would be. It is not flushed. If this fails, some of it is done, and doing it again
    /// does the rest.
    ///
    /// # Errors
    /// Those of the store and of the target, and [`Kind::Io`] once `stop` is set.
    pub fn roll_back(
        &self,
        disk: &DiskRecord,
        target: Target<'_>,
        progress: &Progress,
        stop: &AtomicBool,
    ) -> Result<()> {
        progress.total.store(disk.size, Ordering::Relaxed);
        let stretch = Self::blocks_of_page() * u64::from(self.block_size());
        let leaves = disk.size.div_ceil(stretch);
        let next = AtomicU64::new(0);
        let failed = Mutex::new(None);
        let work = || {
            let mut work = Work::new(self, target, progress, stop);
            loop {
                let leaf = next.fetch_add(1, Ordering::Relaxed);
                if leaf >= leaves {
                    return;
                }
                if let Err(error) = work.stretch(disk, leaf) {
                    // The first failure is the cause; the others stop.
                    failed.lock().get_or_insert(error);
                    next.store(leaves, Ordering::Relaxed);
                    return;
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = workers.min(MOST_WORKERS).min(usize::try_from(leaves).unwrap_or(usize::MAX));
        thread::scope(|scope| {
            for _ in 1..workers {
                scope.spawn(work);
            }
            work();
        });
        failed.into_inner().map_or(Ok(()), Err)
    }
}

/// One worker's way through the disk.
struct Work<'a> {
    store: &'a Store,
    target: Target<'a>,
    progress: &'a Progress,
    stop: &'a AtomicBool,
    old: Vec<u8>,
    new: Vec<u8>,
}

impl<'a> Work<'a> {
    fn new(
        store: &'a Store,
        target: Target<'a>,
        progress: &'a Progress,
        stop: &'a AtomicBool,
    ) -> Self {
        let block = store.block_size() as usize;
        Self { store, target, progress, stop, old: vec![0; block], new: vec![0; block] }
    }

    /// What one page of the map tells of.
    fn stretch(&mut self, disk: &DiskRecord, leaf: u64) -> Result<()> {
        let block_size = u64::from(self.store.block_size());
        let ids = self.store.block_ids(disk, leaf)?;
        let start = leaf * Store::blocks_of_page() * block_size;
        let end = start.saturating_add(Store::blocks_of_page() * block_size).min(disk.size);
        let (mut at, mut nth) = (start, 0);
        // Up to where the target is known to be a hole, or data.
        let mut known = (start, false);
        while at < end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "interrupted"));
            }
            let range = at..(at + block_size).min(end);
            let id = ids.get(nth).copied().unwrap_or(Id::ZERO);
            let hole = self.is_hole(range.clone(), &mut known)?;
            self.block(range.clone(), id, hole)?;
            self.progress.done.fetch_add(range.end - at, Ordering::Relaxed);
            at = range.end;
            nth += 1;
        }
        Ok(())
    }

    /// Whether the target has nothing but holes in `range`, or ends before.
    fn is_hole(&self, range: Range<u64>, known: &mut (u64, bool)) -> Result<bool> {
        let target = self.target.source();
        let mut at = range.start;
        while at < range.end.min(target.len()) {
            if known.0 <= at {
                let extent = target.extent_at(at)?;
                *known = (at.saturating_add(extent.len.max(1)), extent.hole);
            }
            if !known.1 {
                return Ok(false);
            }
            at = known.0;
        }
        Ok(true)
    }

    /// Makes a block what `id` says.
    fn block(&mut self, range: Range<u64>, id: Id, hole: bool) -> Result<()> {
        if hole && id.is_zero() {
            return Ok(());
        }
        let len = (range.end - range.start) as usize;
        self.old.fill(0);
        let there = self.target.source().len().saturating_sub(range.start).min(len as u64);
        if !hole {
            let old = self.old.get_mut(..there as usize).unwrap_or_default();
            self.target.source().read_at(range.start, old)?;
            self.progress.read.fetch_add(there, Ordering::Relaxed);
        }
        if !hole && !id.is_zero() && self.store.block_id(&self.old) == id {
            return Ok(());
        }
        if id.is_zero() {
            self.new.fill(0);
        } else {
            let told = || format!("at byte {} of the snapshot", range.start);
            self.store.read_blob(BlobKind::Block, &id, &mut self.new).within(told)?;
        }
        self.write(range.start, len)
    }

    /// Writes what is new of a block.
    fn write(&self, start: u64, len: usize) -> Result<()> {
        /// What becomes of a piece.
        #[derive(PartialEq, Clone, Copy)]
        enum Change {
            None,
            Zeros,
            Data,
        }
        let (old, new) = (self.old.get(..len), self.new.get(..len));
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let change = |(old, new): (&[u8], &[u8])| match old == new {
            true => Change::None,
            false if is_zero(new) => Change::Zeros,
            false => Change::Data,
        };
        let changes: Vec<Change> = old.chunks(GRAIN).zip(new.chunks(GRAIN)).map(change).collect();
        let mut from = 0;
        for run in changes.chunk_by(|a, b| a == b) {
            let to = (from + run.len() * GRAIN).min(len);
            let at = start + from as u64;
            let change = run.first().copied().unwrap_or(Change::None);
            if change != Change::None {
                self.progress.stored.fetch_add((to - from) as u64, Ordering::Relaxed);
            }
            match (self.target, change) {
                (Target::Sink(sink), Change::Zeros) => sink.write_zeroes(at, (to - from) as u64)?,
                (Target::Sink(sink), Change::Data) => {
                    sink.write_at(at, new.get(from..to).unwrap_or_default())?;
                }
                (_, Change::None) | (Target::Source(_), _) => {}
            }
            from = to;
        }
        Ok(())
    }
}
