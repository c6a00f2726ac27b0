//! The map in memory: the L1 table, and those slices of L2 tables that were looked at.
//!
//! What is here is how the disk is *now*. The file has it only after a flush: a slice that is ahead
//! of the file is dirty, and a table that no flush has given a place yet is [`UNPLACED`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};

use super::super::cause::Cause;
use super::super::layer::{COPIED, OFFSET_MASK};
use super::claims::Claims;
use super::entry::Entry;
use super::geometry::Geometry;
use crate::block::Storage;
use crate::error::Result;

/// An L1 entry whose table is in memory only. No entry in a file has bit 0 set.
const UNPLACED: u64 = 1;

const SHARDS: usize = 64;
/// Slices that are kept although nobody uses them: 8,192 of 4 KiB, 256 GiB of disk at the default
/// shape.
const CLEAN_PER_SHARD: usize = 8192 / SHARDS;
/// Dirty slices from which on a flush of the map comes before the next write: 16 MiB of them.
pub(super) const DIRTY_AT_MOST: usize = 4096;

/// A piece of an L2 table.
#[derive(Debug)]
pub(super) struct Slice {
    pub number: u64,
    /// Held for entries by whoever changes them, from looking at them to publishing the change.
    pub changing: Claims,
    loaded: RwLock<Option<Loaded>>,
}

#[derive(Debug)]
pub(super) struct Loaded {
    pub entries: Box<[Entry]>,
    /// Entries that contradict the format or the rest of the file, which is rare.
    damaged: Vec<(usize, Cause)>,
    /// Whether it is in the list of dirty slices.
    dirty: bool,
}

impl Loaded {
    fn empty(geometry: Geometry) -> Self {
        let entries = vec![Entry::default(); geometry.slice_entries()].into();
        Self { entries, damaged: Vec::new(), dirty: false }
    }

    /// Fails if one of the entries `first..=last` is damaged.
    pub(super) fn check(&self, first: usize, last: usize) -> Result<()> {
        match self.damaged.iter().find(|(index, _)| (first..=last).contains(index)) {
            None => Ok(()),
            Some((_, cause)) => Err(cause.clone().into()),
        }
    }
}

/// What no flush has written yet.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub slices: Vec<Arc<Slice>>,
    /// Indexes of L1 entries.
    pub tables: BTreeSet<usize>,
}

impl Dirty {
    pub(super) fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.tables.is_empty()
    }
}

/// Slices by their number.
type Shard = HashMap<u64, Arc<Slice>>;

#[derive(Debug)]
pub(super) struct Map {
    geometry: Geometry,
    l1: Box<[AtomicU64]>,
    shards: Box<[Mutex<Shard>]>,
    dirty: Mutex<Dirty>,
    dirty_slices: AtomicUsize,
    /// Host clusters of metadata, which no entry of an L2 table may name.
    metadata: HashSet<u64>,
}

