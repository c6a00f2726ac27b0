//! Snapshots of a store as disks.

mod tree;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;

use super::cow::parse_backing;
use super::{Assembly, Disk, Opener, Reference};
use crate::block::{Cache, FileSource};
use crate::chain::{Chain, Layer, ParentLocator};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::objects::{BucketOptions, Folder, Location};
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
    /// Stores that the person named. In a bucket, a delta lies above a snapshot of one of these, or is refused: no image has
    /// us ask a server for what it likes.
    pub named: Vec<Location>,
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
    let objects = location.objects(&options.bucket)?;
    is_there(location, Store::open(objects, cache, &options.keyring)).map(Arc::new)
}

/// Opens a store whose indexes may be damaged, to look at what is there and not at what is kept of it.
///
/// # Errors
/// As [`Store::open_damaged`].
pub fn damaged(location: &Location, options: &Options, cache: &Arc<Cache>) -> Result<Store> {
    let objects = location.bare_objects(&options.bucket)?;
    is_there(location, Store::open_damaged(objects, cache, &options.keyring))
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

    /// Whether it names a snapshot or series of a store.
    pub fn is_of_store(&self) -> bool {
        self.snapshot.is_some() && self.is_stored()
    }

    /// Whether it means a snapshot store as a whole.
    pub fn is_whole_store(&self) -> bool {
        self.snapshot.is_none() && self.is_stored()
    }
}

impl Assembly<'_> {
    /// Adds the snapshot that an image in `folder` has below it. Whether `parent` is the name of one that
    /// may be opened.
    ///
    /// # Errors
    /// As [`Opener::disk`].
    pub(super) fn add_stored(&mut self, parent: &ParentLocator, folder: &Path) -> Result<bool> {
        let (name, Some(snapshot)) = parse_backing(&parent.name) else { return Ok(false) };
        if Location::is_bucket(Path::new(name)) {
            let location = Location::parse(name)?;
            if !self.opener.stores.named.contains(&location) {
                let error =
                    Error::new(Kind::Refused, "a store that was not named on the command line");
                return Err(error.within(location.to_string()).with_hint(format!(
                    "strata mount --cow DELTA {location}::{snapshot} opens both"
                )));
            }
            self.check_depth()?;
            let store = store(&location, &self.opener.stores, &self.opener.cache)?;
            return self.add_snapshot(store, &snapshot);
        }
        // A store may be opened if this file of it may. If it is none, or may not, it is another name's turn.
        let Ok(config) = self.gate.open(Path::new(name).join("config").as_os_str(), folder) else {
            return Ok(false);
        };
        self.check_depth()?;
        let store = self.opener.store(&config.folder)?;
        if FileSource::open(&config.folder.join("config"))?.identity() != config.source.identity() {
            let error = Error::new(Kind::Refused, "is not where it was a moment ago");
            return Err(error.within(store.name()));
        }
        self.add_snapshot(store, &snapshot)
    }

    fn add_snapshot(&mut self, store: Arc<Store>, name: &str) -> Result<bool> {
        let (snapshot, disk) = store.select(name).within(|| store.name())?;
        self.layers.push(Arc::new(SnapshotLayer::new(store, &snapshot, &disk)?));
        self.stored = Some(Stored { snapshot, disk });
        Ok(true)
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
    ///
    /// # Errors
    /// As [`Opener::disk`].
    pub(crate) fn pinned<'a>(&self, reference: &'a Reference) -> Result<Cow<'a, Reference>> {
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
