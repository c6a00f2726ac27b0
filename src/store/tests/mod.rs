//! Stores in temporary folders.

mod chain;
mod check;
mod collect;
mod compare;
mod copies;
mod damage;
mod drafts;
mod encryption;
mod flips;
mod heal;
mod index;
mod memory;
mod model;
mod names;
mod packs;
mod parts;
mod prune;
mod rollback;
mod scale;
mod signatures;
mod sorted;
mod watched;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tempfile::TempDir;

use super::objects::Folder;
use super::{
    DiskSource, Keyring, NewDisk, NewSnapshot, Progress, Reading, Secret, Settings, Snapshot,
    SnapshotLayer, Store,
};
use crate::block::{BlockSource, Cache, Extent, MemorySource, Origin};
use crate::chain::Chain;
use crate::error::{Error, Kind, Result};

/// Bytes of a block in most tests: the least that is allowed.
const BLOCK: usize = 16 << 10;

fn given(secret: Secret) -> Keyring {
    Keyring::given(move || Ok(secret.clone()))
}

/// A store in a folder that goes with it.
struct Place {
    dir: TempDir,
    store: Arc<Store>,
    cache: Arc<Cache>,
    /// What opens it, if it is encrypted.
    secret: Option<Secret>,
}

/// A key file, of which no attempt takes long.
fn key_file(seed: u64) -> Secret {
    Secret::key_file(noise(seed, 32)).unwrap()
}

impl Place {
    fn new() -> Self {
        Self::with(None)
    }

    fn encrypted() -> Self {
        Self::with(Some(key_file(1)))
    }

    /// One of each sort.
    fn both() -> [Self; 2] {
        [Self::new(), Self::encrypted()]
    }

    /// One in memory, if the host has such a folder: for tests that make hundreds.
    fn quick() -> Self {
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        Self::in_dir(dir, None)
    }

    fn with(secret: Option<Secret>) -> Self {
        Self::in_dir(TempDir::new().unwrap(), secret)
    }

    fn in_dir(dir: TempDir, secret: Option<Secret>) -> Self {
        let cache = Cache::new(0);
        let settings = Settings { block_size: BLOCK as u32, ..Settings::default() };
        let objects = Arc::new(Folder::make(&dir.path().join("store")).unwrap());
        let store = Store::init(objects, settings, secret.as_ref(), &cache).unwrap();
        Self { dir, store: Arc::new(store), cache, secret }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }

    /// The store as another process finds it, with nothing in a cache.
    fn again(&self) -> Result<Arc<Store>> {
        self.opened_with(&self.keyring())
    }

    fn keyring(&self) -> Keyring {
        self.secret.clone().map(given).unwrap_or_default()
    }

    fn opened_with(&self, keyring: &Keyring) -> Result<Arc<Store>> {
        let objects = Arc::new(Folder::new(&self.path()));
        Store::open(objects, &Cache::new(0), keyring).map(Arc::new)
    }

    /// The same, though indexes may be damaged.
    fn again_damaged(&self) -> Store {
        let objects = Arc::new(Folder::new(&self.path()));
        Store::open_damaged(objects, &Cache::new(0), &self.keyring()).unwrap()
    }

    fn create(
        &self,
        series: &str,
        second: i64,
        disk: &[u8],
        parent: Option<&Snapshot>,
    ) -> Snapshot {
        let new = new(series, second, disk, parent);
        self.store.create(new, &Progress::default()).unwrap()
    }
}

fn new(series: &str, second: i64, disk: &[u8], parent: Option<&Snapshot>) -> NewSnapshot {
    let source = DiskSource::Image(Arc::new(MemorySource::new(disk.to_vec())));
    NewSnapshot {
        series: series.to_owned(),
        time: Timestamp::from_second(second).unwrap(),
        tags: vec![],
        parent: parent.cloned(),
        source: "memory".to_owned(),
        host: "here".to_owned(),
        sign: None,
        reading: Reading::default(),
        disks: vec![NewDisk { name: "disk".to_owned(), source, layers: vec![] }],
    }
}

/// The whole disk of a snapshot.
fn read(store: &Arc<Store>, snapshot: &Snapshot) -> Result<Vec<u8>> {
    let layer = SnapshotLayer::new(Arc::clone(store), snapshot, &snapshot.record.disks[0])?;
    let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0))?;
    let mut disk = vec![0xee; chain.len() as usize];
    chain.read_at(0, &mut disk)?;
    Ok(disk)
}

/// Bytes that do not compress, and differ by `seed`.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn a_snapshot_reads_as_the_disk() {
    Place::both().iter().for_each(reads_as_the_disk);
}

