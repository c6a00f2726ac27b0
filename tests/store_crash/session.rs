//! Somebody's day with two stores, of which everything is remembered that was done to their files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use stratafs::block::{BlockSource, Cache, MemorySource};
use stratafs::chain::Chain;
use stratafs::error::Result;
use stratafs::store::objects::{Files, Folder};
use stratafs::store::{
    Collect, Depth, DiskSource, Id, Keyring, NewDisk, NewSnapshot, Progress, Reading, Secret,
    Settings, SigningKey, Snapshot, SnapshotLayer, Store,
};

use crate::recorded::{Change, Promise, Recorded};
use crate::rng::Rng;

pub const BLOCK: usize = 16 << 10;
/// How the stores are called in their folder.
pub const NAMES: [&str; 2] = ["one", "two"];

/// What each snapshot holds that was ever begun, by its time.
pub type Contents = HashMap<Timestamp, Vec<u8>>;

/// What was done, and what it was about.
pub struct Session {
    pub log: Vec<Change>,
    pub contents: Contents,
    pub is_encrypted: bool,
}

pub fn secret(number: u8) -> Secret {
    Secret::key_file(vec![number; 32]).unwrap()
}

pub fn keyring(number: Option<u8>) -> Keyring {
    match number {
        Some(number) => Keyring::given(move || Ok(secret(number))),
        None => Keyring::default(),
    }
}

pub fn open(dir: &Path, files: Arc<dyn Files>, key: Option<u8>) -> Result<Arc<Store>> {
    let objects = Arc::new(Folder::over(dir, files));
    Store::open(objects, &Cache::new(0), &keyring(key)).map(Arc::new)
}

pub fn init(dir: &Path, files: Arc<dyn Files>, key: Option<u8>) -> Result<Store> {
    let objects = Arc::new(Folder::make_over(dir, files)?);
    let settings = Settings { block_size: BLOCK as u32, level: 1 };
    Store::init(objects, settings, key.map(secret).as_ref(), &Cache::new(0))
}

pub fn new(second: i64, disk: &[u8], parent: Option<&Snapshot>) -> NewSnapshot {
    let source = Arc::new(MemorySource::new(disk.to_vec()));
    NewSnapshot {
        series: format!("s{}", second % 3),
        time: Timestamp::from_second(second).unwrap(),
        tags: vec![],
        parent: parent.cloned(),
        source: "memory".to_owned(),
        host: "here".to_owned(),
        sign: None,
        reading: Reading::default(),
        disks: vec![NewDisk {
            name: "disk".to_owned(),
            source: DiskSource::Image(source),
            layers: vec![],
        }],
    }
}

pub fn now(unused: u64) -> Collect {
    Collect { grace: Duration::ZERO, unused, dry_run: false }
}

/// Fails unless each of these holds what it was made of.
#[track_caller]
pub fn all_whole(store: &Arc<Store>, snapshots: &[Snapshot], contents: &Contents) {
    for snapshot in snapshots {
        let layer =
            SnapshotLayer::new(Arc::clone(store), snapshot, &snapshot.record.disks[0]).unwrap();
        let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap();
        let mut disk = vec![0xee; chain.len() as usize];
        chain.read_at(0, &mut disk).unwrap();
        assert!(disk == contents[&snapshot.record.time], "snapshot {}", snapshot.id);
    }
    assert_eq!(store.check(Depth::Data, &|| {}).unwrap().problems, []);
}

/// All files below `dir`.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => dirs.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

pub fn is_unfinished(path: &Path) -> bool {
    path.file_name().unwrap().to_string_lossy().starts_with(".new-")
}

/// Lets more time pass than a lease holds, and than anything takes to be written.
pub fn pass(dir: &Path) {
    let then = SystemTime::now() - Duration::from_secs(2 * 3600);
    for path in files(dir) {
        if is_unfinished(&path) || path.parent().unwrap().ends_with("leases") {
            fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        }
    }
}

/// Blocks of a disk that changes now and then.
fn change(disk: &mut Vec<u8>, rng: &mut Rng) {
    if rng.one_in(4) {
        disk.resize((1 + rng.below(24 * BLOCK as u64)) as usize, 0);
    }
    for _ in 0..1 + rng.below(4) {
        let at = rng.below((disk.len() as u64).div_ceil(BLOCK as u64)) as usize * BLOCK;
        let end = (at + BLOCK).min(disk.len());
        let seed = rng.below(40);
        let bytes = if seed < 6 { vec![0; end - at] } else { Rng(seed).bytes(end - at) };
        disk[at..end].copy_from_slice(&bytes);
    }
}

