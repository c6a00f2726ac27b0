//! A store of very many blocks: the code that writes maps, indexes and records, merges, looks up and collects, on blocks
//! that are never there (`docs/scale.md`).
//!
//! `STRATA_SCALE_BLOCKS` says how many different blocks there are to be; what memory each phase took at most is held against
//! what the documentation says, and what stays after collecting against a plain account. The store is made in `STRATA_SCALE_DIR`,
//! and takes 100 bytes a block for a moment.

mod disks;
mod records;

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::*;
use crate::chain::{EncodedUnit, Layer};
use crate::store::condemned::Condemned;
use crate::store::create::Writer;
use crate::store::id::{BlobKind, Id};
use crate::store::map::{FANOUT, Shape};
use crate::store::objects::Object;
use crate::store::pack::{Blob, Encoding, FULL, PACK_HEADER, Pack};
use crate::store::sealed::Sealed;
use crate::store::{Collect, Record};
use disks::{BLOCK, Disk, Hollow, STRETCH, id, mix};

/// Disks, and how often each changes.
const DISKS: u64 = 4;
const CHANGES: u16 = 5;
/// Blocks of a pack of 32 MiB that are stored as 0.6 of their size.
const PER_PACK: usize = 420;
const STORED: u32 = 78_000;
/// One of so many new blocks is looked up.
const ASKED: u64 = 64;
/// Look-ups that are measured.
const LOOKUPS: u64 = 20_000;

/// Peak resident bytes since this was called last.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    let peak: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    peak << 10
}

/// Measures what is done step by step.
struct Phases {
    objects: Arc<Hollow>,
    begun: Instant,
    /// What no phase may pass.
    most: u64,
}

impl Phases {
    fn new(objects: &Arc<Hollow>, most: u64) -> Self {
        objects.take();
        peak();
        println!(
            "{:34} {:>8} {:>12} {:>9} {:>9} {:>9} {:>8} {:>9} {:>6} {:>8} {:>6}",
            "phase", "s", "of", "a second", "index", "MB", "others", "MB", "puts", "MB", "peak"
        );
        Self { objects: Arc::clone(objects), begun: Instant::now(), most }
    }

    fn end(&mut self, name: &str, count: u64) {
        let seconds = self.begun.elapsed().as_secs_f64();
        let [index, other, puts, _] = self.objects.take();
        let peak = peak();
        let mb = |bytes: u64| bytes as f64 / 1e6;
        println!(
            "{name:34} {seconds:>8.2} {count:>12} {:>9.0} {:>9} {:>9.1} {:>8} {:>9.1} {:>6} {:>8.1} {:>6.0}",
            count as f64 / seconds.max(1e-6),
            index.0,
            mb(index.1),
            other.0,
            mb(other.1),
            puts.0,
            mb(puts.1),
            mb(peak)
        );
        assert!(peak <= self.most, "{name}: {peak} bytes of memory, {} are allowed", self.most);
        self.begun = Instant::now();
    }
}

/// What one disk was at each of its snapshots, and which packs hold what came with it.
struct Series {
    snapshots: Vec<(Snapshot, Disk)>,
}

struct Packed {
    id: Id,
    disk: u64,
    version: u16,
    /// Where its blocks are.
    stretches: Box<[u32]>,
}

struct Simulation {
    store: Arc<Store>,
    objects: Arc<Hollow>,
    packs: Vec<Packed>,
}

impl Simulation {
    /// Stores what changed in `version` of a disk: by name.
    fn write(&mut self, disk: &Disk, version: u16) -> u64 {
        let store = Arc::clone(&self.store);
        let (_lease, _) = store.writing(vec![]).unwrap();
        let progress = Progress::default();
        let writer = Writer::new(&store, &progress).unwrap();
        let mut changed = disk.changed(version);
        let mut total = 0;
        loop {
            let some: Vec<u64> = changed.by_ref().take(PER_PACK * 256).collect();
            if some.is_empty() {
                break;
            }
            let before = total;
            total += some.len() as u64;
            let pack = |(number, blocks): (usize, &[u64])| {
                let number = before + number as u64;
                let seed = mix(disk.number, u64::from(version) << 32 | number, 1);
                let pack = Id(blake3::hash(&seed.to_le_bytes()).into());
                let new = |(number, &block): (u32, &u64)| {
                    let id = disk.id(block);
                    // Whoever has read one asks. Here some do: it takes as long as all else.
                    if block % ASKED == 0 {
                        assert!(!store.has(BlobKind::Block, &id).unwrap());
                    }
                    let at = 48 + 56 + number * (STORED + 56);
                    let plain = BLOCK as u32;
                    let (kind, encoding) = (BlobKind::Block, Encoding::Zstd);
                    Blob { id, kind, at, stored: STORED, plain, encoding }
                };
                let blobs: Vec<Blob> = (0..).zip(blocks).map(new).collect();
                // None is one of the small ones, which collecting would write anew.
                let len = (PACK_HEADER + blobs.len() * (STORED as usize + 56)).max(FULL / 4) as u64;
                self.objects.add(pack, len);
                writer.told_of(Pack { id: pack, len, salt: [0; 16] }, blobs, usize::MAX).unwrap();
                // Stretches are what is needed or not.
                let mut stretches: Vec<u32> =
                    blocks.iter().map(|block| (block / STRETCH) as u32).collect();
                stretches.dedup();
                let stretches = stretches.into_boxed_slice();
                Packed { id: pack, disk: disk.number, version, stretches }
            };
            self.packs.par_extend(some.par_chunks(PER_PACK).enumerate().map(pack));
        }
        writer.finish().unwrap();
        total
    }

