//! The power goes at some moment of a session: whatever is found then, each snapshot that was promised is whole, and the
//! next one who writes or collects goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratafs::store::Progress;
use stratafs::store::objects::{Files, Folder, Host};

use crate::number;
use crate::power::{Disk, Tree};
use crate::recorded::Change;
use crate::rng::Rng;
use crate::session::{
    NAMES, Promised, Session, State, all_whole, files, is_unfinished, new, now, open, pass, session,
};

/// States of one session.
const EACH: u64 = 250;

/// A folder that becomes one state after the other.
struct Stage {
    root: PathBuf,
    holds: Tree,
}

impl Stage {
    /// With the folders of both stores, and nothing in them.
    fn new(root: &Path) -> Self {
        for name in NAMES {
            Folder::make(&root.join(name)).unwrap();
        }
        Self { root: root.to_owned(), holds: Tree::new() }
    }

    fn become_state(&mut self, tree: Tree) {
        for (path, _) in self.holds.iter().filter(|(path, _)| !tree.contains_key(*path)) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in &tree {
            if self.holds.get(path) != Some(bytes) {
                fs::write(path, bytes.as_slice()).unwrap();
            }
        }
        self.holds = tree;
    }

    /// After somebody else has changed it.
    fn look(&mut self) {
        let read = |path: PathBuf| (path.clone(), Arc::new(fs::read(path).unwrap()));
        self.holds = files(&self.root).into_iter().map(read).collect();
    }
}

/// What came of the states.
#[derive(Debug, Default)]
struct Counts {
    states: u64,
    snapshots: u64,
    went_on: u64,
    unfinished: u64,
}

fn states(seed: u64, dir: &Path, counts: &mut Counts) {
    let mut rng = Rng(seed);
    let session = session(&mut rng, dir);
    let mut moments: Vec<usize> =
        (0..EACH).map(|_| rng.below(session.log.len() as u64 + 1) as usize).collect();
    moments.sort_unstable();
    let mut stage = Stage::new(dir);
    let mut disk = Disk::default();
    let mut promised = Promised::default();
    let mut at = 0;
    for moment in moments {
        for change in &session.log[at..moment] {
            disk.apply(change);
            if let Change::Promise(promise) = change {
                promised.add(*promise);
            }
        }
        at = moment;
        stage.become_state(disk.crash(&mut rng));
        counts.states += 1;
        counts.unfinished += stage.holds.keys().filter(|path| is_unfinished(path)).count() as u64;
        let goes_on = rng.one_in(8);
        for (side, name) in NAMES.iter().enumerate() {
            look(&session, &promised, side, &dir.join(name), goes_on, counts);
        }
        if goes_on {
            stage.look();
        }
    }
    for name in NAMES {
        fs::remove_dir_all(dir.join(name)).unwrap();
    }
}

/// Looks at a store as it was found, and goes on with it.
fn look(
    session: &Session,
    promised: &Promised,
    side: usize,
    dir: &Path,
    goes_on: bool,
    counts: &mut Counts,
) {
    let made = &promised.made[side];
    if !dir.join("config").exists() {
        assert!(made.is_empty() && promised.keys.is_empty(), "the store is gone");
        return;
    }
    let host = || Arc::new(Host) as Arc<dyn Files>;
    let key = promised.keys.first().copied();
    if session.is_encrypted && key.is_none() {
        return;
    }
    let store = open(dir, host(), key).unwrap();
    for key in &promised.keys {
        open(dir, host(), Some(*key)).unwrap();
    }
    let mut snapshots = store.snapshots().unwrap();
    let found = |id| snapshots.iter().any(|snapshot| snapshot.id == id);
    for (&id, &state) in made {
        assert!(state != State::There || found(id), "snapshot {id} is lost");
        assert!(state != State::Gone || !found(id), "snapshot {id} is there again");
    }
    all_whole(&store, &snapshots, &session.contents);
    counts.snapshots += snapshots.len() as u64;
    if !goes_on {
        return;
    }
    counts.went_on += 1;
    pass(dir);
    // What was stored for it already may be used.
    let last = session.contents.iter().max_by_key(|(time, _)| **time);
    let disk = last.map(|(_, disk)| disk.clone()).unwrap_or_default();
    let mut contents = session.contents.clone();
    let next = new(1000, &disk, snapshots.last());
    contents.insert(next.time, disk);
    snapshots.push(store.create(next, &Progress::default()).unwrap());
    let done = open(dir, host(), key).unwrap().collect(&now(0), &|| {}).unwrap();
    let store = open(dir, host(), key).unwrap();
    assert_eq!(store.snapshots().unwrap().len(), snapshots.len());
    all_whole(&store, &snapshots, &contents);
    // Nothing is left of what the crash interrupted.
    let usage = store.usage().unwrap();
    assert_eq!(usage.pack_bytes, done.needed_bytes + 48 * usage.packs);
    let needless = |path: &PathBuf| {
        let parent = path.parent().unwrap();
        is_unfinished(path) || parent.ends_with("leases") || parent.ends_with("condemned")
    };
    let left: Vec<PathBuf> = files(dir).into_iter().filter(needless).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

/// Every second session.
fn part(part: u64) {
    let all = number("STRATA_STORE_CRASHES", 1000);
    let first = number("STRATA_SEED", 1);
    let mut counts = Counts::default();
    for number in (part..all.div_ceil(EACH)).step_by(2) {
        let seed = first + number;
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            states(seed, dir.path(), &mut counts);
        }));
        if let Err(panic) = done {
            eprintln!("STRATA_SEED={seed} STRATA_STORE_CRASHES=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
    println!("from seed {}: {counts:?}", first + part);
}

#[test]
fn a_power_cut_loses_no_snapshot_1() {
    part(0);
}

#[test]
fn a_power_cut_loses_no_snapshot_2() {
    part(1);
}
