//! Indexes made into fewer ones (`docs/store-format.md`, "Index").
//!
//! Each snapshot brings an index of its own, and whoever looks for a blob asks them all. So they are merged, those of about
//! the same size with each other: an entry is written again a few times in its life, and indexes stay few. A large one is
//! cut into parts by ranges of ids, and is there once the object is that names them.

use std::cmp::Reverse;
use std::collections::binary_heap::PeekMut;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::sync::Arc;

use super::Store;
use super::condemned::Condemned;
use super::id::{BlobKind, Id};
use super::index::{self, Entries, Index, Location, NewPart};
use super::lease::Lease;
use super::objects::{Object, Sort};
use super::pack::{Blob, Pack};
use crate::error::{Error, Kind, Result};

/// Entries of an index that is one object, and of a part.
const MOST_ENTRIES: usize = 1 << 19;
/// How many indexes of about the same size there may be.
const MOST_ALIKE: usize = 8;
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
        let lease = self.collecting()?;
        self.merge_indexes(&lease)
    }

    /// Merges indexes if there are too many. The caller is the only one that collects.
    pub(super) fn merge_indexes(&self, lease: &Lease) -> Result<()> {
        self.load_indexes()?;
        let indexes = self.indexes.read().clone();
        let due = due(&indexes);
        if due.is_empty() {
            return Ok(());
        }
        self.rewrite_indexes(lease, &due, &HashSet::new(), &self.condemned()?)
    }

    /// Writes `sources` anew, without what they tell of the packs in `gone`, together with all that are due.
    pub(super) fn drop_packs(
        &self,
        lease: &Lease,
        gone: &HashSet<Id>,
        condemned: &Condemned,
    ) -> Result<()> {
        self.load_indexes()?;
        let indexes = self.indexes.read().clone();
        let mut sources = due(&indexes);
        for index in indexes {
            let tells = index.packs().iter().any(|pack| gone.contains(&pack.id));
            if tells && !sources.iter().any(|source| source.id() == index.id()) {
                sources.push(index);
            }
        }
        if sources.is_empty() {
            return Ok(());
        }
        self.rewrite_indexes(lease, &sources, gone, condemned)
    }

    /// Writes `sources` anew as one, without what they tell of the packs in `gone`.
    pub(super) fn rewrite_indexes(
        &self,
        lease: &Lease,
        sources: &[Arc<Index>],
        gone: &HashSet<Id>,
        condemned: &Condemned,
    ) -> Result<()> {
        let packs = sources.iter().flat_map(|source| source.packs());
        let mut output = Output::new(self, packs.filter(|pack| !gone.contains(&pack.id)));
        let mut merged = Merged::new(sources)?;
        let mut places = Vec::new();
        while merged.next(&mut places)? {
            places.retain(|place| !gone.contains(&place.pack));
            if let Some(place) = chosen(&places, condemned) {
                output.add(place)?;
            }
        }
        drop(merged);
        // Once nobody heeds this lease, the parts may be gone.
        lease.check()?;
        let written = output.finish()?;
        for source in sources.iter().filter(|source| Some(source.id()) != written) {
            self.remove_index(source.id(), source.parts())?;
        }
        self.load_indexes()?;
        Ok(())
    }

    /// Removes an index with its parts: the parts last, so that no index names one that is not there.
    pub(super) fn remove_index(&self, id: Id, parts: impl Iterator<Item = Id>) -> Result<()> {
        self.objects.remove(Object::Index(id))?;
        for part in parts {
            self.objects.remove(Object::Part(part))?;
        }
        Ok(())
    }

    /// Removes parts that no index names: whoever wrote them never came to its end. The caller is the only one that collects, and
    /// has just looked at the indexes.
    pub(super) fn remove_lost_parts(&self) -> Result<()> {
        let listed = self.objects.list(Sort::Parts)?;
        let indexes = self.indexes.read().clone();
        let named: HashSet<Id> = indexes.iter().flat_map(|index| index.parts()).collect();
        for part in listed.iter().filter(|part| !named.contains(&part.id)) {
            self.objects.remove(Object::Part(part.id))?;
        }
        Ok(())
    }
}

/// What is written by merging.
struct Output<'a> {
    store: &'a Store,
    /// The packs that it tells of, in order.
    packs: Vec<Pack>,
    blobs: Vec<(u32, Blob)>,
    parts: Vec<NewPart>,
}

impl<'a> Output<'a> {
    fn new<'b>(store: &'a Store, packs: impl Iterator<Item = &'b Pack>) -> Self {
        let mut packs: Vec<Pack> = packs.copied().collect();
        packs.sort_unstable_by_key(|pack| pack.id);
        packs.dedup_by_key(|pack| pack.id);
        Self { store, packs, blobs: Vec::new(), parts: Vec::new() }
    }

    fn add(&mut self, place: &Location) -> Result<()> {
        if self.blobs.len() == MOST_ENTRIES {
            self.put_part()?;
        }
        let number = self.packs.binary_search_by_key(&place.pack, |pack| pack.id);
        let number = number.map_err(|_| Error::new(Kind::Io, "an index was changed"))?;
        self.blobs.push((number as u32, place.blob));
        Ok(())
    }

    fn put_part(&mut self) -> Result<()> {
        let (object, part) = index::make_part(&self.store.keys, &self.blobs)?;
        self.store.objects.put(Object::Part(part.id()), &[&object])?;
        self.parts.push(part);
        self.blobs.clear();
        Ok(())
    }

    /// Stores it; its id, if there was anything to tell.
    fn finish(mut self) -> Result<Option<Id>> {
        let keys = &self.store.keys;
        let object = match (self.parts.is_empty(), self.blobs.is_empty()) {
            (true, true) => return Ok(None),
            (true, false) => index::make(keys, &self.packs, self.blobs)?,
            (false, is_done) => {
                if !is_done {
                    self.put_part()?;
                }
                index::make_of_parts(keys, &self.packs, &self.parts)?
            }
        };
        let id = Id::of_object(&object);
        self.store.objects.put(Object::Index(id), &[&object])?;
        Ok(Some(id))
    }
}

/// Indexes that are to be merged: of about the same size there are too many.
fn due(indexes: &[Arc<Index>]) -> Vec<Arc<Index>> {
    // By the logarithm of how many entries there are.
    let mut tiers: BTreeMap<u32, Vec<Arc<Index>>> = BTreeMap::new();
    for index in indexes {
        let tier = index.entry_count().max(1).ilog2() / 3;
        tiers.entry(tier).or_default().push(Arc::clone(index));
    }
    // What is smaller than what is merged anyway goes along.
    let full = tiers.iter().rev().find(|(_, indexes)| indexes.len() >= MOST_ALIKE);
    let Some((&last, _)) = full else { return Vec::new() };
    tiers.into_iter().filter(|&(tier, _)| tier <= last).flat_map(|(_, indexes)| indexes).collect()
}
