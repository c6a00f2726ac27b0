//! L1 and L2 entries made into places: what is read, what is lost, and what beside it is not.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::cause::Cause;
use super::super::*;
use super::builder::*;
use crate::block::{BlockSource, Cache, Fault, FaultSource, MemorySource};
use crate::chain::{Chain, Layer, Place};
use crate::error::Kind;

const CLUSTER: u64 = 4096;

/// The cause of the damage at `guest`; the clusters beside it are read.
#[track_caller]
fn damage(bytes: Vec<u8>, guest: u64) -> Cause {
    let layer = open_bytes(bytes).unwrap().layer(None, None).unwrap();
    let mut cause = None;
    let mut at = 0;
    layer
        .map(0..layer.virtual_size(), &mut |len, place| {
            if let Place::Damaged(error) = place
                && (at..at + len).contains(&guest)
            {
                assert_eq!(error.kind(), Kind::Corrupt);
                assert!(error.to_string().starts_with("image: "));
                cause = error.cause::<Cause>().cloned();
            }
            at += len;
        })
        .unwrap();
    let disk = disk(layer);
    assert_eq!(disk.read_at(guest, &mut [0; 16]).unwrap_err().kind(), Kind::Corrupt);
    cause.expect("damage")
}

#[test]
fn clusters_of_every_sort() {
    let text: Vec<u8> = (0..CLUSTER).map(|at| (at / 100) as u8).collect();
    let builder = Builder::with(vec![
        (0, Content::Data(1)),
        (1, Content::Data(2)),
        (3, Content::Compressed(deflate(&text))),
        (4, Content::Compressed(deflate(&[7; 4096]))),
        (5, Content::Entry(1)),
        // A zero cluster with room set aside for it, wherever that is.
        (6, Content::Entry(1 << 40 | 1)),
        (15, Content::Data(9)),
    ]);
    let disk = disk(builder.image().layer(None, None).unwrap());
    assert_eq!(byte_at(&disk, 0, 4096).unwrap(), 1);
    assert_eq!(byte_at(&disk, CLUSTER, 4096).unwrap(), 2);
    assert_eq!(byte_at(&disk, 2 * CLUSTER, 4096).unwrap(), 0);
    let mut buf = vec![0; 4096];
    disk.read_at(3 * CLUSTER, &mut buf).unwrap();
    assert_eq!(buf, text);
    disk.read_at(3 * CLUSTER + 999, &mut buf[..100]).unwrap();
    assert_eq!(buf[..100], text[999..1099]);
    assert_eq!(byte_at(&disk, 4 * CLUSTER, 4096).unwrap(), 7);
    assert_eq!(byte_at(&disk, 5 * CLUSTER, 2 * 4096).unwrap(), 0);
    assert_eq!(byte_at(&disk, 15 * CLUSTER, 4096).unwrap(), 9);
}

#[test]
fn contiguous_clusters_are_one_place() {
    let clusters = (0..16).map(|guest| (guest, Content::Data(1))).collect();
    let layer = Builder::with(clusters).image().layer(None, None).unwrap();
    let mut places = Vec::new();
    layer.map(100..60_000, &mut |len, place| places.push((len, format!("{place:?}")))).unwrap();
    assert_eq!(places.len(), 1, "{places:?}");
    assert_eq!(places[0].0, 59_900);
}

/// A region of a sparse disk is mapped with one look at the L1 table in memory, and no read.
#[test]
fn an_empty_disk_reads_nothing() {
    let mut bytes = Builder { cluster_bits: 16, size: 4 << 40, ..Builder::default() }.build();
    fixed(&mut bytes).l1_size = 8192.into();
    put(&mut bytes, L1 << 16, 0);
    let source = Arc::new(FaultSource::new(Arc::new(MemorySource::new(bytes)), |_, _, _| None));
    let layer = open(Arc::clone(&source) as _, "image").unwrap().layer(None, None).unwrap();
    let before = source.reads();
    for start in [0, 1 << 40, (4 << 40) - (32 << 20)] {
        let mut absent = 0;
        layer
            .map(start..start + (32 << 20), &mut |len, place| {
                assert!(matches!(place, Place::Absent));
                absent += len;
            })
            .unwrap();
        assert_eq!(absent, 32 << 20);
    }
    assert_eq!(source.reads(), before);
}

