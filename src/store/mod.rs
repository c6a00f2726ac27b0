//! The snapshot store: each snapshot reads as a whole disk, and costs what changed.
//!
//! A disk is cut into blocks, which are stored once, by their hash, in packs; a snapshot is a tree of pages
//! of hashes. Nothing that is stored ever changes, and a snapshot exists once its record does. The
//! format is `docs/store-format.md`, whose sections the files here are named after.

mod blobs;
mod cause;
mod check;
mod collect;
mod compare;
mod condemned;
mod copy;
mod create;
mod id;
mod index;
mod keys;
mod layer;
mod lease;
mod lost;
mod map;
mod marks;
mod merge;
pub mod objects;
mod pack;
mod prune;
mod record;
mod repair;
mod rollback;
mod sealed;
mod select;
mod signatures;
mod sorted;
mod source;

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::block::{Cache, Owner};
use crate::error::{Error, Kind, Result, ResultExt};
use cause::Cause;
use index::Index;
use keys::{Keys, Opened};
use objects::{Listed, Object, Objects, Sort};
use sealed::{Protection, Sealed};

pub use check::{Checked, Depth, Problem};
pub use collect::{Collect, Collected};
pub use copy::Copied;
pub use create::{DiskSource, NewDisk, NewSnapshot, Progress, Reading, Stream};
pub use id::Id;
pub use keys::{KeyInfo, KeyKind, Keyring, Secret};
pub use layer::SnapshotLayer;
pub use lost::{Lost, LostRange};
pub use prune::{Decision, Keep, Period};
pub use record::{DiskRecord, Record, Snapshot};
pub use repair::Repaired;
pub use rollback::Target;
pub use select::check_name;
pub use signatures::{PublicKey, Signature, SigningKey};
pub use source::{LayerState, SourceLayer};

/// The version of the format.
const VERSION: u16 = 1;

/// How often indexes are looked for that others merge meanwhile.
const MOST_TRIES: u32 = 8;

/// Bytes of a config or a record at most.
const MOST_RECORD: u64 = 16 << 20;

/// Threads of one piece of work at most.
const MOST_WORKERS: usize = 8;

/// What a store is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a block: a power of two from 16 KiB to 4 MiB.
    pub block_size: u32,
    /// The level of zstd for what is written, from 1 to 19.
    pub level: i32,
}

impl Default for Settings {
    /// 128 KiB at level 4; measured in `docs/store-format.md`, "Blocks".
    fn default() -> Self {
        Self { block_size: 128 << 10, level: 4 }
    }
}

/// What the config says; `docs/store-format.md`, "Config".
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    store: String,
    block_size: u32,
    level: i32,
    created: Timestamp,
    features: Features,
}

/// What a program must know to do these things.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Features {
    read: Vec<String>,
    write: Vec<String>,
    remove: Vec<String>,
}

/// An open store.
#[derive(Debug)]
pub struct Store {
    objects: Arc<dyn Objects>,
    config: Config,
    number: [u8; 16],
    keys: Keys,
    /// The key slot that it was opened with.
    slot: Option<Id>,
    /// Who must have signed what is opened, if anybody.
    trusted: Vec<PublicKey>,
    cache: Arc<Cache>,
    /// Where map pages are in the cache, by how their ids begin.
    pages: Owner,
    indexes: RwLock<Vec<Arc<Index>>>,
    /// Packs that whoever writes takes as gone: those that were condemned when it began.
    leaving: RwLock<HashSet<Id>>,
}

impl Store {
    /// Makes a new store of no objects yet: those of [`Location::make`](objects::Location::make); encrypted, if there is
    /// a secret to open it.
    ///
    /// # Errors
    /// [`Kind::Usage`] for settings out of their range, and the host's.
    pub fn init(
        objects: Arc<dyn Objects>,
        settings: Settings,
        secret: Option<&Secret>,
        cache: &Arc<Cache>,
    ) -> Result<Self> {
        let Settings { block_size, level } = settings;
        check_block_size(block_size)?;
        if !(1..=19).contains(&level) {
            return Err(Error::new(Kind::Usage, format!("level {level}: 1 to 19 are allowed")));
        }
        let number = keys::random::<16>()?;
        let config = Config {
            store: number.iter().map(|byte| format!("{byte:02x}")).collect(),
            block_size,
            level,
            created: Timestamp::now(),
            features: Features::default(),
        };
        let json =
            serde_json::to_vec(&config).map_err(|error| Error::caused_by(Kind::Io, error))?;
        // Last: only with it is it a store.
        let keys = if secret.is_some() { Keys::generate()? } else { Keys::default() };
        let config_bytes = keys.seal(Sealed::Config, &json)?;
        let opened = Opened::new(number, keys);
        let store = Self::with(objects, config, number, opened, Vec::new(), cache);
        if let Some(secret) = secret {
            store.add_key(secret, "")?;
        }
        store.objects.put(Object::Config, &[&config_bytes])?;
        Ok(store)
    }

