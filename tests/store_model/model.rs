//! Random operations on two stores, each step of which is held against plain copies.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use stratafs::block::{BlockSource, Cache, FileSink};
use stratafs::chain::Chain;
use stratafs::error::{Kind, Result};
use stratafs::store::objects::{Objects, Sort};
use stratafs::store::{
    Collect, Depth, DiskSource, Id, Keep, Keyring, NewDisk, NewSnapshot, Progress, Reading, Secret,
    Settings, Snapshot, SnapshotLayer, Store, Target,
};

use crate::disks::{PIECE, Patch, Plain, PlainSource, same, same_all};
use crate::places::{Event, Ground, Process};
use crate::rng::Rng;

/// Beyond how long a lease holds that nobody renews.
const LEASE: Duration = Duration::from_secs(61 * 60);
/// Pruning begins at so many snapshots of a store.
const MOST: usize = 24;

/// What tells a snapshot from all others, wherever it was copied to, but for its tags.
pub type Name = (String, Timestamp);

/// What was done, by kind.
pub type Counts = BTreeMap<&'static str, u64>;

/// A store and what must be in it.
pub struct Side {
    pub ground: Arc<Ground>,
    secret: Option<Secret>,
    block: u64,
    /// One that stays open.
    open: Arc<Store>,
    pub alive: BTreeMap<Id, Snapshot>,
    /// The ids of blocks, by what they hold.
    ids: Mutex<HashMap<(Vec<u8>, u64), Id>>,
}

impl Side {
    fn store(&self, process: &Arc<Process>) -> Result<Arc<Store>> {
        let keyring = keyring(self.secret.as_ref());
        Store::open(Arc::clone(process) as Arc<dyn Objects>, &Cache::new(4 << 20), &keyring)
            .map(Arc::new)
    }

    pub fn calm(&self) -> Arc<Store> {
        self.store(&self.ground.calm()).unwrap()
    }

    /// What the map of a disk has to say.
    pub fn map(&self, plain: &Plain) -> Vec<Id> {
        let mut ids = self.ids.lock();
        let block = |(seeds, range): (&[u8], std::ops::Range<u64>)| {
            if seeds.iter().all(|&seed| seed == 0) {
                return Id::ZERO;
            }
            let key = (seeds.to_vec(), range.end - range.start);
            *ids.entry(key).or_insert_with(|| {
                let mut bytes = plain.read(range);
                bytes.resize(self.block as usize, 0);
                self.open.block_id(&bytes)
            })
        };
        plain.blocks(self.block).map(block).collect()
    }

    fn any(&self, rng: &mut Rng) -> Option<Snapshot> {
        let number = rng.below(self.alive.len() as u64) as usize;
        self.alive.values().nth(number).cloned()
    }
}

fn keyring(secret: Option<&Secret>) -> Keyring {
    let given = |secret: Secret| Keyring::given(move || Ok(secret.clone()));
    secret.cloned().map(given).unwrap_or_default()
}

/// A store beside the one that all begins in: where snapshots are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// With the number of the first.
    Twin,
    Alike,
    /// With larger blocks.
    Coarse,
    /// With a key of its own.
    Secret,
}

/// How the objects of both stores lie.
pub type Make<'a> = &'a mut dyn FnMut(&str) -> Arc<dyn Objects>;

pub struct Model {
    pub rng: Rng,
    pub sides: [Side; 2],
    is_alike: bool,
    /// How each series was last.
    series: [Vec<Plain>; 3],
    last: [Option<Snapshot>; 3],
    /// What each snapshot holds that was ever begun.
    pub contents: HashMap<Name, Vec<Plain>>,
    second: i64,
    pub counts: Counts,
    scratch: tempfile::TempDir,
}