fn reads_as_the_disk(place: &Place) {
    let mut disk = vec![0; 100 * BLOCK + 777];
    disk[5 * BLOCK..7 * BLOCK + 9].copy_from_slice(&noise(1, 2 * BLOCK + 9));
    disk[50 * BLOCK..60 * BLOCK].fill(7);
    disk[100 * BLOCK..].fill(9);
    let progress = Progress::default();
    let made = place.store.create(new("web", 1, &disk, None), &progress).unwrap();
    let told = &made.record.disks[0];
    // Three of noise, ten that are the same one, and the last.
    assert_eq!((told.size, told.blocks, told.new_blocks), (disk.len() as u64, 14, 5));
    assert_eq!(progress.done.load(Ordering::Relaxed), disk.len() as u64);
    let again = place.again().unwrap();
    let (found, chosen) = again.select("web").unwrap();
    assert_eq!((&found, &chosen), (&made, told));
    assert!(read(&again, &found).unwrap() == disk);
}

#[test]
fn disks_of_zeros_and_of_nothing_are_stored_as_a_record() {
    let place = Place::new();
    for len in [0, 1, BLOCK, 3000 * BLOCK + 1] {
        let disk = vec![0; len];
        let made = place.create("zeros", 1, &disk, None);
        assert!(made.record.disks[0].root.is_zero());
        assert!(read(&place.store, &made).unwrap() == disk, "{len} bytes");
    }
    assert_eq!(place.store.usage().unwrap().packs, 0);
}

#[test]
fn maps_of_several_levels() {
    Place::both().iter().for_each(has_maps_of_several_levels);
}

fn has_maps_of_several_levels(place: &Place) {
    // 1,024 blocks are one page; these are two and a bit, below a page of level 1.
    let mut disk = vec![0; 2100 * BLOCK];
    for (seed, block) in [0, 1023, 1024, 2047, 2048, 2099].into_iter().enumerate() {
        disk[block * BLOCK..][..BLOCK].copy_from_slice(&noise(seed as u64, BLOCK));
    }
    let first = place.create("large", 1, &disk, None);
    assert!(read(&place.again().unwrap(), &first).unwrap() == disk);
    disk[1500 * BLOCK..][..100].fill(1);
    let second = place.create("large", 2, &disk, Some(&first));
    assert_eq!(second.record.disks[0].new_blocks, 1);
    assert!(read(&place.again().unwrap(), &second).unwrap() == disk);
    // Cut off, and grown again.
    let third = place.create("large", 3, &disk[..900 * BLOCK + 5], Some(&second));
    assert_eq!(third.record.disks[0].new_blocks, 0);
    assert!(read(&place.store, &third).unwrap() == disk[..900 * BLOCK + 5]);
    let fourth = place.create("large", 4, &disk, Some(&third));
    assert_eq!(fourth.record.disks[0].new_blocks, 0);
    assert_eq!(fourth.record.disks[0].root, second.record.disks[0].root);
}

#[test]
fn stopping_leaves_no_snapshot() {
    let place = Place::new();
    let progress = Progress::default();
    progress.stop.store(true, Ordering::Relaxed);
    let error =
        place.store.create(new("web", 1, &noise(1, 3 * BLOCK), None), &progress).unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    assert_eq!(place.again().unwrap().snapshots().unwrap(), []);
}

/// A disk that cannot be read from some place on.
#[derive(Debug)]
struct Failing(MemorySource, u64);

impl BlockSource for Failing {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if offset >= self.1 {
            return Err(Error::new(Kind::Io, "a bad sector"));
        }
        self.0.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        self.0.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&std::fs::File> {
        None
    }
}

/// `disk`, which cannot be read from `at` on.
fn failing_at(at: u64, disk: &[u8]) -> DiskSource {
    DiskSource::Image(Arc::new(Failing(MemorySource::new(disk.to_vec()), at)))
}

#[test]
fn what_a_failed_attempt_stored_is_used_by_the_next() {
    let place = Place::new();
    // More than a pack of it can be read.
    let disk = noise(1, 40 << 20);
    let mut failing = new("web", 1, &disk, None);
    failing.disks[0].source = failing_at(36 << 20, &disk);
    let error = place.store.create(failing, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("a bad sector"), "{error}");
    let store = place.again().unwrap();
    assert_eq!((store.snapshots().unwrap().len(), store.usage().unwrap().packs), (0, 2));
    let made = store.create(new("web", 2, &disk, None), &Progress::default()).unwrap();
    let all = (disk.len() / BLOCK) as u64;
    assert!(
        made.record.disks[0].new_blocks < all / 2,
        "{} of {all}",
        made.record.disks[0].new_blocks
    );
    assert!(read(&place.again().unwrap(), &made).unwrap() == disk);
}
