//! The input is an ext2, ext3 or ext4 filesystem.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::fs;
use stratafs_fuzz::{cache, walk};

fuzz_target!(|data: &[u8]| {
    let source: Arc<dyn BlockSource> = Arc::new(MemorySource::new(data.to_vec()));
    if let Ok(Some(filesystem)) = fs::open(source, &cache()) {
        walk(&*filesystem.tree);
    }
});
