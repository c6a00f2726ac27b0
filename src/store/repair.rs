//! Making indexes anew, and putting damaged packs under quarantine.
//!
//! What is whole of a damaged pack is written into new packs, an index tells of them, and only then the pack is
//! condemned: from then on writers take it as gone and store what it held anew. It stays where it is, and readers try it, until
//! nothing needs it any more. So what could be read can be read, at whatever point this is interrupted.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Store;
use super::check::{Depth, Packs, is_damage, lengths, named};
use super::collect::ROUND;
use super::condemned::{Sentence, Why};
use super::id::{BlobKind, Id};
use super::index::{self, Location};
use super::keys::Salt;
use super::lease::Root;
use super::lost::absent;
use super::merge::Merged;
use super::objects::{Object, Sort};
use super::pack::{self, Blob, Filling, Pack};
use crate::error::{Error, Result};

/// Blobs that an index tells of before the next one is begun.
const INDEX_FULL: usize = 1 << 18;

/// What repairing did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Indexes that were damaged, and are gone.
    pub removed_indexes: u64,
    /// Packs that no index told of, or not all of which, and one does now.
    pub indexed_packs: u64,
    /// Packs that are damaged or gone: they are under quarantine now, if they were not before.
    pub damaged_packs: Vec<Id>,
    /// Blocks and map pages of them that were whole, and lie elsewhere now, too.
    pub moved: u64,
    /// Packs that were under quarantine and are what they should be again.
    pub released: u64,
    /// Lists of condemned packs that were damaged, and are gone.
    pub removed_lists: u64,
}

impl Store {
    /// Makes sure that an index tells of each pack, removes indexes that are damaged, and puts damaged packs under
    /// quarantine; those that are damaged inside are found where `depth` says so.
    ///
    /// # Errors
    /// [`Kind::Refused`](crate::error::Kind::Refused) if somebody collects, and the host's. Nothing is removed before what takes its place is
    /// stored.
    pub fn repair(&self, depth: Depth, step: &(dyn Fn() + Sync)) -> Result<Repaired> {
        self.may_write()?;
        // A pack that is just being removed must not come back into an index.
        let _lease = self.collecting()?;
        let mut done = Repaired::default();
        let (condemned, bad_lists) = self.condemned_and_damaged()?;
        // One of those may have told of damaged packs.
        let depth = if bad_lists.is_empty() { depth } else { Depth::Data };
        let (indexes, bad_indexes) = self.sound_indexes(step)?;
        let mut packs = self.packs()?;
        let told = lengths(&indexes);
        let (mut whole, mut known) = (Vec::new(), Vec::new());
        for (&id, &len) in &told {
            let why = condemned.why(&id);
            match packs.there.get(&id) {
                Some(&found) if found == len && why == Some(Why::Damaged) => known.push((id, len)),
                Some(&found) if found == len => whole.push((id, len)),
                _ => drop(packs.doubtful.insert(id)),
            }
        }
        if depth == Depth::Data {
            packs.doubtful.extend(ids(self.damaged_packs(&whole, step)?));
        }
        // What was under quarantine may have been put back as it was.
        let still: HashSet<Id> = ids(self.damaged_packs(&known, step)?).collect();
        done.released = (known.len() - still.len()) as u64;
        packs.doubtful.extend(still);
        let mut rescue = Rescue::new(self, &condemned.packs)?;
        let is_incomplete = !bad_indexes.is_empty() || self.is_something_untold(step)?;
        let mut unread: Vec<(Id, u64)> = packs.there.iter().map(|(&id, &len)| (id, len)).collect();
        unread.retain(|(id, _)| is_incomplete || !told.contains_key(id));
        for (id, len) in unread {
            step();
            rescue.index(id, len, told.contains_key(&id), &mut packs)?;
        }
        rescue.put_index()?;
        if !packs.doubtful.is_empty() {
            rescue.move_told(&packs, step)?;
        }
        (done.indexed_packs, done.moved) = rescue.finish()?;
        done.damaged_packs = packs.doubtful.iter().copied().collect();
        done.damaged_packs.sort_unstable();
        let mut sentences = condemned.packs.clone();
        sentences.retain(|id, sentence| {
            sentence.why == Why::Unused || packs.doubtful.contains(id) || !told.contains_key(id)
        });
        for id in packs.doubtful {
            let sentence =
                sentences.entry(id).or_insert(Sentence { since: None, why: Why::Damaged });
            sentence.why = Why::Damaged;
        }
        let is_same = |(id, sentence): (&Id, &Sentence)| condemned.why(id) == Some(sentence.why);
        if sentences.len() != condemned.packs.len() || !sentences.iter().all(is_same) {
            self.condemn(condemned, sentences)?;
        }
        done.removed_indexes = bad_indexes.len() as u64;
        done.removed_lists = bad_lists.len() as u64;
        // What was written anew may be what was damaged, and then it has its name.
        let (_, bad_indexes) = self.sound_indexes(step)?;
        let (_, bad_lists) = self.condemned_and_damaged()?;
        for (object, _) in bad_indexes.into_iter().chain(bad_lists) {
            self.objects.remove(object)?;
        }
        self.load_indexes()?;
        self.remove_lost_parts()?;
        // What they need may be what was lost.
        for listed in self.objects.list(Sort::Drafts)? {
            self.objects.remove(Object::Draft(listed.id))?;
        }
        Ok(done)
    }

