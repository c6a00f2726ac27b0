//! The one cache of a mount: bounded in bytes, scan-resistant, and single-flight.
//!
//! Decoded units, resolved maps, metadata pages and parsed inodes all live here, so that what the
//! user set bounds them together and whichever is hot gets the room. Loading holds no lock: other
//! keys go on, and whoever wants the same key waits for the one load.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use quick_cache::sync::{Cache as QuickCache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use crate::error::Result;

/// What one entry holds on to, in bytes of memory.
pub trait Weigh {
    /// Bytes of the value with all it owns.
    fn weight(&self) -> usize;
}

/// Decoded or read bytes.
#[derive(Debug)]
pub struct Unit(pub Box<[u8]>);

impl Weigh for Unit {
    fn weight(&self) -> usize {
        self.0.len() + size_of::<Self>()
    }
}

/// A name space of keys within the cache: one layer, one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u32);

/// What a value is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub Owner, pub u64);

#[derive(Clone)]
struct Entry {
    value: Arc<dyn Any + Send + Sync>,
    weight: u64,
}

#[derive(Clone)]
struct ByWeight;

/// Hash table slot, reference counts and allocator rounding of one entry, about.
const OVERHEAD: u64 = 96;

impl Weighter<Key, Entry> for ByWeight {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.weight
    }
}

/// A cache bounded in bytes, shared by everything in one mount.
pub struct Cache {
    entries: QuickCache<Key, Entry, ByWeight>,
    owners: AtomicU32,
}

impl Cache {
    /// The smallest capacity: room for a few of the largest units (2 MiB) in each shard.
    pub const MIN_CAPACITY: u64 = 16 << 20;

    /// A cache of `capacity` bytes, or [`Cache::MIN_CAPACITY`] if that is more.
    pub fn new(capacity: u64) -> Arc<Self> {
        let capacity = capacity.max(Self::MIN_CAPACITY);
        let options = OptionsBuilder::new()
            .weight_capacity(capacity)
            // Only sizes the tables: entries run from a few hundred bytes to 2 MiB.
            .estimated_items_capacity((capacity >> 14) as usize)
            .shards(if capacity < (64 << 20) { 2 } else { 8 })
            .build()
            .expect("every required option is set");
        let entries = QuickCache::with_options(
            options,
            ByWeight,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        Arc::new(Self { entries, owners: AtomicU32::new(0) })
    }

    /// A name space of its own.
    pub fn owner(&self) -> Owner {
        Owner(self.owners.fetch_add(1, Ordering::Relaxed))
    }

    /// The value under `key` if it is here.
    pub fn get<T: Any + Send + Sync>(&self, key: Key) -> Option<Arc<T>> {
        self.entries.get(&key).and_then(|entry| entry.value.downcast().ok())
    }

    /// The value under `key`, made by `load` if it is not here.
    ///
    /// `load` runs with no lock held and once, however many ask; it must not ask for the same key.
    /// A failure is returned to the caller and not kept: the next one who asks tries again.
    ///
    /// # Errors
    /// What `load` returns.
    pub fn get_or_load<T: Weigh + Any + Send + Sync>(
        &self,
        key: Key,
        load: impl FnOnce() -> Result<T>,
    ) -> Result<Arc<T>> {
        let mut loaded = None;
        let entry = self.entries.get_or_insert_with(&key, || {
            let value = load()?;
            let weight = value.weight() as u64 + OVERHEAD;
            let value = Arc::new(value);
            loaded = Some(Arc::clone(&value));
            Ok::<_, crate::error::Error>(Entry { value, weight })
        })?;
        if let Some(value) = loaded {
            return Ok(value);
        }
        // One owner uses one type per key; were it ever not so, nothing wrong is served.
        entry.value.downcast().map_err(|_| {
            crate::error::Error::new(crate::error::Kind::Io, "a cache key was used for two types")
        })
    }

    /// Bytes held now.
    pub fn weight(&self) -> u64 {
        self.entries.weight()
    }

    /// Bytes held at most.
    pub fn capacity(&self) -> u64 {
        self.entries.capacity()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("weight", &self.weight())
            .field("capacity", &self.capacity())
            .finish()
    }
}
