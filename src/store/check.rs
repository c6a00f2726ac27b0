//! Looking for damage, and making indexes anew.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;

use super::Store;
use super::cause::Cause;
use super::id::{BlobKind, Id};
use super::index::{self, Index, Location};
use super::map::{FANOUT, Shape, span};
use super::objects::{Object, Sort};
use super::pack::{self, Pack};
use super::record::Snapshot;
use super::sealed::Sealed;
use crate::error::{Error, Kind, Result, ResultExt};

/// Pages of an index that are read at once.
const READ_PAGES: usize = 256;

/// How closely a store is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Whether all that snapshots need is there: records, maps, indexes, and packs of the right length.
    Structure,
    /// Also every byte of every pack.
    Data,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// Packs that were.
    pub packs: u64,
    /// Different blocks that the snapshots need.
    pub blocks: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The object it is wrong with.
    pub object: String,
    /// What is.
    pub what: String,
    /// The snapshots that are not whole because of it.
    pub snapshots: Vec<Id>,
}

/// What repairing did.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repaired {
    /// Indexes that were damaged, and are gone.
    pub removed_indexes: u64,
    /// Packs that no index told of, and one does now.
    pub indexed_packs: u64,
    /// Packs that cannot be read, or not to their ends.
    pub damaged_packs: Vec<Id>,
}

/// What is known of a blob while a store is looked at.
type Blobs = HashMap<(BlobKind, Id), Vec<Location>>;

