//! Damage of every sort: an error or the right bytes, and never anything else.

use std::sync::Arc;

use stratafs::block::{BlockSource, Cache, FileSource, MemorySource};
use stratafs::error::Kind;
use stratafs::oci::span::{Options, Side, Spans, Unpacked, detect};

use super::support::tool;
use super::{Rng, filter, pass, pass_with, sample};

fn blobs(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    [("gzip", "gzip"), ("zstd", "zstd"), ("xz", "xz-utils"), ("bzip2", "bzip2")]
        .map(|(program, package)| (program, filter(tool(program, package).arg("-c"), data)))
        .into()
}

#[test]
fn every_length_but_the_whole_is_an_error() {
    let data = sample(21, 3_000);
    for (name, blob) in blobs(&data) {
        for len in 0..blob.len() {
            let Err(error) = pass(&blob[..len], 1 << 10) else {
                // Too little to be anything is not compressed at all.
                assert!(len < 6 && detect(&blob[..len]) != detect(&blob), "{name}, {len} bytes");
                continue;
            };
            assert_eq!(error.kind(), Kind::Corrupt, "{name}, {len} bytes: {error}");
        }
    }
}

#[test]
fn every_flipped_bit_is_an_error_or_harmless() {
    let data = sample(22, 2_000);
    for (name, blob) in blobs(&data) {
        let mut harmless = 0;
        for bit in 0..blob.len() * 8 {
            let mut bad = blob.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if detect(&bad) != detect(&blob) {
                continue;
            }
            match pass(&bad, 1 << 10) {
                Ok((out, ..)) if out == data => harmless += 1,
                // A flag that says there is no checksum, as zstd has one, cuts off nothing else.
                Ok(_) => panic!("{name}: wrong bytes after bit {bit}"),
                Err(error) => assert!(
                    matches!(error.kind(), Kind::Corrupt | Kind::Unsupported | Kind::Refused),
                    "{name}, bit {bit}: {error}"
                ),
            }
        }
        // Such as the time in a gzip header.
        assert!(harmless < 200, "{name}: {harmless} bits do not matter");
    }
}

/// What was indexed, with another blob under it.
fn over(blob: Vec<u8>, spans: &Spans, side: &std::fs::File) -> Unpacked {
    let side = FileSource::new(side.try_clone().unwrap(), "side".into()).unwrap();
    let blob = Arc::new(MemorySource::new(blob));
    Unpacked::new(blob, Some(Arc::new(side)), spans.clone(), Cache::new(1 << 24)).unwrap()
}

#[test]
fn a_blob_that_changed_gives_errors_and_no_wrong_bytes() {
    let data = sample(23, 60_000);
    let mut noticed = 0;
    for (name, blob) in blobs(&data) {
        let (_, passed, side) = pass(&blob, 8_000).unwrap();
        let mut rng = Rng(4);
        for _ in 0..150 {
            let mut bad = blob.clone();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(bad.len() as u64) as usize;
                bad[at] ^= 1 << rng.below(8);
            }
            let source = over(bad, &passed.spans, &side);
            for at in (0..60_000).step_by(5_000) {
                let mut buf = [0; 5_000];
                // Twice: what failed once fails again, or is right.
                for _ in 0..2 {
                    match source.read_at(at as u64, &mut buf) {
                        Ok(()) => {
                            assert!(buf == data[at..at + 5_000], "{name}: wrong bytes at {at}")
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), Kind::Corrupt, "{name}: {error}");
                            noticed += 1;
                        }
                    }
                }
            }
        }
    }
    assert!(noticed > 500, "{noticed} errors");
}

