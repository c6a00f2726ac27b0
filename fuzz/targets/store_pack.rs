//! The first byte says what the rest is: the blobs of a pack, whose checksums are put right, in a store without an index; the same in a
//! pack that is called otherwise, so that only what is whole of it counts; or map pages of a disk, whose size is the next 8 bytes,
//! made of ids that a byte each stands for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratafs::store::Id;
use stratafs::store::objects::{Object, Objects, Sort};
use stratafs_fuzz::store::{Base, pack, page, plain, sealed, set_checksums};

/// Ids that a map page has.
const FANOUT: usize = 1024;

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let base = plain();
    let memory = base.memory.copy();
    let put = |object, bytes: &[u8]| memory.put(object, &[bytes]).expect("in memory");
    memory.clear(Sort::Indexes);
    match kind {
        0 | 1 => {
            let mut bytes = pack(base.number, data);
            let mut at = 48;
            while let Some(next) = set_checksums(&mut bytes, at) {
                at = next;
            }
            let mut id = Id::of_object(&bytes);
            id.0[0] ^= kind;
            put(Object::Pack(id), &bytes);
        }
        _ => {
            let Some((size, ids)) = data.split_first_chunk::<8>() else { return };
            let (blobs, root) = map(base, ids);
            let bytes = pack(base.number, &blobs);
            put(Object::Pack(Id::of_object(&bytes)), &bytes);
            let mut record = base.snapshots[0].record.clone();
            // What is larger has a map that may be walked for long.
            record.disks[0].size = u64::from_le_bytes(*size) % (16 << 30);
            record.disks[0].root = root;
            let json = serde_json::to_vec(&record).expect("is JSON");
            let bytes = sealed(3, &json);
            put(Object::Snapshot(Id::of_object(&bytes)), &bytes);
        }
    }
    // Indexes are made first, so that all of it is read.
    let store = base.open(&memory).expect("there is no index");
    store.repair(stratafs::store::Depth::Structure, &|| {}).expect("nobody collects");
    base.work(&memory);
});

/// Pages of these ids, each above the one before: as blobs, and the id of the last.
fn map(base: &Base, ids: &[u8]) -> (Vec<u8>, Id) {
    let (mut blobs, mut last) = (Vec::new(), Id([0; 32]));
    for ids in ids.chunks(FANOUT + 3).take(8) {
        let mut bytes = Vec::new();
        for &byte in ids {
            let id = match byte {
                0..100 => Id([0; 32]),
                100..150 => last,
                150..250 => base.blocks[usize::from(byte) % base.blocks.len()],
                _ => Id([byte; 32]),
            };
            bytes.extend_from_slice(&id.0);
        }
        // Now and then one that is no whole number of ids.
        if ids.first() == Some(&255) {
            bytes.pop();
        }
        let (blob, id) = page(&bytes);
        blobs.extend_from_slice(&blob);
        last = id;
    }
    (blobs, last)
}
