//! Snapshots of a store as disks.

mod tree;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Assembly, Disk, Opener, Reference};
use crate::block::{Cache, FileSource};
use crate::chain::{Chain, Layer};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::objects::{BucketOptions, Folder, Location, Objects};
use crate::store::{DiskRecord, Keyring, Snapshot, SnapshotLayer, Store};
use crate::tree::Time;

pub(super) use tree::StoreTree;

/// A disk of a snapshot, as the store tells of it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Which of its disks.
    pub disk: DiskRecord,
}

/// How stores are opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How those in buckets are reached.
    pub bucket: BucketOptions,
    /// What opens those that are encrypted.
    pub keyring: Arc<Keyring>,
}

impl Stored {
    /// Of when it is.
    pub(super) fn time(&self) -> Time {
        time_of(self.snapshot.record.time)
    }
}

fn time_of(time: Timestamp) -> Time {
    let nanos = time.as_nanosecond();
    Time {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or_default(),
        nanos: nanos.rem_euclid(1_000_000_000) as u32,
    }
}

/// Opens the store at `location`.
///
/// # Errors
/// [`Kind::NotFound`] if there is none, and as [`Store::open`].
pub fn store(location: &Location, options: &Options, cache: &Arc<Cache>) -> Result<Arc<Store>> {
    is_there(location, Store::open(objects(location, options)?, cache, &options.keyring))
        .map(Arc::new)
}

/// Opens a store whose indexes may be damaged.
///
/// # Errors
/// As [`Store::open_damaged`].
pub fn damaged(location: &Location, options: &Options, cache: &Arc<Cache>) -> Result<Store> {
    is_there(location, Store::open_damaged(objects(location, options)?, cache, &options.keyring))
}

fn objects(location: &Location, options: &Options) -> Result<Arc<dyn Objects>> {
    location.objects(&options.bucket)
}

/// Tells of a store that is not there as such.
fn is_there<T>(location: &Location, opened: Result<T>) -> Result<T> {
    opened.map_err(|error| {
        let is_missing = match location {
            Location::Folder(dir) => !Folder::is_store(dir),
            // That there is no such bucket has a hint of its own.
            Location::Bucket { .. } => error.kind() == Kind::NotFound && error.hint().is_none(),
        };
        if !is_missing {
            return error;
        }
        Error::new(Kind::NotFound, "no snapshot store")
            .within(location.to_string())
            .with_hint(format!("strata store init {location} makes one"))
    })
}

impl Reference {
    /// Whether it leads into a snapshot store.
    pub(super) fn is_stored(&self) -> bool {
        Location::may_be_store(&self.path)
    }

    /// Whether it means a snapshot store as a whole.
    pub fn is_whole_store(&self) -> bool {
        self.snapshot.is_none() && self.is_stored()
    }
}

impl Opener {
    /// The disk of a store that `reference` names, below the changes of a delta if there is one.
    pub(super) fn stored_disk(&self, delta: Option<&Path>, reference: &Reference) -> Result<Disk> {
        let (store, snapshot, disk) = self.select(reference)?;
        self.disk_of(store, snapshot, disk, delta)
    }

    /// A disk of a snapshot, below the changes of a delta if there is one.
    fn disk_of(
        &self,
        store: Arc<Store>,
        snapshot: Snapshot,
        disk: DiskRecord,
        delta: Option<&Path>,
    ) -> Result<Disk> {
        let below: Arc<dyn Layer> = Arc::new(SnapshotLayer::new(store, &snapshot, &disk)?);
        let (mut layers, mut chain, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(delta) = delta {
            let source = FileSource::open(delta)?;
            let mut assembly = Assembly::new(self, &source)?;
            assembly.add_delta(source)?;
            (layers, chain, warnings) = (assembly.layers, assembly.chain, assembly.warnings);
        }
        layers.push(below);
        let source = Arc::new(Chain::new(layers, Arc::clone(&self.cache))?);
        Ok(Disk {
            layers: Some(Arc::clone(&source)),
            source,
            chain,
            snapshots: Vec::new(),
            stored: Some(Stored { snapshot, disk }),
            warnings,
        })
    }

    /// The same reference with the id of the snapshot in the place of what may mean another one tomorrow.
    pub(super) fn pinned<'a>(&self, reference: &'a Reference) -> Result<Cow<'a, Reference>> {
        if !reference.is_stored() {
            return Ok(Cow::Borrowed(reference));
        }
        let (_, snapshot, disk) = self.select(reference)?;
        let name = match snapshot.record.disks.len() {
            1 => snapshot.id.to_string(),
            _ => format!("{}/{}", snapshot.id, disk.name),
        };
        Ok(Cow::Owned(Reference { path: reference.path.clone(), snapshot: Some(name) }))
    }

    /// The store that the path of a reference names.
    ///
    /// # Errors
    /// As [`store`].
    pub fn store(&self, path: &Path) -> Result<Arc<Store>> {
        store(&Location::parse(path.as_os_str())?, &self.stores, &self.cache)
    }

    /// The disks of two references to snapshots of one store.
    ///
    /// # Errors
    /// As [`Opener::disk`].
    pub fn stored_pair(
        &self,
        before: &Reference,
        after: &Reference,
    ) -> Result<Option<(Arc<Store>, DiskRecord, DiskRecord)>> {
        let both = before.is_stored() && after.is_stored();
        let place = |reference: &Reference| reference.path.canonicalize().ok();
        let same = both && place(before).is_some_and(|it| place(after) == Some(it));
        if !same || before.snapshot.is_none() || after.snapshot.is_none() {
            return Ok(None);
        }
        let ((store, _, before), (_, _, after)) = (self.select(before)?, self.select(after)?);
        Ok(Some((store, before, after)))
    }

    fn select(&self, reference: &Reference) -> Result<(Arc<Store>, Snapshot, DiskRecord)> {
        let store = self.store(&reference.path)?;
        let named = || reference.path.display().to_string();
        let Some(name) = &reference.snapshot else {
            let error = Error::new(Kind::Usage, "is a snapshot store").within(named());
            return Err(error.with_hint(format!(
                "name a snapshot, as {0}::SERIES; strata snapshot list {0} has them",
                named()
            )));
        };
        let (snapshot, disk) = store.select(name).within(named)?;
        store.trust(&snapshot)?;
        Ok((store, snapshot, disk))
    }
}
