//! Snapshot stores in memory for the fuzz targets: a small one that is made once, copied for each input, and given an object
//! that the fuzzer made the inside of. Seals and checksums are put right, so that it gets past them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use stratafs::block::{Cache, MemorySource};
use stratafs::chain::Chain;
use stratafs::error::{Error, Kind, Result};
use stratafs::store::objects::{Listed, Object, Objects, Sort};
use stratafs::store::{
    Collect, Depth, DiskSource, Id, Keyring, NewDisk, NewSnapshot, Progress, Reading, Secret,
    Settings, Snapshot, SnapshotLayer, Store,
};

use crate::read_disk;

/// Bytes of a block of the stores.
pub const BLOCK: usize = 16 << 10;

/// Objects in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<BTreeMap<Object, Vec<u8>>>);

impl Memory {
    fn objects(&self) -> std::sync::MutexGuard<'_, BTreeMap<Object, Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same objects again.
    pub fn copy(&self) -> Arc<Self> {
        Arc::new(Self(Mutex::new(self.objects().clone())))
    }

    /// Removes all objects of a sort.
    pub fn clear(&self, sort: Sort) {
        self.objects().retain(|object, _| !sort.is_of(*object));
    }
}

impl Objects for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self, object: Object) -> Result<u64> {
        let objects = self.objects();
        let bytes = objects.get(&object).ok_or_else(|| missing(object))?;
        Ok(bytes.len() as u64)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        let objects = self.objects();
        let bytes = objects.get(&object).ok_or_else(|| missing(object))?;
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        let range = rest.and_then(|rest| rest.get(..buf.len()));
        buf.copy_from_slice(range.ok_or_else(|| Error::new(Kind::Corrupt, "ends before"))?);
        Ok(())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.objects().insert(object, parts.concat());
        Ok(())
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let objects = self.objects();
        let listed = objects.iter().filter_map(|(object, bytes)| {
            let id = match *object {
                Object::Pack(id)
                | Object::Index(id)
                | Object::Snapshot(id)
                | Object::Lease(id)
                | Object::Condemned(id)
                | Object::Key(id)
                | Object::Signature(id)
                | Object::Part(id)
                | Object::Draft(id) => id,
                Object::Config => return None,
            };
            let listed = Listed { id, len: bytes.len() as u64, written: SystemTime::now() };
            sort.is_of(*object).then_some(listed)
        });
        Ok(listed.collect())
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.objects().remove(&object);
        Ok(())
    }

    fn clear_unfinished(&self, _then: SystemTime) -> Result<u64> {
        Ok(0)
    }
}

fn missing(object: Object) -> Error {
    Error::new(Kind::NotFound, "is not there").within(object.to_string())
}

/// A store with two snapshots of a disk of a few blocks.
pub struct Base {
    pub memory: Arc<Memory>,
    /// What its config says that it is.
    pub number: [u8; 16],
    pub snapshots: Vec<Snapshot>,
    /// Ids of its blocks.
    pub blocks: Vec<Id>,
    encrypted: bool,
}

/// The one that is not encrypted.
pub fn plain() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| Base::new(false))
}

/// The one that is.
pub fn encrypted() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| Base::new(true))
}

fn secret() -> Secret {
    Secret::key_file(vec![7; 32]).expect("is long enough")
}

impl Base {
    fn new(encrypted: bool) -> Self {
        let memory = Arc::new(Memory::default());
        let objects = Arc::clone(&memory) as Arc<dyn Objects>;
        let settings = Settings { block_size: BLOCK as u32, ..Settings::default() };
        let given = encrypted.then(secret);
        let store = Store::init(objects, settings, given.as_ref(), &Cache::new(0)).expect("made");
        let mut disk = vec![0; 6 * BLOCK];
        disk[BLOCK..2 * BLOCK].fill(1);
        for (byte, number) in disk[4 * BLOCK..5 * BLOCK].iter_mut().zip(0_u32..) {
            *byte = (number.wrapping_mul(2_654_435_761) >> 13) as u8;
        }
        let mut snapshots = Vec::new();
        for time in ["2026-11-22T01:00:00Z", "2026-11-22T02:00:00Z"] {
            let source = Arc::new(MemorySource::new(disk.clone()));
            let new = NewSnapshot {
                series: "web".to_owned(),
                time: time.parse().expect("a time"),
                tags: vec!["tag".to_owned()],
                parent: snapshots.last().cloned(),
                source: "memory".to_owned(),
                host: "host".to_owned(),
                sign: None,
                reading: Reading::default(),
                disks: vec![NewDisk {
                    name: "disk".to_owned(),
                    source: DiskSource::Image(source),
                    layers: vec![],
                }],
            };
            snapshots.push(store.create(new, &Progress::default()).expect("made"));
            disk[5 * BLOCK..].fill(9);
        }
        let blocks = disk.chunks(BLOCK).map(|block| store.block_id(block)).collect();
        let config = memory.objects()[&Object::Config].clone();
        // {"store":"…
        let text = String::from_utf8_lossy(&config[32..]);
        let digits = text.split('"').nth(3).expect("comes first");
        let number = u128::from_str_radix(digits, 16).expect("a number").to_be_bytes();
        Self { memory, number, snapshots, blocks, encrypted }
    }

