//! The input is a tar. It is read as it is, and again with checksums that fit: what lies behind them
//! is reached as well.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stratafs::oci::tar::Reader;

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut sealed = data.to_vec();
    for block in sealed.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
    if sealed != data {
        read(&sealed);
    }
});

fn read(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    while let Ok(Some(entry)) = reader.next() {
        let (mut end, mut mapped) = (0, 0);
        for run in &entry.runs {
            assert!(run.len > 0 && run.at >= end, "runs out of order");
            end = run.at + run.len;
            mapped += run.len;
        }
        assert!(end <= entry.size, "a run past the end");
        let mut stored = 0;
        let told = reader.contents(&mut |chunk| {
            stored += chunk.len() as u64;
            Ok(())
        });
        assert!(told.is_err() || stored == mapped, "not the bytes of the runs");
    }
}
