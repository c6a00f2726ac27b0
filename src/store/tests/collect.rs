//! Collecting, beside readers and writers, and with an end at every point.

use std::time::{Duration, SystemTime};

use super::damage::files;
use super::watched::{self, Watched};
use super::*;
use crate::store::objects::{Object, Objects as _, Sort};
use crate::store::{Collect, Collected};

/// Removes at once what nothing needs.
const NOW: Collect = Collect { grace: Duration::ZERO, unused: 10, dry_run: false };

fn collect(store: &Store) -> Collected {
    store.collect(&NOW, &|| {}).unwrap()
}

/// Blocks of noise, one for each seed; 0 is zeros.
fn disk(seeds: &[u64]) -> Vec<u8> {
    let block = |&seed: &u64| if seed == 0 { vec![0; BLOCK] } else { noise(seed, BLOCK) };
    seeds.iter().flat_map(block).collect()
}

fn holds(store: &Arc<Store>, snapshot: &Snapshot, seeds: &[u64]) {
    assert!(read(store, snapshot).unwrap() == disk(seeds), "{:?}", snapshot.record.time);
}

fn count(place: &Place, sort: Sort) -> usize {
    Folder::new(&place.path()).list(sort).unwrap().len()
}

#[test]
fn as_in_a_cloud() {
    // Blocks A, B, C, D; then B and C are written; then B again.
    let states: [&[u64]; 3] = [&[1, 2, 3, 4], &[1, 12, 13, 4], &[1, 22, 13, 4]];
    for removed in 0..8_usize {
        let place = Place::new();
        let mut made: Vec<Snapshot> = Vec::new();
        for (second, seeds) in states.iter().enumerate() {
            made.push(place.create("web", second as i64, &disk(seeds), made.last()));
        }
        let is_removed = |number: usize| removed >> number & 1 == 1;
        for (number, snapshot) in made.iter().enumerate().filter(|(number, _)| is_removed(*number))
        {
            place.store.remove(snapshot.id).unwrap();
            let _ = number;
            collect(&place.again().unwrap());
        }
        // The one that has been open all the time, and one that comes now.
        for store in [Arc::clone(&place.store), place.again().unwrap()] {
            for (number, snapshot) in
                made.iter().enumerate().filter(|(number, _)| !is_removed(*number))
            {
                holds(&store, snapshot, states[number]);
            }
        }
        let depth = crate::store::Depth::Data;
        assert_eq!(place.again().unwrap().check(depth, &|| {}).unwrap().problems, []);
    }
}

#[test]
fn all_of_the_room_comes_back() {
    let place = Place::new();
    let made = place.create("web", 1, &disk(&[1, 2, 3]), None);
    place.store.remove(made.id).unwrap();
    let expected = Collected { removed_packs: 1, ..Collected::default() };
    let done = collect(&place.store);
    assert!(done.removed_bytes > 3 * BLOCK as u64);
    assert_eq!(Collected { removed_bytes: 0, waiting_until: None, ..done }, expected);
    for sort in Sort::ALL {
        assert_eq!(count(&place, sort), 0, "{sort:?}");
    }
    // And it can be used as before.
    let made = place.create("web", 2, &disk(&[1, 2, 3]), None);
    assert_eq!(made.record.disks[0].new_blocks, 3);
    holds(&place.again().unwrap(), &made, &[1, 2, 3]);
}

#[test]
fn packs_of_little_use_are_written_anew() {
    let place = Place::new();
    let seeds: Vec<u64> = (1..=200).collect();
    let all = place.create("web", 1, &disk(&seeds), None);
    let few = place.create("web", 2, &disk(&seeds[..20]), Some(&all));
    place.store.remove(all.id).unwrap();
    let open = place.again().unwrap();
    let dry = Collect { dry_run: true, ..NOW };
    let told = place.store.collect(&dry, &|| {}).unwrap();
    assert_eq!((told.rewritten_packs, told.removed_packs), (1, 0));
    let done = collect(&place.store);
    assert_eq!((done.rewritten_packs, done.waiting_packs), (1, 0));
    let left = place.store.usage().unwrap().pack_bytes;
    assert!(left < 23 * BLOCK as u64, "{left} bytes are left");
    // Whoever opened it before finds what has moved.
    holds(&open, &few, &seeds[..20]);
    holds(&place.again().unwrap(), &few, &seeds[..20]);
    // Nothing is left to do.
    let again = collect(&place.store);
    assert_eq!((again.rewritten_packs, again.removed_packs), (0, 0));
}

