//! A larger store - several series, packs and merged indexes, blocks that lie twice, lists, keys, signatures - of which
//! bits are flipped and objects removed: always found, never wrong bytes; and each index comes back.
//!
//! What a read depends on is what it asks of the objects. So each block of each snapshot is read once by itself, and what
//! was asked is noted; of the reads, a flipped bit concerns those that asked for its byte and no other.
//! `STRATA_FLIPS=N` flips so many bits, `STRATA_SEED=N` others.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::id::Id;
use super::super::index;
use super::super::objects::{Object, Objects, Sort};
use super::super::pack::{self, Blob, Pack};
use super::super::{Collect, Depth, Problem, SigningKey};
use super::memory::{Flip, Memory};
use super::*;

/// Flips where nobody says how many.
const FLIPS: u64 = 400;
/// Of so many flips one is checked by a look at the whole store, every byte of it.
const WHOLE: u64 = 100;
/// Blocks that are read for one flip; of more, so many.
const MOST_READ: usize = 64;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Numbers that look random, and are the same for the same seed.
struct Random(blake3::OutputReader);

impl Random {
    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    /// One below `end`.
    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}

/// A store, and what its snapshots hold.
struct Filled {
    memory: Arc<Memory>,
    secret: Option<Secret>,
    disks: Vec<(Snapshot, Vec<u8>)>,
}

impl Filled {
    fn empty(secret: Option<Secret>) -> (Self, Store) {
        let memory = Arc::new(Memory::default());
        let settings = Settings { block_size: BLOCK as u32, ..Settings::default() };
        let objects = Arc::clone(&memory) as Arc<dyn Objects>;
        let store = Store::init(objects, settings, secret.as_ref(), &Cache::new(0)).unwrap();
        (Self { memory, secret, disks: Vec::new() }, store)
    }

    /// One of a few blocks that compress well.
    fn small(secret: Option<Secret>) -> Self {
        let (mut filled, store) = Self::empty(secret);
        let mut disk = vec![0; 6 * BLOCK];
        let mut parent: Option<Snapshot> = None;
        for second in 0..2_u32 {
            for block in [1, 2, 4_usize] {
                fill(
                    &mut disk[block * BLOCK..][..BLOCK],
                    3 * (block as u64 / 2) + u64::from(second),
                );
            }
            let made = new("web", second.into(), &disk, parent.as_ref());
            let made = store.create(made, &Progress::default()).unwrap();
            filled.disks.push((made.clone(), disk.clone()));
            parent = Some(made);
        }
        filled
    }

    fn new(secret: Option<Secret>) -> Self {
        let (mut filled, store) = Self::empty(secret);
        let mut random = Random::new(7);
        for (series, blocks) in [("web", 60), ("db", 25), ("mail", 1100)] {
            let mut disk = vec![0; blocks * BLOCK + 777 * (blocks % 2)];
            // The largest has a map of two levels, and little in it.
            let places: Vec<usize> = if blocks < 100 {
                (0..blocks).collect()
            } else {
                vec![0, 3, 500, 1023, 1024, 1099]
            };
            for &block in &places {
                fill(&mut disk[block * BLOCK..(block + 1) * BLOCK], random.below(1000));
            }
            let mut parent: Option<Snapshot> = None;
            for second in 0..4 {
                let made = new(series, second, &disk, parent.as_ref());
                let made = store.create(made, &Progress::default()).unwrap();
                filled.disks.push((made.clone(), disk.clone()));
                parent = Some(made);
                for _ in 0..4 {
                    let block = places[random.below(places.len() as u64) as usize];
                    fill(&mut disk[block * BLOCK..(block + 1) * BLOCK], random.below(1000));
                }
            }
        }
        // Some of it twice: written while no index told of it.
        let indexes = filled.of_sort(Sort::Indexes);
        indexes.iter().for_each(|(object, _)| filled.memory.remove(*object).unwrap());
        let disk = filled.disks[5].1.clone();
        let made = filled.open().create(new("twice", 9, &disk, None), &Progress::default());
        filled.disks.push((made.unwrap(), disk));
        for (object, bytes) in indexes {
            filled.memory.put(object, &[&bytes]).unwrap();
        }
        // One was removed, and what only it needed is condemned.
        let (gone, _) = filled.disks.remove(3);
        let store = filled.open();
        store.remove(gone.id).unwrap();
        let how = Collect { grace: Duration::from_secs(3600), unused: 100, dry_run: false };
        store.collect(&how, &|| {}).unwrap();
        let (secret, _) = SigningKey::generate().unwrap();
        let key = SigningKey::from_pem(secret.as_bytes()).unwrap();
        store.sign(filled.disks[0].0.id, &key).unwrap();
        if filled.secret.is_some() {
            store.add_key(&key_file(2), "spare").unwrap();
        }
        assert_eq!(filled.of_sort(Sort::Leases), []);
        assert!(filled.of_sort(Sort::Packs).len() > 10);
        let merged = filled.of_sort(Sort::Indexes).len();
        assert!((2..15).contains(&merged), "{merged} indexes");
        filled.all_read_right(&filled.memory);
        filled
    }

