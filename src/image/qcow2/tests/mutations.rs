//! Damage at random: no panic, no wild memory, and never a wrong byte out of a file cut short.

use std::sync::Arc;

use super::super::extension::kind;
use super::builder::*;
use crate::block::{BlockSource, Cache, MemorySource};
use crate::chain::{Chain, Layer};

/// Opens whatever `bytes` are, maps all of the disk and reads at both ends of it.
fn exercise(bytes: Vec<u8>, cache: &Arc<Cache>) {
    let Ok(image) = open_bytes(bytes) else { return };
    let snapshots = image.snapshots().unwrap_or_default();
    let _ = image.bitmaps();
    let _ = (image.info(), image.warnings(), image.data_file());
    let data: Arc<dyn BlockSource> = Arc::new(MemorySource::new(vec![1; 10_000]));
    let data = image.data_file().ok().flatten().map(|_| data);
    let names = snapshots.iter().take(3).map(|snapshot| Some(snapshot.id.as_str()));
    for name in names.chain([None]) {
        let Ok(layer) = image.layer(name, data.clone()) else { continue };
        let size = layer.virtual_size();
        let mut mapped = 0;
        layer.map(0..size.min(32 << 20), &mut |len, _| mapped += len).unwrap();
        assert_eq!(mapped, size.min(32 << 20));
        let disk = Chain::new(vec![Arc::new(layer)], Arc::clone(cache)).unwrap();
        let mut buf = vec![0; 100_000.min(size as usize)];
        let _ = disk.read_at(0, &mut buf);
        for at in (0..size.min(200_000)).step_by(9_001) {
            let len = buf.len().min(3_000).min((size - at) as usize);
            let _ = disk.read_at(at, &mut buf[..len]);
        }
        let len = buf.len().min(5_000);
        let _ = disk.read_at(size - len as u64, &mut buf[..len]);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..16384_u32).map(|at| (at / 50) as u8).collect();
    let frame = |len: usize| {
        let mut out = vec![0; 20_000];
        let stored = zstd::zstd_safe::compress(&mut out[..], &text[..len], 3).unwrap();
        out.truncate(stored);
        out
    };
    let mut bitmaps = 1_u32.to_be_bytes().to_vec();
    bitmaps.extend([0; 4]);
    bitmaps.extend(32_u64.to_be_bytes());
    bitmaps.extend((SNAPSHOTS << 12).to_be_bytes());
    let plain = Builder {
        snapshots: vec![("1", "one", true), ("2", "two", false)],
        backing: Some(b"base.qcow2".to_vec()),
        extensions: vec![(kind::BACKING_FORMAT, b"qcow2".to_vec()), (kind::BITMAPS, bitmaps)],
        ..Builder::with(vec![
            (0, Content::Data(1)),
            (1, Content::Entry(1)),
            (3, Content::Compressed(deflate(&text[..4096]))),
            (4, Content::Compressed(deflate(&text[4096..8192]))),
        ])
    };
    let small = Builder {
        version: 2,
        cluster_bits: 9,
        size: 16 << 9,
        ..Builder::with(vec![
            (0, Content::Data(1)),
            (3, Content::Compressed(deflate(&text[..512]))),
        ])
    };
    let zstd = Builder {
        incompatible: 8,
        compression_type: Some(1),
        ..Builder::with(vec![(2, Content::Compressed(frame(4096))), (5, Content::Data(3))])
    };
    let extended = Builder {
        cluster_bits: 14,
        size: 8 << 14,
        incompatible: 1 << 4,
        ..Builder::with(vec![
            (0, Content::Subclusters(1, 0b1011 | 0b0100 << 32)),
            (1, Content::Data(2)),
            (2, Content::Compressed(deflate(&text))),
        ])
    };
    let outside = Builder {
        incompatible: 4,
        extensions: vec![(kind::DATA_FILE, b"data".to_vec())],
        ..Builder::with(vec![(0, Content::Entry(1 << 63)), (1, Content::Entry(1 << 63 | 4096))])
    };
    [plain, small, zstd, extended, outside].iter().map(Builder::build).collect()
}

/// 20,000 images with a few bytes changed, mostly in their tables.
#[test]
fn mutations() {
    let seeds = seeds();
    let cache = Cache::new(0);
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = |bound: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as usize % bound
    };
    let mutations = std::env::var("STRATA_MUTATIONS")
        .map_or(100_000, |number| number.parse().expect("STRATA_MUTATIONS: a number"));
    for number in 0..mutations {
        let mut bytes = seeds[number % seeds.len()].clone();
        let cluster = if number % 5 == 1 {
            512
        } else if number % 5 == 3 {
            16384
        } else {
            4096
        };
        for _ in 0..1 + random(4) {
            // The header, an entry of a table, or anywhere.
            let at = match random(4) {
                0 => random(120),
                1 => (1 + random(4)) * cluster + random(64),
                2 => random(400),
                _ => random(bytes.len()),
            };
            let at = at.min(bytes.len() - 1);
            bytes[at] = match random(4) {
                0 => 0xff,
                1 => 0,
                2 => bytes[at] ^ 1 << random(8),
                _ => random(256) as u8,
            };
        }
        if random(10) == 0 {
            bytes.truncate(random(bytes.len()));
        }
        exercise(bytes, &cache);
    }
}

/// Cut at every sector: what is still read is what was there, but for the tail of the one cluster
/// that the cut goes through, which is zeros as for QEMU.
#[test]
fn truncation() {
    let cache = Cache::new(0);
    for seed in seeds() {
        if open_bytes(seed.clone()).unwrap().data_file().unwrap().is_some() {
            continue;
        }
        let open = |bytes: Vec<u8>| {
            let layer = open_bytes(bytes)?.layer(None, None)?;
            Chain::new(vec![Arc::new(layer) as Arc<dyn Layer>], Arc::clone(&cache))
        };
        let whole = open(seed.clone()).unwrap();
        let mut expected = vec![0; whole.len() as usize];
        whole.read_at(0, &mut expected).unwrap();
        for cut in (0..seed.len()).step_by(512) {
            let Ok(disk) = open(seed[..cut].to_vec()) else { continue };
            let mut partly = Vec::new();
            for at in (0..disk.len()).step_by(512) {
                let mut sector = [0xaa; 512];
                if disk.read_at(at, &mut sector).is_err() {
                    continue;
                }
                if sector != expected[at as usize..][..512] {
                    assert_eq!(sector, [0; 512], "cut at {cut:#x}: other bytes at {at:#x}");
                    partly.push(at);
                }
            }
            if let (Some(first), Some(last)) = (partly.first(), partly.last()) {
                assert!(last - first < 16384, "cut at {cut:#x}: {first:#x} to {last:#x} are lost");
            }
        }
    }
}
