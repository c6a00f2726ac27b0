//! An encrypted store: what is refused, what can be seen, and what changing keys leaves alone.

use std::collections::BTreeSet;
use std::fs;

use super::super::cause::Cause;
use super::super::id::BlobKind;
use super::super::index::{self, Index};
use super::super::keys::{KeyKind, Keys};
use super::super::objects::{Object, Objects, Sort};
use super::super::pack::{self, Blob, Pack};
use super::super::sealed::Sealed;
use super::super::{Depth, Id};
use super::damage::{files, filled};
use super::*;

/// The cause of the error, which is there.
fn cause<T>(result: Result<T>) -> Cause {
    let Err(error) = result else { panic!("nothing was refused") };
    error.cause::<Cause>().cloned().unwrap_or_else(|| panic!("{error}"))
}

/// The file of a folder of the store that has this number.
fn object(place: &Place, sort: &str, number: usize) -> std::path::PathBuf {
    files(&place.path().join(sort)).swap_remove(number)
}

fn id(path: &std::path::Path) -> Id {
    path.file_name().unwrap().to_str().unwrap().parse().unwrap()
}

#[test]
fn it_opens_with_its_key_and_with_no_other() {
    let place = Place::encrypted();
    let disk = noise(5, 3 * BLOCK);
    let made = place.create("web", 1, &disk, None);
    assert!(read(&place.again().unwrap(), &made).unwrap() == disk);

    let nothing = place.opened_with(&Keyring::default()).unwrap_err();
    assert_eq!(nothing.cause(), Some(&Cause::NoKey));
    assert_eq!(nothing.kind(), Kind::Encrypted);
    assert!(nothing.hint().unwrap().contains("--key-file"));
    let wrong = place.opened_with(&given(key_file(2))).unwrap_err();
    assert_eq!(wrong.cause(), Some(&Cause::WrongKey { kind: KeyKind::KeyFile, tried: 1 }));
    assert_eq!(wrong.kind(), Kind::Denied);
    let passphrase = Secret::passphrase(b"correct horse".to_vec()).unwrap();
    let wrong = place.opened_with(&given(passphrase)).unwrap_err();
    assert_eq!(wrong.cause(), Some(&Cause::WrongKey { kind: KeyKind::Passphrase, tried: 0 }));

    // Somebody is asked once, and not for a store that needs no key.
    let keyring = Keyring::asking(|_| Ok(key_file(1)));
    assert!(place.opened_with(&keyring).is_ok() && keyring.asked().is_some());
    let plain = Place::new();
    let never = Keyring::asking(|_| panic!("asked"));
    plain.opened_with(&never).unwrap();
    let given = plain.opened_with(&given(key_file(1))).unwrap_err();
    assert_eq!((given.kind(), given.cause()), (Kind::Refused, Some(&Cause::NotEncrypted)));
}

#[test]
fn passphrases_and_key_files_come_and_go_and_no_pack_is_written_anew() {
    let (place, disks) = filled(Place::encrypted());
    let store = place.again().unwrap();
    let others = || -> Vec<_> {
        let all = files(&place.path()).into_iter();
        all.filter(|path| !path.starts_with(place.path().join("keys")))
            .map(|path| {
                (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap())
            })
            .collect()
    };
    let before = others();
    let passphrase = Secret::passphrase(b"correct horse".to_vec()).unwrap();
    store.add_key(&passphrase, "anna").unwrap();
    let listed = store.keys().unwrap();
    let told: Vec<_> = listed.iter().map(|it| (it.kind, it.name.as_str(), it.used)).collect();
    assert_eq!(told, [(KeyKind::KeyFile, "", true), (KeyKind::Passphrase, "anna", false)]);

    let again = place.opened_with(&given(passphrase)).unwrap();
    again.remove_key(listed[0].id).unwrap();
    assert_eq!(cause(place.again()), Cause::WrongKey { kind: KeyKind::KeyFile, tried: 0 });
    for (snapshot, disk) in again.snapshots().unwrap().iter().zip(&disks) {
        assert!(read(&again, snapshot).unwrap() == *disk);
    }
    let last = again.remove_key(listed[1].id).unwrap_err();
    assert_eq!(last.kind(), Kind::Refused, "{last}");
    let unknown = again.remove_key(listed[0].id).unwrap_err();
    assert_eq!(unknown.kind(), Kind::NotFound, "{unknown}");
    assert!(before == others());
    let plain = Place::new();
    assert_eq!(plain.store.add_key(&key_file(2), "").unwrap_err().kind(), Kind::Usage);
}