#[test]
fn what_was_removed_stays_readable_for_a_while() {
    let place = Place::new();
    let made = place.create("web", 1, &disk(&[1, 2]), None);
    place.store.remove(made.id).unwrap();
    let open = place.again().unwrap();
    let hour = Collect { grace: Duration::from_secs(3600), ..NOW };
    let done = place.store.collect(&hour, &|| {}).unwrap();
    assert_eq!((done.removed_packs, done.waiting_packs), (0, 1));
    assert!(done.waiting_until.is_some());
    holds(&open, &made, &[1, 2]);
    // What is to go is not relied on.
    let other = place.create("db", 2, &disk(&[1, 3]), None);
    assert_eq!(other.record.disks[0].new_blocks, 2);
    let condemned = Folder::new(&place.path()).list(Sort::Condemned).unwrap();
    let file = place.path().join(Object::Condemned(condemned[0].id).to_string());
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(3601)).unwrap();
    let done = place.store.collect(&hour, &|| {}).unwrap();
    assert_eq!((done.removed_packs, done.waiting_packs), (1, 0));
    holds(&place.again().unwrap(), &other, &[1, 3]);
    assert!(read(&place.again().unwrap(), &made).is_err());
}

/// A store with a snapshot that was removed, and one that shares blocks with it.
fn half_removed() -> (Place, Snapshot) {
    let place = Place::quick();
    let gone = place.create("web", 1, &disk(&[1, 2, 3, 4, 5, 6, 7, 8]), None);
    let kept = place.create("db", 2, &disk(&[1, 9]), None);
    place.store.remove(gone.id).unwrap();
    (place, kept)
}

#[test]
fn a_collection_at_any_moment_of_a_writer() {
    let mut at = 0;
    loop {
        let (place, kept) = half_removed();
        let watched = Watched::new(&place.path());
        let path = place.path();
        let watched = Arc::new(watched.with(at, move || {
            let store =
                Store::open(Arc::new(Folder::new(&path)), &Cache::new(0), &Keyring::default())
                    .unwrap();
            // Another one may just be merging indexes.
            drop(store.collect(&NOW, &|| {}));
            drop(store.collect(&NOW, &|| {}));
        }));
        let seeds = [4, 3, 2, 10, 1];
        let store = watched::open(&watched).unwrap();
        let made =
            store.create(new("web", 3, &disk(&seeds), Some(&kept)), &Progress::default()).unwrap();
        for _ in 0..2 {
            for store in [&store, &place.again().unwrap()] {
                holds(store, &made, &seeds);
                holds(store, &kept, &[1, 9]);
            }
            collect(&place.again().unwrap());
        }
        if at > watched.done() {
            break;
        }
        at += 1;
    }
    assert!(at > 20, "only {at} operations");
}

#[test]
fn a_writer_at_any_moment_of_a_collection() {
    a_writer_of(&[4, 3, 2, 10, 1]);
    // What is just being removed comes again.
    a_writer_of(&[1, 2, 3, 4, 5, 6, 7, 8]);
}

fn a_writer_of(seeds: &'static [u64]) {
    let mut at = 0;
    loop {
        let (place, kept) = half_removed();
        let path = place.path();
        let parent = kept.clone();
        let made = Arc::new(parking_lot::Mutex::new(None));
        let makes = Arc::clone(&made);
        let watched = Arc::new(Watched::new(&place.path()).with(at, move || {
            let store =
                Store::open(Arc::new(Folder::new(&path)), &Cache::new(0), &Keyring::default())
                    .unwrap();
            let new = new("web", 3, &disk(seeds), Some(&parent));
            *makes.lock() = Some(store.create(new, &Progress::default()).unwrap());
        }));
        watched::open(&watched).unwrap().collect(&NOW, &|| {}).unwrap();
        let Some(made) = made.lock().take() else { break };
        for _ in 0..2 {
            holds(&place.again().unwrap(), &made, seeds);
            holds(&place.again().unwrap(), &kept, &[1, 9]);
            collect(&place.again().unwrap());
        }
        at += 1;
    }
    assert!(at > 20, "only {at} operations");
}

