//! Whatever byte is not what it was: an error that names the object, or the right bytes.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { dirs.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// A store with two snapshots, and what they hold.
pub(super) fn filled(place: Place) -> (Place, Vec<Vec<u8>>) {
    let mut disk = vec![0; 6 * BLOCK];
    disk[BLOCK..2 * BLOCK + 300].copy_from_slice(&noise(1, BLOCK + 300));
    disk[4 * BLOCK..5 * BLOCK].fill(3);
    let first = place.create("web", 1, &disk, None);
    let mut changed = disk.clone();
    changed[5 * BLOCK..][..9].fill(1);
    place.create("web", 2, &changed, Some(&first));
    (place, vec![disk, changed])
}

/// What all snapshots hold, in the order of their times.
fn read_all(place: &Place) -> Result<Vec<Vec<u8>>> {
    let store = place.again()?;
    store.snapshots()?.iter().map(|snapshot| read(&store, snapshot)).collect()
}

#[test]
fn no_flipped_bit_gives_wrong_bytes() {
    // In an encrypted store also those of the header of an index or a pack that are harmless are few.
    Place::both().into_iter().for_each(gives_no_wrong_bytes);
}

fn gives_no_wrong_bytes(place: Place) {
    let (place, disks) = filled(place);
    let (mut found, mut harmless) = (0, 0);
    for path in files(&place.path()) {
        let bytes = fs::read(&path).unwrap();
        // Packs hold noise, of which a part will do.
        let step = if bytes.len() > 4096 { 37 } else { 1 };
        for at in (0..bytes.len()).step_by(step) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            match read_all(&place) {
                Err(_) => found += 1,
                Ok(read) => {
                    assert!(read == disks, "byte {at} of {}", path.display());
                    harmless += 1;
                }
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert!(read_all(&place).unwrap() == disks);
    // Harmless are headers of packs and blobs, and what fills up an index.
    assert!(found > 1000 && harmless < found, "{found} found, {harmless} harmless");
}

#[test]
fn each_missing_object_is_told_by_name() {
    Place::both().into_iter().for_each(tells_each_missing_object);
}

fn tells_each_missing_object(place: Place) {
    let (place, _) = filled(place);
    for path in files(&place.path()) {
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let name = path.strip_prefix(place.path()).unwrap().display().to_string();
        match read_all(&place) {
            // Without a record there is no snapshot.
            Ok(read) => assert!(name.starts_with("snapshots/") && read.len() == 1, "{name}"),
            Err(error) => {
                let told = error.to_string();
                let is_key = name.starts_with("keys/") && told.contains("opens none of its keys");
                let named = told.contains(&name) || told.contains("is in no index");
                assert!(named || is_key, "{name}: {told}");
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn cut_objects_are_refused() {
    Place::both().into_iter().for_each(refuses_cut_objects);
}

fn refuses_cut_objects(place: Place) {
    let (place, _) = filled(place);
    for path in files(&place.path()) {
        let bytes = fs::read(&path).unwrap();
        for len in [0, 1, 31, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..len]).unwrap();
            assert!(read_all(&place).is_err(), "{} cut to {len}", path.display());
        }
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn one_place_of_several_is_enough() {
    Place::both().into_iter().for_each(needs_one_place_of_several);
}

fn needs_one_place_of_several(place: Place) {
    let (place, disks) = filled(place);
    let packs = files(&place.path().join("packs"));
    let indexes = files(&place.path().join("index"));
    let kept: Vec<_> = indexes.iter().map(|path| fs::read(path).unwrap()).collect();
    indexes.iter().for_each(|path| fs::remove_file(path).unwrap());
    // Without indexes all is stored anew.
    let store = place.again().unwrap();
    let made = store.create(new("web", 3, &disks[1], None), &Progress::default()).unwrap();
    assert_eq!(made.record.disks[0].new_blocks, 4);
    for (path, bytes) in indexes.iter().zip(kept) {
        fs::write(path, bytes).unwrap();
    }
    for path in &packs {
        let len = fs::metadata(path).unwrap().len();
        fs::write(path, vec![0; len as usize]).unwrap();
    }
    // The first snapshot's map page was in one of those packs only.
    let store = place.again().unwrap();
    let snapshots = store.snapshots().unwrap();
    let good: Vec<bool> = snapshots.iter().map(|it| read(&store, it).is_ok()).collect();
    assert_eq!(good, [false, true, true]);
}
