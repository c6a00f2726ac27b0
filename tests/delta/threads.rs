//! Many threads at once, in places of their own and in the same ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stratafs::block::{BlockSink, BlockSource};
use stratafs::image::qcow2::{Backing, Delta, NewDelta};

use crate::model::{check, compare};
use crate::rng::Rng;
use crate::storage::Below;
use crate::workload::{check_all, same};

const SIZE: u64 = 6 << 20;

/// Each thread owns every fourth piece of 1,000 bytes, so that all share subclusters, and does what
/// it likes there; somebody flushes all the time.
#[test]
fn writers_beside_each_other_keep_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta.qcow2");
    let bytes = Rng(7).bytes(4 << 20);
    std::fs::write(dir.path().join("below.raw"), &bytes).unwrap();
    let backing = Backing { name: "below.raw".as_ref(), format: "raw" };
    Delta::create(&path, &NewDelta { size: SIZE, backing: Some(backing) }).unwrap();
    let below: Arc<dyn BlockSource> = Arc::new(Below(bytes.clone()));
    let delta = Delta::open(&path, Some(below.clone()), None).unwrap();
    let mut start = bytes.clone();
    start.resize(SIZE as usize, 0);
    let done = AtomicBool::new(false);
    let ends: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                delta.flush().unwrap();
            }
        });
        let writers: Vec<_> = (0..4_u64)
            .map(|number| {
                let (delta, mut own) = (&delta, start.clone());
                scope.spawn(move || {
                    let mut rng = Rng(number + 100);
                    for _ in 0..3000 {
                        let piece = rng.below(SIZE / 4000) * 4 + number;
                        let from = piece * 1000 + rng.below(900);
                        let to = (from + 1 + rng.below(1000)).min(piece * 1000 + 1000).min(SIZE);
                        let range = from as usize..to as usize;
                        match rng.below(5) {
                            0 => {
                                let mut found = vec![0; range.len()];
                                delta.read_at(from, &mut found).unwrap();
                                same(&found, &own[range], from);
                            }
                            1 => {
                                delta.write_zeroes(from, to - from).unwrap();
                                own[range].fill(0);
                            }
                            _ => {
                                let data = rng.bytes(range.len());
                                delta.write_at(from, &data).unwrap();
                                own[range].copy_from_slice(&data);
                            }
                        }
                    }
                    own
                })
            })
            .collect();
        let ends = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
        ends
    });
    let mut expected = start;
    for (at, byte) in expected.iter_mut().enumerate() {
        *byte = ends[at / 1000 % 4][at];
    }
    check_all(&delta, &expected);
    drop(delta);
    check(&path);
    compare(&path, Some(&bytes), &expected);
    check_all(&Delta::open(&path, Some(below), None).unwrap(), &expected);
}

/// Discards and writes of whole clusters beside readers: nobody ever reads another place's bytes.
#[test]
fn no_reader_sees_a_cluster_of_somebody_else() {
    const PIECE: u64 = 128 << 10;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta.qcow2");
    Delta::create(&path, &NewDelta { size: SIZE, backing: None }).unwrap();
    let delta = Delta::open(&path, None, None).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..2 {
            let (delta, done) = (&delta, &done);
            scope.spawn(move || {
                let mut rng = Rng(number);
                let mut buf = vec![0; PIECE as usize];
                while !done.load(Ordering::Relaxed) {
                    let piece = rng.below(SIZE / PIECE);
                    delta.read_at(piece * PIECE, &mut buf).unwrap();
                    let mark = piece as u8 + 1;
                    assert!(buf.iter().all(|&byte| byte == 0 || byte == mark), "another's bytes");
                }
            });
        }
        let mut rng = Rng(9);
        for round in 0..1500 {
            let piece = rng.below(SIZE / PIECE);
            if rng.below(2) == 0 {
                delta.write_zeroes(piece * PIECE, PIECE).unwrap();
            } else {
                delta.write_at(piece * PIECE, &vec![piece as u8 + 1; PIECE as usize]).unwrap();
            }
            if round % 5 == 0 {
                delta.flush().unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    drop(delta);
    check(&path);
}
