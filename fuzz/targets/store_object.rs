//! The first byte says what sealed object of a snapshot store the rest is the inside of; it is sealed, given its name, and
//! put beside what a small store holds, which is then checked, read, collected and repaired.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratafs::store::Id;
use stratafs::store::objects::{Object, Objects, Sort};
use stratafs_fuzz::store::{encrypted, plain, sealed};

/// Bytes of a page of an index.
const PAGE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((kind, payload)) = data.split_first() else { return };
    let base = if *kind == 5 { encrypted() } else { plain() };
    let memory = base.memory.copy();
    let put = |object, bytes: &[u8]| memory.put(object, &[bytes]).expect("in memory");
    match kind {
        0 => put(Object::Config, &sealed(1, payload)),
        1 => {
            memory.clear(Sort::Indexes);
            let bytes = sealed(2, &summed(payload));
            put(Object::Index(Id::of_object(&bytes)), &bytes);
        }
        2 => {
            let bytes = sealed(3, payload);
            put(Object::Snapshot(Id::of_object(&bytes)), &bytes);
        }
        // Somebody who collects is waited for.
        3 if payload.windows(7).any(|word| word == b"collect") => return,
        3 => {
            let bytes = sealed(4, payload);
            put(Object::Lease(Id::of_object(&bytes)), &bytes);
        }
        4 => {
            let bytes = sealed(5, payload);
            put(Object::Condemned(Id::of_object(&bytes)), &bytes);
        }
        5 => {
            let bytes = sealed(6, payload);
            put(Object::Key(Id::of_object(&bytes)), &bytes);
        }
        6 => {
            let bytes = sealed(8, payload);
            put(Object::Draft(Id::of_object(&bytes)), &bytes);
        }
        _ => {
            let bytes = sealed(7, payload);
            let mut id = Id([0; 32]);
            // The halves of what it is of and by.
            let key = Id::of_object(payload.get(32..64).unwrap_or_default());
            id.0[16..].copy_from_slice(&key.0[..16]);
            if let Some(record) = payload.get(..16) {
                id.0[..16].copy_from_slice(record);
            }
            put(Object::Signature(id), &bytes);
        }
    }
    base.work(&memory);
});

/// The inside of an index with its checksums put right, as far as it is long enough.
fn summed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = payload.to_vec();
    let number = |at: usize| {
        let field = payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
        field.map_or(0, |field| u32::from_le_bytes(*field) as usize)
    };
    let (entries, packs, parts) = (number(0), number(8), number(24));
    let pages = if parts == 0 { entries.div_ceil(85) } else { 0 };
    let used = packs.saturating_mul(56).saturating_add(parts.saturating_mul(64));
    let used = used.saturating_add(pages * 8).saturating_add(64);
    // Behind the header of the object.
    let first = (used.saturating_add(32)).next_multiple_of(PAGE).saturating_sub(32);
    if let Some(head) = bytes.get_mut(..used) {
        head[12..16].fill(0);
        let crc = crc32c::crc32c(head);
        head[12..16].copy_from_slice(&crc.to_le_bytes());
    }
    for page in bytes.get_mut(first..).unwrap_or_default().chunks_exact_mut(PAGE) {
        let crc = crc32c::crc32c(&page[..PAGE - 4]);
        page[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
    }
    bytes
}