    /// Opens the store in `objects`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Unsupported`] if it needs what this program does not know,
    /// [`Kind::Corrupt`] if its config or an index is damaged, and the host's.
    pub fn open(objects: Arc<dyn Objects>, cache: &Arc<Cache>, keyring: &Keyring) -> Result<Self> {
        let store = Self::open_damaged(objects, cache, keyring)?;
        match store.load_indexes() {
            Ok(()) => Ok(store),
            Err(error) => {
                let is_damaged = error.kind() == Kind::Corrupt;
                let error = error.within(store.name());
                let hint =
                    || format!("strata store repair {} makes it anew from the packs", store.name());
                Err(if is_damaged { error.with_hint(hint()) } else { error })
            }
        }
    }

    /// Opens a store whose indexes may be damaged, to check or to repair it: none is opened.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_damaged(
        objects: Arc<dyn Objects>,
        cache: &Arc<Cache>,
        keyring: &Keyring,
    ) -> Result<Self> {
        let name = objects.name();
        Self::open_objects(objects, cache, keyring).within(|| name)
    }

    fn open_objects(
        objects: Arc<dyn Objects>,
        cache: &Arc<Cache>,
        keyring: &Keyring,
    ) -> Result<Self> {
        let bytes = whole(&*objects, Object::Config)?;
        // Which store it says to be decides nothing but which keys are tried.
        let (config, is_encrypted) = peek(&bytes).map_err(Error::from).within(|| "config")?;
        let number = store_number(&config.store);
        let number = number.ok_or_else(|| Error::from(Cause::Json("no number".into())));
        let number = number.within(|| "config")?;
        let fits = |keys: &Keys| keys.unseal(Sealed::Config, &bytes).map(drop);
        let opened = keyring.open(&*objects, number, is_encrypted, &fits)?;
        fits(&opened.keys).map_err(Error::from).within(|| "config")?;
        if let Some(unknown) = config.features.read.first() {
            return Err(Cause::Feature(unknown.clone()).into());
        }
        check_block_size(config.block_size)?;
        let trusted = keyring.trusted()?;
        Ok(Self::with(objects, config, number, opened, trusted, cache))
    }

    fn with(
        objects: Arc<dyn Objects>,
        config: Config,
        number: [u8; 16],
        opened: Opened,
        trusted: Vec<PublicKey>,
        cache: &Arc<Cache>,
    ) -> Self {
        let Opened { keys, slot, .. } = opened;
        let pages = cache.owner();
        let cache = Arc::clone(cache);
        Self {
            objects,
            config,
            number,
            keys,
            slot,
            trusted,
            cache,
            pages,
            indexes: RwLock::default(),
            leaving: RwLock::default(),
        }
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.config.block_size
    }

    /// What messages call it.
    pub fn name(&self) -> String {
        self.objects.name()
    }

    /// What it holds, in numbers.
    ///
    /// # Errors
    /// Those of listing it.
    pub fn usage(&self) -> Result<Usage> {
        let sum = |sort| -> Result<(u64, u64)> {
            let listed = self.objects.list(sort)?;
            Ok((listed.len() as u64, listed.iter().map(|listed| listed.len).sum()))
        };
        let (packs, pack_bytes) = sum(Sort::Packs)?;
        let index_bytes = sum(Sort::Indexes)?.1 + sum(Sort::Parts)?.1;
        let (snapshots, _) = sum(Sort::Snapshots)?;
        let blobs = self.indexes.read().iter().map(|index| index.entry_count()).sum();
        Ok(Usage {
            block_size: self.config.block_size,
            level: self.config.level,
            encrypted: self.keys.are_there(),
            created: self.config.created,
            snapshots,
            packs,
            pack_bytes,
            index_bytes,
            blobs,
        })
    }

    /// Looks at which indexes there are, and opens those that are new.
    fn load_indexes(&self) -> Result<()> {
        let known = self.indexes.read().clone();
        let mut tries = 0;
        let mut indexes = loop {
            let listed = self.objects.list(Sort::Indexes)?;
            let open = |listed: &Listed| match known.iter().find(|known| known.id() == listed.id) {
                Some(known) => Ok(Arc::clone(known)),
                None => {
                    Index::open(&self.keys, &self.objects, &self.cache, listed.id).map(Arc::new)
                }
            };
            match listed.iter().map(open).collect::<Result<Vec<_>>>() {
                // It was merged into another one that is not listed yet.
                Err(error) if error.kind() == Kind::NotFound && tries < MOST_TRIES => tries += 1,
                opened => break opened?,
            }
        };
        let mut current = self.indexes.write();
        let has = |indexes: &[Arc<Index>], id| indexes.iter().any(|index| index.id() == id);
        // Those that a writer of this process has added meanwhile.
        let added = current.iter().filter(|index| !has(&known, index.id()));
        let added: Vec<_> = added.filter(|index| !has(&indexes, index.id())).cloned().collect();
        indexes.extend(added);
        // Those that know the most are asked first.
        indexes.sort_by_key(|index| Reverse(index.entry_count()));
        *current = indexes;
        Ok(())
    }

    /// All snapshots, the oldest first.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if a record is damaged, and the host's.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for (_, read) in self.read_snapshots(&self.snapshot_ids()?) {
            match read {
                Ok(snapshot) => snapshots.push(snapshot),
                // Removed since.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        snapshots.sort_by_key(|snapshot| (snapshot.record.time, snapshot.id));
        Ok(snapshots)
    }

    /// The ids of all snapshots, in no order.
    ///
    /// # Errors
    /// Those of listing them.
    pub fn snapshot_ids(&self) -> Result<Vec<Id>> {
        let listed = self.objects.list(Sort::Snapshots)?;
        Ok(listed.into_iter().map(|listed| listed.id).collect())
    }

    /// Reads these snapshots, some beside each other: each with its id and what [`Store::snapshot`] says of it.
    pub fn read_snapshots(&self, ids: &[Id]) -> Vec<(Id, Result<Snapshot>)> {
        /// Records under way at once: where they are far away it is the way that takes long.
        const BESIDE: usize = 16;
        let read =
            |ids: &[Id]| -> Vec<_> { ids.iter().map(|id| (*id, self.snapshot(*id))).collect() };
        if ids.len() <= BESIDE {
            return read(ids);
        }
        std::thread::scope(|scope| {
            let share = ids.len().div_ceil(BESIDE);
            let readers: Vec<_> =
                ids.chunks(share).map(|share| scope.spawn(move || read(share))).collect();
            let joined = readers.into_iter().map(|reader| match reader.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.flatten().collect()
        })
    }

    /// The snapshot of that id.
    ///
    /// # Errors
    /// As [`Store::snapshots`].
    pub fn snapshot(&self, id: Id) -> Result<Snapshot> {
        let object = Object::Snapshot(id);
        let read = || -> Result<Record> {
            let bytes = whole(&*self.objects, object)?;
            let json = self.keys.unseal(Sealed::Record, &bytes)?;
            if Id::of_object(&bytes) != id {
                return Err(Cause::Name(Id::of_object(&bytes)).into());
            }
            let record: Record =
                serde_json::from_slice(&json).map_err(|error| Cause::Json(error.to_string()))?;
            if record.disks.is_empty() {
                return Err(Cause::Json("no disk".to_owned()).into());
            }
            // Whoever wrote it may have been anybody, and these are printed and typed.
            record.check_names().map_err(|error| Cause::Json(error.to_string()))?;
            Ok(record)
        };
        let record = read().within(|| format!("{}: {object}", self.name()))?;
        Ok(Snapshot { id, record })
    }

    /// Removes a snapshot. What only it needs stays until it is collected.
    ///
    /// # Errors
    /// The host's.
    pub fn remove(&self, snapshot: Id) -> Result<()> {
        if let Some(unknown) = self.config.features.remove.first() {
            return Err(Error::from(Cause::Feature(unknown.clone())).within(self.name()));
        }
        self.objects.remove(Object::Snapshot(snapshot))
    }
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes of a block.
    pub block_size: u32,
    /// zstd's level.
    pub level: i32,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// When the store was made.
    pub created: Timestamp,
    /// Snapshots.
    pub snapshots: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes of all packs.
    pub pack_bytes: u64,
    /// Bytes of all indexes.
    pub index_bytes: u64,
    /// Blocks and map pages, those in two indexes counted twice.
    pub blobs: u64,
}

fn check_block_size(size: u32) -> Result<(), Cause> {
    let allowed = size.is_power_of_two() && ((16 << 10)..=(4 << 20)).contains(&size);
    if allowed { Ok(()) } else { Err(Cause::BlockSize(size.into())) }
}

/// What a config says, and whether it is that of an encrypted store: its seal is not looked at.
fn peek(bytes: &[u8]) -> Result<(Config, bool), Cause> {
    let parts = sealed::parts(bytes)?;
    let is_encrypted = sealed::protection(parts.header)? != Protection::None;
    // Without keys anybody can tell damage.
    if !is_encrypted {
        Keys::default().unseal(Sealed::Config, bytes)?;
    }
    let config =
        serde_json::from_slice(parts.payload).map_err(|error| Cause::Json(error.to_string()))?;
    Ok((config, is_encrypted))
}

fn store_number(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(number.to_be_bytes())
}

/// The whole of a small object.
fn whole(objects: &dyn Objects, object: Object) -> Result<Vec<u8>> {
    let len = objects.len(object)?;
    if len > MOST_RECORD {
        return Err(Cause::Length { found: len, said: MOST_RECORD }.into());
    }
    let mut bytes = vec![0; len as usize];
    objects.read_at(object, 0, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