impl Store {
    /// Looks at everything, and says what is wrong; `step` hears of each object that was looked at.
    ///
    /// # Errors
    /// The host's; damage is told, not returned.
    pub fn check(&self, depth: Depth, step: &dyn Fn()) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut wrong = |object: Object, error: &Error| {
            let what = error.to_string();
            checked.problems.push(Problem { object: object.to_string(), what, snapshots: vec![] });
        };
        let mut blobs = Blobs::new();
        let mut sound = Vec::new();
        let mut packs: HashMap<Id, u64> = HashMap::new();
        for listed in self.objects.list(Sort::Indexes)? {
            step();
            match self.check_index(listed.id) {
                Ok(index) => {
                    packs.extend(index.packs().iter().map(|pack| (pack.id, pack.len)));
                    let mut entries = index.entries(READ_PAGES);
                    while let Some(location) = entries.next()? {
                        let blob = (location.blob.kind, location.blob.id);
                        blobs.entry(blob).or_default().push(location);
                    }
                    sound.push(Arc::new(index));
                }
                Err(error) if is_damage(&error) => wrong(Object::Index(listed.id), &error),
                Err(error) => return Err(error),
            }
        }
        *self.indexes.write() = sound;
        let there: HashMap<Id, u64> =
            self.objects.list(Sort::Packs)?.iter().map(|listed| (listed.id, listed.len)).collect();
        let mut lost: HashSet<Id> = HashSet::new();
        for (&id, &len) in &packs {
            step();
            let sound = match there.get(&id) {
                None => Err(Error::new(Kind::Corrupt, "is not there")),
                Some(&found) if found != len => Err(Cause::Length { found, said: len }.into()),
                Some(_) if depth == Depth::Structure => Ok(()),
                Some(_) => self.check_pack(id, len),
            };
            match sound {
                Ok(()) => {}
                Err(error) if is_damage(&error) => {
                    wrong(Object::Pack(id), &error);
                    lost.insert(id);
                }
                Err(error) => return Err(error),
            }
        }
        checked.packs = packs.len() as u64;
        if depth == Depth::Data {
            self.drop_unreadable(&mut blobs, &lost)?;
        } else {
            blobs
                .values_mut()
                .for_each(|places| places.retain(|place| !lost.contains(&place.pack)));
        }
        for (object, error) in
            self.check_keys(step)?.into_iter().chain(self.check_signatures(step)?)
        {
            wrong(object, &error);
        }
        self.check_snapshots(&blobs, &mut checked, step)?;
        checked.problems.sort();
        Ok(checked)
    }

    fn check_index(&self, id: Id) -> Result<Index> {
        let object = Object::Index(id);
        let bytes = self.whole_index(object)?;
        named(&bytes, id)?;
        let index = Index::open(&self.keys, &self.objects, &self.cache, id)?;
        for part in index.parts() {
            let object = Object::Part(part);
            let sound = || -> Result<()> {
                let bytes = self.whole_index(object)?;
                named(&bytes, part)
            };
            sound().within(|| object.to_string())?;
        }
        let mut entries = index.entries(READ_PAGES);
        while entries.next()?.is_some() {}
        Ok(index)
    }

    /// An index, or a part of one, whose seal is sound.
    fn whole_index(&self, object: Object) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.objects.len(object)? as usize];
        self.objects.read_at(object, 0, &mut bytes)?;
        self.keys.unseal(Sealed::Index, &bytes)?;
        Ok(bytes)
    }

    fn check_pack(&self, id: Id, len: u64) -> Result<()> {
        let mut bytes = vec![0; len as usize];
        self.objects.read_at(Object::Pack(id), 0, &mut bytes)?;
        named(&bytes, id)?;
        // Its name tells what somebody wrote, not that it was with the store's keys.
        let (salt, blobs) = pack::scan(&bytes, self.number, &self.keys)?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        for blob in blobs {
            stored.clear();
            let rest = bytes.get(blob.at as usize..).unwrap_or_default();
            stored.extend_from_slice(rest.get(..blob.stored as usize).unwrap_or_default());
            let location = Location { pack: id, salt, blob };
            self.verify_stored(&location, &mut stored, &mut plain)?;
        }
        Ok(())
    }

    /// Leaves those places of the blobs in damaged packs that can be read all the same.
    fn drop_unreadable(&self, blobs: &mut Blobs, damaged: &HashSet<Id>) -> Result<()> {
        let mut plain = Vec::new();
        for places in blobs.values_mut() {
            let mut failed = None;
            places.retain(|place| {
                if !damaged.contains(&place.pack) {
                    return true;
                }
                plain.resize(place.blob.plain as usize, 0);
                match self.fetch(place, &mut plain) {
                    Ok(()) => true,
                    Err(error) => {
                        failed = Some(error).filter(|error| !is_damage(error));
                        false
                    }
                }
            });
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Walks the maps of all snapshots, each page once.
    fn check_snapshots(&self, blobs: &Blobs, checked: &mut Checked, step: &dyn Fn()) -> Result<()> {
        // What each page leads to that is lost, so that shared pages are walked once.
        let mut pages: HashMap<(Id, u32), BTreeSet<(BlobKind, Id)>> = HashMap::new();
        let mut blocks = HashSet::new();
        let mut lost: HashMap<(BlobKind, Id), Vec<Id>> = HashMap::new();
        for listed in self.objects.list(Sort::Snapshots)? {
            step();
            let snapshot = match self.snapshot(listed.id) {
                Ok(snapshot) => snapshot,
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) if is_damage(&error) => {
                    checked.problems.push(Problem {
                        object: Object::Snapshot(listed.id).to_string(),
                        what: error.to_string(),
                        snapshots: vec![listed.id],
                    });
                    continue;
                }
                Err(error) => return Err(error),
            };
            checked.snapshots += 1;
            for blob in self.lost_of(&snapshot, blobs, &mut pages, &mut blocks)? {
                lost.entry(blob).or_default().push(snapshot.id);
            }
        }
        checked.blocks = blocks.len() as u64;
        for ((kind, id), mut snapshots) in lost {
            snapshots.sort();
            snapshots.dedup();
            let object = match kind {
                BlobKind::Block => format!("block {id}"),
                BlobKind::Page => format!("map page {id}"),
            };
            checked.problems.push(Problem { object, what: "is lost".to_owned(), snapshots });
        }
        Ok(())
    }

    fn lost_of(
        &self,
        snapshot: &Snapshot,
        blobs: &Blobs,
        pages: &mut HashMap<(Id, u32), BTreeSet<(BlobKind, Id)>>,
        blocks: &mut HashSet<Id>,
    ) -> Result<BTreeSet<(BlobKind, Id)>> {
        let mut lost = BTreeSet::new();
        for disk in &snapshot.record.disks {
            let shape = Shape::new(disk.size, self.block_size().into())?;
            lost.extend(self.lost_below(disk.root, shape.level, blobs, pages, blocks)?);
        }
        Ok(lost)
    }

    /// What is lost of all that the page `id` leads to.
    fn lost_below(
        &self,
        id: Id,
        level: u32,
        blobs: &Blobs,
        pages: &mut HashMap<(Id, u32), BTreeSet<(BlobKind, Id)>>,
        blocks: &mut HashSet<Id>,
    ) -> Result<BTreeSet<(BlobKind, Id)>> {
        if id.is_zero() {
            return Ok(BTreeSet::new());
        }
        if let Some(known) = pages.get(&(id, level)) {
            return Ok(known.clone());
        }
        let mut lost = BTreeSet::new();
        match self.map_page(id) {
            Ok(page) => {
                for below in (0..FANOUT).map(|number| page.get(number)).filter(|id| !id.is_zero()) {
                    if level > 0 {
                        lost.extend(self.lost_below(below, level - 1, blobs, pages, blocks)?);
                    } else {
                        blocks.insert(below);
                        let block = (BlobKind::Block, below);
                        if blobs.get(&block).is_none_or(Vec::is_empty) {
                            lost.insert(block);
                        }
                    }
                }
            }
            Err(error) if is_damage(&error) => {
                lost.insert((BlobKind::Page, id));
            }
            Err(error) => return Err(error),
        }
        debug_assert!(span(level) > 0);
        pages.insert((id, level), lost.clone());
        Ok(lost)
    }

    /// Makes sure that an index tells of each pack, and removes indexes that are damaged.
    ///
    /// # Errors
    /// The host's; nothing is removed before what takes its place is stored.
    pub fn repair(&self, step: &dyn Fn()) -> Result<Repaired> {
        // A pack that is just being removed must not come back into an index.
        let _lease = self.collecting()?;
        let mut repaired = Repaired::default();
        let mut known = HashSet::new();
        let mut damaged = Vec::new();
        for listed in self.objects.list(Sort::Indexes)? {
            step();
            match self.check_index(listed.id) {
                Ok(index) => known.extend(index.packs().iter().map(|pack| pack.id)),
                Err(error) if is_damage(&error) => damaged.push(listed.id),
                Err(error) => return Err(error),
            }
        }
        let mut packs = Vec::new();
        let mut blobs = Vec::new();
        for listed in self.objects.list(Sort::Packs)? {
            step();
            if known.contains(&listed.id) {
                continue;
            }
            let mut bytes = vec![0; listed.len as usize];
            self.objects.read_at(Object::Pack(listed.id), 0, &mut bytes)?;
            let scanned = named(&bytes, listed.id)
                .and_then(|()| Ok(pack::scan(&bytes, self.number, &self.keys)?));
            match scanned {
                Ok((salt, found)) => {
                    let number = packs.len() as u32;
                    packs.push(Pack { id: listed.id, len: listed.len, salt });
                    blobs.extend(found.into_iter().map(|blob| (number, blob)));
                    repaired.indexed_packs += 1;
                }
                Err(_) => repaired.damaged_packs.push(listed.id),
            }
        }
        if !packs.is_empty() {
            let bytes = index::make(&self.keys, &packs, blobs)?;
            self.objects.put(Object::Index(Id::of_object(&bytes)), &[&bytes])?;
        }
        for id in damaged {
            self.objects.remove(Object::Index(id))?;
            repaired.removed_indexes += 1;
        }
        self.load_indexes()?;
        self.remove_lost_parts()?;
        Ok(repaired)
    }
}

/// Whether an error tells of damage, and not of a host that fails.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported)
}

/// Fails unless an object is what its name says.
fn named(bytes: &[u8], id: Id) -> Result<()> {
    match Id::of_object(bytes) {
        found if found == id => Ok(()),
        found => Err(Cause::Name(found).into()),
    }
}
