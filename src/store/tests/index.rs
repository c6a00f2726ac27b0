//! Indexes of all sizes beside a plain list.

use super::super::id::{BlobKind, Id};
use super::super::index::{Index, make};
use super::super::keys::Keys;
use super::super::objects::{Object, Objects};
use super::super::pack::{Blob, Encoding, Pack};
use super::*;

fn blob(seed: u64, kind: BlobKind) -> Blob {
    let id = Id(blake3::hash(&seed.to_le_bytes()).into());
    let encoding = if seed.is_multiple_of(2) { Encoding::Zstd } else { Encoding::Plain };
    Blob {
        id,
        kind,
        at: seed as u32,
        stored: 1 + seed as u32 % 7,
        plain: seed as u32 % 999,
        encoding,
    }
}

fn open(place: &Place, packs: &[Pack], blobs: Vec<(u32, Blob)>) -> Index {
    let bytes = make(&Keys::default(), packs, blobs).unwrap();
    let id = Id::of_object(&bytes);
    let objects: Arc<dyn Objects> = Arc::new(Folder::new(&place.path()));
    objects.put(Object::Index(id), &[&bytes]).unwrap();
    Index::open(&Keys::default(), &objects, &place.cache, id).unwrap()
}

#[test]
fn what_is_in_it_is_found_and_nothing_else() {
    let place = Place::new();
    let pack = |seed: u64| Pack {
        id: Id(blake3::hash(&[seed as u8]).into()),
        len: 1 << 20,
        salt: [0; 16],
    };
    for count in [0, 1, 84, 85, 86, 170, 171, 10_000] {
        let packs: Vec<Pack> = (0..3).map(pack).collect();
        let kind =
            |seed: u64| if seed.is_multiple_of(5) { BlobKind::Page } else { BlobKind::Block };
        let blobs = (0..count).map(|seed| ((seed % 3) as u32, blob(seed, kind(seed)))).collect();
        let index = open(&place, &packs, blobs);
        assert_eq!((index.entry_count(), index.packs()), (count, &packs[..]));
        for seed in 0..count {
            let wanted = blob(seed, kind(seed));
            let found = index.find(&wanted.id, wanted.kind).unwrap().unwrap();
            assert_eq!((found.blob, found.pack), (wanted, packs[seed as usize % 3].id));
            let other =
                if wanted.kind == BlobKind::Page { BlobKind::Block } else { BlobKind::Page };
            assert_eq!(index.find(&wanted.id, other).unwrap(), None);
        }
        for seed in count..count + 100 {
            assert_eq!(index.find(&blob(seed, kind(seed)).id, BlobKind::Block).unwrap(), None);
        }
        for id in [Id::ZERO, Id([0xff; 32])] {
            assert_eq!(index.find(&id, BlobKind::Block).unwrap(), None);
        }
        let mut all = Vec::new();
        for at_once in [1, 3, 256] {
            all.clear();
            let mut entries = index.entries(at_once);
            while let Some(location) = entries.next().unwrap() {
                all.push(location.blob.id);
            }
            assert!(all.is_sorted() && all.len() as u64 == count);
        }
    }
}

#[test]
fn ids_that_begin_alike_lie_on_several_pages() {
    let place = Place::new();
    let packs = [Pack { id: Id([1; 32]), len: 1 << 20, salt: [0; 16] }];
    let alike = |number: u64| {
        let mut id = [0x55; 32];
        id[24..].copy_from_slice(&number.to_be_bytes());
        Blob { id: Id(id), ..blob(number, BlobKind::Block) }
    };
    let index = open(&place, &packs, (0..300).map(|number| (0, alike(number))).collect());
    for number in 0..300 {
        assert_eq!(
            index.find(&alike(number).id, BlobKind::Block).unwrap().unwrap().blob,
            alike(number)
        );
    }
    assert_eq!(index.find(&alike(300).id, BlobKind::Block).unwrap(), None);
}
