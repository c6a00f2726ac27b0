//! Indexes made into fewer ones (`docs/store-format.md`, "Index").
//!
//! Each snapshot brings an index of its own, and whoever looks for a blob asks them all. So they are merged, those of about
//! the same size with each other: an entry is written again a few times in its life, and indexes stay few. What
//! is written together is cut by ranges of ids; each range is one object, and only one of them is asked.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;

use super::Store;
use super::condemned::Condemned;
use super::id::{BlobKind, Id};
use super::index::{self, Entries, Index, Location};
use super::objects::Object;
use super::pack::{Blob, Pack};
use crate::error::Result;

/// Entries of an index that is written by merging.
const MOST_ENTRIES: usize = 1 << 19;
/// How many runs of about the same size there may be.
const MOST_RUNS: usize = 8;
/// Pages of all indexes together that are held while they are gone through: 64 MiB.
const MOST_PAGES: usize = 16 << 10;

/// The entries of several indexes, in order.
#[derive(Debug)]
pub(super) struct Merged<'a> {
    heads: BinaryHeap<Reverse<(Id, BlobKind, usize)>>,
    entries: Vec<(Option<Location>, Entries<'a>)>,
}

impl<'a> Merged<'a> {
    pub(super) fn new(indexes: &'a [Arc<Index>]) -> Result<Self> {
        let pages = (MOST_PAGES / indexes.len().max(1)).clamp(1, 256);
        let mut merged = Self { heads: BinaryHeap::new(), entries: Vec::new() };
        for (number, index) in indexes.iter().enumerate() {
            let mut entries = index.entries(pages);
            let first = entries.next()?;
            if let Some(Location { blob, .. }) = first {
                merged.heads.push(Reverse((blob.id, blob.kind, number)));
            }
            merged.entries.push((first, entries));
        }
        Ok(merged)
    }

    /// The places of the next blob, one at least.
    pub(super) fn next(&mut self, places: &mut Vec<Location>) -> Result<bool> {
        places.clear();
        let Some(&Reverse((id, kind, _))) = self.heads.peek() else { return Ok(false) };
        while let Some(mut head) = self.heads.peek_mut() {
            let Reverse((first, first_kind, number)) = *head;
            if (first, first_kind) != (id, kind) {
                break;
            }
            let Some((location, entries)) = self.entries.get_mut(number) else { break };
            places.extend(*location);
            *location = entries.next()?;
            match location {
                Some(Location { blob, .. }) => *head = Reverse((blob.id, blob.kind, number)),
                None => drop(PeekMut::pop(head)),
            }
        }
        Ok(true)
    }
}

/// Which of the places of a blob counts, by why packs are condemned: one that is to stay, if there is one, else one that can
/// be read; and always the same.
pub(super) fn chosen<'a>(places: &'a [Location], condemned: &Condemned) -> Option<&'a Location> {
    places.iter().min_by_key(|place| (condemned.why(&place.pack), place.pack))
}

impl Store {
    /// Merges indexes if there are too many, and nobody collects just now.
    pub(super) fn merge_if_due(&self) -> Result<()> {
        if due(&self.indexes.read()).is_empty() {
            return Ok(());
        }
        let _lease = self.collecting()?;
        self.merge_indexes()
    }

    /// Merges indexes if there are too many. The caller is the only one that collects.
    pub(super) fn merge_indexes(&self) -> Result<()> {
        self.load_indexes()?;
        let indexes = self.indexes.read().clone();
        let due = due(&indexes);
        if due.is_empty() {
            return Ok(());
        }
        self.rewrite_indexes(&due, &HashSet::new(), &self.condemned()?)
    }

    /// Writes `sources` anew, without what they tell of the packs in `gone`, together with all that are due.
    pub(super) fn drop_packs(&self, gone: &HashSet<Id>, condemned: &Condemned) -> Result<()> {
        self.load_indexes()?;
        let indexes = self.indexes.read().clone();
        let mut sources = due(&indexes);
        for index in indexes {
            let tells = index.packs().iter().any(|pack| gone.contains(&pack.id));
            if tells && !sources.iter().any(|source| source.id() == index.id()) {
                sources.push(index);
            }
        }
        if sources.is_empty() { Ok(()) } else { self.rewrite_indexes(&sources, gone, condemned) }
    }

