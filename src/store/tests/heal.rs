//! Damaged packs: what is whole of them is kept, what is lost comes back with the next snapshot that has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::super::cause::Cause;
use super::super::id::BlobKind;
use super::super::index;
use super::super::objects::{Object, Objects as _};
use super::super::{Checked, Collect, Depth, Id, LostRange};
use super::damage::files;
use super::encryption::{Contents, contents};
use super::watched::{self, Watched};
use super::*;

const NOW: Collect = Collect { grace: Duration::ZERO, unused: 10, dry_run: false };

fn check(place: &Place, depth: Depth) -> Checked {
    place.again().unwrap().check(depth, &|| {}).unwrap()
}

fn repair(place: &Place, depth: Depth) -> super::super::Repaired {
    place.again_damaged().repair(depth, &|| {}).unwrap()
}

/// The ranges that are lost of each disk, in the order of the snapshots' times.
fn lost(checked: &Checked) -> Vec<(i64, Vec<LostRange>)> {
    let lost = checked.problems.iter().filter_map(|problem| problem.lost.as_ref());
    let mut lost: Vec<_> = lost.map(|lost| (lost.time.as_second(), lost.ranges.clone())).collect();
    lost.sort();
    lost
}

fn range(first: usize, blocks: usize) -> LostRange {
    LostRange { offset: (first * BLOCK) as u64, length: (blocks * BLOCK) as u64 }
}

/// Flips a bit of what is stored of the block that holds these bytes; the file of its pack, and what it was.
fn flip(place: &Place, block: &[u8]) -> (PathBuf, Vec<u8>) {
    let id = place.store.block_id(block);
    flip_blob(place, BlobKind::Block, id)
}

fn flip_blob(place: &Place, kind: BlobKind, id: Id) -> (PathBuf, Vec<u8>) {
    flip_of(place, &contents(place), kind, id)
}

/// The same in a store of which it is known what it holds.
fn flip_of(place: &Place, contents: &Contents, kind: BlobKind, id: Id) -> (PathBuf, Vec<u8>) {
    let (packs, blobs, all) = contents;
    let (pack, blob) = blobs.iter().find(|(_, blob)| (blob.kind, blob.id) == (kind, id)).unwrap();
    let path = place.path().join(Object::Pack(packs[*pack as usize].id).to_string());
    let before = all[*pack as usize].clone();
    let mut bad = before.clone();
    bad[blob.at as usize + 3] ^= 4;
    fs::write(&path, bad).unwrap();
    (path, before)
}

