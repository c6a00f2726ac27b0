//! The input is a gzip stream, then read by the restart points that a pass over it gave; and it is
//! restart points of another stream.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::MemorySource;
use stratafs::oci::span::{Compression, Spans, Unpacked};
use stratafs_fuzz::{cache, pass_and_read, read_disk};

fuzz_target!(|data: &[u8]| {
    pass_and_read(data, Compression::Gzip);
    // Restart points over whatever they come with.
    if let Ok(spans) = Spans::from_bytes(data.to_vec()) {
        let blob = vec![0x5a; spans.blob_len().min(1 << 20) as usize];
        if let Ok(source) = Unpacked::new(Arc::new(MemorySource::new(blob)), None, spans, cache()) {
            read_disk(&source);
        }
    }
});