    fn rewrite_indexes(
        &self,
        sources: &[Arc<Index>],
        gone: &HashSet<Id>,
        condemned: &Condemned,
    ) -> Result<()> {
        let mut output = Output::new(self, sources);
        let mut merged = Merged::new(sources)?;
        let mut places = Vec::new();
        while merged.next(&mut places)? {
            places.retain(|place| !gone.contains(&place.pack));
            if let Some(place) = chosen(&places, condemned) {
                output.add(place)?;
            }
        }
        output.put()?;
        let written = output.written;
        for source in sources.iter().filter(|source| !written.contains(&source.id())) {
            self.objects.remove(Object::Index(source.id()))?;
        }
        self.load_indexes()?;
        Ok(())
    }
}

/// What is written by merging.
struct Output<'a> {
    store: &'a Store,
    run: u64,
    /// The packs that the sources tell of.
    known: HashMap<Id, Pack>,
    packs: Vec<Pack>,
    numbers: HashMap<Id, u32>,
    blobs: Vec<(u32, Blob)>,
    written: Vec<Id>,
}

impl<'a> Output<'a> {
    fn new(store: &'a Store, sources: &[Arc<Index>]) -> Self {
        let mut hash = blake3::Hasher::new();
        for source in sources {
            hash.update(&source.id().0);
        }
        let packs = sources.iter().flat_map(|source| source.packs());
        Self {
            store,
            // Another one for each run, and not 0.
            run: Id(hash.finalize().into()).prefix() | 1,
            known: packs.map(|pack| (pack.id, *pack)).collect(),
            packs: Vec::new(),
            numbers: HashMap::new(),
            blobs: Vec::new(),
            written: Vec::new(),
        }
    }

    fn add(&mut self, place: &Location) -> Result<()> {
        if self.blobs.len() == MOST_ENTRIES {
            self.put()?;
        }
        let next = self.packs.len() as u32;
        let number = *self.numbers.entry(place.pack).or_insert(next);
        if number == next {
            self.packs.extend(self.known.get(&place.pack));
        }
        self.blobs.push((number, place.blob));
        Ok(())
    }

    fn put(&mut self) -> Result<()> {
        if self.blobs.is_empty() {
            return Ok(());
        }
        let blobs = std::mem::take(&mut self.blobs);
        let bytes = index::make(&self.store.keys, &self.packs, blobs, self.run)?;
        let id = Id::of_object(&bytes);
        self.store.objects.put(Object::Index(id), &[&bytes])?;
        self.written.push(id);
        self.packs.clear();
        self.numbers.clear();
        Ok(())
    }
}

/// Indexes that are to be merged: of runs of about the same size there are too many.
fn due(indexes: &[Arc<Index>]) -> Vec<Arc<Index>> {
    let mut runs: BTreeMap<(u64, Id), Vec<Arc<Index>>> = BTreeMap::new();
    for index in indexes {
        // One by itself is told from others by its id.
        let run = index.run().map_or((0, index.id()), |run| (run, Id::ZERO));
        runs.entry(run).or_default().push(Arc::clone(index));
    }
    // By the logarithm of how many entries there are.
    let mut tiers: BTreeMap<u32, Vec<Vec<Arc<Index>>>> = BTreeMap::new();
    for run in runs.into_values() {
        let entries: u64 = run.iter().map(|index| index.entry_count()).sum();
        tiers.entry(entries.max(1).ilog2() / 3).or_default().push(run);
    }
    // What is smaller than what is merged anyway goes along.
    let full = tiers.iter().rev().find(|(_, runs)| runs.len() >= MOST_RUNS);
    let Some((&last, _)) = full else { return Vec::new() };
    tiers
        .into_iter()
        .filter(|&(tier, _)| tier <= last)
        .flat_map(|(_, runs)| runs)
        .flatten()
        .collect()
}