#[test]
fn a_key_that_cannot_be_read_is_none_that_is_left() {
    let place = Place::encrypted();
    place.store.add_key(&key_file(2), "").unwrap();
    let keys = place.again().unwrap().keys().unwrap();
    let used = keys.iter().find(|key| key.used).unwrap().id;
    let other = keys.iter().find(|key| !key.used).unwrap().id;
    fs::write(place.path().join(Object::Key(other).to_string()), b"gone").unwrap();
    assert_eq!(place.store.remove_key(used).unwrap_err().kind(), Kind::Refused);
    // And it keeps nobody out.
    place.again().unwrap();
}

#[test]
fn slots_that_cost_too_much_are_refused_before_they_are_tried() {
    let place = Place::with(Some(Secret::passphrase(b"pass".to_vec()).unwrap()));
    let path = object(&place, "keys", 0);
    let slot = fs::read(&path).unwrap();
    let payload = Keys::default().unseal(Sealed::Slot, &slot).unwrap().into_owned();
    let text = String::from_utf8_lossy(&payload[..payload.len() - 48]).into_owned();
    for (from, to, wanted) in [
        ("\"memory\":65536", "\"memory\":4294967295", (u32::MAX, 3, 4)),
        ("\"memory\":65536", "\"memory\":0", (0, 3, 4)),
        ("\"passes\":3", "\"passes\":4294967295", (65536, u32::MAX, 4)),
        ("\"passes\":3", "\"passes\":0", (65536, 0, 4)),
        ("\"lanes\":4", "\"lanes\":65", (65536, 3, 65)),
    ] {
        assert!(text.contains(from), "{text}");
        let mut changed = text.replace(from, to).into_bytes();
        changed.extend_from_slice(&payload[payload.len() - 48..]);
        let (memory, passes, lanes) = wanted;
        fs::write(&path, Keys::default().seal(Sealed::Slot, &changed).unwrap()).unwrap();
        assert_eq!(cause(place.again()), Cause::Argon2 { memory, passes, lanes });
    }
    // What is only a little cheaper to guess is not what wrapped the key.
    let mut cheaper = text.replace("\"passes\":3", "\"passes\":1").into_bytes();
    cheaper.extend_from_slice(&payload[payload.len() - 48..]);
    fs::write(&path, Keys::default().seal(Sealed::Slot, &cheaper).unwrap()).unwrap();
    assert_eq!(cause(place.again()), Cause::WrongKey { kind: KeyKind::Passphrase, tried: 1 });
    fs::write(&path, slot).unwrap();
    place.again().unwrap();
    for number in 0..32 {
        let name = place.path().join("keys").join(Id([number; 32]).to_string());
        fs::write(name, b"").unwrap();
    }
    assert_eq!(cause(place.again()), Cause::Slots(33));
}

/// Seals what an encrypted object says as anybody can.
fn unprotected(place: &Place, what: Sealed, bytes: &[u8]) -> Vec<u8> {
    let payload = place.store.keys.unseal(what, bytes).unwrap();
    Keys::default().seal(what, &payload).unwrap()
}

