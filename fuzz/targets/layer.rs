//! The input is a count of entries and the list of a layer's index, uncompressed; the header, the
//! checksums and the compression around it are made here. It is merged over itself and walked.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::MemorySource;
use stratafs::oci::layer::{Builder, Facts, Layer};
use stratafs::oci::merge::{LayerPart, Merged};
use stratafs_fuzz::walk;

/// Bytes of the tar.
const TAR: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    // As it is, first: the header's own checks.
    let _ = Layer::from_bytes(data.to_vec());
    let Some((&entries, list)) = data.split_first() else { return };
    let bytes = index(list, entries.into());
    let Ok(layer) = Layer::from_bytes(bytes) else { panic!("the header is right") };
    let data = Arc::new(MemorySource::new(vec![7; TAR]));
    let part = LayerPart { index: Arc::new(layer), data };
    if let Ok(tree) = Merged::of_layer(part.clone()) {
        walk(&tree);
    }
    if let Ok(tree) = Merged::of_tarball(part.clone()) {
        walk(&tree);
    }
    if let Ok(tree) = Merged::new(vec![part.clone(), part]) {
        walk(&tree);
    }
});

/// An index with that list, right in all else: offsets are those of `docs/layer-index.md`.
fn index(list: &[u8], entries: u64) -> Vec<u8> {
    let facts = Facts { tar_len: TAR as u64, ..Facts::default() };
    let mut bytes = Builder::new().unwrap().finish(&facts, b"").unwrap();
    bytes.truncate(392);
    let packed = zstd::encode_all(list, 1).unwrap();
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(16, &entries.to_le_bytes());
    put(24, &u64::from(list.windows(4).any(|bytes| bytes == b".wh.")).to_le_bytes());
    put(32, &entries.to_le_bytes());
    put(52, &crc32c::crc32c(&packed).to_le_bytes());
    put(64, &(packed.len() as u64).to_le_bytes());
    put(72, &(list.len() as u64).to_le_bytes());
    put(80, &(392 + packed.len() as u64).to_le_bytes());
    put(12, &[0; 4]);
    let sum = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(&packed);
    bytes
}
