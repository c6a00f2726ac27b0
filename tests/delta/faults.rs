//! Hosts that fail: each call of a short session in turn, and all from some call on.

use std::sync::Arc;

use stratafs::block::{BlockSink, BlockSource, Storage};
use stratafs::error::Kind;
use stratafs::image::qcow2::{Delta, NewDelta, Shape};

use crate::model::check;
use crate::rng::Rng;
use crate::storage::{Call, Memory};
use crate::workload::{Operation, SECTOR, check_all, disk};

/// Runs a session in which call `nth` fails, or all from it on; whether it came to that. Afterwards
/// the delta opens, and each sector is as flushed last or as written since.
fn session(seed: u64, nth: u64, errno: i32, for_good: bool, dir: &std::path::Path) -> bool {
    let mut rng = Rng(seed);
    let (_, storage, below, expected) = disk(&mut rng, 256 << 10);
    let storage = Arc::new(storage);
    let below = below.map(Arc::new);
    let source = || below.clone().map(|below| below as Arc<dyn BlockSource>);
    let open = || Delta::open_on(storage.clone(), "delta", source(), None);
    // A disk without room refuses what makes the file longer or fills holes, nothing else.
    let hit = move |calls: u64, call: Call| {
        let due = if for_good { calls >= nth } else { calls == nth };
        let fits = errno != libc::ENOSPC || matches!(call, Call::Write | Call::Length);
        (due && fits).then_some(errno)
    };
    storage.0.lock().unwrap().calls = 0;
    storage.0.lock().unwrap().plan = Some(Box::new(hit));
    // What each sector may be: as flushed, and as each later operation made it.
    let mut disk = expected.clone();
    let sector = |disk: &[u8], n: usize| {
        let end = ((n + 1) * SECTOR as usize).min(disk.len());
        disk[n * SECTOR as usize..end].to_vec()
    };
    let count = expected.len().div_ceil(SECTOR as usize);
    let mut allowed: Vec<Vec<Vec<u8>>> = (0..count).map(|n| vec![sector(&disk, n)]).collect();
    let mut failures = 0;
    if let Ok(delta) = open() {
        for _ in 0..25 {
            let operation = Operation::random(&mut rng, expected.len() as u64);
            // After a failed write each sector is old or new, so only whole ones are written; reads
            // are checked at the end.
            let operation = match operation {
                Operation::Read { .. } | Operation::Reopen => continue,
                Operation::Write { at, mut data } => {
                    data.truncate(data.len() / SECTOR as usize * SECTOR as usize);
                    Operation::Write { at: at / SECTOR * SECTOR, data }
                }
                Operation::Zero { at, len } => {
                    Operation::Zero { at: at / SECTOR * SECTOR, len: len / SECTOR * SECTOR }
                }
                Operation::Flush => Operation::Flush,
            };
            let changed = operation.apply(&mut disk);
            let result = operation.run(&delta, &disk);
            for n in changed.map_or(0..0, |(at, len)| at / SECTOR..(at + len).div_ceil(SECTOR)) {
                allowed[n as usize].push(sector(&disk, n as usize));
            }
            match result {
                Ok(()) => {
                    if let Operation::Flush = operation {
                        assert!(delta.failed().is_none(), "a flush after a failed one succeeded");
                        // A failed write may have left its range mixed: nothing is known of it.
                        if failures == 0 {
                            for (n, allowed) in allowed.iter_mut().enumerate() {
                                *allowed = vec![sector(&disk, n)];
                            }
                        }
                    }
                }
                Err(error) => {
                    failures += 1;
                    let kinds = [Kind::Io, Kind::NoSpace, Kind::ReadOnly];
                    assert!(kinds.contains(&error.kind()), "{error}");
                    if delta.failed().is_some() {
                        assert!(delta.flush().is_err(), "a failed flush was retried into success");
                        let error = delta.write_at(0, &[1]).unwrap_err();
                        assert_eq!(error.kind(), Kind::ReadOnly);
                    }
                }
            }
        }
        if errno == libc::ENOSPC && delta.failed().is_none() {
            // There is room again: nothing was lost.
            storage.0.lock().unwrap().plan = None;
            delta.flush().unwrap();
            let mut found = vec![0; disk.len()];
            delta.read_at(0, &mut found).unwrap();
            for (n, allowed) in allowed.iter().enumerate() {
                assert!(allowed.contains(&sector(&found, n)), "sector {n} is wrong");
            }
        }
        let _ = delta.close();
    }
    let reached = storage.0.lock().unwrap().calls >= nth;
    storage.0.lock().unwrap().plan = None;
    let delta = open().unwrap();
    let mut found = vec![0; disk.len()];
    delta.read_at(0, &mut found).unwrap();
    for (n, allowed) in allowed.iter().enumerate() {
        assert!(allowed.contains(&sector(&found, n)), "sector {n} is wrong after reopening");
    }
    delta.close().unwrap();
    check_all(&delta, &found);
    if nth % 16 == 3 {
        let image = dir.join("delta.qcow2");
        storage.save(&image);
        check(&image);
    }
    reached
}