#[test]
fn what_anybody_could_have_written_is_refused() {
    let (place, _) = filled(Place::encrypted());
    // The config.
    let path = place.path().join("config");
    let config = fs::read(&path).unwrap();
    fs::write(&path, unprotected(&place, Sealed::Config, &config)).unwrap();
    assert_eq!(cause(place.again()), Cause::NotEncrypted);
    assert_eq!(
        cause(place.opened_with(&Keyring::default()).and_then(|it| it.snapshots())),
        Cause::Protected
    );
    // One that is of another encrypted store, and one with a byte changed and a seal made without the key.
    fs::write(&path, fs::read(Place::encrypted().path().join("config")).unwrap()).unwrap();
    assert_eq!(cause(place.again()), Cause::Seal);
    let mut changed = config.clone();
    let at = changed.windows(7).position(|it| it == b"\"level\"").unwrap() + 8;
    changed[at] ^= 1;
    let end = changed.len() - 32;
    let seal = blake3::hash(&changed[..end]);
    changed[end..].copy_from_slice(seal.as_bytes());
    fs::write(&path, &changed).unwrap();
    assert_eq!(cause(place.again()), Cause::Seal);
    fs::write(&path, &config).unwrap();

    // A record, under the name that it then has.
    let objects = Folder::new(&place.path());
    let record = fs::read(object(&place, "snapshots", 0)).unwrap();
    let plain = unprotected(&place, Sealed::Record, &record);
    let forged = Id::of_object(&plain);
    objects.put(Object::Snapshot(forged), &[&plain]).unwrap();
    assert_eq!(cause(place.again().unwrap().snapshot(forged)), Cause::Unprotected);
    objects.remove(Object::Snapshot(forged)).unwrap();
    let elsewhere = Place::encrypted();
    elsewhere.create("web", 1, b"other", None);
    let foreign = fs::read(object(&elsewhere, "snapshots", 0)).unwrap();
    let foreign_id = Id::of_object(&foreign);
    objects.put(Object::Snapshot(foreign_id), &[&foreign]).unwrap();
    assert_eq!(cause(place.again().unwrap().snapshot(foreign_id)), Cause::Seal);
    objects.remove(Object::Snapshot(foreign_id)).unwrap();
    // An index in a record's place.
    let index = fs::read(object(&place, "index", 0)).unwrap();
    let index_id = Id::of_object(&index);
    objects.put(Object::Snapshot(index_id), &[&index]).unwrap();
    assert_eq!(cause(place.again().unwrap().snapshot(index_id)), Cause::Unprotected);
    objects.remove(Object::Snapshot(index_id)).unwrap();

    // An index.
    let plain = unprotected(&place, Sealed::Index, &index);
    let forged = Id::of_object(&plain);
    objects.put(Object::Index(forged), &[&plain]).unwrap();
    assert_eq!(cause(place.again()), Cause::Unprotected);
    objects.remove(Object::Index(forged)).unwrap();
    // A pack: one of a store that is not encrypted, of this number.
    let bytes = fs::read(object(&place, "packs", 0)).unwrap();
    let mut plain = bytes.clone();
    plain[10] = 0;
    plain[32..48].fill(0);
    plain[12..16].fill(0);
    let crc = crc32c::crc32c(&plain[..48]);
    plain[12..16].copy_from_slice(&crc.to_le_bytes());
    let number = place.store.number;
    assert_eq!(pack::scan(&plain, number, &place.store.keys), Err(Cause::Unprotected));
    assert_eq!(pack::scan(&bytes, number, &Keys::default()), Err(Cause::Protected));
    assert!(pack::scan(&bytes, number, &place.store.keys).is_ok());
}

/// Replaces all indexes by one that says `packs` and `blobs`, as somebody with the key might.
fn reindexed(place: &Place, packs: &[Pack], blobs: Vec<(u32, Blob)>) -> Arc<Store> {
    for path in files(&place.path().join("index")) {
        fs::remove_file(path).unwrap();
    }
    let bytes = index::make(&place.store.keys, packs, blobs).unwrap();
    let objects = Folder::new(&place.path());
    objects.put(Object::Index(Id::of_object(&bytes)), &[&bytes]).unwrap();
    place.again().unwrap()
}

/// All packs, their blobs, and their bytes.
pub(super) type Contents = (Vec<Pack>, Vec<(u32, Blob)>, Vec<Vec<u8>>);

