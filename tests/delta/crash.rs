//! Crashes: what a storage may hold after the power went, opened again.
//!
//! A session is run on a storage that remembers every change. Then, for many moments of it, states
//! are made that a disk could be in: of each sector any version since the last sync, of the length
//! any. In each, the delta must open; every sector must be as last flushed, or as some later
//! operation made it.

use std::collections::BTreeMap;
use std::sync::Arc;

use stratafs::block::{BlockSink, BlockSource};
use stratafs::image::qcow2::Delta;

use crate::model::{check, compare};
use crate::number;
use crate::rng::Rng;
use crate::storage::{Below, Change, Memory};
use crate::support::{run, tool};
use crate::workload::{Operation, SECTOR, check_all, disk};

/// What a sector of the guest was, from which change of the log on.
type History = Vec<Vec<(usize, Vec<u8>)>>;

/// A session: what it did to the storage, and to the disk.
struct Session {
    start: Vec<u8>,
    log: Vec<Change>,
    below: Option<Arc<Below>>,
    history: History,
    /// When flushes began and ended, in changes of the log.
    flushes: Vec<(usize, usize)>,
}

fn session(rng: &mut Rng) -> Session {
    let (_, storage, below, mut expected) = disk(rng, 512 << 10);
    let storage = Arc::new(storage);
    let start = storage.0.lock().unwrap().bytes.clone();
    storage.0.lock().unwrap().log = Some(Vec::new());
    let below = below.map(Arc::new);
    let source = || below.clone().map(|below| below as Arc<dyn BlockSource>);
    let open = || Delta::open_on(storage.clone(), "delta", source(), None).unwrap();
    let sectors = |disk: &[u8]| disk.chunks(SECTOR as usize).map(<[u8]>::to_vec).collect();
    let first: Vec<Vec<u8>> = sectors(&expected);
    let mut history: History = first.into_iter().map(|sector| vec![(0, sector)]).collect();
    let mut flushes = Vec::new();
    let mut delta = open();
    for _ in 0..60 {
        let mut operation = Operation::random(rng, expected.len() as u64);
        if rng.below(8) == 0 {
            operation = Operation::Flush;
        }
        let begun = storage.log_len();
        // A write becomes possible with its first change of the storage, which is logged after.
        if let Some((at, len)) = operation.apply(&mut expected) {
            for sector in at / SECTOR..(at + len).div_ceil(SECTOR) {
                let from = (sector * SECTOR) as usize;
                let bytes = expected[from..(from + SECTOR as usize).min(expected.len())].to_vec();
                history[sector as usize].push((begun, bytes));
            }
        }
        match operation {
            Operation::Reopen => {
                delta.close().unwrap();
                flushes.push((begun, storage.log_len()));
                drop(delta);
                delta = open();
            }
            ref other => other.run(&delta, &expected).unwrap(),
        }
        if let Operation::Flush = operation {
            flushes.push((begun, storage.log_len()));
        }
    }
    check_all(&delta, &expected);
    let begun = storage.log_len();
    delta.close().unwrap();
    flushes.push((begun, storage.log_len()));
    drop(delta);
    let log = storage.0.lock().unwrap().log.take().unwrap();
    Session { start, log, below, history, flushes }
}

/// How a crash chooses among the versions of a sector.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// The newest: the process was killed, the host lives.
    Newest,
    /// The one of the last sync: nothing since has arrived.
    Oldest,
    /// Any, for each sector by itself.
    Any,
    /// Mostly the newest, so that single sectors are lost.
    Mostly,
    /// Those of late changes have arrived, those of early ones have not.
    Late(usize),
}

/// The bytes that are surely on stable storage, and what has changed since: by sector, the versions
/// with the change that made each; `None` is a sector that was cut off.
struct Pending<'a> {
    synced: &'a [u8],
    versions: BTreeMap<u64, Vec<(usize, Vec<u8>)>>,
    lengths: Vec<u64>,
    newest: Vec<u8>,
}

impl<'a> Pending<'a> {
    fn new(synced: &'a [u8], log: &[Change], first: usize) -> Self {
        let mut pending = Self {
            synced,
            versions: BTreeMap::new(),
            lengths: vec![synced.len() as u64],
            newest: synced.to_vec(),
        };
        for (index, change) in log.iter().enumerate() {
            pending.add(first + index, change);
        }
        pending
    }

    fn add(&mut self, index: usize, change: &Change) {
        let (from, to) = match change {
            Change::Write { at, data } => (*at, *at + data.len() as u64),
            Change::Punch { at, len } => (*at, (*at + *len).min(self.newest.len() as u64)),
            Change::Length(len) => (*len, self.newest.len() as u64),
            Change::Sync => return,
        };
        crate::storage::apply(&mut self.newest, change);
        self.lengths.push(self.newest.len() as u64);
        if from >= to {
            return;
        }
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let at = (sector * SECTOR) as usize;
            let mut bytes = vec![0; SECTOR as usize];
            if at < self.newest.len() {
                let end = (at + SECTOR as usize).min(self.newest.len());
                bytes[..end - at].copy_from_slice(&self.newest[at..end]);
            }
            self.versions.entry(sector).or_default().push((index, bytes));
        }
    }

    fn state(&self, rng: &mut Rng, choice: Choice) -> Vec<u8> {
        let len = match choice {
            Choice::Newest | Choice::Late(_) => self.newest.len() as u64,
            Choice::Oldest => self.synced.len() as u64,
            Choice::Mostly if rng.below(4) > 0 => self.newest.len() as u64,
            _ => self.lengths[rng.below(self.lengths.len() as u64) as usize],
        };
        let mut bytes = self.synced.to_vec();
        let longest = self.lengths.iter().max().copied().unwrap_or(0);
        bytes.resize(longest.next_multiple_of(SECTOR) as usize, 0);
        for (&sector, versions) in &self.versions {
            let count = versions.len();
            let chosen = match choice {
                Choice::Newest => Some(count - 1),
                Choice::Oldest => None,
                Choice::Any => (rng.below(count as u64 + 1) as usize).checked_sub(1),
                Choice::Mostly if rng.below(8) > 0 => Some(count - 1),
                Choice::Mostly => (rng.below(count as u64 + 1) as usize).checked_sub(1),
                Choice::Late(from) => versions.iter().rposition(|(index, _)| *index >= from),
            };
            if let Some(chosen) = chosen {
                let at = (sector * SECTOR) as usize;
                if let Some(slot) = bytes.get_mut(at..at + SECTOR as usize) {
                    slot.copy_from_slice(&versions[chosen].1);
                }
            }
        }
        bytes.resize(len as usize, 0);
        bytes
    }
}