#[test]
fn a_blob_of_another_length_is_another_blob() {
    let data = sample(24, 20_000);
    let blob = filter(tool("gzip", "gzip").arg("-c"), &data);
    let (_, passed, _) = pass(&blob, 8_000).unwrap();
    let longer = Arc::new(MemorySource::new([&blob[..], &[0]].concat()));
    let error = Unpacked::new(longer, None, passed.spans, Cache::new(0)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn restart_points_of_another_blob_give_errors() {
    let (one, other) = (sample(25, 100_000), sample(26, 100_000));
    let gzip = |data: &[u8]| filter(tool("gzip", "gzip").args(["-c", "-n"]), data);
    let (a, b) = (gzip(&one), gzip(&other));
    let len = a.len().min(b.len());
    let (_, passed, side) = pass(&a, 10_000).unwrap();
    let mut swapped = b[..len].to_vec();
    swapped.resize(a.len(), 0);
    let source = over(swapped, &passed.spans, &side);
    for at in (0..100_000).step_by(1_000) {
        let mut buf = [0; 1_000];
        if source.read_at(at as u64, &mut buf).is_ok() {
            assert!(buf == one[at..at + 1_000], "wrong bytes at {at}");
        }
    }
}

/// The restart points with their checksum made right again, as somebody would who can write them.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = 56..72;
    if bytes.len() >= sum.end {
        bytes[sum.clone()].fill(0);
        let hash = blake3::hash(&bytes);
        bytes[sum].copy_from_slice(&hash.as_bytes()[..16]);
    }
    bytes
}

#[test]
fn damaged_restart_points_never_give_wrong_bytes() {
    let data = sample(27, 40_000);
    for (name, blob) in blobs(&data) {
        let (_, passed, side) = pass(&blob, 4_000).unwrap();
        let good = passed.spans.as_bytes().to_vec();
        assert_eq!(resealed(good.clone()), good, "the checksum is where the test thinks");
        let mut rng = Rng(5);
        for round in 0..600 {
            let mut bad = good.clone();
            match round % 3 {
                0 => bad.truncate(rng.below(good.len() as u64) as usize),
                _ => {
                    for _ in 0..1 + rng.below(4) {
                        let at = rng.below(bad.len() as u64) as usize;
                        bad[at] = [0, 1, 0x7f, 0xff, rng.number() as u8][rng.below(5) as usize];
                    }
                }
            }
            let unsealed = Spans::from_bytes(bad.clone());
            assert!(unsealed.is_err() || bad == good, "{name}: the checksum is checked");
            let Ok(spans) = Spans::from_bytes(resealed(bad.clone())) else { continue };
            let (blob, side) =
                (Arc::new(MemorySource::new(blob.clone())), side.try_clone().unwrap());
            let side = Arc::new(FileSource::new(side, "side".into()).unwrap());
            let Ok(source) = Unpacked::new(blob, Some(side), spans, Cache::new(0)) else {
                continue;
            };
            for at in (0..source.len().min(40_000)).step_by(1_000) {
                let len = (source.len() - at).min(1_000) as usize;
                let mut buf = vec![0; len];
                if source.read_at(at, &mut buf).is_ok() {
                    // Bytes that match a hash that somebody else wrote are the hash's business;
                    // flips do not find such.
                    let expected = data.get(at as usize..at as usize + len);
                    let shifted = data.windows(len.max(1)).any(|window| window == buf);
                    assert!(expected == Some(&buf) || shifted, "{name}: wrong bytes at {at}");
                }
            }
        }
    }
}

#[test]
fn a_side_file_that_changed() {
    use std::os::unix::fs::FileExt;
    let data = sample(28, 50_000);
    let blob = filter(tool("bzip2", "bzip2").arg("-c"), &data);
    let side = tempfile::tempfile().unwrap();
    let keep = Side { file: side.try_clone().unwrap(), max_len: 1 << 20 };
    let options = Options { span: 5_000, side: Some(keep), ..Options::default() };
    let (_, passed) = pass_with(&blob, options).unwrap();
    side.write_all_at(&[0x55; 40], passed.spans.side_len() / 2).unwrap();
    let source = over(blob.clone(), &passed.spans, &side);
    let mut errors = 0;
    for at in (0..50_000).step_by(1_000) {
        let mut buf = [0; 1_000];
        match source.read_at(at as u64, &mut buf) {
            Ok(()) => assert!(buf == data[at..at + 1_000]),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Corrupt);
                errors += 1;
            }
        }
    }
    assert!(errors > 0 && errors < 20, "{errors} errors");
    side.set_len(passed.spans.side_len() - 1).unwrap();
    let side = Arc::new(FileSource::new(side, "side".into()).unwrap());
    let blob = Arc::new(MemorySource::new(blob));
    let short = Unpacked::new(blob, Some(side), passed.spans, Cache::new(0)).unwrap_err();
    assert_eq!(short.kind(), Kind::Corrupt);
}