pub(super) fn contents(place: &Place) -> Contents {
    let (mut packs, mut blobs, mut all) = (vec![], vec![], vec![]);
    for path in files(&place.path().join("packs")) {
        let bytes = fs::read(&path).unwrap();
        let (salt, found) = pack::scan(&bytes, place.store.number, &place.store.keys).unwrap();
        blobs.extend(found.into_iter().map(|blob| (packs.len() as u32, blob)));
        packs.push(Pack { id: id(&path), len: bytes.len() as u64, salt });
        all.push(bytes);
    }
    (packs, blobs, all)
}

/// Reads a block or page by its id.
fn read_blob(store: &Store, blob: &Blob) -> Result<Vec<u8>> {
    let mut out = vec![0; blob.plain as usize];
    store.read_blob(blob.kind, &blob.id, &mut out).map(|()| out)
}

#[test]
fn a_blob_is_refused_in_any_place_but_its_own() {
    let place = Place::encrypted();
    // Two packs, with blocks that are stored at the same length.
    let disk = noise(1, 3 * BLOCK);
    place.create("web", 1, &disk, None);
    place.create("web", 2, &noise(2, 3 * BLOCK), None);
    let (packs, blobs, bytes) = contents(&place);
    let blocks: Vec<_> =
        blobs.iter().filter(|(_, blob)| blob.kind == BlobKind::Block).copied().collect();
    assert_eq!((packs.len(), blocks.len()), (2, 6));
    let refused = |place: &Place, store: &Store, (pack, blob): (u32, Blob), at: u32| {
        let what = Object::Pack(packs[pack as usize].id);
        let found = cause(read_blob(store, &blob));
        assert_eq!(found, Cause::BlobSeal { what, at: at.into(), id: blob.id });
        drop(place.again());
    };

    // The index says that each lies where another does: of the same pack, and of the other.
    for (one, other) in [(0, 1), (0, 5), (2, 3)] {
        let mut swapped = blobs.clone();
        let find = |which: &(u32, Blob)| blobs.iter().position(|it| it == which).unwrap();
        let (one, other) = (find(&blocks[one]), find(&blocks[other]));
        let (a, b) = (blobs[one], blobs[other]);
        swapped[one] = (b.0, Blob { at: b.1.at, ..a.1 });
        swapped[other] = (a.0, Blob { at: a.1.at, ..b.1 });
        let store = reindexed(&place, &packs, swapped.clone());
        refused(&place, &store, swapped[one], b.1.at);
        refused(&place, &store, swapped[other], a.1.at);
    }
    // It says another kind, encoding or length, or another salt of the pack.
    let (number, blob) = blocks[0];
    let which = blobs.iter().position(|it| *it == blocks[0]).unwrap();
    let page = Blob { kind: BlobKind::Page, ..blob };
    let zstd = Blob { encoding: pack::Encoding::Zstd, ..blob };
    let longer = Blob { plain: blob.plain + 1, ..blob };
    for changed in [page, zstd, longer] {
        let mut all = blobs.clone();
        all[which] = (number, changed);
        refused(&place, &reindexed(&place, &packs, all), (number, changed), blob.at);
    }
    let mut salted = packs.clone();
    salted[number as usize].salt[0] ^= 1;
    refused(&place, &reindexed(&place, &salted, blobs.clone()), blocks[0], blob.at);

    // The bytes themselves are exchanged, in one pack and between two, headers and all.
    for (one, other) in [(0, 1), (0, 3)] {
        let (a, b) = (blocks[one], blocks[other]);
        let range = |blob: &Blob| blob.at as usize - 56..(blob.at + blob.stored) as usize;
        assert_eq!(range(&a.1).len(), range(&b.1).len());
        let mut bad = bytes.clone();
        let of_a = bytes[a.0 as usize][range(&a.1)].to_vec();
        let of_b = bytes[b.0 as usize][range(&b.1)].to_vec();
        bad[a.0 as usize][range(&a.1)].copy_from_slice(&of_b);
        bad[b.0 as usize][range(&b.1)].copy_from_slice(&of_a);
        let write = |all: &[Vec<u8>]| {
            for (pack, bytes) in packs.iter().zip(all) {
                fs::write(place.path().join(Object::Pack(pack.id).to_string()), bytes).unwrap();
            }
        };
        write(&bad);
        let store = reindexed(&place, &packs, blobs.clone());
        refused(&place, &store, a, a.1.at);
        refused(&place, &store, b, b.1.at);
        // Somebody who names the packs anew and has an index made of them gets no further.
        for (pack, bytes) in packs.iter().zip(&bad) {
            fs::remove_file(place.path().join(Object::Pack(pack.id).to_string())).unwrap();
            Folder::new(&place.path()).put(Object::Pack(Id::of_object(bytes)), &[bytes]).unwrap();
        }
        files(&place.path().join("index")).iter().for_each(|it| fs::remove_file(it).unwrap());
        assert!(place.again_damaged().repair(Depth::Structure, &|| {}).unwrap().indexed_packs > 0);
        let store = place.again().unwrap();
        for (_, blob) in [a, b] {
            assert!(matches!(cause(read_blob(&store, &blob)), Cause::BlobSeal { .. }));
        }
        let problems = store.check(Depth::Structure, &|| {}).unwrap().problems;
        assert_eq!(problems, [], "all is there, though not what it was");
        for bytes in &bad {
            Folder::new(&place.path()).remove(Object::Pack(Id::of_object(bytes))).unwrap();
        }
        write(&bytes);
    }
    let store = reindexed(&place, &packs, blobs.clone());
    blobs.iter().for_each(|(_, blob)| drop(read_blob(&store, blob).unwrap()));
}

