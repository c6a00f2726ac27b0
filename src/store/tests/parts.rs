//! Large indexes are in parts: here of a few entries each.

use std::fs;
use std::time::Duration;

use super::super::id::BlobKind;
use super::super::index::{NewPart, make_of_parts, make_part};
use super::super::objects::Object;
use super::super::pack::{Blob, Encoding};
use super::damage::files;
use super::*;
use crate::store::{Collect, Depth, Id};

const BLOCKS: usize = 90;
const PER_PART: usize = 20;

/// A store with one snapshot, whose index is in parts.
fn in_parts(place: Place) -> (Place, Vec<u8>) {
    let disk = noise(3, BLOCKS * BLOCK);
    place.create("web", 1, &disk, None);
    let store = &place.store;
    let index = Arc::clone(&store.indexes.read()[0]);
    let (mut entries, mut blobs) = (index.entries(1), Vec::new());
    while let Some(found) = entries.next().unwrap() {
        blobs.push((0, found.blob));
    }
    let mut parts = Vec::new();
    for blobs in blobs.chunks(PER_PART) {
        parts.push(put_part(store, blobs));
    }
    let object = make_of_parts(&store.keys, index.packs(), &parts).unwrap();
    store.objects.put(Object::Index(Id::of_object(&object)), &[&object]).unwrap();
    store.objects.remove(Object::Index(index.id())).unwrap();
    store.load_indexes().unwrap();
    (place, disk)
}

fn put_part(store: &Store, blobs: &[(u32, Blob)]) -> NewPart {
    let (object, part) = make_part(&store.keys, blobs).unwrap();
    store.objects.put(Object::Part(part.id()), &[&object]).unwrap();
    part
}

fn is_whole(place: &Place, disk: &[u8]) {
    let store = place.again().unwrap();
    assert_eq!(store.check(Depth::Data, &|| {}).unwrap().problems, []);
    let store = place.again().unwrap();
    assert!(read(&store, &store.snapshots().unwrap()[0]).unwrap() == disk);
}

#[test]
fn they_are_asked_as_one() {
    for (place, disk) in Place::both().map(in_parts) {
        let store = place.again().unwrap();
        let index = Arc::clone(&store.indexes.read()[0]);
        assert_eq!(index.entry_count(), BLOCKS as u64 + 1);
        assert_eq!(index.parts().count(), (BLOCKS + 1).div_ceil(PER_PART));
        for at_once in [1, 2, 64] {
            let (mut entries, mut all) = (index.entries(at_once), Vec::new());
            while let Some(found) = entries.next().unwrap() {
                assert_eq!(index.find(&found.blob.id, found.blob.kind).unwrap(), Some(found));
                all.push(found.blob.id);
            }
            assert!(all.is_sorted() && all.len() == BLOCKS + 1);
        }
        for id in [Id::ZERO, Id([0xff; 32]), Id([0x7f; 32])] {
            assert_eq!(index.find(&id, BlobKind::Block).unwrap(), None);
        }
        is_whole(&place, &disk);
        // What comes is merged with it sooner or later.
        for second in 2..40_u32 {
            place.create("web", second.into(), &noise(second.into(), 3 * BLOCK), None);
        }
        let snapshots = place.again().unwrap().snapshots().unwrap();
        assert!(read(&place.again().unwrap(), &snapshots[0]).unwrap() == disk);
        assert!(place.again().unwrap().indexes.read().len() < 16);
    }
}

#[test]
fn one_that_is_gone_or_damaged_is_told_and_made_anew() {
    for number in 0..(BLOCKS + 1).div_ceil(PER_PART) {
        for (place, disk) in Place::both().map(in_parts) {
            let path = files(&place.path().join("parts")).swap_remove(number);
            match number % 2 {
                0 => fs::remove_file(&path).unwrap(),
                _ => {
                    let mut bytes = fs::read(&path).unwrap();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&path, bytes).unwrap();
                }
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let problems = place.again_damaged().check(Depth::Structure, &|| {}).unwrap().problems;
            let told = problems.iter().any(|problem| problem.what.contains(name));
            assert!(told, "{number}: {problems:?}");
            let repaired = place.again_damaged().repair(Depth::Structure, &|| {}).unwrap();
            assert_eq!((repaired.removed_indexes, repaired.indexed_packs), (1, 1));
            // No index names the others any more.
            assert!(files(&place.path().join("parts")).is_empty());
            is_whole(&place, &disk);
        }
    }
}

#[test]
fn another_in_its_place_is_refused() {
    for (place, _) in Place::both().map(in_parts) {
        let paths = files(&place.path().join("parts"));
        fs::copy(&paths[0], &paths[1]).unwrap();
        let store = place.again().unwrap();
        let index = Arc::clone(&store.indexes.read()[0]);
        let mut entries = index.entries(1);
        let error = loop {
            match entries.next() {
                Ok(found) => assert!(found.is_some()),
                Err(error) => break error,
            }
        };
        let name = paths[1].file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}

#[test]
fn what_a_merge_left_that_never_ended_goes_when_somebody_collects() {
    let (place, disk) = in_parts(Place::new());
    let before = files(&place.path().join("parts"));
    let lost = Blob {
        id: Id([7; 32]),
        kind: BlobKind::Block,
        at: 0,
        stored: 9,
        plain: 9,
        encoding: Encoding::Plain,
    };
    put_part(&place.store, &[(0, lost)]);
    assert_eq!(files(&place.path().join("parts")).len(), before.len() + 1);
    is_whole(&place, &disk);
    let how = Collect { grace: Duration::ZERO, unused: 10, dry_run: false };
    place.again().unwrap().collect(&how, &|| {}).unwrap();
    assert_eq!(files(&place.path().join("parts")), before);
    is_whole(&place, &disk);
}