#[test]
fn a_table_too_large_to_hold_is_read_as_needed() {
    // 64 KiB of L1 table is the most that is held: 8,192 entries of 2 MiB each.
    let size = 8193 * (2 << 20);
    let mut bytes = Builder { size, ..Builder::default() }.build();
    let end = bytes.len() as u64;
    bytes.resize(bytes.len() + 17 * 4096, 0);
    fixed(&mut bytes).l1_size = 8193.into();
    fixed(&mut bytes).l1_table_offset = end.into();
    let (l2, data) = (end + 17 * CLUSTER, end + 18 * CLUSTER);
    put(&mut bytes, end + 8192 * 8, l2);
    bytes.resize(l2 as usize, 0);
    bytes.resize(data as usize, 0);
    put(&mut bytes, l2 + 511 * 8, data);
    bytes.resize(data as usize + 4096, 6);
    let disk = disk(open_bytes(bytes).unwrap().layer(None, None).unwrap());
    assert_eq!(byte_at(&disk, size - 4096, 4096).unwrap(), 6);
    assert_eq!(byte_at(&disk, size - 2 * 4096, 4096).unwrap(), 0);
    assert_eq!(byte_at(&disk, 0, 4096).unwrap(), 0);
}

#[test]
fn damaged_entries_leave_their_neighbours_readable() {
    let end = (DATA + 2) * CLUSTER;
    let cases = [
        (end, Cause::ClusterBeyondEnd { guest: CLUSTER, host: end }),
        ((1 << 56) - 4096, Cause::ClusterBeyondEnd { guest: CLUSTER, host: (1 << 56) - 4096 }),
        (
            DATA * CLUSTER + 512,
            Cause::ClusterMisaligned { guest: CLUSTER, host: DATA * CLUSTER + 512 },
        ),
        (1 << 62 | 1 << 50, Cause::ClusterBeyondEnd { guest: CLUSTER, host: 1 << 50 }),
    ];
    for (entry, cause) in cases {
        let builder = Builder::with(vec![
            (0, Content::Data(1)),
            (1, Content::Entry(entry)),
            (2, Content::Data(3)),
        ]);
        assert_eq!(damage(builder.build(), CLUSTER), cause);
        let disk = disk(builder.image().layer(None, None).unwrap());
        assert_eq!(byte_at(&disk, 0, 4096).unwrap(), 1);
        assert_eq!(byte_at(&disk, 2 * CLUSTER, 4096).unwrap(), 3);
    }
    let zero = Builder { version: 2, ..Builder::with(vec![(1, Content::Entry(1))]) };
    assert_eq!(damage(zero.build(), CLUSTER), Cause::ZeroInVersion2 { guest: CLUSTER });
}

#[test]
fn damaged_l2_tables() {
    let at = L1 * CLUSTER;
    let mut bytes = Builder::default().build();
    put(&mut bytes, at, 3 * CLUSTER + 512);
    let cause = damage(bytes.clone(), 0);
    assert_eq!(cause, Cause::L2Misaligned { guest: 0, host: 3 * CLUSTER + 512 });
    // Near 2^56, and bits that are reserved or mean nothing to a reader around it.
    put(&mut bytes, at, !0xfff);
    let cause = damage(bytes.clone(), 5 * CLUSTER);
    assert_eq!(cause, Cause::L2BeyondEnd { guest: 0, host: (1 << 56) - 4096 });
    // A table cut by the end of the file: what is left of it counts, the rest is lost.
    let mut bytes = Builder::with(vec![(0, Content::Data(4))]).build();
    let table = bytes.len() as u64;
    let entry = DATA * CLUSTER;
    bytes.extend(entry.to_be_bytes());
    bytes.extend(0_u64.to_be_bytes());
    put(&mut bytes, at, table);
    let cause = damage(bytes.clone(), 2 * CLUSTER);
    assert_eq!(cause, Cause::L2BeyondEnd { guest: 2 * CLUSTER, host: table });
    let disk = disk(open_bytes(bytes).unwrap().layer(None, None).unwrap());
    assert_eq!(byte_at(&disk, 0, 4096).unwrap(), 4);
    assert_eq!(byte_at(&disk, CLUSTER, 4096).unwrap(), 0);
}

#[test]
fn the_last_cluster_may_be_cut() {
    let builder = Builder::with(vec![(0, Content::Data(1)), (1, Content::Data(2))]);
    let mut bytes = builder.build();
    bytes.truncate(bytes.len() - 4000);
    let disk = disk(open_bytes(bytes).unwrap().layer(None, None).unwrap());
    assert_eq!(byte_at(&disk, CLUSTER, 96).unwrap(), 2);
    assert_eq!(byte_at(&disk, CLUSTER + 96, 4000).unwrap(), 0);
}

