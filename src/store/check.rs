//! Looking for damage. What is lost because of it, and of which snapshots, is found in [`lost`](super::lost).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::Serialize;

use super::Store;
use super::cause::Cause;
use super::condemned::Why;
use super::id::Id;
use super::index::{Index, Location};
use super::lease::{Lease, Root};
use super::lost::Lost;
use super::objects::{Object, Sort};
use super::pack;
use super::record::Snapshot;
use super::sealed::Sealed;
use crate::error::{Error, Kind, Result, ResultExt};

/// Pages of an index that are read at once.
const READ_PAGES: usize = 256;
/// Packs that are held in memory at once.
const PACKS: usize = 4;
/// Bytes of a pack at most.
const MOST_PACK: u64 = 4 << 30;
/// How often a store is looked at that others change meanwhile.
const TRIES: u32 = 3;

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
    /// Those of them that are known to be damaged: they are no problem as long as nothing is lost.
    pub quarantined: u64,
    /// Different blocks that the snapshots need.
    pub blocks: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The object it is wrong with. One for each disk of a snapshot that is not whole: it is that of the snapshot's record then.
    pub object: String,
    /// What is.
    pub what: String,
    /// The snapshots that are not whole because of it.
    pub snapshots: Vec<Id>,
    /// What of a disk is lost.
    pub lost: Option<Lost>,
}

/// The indexes that can be read, and those that are damaged.
pub(super) type Indexes = (Vec<Arc<Index>>, Vec<(Object, Error)>);

/// The snapshots whose records can be read, and the records that cannot.
type Snapshots = (Vec<Snapshot>, Vec<(Object, Error)>);

/// The packs of a store: which are as they should be.
#[derive(Debug, Default)]
pub(super) struct Packs {
    /// How long each is that is there.
    pub(super) there: HashMap<Id, u64>,
    /// Those that are not what an index says, or are known to be damaged; what lies in them is tried.
    pub(super) doubtful: HashSet<Id>,
}

impl Store {
    /// Looks at everything, and says what is wrong; `step` hears of each object that was looked at. What is held in memory
    /// does not grow with the blocks that there are.
    ///
    /// # Errors
    /// The host's; damage is told, not returned.
    pub fn check(&self, depth: Depth, step: &(dyn Fn() + Sync)) -> Result<Checked> {
        let listed = || -> Result<BTreeSet<Id>> {
            Ok(self.objects.list(Sort::Indexes)?.iter().map(|listed| listed.id).collect())
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let before = listed()?;
            let checked = self.check_once(depth, step);
            // What others move meanwhile may look as if it were lost.
            let is_final = match &checked {
                Ok(checked) => checked.problems.is_empty(),
                Err(error) => error.kind() != Kind::NotFound,
            };
            if is_final || tries == TRIES || listed()? == before {
                return checked;
            }
        }
    }

    fn check_once(&self, depth: Depth, step: &(dyn Fn() + Sync)) -> Result<Checked> {
        let mut checked = Checked::default();
        let (indexes, mut wrong) = self.sound_indexes(step)?;
        let (condemned, damaged) = self.condemned_and_damaged()?;
        wrong.extend(damaged);
        let mut packs = self.packs()?;
        let mut whole = Vec::new();
        let told: HashMap<Id, u64> = lengths(&indexes);
        for (&id, &len) in &told {
            if condemned.why(&id) == Some(Why::Damaged) {
                packs.doubtful.insert(id);
                checked.quarantined += 1;
                continue;
            }
            match packs.there.get(&id) {
                None => {
                    wrong.push((Object::Pack(id), Error::new(Kind::Corrupt, "is not there")));
                }
                Some(&found) if found != len => {
                    packs.doubtful.insert(id);
                    wrong.push((Object::Pack(id), Cause::Length { found, said: len }.into()));
                }
                Some(_) => whole.push((id, len)),
            }
        }
        if depth == Depth::Data {
            for (id, error) in self.damaged_packs(&whole, step)? {
                packs.doubtful.insert(id);
                wrong.push((Object::Pack(id), error));
            }
        }
        checked.packs = told.len() as u64;
        wrong.extend(self.check_keys(step)?);
        wrong.extend(self.check_signatures(step)?);
        let (snapshots, unreadable) = self.readable_snapshots()?;
        checked.problems.extend(wrong.into_iter().chain(unreadable).map(|(object, error)| {
            let snapshots = match object {
                Object::Snapshot(id) => vec![id],
                _ => vec![],
            };
            let (object, what) = (object.to_string(), error.to_string());
            Problem { object, what, snapshots, lost: None }
        }));
        checked.snapshots = snapshots.len() as u64;
        checked.blocks = self.check_snapshots(&snapshots, &indexes, &packs, step, &mut |lost| {
            checked.problems.push(lost);
        })?;
        checked.problems.sort();
        Ok(checked)
    }