/// A pack is condemned; a writer that began before makes a snapshot that needs it; one that began after compares with that
/// snapshot; and at each moment of it the snapshot is removed, and all is collected.
#[test]
fn what_a_writer_compares_with_stays() {
    let seeds: &[u64] = &[1, 2, 3, 4];
    let mut hits = 0;
    for first in 8..14 {
        for at in 0.. {
            let place = Place::quick();
            let gone = place.create("web", 1, &disk(seeds), None);
            place.store.remove(gone.id).unwrap();
            let collecting = place.again().unwrap();
            let watched = Watched::new(&place.path()).with(first, move || {
                drop(collecting.collect(&NOW, &|| {}));
            });
            let store = watched::open(&Arc::new(watched)).unwrap();
            let new = |second, parent| new("web", second, &disk(seeds), parent);
            let parent = store.create(new(2, None), &Progress::default()).unwrap();
            let condemned = files(&place.path().join("condemned"));
            // It was before this moment.
            let then = SystemTime::now() - Duration::from_secs(60);
            for file in &condemned {
                std::fs::File::open(file).unwrap().set_modified(then).unwrap();
            }
            let (collecting, id) = (place.again().unwrap(), parent.id);
            let watched = Arc::new(Watched::new(&place.path()).with(at, move || {
                collecting.remove(id).unwrap();
                drop(collecting.collect(&NOW, &|| {}));
                drop(collecting.collect(&NOW, &|| {}));
            }));
            let store = watched::open(&watched).unwrap();
            let made = store.create(new(3, Some(&parent)), &Progress::default()).unwrap();
            holds(&place.again().unwrap(), &made, seeds);
            hits += usize::from(!condemned.is_empty());
            if at > watched.done() {
                break;
            }
        }
    }
    assert!(hits > 15, "{hits} times something was condemned");
}

#[test]
fn an_end_at_any_moment_of_a_collection() {
    let mut at = 0;
    loop {
        let (place, kept) = half_removed();
        let watched = Arc::new(Watched::new(&place.path()).dying_at(at));
        let ended = watched::open(&watched).and_then(|store| store.collect(&NOW, &|| {})).is_err();
        holds(&place.again().unwrap(), &kept, &[1, 9]);
        // Its lease is that of this process, which goes on; of one that has ended it would be seen.
        for lease in Folder::new(&place.path()).list(Sort::Leases).unwrap() {
            Folder::new(&place.path()).remove(Object::Lease(lease.id)).unwrap();
        }
        collect(&place.again().unwrap());
        let left = collect(&place.again().unwrap());
        holds(&place.again().unwrap(), &kept, &[1, 9]);
        assert_eq!((left.waiting_packs, left.removed_packs), (0, 0), "ended at {at}");
        let pack_bytes = place.again().unwrap().usage().unwrap().pack_bytes;
        assert!(pack_bytes < 3 * BLOCK as u64 + 1000, "ended at {at}: {pack_bytes}");
        if !ended {
            break;
        }
        at += 1;
    }
    assert!(at > 20, "only {at} operations");
}

#[test]
fn an_end_at_any_moment_of_a_writer() {
    let mut at = 0;
    loop {
        let (place, kept) = half_removed();
        let watched = Arc::new(Watched::new(&place.path()).dying_at(at));
        let seeds = [4, 3, 2, 10, 1];
        let new = new("web", 3, &disk(&seeds), Some(&kept));
        let made =
            watched::open(&watched).and_then(|store| store.create(new, &Progress::default()));
        // It is there if its maker was told so; if not, all of it is, or nothing.
        for snapshot in place.again().unwrap().snapshots().unwrap() {
            let expected = if snapshot.id == kept.id { &[1, 9][..] } else { &seeds };
            holds(&place.again().unwrap(), &snapshot, expected);
        }
        if let Ok(made) = &made {
            holds(&place.again().unwrap(), made, &seeds);
        }
        if watched.done() < at {
            break;
        }
        at += 1;
    }
    assert!(at > 20, "only {at} operations");
}

#[test]
fn a_lost_block_stops_it() {
    let place = Place::new();
    let made = place.create("web", 1, &disk(&[1, 2]), None);
    place.create("db", 2, &disk(&[3]), None);
    let packs = Folder::new(&place.path()).list(Sort::Packs).unwrap();
    let lost = packs.iter().max_by_key(|pack| pack.len).unwrap();
    Folder::new(&place.path()).remove(Object::Pack(lost.id)).unwrap();
    let error = place.store.collect(&NOW, &|| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains(&lost.id.to_string()), "{error}");
    assert_eq!(count(&place, Sort::Packs), 1);
    // Once what needs it is removed, there is nothing in the way.
    place.store.remove(made.id).unwrap();
    collect(&place.store);
}

#[test]
fn indexes_stay_few() {
    let place = Place::new();
    let mut made = Vec::new();
    for (second, seed) in (1..=100).zip(2..) {
        made.push(place.create("web", second, &disk(&[1, seed]), None));
        let indexes = count(&place, Sort::Indexes);
        assert!(indexes <= 16, "{indexes} after {second}");
    }
    let store = place.again().unwrap();
    for (snapshot, second) in made.iter().zip(1_u64..) {
        holds(&store, snapshot, &[1, second + 1]);
    }
    // Many small packs are made into fewer.
    let packs = count(&place, Sort::Packs);
    collect(&place.store);
    assert!(packs == 100 && count(&place, Sort::Packs) == 1);
    for (snapshot, second) in made.iter().zip(1_u64..) {
        holds(&store, snapshot, &[1, second + 1]);
    }
}
