//! The pages of level 0 of a disk that is read, by several threads at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Progress;
use super::draft::DraftDisk;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::cause::Cause;
use crate::store::id::Id;
use crate::store::map::{FANOUT, Shape};

pub(super) struct Leaves {
    /// Of each the id, and how many blocks of it are not zeros.
    found: Vec<OnceLock<(Id, u64)>>,
    next: AtomicU64,
    /// The first failure is the cause; the others stop.
    failed: Mutex<Option<Error>>,
    before: Before,
}

/// What an earlier attempt counted.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Before {
    /// Blocks that are not zeros in what it finished.
    blocks: u64,
    pub(super) new_blocks: u64,
    pub(super) new_bytes: u64,
}

/// What is finished.
pub(super) struct SoFar {
    /// The ids of all pages; zero of those that are not finished.
    pub(super) ids: Vec<Id>,
    /// Which are: see [`DraftDisk`].
    pub(super) done: Vec<(u64, u64)>,
    /// How many blocks of them are not zeros.
    pub(super) blocks: u64,
}

impl Leaves {
    /// All are to be done but those that are in `begun`.
    pub(super) fn new(
        store: &Store,
        shape: Shape,
        begun: Option<&DraftDisk>,
        progress: &Progress,
    ) -> Self {
        let mut leaves = Self {
            found: (0..shape.leaves()).map(|_| OnceLock::new()).collect(),
            next: AtomicU64::new(0),
            failed: Mutex::default(),
            before: Before::default(),
        };
        let Some(begun) = begun else { return leaves };
        match leaves.take_over(store, shape, begun) {
            Ok(count) => {
                let leaf = FANOUT * u64::from(store.block_size());
                let bytes = count.saturating_mul(leaf).min(begun.disk.size);
                progress.done.fetch_add(bytes, Ordering::Relaxed);
                progress.resumed.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                log::info!("beginning anew: {error}");
                leaves.found.iter_mut().for_each(|leaf| *leaf = OnceLock::new());
            }
        }
        leaves
    }

    /// How many that were.
    fn take_over(&mut self, store: &Store, shape: Shape, begun: &DraftDisk) -> Result<u64> {
        let mut count = 0;
        for &(first, end) in &begun.done {
            if first > end || end > shape.leaves() {
                return Err(Cause::Json(format!("pages {first} to {end}")).into());
            }
            for leaf in first..end {
                let id = store.leaf(begun.disk.root, shape, leaf)?;
                if let Some(found) = usize::try_from(leaf).ok().and_then(|at| self.found.get(at)) {
                    count += u64::from(found.set((id, 0)).is_ok());
                }
            }
        }
        self.before = Before {
            blocks: begun.disk.blocks,
            new_blocks: begun.disk.new_blocks,
            new_bytes: begun.disk.new_bytes,
        };
        Ok(count)
    }

    pub(super) fn before(&self) -> Before {
        self.before
    }

    /// The next one that is to be done.
    pub(super) fn next(&self) -> Option<u64> {
        loop {
            let leaf = self.next.fetch_add(1, Ordering::Relaxed);
            let found = usize::try_from(leaf).ok().and_then(|leaf| self.found.get(leaf))?;
            if found.get().is_none() {
                return Some(leaf);
            }
        }
    }

    /// One is done.
    pub(super) fn finish(&self, leaf: u64, id: Id, blocks: u64) {
        if let Some(found) = usize::try_from(leaf).ok().and_then(|leaf| self.found.get(leaf)) {
            // Each is taken once.
            let _ = found.set((id, blocks));
        }
    }

    pub(super) fn fail(&self, error: Error) {
        self.failed.lock().get_or_insert(error);
        self.next.store(self.found.len() as u64, Ordering::Relaxed);
    }

    /// Why it ended before all was done.
    pub(super) fn failed(&self) -> Option<Error> {
        self.failed.lock().take()
    }

    pub(super) fn so_far(&self) -> SoFar {
        let mut ids = Vec::with_capacity(self.found.len());
        let mut done: Vec<(u64, u64)> = Vec::new();
        let mut blocks = self.before.blocks;
        for (leaf, found) in (0..).zip(&self.found) {
            let Some(&(id, count)) = found.get() else {
                ids.push(Id::ZERO);
                continue;
            };
            ids.push(id);
            blocks += count;
            match done.last_mut() {
                Some((_, end)) if *end == leaf => *end += 1,
                _ => done.push((leaf, leaf + 1)),
            }
        }
        SoFar { ids, done, blocks }
    }
}