    /// Whether snapshots need something that no index tells of.
    fn is_something_untold(&self, step: &(dyn Fn() + Sync)) -> Result<bool> {
        let mut roots = BTreeSet::new();
        for (_, read) in self.read_snapshots(&self.snapshot_ids()?) {
            match read {
                Ok(snapshot) => roots.extend(Root::of(&snapshot)),
                Err(error) if is_damage(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let reached = self.reach(&roots, step)?;
        let mut broken = reached.broken.iter()?;
        while let Some(id) = broken.next()? {
            match self.locate(BlobKind::Page, &id) {
                Ok(_) => {}
                Err(error) if is_damage(&error) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        let indexes = self.indexes.read().clone();
        let (_, untold) = absent(&reached.blocks, &indexes, &mut |_| Ok(true))?;
        Ok(!untold.is_empty())
    }
}

fn ids(packs: Vec<(Id, Error)>) -> impl Iterator<Item = Id> {
    packs.into_iter().map(|(id, _)| id)
}

/// What is being written: packs of what was whole in damaged ones, and indexes.
struct Rescue<'a> {
    store: &'a Store,
    condemned: &'a HashMap<Id, Sentence>,
    filling: Filling,
    packs: Vec<Pack>,
    told: Vec<(u32, Blob)>,
    /// What is being written and in no index yet.
    new: HashSet<(BlobKind, Id)>,
    indexed: u64,
    moved: u64,
    stored: Vec<u8>,
    plain: Vec<u8>,
}

impl<'a> Rescue<'a> {
    fn new(store: &'a Store, condemned: &'a HashMap<Id, Sentence>) -> Result<Self> {
        Ok(Self {
            store,
            condemned,
            filling: store.new_pack()?,
            packs: Vec::new(),
            told: Vec::new(),
            new: HashSet::new(),
            indexed: 0,
            moved: 0,
            stored: Vec::new(),
            plain: Vec::new(),
        })
    }

    /// Whether what lies in this pack will stay.
    fn stays(&self, pack: &Id, packs: &Packs) -> bool {
        let Packs { there, doubtful } = packs;
        there.contains_key(pack) && !doubtful.contains(pack) && !self.condemned.contains_key(pack)
    }

    /// Has an index tell of what a pack holds by itself, `is_told` of only what lies nowhere else. What is whole of a damaged one
    /// is moved.
    fn index(&mut self, id: Id, len: u64, is_told: bool, packs: &mut Packs) -> Result<()> {
        let store = self.store;
        let bytes = match store.pack_bytes(id, len) {
            Ok(bytes) => bytes,
            // It ends before, or was removed by hand.
            Err(error) if is_damage(&error) => {
                packs.doubtful.insert(id);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let scanned =
            named(&bytes, id).and_then(|()| Ok(pack::scan(&bytes, store.number, &store.keys)?));
        let (salt, mut blobs) = match scanned {
            Ok(scanned) if !packs.doubtful.contains(&id) => scanned,
            _ => {
                packs.doubtful.insert(id);
                let salt = self.salt_of(id, &bytes);
                return self.move_found(id, salt, &bytes, packs);
            }
        };
        if is_told {
            let mut missing = Vec::new();
            for blob in blobs {
                if !self.is_told_to_stay(&blob, packs)? {
                    missing.push(blob);
                }
            }
            blobs = missing;
        }
        if blobs.is_empty() && is_told {
            return Ok(());
        }
        let number = self.packs.len() as u32;
        self.packs.push(Pack { id, len, salt });
        self.new.extend(blobs.iter().map(|blob| (blob.kind, blob.id)));
        self.told.extend(blobs.into_iter().map(|blob| (number, blob)));
        self.indexed += 1;
        if self.told.len() >= INDEX_FULL { self.put_index() } else { Ok(()) }
    }

    fn salt_of(&self, id: Id, bytes: &[u8]) -> Salt {
        let indexes = self.store.indexes.read();
        let told = indexes.iter().flat_map(|index| index.packs()).find(|pack| pack.id == id);
        told.map(|pack| pack.salt).or_else(|| pack::salt(bytes)).unwrap_or_default()
    }

    /// Whether an index tells, or will, of a place of a blob that will stay.
    fn is_told_to_stay(&self, blob: &Blob, packs: &Packs) -> Result<bool> {
        if self.new.contains(&(blob.kind, blob.id)) {
            return Ok(true);
        }
        for index in self.store.indexes.read().iter() {
            let place = index.find(&blob.id, blob.kind)?;
            if place.is_some_and(|place| self.stays(&place.pack, packs)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves what is found whole in the bytes of a damaged pack.
    fn move_found(&mut self, id: Id, salt: Salt, bytes: &[u8], packs: &Packs) -> Result<()> {
        for blob in pack::salvage(bytes) {
            let location = Location { pack: id, salt, blob };
            let (mut stored, mut plain) = (Vec::new(), Vec::new());
            match self.store.verify_within(bytes, &location, &mut stored, &mut plain) {
                Ok(()) if self.is_told_to_stay(&blob, packs)? => {}
                Ok(()) => self.keep(&blob, &stored)?,
                Err(error) if is_damage(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves what is whole of what indexes tell of in damaged packs.
    fn move_told(&mut self, packs: &Packs, step: &(dyn Fn() + Sync)) -> Result<()> {
        let indexes = self.store.indexes.read().clone();
        let mut merged = Merged::new(&indexes)?;
        let mut places = Vec::new();
        let mut endangered: Vec<Location> = Vec::new();
        while merged.next(&mut places)? {
            let is_in_danger = places.iter().any(|place| packs.doubtful.contains(&place.pack));
            if is_in_danger && !places.iter().any(|place| self.stays(&place.pack, packs)) {
                endangered.extend(&places);
            }
            if endangered.len() as u64 >= ROUND {
                self.move_places(&mut endangered, packs, step)?;
            }
        }
        self.move_places(&mut endangered, packs, step)
    }

    fn move_places(
        &mut self,
        places: &mut Vec<Location>,
        packs: &Packs,
        step: &(dyn Fn() + Sync),
    ) -> Result<()> {
        // As they lie.
        places.sort_unstable_by_key(|place| (place.pack, place.blob.at));
        for place in places.drain(..) {
            let Location { pack, blob, .. } = &place;
            if !packs.there.contains_key(pack) || self.new.contains(&(blob.kind, blob.id)) {
                continue;
            }
            step();
            let (mut stored, mut plain) =
                (std::mem::take(&mut self.stored), std::mem::take(&mut self.plain));
            match self.store.stored_bytes(&place, &mut stored, &mut plain) {
                Ok(()) => self.keep(blob, &stored)?,
                Err(error) if is_damage(&error) => {}
                Err(error) => return Err(error.within(self.store.name())),
            }
            (self.stored, self.plain) = (stored, plain);
        }
        self.put_index()
    }

    /// Writes a blob into a new pack.
    fn keep(&mut self, blob: &Blob, stored: &[u8]) -> Result<()> {
        self.filling.add(blob.kind, blob.id, blob.encoding, blob.plain, stored)?;
        self.new.insert((blob.kind, blob.id));
        self.moved += 1;
        if self.filling.is_full() {
            self.put_pack()?;
        }
        Ok(())
    }

    fn put_pack(&mut self) -> Result<()> {
        let full = std::mem::replace(&mut self.filling, self.store.new_pack()?);
        self.store.put_pack(full, &mut self.packs, &mut self.told)
    }

    /// Has an index tell of all that was written or found.
    fn put_index(&mut self) -> Result<()> {
        if !self.filling.is_empty() {
            self.put_pack()?;
        }
        if self.packs.is_empty() {
            return Ok(());
        }
        let store = self.store;
        let (packs, told) = (std::mem::take(&mut self.packs), std::mem::take(&mut self.told));
        let bytes = index::make(&store.keys, &packs, told)?;
        let id = Id::of_object(&bytes);
        store.objects.put(Object::Index(id), &[&bytes])?;
        let index = index::Index::open(&store.keys, &store.objects, &store.cache, id)?;
        store.indexes.write().push(index.into());
        self.new.clear();
        Ok(())
    }

    /// Packs that were indexed, and blobs that were moved.
    fn finish(mut self) -> Result<(u64, u64)> {
        self.put_index()?;
        Ok((self.indexed, self.moved))
    }
}
