//! What a layer of very many entries takes: in memory while it is indexed and merged, and on disk.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Instant;

use stratafs::block::MemorySource;
use stratafs::oci::layer::{Builder, Facts, Layer};
use stratafs::oci::merge::{LayerPart, Merged};
use stratafs::oci::tar::{Entry, EntryKind};
use stratafs::tree::{FileTree, Time};

/// KiB of this process that the field of `/proc/self/status` tells.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Forgets how much there was at most.
fn forget_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

fn entry(number: u64) -> Entry {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let folder = number / 40 * 40;
    let (name, kind) = match number % 40 {
        0 => (String::new(), EntryKind::Folder),
        1 => ("/link".to_owned(), EntryKind::Symlink(b"../other/target".to_vec())),
        _ => (format!("/some-name-{:x}.txt", mixed >> 40), EntryKind::Fifo),
    };
    Entry {
        path: format!("usr/share/{}/{folder}{name}", folder / 4000).into_bytes(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Time { seconds: (mixed >> 36).cast_signed(), nanos: 0 },
        xattrs: Vec::new(),
        size: 0,
        runs: Vec::new(),
    }
}

#[test]
fn a_million_entries_take_less_than_200_bytes_each() {
    let count: u64 =
        std::env::var("STRATA_ENTRIES").map_or(1_000_000, |count| count.parse().unwrap());
    let before = memory("VmRSS");
    forget_peak();
    let started = Instant::now();
    let mut builder = Builder::new().unwrap();
    for number in 0..count {
        builder.add(entry(number)).unwrap();
    }
    let bytes = builder.finish(&Facts::default(), b"").unwrap();
    let indexing = (memory("VmHWM") - before) * 1024 / count;
    let len = bytes.len() as u64;
    eprintln!("indexed in {:?}: {indexing} bytes of memory and {len} of file", started.elapsed());
    assert!(len / count < 30, "{len} bytes of file");
    assert!(indexing < 100, "{indexing} bytes of memory an entry");

    let index = Arc::new(Layer::from_bytes(bytes).unwrap());
    let before = memory("VmRSS");
    forget_peak();
    let started = Instant::now();
    let part = LayerPart { index, data: Arc::new(MemorySource::new(Vec::new())) };
    let merged = Merged::new(vec![part]).unwrap();
    let merging = (memory("VmHWM") - before) * 1024 / count;
    let after = (memory("VmRSS") - before) * 1024 / count;
    eprintln!("merged in {:?}: {merging} bytes of memory at most, {after} then", started.elapsed());
    assert!(merged.entry_count() > count);
    assert!(merging < 200, "{merging} bytes of memory an entry");
    assert!(merged.lookup(merged.root(), b"usr").unwrap().is_some());
}
