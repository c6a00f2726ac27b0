//! Attempts that were interrupted, and those that go on.

use std::time::{Duration, SystemTime};

use super::super::Collect;
use super::super::objects::{Objects, Sort};
use super::damage::files;
use super::watched::{self, Watched};
use super::*;

/// Bytes that a page of level 0 covers.
const LEAF: u64 = 1024 * BLOCK as u64;

/// An attempt at snapshots of memory: of that it is said that it did not change.
fn going_on(series: &str, disk: &[u8]) -> NewSnapshot {
    let reading = Reading { resume: true, set_down: Duration::ZERO, ..Reading::default() };
    NewSnapshot { reading, ..new(series, 1, disk, None) }
}

/// An attempt that ends at `at`.
fn broken_off(place: &Place, disk: &[u8], at: u64) {
    let mut attempt = going_on("web", disk);
    attempt.disks[0].source = failing_at(at, disk);
    let error = place.store.create(attempt, &Progress::default()).unwrap_err();
    assert!(error.to_string().contains("a bad sector"), "{error}");
}

fn drafts(place: &Place) -> usize {
    Folder::new(&place.path()).list(Sort::Drafts).unwrap().len()
}

/// A snapshot of `disk`, and how many bytes an attempt before had done, and were read.
fn made(place: &Place, new: NewSnapshot, disk: &[u8]) -> (u64, u64) {
    let store = place.again().unwrap();
    let progress = Progress::default();
    let snapshot = store.create(new, &progress).unwrap();
    assert!(read(&store, &snapshot).unwrap() == disk);
    let blocks = disk.chunks(BLOCK).filter(|block| block.iter().any(|&byte| byte != 0)).count();
    assert_eq!(snapshot.record.disks[0].blocks, blocks as u64);
    let count = |number: &std::sync::atomic::AtomicU64| number.load(Ordering::Relaxed);
    assert_eq!(count(&progress.done), disk.len() as u64);
    (count(&progress.resumed), count(&progress.read))
}

/// Three pages and a half, with holes.
fn sparse() -> Vec<u8> {
    let mut disk = vec![0; (LEAF * 7 / 2) as usize];
    for (seed, at) in [(1, 0), (2, LEAF - 70_000), (3, 2 * LEAF), (4, 3 * LEAF + 5000)] {
        let at = at as usize;
        disk[at..at + 200_000].copy_from_slice(&noise(seed, 200_000));
    }
    disk
}

#[test]
fn what_was_finished_is_not_read_again() {
    for place in Place::both() {
        let disk = sparse();
        broken_off(&place, &disk, 3 * LEAF);
        assert_eq!(drafts(&place), 1);
        // Nobody has it collected.
        let grace = Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        place.store.collect(&grace, &|| ()).unwrap();
        let (resumed, read) = made(&place, going_on("web", &disk), &disk);
        assert_eq!((resumed, read), (3 * LEAF, LEAF / 2));
        assert_eq!(drafts(&place), 0);
        // As if it had been made at once.
        let whole = Place::with(place.secret.clone());
        let once = whole.create("web", 1, &disk, None).record.disks[0].clone();
        let twice = place.store.snapshots().unwrap()[0].record.disks[0].clone();
        assert_eq!(once.new_blocks, twice.new_blocks);
        if place.secret.is_none() {
            assert_eq!((once.root, once.blocks), (twice.root, twice.blocks));
        }
    }
}