    fn of_sort(&self, sort: Sort) -> Vec<(Object, Arc<Vec<u8>>)> {
        let mut all = self.memory.all();
        all.retain(|(object, _)| sort.is_of(*object));
        all
    }

    fn keyring(&self) -> Keyring {
        self.secret.clone().map(given).unwrap_or_default()
    }

    fn open_at(&self, memory: &Arc<Memory>) -> Result<Arc<Store>> {
        let objects = Arc::clone(memory) as Arc<dyn Objects>;
        Store::open(objects, &Cache::new(0), &self.keyring()).map(Arc::new)
    }

    fn damaged_at(&self, memory: &Arc<Memory>) -> Result<Store> {
        let objects = Arc::clone(memory) as Arc<dyn Objects>;
        Store::open_damaged(objects, &Cache::new(1 << 20), &self.keyring())
    }

    fn open(&self) -> Arc<Store> {
        self.open_at(&self.memory).unwrap()
    }

    fn check(&self, memory: &Arc<Memory>, depth: Depth) -> Vec<Problem> {
        self.damaged_at(memory).unwrap().check(depth, &|| {}).unwrap().problems
    }

    fn all_read_right(&self, memory: &Arc<Memory>) {
        let store = self.open_at(memory).unwrap();
        for (snapshot, disk) in &self.disks {
            assert!(read(&store, snapshot).unwrap() == *disk, "{}", snapshot.record.series);
        }
    }

    /// How many of the snapshots that are still there read right; none reads wrong.
    fn some_read_right(&self, memory: &Arc<Memory>) -> usize {
        let Ok(store) = self.open_at(memory) else { return 0 };
        let is_right = |(snapshot, disk): &&(Snapshot, Vec<u8>)| {
            let found = store.snapshot(snapshot.id).and_then(|snapshot| read(&store, &snapshot));
            assert!(found.as_ref().is_ok_and(|found| found == disk) || found.is_err());
            found.is_ok()
        };
        self.disks.iter().filter(is_right).count()
    }
}

/// Fills a block so that it compresses well, or a little, or not at all.
fn fill(block: &mut [u8], seed: u64) {
    let len = block.len();
    match seed % 3 {
        0 => block.fill(1 + (seed % 250) as u8),
        1 => block.copy_from_slice(&noise(seed, 64).repeat(len / 64)),
        _ => block.copy_from_slice(&noise(seed, len)),
    }
}

/// A read of some bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Unit {
    disk: usize,
    block: usize,
}

fn read_unit(store: &Arc<Store>, filled: &Filled, unit: Unit) -> Result<bool> {
    let (snapshot, disk) = &filled.disks[unit.disk];
    // As whoever names it finds it.
    let snapshot = store.snapshot(snapshot.id)?;
    let layer = SnapshotLayer::new(Arc::clone(store), &snapshot, &snapshot.record.disks[0])?;
    let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0))?;
    let range = unit.block * BLOCK..((unit.block + 1) * BLOCK).min(disk.len());
    let mut bytes = vec![0xee; range.len()];
    chain.read_at(range.start as u64, &mut bytes)?;
    Ok(bytes == disk[range])
}

/// Which reads ask for which bytes of an object.
type Asked = HashMap<Object, Vec<(Range<u64>, Unit)>>;

fn asked(filled: &Filled) -> Asked {
    let mut asked = Asked::new();
    for (number, (_, disk)) in filled.disks.iter().enumerate() {
        for block in 0..disk.len().div_ceil(BLOCK) {
            // Of a large hole a few places will do.
            let bytes = &disk[block * BLOCK..((block + 1) * BLOCK).min(disk.len())];
            if bytes.iter().all(|&byte| byte == 0) && block % 64 != 0 {
                continue;
            }
            let unit = Unit { disk: number, block };
            let reads = filled.memory.traced(|| {
                assert!(read_unit(&filled.open(), filled, unit).unwrap());
            });
            for (object, range) in reads {
                asked.entry(object).or_default().push((range, unit));
            }
        }
    }
    asked
}

