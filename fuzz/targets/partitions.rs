//! The input is a disk. Its GPT is judged as it is, and again with checksums that fit: what lies
//! behind them is reached as well.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::volume;
use stratafs_fuzz::read_disk;

fuzz_target!(|data: &[u8]| {
    scan(data.to_vec());
    for sector in [512, 4096] {
        let mut sealed = data.to_vec();
        if seal(&mut sealed, sector).is_some() {
            scan(sealed);
        }
    }
});

fn scan(bytes: Vec<u8>) {
    let disk: Arc<dyn BlockSource> = Arc::new(MemorySource::new(bytes));
    let Ok(Some(table)) = volume::scan(&disk) else { return };
    for volume in table.volumes.iter().take(200) {
        let end = volume.start.checked_add(volume.len).expect("a volume past 2^64");
        assert!(end <= disk.len(), "a volume past the end of the disk");
        if let Ok(window) = volume.window(&disk) {
            read_disk(&*window);
        }
    }
}

/// Gives the first GPT header, if there is one, the checksums of what is there.
fn seal(disk: &mut [u8], sector: usize) -> Option<()> {
    let header = disk.get(sector..sector + 512)?;
    if !header.starts_with(b"EFI PART") {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    let size = usize::try_from(word(12)).ok().filter(|size| (92..=512).contains(size))?;
    let entries_at = u64::from_le_bytes(header[72..80].try_into().unwrap());
    let start = usize::try_from(entries_at).ok()?.checked_mul(sector)?;
    let len = usize::try_from(word(80)).ok()?.checked_mul(usize::try_from(word(84)).ok()?)?;
    let entries = crc32fast::hash(disk.get(start..start.checked_add(len)?)?);
    let header = &mut disk[sector..sector + size];
    header[88..92].copy_from_slice(&entries.to_le_bytes());
    header[16..20].fill(0);
    let sum = crc32fast::hash(header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    Some(())
}