fn every_call_fails(errno: i32, for_good: bool) {
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..=4 {
        let mut nth = 1;
        while session(seed, nth, errno, for_good, dir.path()) {
            nth += 1;
        }
        assert!(nth > 30, "only {nth} calls");
    }
}

#[test]
fn every_call_fails_once_with_eio() {
    every_call_fails(libc::EIO, false);
}

#[test]
fn every_call_fails_for_good_with_eio() {
    every_call_fails(libc::EIO, true);
}

#[test]
fn every_write_fails_once_without_room() {
    every_call_fails(libc::ENOSPC, false);
}

#[test]
fn every_write_fails_for_good_without_room() {
    every_call_fails(libc::ENOSPC, true);
}

fn small() -> (Arc<Memory>, Delta) {
    let storage = Arc::new(Memory::new(Vec::new()));
    let new = NewDelta { size: 1 << 20, backing: None };
    Delta::create_on(&*storage, &new, Shape::default()).unwrap();
    let delta = Delta::open_on(storage.clone(), "delta", None, None).unwrap();
    (storage, delta)
}

#[test]
fn a_failed_sync_ends_all_writing() {
    let (storage, delta) = small();
    delta.write_at(0, &[1; 4096]).unwrap();
    storage.0.lock().unwrap().plan =
        Some(Box::new(|_, call| (call == Call::Sync).then_some(libc::EIO)));
    assert_eq!(delta.flush().unwrap_err().kind(), Kind::Io);
    storage.0.lock().unwrap().plan = None;
    assert_eq!(delta.flush().unwrap_err().kind(), Kind::Io);
    assert_eq!(delta.write_at(0, &[1]).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(delta.write_zeroes(0, 1).unwrap_err().kind(), Kind::ReadOnly);
    assert_eq!(delta.close().unwrap_err().kind(), Kind::Io);
    let mut buf = [0];
    delta.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [1]);
}

#[test]
fn a_write_without_room_fails_alone() {
    let (storage, delta) = small();
    delta.write_at(0, &[1; 4096]).unwrap();
    storage.0.lock().unwrap().plan =
        Some(Box::new(|_, call| (call == Call::Write).then_some(libc::ENOSPC)));
    assert_eq!(delta.write_at(500_000, &[2; 4096]).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(delta.flush().unwrap_err().kind(), Kind::NoSpace);
    storage.0.lock().unwrap().plan = None;
    delta.write_at(500_000, &[3; 4096]).unwrap();
    delta.flush().unwrap();
    delta.close().unwrap();
    let delta = Delta::open_on(storage, "delta", None, None).unwrap();
    let mut buf = [0; 2];
    delta.read_at(500_000, &mut buf).unwrap();
    assert_eq!(buf, [3; 2]);
}

#[test]
fn what_is_discarded_is_given_back() {
    let (storage, delta) = small();
    // With a first byte the tables have their place.
    delta.write_at(0, &[1]).unwrap();
    delta.flush().unwrap();
    let empty = storage.len().unwrap();
    delta.write_at(0, &vec![1; 1 << 20]).unwrap();
    delta.flush().unwrap();
    delta.write_zeroes(0, 1 << 20).unwrap();
    delta.flush().unwrap();
    delta.write_at(0, &vec![2; 1 << 20]).unwrap();
    delta.flush().unwrap();
    assert!(storage.len().unwrap() <= empty + (1 << 20), "free clusters are used again");
    delta.write_zeroes(0, 1 << 20).unwrap();
    delta.close().unwrap();
    assert!(storage.len().unwrap() <= empty, "the tail is given back");
}

#[test]
fn discarding_what_is_not_there_takes_no_room() {
    let storage = Arc::new(Memory::new(Vec::new()));
    let new = NewDelta { size: 64 << 40, backing: None };
    Delta::create_on(&*storage, &new, Shape::default()).unwrap();
    let len = storage.len().unwrap();
    let delta = Delta::open_on(storage.clone(), "delta", None, None).unwrap();
    delta.write_zeroes(0, 64 << 40).unwrap();
    delta.flush().unwrap();
    assert_eq!(storage.len().unwrap(), len);
    let extent = delta.extent_at(5).unwrap();
    assert!(extent.hole && extent.len > 1 << 29);
}