#[test]
fn an_index_says_only_what_somebody_with_the_key_wrote() {
    let place = Place::encrypted();
    place.create("web", 1, &noise(1, 3 * BLOCK), None);
    place.create("web", 2, &noise(2, 3 * BLOCK), None);
    let paths = files(&place.path().join("index"));
    let indexes: Vec<_> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    // Checksums are anybody's to compute; the seal, which is not looked at when parts are read, is left as it was.
    let summed = |bytes: &mut Vec<u8>, page: usize| {
        let crc = crc32c::crc32c(&bytes[page..page + 4092]);
        bytes[page + 4092..page + 4096].copy_from_slice(&crc.to_le_bytes());
    };
    let (_, blobs, _) = contents(&place);
    let find_all = || -> Result<usize> {
        let store = place.again()?;
        let found = blobs.iter().map(|(_, blob)| store.has(blob.kind, &blob.id));
        Ok(found.collect::<Result<Vec<_>>>()?.iter().filter(|&&is_there| is_there).count())
    };
    assert_eq!(find_all().unwrap(), blobs.len());
    // An entry for another id, a field of an entry, the number of entries, and the page of another index.
    for (at, with) in [(0, 1_u8), (40, 1), (4088, 1)] {
        let mut bad = indexes[0].clone();
        bad[4096 + at] ^= with;
        summed(&mut bad, 4096);
        fs::write(&paths[0], &bad).unwrap();
        assert_eq!(cause(find_all()), Cause::IndexPage { page: 0 }, "byte {at} of the page");
    }
    let mut bad = indexes[0].clone();
    bad[4096..8192].copy_from_slice(&indexes[1][4096..8192]);
    fs::write(&paths[0], &bad).unwrap();
    assert_eq!(cause(find_all()), Cause::IndexPage { page: 0 });
    // What lies before the pages: a fence, the salt, and a pack's salt.
    for at in [32 + 32, 32 + 64 + 45, 32 + 64 + 56] {
        let mut bad = indexes[0].clone();
        bad[at] ^= 1;
        bad[32 + 12..32 + 16].fill(0);
        let crc = crc32c::crc32c(&bad[32..32 + 64 + 56 + 8]);
        bad[32 + 12..32 + 16].copy_from_slice(&crc.to_le_bytes());
        fs::write(&paths[0], &bad).unwrap();
        assert_eq!(cause(find_all()), Cause::Seal, "byte {at}");
    }
    fs::write(&paths[0], &indexes[0]).unwrap();
    assert_eq!(find_all().unwrap(), blobs.len());
}