    fn snapshot(&self, disk: &Disk, second: i64, parent: Option<&Snapshot>) -> Snapshot {
        let source = Arc::new(disk.clone());
        let new = NewSnapshot {
            disks: vec![NewDisk {
                name: "disk".to_owned(),
                source: DiskSource::Image(source),
                layers: vec![],
            }],
            ..new(&format!("disk{}", disk.number), second, &[], parent)
        };
        self.store.create(new, &Progress::default()).unwrap()
    }

    /// The same without asking where each block is.
    fn snapshot_of_maps(
        &self,
        disk: &Disk,
        second: i64,
        parent: Option<&(Snapshot, Disk)>,
    ) -> Snapshot {
        let store = &self.store;
        let (_lease, _) = store.writing(vec![]).unwrap();
        let progress = Progress::default();
        let writer = Writer::new(store, &progress).unwrap();
        let shape = Shape::new(disk.len(), BLOCK).unwrap();
        let leaf = |number: u64| {
            let (from, to) = (number * FANOUT, ((number + 1) * FANOUT).min(disk.blocks));
            let stretches = (from / STRETCH) as usize..to.div_ceil(STRETCH) as usize;
            match parent {
                Some((parent, before))
                    if before.versions[stretches.clone()] == disk.versions[stretches.clone()] =>
                {
                    store.leaf(parent.record.disks[0].root, shape, number).unwrap()
                }
                _ => writer
                    .map_page(&(from..to).map(|block| disk.id(block)).collect::<Vec<_>>())
                    .unwrap(),
            }
        };
        let leaves = (0..shape.leaves()).into_par_iter().map(leaf).collect();
        let root = writer.tree(leaves, shape).unwrap();
        writer.finish().unwrap();
        // Everything but the root is that of a disk of nothing.
        let empty = Arc::new(MemorySource::new(vec![]));
        let new = NewSnapshot {
            disks: vec![NewDisk {
                name: "disk".to_owned(),
                source: DiskSource::Image(empty),
                layers: vec![],
            }],
            ..new(&format!("disk{}", disk.number), second, &[], None)
        };
        let made = store.create(new, &Progress::default()).unwrap();
        store.remove(made.id).unwrap();
        let mut record = made.record;
        (record.disks[0].root, record.disks[0].size) = (root, disk.len());
        put(store, record)
    }

    /// Random blocks of a snapshot are those of the disk, and are found.
    fn resolve(&self, store: &Arc<Store>, (snapshot, disk): &(Snapshot, Disk), count: u64) {
        let told = &snapshot.record.disks[0];
        let layer = SnapshotLayer::new(Arc::clone(store), snapshot, told).unwrap();
        for number in 0..count {
            let block = mix(number, disk.number, 7) % disk.blocks;
            let unit = EncodedUnit { host: block * BLOCK, stored: 0, decoded: 0 };
            let id = Id(layer.name(unit).unwrap().unwrap());
            assert_eq!(id, disk.id(block));
            let found = store.locate(BlobKind::Block, &id).unwrap();
            assert_eq!((found.blob.id, found.blob.stored), (id, STORED));
        }
    }

    /// The packs that these snapshots need.
    fn needed(&self, kept: &[&(Snapshot, Disk)]) -> HashSet<Id> {
        let is_needed = |pack: &&Packed| {
            let disks = kept.iter().filter(|(_, disk)| disk.number == pack.disk);
            disks.into_iter().any(|(_, disk)| {
                pack.stretches.iter().any(|&at| disk.versions[at as usize] == pack.version)
            })
        };
        self.packs.iter().filter(is_needed).map(|pack| pack.id).collect()
    }
}

/// Stores a record as it is.
fn put(store: &Store, record: Record) -> Snapshot {
    let bytes = store.keys.seal(Sealed::Record, &serde_json::to_vec(&record).unwrap()).unwrap();
    let id = Id::of_object(&bytes);
    store.objects.put(Object::Snapshot(id), &[&bytes]).unwrap();
    Snapshot { id, record }
}