/// What came of flips of one sort of object.
#[derive(Debug, Default)]
struct Count {
    flips: AtomicU64,
    /// Some read of it failed.
    failed: AtomicU64,
    /// All reads of it were right: another place was used, or what was read does not count.
    right: AtomicU64,
    /// No read asks for it: headers of blobs, ends of indexes, what lies twice.
    unasked: AtomicU64,
}

fn sort_of(object: Object) -> &'static str {
    match object {
        Object::Config => "config",
        Object::Pack(_) => "packs",
        Object::Index(_) => "index",
        Object::Snapshot(_) => "snapshots",
        Object::Lease(_) => "leases",
        Object::Condemned(_) => "condemned",
        Object::Key(_) => "keys",
        Object::Signature(_) => "signatures",
        Object::Part(_) => "parts",
        Object::Draft(_) => "drafts",
    }
}

#[test]
fn flipped_bits_are_found_and_give_no_wrong_bytes() {
    let (flips, seed) =
        (from_environment("STRATA_FLIPS", FLIPS), from_environment("STRATA_SEED", 1));
    println!("{flips} flips, STRATA_SEED={seed}");
    for secret in [None, Some(key_file(1))] {
        let name = if secret.is_some() { "encrypted" } else { "plain" };
        let filled = Filled::new(secret);
        let asked = asked(&filled);
        let all = filled.memory.all();
        let bytes: usize = all.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut counts: BTreeMap<&str, Count> = BTreeMap::new();
        for (object, _) in &all {
            counts.entry(sort_of(*object)).or_default();
        }
        let next = AtomicU64::new(0);
        let work = || {
            let memory = filled.memory.copy();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= flips / 2 {
                    return;
                }
                let mut random = Random::new(seed << 32 | number);
                let flip = draw(&mut random, &all, bytes as u64);
                *memory.flip.lock() = Some(flip);
                let count = &counts[sort_of(flip.object)];
                count.flips.fetch_add(1, Ordering::Relaxed);
                let came_of = flipped(&filled, &asked, &memory, flip, &mut random);
                let of = match came_of {
                    Reads::Failed => &count.failed,
                    Reads::Right => &count.right,
                    Reads::Unasked => &count.unasked,
                };
                of.fetch_add(1, Ordering::Relaxed);
                if number.is_multiple_of(WHOLE) {
                    check_whole(&filled, &memory, flip);
                }
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            (0..threads).for_each(|_| drop(scope.spawn(work)));
        });
        println!("{name}: {} objects, {bytes} bytes; every flip was found by check", all.len());
        println!("  object          flips  failed reads  right reads  no reads");
        let mut found = 0;
        for (sort, count) in &counts {
            let [all, failed, right, unasked] =
                [&count.flips, &count.failed, &count.right, &count.unasked]
                    .map(|count| count.load(Ordering::Relaxed));
            println!("  {sort:12} {all:8} {failed:13} {right:12} {unasked:9}");
            found += failed;
        }
        assert!(found > flips / 10, "{found} of {flips} concerned a read");
    }
}

#[test]
fn each_byte_of_a_small_store_is_found_and_gives_no_wrong_bytes() {
    for secret in [None, Some(key_file(1))] {
        let filled = Filled::small(secret);
        let asked = asked(&filled);
        let memory = filled.memory.copy();
        let mut random = Random::new(1);
        let [mut failed, mut right, mut unasked] = [0_u32; 3];
        for (object, bytes) in filled.memory.all() {
            for at in 0..bytes.len() as u64 {
                let flip = Flip { object, at, bit: (at % 8) as u8 };
                *memory.flip.lock() = Some(flip);
                match flipped(&filled, &asked, &memory, flip, &mut random) {
                    Reads::Failed => failed += 1,
                    Reads::Right => right += 1,
                    Reads::Unasked => unasked += 1,
                }
            }
        }
        println!(
            "{failed} bytes make a read fail, {right} are read and harmless, {unasked} are not read"
        );
        assert!(failed > 2000, "{failed}, {right}, {unasked}");
    }
}