/// A pack's id, by its file.
fn id_of(path: &Path) -> Id {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Two snapshots of a disk whose blocks are noise, but for one that changed.
fn two() -> (Vec<u8>, Vec<u8>) {
    let disk = noise(1, 20 * BLOCK);
    let mut changed = disk.clone();
    changed[5 * BLOCK..6 * BLOCK].copy_from_slice(&noise(2, BLOCK));
    (disk, changed)
}

#[test]
fn a_lost_block_comes_back_with_the_next_snapshot() {
    Place::both().iter().for_each(brings_back_a_lost_block);
}

fn brings_back_a_lost_block(place: &Place) {
    let (disk, changed) = two();
    let first = place.create("web", 1, &disk, None);
    let second = place.create("web", 2, &changed, Some(&first));
    let (path, _) = flip(place, &disk[7 * BLOCK..8 * BLOCK]);
    assert_eq!(check(place, Depth::Structure).problems, []);
    let found = check(place, Depth::Data);
    let both = vec![(1, vec![range(7, 1)]), (2, vec![range(7, 1)])];
    assert_eq!(lost(&found), both);
    let name = format!("{}", Object::Pack(id_of(&path)));
    assert!(found.problems.iter().any(|problem| problem.object == name), "{found:?}");
    let told = &found.problems.iter().find(|it| it.snapshots == [second.id]).unwrap().what;
    assert_eq!(
        *told,
        "web of 1970-01-01T00:00:02Z is not whole: 16384 bytes of \"disk\" are lost, at 0x1c000"
    );

    // Nobody knows yet: it is taken for what it was.
    let third = place.again().unwrap();
    let third = third.create(new("web", 3, &changed, Some(&second)), &Progress::default()).unwrap();
    assert_eq!(third.record.disks[0].new_blocks, 0);

    let repaired = repair(place, Depth::Data);
    assert_eq!(repaired.damaged_packs, [id_of(&path)]);
    // Nineteen blocks and the page.
    assert_eq!((repaired.moved, repaired.released), (20, 0));
    let again = repair(place, Depth::Data);
    assert_eq!((again.damaged_packs, again.moved), (vec![id_of(&path)], 0));
    let found = check(place, Depth::Structure);
    assert_eq!((lost(&found).len(), found.problems.len(), found.quarantined), (3, 3, 1));
    assert_eq!(lost(&found)[..2], both);

    let store = place.again().unwrap();
    let fourth = store.create(new("web", 4, &changed, Some(&third)), &Progress::default()).unwrap();
    assert_eq!(fourth.record.disks[0].new_blocks, 1);
    assert_eq!(check(place, Depth::Data).problems, []);
    let is_whole = || {
        let store = place.again().unwrap();
        assert!(read(&store, &first).unwrap() == disk);
        for snapshot in [&second, &third, &fourth] {
            assert!(read(&store, snapshot).unwrap() == changed);
        }
    };
    is_whole();
    assert_eq!(place.again().unwrap().collect(&NOW, &|| {}).unwrap().removed_packs, 1);
    assert!(!path.exists());
    let checked = check(place, Depth::Data);
    assert_eq!((checked.problems, checked.quarantined), (vec![], 0));
    is_whole();
}

#[test]
fn lost_pages_and_packs_come_back_too() {
    Place::both().into_iter().for_each(brings_back_pages_and_packs);
}

fn brings_back_pages_and_packs(place: Place) {
    let (disk, changed) = two();
    let first = place.create("web", 1, &disk, None);
    let second = place.create("web", 2, &changed, Some(&first));
    let packs = files(&place.path().join("packs"));
    let kept: Vec<_> = packs.iter().map(|path| fs::read(path).unwrap()).collect();
    let root = first.record.disks[0].root;
    for damage in 0..4 {
        match damage {
            0 => drop(flip_blob(&place, BlobKind::Page, root)),
            1 => drop(flip_blob(&place, BlobKind::Page, second.record.disks[0].root)),
            2 => packs.iter().for_each(|path| fs::remove_file(path).unwrap()),
            _ => {
                for (path, bytes) in packs.iter().zip(&kept) {
                    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
                }
            }
        }
        let depth = if damage < 2 { Depth::Data } else { Depth::Structure };
        let all: Vec<_> = match damage {
            0 => vec![1],
            1 => vec![2],
            _ => vec![1, 2],
        };
        let found = check(&place, depth);
        let times: Vec<i64> = lost(&found).into_iter().map(|(time, _)| time).collect();
        assert_eq!(times, all, "{damage}: {found:?}");
        if damage < 2 {
            // A page of the map is lost: nobody knows of its blocks, which are all.
            assert_eq!(lost(&found)[0].1, [range(0, 20)]);
        }
        repair(&place, depth);
        // The same as both were.
        let store = place.again().unwrap();
        let make = |second, disk: &[u8], parent: &Snapshot| {
            store.create(new("web", second, disk, Some(parent)), &Progress::default()).unwrap()
        };
        let third = make(3, &changed, &second);
        let fourth = make(4, &disk, &third);
        assert_eq!(check(&place, Depth::Data).problems, [], "{damage}");
        let again = place.again().unwrap();
        assert!(read(&again, &first).unwrap() == disk);
        assert!(read(&again, &second).unwrap() == changed);
        again.collect(&NOW, &|| {}).unwrap();
        assert_eq!(check(&place, Depth::Data).problems, []);
        assert!(read(&place.again().unwrap(), &first).unwrap() == disk);
        // As it was.
        for snapshot in [third, fourth] {
            place.store.remove(snapshot.id).unwrap();
        }
        for dir in ["packs", "index", "condemned"] {
            files(&place.path().join(dir)).iter().for_each(|path| fs::remove_file(path).unwrap());
        }
        for (path, bytes) in packs.iter().zip(&kept) {
            fs::write(path, bytes).unwrap();
        }
        repair(&place, Depth::Structure);
        assert_eq!(check(&place, Depth::Data).problems, []);
    }
}

#[test]
fn a_pack_that_was_put_back_is_trusted_again() {
    let place = Place::new();
    let (disk, _) = two();
    let first = place.create("web", 1, &disk, None);
    let (path, bytes) = flip(&place, &disk[..BLOCK]);
    repair(&place, Depth::Data);
    assert_eq!(lost(&check(&place, Depth::Structure)), [(1, vec![range(0, 1)])]);
    // By somebody who has a copy of it.
    fs::write(&path, bytes).unwrap();
    assert_eq!(check(&place, Depth::Structure).problems, []);
    let repaired = repair(&place, Depth::Structure);
    assert_eq!((repaired.damaged_packs, repaired.released), (vec![], 1));
    assert_eq!(files(&place.path().join("condemned")), Vec::<PathBuf>::new());
    assert!(read(&place.again().unwrap(), &first).unwrap() == disk);
}

#[test]
fn a_repair_that_ends_anywhere_loses_nothing() {
    let (disk, changed) = two();
    let mut ends = 0;
    for at in 0.. {
        let place = Place::quick();
        let first = place.create("web", 1, &disk, None);
        let second = place.create("web", 2, &changed, Some(&first));
        flip(&place, &disk[7 * BLOCK..8 * BLOCK]);
        // An index is lost, too.
        fs::remove_file(&files(&place.path().join("index"))[at % 2]).unwrap();
        let watched = Arc::new(Watched::new(&place.path()).dying_at(at));
        let done = watched::open(&watched).and_then(|store| store.repair(Depth::Data, &|| {}));
        drop(watched);
        if done.is_ok() {
            ends = at;
            break;
        }
        // Its lease is that of this process, which goes on; of one that has ended it would be seen.
        files(&place.path().join("leases")).iter().for_each(|path| fs::remove_file(path).unwrap());
        let repaired = repair(&place, Depth::Data);
        assert_eq!(repaired.damaged_packs.len(), 1, "ended at {at}");
        let found = check(&place, Depth::Data);
        assert_eq!(
            lost(&found),
            [(1, vec![range(7, 1)]), (2, vec![range(7, 1)])],
            "ended at {at}: {found:?}"
        );
        let third = place.again().unwrap();
        third.create(new("web", 3, &changed, Some(&second)), &Progress::default()).unwrap();
        assert_eq!(check(&place, Depth::Data).problems, [], "ended at {at}");
        assert!(read(&place.again().unwrap(), &first).unwrap() == disk);
    }
    assert!(ends > 20, "{ends} operations");
}

#[test]
fn merged_indexes_keep_the_place_that_is_whole() {
    let place = Place::quick();
    let mut disk = noise(1, 24 * BLOCK);
    let mut last: Option<Snapshot> = None;
    // Each block in a pack of its own.
    for block in 0..24_usize {
        let made = &disk[..(block + 1) * BLOCK];
        last = Some(place.create("web", block as i64, made, last.as_ref()));
    }
    let last = last.unwrap();
    let known = contents(&place);
    for block in disk.chunks(BLOCK) {
        flip_of(&place, &known, BlobKind::Block, place.store.block_id(block));
    }
    assert_eq!(repair(&place, Depth::Data).damaged_packs.len(), 24);
    let store = place.again().unwrap();
    let mut parent =
        store.create(new("web", 30, &disk, Some(&last)), &Progress::default()).unwrap();
    assert_eq!(parent.record.disks[0].new_blocks, 24);
    let whole = disk.clone();
    for second in 31..60 {
        disk[..8].copy_from_slice(&i64::to_le_bytes(second));
        parent =
            store.create(new("web", second, &disk, Some(&parent)), &Progress::default()).unwrap();
    }
    assert!(files(&place.path().join("index")).len() < 12);
    assert_eq!(check(&place, Depth::Data).problems, []);
    assert!(read(&place.again().unwrap(), &last).unwrap() == whole);
}

#[test]
fn what_is_lost_keeps_nobody_from_collecting_the_rest() {
    Place::both().iter().for_each(collects_the_rest);
}

fn collects_the_rest(place: &Place) {
    let (disk, _) = two();
    let other = noise(9, 10 * BLOCK);
    let first = place.create("web", 1, &disk, None);
    let second = place.create("db", 2, &other, None);
    place.create("gone", 3, &noise(10, 30 * BLOCK), None);
    // All of another pack, but for the page, which lies elsewhere, too.
    let (packs, blobs, _) = contents(place);
    let (path, _) = flip(place, &disk[..BLOCK]);
    let id = place.store.block_id(&other[..BLOCK]);
    let number = blobs.iter().find(|(_, blob)| blob.id == id).unwrap().0;
    let missing = place.path().join(Object::Pack(packs[number as usize].id).to_string());
    let page = second.record.disks[0].root;
    let mut bytes = vec![0; 10 * 32];
    place.store.read_blob(BlobKind::Page, &page, &mut bytes).unwrap();
    let mut filling = place.store.new_pack().unwrap();
    filling.add(BlobKind::Page, page, super::super::pack::Encoding::Plain, 320, &bytes).unwrap();
    let (pack, bytes, blobs) = filling.finish();
    let told = blobs.into_iter().map(|blob| (0, blob)).collect();
    let told = index::make(&place.store.keys, &[pack], told).unwrap();
    let objects = Folder::new(&place.path());
    objects.put(Object::Pack(pack.id), &[&bytes]).unwrap();
    objects.put(Object::Index(Id::of_object(&told)), &[&told]).unwrap();
    fs::remove_file(missing).unwrap();
    // As long as nobody said that it is known.
    let error = place.again().unwrap().collect(&NOW, &|| {}).unwrap_err();
    assert!(error.to_string().contains("is not there, and is needed"), "{error}");
    assert_eq!(repair(place, Depth::Data).damaged_packs.len(), 2);
    let gone = place.store.snapshots().unwrap().pop().unwrap();
    place.store.remove(gone.id).unwrap();
    for _ in 0..2 {
        place.again().unwrap().collect(&NOW, &|| {}).unwrap();
        let found = check(place, Depth::Data);
        assert_eq!(lost(&found), [(1, vec![range(0, 1)]), (2, vec![range(0, 10)])]);
        assert!(path.exists());
    }
    // With them goes what they needed.
    place.store.remove(first.id).unwrap();
    place.store.remove(second.id).unwrap();
    place.again().unwrap().collect(&NOW, &|| {}).unwrap();
    assert_eq!(files(&place.path().join("packs")), Vec::<PathBuf>::new());
    assert_eq!(files(&place.path().join("condemned")), Vec::<PathBuf>::new());
}

#[test]
fn a_damaged_list_of_condemned_packs_is_told_and_removed() {
    let place = Place::new();
    let (disk, changed) = two();
    let first = place.create("web", 1, &disk, None);
    flip(&place, &disk[..BLOCK]);
    repair(&place, Depth::Data);
    let list = files(&place.path().join("condemned")).remove(0);
    let mut bytes = fs::read(&list).unwrap();
    bytes[40] ^= 1;
    fs::write(&list, bytes).unwrap();
    let found = check(&place, Depth::Structure);
    assert!(found.problems.iter().any(|it| it.object.starts_with("condemned/")), "{found:?}");
    let store = place.again().unwrap();
    let error =
        store.create(new("web", 2, &changed, Some(&first)), &Progress::default()).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::Seal));
    assert!(error.hint().is_some_and(|hint| hint.contains("strata store repair")), "{error:?}");
    // What it may have told of is found again.
    let repaired = repair(&place, Depth::Structure);
    assert_eq!((repaired.removed_lists, repaired.damaged_packs.len()), (1, 1));
    let store = place.again().unwrap();
    store.create(new("web", 2, &disk, Some(&first)), &Progress::default()).unwrap();
    assert_eq!(check(&place, Depth::Data).problems, []);
}

#[test]
fn a_damaged_record_is_told_and_harms_no_other() {
    let place = Place::new();
    let (disk, changed) = two();
    let first = place.create("web", 1, &disk, None);
    let second = place.create("web", 2, &changed, Some(&first));
    let path = place.path().join(Object::Snapshot(first.id).to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let found = check(&place, Depth::Data);
    let told: Vec<_> = found.problems.iter().map(|it| (&it.object, &it.snapshots[..])).collect();
    assert_eq!(told, [(&Object::Snapshot(first.id).to_string(), &[first.id][..])]);
    let store = place.again().unwrap();
    assert!(read(&store, &store.snapshot(second.id).unwrap()).unwrap() == changed);
}