/// A session of some operations, in a folder of its own that is empty again after it.
pub fn session(rng: &mut Rng, root: &Path) -> Session {
    let recorded = Recorded::new();
    let files = || Arc::clone(&recorded) as Arc<dyn Files>;
    let is_encrypted = rng.one_in(3);
    let mut keys: Vec<u8> = if is_encrypted { vec![1] } else { vec![] };
    let dirs = NAMES.map(|name| root.join(name));
    drop(init(&dirs[0], files(), keys.first().copied()).unwrap());
    let (pem, _) = SigningKey::generate().unwrap();
    let signer = Arc::new(SigningKey::from_pem(pem.as_bytes()).unwrap());
    let twin = rng.one_in(2);
    {
        let two: Arc<dyn stratafs::store::objects::Objects> =
            Arc::new(Folder::make_over(&dirs[1], files()).unwrap());
        let settings = Settings { block_size: BLOCK as u32, level: 1 };
        match twin || is_encrypted {
            true => open(&dirs[0], files(), keys.first().copied()).unwrap().twin(&*two).unwrap(),
            false => drop(Store::init(two, settings, None, &Cache::new(0)).unwrap()),
        }
    }
    if is_encrypted {
        recorded.promise(Promise::Key(1));
    }
    let mut disk = Rng(5).bytes(3 * BLOCK);
    let mut contents = Contents::new();
    let mut alive: [Vec<Snapshot>; 2] = [vec![], vec![]];
    for second in 1..=14 + rng.below(10) as i64 {
        let side = usize::from(rng.one_in(4));
        let store = open(&dirs[side], files(), keys.first().copied()).unwrap();
        let any = |rng: &mut Rng, alive: &[Snapshot]| {
            alive.get(rng.below(alive.len() as u64) as usize).cloned()
        };
        match rng.below(20) {
            0..8 => {
                change(&mut disk, rng);
                contents.insert(Timestamp::from_second(second).unwrap(), disk.clone());
                let parent = alive[side].last().filter(|_| !rng.one_in(3));
                let mut new = new(second, &disk, parent);
                new.sign = rng.one_in(4).then(|| Arc::clone(&signer));
                let made = store.create(new, &Progress::default()).unwrap();
                recorded.promise(Promise::Made(side, made.id));
                alive[side].push(made);
            }
            8..11 => {
                // One, or all but the newest.
                let most = if rng.one_in(3) { alive[side].len().saturating_sub(1) } else { 1 };
                for _ in 0..most {
                    let Some(gone) = any(rng, &alive[side]) else { break };
                    recorded.promise(Promise::MayGo(side, gone.id));
                    store.remove(gone.id).unwrap();
                    recorded.promise(Promise::Gone(side, gone.id));
                    alive[side].retain(|snapshot| snapshot.id != gone.id);
                }
            }
            11..15 => drop(store.collect(&now(rng.below(30)), &|| {}).unwrap()),
            15..17 => {
                let from = open(&dirs[1 - side], files(), keys.first().copied()).unwrap();
                let chosen = alive[1 - side].clone();
                // One that was removed here may come again.
                for snapshot in chosen.iter().filter(|it| !alive[side].contains(it)) {
                    recorded.promise(Promise::MayGo(side, snapshot.id));
                }
                store.copy_from(&from, &chosen, &Progress::default()).unwrap();
                for snapshot in chosen {
                    recorded.promise(Promise::Made(side, snapshot.id));
                    if !alive[side].contains(&snapshot) {
                        alive[side].push(snapshot);
                    }
                }
            }
            17 => {
                let Some(before) = any(rng, &alive[side]) else { continue };
                recorded.promise(Promise::MayGo(side, before.id));
                let tags = vec![format!("t{second}")];
                let made = store.tag(&before, tags, Some(&signer)).unwrap();
                recorded.promise(Promise::Made(side, made.id));
                recorded.promise(Promise::Gone(side, before.id));
                alive[side].retain(|snapshot| snapshot.id != before.id);
                alive[side].push(made);
            }
            _ if is_encrypted => change_keys(&dirs, &recorded, &mut keys),
            _ => {}
        }
    }
    let log = recorded.take_log();
    for dir in &dirs {
        fs::remove_dir_all(dir).unwrap();
    }
    Session { log, contents, is_encrypted }
}

/// Both stores get another key in the place of the one that they have.
fn change_keys(dirs: &[PathBuf; 2], recorded: &Arc<Recorded>, keys: &mut [u8]) {
    let (before, after) = (keys[0], keys[0] + 1);
    let mut slots = Vec::new();
    for dir in dirs {
        let store = open(dir, Arc::clone(recorded) as Arc<dyn Files>, Some(before)).unwrap();
        slots.push(store.keys().unwrap()[0].id);
        store.add_key(&secret(after), "").unwrap();
    }
    recorded.promise(Promise::Key(after));
    recorded.promise(Promise::KeyMayGo(before));
    for (dir, slot) in dirs.iter().zip(slots) {
        let store = open(dir, Arc::clone(recorded) as Arc<dyn Files>, Some(after)).unwrap();
        store.remove_key(slot).unwrap();
    }
    keys[0] = after;
}

/// What was promised by some moment.
#[derive(Debug, Default)]
pub struct Promised {
    pub made: [HashMap<Id, State>; 2],
    pub keys: Vec<u8>,
}

/// How a snapshot is that was made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    There,
    MayGo,
    Gone,
}

impl Promised {
    pub fn add(&mut self, promise: Promise) {
        match promise {
            Promise::Made(side, id) => drop(self.made[side].insert(id, State::There)),
            Promise::MayGo(side, id) => drop(self.made[side].insert(id, State::MayGo)),
            Promise::Gone(side, id) => drop(self.made[side].insert(id, State::Gone)),
            Promise::Key(key) => self.keys.push(key),
            Promise::KeyMayGo(key) => self.keys.retain(|other| *other != key),
        }
    }
}
