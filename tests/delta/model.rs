//! Random operations, beside a plain array; qemu-img judges the file and the disk at the end.

use std::path::Path;
use std::sync::Arc;

use stratafs::block::BlockSource;
use stratafs::image::qcow2::Delta;

use crate::number;
use crate::rng::Rng;
use crate::support::{qemu_img, run, tool};
use crate::workload::{Operation, check_all, disk};

/// Fails if qemu-img finds an error or a leak.
#[track_caller]
pub fn check(image: &Path) {
    run(tool("qemu-img", "qemu-utils").args(["check", "-q", "-f", "qcow2"]).arg(image));
}

/// Fails unless qemu-img reads `expected` in `image`, whose backing file's bytes are `below`.
#[track_caller]
pub fn compare(image: &Path, below: Option<&[u8]>, expected: &[u8]) {
    let dir = image.parent().unwrap();
    let raw = dir.join("expected.raw");
    std::fs::write(&raw, expected).unwrap();
    if let Some(below) = below {
        let base = dir.join("below.raw");
        let mut padded = below.to_vec();
        // QEMU reads whole sectors.
        padded.resize(below.len().next_multiple_of(512), 0);
        std::fs::write(&base, padded).unwrap();
        qemu_img([
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            "below.raw",
            image.to_str().unwrap(),
        ]);
    }
    qemu_img([
        "compare",
        "-f",
        "qcow2",
        "-F",
        "raw",
        image.to_str().unwrap(),
        raw.to_str().unwrap(),
    ]);
}

fn one_run(seed: u64, operations: u64, dir: &Path) {
    let mut rng = Rng(seed);
    let (_, storage, below, mut expected) = disk(&mut rng, 3 << 20);
    let storage = Arc::new(storage);
    let below = below.map(Arc::new);
    let source = || below.clone().map(|below| below as Arc<dyn BlockSource>);
    let open = |size| Delta::open_on(storage.clone(), "delta", source(), size).unwrap();
    let mut delta = open(None);
    for _ in 0..operations {
        let operation = Operation::random(&mut rng, expected.len() as u64);
        operation.run(&delta, &expected).unwrap();
        operation.apply(&mut expected);
        if let Operation::Reopen = operation {
            match rng.below(4) {
                // As if it were killed: what the map lacks is lost, so flush first.
                0 => {
                    stratafs::block::BlockSink::flush(&delta).unwrap();
                    let bytes = storage.0.lock().unwrap().bytes.clone();
                    drop(delta);
                    storage.0.lock().unwrap().bytes = bytes;
                    delta = open(None);
                }
                1 if expected.len() < 8 << 20 => {
                    drop(delta);
                    let size = expected.len() as u64 + rng.below(1 << 20) / 512 * 512;
                    expected.resize(size as usize, 0);
                    delta = open(Some(size));
                }
                _ => {
                    delta.close().unwrap();
                    drop(delta);
                    delta = open(None);
                }
            }
        }
    }
    check_all(&delta, &expected);
    delta.close().unwrap();
    check_all(&delta, &expected);
    drop(delta);
    check_all(&open(None), &expected);
    let image = dir.join("delta.qcow2");
    storage.save(&image);
    check(&image);
    compare(&image, below.as_ref().map(|below| &below.0[..]), &expected);
    // After all is discarded the file is nearly empty.
    let delta = open(None);
    stratafs::block::BlockSink::write_zeroes(&delta, 0, expected.len() as u64).unwrap();
    delta.close().unwrap();
    storage.save(&image);
    check(&image);
}

/// Every `parts`th run from the one of number `part` on.
fn part(part: u64) {
    const PER_RUN: u64 = 500;
    let operations = number("STRATA_DELTA_OPERATIONS", 20_000);
    let first = number("STRATA_RANDOM_SEED", 1);
    let dir = tempfile::tempdir().unwrap();
    for run in (part..operations.div_ceil(PER_RUN)).step_by(2) {
        let seed = first + run;
        let done = std::panic::catch_unwind(|| one_run(seed, PER_RUN, dir.path()));
        if let Err(panic) = done {
            eprintln!(
                "seed {seed}: STRATA_RANDOM_SEED={seed} STRATA_DELTA_OPERATIONS=1 repeats it"
            );
            std::panic::resume_unwind(panic);
        }
    }
    let runs = (part..operations.div_ceil(PER_RUN)).step_by(2).count();
    println!("{runs} deltas of {PER_RUN} operations each, from seed {}", first + part);
}

#[test]
fn operations_beside_an_array_1() {
    part(0);
}

#[test]
fn operations_beside_an_array_2() {
    part(1);
}