fn merge_all(store: &Store) {
    let lease = store.collecting().unwrap();
    let indexes = store.indexes.read().clone();
    store.rewrite_indexes(&lease, &indexes, &HashSet::new(), &Condemned::default()).unwrap();
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn very_many_blocks_in_little_memory() {
    let total = from_environment("STRATA_SCALE_BLOCKS", 600_000);
    // Half of them come with the first snapshots, the others with changes.
    let blocks = (total * 10 / 19 / DISKS).next_multiple_of(STRETCH);
    let stretches = blocks / STRETCH;
    let place = std::env::var_os("STRATA_SCALE_DIR");
    let place = place.map_or_else(TempDir::new, TempDir::new_in).unwrap();
    let objects = Hollow::new(Folder::make(&place.path().join("store")).unwrap());
    let cache = Cache::new(0);
    let settings = Settings { block_size: BLOCK as u32, ..Settings::default() };
    let shared: Arc<dyn crate::store::objects::Objects> = Arc::clone(&objects) as _;
    let store = Arc::new(Store::init(Arc::clone(&shared), settings, None, &cache).unwrap());
    let mut all = Simulation { store, objects: Arc::clone(&objects), packs: vec![] };
    // What the documentation says: see there. Besides, what the test holds itself.
    let most = (420 << 20) + total / 85 * 8 + total / PER_PACK as u64 * 900;
    let mut phases = Phases::new(&objects, most);

    let mut series: Vec<Series> = Vec::new();
    for number in 0..DISKS {
        let disk = Disk { number, blocks, versions: vec![0; stretches as usize] };
        let count = all.write(&disk, 0);
        phases.end(&format!("disk {number}: {count} blocks are new"), count);
        let snapshot = all.snapshot_of_maps(&disk, number as i64, None);
        phases.end(&format!("disk {number}: its map"), blocks);
        series.push(Series { snapshots: vec![(snapshot, disk)] });
    }
    for version in 1..=CHANGES {
        for series in &mut series {
            let before = series.snapshots.last().unwrap();
            let mut disk = before.1.clone();
            for stretch in 0..stretches / u64::from(CHANGES) {
                let at = mix(stretch, disk.number, version.into()) % stretches;
                disk.versions[at as usize] = version;
            }
            let count = all.write(&disk, version);
            phases.end(&format!("change {version}: {count} blocks are new"), count);
            let second = i64::from(version) * 100 + disk.number as i64;
            let snapshot = match version {
                1 => all.snapshot(&disk, second, Some(&before.0)),
                _ => all.snapshot_of_maps(&disk, second, Some(before)),
            };
            phases.end(&format!("change {version}: snapshot"), blocks);
            series.snapshots.push((snapshot, disk));
        }
    }
    let usage = all.store.usage().unwrap();
    println!(
        "{} packs, {} blobs in {} indexes: {} bytes, {:.2} a blob",
        usage.packs,
        usage.blobs,
        all.store.indexes.read().len(),
        usage.index_bytes,
        usage.index_bytes as f64 / usage.blobs as f64
    );
    assert!(usage.index_bytes < usage.blobs * 52, "{usage:?}");

    // By somebody who knows nothing yet.
    let open =
        || Arc::new(Store::open(Arc::clone(&shared), &Cache::new(0), &Keyring::default()).unwrap());
    phases.end("between", 1);
    let again = open();
    phases.end("open", 1);
    all.resolve(&again, &series[0].snapshots[0], LOOKUPS);
    phases.end("blocks of the first snapshot", LOOKUPS);
    all.resolve(&again, series[0].snapshots.last().unwrap(), LOOKUPS);
    phases.end("blocks of the last snapshot", LOOKUPS);
    for number in 0..LOOKUPS {
        assert!(!again.has(BlobKind::Block, &id(99, 0, number)).unwrap());
    }
    phases.end("blocks that are not there", LOOKUPS);
    merge_all(&again);
    phases.end("all indexes merged into one", usage.blobs);
    all.resolve(&again, &series[0].snapshots[0], LOOKUPS);
    phases.end("blocks of the first snapshot", LOOKUPS);
    for number in 0..LOOKUPS {
        assert!(!again.has(BlobKind::Block, &id(98, 0, number)).unwrap());
    }
    phases.end("blocks that are not there", LOOKUPS);

    let how = Collect { grace: Duration::ZERO, unused: 1_000_000, dry_run: false };
    let done = again.collect(&how, &|| {}).unwrap();
    phases.end("collect, nothing to remove", usage.blobs);
    // Small packs of maps are made into larger ones.
    assert_eq!(done.removed_packs, done.rewritten_packs);
    assert_eq!(objects.packs().len(), all.packs.len());
    // The first of some disks, and those in the middle of others.
    let mut kept: Vec<&(Snapshot, Disk)> = Vec::new();
    for series in &series {
        let is_even = series.snapshots[0].1.number.is_multiple_of(2);
        for (number, snapshot) in series.snapshots.iter().enumerate() {
            let removed = if is_even { number == 0 } else { (1..4).contains(&number) };
            if removed {
                again.remove(snapshot.0.id).unwrap();
            } else {
                kept.push(snapshot);
            }
        }
    }
    let needed = all.needed(&kept);
    phases.end("between", 1);
    let done = again.collect(&how, &|| {}).unwrap();
    phases.end("collect, some snapshots removed", usage.blobs);
    assert!(done.removed_packs > 0 && needed.len() < all.packs.len());
    assert_eq!(objects.packs().into_iter().collect::<HashSet<_>>(), needed);
    let again = open();
    for snapshot in kept {
        all.resolve(&again, snapshot, 500);
    }
    phases.end("blocks of all that are left", 500);
}