#[test]
fn compressed_clusters_as_they_come() {
    let noise: Vec<u8> =
        (0..4096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let read = |stream: Vec<u8>, zstd: bool| {
        let builder = Builder {
            incompatible: if zstd { 8 } else { 0 },
            compression_type: zstd.then_some(1),
            ..Builder::with(vec![(1, Content::Compressed(stream))])
        };
        let layer = builder.image().layer(None, None).unwrap();
        let mut buf = vec![0; 4096];
        disk(layer).read_at(CLUSTER, &mut buf).map(|()| buf)
    };
    let why = |result: Result<Vec<u8>>| match result.unwrap_err().cause::<Cause>() {
        Some(Cause::Compressed { why, .. }) => *why,
        other => panic!("{other:?}"),
    };
    let whole = deflate(&noise);
    assert_eq!(read(whole.clone(), false).unwrap(), noise);
    let mut garbage = whole.clone();
    garbage.extend([0xee; 700]);
    assert_eq!(read(garbage, false).unwrap(), noise);
    // More than a cluster, so that the end marker is never met.
    assert_eq!(read(deflate(&[&noise[..], &[1; 5000]].concat()), false).unwrap(), noise);
    // No end marker at all: a flush in place of the end.
    let mut compress = flate2::Compress::new(flate2::Compression::fast(), false);
    let mut open_ended = Vec::with_capacity(8192);
    compress.compress_vec(&noise, &mut open_ended, flate2::FlushCompress::Sync).unwrap();
    assert_eq!(read(open_ended, false).unwrap(), noise);
    assert!(why(read(deflate(&noise[..4095]), false)).contains("ends before"));
    assert!(why(read(whole[..whole.len() / 2].to_vec(), false)).contains("ends before"));
    assert!(why(read(vec![0xff; 600], false)).contains("not a deflate"));

    let frame = |data: &[u8]| {
        let mut out = vec![0; 10_000];
        let len = zstd::zstd_safe::compress(&mut out[..], data, 3).unwrap();
        out.truncate(len);
        out
    };
    assert_eq!(read(frame(&noise), true).unwrap(), noise);
    let mut padded = frame(&noise);
    padded.extend([0; 300]);
    assert_eq!(read(padded, true).unwrap(), noise);
    let mut two = frame(&noise[..1000]);
    two.extend(frame(&noise[1000..]));
    two.extend([0x55; 20]);
    assert_eq!(read(two, true).unwrap(), noise);
    assert!(why(read(frame(&noise[..4000]), true)).contains("ends before"));
    assert!(why(read(frame(&[&noise[..], &[1; 5000]].concat()), true)).contains("goes on"));
    assert!(why(read(vec![1; 600], true)).contains("not a zstd"));
    // A frame that asks for a window of 2 GiB gets none.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x55, 0x55, 0x00, 0x00];
    assert!(why(read(window.to_vec(), true)).contains("not a zstd"));
}

#[test]
fn subclusters() {
    const BIG: u64 = 16384;
    const SUB: u64 = BIG / 32;
    let builder = |contents| Builder {
        cluster_bits: 14,
        size: 8 * BIG,
        incompatible: 1 << 4,
        ..Builder::with(contents)
    };
    let mixed = builder(vec![
        (0, Content::Subclusters(1, 0b1011 | 0b0100 << 32)),
        (1, Content::Data(2)),
        (2, Content::Extended(0, 0xf0_u64 << 32)),
        // Bit 0 means nothing here.
        (3, Content::Extended(1, 0)),
        (4, Content::Compressed(deflate(&[5; 16384]))),
    ]);
    let below = MemorySource::new(vec![0xee; 8 * BIG as usize]);
    let layers: Vec<Arc<dyn Layer>> = vec![
        Arc::new(mixed.image().layer(None, None).unwrap()),
        Arc::new(crate::image::Raw::new(Arc::new(below))),
    ];
    let disk = Chain::new(layers, Cache::new(0)).unwrap();
    let expected = [(0, 2, 1), (2, 1, 0), (3, 1, 1), (4, 28, 0xee), (32, 32, 2), (64, 4, 0xee)];
    for (first, count, byte) in expected {
        let (at, len) = (first * SUB, (count * SUB) as usize);
        assert_eq!(byte_at(&disk, at, len).unwrap(), byte, "subcluster {first}");
    }
    assert_eq!(byte_at(&disk, 68 * SUB, 4 * SUB as usize).unwrap(), 0);
    assert_eq!(byte_at(&disk, 72 * SUB, 56 * SUB as usize).unwrap(), 0xee);
    assert_eq!(byte_at(&disk, 128 * SUB, 16384).unwrap(), 5);

    let both = 1 << 32 | 1;
    let cause = |bitmap| Cause::Subclusters { guest: 0, bitmap };
    let contradiction = builder(vec![(0, Content::Subclusters(1, both))]);
    assert_eq!(damage(contradiction.build(), 0), cause(both));
    let nowhere = builder(vec![(0, Content::Extended(0, 4))]);
    assert_eq!(damage(nowhere.build(), 0), cause(4));
}

#[test]
fn external_data_files() {
    let name = (super::super::extension::kind::DATA_FILE, b"disk.data".to_vec());
    let builder = Builder {
        incompatible: 4,
        extensions: vec![name],
        ..Builder::with(vec![
            // Offset 0 is an offset here, if bit 63 says so.
            (0, Content::Entry(1 << 63)),
            (1, Content::Entry(1 << 63 | CLUSTER)),
            (2, Content::Entry((1 << 63) | (3 * CLUSTER))),
            (3, Content::Entry((1 << 62) | (3 * CLUSTER))),
            (4, Content::Entry((1 << 63) | (4 * CLUSTER))),
        ])
    };
    let image = builder.image();
    assert_eq!(image.data_file().unwrap().unwrap(), "disk.data");
    let data = || -> Arc<dyn BlockSource> { Arc::new(MemorySource::new(vec![8; 5000])) };
    let layer = image.layer(None, Some(data())).unwrap();
    let mut causes = Vec::new();
    layer
        .map(0..layer.virtual_size(), &mut |_, place| {
            if let Place::Damaged(error) = place {
                causes.push(error.cause::<Cause>().cloned().unwrap());
            }
        })
        .unwrap();
    assert_eq!(causes, [Cause::ClusterMoved { guest: 2 * CLUSTER, host: 3 * CLUSTER }]);
    let disk = disk(layer);
    assert_eq!(byte_at(&disk, 0, 5000).unwrap(), 8);
    assert_eq!(byte_at(&disk, 5000, 8192 - 5000).unwrap(), 0);
    assert!(byte_at(&disk, 3 * CLUSTER, 10).is_err(), "compressed");
    assert_eq!(byte_at(&disk, 4 * CLUSTER, 4096).unwrap(), 0);
    // Without a data file, offset 0 is never one: bit 63 says no more than that.
    let plain = Builder::with(vec![(0, Content::Entry(1 << 63))]);
    let layer = plain.image().layer(None, None).unwrap();
    layer.map(0..CLUSTER, &mut |_, place| assert!(matches!(place, Place::Absent))).unwrap();
}

/// A snapshot whose entry does not say its disk's size, of a disk that has grown since: its table
/// is shorter than the disk.
#[test]
fn a_snapshot_of_unknown_size() {
    let snapshots = vec![("1", "old", false)];
    let clusters = vec![(0, Content::Data(3))];
    let mut bytes = Builder { snapshots, ..Builder::with(clusters) }.build();
    fixed(&mut bytes).size = (4 << 20).into();
    fixed(&mut bytes).l1_size = 2.into();
    let layer = open_bytes(bytes).unwrap().layer(Some("old"), None).unwrap();
    assert_eq!(layer.virtual_size(), 4 << 20);
    let disk = disk(layer);
    assert_eq!(byte_at(&disk, 0, 4096).unwrap(), 3);
    assert_eq!(byte_at(&disk, (4 << 20) - 4096, 4096).unwrap(), 0);
}

/// Each read of the host fails in turn: the error is the host's, and what follows is right.
#[test]
fn every_read_may_fail() {
    let builder = Builder {
        snapshots: vec![("1", "one", true)],
        backing: Some(b"base".to_vec()),
        extensions: vec![(5, vec![1; 10])],
        ..Builder::with(vec![(0, Content::Data(1)), (2, Content::Compressed(deflate(&[9; 4096])))])
    };
    let bytes = builder.build();
    // Fails the read of that number once; says how many reads there were and how many steps
    // failed.
    let run = |fail: u64| -> (u64, usize) {
        let count = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&count);
        let source =
            FaultSource::new(Arc::new(MemorySource::new(bytes.clone())), move |_, _, _| {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                (number == fail).then_some(Fault::Errno(libc::EIO))
            });
        let source: Arc<dyn BlockSource> = Arc::new(source);
        let failures = Cell::new(0);
        let image = again(&failures, || open(Arc::clone(&source), "image"));
        assert_eq!(again(&failures, || image.snapshots()).len(), 1);
        let disk = disk(again(&failures, || image.layer(None, None)));
        for (guest, byte) in [(0, 1), (1, 0), (2, 9)] {
            assert_eq!(again(&failures, || byte_at(&disk, guest * CLUSTER + 5, 1000)), byte);
        }
        (count.load(Ordering::SeqCst), failures.get())
    };
    let (reads, failures) = run(u64::MAX);
    assert_eq!(failures, 0);
    assert!(reads > 6);
    for number in 0..reads {
        assert_eq!(run(number).1, 1, "read {number}");
    }
}

/// Does `step`, and once more if it fails, which it may by the host's fault only.
#[track_caller]
fn again<T>(failures: &Cell<usize>, step: impl Fn() -> Result<T>) -> T {
    step().unwrap_or_else(|error| {
        assert_eq!(error.kind(), Kind::Io, "{error}");
        failures.set(failures.get() + 1);
        step().unwrap()
    })
}