    /// Reads all indexes, whole.
    pub(super) fn sound_indexes(&self, step: &(dyn Fn() + Sync)) -> Result<Indexes> {
        let (mut sound, mut damaged) = (Vec::new(), Vec::new());
        for listed in self.objects.list(Sort::Indexes)? {
            step();
            match self.check_index(listed.id) {
                Ok(index) => sound.push(Arc::new(index)),
                Err(error) if error.kind() == Kind::NotFound => {
                    // Unless a part of it is lost, it was merged into another one, which is not among these.
                    if self.objects.len(Object::Index(listed.id)).is_err() {
                        return Err(error);
                    }
                    damaged.push((Object::Index(listed.id), error));
                }
                Err(error) if is_damage(&error) => damaged.push((Object::Index(listed.id), error)),
                Err(error) => return Err(error),
            }
        }
        self.indexes.write().clone_from(&sound);
        Ok((sound, damaged))
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

    /// The packs that are there, none of which is doubted.
    pub(super) fn packs(&self) -> Result<Packs> {
        let there = self.objects.list(Sort::Packs)?;
        let there = there.iter().map(|listed| (listed.id, listed.len)).collect();
        Ok(Packs { there, doubtful: HashSet::new() })
    }

    /// Reads these packs, each with its length, and finds those that are not what was written.
    pub(super) fn damaged_packs(
        &self,
        packs: &[(Id, u64)],
        step: &(dyn Fn() + Sync),
    ) -> Result<Vec<(Id, Error)>> {
        let mut damaged = Vec::new();
        for packs in packs.chunks(PACKS) {
            let check = |&(id, len): &(Id, u64)| {
                step();
                (id, self.check_pack(id, len))
            };
            for (id, checked) in packs.par_iter().map(check).collect::<Vec<_>>() {
                match checked {
                    Ok(()) => {}
                    Err(error) if is_damage(&error) => damaged.push((id, error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(damaged)
    }

    /// An index, or a part of one, whose seal is sound.
    fn whole_index(&self, object: Object) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.objects.len(object)? as usize];
        self.objects.read_at(object, 0, &mut bytes)?;
        self.keys.unseal(Sealed::Index, &bytes)?;
        Ok(bytes)
    }

    pub(super) fn check_pack(&self, id: Id, len: u64) -> Result<()> {
        let bytes = self.pack_bytes(id, len)?;
        named(&bytes, id)?;
        // Its name tells what somebody wrote, not that it was with the store's keys.
        let (salt, blobs) = pack::scan(&bytes, self.number, &self.keys)?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        for blob in blobs {
            let location = Location { pack: id, salt, blob };
            self.verify_within(&bytes, &location, &mut stored, &mut plain)?;
        }
        Ok(())
    }

    /// All bytes of a pack.
    pub(super) fn pack_bytes(&self, id: Id, len: u64) -> Result<Vec<u8>> {
        if len > MOST_PACK {
            return Err(Cause::Length { found: len, said: MOST_PACK }.into());
        }
        let mut bytes = vec![0; len as usize];
        self.objects.read_at(Object::Pack(id), 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Verifies a blob of a pack of these bytes. `stored` is then what it was made of, not encrypted; `plain` is for room.
    pub(super) fn verify_within(
        &self,
        bytes: &[u8],
        location: &Location,
        stored: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<()> {
        stored.clear();
        let rest = bytes.get(location.blob.at as usize..).unwrap_or_default();
        stored.extend_from_slice(rest.get(..location.blob.stored as usize).unwrap_or_default());
        self.verify_stored(location, stored, plain)
    }

    fn readable_snapshots(&self) -> Result<Snapshots> {
        let (mut snapshots, mut damaged) = (Vec::new(), Vec::new());
        for (id, read) in self.read_snapshots(&self.snapshot_ids()?) {
            match read {
                Ok(snapshot) => snapshots.push(snapshot),
                // Removed since.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if is_damage(&error) => damaged.push((Object::Snapshot(id), error)),
                Err(error) => return Err(error),
            }
        }
        Ok((snapshots, damaged))
    }

    /// Tells what of each snapshot is lost. How many different blocks they need.
    fn check_snapshots(
        &self,
        snapshots: &[Snapshot],
        indexes: &[Arc<Index>],
        packs: &Packs,
        step: &(dyn Fn() + Sync),
        tell: &mut dyn FnMut(Problem),
    ) -> Result<u64> {
        let roots: BTreeSet<Root> = snapshots.iter().flat_map(Root::of).collect();
        // Whoever collects meanwhile leaves what is looked at.
        let _lease = Lease::reading(self, roots.iter().copied().collect())?;
        let reached = self.reach(&roots, step)?;
        let (blocks, losses) = self.losses(&reached, indexes, packs)?;
        if losses.is_nothing() {
            return Ok(blocks);
        }
        let mut ranges_left = super::lost::MOST_RANGES;
        for snapshot in snapshots {
            step();
            for disk in &snapshot.record.disks {
                let Some(lost) = self.lost_of(snapshot, disk, &losses, &mut ranges_left)? else {
                    continue;
                };
                let object = Object::Snapshot(snapshot.id);
                if matches!(self.objects.len(object), Err(error) if error.kind() == Kind::NotFound)
                {
                    // Removed since: what it needed may be gone by right.
                    continue;
                }
                tell(Problem {
                    object: object.to_string(),
                    what: lost.to_string(),
                    snapshots: vec![snapshot.id],
                    lost: Some(lost),
                });
            }
        }
        Ok(blocks)
    }
}

/// How long each pack is that these indexes tell of.
pub(super) fn lengths(indexes: &[Arc<Index>]) -> HashMap<Id, u64> {
    let packs = indexes.iter().flat_map(|index| index.packs());
    packs.map(|pack| (pack.id, pack.len)).collect()
}

/// Whether an error tells of damage, and not of a host that fails.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::Corrupt | Kind::NotFound | Kind::Unsupported)
}

/// Fails unless an object is what its name says.
pub(super) fn named(bytes: &[u8], id: Id) -> Result<()> {
    match Id::of_object(bytes) {
        found if found == id => Ok(()),
        found => Err(Cause::Name(found).into()),
    }
}