/// Half of them anywhere, half in any object, however small.
fn draw(random: &mut Random, all: &[(Object, Arc<Vec<u8>>)], bytes: u64) -> Flip {
    let bit = random.below(8) as u8;
    if random.below(2) == 0 {
        let (object, bytes) = &all[random.below(all.len() as u64) as usize];
        return Flip { object: *object, at: random.below(bytes.len() as u64), bit };
    }
    let mut at = random.below(bytes);
    for (object, bytes) in all {
        match at.checked_sub(bytes.len() as u64) {
            Some(rest) => at = rest,
            None => return Flip { object: *object, at, bit },
        }
    }
    unreachable!("bytes is how many there are")
}

enum Reads {
    Failed,
    Right,
    Unasked,
}

/// Looks at a store with a bit flipped: it is found, and what asks for its byte fails or is right.
fn flipped(
    filled: &Filled,
    asked: &Asked,
    memory: &Arc<Memory>,
    flip: Flip,
    random: &mut Random,
) -> Reads {
    let name = flip.object.to_string();
    // What checking a pack finds depends on that pack, and checking what is small on no pack's blocks.
    match (flip.object, filled.damaged_at(memory)) {
        (Object::Pack(id), store) => {
            let len = memory.len(flip.object).unwrap();
            let error = store.unwrap().check_pack(id, len).unwrap_err();
            assert!(super::super::check::is_damage(&error), "{flip:?}: {error}");
        }
        (Object::Config, store) => {
            let error = store.unwrap_err();
            // One bit of it says that it is of an encrypted store.
            let told = error.to_string();
            assert!(told.contains("config") || told.contains("no key"), "{flip:?}: {told}");
            return Reads::Failed;
        }
        (_, Ok(store)) => {
            let problems = store.check(Depth::Structure, &|| {}).unwrap().problems;
            assert!(problems.iter().any(|it| it.object == name), "{flip:?}: {problems:?}");
        }
        // The key that would open it.
        (object, Err(error)) => {
            assert!(matches!(object, Object::Key(_)), "{flip:?}: {error}");
            return Reads::Failed;
        }
    }
    let concerned = asked.get(&flip.object).into_iter().flatten();
    let mut units: Vec<Unit> =
        concerned.filter(|(range, _)| range.contains(&flip.at)).map(|(_, unit)| *unit).collect();
    units.sort_unstable();
    units.dedup();
    if units.is_empty() {
        return Reads::Unasked;
    }
    while units.len() > MOST_READ {
        units.swap_remove(random.below(units.len() as u64) as usize);
    }
    let store = match filled.open_at(memory) {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains(&name), "{flip:?}: {error}");
            return Reads::Failed;
        }
    };
    let mut is_right = true;
    for unit in units {
        match read_unit(&store, filled, unit) {
            Ok(right) => assert!(right, "{flip:?}: {unit:?} gave wrong bytes"),
            Err(error) => {
                is_right = false;
                let told = error.to_string();
                assert!(told.contains(&name), "{flip:?}: {unit:?}: {told}");
                if matches!(flip.object, Object::Pack(_)) {
                    let record = &filled.disks[unit.disk].0.record;
                    let snapshot = format!("{}@{}, disk at ", record.series, record.time);
                    assert!(told.contains(&snapshot), "{flip:?}: {unit:?}: {told}");
                }
            }
        }
    }
    if is_right { Reads::Right } else { Reads::Failed }
}

/// Looks at all of it: the snapshots that are told not to be whole are those that cannot be read.
fn check_whole(filled: &Filled, memory: &Arc<Memory>, flip: Flip) {
    let Ok(store) = filled.damaged_at(memory) else { return };
    let problems = store.check(Depth::Data, &|| {}).unwrap().problems;
    let name = flip.object.to_string();
    assert!(problems.iter().any(|it| it.object == name), "{flip:?}: {problems:?}");
    let Ok(store) = filled.open_at(memory) else { return };
    for (snapshot, disk) in &filled.disks {
        let is_told = problems.iter().any(|it| it.snapshots.contains(&snapshot.id));
        match store.snapshot(snapshot.id).and_then(|snapshot| read(&store, &snapshot)) {
            // An index of which a byte is damaged that nobody reads counts for nothing all the same.
            Ok(found) => {
                let is_index = matches!(flip.object, Object::Index(_));
                assert!(found == *disk && (!is_told || is_index), "{flip:?}: {problems:?}");
            }
            Err(_) => assert!(is_told, "{flip:?}: {problems:?}"),
        }
    }
}

