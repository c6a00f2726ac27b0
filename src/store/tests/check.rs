//! What `check` says of a damaged store, and what `repair` brings back.

use std::fs;

use super::super::{Checked, Depth, SigningKey};
use super::damage::{files, filled};
use super::*;

fn check(place: &Place, depth: Depth) -> Checked {
    place.again().unwrap().check(depth, &|| {}).unwrap()
}

#[test]
fn a_sound_store_has_no_problems() {
    Place::both().into_iter().for_each(has_no_problems);
}

fn has_no_problems(place: Place) {
    let (place, _) = filled(place);
    let checked = check(&place, Depth::Data);
    assert_eq!((checked.snapshots, checked.packs, checked.blocks), (2, 2, 4));
    assert_eq!(checked.problems, []);
}

#[test]
fn every_flipped_bit_of_a_pack_is_found_and_every_lost_block_has_its_snapshots() {
    Place::both().into_iter().for_each(finds_every_flipped_bit_of_a_pack);
}

fn finds_every_flipped_bit_of_a_pack(place: Place) {
    let (place, disks) = filled(place);
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
    Place::both().into_iter().for_each(finds_missing_packs);
}

fn finds_missing_packs(place: Place) {
    let (place, _) = filled(place);
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
fn damaged_keys_and_signatures_are_found() {
    let (place, _) = filled(Place::encrypted());
    place.store.add_key(&key_file(2), "").unwrap();
    let (secret, _) = SigningKey::generate().unwrap();
    let snapshot = place.store.snapshots().unwrap()[0].id;
    let key = SigningKey::from_pem(secret.as_bytes()).unwrap();
    place.store.sign(snapshot, &key).unwrap();
    assert_eq!(check(&place, Depth::Structure).problems, []);
    let spare = place.again().unwrap().keys().unwrap().into_iter().find(|key| !key.used).unwrap();
    let signature = files(&place.path().join("signatures")).remove(0);
    for path in [place.path().join(format!("keys/{}", spare.id)), signature] {
        let bytes = fs::read(&path).unwrap();
        let mut bad = bytes.clone();
        bad[bytes.len() / 2] ^= 1;
        fs::write(&path, bad).unwrap();
        let problems = check(&place, Depth::Structure).problems;
        let name = path.strip_prefix(place.path()).unwrap().display().to_string();
        assert_eq!(problems.iter().map(|it| it.object.as_str()).collect::<Vec<_>>(), [name]);
        fs::write(&path, bytes).unwrap();
    }
}

#[test]
fn indexes_are_made_anew_out_of_packs() {
    Place::both().into_iter().for_each(makes_indexes_anew);
}

fn makes_indexes_anew(place: Place) {
    let (place, disks) = filled(place);
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
        let repaired = store.repair(Depth::Structure, &|| {}).unwrap();
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