impl Model {
    /// Two new stores, in places that `make` makes.
    pub fn new(seed: u64, make: Make<'_>) -> Self {
        let mut rng = Rng(seed);
        let secret = |number: u8| Secret::key_file(vec![number; 32]).unwrap();
        let first = rng.one_in(2).then(|| secret(1));
        let other =
            [Other::Twin, Other::Alike, Other::Coarse, Other::Secret][rng.below(4) as usize];
        // Stores of two keys have no block in common by name.
        let is_alike = match other {
            Other::Twin => true,
            Other::Alike => first.is_none(),
            Other::Coarse | Other::Secret => false,
        };
        let mut side = |name: &str, other: Option<(Other, &Store)>| {
            let secret = match other {
                None => first.clone(),
                Some((Other::Twin, _)) => first.clone(),
                Some((Other::Alike | Other::Coarse, _)) => None,
                Some((Other::Secret, _)) => Some(secret(2)),
            };
            let secret = match other {
                // Its own master key all the same.
                Some((Other::Alike, _)) => first.clone(),
                _ => secret,
            };
            let ground = Ground::new(make(name));
            let calm: Arc<dyn Objects> = ground.calm();
            let times = if matches!(other, Some((Other::Coarse, _))) { 4 } else { 1 };
            let block = PIECE * times;
            let settings = Settings { block_size: block as u32, level: 1 };
            match other {
                Some((Other::Twin, from)) => from.twin(&*calm).unwrap(),
                _ => drop(Store::init(calm, settings, secret.as_ref(), &Cache::new(0)).unwrap()),
            }
            let open = Store::open(ground.calm(), &Cache::new(4 << 20), &keyring(secret.as_ref()));
            let open = Arc::new(open.unwrap());
            let (alive, ids) = (BTreeMap::new(), Mutex::default());
            Side { ground, secret, block: block as u64, open, alive, ids }
        };
        let one = side("one", None);
        let two = side("two", Some((other, &one.open)));
        // Of the first one some, and now and then one whose map has two levels.
        let series = [(); 3].map(|()| {
            let disks = if rng.one_in(4) { 2 } else { 1 };
            let len = |rng: &mut Rng| match rng.one_in(6) {
                true => 1100 + rng.below(2000),
                false => 1 + rng.below(40),
            };
            (0..disks).map(|_| Plain::new(len(&mut rng) * PIECE as u64)).collect()
        });
        Self {
            rng,
            sides: [one, two],
            is_alike,
            series,
            last: [const { None }; 3],
            contents: HashMap::new(),
            second: 0,
            counts: Counts::new(),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// One operation, and a look at what it left.
    pub fn step(&mut self) {
        let side = usize::from(self.rng.one_in(4));
        let kind = self.rng.below(100);
        let full = self.sides[side].alive.len() >= MOST;
        match kind {
            _ if full && kind < 60 => self.prune(side),
            0..36 => self.create(0),
            36..44 => self.commit(side),
            44..54 => self.remove(side),
            54..57 => self.prune(side),
            57..72 => self.collect(side),
            72..84 => self.copy(side),
            84..90 => self.tag(side),
            90..94 => self.roll_back(side),
            94..97 => self.pass(side),
            _ => {
                self.count("another process goes on");
                self.sides[side].open = self.sides[side].calm();
            }
        }
    }

    /// A process beside which another one collects.
    fn beside(&mut self, side: usize) -> Arc<Process> {
        let other = self.sides[side].calm();
        self.count("collected in the middle of another operation");
        let collects = move || drop(other.collect(&now(0), &|| {}));
        let at = 8 + self.rng.below(100);
        self.sides[side].ground.process(at, Event::Other(Box::new(collects)))
    }

    /// How the next operation goes: mostly as it should.
    fn process(&mut self, side: usize) -> Arc<Process> {
        // Some operations have ten steps, and some hundreds.
        let most = 8 << self.rng.below(5);
        let at = self.rng.below(most);
        let event = match self.rng.below(24) {
            0 => Event::End { done: self.rng.one_in(2) },
            1 => return self.beside(side),
            _ => Event::None,
        };
        self.sides[side].ground.process(at, event)
    }

    /// After an operation on `side`: what is there must be what was, without what `may_go`, with what is called as `may_come`.
    fn settle(
        &mut self,
        side: usize,
        process: &Process,
        may_come: &HashSet<Name>,
        may_go: &HashSet<Id>,
    ) {
        if process.has_ended() {
            self.count("of them ended at some operation");
            // Sometimes others come while its lease still holds.
            if !self.rng.one_in(12) {
                self.sides[side].ground.advance(LEASE);
            }
            self.sides[side].open = self.sides[side].calm();
        }
        let here = &mut self.sides[side];
        let found = here.calm().snapshots().unwrap();
        let ids: HashSet<Id> = found.iter().map(|snapshot| snapshot.id).collect();
        here.alive.retain(|id, _| {
            assert!(ids.contains(id) || may_go.contains(id), "snapshot {id} is gone");
            ids.contains(id)
        });
        for snapshot in found {
            if let Some(known) = here.alive.get(&snapshot.id) {
                assert_eq!(*known, snapshot);
                continue;
            }
            let name = (snapshot.record.series.clone(), snapshot.record.time);
            assert!(may_come.contains(&name), "snapshot {snapshot:?} came from nowhere");
            here.alive.insert(snapshot.id, snapshot);
        }
        self.look(side);
    }

    /// Holds all of a store against the copies: by maps, here and there by bytes, and whole now and then.
    pub fn look(&mut self, side: usize) {
        let (by_others, deep) = (self.rng.one_in(2), self.rng.one_in(40));
        let here = &self.sides[side];
        let store = if by_others { here.calm() } else { Arc::clone(&here.open) };
        let few = self.rng.below(here.alive.len().max(1) as u64) as usize;
        for (number, snapshot) in here.alive.values().enumerate() {
            let name = (snapshot.record.series.clone(), snapshot.record.time);
            let plains = &self.contents[&name];
            assert_eq!(plains.len(), snapshot.record.disks.len());
            for (disk, plain) in snapshot.record.disks.iter().zip(plains) {
                let map = here.map(plain);
                let leaves = (map.len() as u64).div_ceil(Store::blocks_of_page());
                for (leaf, expected) in
                    (0..leaves).zip(map.chunks(Store::blocks_of_page() as usize))
                {
                    let last = expected.iter().rposition(|id| !id.is_zero());
                    let expected = &expected[..last.map_or(0, |last| last + 1)];
                    assert!(store.block_ids(disk, leaf).unwrap() == expected, "map of {name:?}");
                }
                if !deep && number != few {
                    continue;
                }
                let layer = SnapshotLayer::new(Arc::clone(&store), snapshot, disk).unwrap();
                let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap();
                if deep {
                    same_all(&chain, plain);
                }
                for _ in 0..4 {
                    let start = self.rng.below(plain.len);
                    let end = (start + 1 + self.rng.below(40_000)).min(plain.len);
                    same(&chain, plain, start..end);
                }
            }
        }
        if deep {
            *self.counts.entry("times all of a store was read").or_default() += 1;
        }
        if deep || self.rng.one_in(8) {
            let depth = if deep { Depth::Data } else { Depth::Structure };
            let checked = self.sides[side].calm().check(depth, &|| {}).unwrap();
            assert_eq!(checked.problems, []);
        }
    }

    /// A snapshot of one of the series, on the base of how it was last.
    fn create(&mut self, side: usize) {
        self.count("create");
        let series = self.rng.below(3) as usize;
        let plains = &mut self.series[series];
        for plain in plains.iter_mut() {
            if self.rng.one_in(6) {
                let most = if plain.len > 1000 * PIECE as u64 { 3000 } else { 40 };
                plain.resize(1 + self.rng.below(most * PIECE as u64));
            }
            plain.change(&mut self.rng);
        }
        let plains = plains.clone();
        let disks = plains.iter().zip(0..).map(|(plain, number)| NewDisk {
            name: format!("disk{number}"),
            source: DiskSource::Image(Arc::new(PlainSource {
                plain: plain.clone(),
                tells_holes: self.rng.one_in(2),
            })),
            layers: vec![],
        });
        let disks = disks.collect();
        // It may have been removed meanwhile.
        let parent = self.last[series].clone().filter(|_| !self.rng.one_in(4));
        let new = self.new_snapshot(series, parent, disks);
        if let Some(made) = self.make(side, new, plains) {
            self.last[series] = Some(made);
        }
    }

    /// What a delta above a snapshot holds becomes one.
    fn commit(&mut self, side: usize) {
        let Some(below) = self.sides[side].any(&mut self.rng) else { return };
        self.count("commit of a delta");
        let before = self.contents[&(below.record.series.clone(), below.record.time)].clone();
        let mut plains = Vec::new();
        let mut disks = Vec::new();
        for (disk, old) in below.record.disks.iter().zip(&before) {
            let mut new = old.clone();
            if self.rng.one_in(3) {
                new.resize((old.len + self.rng.below(5 * PIECE as u64)).max(1));
            }
            new.change(&mut self.rng);
            let store = Arc::clone(&self.sides[side].open);
            let layer = SnapshotLayer::new(store, &below, disk).unwrap();
            let layers: Vec<Arc<dyn stratafs::chain::Layer>> =
                vec![Arc::new(Patch::new(old, &new)), Arc::new(layer)];
            let source = Arc::new(Chain::new(layers, Cache::new(0)).unwrap());
            assert_eq!(source.len(), new.len);
            let source = DiskSource::Image(source);
            disks.push(NewDisk { name: disk.name.clone(), source, layers: vec![] });
            plains.push(new);
        }
        let new = self.new_snapshot(0, Some(below), disks);
        self.make(side, new, plains);
    }

    fn new_snapshot(
        &mut self,
        series: usize,
        parent: Option<Snapshot>,
        disks: Vec<NewDisk>,
    ) -> NewSnapshot {
        self.second += 1;
        NewSnapshot {
            series: format!("s{series}"),
            time: Timestamp::from_second(self.second).unwrap(),
            tags: vec![],
            parent,
            source: "model".to_owned(),
            host: "here".to_owned(),
            sign: None,
            reading: Reading::default(),
            disks,
        }
    }

    fn make(&mut self, side: usize, new: NewSnapshot, plains: Vec<Plain>) -> Option<Snapshot> {
        let name = (new.series.clone(), new.time);
        self.contents.insert(name.clone(), plains);
        let process = self.process(side);
        let made = self.sides[side]
            .store(&process)
            .and_then(|store| store.create(new, &Progress::default()));
        let made = self.ended(&process, made);
        self.settle(side, &process, &HashSet::from([name]), &HashSet::new());
        let made = made?;
        assert!(self.sides[side].alive.contains_key(&made.id));
        Some(made)
    }

    /// What came of it; nothing if its process ended.
    #[track_caller]
    fn ended<T>(&self, process: &Process, done: Result<T>) -> Option<T> {
        match done {
            Ok(done) => Some(done),
            Err(error) => {
                assert!(process.has_ended(), "{error}");
                None
            }
        }
    }

    fn remove(&mut self, side: usize) {
        let Some(gone) = self.sides[side].any(&mut self.rng) else { return };
        self.count("remove");
        let process = self.process(side);
        let done = self.sides[side].store(&process).and_then(|store| store.remove(gone.id));
        let done = self.ended(&process, done);
        self.settle(side, &process, &HashSet::new(), &HashSet::from([gone.id]));
        assert!(done.is_none() || !self.sides[side].alive.contains_key(&gone.id));
    }

    fn prune(&mut self, side: usize) {
        self.count("prune");
        let last = 1 + self.rng.below(6) as usize;
        let keep = Keep { last, ..Keep::default() };
        let all: Vec<Snapshot> = self.sides[side].alive.values().cloned().collect();
        let decided = keep.decide(all, &jiff::tz::TimeZone::UTC).unwrap();
        let gone = decided.iter().filter(|decision| decision.reasons.is_empty());
        let gone: HashSet<Id> = gone.map(|decision| decision.snapshot.id).collect();
        let process = self.process(side);
        let done = self.sides[side]
            .store(&process)
            .and_then(|store| gone.iter().try_for_each(|id| store.remove(*id)));
        let done = self.ended(&process, done);
        self.settle(side, &process, &HashSet::new(), &gone);
        let alive = &self.sides[side].alive;
        assert!(done.is_none() || gone.iter().all(|id| !alive.contains_key(id)));
        let mut series: BTreeMap<&str, usize> = BTreeMap::new();
        for snapshot in alive.values() {
            *series.entry(&snapshot.record.series).or_default() += 1;
        }
        assert!(done.is_none() || series.values().all(|&count| count <= last));
    }

    fn collect(&mut self, side: usize) {
        let tight = self.rng.one_in(3);
        let mut draw = |bound| if tight || self.rng.one_in(2) { 0 } else { self.rng.below(bound) };
        let (grace, unused) = (Duration::from_secs(draw(7200)), draw(60));
        let is_empty = tight || self.rng.one_in(3);
        if is_empty {
            // Nobody is at work any more.
            self.sides[side].ground.advance(LEASE);
        }
        self.count("collect");
        let how = Collect { grace, unused, dry_run: false };
        // No other one collects beside it.
        let process = match self.process(side) {
            process if process.ends() => process,
            _ => self.sides[side].ground.calm(),
        };
        let done = self.sides[side].store(&process).and_then(|store| store.collect(&how, &|| {}));
        let refused = match &done {
            // Whoever collected and ended still holds its lease.
            Err(error) => error.kind() == Kind::Refused && !is_empty,
            Ok(_) => false,
        };
        if refused {
            self.count("of them refused, as another one collects");
        } else {
            let done = self.ended(&process, done);
            if let Some(done) = done.filter(|_| is_empty && grace.is_zero() && unused == 0) {
                self.count("of them with nothing left but what is needed");
                self.is_tight(side, &done);
            }
        }
        self.settle(side, &process, &HashSet::new(), &HashSet::new());
    }

    /// Some snapshots go to the other store.
    fn copy(&mut self, from: usize) {
        let to = 1 - from;
        let percent = self.rng.below(100);
        let chosen = self.sides[from].alive.values();
        let mut chosen: Vec<Snapshot> =
            chosen.filter(|_| self.rng.below(100) < percent).cloned().collect();
        chosen.sort_by_key(|snapshot| (snapshot.record.time, snapshot.id));
        self.count(if from == 0 { "copy" } else { "copy back" });
        let names: HashSet<Name> = chosen
            .iter()
            .map(|snapshot| (snapshot.record.series.clone(), snapshot.record.time))
            .collect();
        let source = match self.rng.one_in(4) {
            true => {
                let process = self.beside(from);
                self.sides[from].store(&process).unwrap()
            }
            false => Arc::clone(&self.sides[from].open),
        };
        let process = self.process(to);
        let done = self.sides[to]
            .store(&process)
            .and_then(|store| store.copy_from(&source, &chosen, &Progress::default()));
        let done = self.ended(&process, done);
        self.settle(to, &process, &names, &HashSet::new());
        let Some(done) = done else { return };
        assert_eq!(done.snapshots.len() as u64 + done.already, chosen.len() as u64);
        let there = &self.sides[to].alive;
        assert!(done.snapshots.iter().all(|id| there.contains_key(id)));
        for snapshot in &chosen {
            let name = |it: &Snapshot| (it.record.series.clone(), it.record.time);
            let is_it = |other: &&Snapshot| name(other) == name(snapshot);
            let is_there = match self.is_alike {
                true => there.get(&snapshot.id) == Some(snapshot),
                false => there.values().any(|other| is_it(&other)),
            };
            assert!(is_there, "{} was not copied", snapshot.id);
        }
    }

    fn tag(&mut self, side: usize) {
        let Some(before) = self.sides[side].any(&mut self.rng) else { return };
        self.count("tag");
        let tags = (0..self.rng.below(3)).map(|_| format!("t{}", self.rng.below(3))).collect();
        let name = (before.record.series.clone(), before.record.time);
        let process = self.process(side);
        let done =
            self.sides[side].store(&process).and_then(|store| store.tag(&before, tags, None));
        let done = self.ended(&process, done);
        self.settle(side, &process, &HashSet::from([name]), &HashSet::from([before.id]));
        let Some(done) = done else { return };
        let alive = &self.sides[side].alive;
        assert_eq!(alive.get(&done.id), Some(&done));
        assert!(done.id == before.id || !alive.contains_key(&before.id));
    }

    /// A disk that is something else becomes equal to a snapshot.
    fn roll_back(&mut self, side: usize) {
        let Some(snapshot) = self.sides[side].any(&mut self.rng) else { return };
        self.count("rollback");
        let name = (snapshot.record.series.clone(), snapshot.record.time);
        let (disk, plain) = (&snapshot.record.disks[0], &self.contents[&name][0]);
        let mut before = plain.clone();
        before.change(&mut self.rng);
        let path = self.scratch.path().join("target");
        std::fs::write(&path, before.read(0..before.len)).unwrap();
        let sink = FileSink::open(&path).unwrap();
        let progress = Progress::default();
        let never = AtomicBool::new(false);
        let store = &self.sides[side].open;
        store.roll_back(disk, Target::Sink(&sink), &progress, &never).unwrap();
        same_all(&sink, plain);
    }

    /// Time passes.
    fn pass(&mut self, side: usize) {
        self.count("hours pass");
        let by = Duration::from_secs(self.rng.below(3 * 3600));
        self.sides[side].ground.advance(by);
    }

    /// Removes what is left, in several steps, and fails unless all of the room comes back.
    pub fn finish(&mut self) -> Counts {
        for side in [0, 1] {
            self.sides[side].ground.advance(LEASE);
            let store = self.sides[side].calm();
            let done = store.collect(&now(0), &|| {}).unwrap();
            self.is_tight(side, &done);
            self.look(side);
            let all: Vec<Id> = self.sides[side].alive.keys().copied().collect();
            all.into_iter().for_each(|id| store.remove(id).unwrap());
            self.sides[side].alive.clear();
            store.collect(&now(0), &|| {}).unwrap();
            for sort in Sort::ALL.into_iter().filter(|sort| *sort != Sort::Keys) {
                assert_eq!(self.sides[side].ground.calm().list(sort).unwrap(), [], "{sort:?}");
            }
        }
        std::mem::take(&mut self.counts)
    }
}

fn now(unused: u64) -> Collect {
    Collect { grace: Duration::ZERO, unused, dry_run: false }
}