#[test]
fn check_reads_what_a_pack_holds_and_not_only_its_name() {
    let place = Place::encrypted();
    place.create("web", 1, &noise(1, 2 * BLOCK), None);
    let (packs, blobs, bytes) = contents(&place);
    // One block's bytes are noise, and everything about them is made to fit that can be without the key.
    let blob = blobs.iter().find(|(_, blob)| blob.kind == BlobKind::Block).unwrap().1;
    let mut bad = bytes[0].clone();
    let at = blob.at as usize;
    bad[at] ^= 1;
    let crc = crc32c::crc32c(&bad[at..at + blob.stored as usize]);
    bad[at - 8..at - 4].copy_from_slice(&crc.to_le_bytes());
    bad[at - 4..at].fill(0);
    let crc = crc32c::crc32c(&bad[at - 56..at]);
    bad[at - 4..at].copy_from_slice(&crc.to_le_bytes());
    let objects = Folder::new(&place.path());
    objects.remove(Object::Pack(packs[0].id)).unwrap();
    objects.put(Object::Pack(Id::of_object(&bad)), &[&bad]).unwrap();
    files(&place.path().join("index")).iter().for_each(|it| fs::remove_file(it).unwrap());
    place.again_damaged().repair(Depth::Structure, &|| {}).unwrap();
    let store = place.again().unwrap();
    assert_eq!(store.check(Depth::Structure, &|| {}).unwrap().problems, []);
    let problems = store.check(Depth::Data, &|| {}).unwrap().problems;
    let snapshot = store.snapshots().unwrap()[0].id;
    assert!(problems.iter().any(|it| it.snapshots == [snapshot]), "{problems:?}");
}

#[test]
fn nothing_that_was_said_or_stored_is_to_be_seen() {
    let place = Place::encrypted();
    let marks = ["MARKcontents", "MARKseries", "MARKtag", "MARKhost", "MARKsource", "MARKdisk"];
    // Some that compress and some that do not, so that none is hidden by that.
    let mut disk = noise(1, 4 * BLOCK);
    disk[100..100 + marks[0].len()].copy_from_slice(marks[0].as_bytes());
    disk.extend(marks[0].as_bytes().repeat(3000));
    let mut made = new(marks[1], 1, &disk, None);
    made.tags = vec![marks[2].to_owned()];
    made.host = marks[3].to_owned();
    made.source = marks[4].to_owned();
    made.disks[0].name = marks[5].to_owned();
    let plain_place = Place::new();
    let contains = |place: &Place, needle: &[u8]| {
        files(&place.path())
            .iter()
            .any(|path| memchr::memmem::find(&fs::read(path).unwrap(), needle).is_some())
    };
    let snapshot = place.store.create(made, &Progress::default()).unwrap();
    assert!(read(&place.again().unwrap(), &snapshot).unwrap() == disk);
    let id = blake3::hash(&disk[..BLOCK]);
    for mark in marks.map(str::as_bytes).into_iter().chain([&id.as_bytes()[..], &disk[..64]]) {
        assert!(!contains(&place, mark), "{}", String::from_utf8_lossy(mark));
    }
    // They would be found.
    let mut plain = new(marks[1], 1, &disk, None);
    plain.source = marks[4].to_owned();
    plain_place.store.create(plain, &Progress::default()).unwrap();
    for mark in [marks[0].as_bytes(), marks[1].as_bytes(), marks[4].as_bytes(), id.as_bytes()] {
        assert!(contains(&plain_place, mark), "{}", String::from_utf8_lossy(mark));
    }
}

#[test]
fn stores_of_the_same_key_file_have_nothing_in_common() {
    let disk = noise(1, 3 * BLOCK);
    let (one, other) = (Place::encrypted(), Place::encrypted());
    for place in [&one, &other] {
        place.create("web", 1, &disk, None);
    }
    let ids = |place: &Place| -> BTreeSet<Id> {
        contents(place).1.into_iter().map(|(_, blob)| blob.id).collect()
    };
    assert_eq!(ids(&one).len(), 4);
    assert!(ids(&one).is_disjoint(&ids(&other)));
    assert!(one.store.keys.id(BlobKind::Block, &disk) != one.store.keys.id(BlobKind::Page, &disk));
}