impl Map {
    pub(super) fn new(geometry: Geometry, l1: &[u64], metadata: HashSet<u64>) -> Self {
        Self {
            geometry,
            l1: l1.iter().map(|&entry| AtomicU64::new(entry)).collect(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            dirty: Mutex::default(),
            dirty_slices: AtomicUsize::new(0),
            metadata,
        }
    }

    fn entry(&self, table: usize) -> u64 {
        self.l1.get(table).map_or(0, |entry| entry.load(Ordering::Acquire))
    }

    /// Whether the whole table is absent, in the file and in memory.
    pub(super) fn is_absent(&self, table: usize) -> bool {
        self.entry(table) == 0
    }

    /// Where the table is in the file, and whether nobody else refers to it.
    pub(super) fn place(&self, table: usize) -> Option<(u64, bool)> {
        let entry = self.entry(table);
        let host = entry & OFFSET_MASK;
        (host != 0).then_some((host, entry & COPIED != 0))
    }

    /// Says that a flush has written the table at `host`, of which the file's L1 table does not
    /// know yet.
    pub(super) fn put_place(&self, table: usize, host: u64) {
        if let Some(entry) = self.l1.get(table) {
            entry.store(host | COPIED, Ordering::Release);
        }
    }

    /// `count` entries of the L1 table from `first` on, as they are in the file.
    pub(super) fn l1_bytes(&self, first: usize, count: usize) -> Vec<u8> {
        let placed = |table| match self.entry(table) {
            UNPLACED => 0,
            entry => entry,
        };
        (first..first + count).flat_map(|table| u64::to_be_bytes(placed(table))).collect()
    }

    /// The slice of that number, which may not be loaded yet.
    pub(super) fn slice(&self, number: u64) -> Arc<Slice> {
        let mut shard = self.shards[number as usize % SHARDS].lock();
        if let Some(slice) = shard.get(&number) {
            return Arc::clone(slice);
        }
        if shard.len() >= CLEAN_PER_SHARD {
            // Nobody else can come by a slice while the shard is locked, and a dirty one is held
            // by the list of them: what is held once is clean and in nobody's hands. Half goes.
            let mut nth = 0;
            shard.retain(|_, slice| {
                nth += 1;
                Arc::strong_count(slice) > 1 || nth % 2 == 0
            });
        }
        let slice =
            Arc::new(Slice { number, changing: Claims::default(), loaded: RwLock::new(None) });
        shard.insert(number, Arc::clone(&slice));
        slice
    }

    /// The slice of that number, for a change of it.
    pub(super) fn slice_to_change(&self, number: u64) -> Arc<Slice> {
        let table = (number / self.geometry.slices_per_table()) as usize;
        if let Some(entry) = self.l1.get(table) {
            // Whoever finds another value has found a table: that is as well.
            let _ = entry.compare_exchange(0, UNPLACED, Ordering::AcqRel, Ordering::Acquire);
        }
        self.slice(number)
    }

    /// Looks at `slice`, reading it first if need be; entries must lie before `end` of the file.
    pub(super) fn look<R>(
        &self,
        slice: &Slice,
        storage: &dyn Storage,
        end: impl Fn() -> u64,
        look: impl FnOnce(&Loaded) -> R,
    ) -> Result<R> {
        if let Some(loaded) = &*slice.loaded.read() {
            return Ok(look(loaded));
        }
        let mut guard = slice.loaded.write();
        if guard.is_none() {
            *guard = Some(self.load(slice.number, storage, end())?);
        }
        let guard = RwLockWriteGuard::downgrade(guard);
        Ok(look(guard.as_ref().unwrap_or(&Loaded::empty(self.geometry))))
    }

    fn load(&self, number: u64, storage: &dyn Storage, end: u64) -> Result<Loaded> {
        let geometry = self.geometry;
        let table = (number / geometry.slices_per_table()) as usize;
        let Some((host, _)) = self.place(table) else { return Ok(Loaded::empty(geometry)) };
        let guest = number * geometry.slice_span();
        if geometry.within(host) != 0 {
            return Err(Cause::L2Misaligned { guest, host }.into());
        }
        let mut bytes = vec![0; geometry.slice_bytes() as usize];
        let at = host + number % geometry.slices_per_table() * geometry.slice_bytes();
        if storage.read_at(at, &mut bytes)? < bytes.len() {
            return Err(Cause::L2BeyondEnd { guest, host }.into());
        }
        let entries = Entry::decode_all(&bytes, geometry);
        let mut damaged = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let guest = guest + ((index as u64) << geometry.cluster_bits);
            if let Err(cause) = entry.check(guest, end, geometry) {
                damaged.push((index, cause));
            } else if let Some(host) = entry.host().filter(|host| self.metadata.contains(host)) {
                damaged.push((index, Cause::ClusterOverMetadata { guest, host }));
            }
        }
        Ok(Loaded { entries, damaged, dirty: false })
    }

    /// Publishes a change of a slice that was looked at.
    pub(super) fn change(&self, slice: &Arc<Slice>, change: impl FnOnce(&mut [Entry])) {
        let mut guard = slice.loaded.write();
        let Some(loaded) = guard.as_mut() else { return };
        change(&mut loaded.entries);
        if !std::mem::replace(&mut loaded.dirty, true) {
            let mut dirty = self.dirty.lock();
            dirty.slices.push(Arc::clone(slice));
            self.dirty_slices.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn dirty_slices(&self) -> usize {
        self.dirty_slices.load(Ordering::Relaxed)
    }

    /// Takes what is dirty, for a flush. What changes from here on is the next one's.
    pub(super) fn take_dirty(&self) -> Dirty {
        let mut guard = self.dirty.lock();
        let dirty = std::mem::take(&mut *guard);
        self.dirty_slices.fetch_sub(dirty.slices.len(), Ordering::Relaxed);
        drop(guard);
        // Between the two nothing gets lost: what changes before this is in what was taken.
        for slice in &dirty.slices {
            if let Some(loaded) = slice.loaded.write().as_mut() {
                loaded.dirty = false;
            }
        }
        dirty
    }

    /// Gives back what a flush took and did not write.
    pub(super) fn give_back(&self, dirty: Dirty) {
        for slice in dirty.slices {
            self.change(&slice, |_| {});
        }
        self.dirty.lock().tables.extend(dirty.tables);
    }

    /// The slice as it is in a file, at the end of `out`.
    pub(super) fn encode(&self, slice: &Slice, out: &mut Vec<u8>) {
        if let Some(loaded) = &*slice.loaded.read() {
            loaded.entries.iter().for_each(|entry| entry.encode(self.geometry, out));
        }
    }
}