#[test]
fn each_object_that_is_removed_is_missed_or_not_needed() {
    for secret in [None, Some(key_file(1))] {
        let filled = Filled::new(secret);
        for (object, _) in filled.memory.all() {
            let memory = filled.memory.copy();
            memory.remove(object).unwrap();
            if object == Object::Config {
                assert!(filled.open_at(&memory).unwrap_err().to_string().contains("config"));
                continue;
            }
            if matches!(object, Object::Key(_)) && filled.open_at(&memory).is_err() {
                continue;
            }
            let problems = filled.check(&memory, Depth::Structure);
            let right = filled.some_read_right(&memory);
            match object {
                // Without a record there is no snapshot; without a signature it is not signed.
                Object::Snapshot(_) => {
                    assert_eq!((right, &problems[..]), (filled.disks.len() - 1, &[][..]))
                }
                Object::Signature(_) | Object::Condemned(_) | Object::Key(_) => {
                    assert_eq!((right, &problems[..]), (filled.disks.len(), &[][..]));
                }
                Object::Pack(_) => {
                    assert!(problems.iter().any(|it| it.object == object.to_string()));
                }
                _ => {}
            }
            let lost = problems.iter().filter(|it| it.lost.is_some()).count();
            let there = filled.disks.len() - usize::from(matches!(object, Object::Snapshot(_)));
            assert_eq!(right + lost, there, "{object}: {problems:?}");
        }
    }
}

#[test]
fn packs_bring_back_every_index() {
    for secret in [None, Some(key_file(1))] {
        let filled = Filled::new(secret);
        // As a store of millions of blocks has it: one index of several parts, each with its range of ids.
        let (packs, mut blobs) = contents(&filled);
        for (object, _) in filled.of_sort(Sort::Indexes) {
            filled.memory.remove(object).unwrap();
        }
        blobs.sort_by_key(|(_, blob)| (blob.id, blob.kind));
        blobs.dedup_by_key(|(_, blob)| (blob.id, blob.kind));
        let keys = filled.open().keys.clone();
        let mut parts = Vec::new();
        for range in blobs.chunks(blobs.len() / 3 + 1) {
            let (bytes, part) = index::make_part(&keys, range).unwrap();
            filled.memory.put(Object::Part(part.id()), &[&bytes]).unwrap();
            parts.push(part);
        }
        let bytes = index::make_of_parts(&keys, &packs, &parts).unwrap();
        filled.memory.put(Object::Index(Id::of_object(&bytes)), &[&bytes]).unwrap();
        filled.all_read_right(&filled.memory);
        let mut indexes = filled.of_sort(Sort::Indexes);
        indexes.extend(filled.of_sort(Sort::Parts));
        assert_eq!(indexes.len(), 4);
        let repaired = |memory: &Arc<Memory>, what: &str| {
            let store = filled.damaged_at(memory).unwrap();
            let repaired = store.repair(Depth::Structure, &|| {}).unwrap();
            assert_eq!(repaired.damaged_packs, [], "{what}");
            assert!(repaired.indexed_packs > 0, "{what}");
            assert_eq!(filled.check(memory, Depth::Data), [], "{what}");
            filled.all_read_right(memory);
        };
        let memory = filled.memory.copy();
        indexes.iter().for_each(|(object, _)| memory.remove(*object).unwrap());
        repaired(&memory, "all removed");
        for (object, bytes) in &indexes {
            let memory = filled.memory.copy();
            memory.remove(*object).unwrap();
            repaired(&memory, "one removed");
            for at in [0, 20, 40, 70, 4200, bytes.len() - 1] {
                let memory = filled.memory.copy();
                let mut bad = bytes.to_vec();
                let at = at.min(bad.len() - 1);
                bad[at] ^= 1;
                memory.put(*object, &[&bad]).unwrap();
                let problems = filled.check(&memory, Depth::Structure);
                let name = object.to_string();
                assert!(problems.iter().any(|it| it.object == name || it.what.contains(&name)));
                repaired(&memory, "one damaged");
            }
        }
    }
}

/// All packs, and their blobs, each once.
fn contents(filled: &Filled) -> (Vec<Pack>, Vec<(u32, Blob)>) {
    let store = filled.open();
    let (mut packs, mut blobs) = (Vec::new(), Vec::new());
    for (object, bytes) in filled.of_sort(Sort::Packs) {
        let Object::Pack(id) = object else { continue };
        let (salt, found) = pack::scan(&bytes, store.number, &store.keys).unwrap();
        blobs.extend(found.into_iter().map(|blob| (packs.len() as u32, blob)));
        packs.push(Pack { id, len: bytes.len() as u64, salt });
    }
    (packs, blobs)
}
