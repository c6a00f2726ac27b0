//! Disks made equal to snapshots.

use std::fs;
use std::sync::atomic::AtomicBool;

use super::super::Target;
use super::super::record::DiskRecord;
use super::*;
use crate::block::{BlockSink, FileSink};

/// A disk of zeros, of noise, and of what repeats.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 40 * BLOCK + 700];
    disk[BLOCK..3 * BLOCK].copy_from_slice(&noise(1, 2 * BLOCK));
    disk[10 * BLOCK..20 * BLOCK].fill(5);
    disk[40 * BLOCK..].fill(6);
    disk
}

fn roll(store: &Store, disk: &DiskRecord, target: Target<'_>) -> Result<(u64, u64)> {
    let progress = Progress::default();
    store.roll_back(disk, target, &progress, &AtomicBool::new(false))?;
    assert_eq!(progress.done.load(Ordering::Relaxed), disk.size);
    Ok((progress.read.load(Ordering::Relaxed), progress.stored.load(Ordering::Relaxed)))
}

#[test]
fn only_what_differs_is_written() {
    let place = Place::new();
    let wanted = disk();
    let record = place.create("x", 1, &wanted, None).record.disks[0].clone();
    let path = place.dir.path().join("target");
    let mut now = wanted.clone();
    now[2 * BLOCK + 5000] ^= 1;
    now[15 * BLOCK..16 * BLOCK].fill(0);
    now[30 * BLOCK + 4096..30 * BLOCK + 8192].fill(1);
    let behind = vec![7; 3 * BLOCK];
    now.extend(&behind);
    fs::write(&path, &now).unwrap();
    let sink = FileSink::open(&path).unwrap();
    let (_, told) = roll(&place.store, &record, Target::Source(&sink)).unwrap();
    assert!(fs::read(&path).unwrap() == now);
    let (_, written) = roll(&place.store, &record, Target::Sink(&sink)).unwrap();
    assert_eq!((told, written), (4096 + BLOCK as u64 + 4096, told));
    // What is behind the end of the snapshot is nobody's business here.
    assert!(fs::read(&path).unwrap() == [wanted.as_slice(), &behind].concat());
    assert_eq!(roll(&place.store, &record, Target::Sink(&sink)).unwrap().1, 0);

    // A file that is too short is looked at as if zeros followed.
    let empty = MemorySource::new(vec![]);
    let (read, told) = roll(&place.store, &record, Target::Source(&empty)).unwrap();
    assert_eq!(read, 0);
    assert_eq!(told, 12 * BLOCK as u64 + 700);
}

/// What is equal needs no pack; what is lost is told, and what was done by then is found done.
#[test]
fn what_is_equal_is_not_fetched() {
    let place = Place::new();
    let wanted = disk();
    let record = place.create("x", 1, &wanted, None).record.disks[0].clone();
    let path = place.dir.path().join("target");
    fs::write(&path, &wanted).unwrap();
    let sink = FileSink::open(&path).unwrap();
    // The pages of the map stay in the cache of this store.
    assert_eq!(roll(&place.store, &record, Target::Sink(&sink)).unwrap().1, 0);
    for folder in fs::read_dir(place.path().join("packs")).unwrap() {
        for pack in fs::read_dir(folder.unwrap().path()).unwrap() {
            let pack = pack.unwrap().path();
            let len = fs::metadata(&pack).unwrap().len();
            fs::write(&pack, vec![0xee; len as usize]).unwrap();
        }
    }
    assert_eq!(roll(&place.store, &record, Target::Sink(&sink)).unwrap().1, 0);
    sink.write_at(5, &[1]).unwrap();
    assert_eq!(roll(&place.store, &record, Target::Sink(&sink)).unwrap().1, 4096);
    sink.write_at(12 * BLOCK as u64, &[1]).unwrap();
    let error = roll(&place.store, &record, Target::Sink(&sink)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&format!("at byte {}", 12 * BLOCK)), "{error}");
}