#[test]
fn no_key_is_used_twice_with_one_nonce() {
    let place = Place::encrypted();
    let mut before = None;
    for second in 0..20 {
        before = Some(place.create(
            "web",
            second,
            &noise(second.cast_unsigned(), 2 * BLOCK),
            before.as_ref(),
        ));
    }
    // The same again in another pack, as collecting does.
    for path in files(&place.path().join("index")) {
        fs::remove_file(path).unwrap();
    }
    let store = place.again().unwrap();
    store.create(new("again", 1, &noise(1, 2 * BLOCK), None), &Progress::default()).unwrap();
    let (packs, blobs, bytes) = contents(&place);
    let salts: BTreeSet<_> = packs.iter().map(|pack| pack.salt).collect();
    assert_eq!((salts.len(), packs.len()), (21, 21));
    let uses: BTreeSet<_> =
        blobs.iter().map(|(pack, blob)| (packs[*pack as usize].salt, blob.id, blob.at)).collect();
    assert_eq!(uses.len(), blobs.len());
    // The same block twice, and not the same bytes.
    let stored = |(pack, blob): &(u32, Blob)| {
        let range = blob.at as usize..(blob.at + blob.stored) as usize;
        bytes[*pack as usize][range].to_vec()
    };
    let ids: BTreeSet<_> = blobs.iter().map(|(_, blob)| blob.id).collect();
    let different: BTreeSet<_> = blobs.iter().map(stored).collect();
    assert!(ids.len() < blobs.len() && different.len() == blobs.len());
    // Records and slots have a salt of their own each.
    let record = |path: &std::path::PathBuf| fs::read(path).unwrap()[32..48].to_vec();
    let records = files(&place.path().join("snapshots"));
    assert_eq!(records.iter().map(record).collect::<BTreeSet<_>>().len(), records.len());
    let one = place.store.keys.seal(Sealed::Record, b"the same").unwrap();
    assert_ne!(one, place.store.keys.seal(Sealed::Record, b"the same").unwrap());
    place.store.add_key(&key_file(1), "").unwrap();
    let slots = place.store.objects.list(Sort::Keys).unwrap();
    let salts: BTreeSet<String> = slots
        .iter()
        .map(|slot| fs::read(place.path().join(Object::Key(slot.id).to_string())).unwrap())
        .map(|bytes| {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.split("\"salt\":\"").nth(1).unwrap()[..32].to_owned()
        })
        .collect();
    assert_eq!((salts.len(), slots.len()), (2, 2));
}

#[test]
fn stored_bytes_of_a_blob_can_be_added_to_another_pack() {
    for place in Place::both() {
        let mut disk = noise(1, 2 * BLOCK);
        disk.extend(vec![7; BLOCK]);
        place.create("web", 1, &disk, None);
        let (packs, blobs, _) = contents(&place);
        let index = id(&object(&place, "index", 0));
        let store = &place.store;
        let index = Index::open(&store.keys, &store.objects, &store.cache, index).unwrap();
        let mut moved = store.new_pack().unwrap();
        let (mut stored, mut plain) = (vec![], vec![]);
        for (_, blob) in &blobs {
            let location = index.find(&blob.id, blob.kind).unwrap().unwrap();
            store.stored_bytes(&location, &mut stored, &mut plain).unwrap();
            assert_eq!(store.keys.id(blob.kind, &plain), blob.id);
            moved.add(blob.kind, blob.id, blob.encoding, blob.plain, &stored).unwrap();
        }
        let (pack, bytes, blobs) = moved.finish();
        store.objects.put(Object::Pack(pack.id), &[&bytes]).unwrap();
        // Not even with the same blobs in the same order.
        assert_ne!(pack.id, packs[0].id);
        store.objects.remove(Object::Pack(packs[0].id)).unwrap();
        let again = reindexed(&place, &[pack], blobs.into_iter().map(|blob| (0, blob)).collect());
        assert!(read(&again, &again.snapshots().unwrap()[0]).unwrap() == disk);
    }
}