#[test]
fn what_may_have_changed_is_read() {
    let disk = sparse();
    let other_name = |new: &mut NewSnapshot| new.disks[0].name = "other".to_owned();
    let shorter = |new: &mut NewSnapshot| {
        let disk = sparse();
        new.disks[0].source =
            DiskSource::Image(Arc::new(MemorySource::new(disk[..disk.len() - 1].to_vec())));
    };
    let changes: [&dyn Fn(&mut NewSnapshot); 6] = [
        &|new| new.reading.resume = false,
        &|new| (new.reading.all, new.reading.resume) = (true, false),
        &|new| new.source = "another".to_owned(),
        &|new| new.host = "there".to_owned(),
        &|new| new.series = "other".to_owned(),
        &other_name,
    ];
    for change in changes {
        let place = Place::quick();
        broken_off(&place, &disk, 3 * LEAF);
        let mut new = going_on("web", &disk);
        change(&mut new);
        assert_eq!(made(&place, new, &disk), (0, disk.len() as u64));
    }
    let place = Place::quick();
    broken_off(&place, &disk, 3 * LEAF);
    let mut new = going_on("web", &disk);
    shorter(&mut new);
    assert_eq!(made(&place, new, &disk[..disk.len() - 1]).0, 0);
}

#[test]
fn a_damaged_draft_is_no_draft() {
    let disk = sparse();
    for place in Place::both() {
        broken_off(&place, &disk, 3 * LEAF);
        let draft = files(&place.path().join("drafts")).remove(0);
        let mut bytes = std::fs::read(&draft).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&draft, &bytes).unwrap();
        assert_eq!(made(&place, going_on("web", &disk), &disk).0, 0);
    }
}

#[test]
fn one_that_nobody_goes_on_with_ends() {
    let place = Place::new();
    broken_off(&place, &sparse(), 3 * LEAF);
    let collect = || {
        let grace = Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        place.again().unwrap().collect(&grace, &|| ()).unwrap();
        (drafts(&place), place.again().unwrap().usage().unwrap().packs)
    };
    assert!(matches!(collect(), (1, 1..)));
    let draft = files(&place.path().join("drafts")).remove(0);
    let days = |days: u64| SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
    let set = |at| std::fs::File::open(&draft).unwrap().set_modified(at).unwrap();
    set(days(6));
    assert!(matches!(collect(), (1, 1..)));
    set(days(8));
    assert_eq!(collect(), (0, 0));
}

#[test]
fn disks_that_were_finished_stay_so() {
    let place = Place::new();
    let disk = sparse();
    let both = |second: DiskSource| {
        let mut new = going_on("web", &disk);
        new.disks.push(NewDisk { name: "data".to_owned(), source: second, layers: vec![] });
        new
    };
    let attempt = both(failing_at(LEAF, &disk));
    place.store.create(attempt, &Progress::default()).unwrap_err();
    let progress = Progress::default();
    let whole = DiskSource::Image(Arc::new(MemorySource::new(disk.clone())));
    let snapshot = place.again().unwrap().create(both(whole), &progress).unwrap();
    assert_eq!(progress.resumed.load(Ordering::Relaxed), disk.len() as u64 + LEAF);
    for number in 0..2 {
        let mut one = snapshot.clone();
        one.record.disks.swap(0, number);
        assert!(read(&place.store, &one).unwrap() == disk);
    }
}

/// Ends at each operation in turn: whatever is there then, going on makes the right snapshot, and nothing is left.
#[test]
fn an_end_at_any_moment() {
    let disk = sparse();
    let mut ended = 0;
    for at in 0.. {
        let place = Place::quick();
        let watched = Arc::new(Watched::new(&place.path()).dying_at(at));
        let attempt = watched::open(&watched).and_then(|store| {
            let mut attempt = going_on("web", &disk);
            attempt.disks[0].source = failing_at(3 * LEAF, &disk);
            store.create(attempt, &Progress::default())
        });
        let error = attempt.unwrap_err();
        made(&place, going_on("web", &disk), &disk);
        let store = place.again().unwrap();
        let grace = Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        store.collect(&grace, &|| ()).unwrap();
        let snapshot = store.snapshots().unwrap().remove(0);
        assert!(read(&store, &snapshot).unwrap() == disk, "ended at {at}");
        ended = at;
        if error.to_string().contains("a bad sector") {
            break;
        }
    }
    assert!(ended > 10, "{ended} operations");
}
