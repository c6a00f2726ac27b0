//! The program killed at random moments of everything that changes a store: what it said is done is done, and the rest
//! is done whole or not at all.
//!
//! `STRATA_STORE_KILLS` says how often (40), `STRATA_SEED` where to begin.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "ext/rng.rs"]
mod rng;
mod support;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rng::Rng;
use stratafs::block::{BlockSource, Cache};
use stratafs::chain::Chain;
use stratafs::store::objects::Folder;
use stratafs::store::{Depth, Id, Keyring, Snapshot, SnapshotLayer, Store};
use support::{run, strata};

const BLOCK: usize = 16 << 10;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn open(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(Arc::new(Folder::new(dir)), &Cache::new(0), &Keyring::default()).unwrap())
}

/// What is done, and what it may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Create,
    Tag,
    Remove,
    Prune,
    Collect,
    Copy,
}

struct Place {
    dir: tempfile::TempDir,
    rng: Rng,
    disk: Vec<u8>,
    second: i64,
    /// What each snapshot holds that was ever begun.
    contents: HashMap<Timestamp, Vec<u8>>,
    /// The snapshots that are there, in the store and in the one that they are copied into.
    alive: [HashMap<Id, Snapshot>; 2],
}

impl Place {
    fn new(seed: u64) -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
            rng: Rng(seed),
            disk: Rng(1).bytes(100 * BLOCK),
            second: 1_700_000_000,
            contents: HashMap::new(),
            alive: [HashMap::new(), HashMap::new()],
        };
        for name in ["st", "copy"] {
            let mut init = strata();
            run(init.args(["store", "init", "--block-size", "16K"]).arg(place.path(name)));
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn any(&mut self) -> Option<Id> {
        let mut ids: Vec<Id> = self.alive[0].keys().copied().collect();
        ids.sort();
        ids.get(self.rng.below(ids.len() as u64) as usize).copied()
    }

    /// The command, and which snapshots may be gone after it.
    fn command(&mut self, work: Work) -> (Command, HashSet<Id>) {
        let (store, mut command) = (self.path("st"), strata());
        let reference = |id: Id| format!("{}::{id}", store.display());
        let mut may_go = HashSet::new();
        match work {
            Work::Create => {
                for _ in 0..self.rng.below(60) {
                    let at = self.rng.below(100) as usize * BLOCK;
                    let bytes = Rng(self.rng.below(500)).bytes(BLOCK);
                    self.disk[at..at + BLOCK].copy_from_slice(&bytes);
                }
                self.second += 1;
                let time = Timestamp::from_second(self.second).unwrap();
                self.contents.insert(time, self.disk.clone());
                let raw = self.path("disk.raw");
                fs::write(&raw, &self.disk).unwrap();
                command.args(["snapshot", "create", "--time", &time.to_string()]);
                command.arg(&store).arg(format!("s{}", self.second % 2)).arg(raw);
            }
            Work::Tag | Work::Remove => {
                let Some(id) = self.any() else { return self.command(Work::Create) };
                may_go.insert(id);
                match work {
                    Work::Tag => command
                        .args(["snapshot", "tag", "--add"])
                        .arg(format!("t{}", self.rng.below(1000))),
                    _ => command.args(["snapshot", "remove"]),
                };
                command.arg(reference(id));
            }
            Work::Prune => {
                may_go.extend(self.alive[0].keys());
                let last = format!("--keep-last={}", 1 + self.rng.below(5));
                command.args(["snapshot", "prune", &last]).arg(&store);
            }
            Work::Collect => {
                let unused = format!("--unused={}", self.rng.below(30));
                command.args(["store", "collect", "--grace=0s", &unused]).arg(&store);
            }
            Work::Copy => {
                command.args(["store", "copy"]).arg(&store).arg(self.path("copy"));
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        (command, may_go)
    }

    /// Fails unless what is there was there before or may have come, and holds what it should.
    fn look(&mut self, side: usize, may_go: &HashSet<Id>, depth: Option<Depth>) {
        let store = open(&self.path(["st", "copy"][side]));
        let found = store.snapshots().unwrap();
        let ids: HashSet<Id> = found.iter().map(|snapshot| snapshot.id).collect();
        for id in self.alive[side].keys() {
            assert!(ids.contains(id) || may_go.contains(id), "snapshot {id} is gone");
        }
        for snapshot in &found {
            let disk = &snapshot.record.disks[0];
            let layer = SnapshotLayer::new(Arc::clone(&store), snapshot, disk).unwrap();
            let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap();
            let mut bytes = vec![0; chain.len() as usize];
            chain.read_at(0, &mut bytes).unwrap();
            assert!(bytes == self.contents[&snapshot.record.time], "snapshot {}", snapshot.id);
        }
        self.alive[side] = found.into_iter().map(|snapshot| (snapshot.id, snapshot)).collect();
        if let Some(depth) = depth {
            assert_eq!(store.check(depth, &|| {}).unwrap().problems, []);
        }
    }
}

#[test]
fn a_killed_program_leaves_whole_snapshots() {
    let kills = number("STRATA_STORE_KILLS", 40);
    let mut place = Place::new(number("STRATA_SEED", 1));
    let mut took: BTreeMap<Work, Duration> = BTreeMap::new();
    let mut counts: BTreeMap<Work, [u64; 2]> = BTreeMap::new();
    let mut killed = 0;
    while killed < kills {
        let work = match place.rng.below(16) {
            0..6 => Work::Create,
            6..8 => Work::Remove,
            8 => Work::Tag,
            9..11 => Work::Prune,
            11..14 => Work::Collect,
            _ => Work::Copy,
        };
        let (mut command, may_go) = place.command(work);
        // The first of each is left to end, and one in eight later.
        let limit = took.get(&work).copied().filter(|_| !place.rng.one_in(8));
        let began = Instant::now();
        let mut child = command.spawn().unwrap();
        if let Some(limit) = limit {
            thread::sleep(limit.mul_f64(place.rng.below(1000) as f64 / 900.0));
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let was_killed = output.status.code().is_none();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(was_killed || output.status.success(), "{work:?}: {told}");
        if !was_killed {
            took.insert(work, began.elapsed());
        }
        killed += u64::from(was_killed);
        counts.entry(work).or_default()[usize::from(was_killed)] += 1;
        let depth = match place.rng.below(10) {
            0 => Some(Depth::Data),
            1..4 => Some(Depth::Structure),
            _ => None,
        };
        place.look(0, &may_go, depth);
        if work == Work::Copy {
            place.look(1, &HashSet::new(), depth);
        }
    }
    // What is left of all of them is given back by the next one.
    run(strata().args(["store", "collect", "--grace=0s", "--unused=0"]).arg(place.path("st")));
    place.look(0, &HashSet::new(), Some(Depth::Data));
    let store = open(&place.path("st"));
    let blocks: HashSet<[u8; 32]> = place.alive[0]
        .values()
        .flat_map(|snapshot| place.contents[&snapshot.record.time].chunks(BLOCK))
        .map(|block| *blake3::hash(block).as_bytes())
        .collect();
    let usage = store.usage().unwrap();
    let most = blocks.len() * (BLOCK + 60) + (place.alive[0].len() + 1) * 4096;
    assert!(usage.pack_bytes <= most as u64, "{usage:?}, {} blocks", blocks.len());
    println!("{killed} kills; ended and killed: {counts:?}");
}