    fn keyring(&self) -> Keyring {
        match self.encrypted {
            true => Keyring::given(|| Ok(secret())),
            false => Keyring::default(),
        }
    }

    /// The store with these objects, whatever they are.
    pub fn open(&self, memory: &Arc<Memory>) -> Result<Arc<Store>> {
        let objects = Arc::clone(memory) as Arc<dyn Objects>;
        Store::open(objects, &Cache::new(1 << 20), &self.keyring()).map(Arc::new)
    }

    /// Does with these objects all that reads them: nothing of it may fail otherwise than by an error.
    pub fn work(&self, memory: &Arc<Memory>) {
        let objects = Arc::clone(memory) as Arc<dyn Objects>;
        let Ok(store) = Store::open_damaged(objects, &Cache::new(1 << 20), &self.keyring()) else {
            return;
        };
        let checked = store.check(Depth::Data, &|| {});
        if let Ok(store) = self.open(memory) {
            let snapshots = store.snapshots().unwrap_or_default();
            let _ = store.signatures(&snapshots);
            let _ = store.keys();
            for snapshot in snapshots.iter().take(4) {
                self.read(&store, snapshot);
                if let Some(first) = self.snapshots.first() {
                    let [one, other] = [first, snapshot].map(|it| &it.record.disks[0]);
                    let mut ranges = 0;
                    let _ = store.differences(one, other, &mut |range, _| {
                        assert!(!range.is_empty(), "a difference of nothing");
                        ranges += 1;
                        match ranges {
                            0..1000 => Ok(()),
                            _ => Err(Error::new(Kind::Io, "that is enough")),
                        }
                    });
                }
            }
            let how = Collect { grace: Default::default(), unused: 10, dry_run: true };
            let _ = store.collect(&how, &|| {});
        }
        // Whatever was wrong: afterwards what is told to be lost is all that is.
        let repaired = store.repair(Depth::Data, &|| {});
        if let (Ok(_), Ok(_)) = (checked, repaired) {
            let again = self.open(memory).expect("was repaired");
            let _ = again.check(Depth::Data, &|| {});
        }
    }

    /// Reads a disk here and there.
    pub fn read(&self, store: &Arc<Store>, snapshot: &Snapshot) {
        for disk in snapshot.record.disks.iter().take(2) {
            let Ok(layer) = SnapshotLayer::new(Arc::clone(store), snapshot, disk) else { continue };
            let Ok(chain) = Chain::new(vec![Arc::new(layer)], Cache::new(1 << 20)) else {
                continue;
            };
            read_disk(&chain);
        }
    }
}

/// A sealed object of a store that is not encrypted, with this inside; `docs/store-format.md`, "Sealed object".
pub fn sealed(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"STRATAST".to_vec();
    bytes.extend_from_slice(&1_u16.to_le_bytes());
    bytes.extend_from_slice(&[kind, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(payload);
    let seal = blake3::hash(&bytes);
    bytes.extend_from_slice(seal.as_bytes());
    bytes
}

/// A pack of a store that is not encrypted, with these bytes for blobs; `docs/store-format.md`, "Pack".
pub fn pack(number: [u8; 16], blobs: &[u8]) -> Vec<u8> {
    let mut bytes = b"STRATAPK".to_vec();
    bytes.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&number);
    bytes.extend_from_slice(&[5; 16]);
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(blobs);
    bytes
}

fn page_hasher() -> blake3::Hasher {
    blake3::Hasher::new_derive_key("stratafs store 2026-11-22 map page")
}

/// A map page as a blob of a pack, and its id.
pub fn page(ids: &[u8]) -> (Vec<u8>, Id) {
    let id = Id(page_hasher().update(ids).finalize().into());
    let mut bytes = b"SBLB".to_vec();
    bytes.extend_from_slice(&[2, 0, 0, 0]);
    bytes.extend_from_slice(&(ids.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(ids.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&id.0);
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(ids);
    set_checksums(&mut bytes, 0);
    (bytes, id)
}

/// Puts the id right of the blob at `at`, if it is plain, and the checksums. Where the next one begins.
pub fn set_checksums(bytes: &mut [u8], at: usize) -> Option<usize> {
    let blob = bytes.get_mut(at..).filter(|rest| rest.len() >= 56)?;
    let (header, rest) = blob.split_at_mut(56);
    let stored = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
    let stored = rest.get(..stored)?;
    let id = match (header[4], header[5]) {
        (1, 0) => Some(blake3::hash(stored)),
        (2, 0) => Some(page_hasher().update(stored).finalize()),
        _ => None,
    };
    if let Some(id) = id {
        header[16..48].copy_from_slice(id.as_bytes());
    }
    let crc = crc32c::crc32c(stored);
    header[48..52].copy_from_slice(&crc.to_le_bytes());
    header[52..].fill(0);
    let crc = crc32c::crc32c(header);
    header[52..].copy_from_slice(&crc.to_le_bytes());
    Some(at + 56 + stored.len())
}