/// Opens `bytes`, which the storage held when it crashed after `moment` changes, and checks every
/// sector. The disk as it is.
fn look(session: &Session, bytes: Vec<u8>, moment: usize, again: bool) -> (Arc<Memory>, Vec<u8>) {
    let storage = Arc::new(Memory::new(bytes));
    let source = || session.below.clone().map(|below| below as Arc<dyn BlockSource>);
    let open = || Delta::open_on(storage.clone(), "delta", source(), None).unwrap();
    let delta = open();
    let mut found = vec![0xa5; delta.len() as usize];
    delta.read_at(0, &mut found).unwrap();
    let flushed = session.flushes.iter().rev().find(|(_, ended)| *ended <= moment);
    let flushed = flushed.map_or(0, |(begun, _)| *begun);
    for (number, (sector, history)) in
        found.chunks(SECTOR as usize).zip(&session.history).enumerate()
    {
        // The last version of before the flush, and every later one that had begun.
        let kept = history.iter().rposition(|(begun, _)| *begun < flushed).unwrap_or(0);
        let mut allowed = history[kept..].iter().filter(|(begun, _)| *begun <= moment);
        assert!(
            allowed.any(|(_, bytes)| bytes == sector),
            "sector {number} is neither as flushed nor as written since"
        );
    }
    if again {
        // It takes writes, and a clean close keeps all.
        let at = found.len() as u64 / 2 / SECTOR * SECTOR;
        let data = [0x77; 3000];
        let len = data.len().min(found.len() - at as usize);
        delta.write_at(at, &data[..len]).unwrap();
        found[at as usize..at as usize + len].copy_from_slice(&data[..len]);
        delta.close().unwrap();
        drop(delta);
        check_all(&open(), &found);
    }
    (storage, found)
}

fn states(seed: u64, states: u64, dir: &std::path::Path) {
    let mut rng = Rng(seed);
    let session = session(&mut rng);
    let mut moments: Vec<usize> =
        (0..states).map(|_| rng.below(session.log.len() as u64 + 1) as usize).collect();
    moments.sort_unstable();
    let mut synced = session.start.clone();
    let mut first = 0;
    for (index, moment) in moments.into_iter().enumerate() {
        // Everything up to the last sync before the moment has arrived.
        while let Some(next) =
            session.log[first..moment].iter().position(|change| matches!(change, Change::Sync))
        {
            for change in &session.log[first..=first + next] {
                crate::storage::apply(&mut synced, change);
            }
            first += next + 1;
        }
        let pending = Pending::new(&synced, &session.log[first..moment], first);
        let choice = match rng.below(8) {
            0 => Choice::Newest,
            1 => Choice::Oldest,
            2 | 3 => Choice::Mostly,
            4 => Choice::Late(first + rng.below((moment - first) as u64 + 1) as usize),
            _ => Choice::Any,
        };
        let bytes = pending.state(&mut rng, choice);
        let sampled = index % 97 == 50;
        if sampled {
            // QEMU repairs it too, and finds the same disk.
            let (_, found) = look(&session, bytes.clone(), moment, false);
            let image = dir.join("crashed.qcow2");
            std::fs::write(&image, &bytes).unwrap();
            run(tool("qemu-img", "qemu-utils").args(["check", "-q", "-r", "all"]).arg(&image));
            check(&image);
            compare(&image, session.below.as_ref().map(|below| &below.0[..]), &found);
        }
        let again = rng.below(4) == 0;
        let (storage, found) = look(&session, bytes, moment, again || sampled);
        if sampled {
            let image = dir.join("repaired.qcow2");
            storage.save(&image);
            check(&image);
            compare(&image, session.below.as_ref().map(|below| &below.0[..]), &found);
        }
    }
}

/// Every second session from the one of number `part` on.
fn part(part: u64) {
    const PER_SESSION: u64 = 100;
    let all = number("STRATA_CRASH_STATES", 4000);
    let first = number("STRATA_RANDOM_SEED", 1);
    let dir = tempfile::tempdir().unwrap();
    for index in (part..all.div_ceil(PER_SESSION)).step_by(2) {
        let seed = first + index;
        let done = std::panic::catch_unwind(|| states(seed, PER_SESSION, dir.path()));
        if let Err(panic) = done {
            eprintln!("seed {seed}: STRATA_RANDOM_SEED={seed} STRATA_CRASH_STATES=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
    let sessions = (part..all.div_ceil(PER_SESSION)).step_by(2).count();
    println!("{sessions} sessions of {PER_SESSION} crash states each, from seed {}", first + part);
}

#[test]
fn crashes_lose_nothing_flushed_1() {
    part(0);
}

#[test]
fn crashes_lose_nothing_flushed_2() {
    part(1);
}
