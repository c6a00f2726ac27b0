//! What `check` says of a damaged store, and what `repair` brings back.

use std::fs;

use super::super::{Checked, Depth};
use super::damage::{files, filled};
use super::*;

fn check(place: &Place, depth: Depth) -> Checked {
    place.again().unwrap().check(depth, &|| {}).unwrap()
}

#[test]
fn a_sound_store_has_no_problems() {
    let (place, _) = filled();
    let checked = check(&place, Depth::Data);
    assert_eq!((checked.snapshots, checked.packs, checked.blocks), (2, 2, 4));
    assert_eq!(checked.problems, []);
}

#[test]
fn every_flipped_bit_of_a_pack_is_found_and_every_lost_block_has_its_snapshots() {
    let (place, disks) = filled();
    for path in files(&place.path().join("packs")) {
        let bytes = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        for at in (0..bytes.len()).step_by(501) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            let checked = check(&place, Depth::Data);
            assert!(
                checked.problems.iter().any(|it| it.object.ends_with(&name)),
                "byte {at}: {checked:?}"
            );
            let store = place.again().unwrap();
            let whole = store.snapshots().unwrap();
            for (snapshot, disk) in whole.iter().zip(&disks) {
                let said = checked.problems.iter().any(|it| it.snapshots.contains(&snapshot.id));
                match read(&store, snapshot) {
                    Ok(read) => assert!(read == *disk && !said, "byte {at}"),
                    Err(_) => assert!(said, "byte {at}"),
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn missing_packs_are_found_without_reading_any() {
    let (place, _) = filled();
    let packs = files(&place.path().join("packs"));
    let bytes = fs::read(&packs[0]).unwrap();
    for cut in [None, Some(bytes.len() - 1)] {
        match cut {
            None => fs::remove_file(&packs[0]).unwrap(),
            Some(len) => fs::write(&packs[0], &bytes[..len]).unwrap(),
        }
        let problems = check(&place, Depth::Structure).problems;
        assert!(problems.iter().any(|it| it.object.starts_with("packs/")), "{problems:?}");
        assert!(problems.iter().any(|it| !it.snapshots.is_empty()), "{problems:?}");
    }
}

#[test]
fn indexes_are_made_anew_out_of_packs() {
    let (place, disks) = filled();
    let indexes = files(&place.path().join("index"));
    for damage in 0..3 {
        let kept: Vec<_> = indexes.iter().map(|path| fs::read(path).unwrap()).collect();
        for (path, bytes) in indexes.iter().zip(&kept) {
            match damage {
                0 => fs::remove_file(path).unwrap(),
                1 => fs::write(path, &bytes[..bytes.len() / 2]).unwrap(),
                _ => {
                    let mut bad = bytes.clone();
                    bad[4096] ^= 1;
                    fs::write(path, bad).unwrap();
                }
            }
        }
        // A damaged index keeps a store from being opened, but not from being repaired.
        let store = place.again_damaged();
        let repaired = store.repair(&|| {}).unwrap();
        assert_eq!(repaired.indexed_packs, 2, "{damage}");
        assert_eq!(repaired.removed_indexes, if damage == 0 { 0 } else { 2 });
        let again = place.again().unwrap();
        for (snapshot, disk) in again.snapshots().unwrap().iter().zip(&disks) {
            assert!(read(&again, snapshot).unwrap() == *disk);
        }
        assert_eq!(check(&place, Depth::Data).problems, []);
        for path in files(&place.path().join("index")) {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in indexes.iter().zip(&kept) {
            fs::write(path, bytes).unwrap();
        }
    }
}
