//! The input is the start of the journal of a filesystem that was not unmounted; the rest of it is the file that
//! STRATA_FUZZ_BASE names, whose journal lies in one piece from the byte on that the file of the
//! same name with `.offset` holds.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::fs;
use stratafs_fuzz::{cache, walk};

static BASE: LazyLock<(Vec<u8>, usize)> = LazyLock::new(|| {
    let path = std::env::var("STRATA_FUZZ_BASE").expect("STRATA_FUZZ_BASE: run this by fuzz/run");
    let offset = std::fs::read_to_string(format!("{path}.offset")).expect("the offset file");
    (std::fs::read(&path).expect("the base image"), offset.trim().parse().expect("a number"))
});

fuzz_target!(|data: &[u8]| {
    let (base, offset) = &*BASE;
    let mut bytes = base.clone();
    let end = bytes.len().min(offset + data.len());
    bytes[*offset..end].copy_from_slice(&data[..end - offset]);
    let source: Arc<dyn BlockSource> = Arc::new(MemorySource::new(bytes));
    if let Ok(Some(filesystem)) = fs::open(source, &cache()) {
        walk(&*filesystem.tree);
    }
});
