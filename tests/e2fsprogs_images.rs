//! The damaged images that e2fsck is tested with: whatever is in them, everything is answered,
//! soon, and within bounds.
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use stratafs::block::{Cache, MemorySource};
use stratafs::fs;

mod support;
mod walk;

/// A test that hangs must fail: far more than any image takes on a slow machine.
const WATCHDOG: Duration = Duration::from_secs(30);

fn images() -> Vec<std::path::PathBuf> {
    let dir = support::fixture("e2fsprogs");
    let mut images: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "gz"))
        .collect();
    images.sort();
    images
}

#[test]
fn every_damaged_image_is_walked_to_the_end() {
    let images = images();
    assert!(images.len() >= 180, "{} images: run scripts/fixtures", images.len());
    let (mut opened, mut refused, mut slowest) = (0, 0, (Duration::ZERO, String::new()));
    for path in images {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let mut bytes = Vec::new();
        flate2::read::MultiGzDecoder::new(std::fs::File::open(&path).unwrap())
            .read_to_end(&mut bytes)
            .unwrap();
        let (done, result) = mpsc::channel();
        let started = Instant::now();
        let worker = std::thread::spawn(move || {
            let cache = Cache::new(0);
            let outcome = fs::open(Arc::new(MemorySource::new(bytes)), &cache)
                .map(|found| found.map(|found| (walk::walk(&*found.tree), found.info.warnings)))
                .map_err(|error| error.to_string());
            assert!(cache.weight() <= cache.capacity());
            done.send(outcome).ok();
        });
        let outcome = result.recv_timeout(WATCHDOG).unwrap_or_else(|error| match error {
            mpsc::RecvTimeoutError::Timeout => panic!("{name} hangs"),
            mpsc::RecvTimeoutError::Disconnected => {
                panic!("{name}: {:?}", worker.join().unwrap_err().downcast_ref::<String>())
            }
        });
        let took = started.elapsed();
        if took > slowest.0 {
            slowest = (took, name.clone());
        }
        match outcome {
            Ok(Some((walked, warnings))) => {
                opened += 1;
                println!("{name}: {} nodes, {:?}, {warnings:?}", walked.nodes, walked.errors);
            }
            Ok(None) => {
                refused += 1;
                println!("{name}: nothing known");
            }
            Err(error) => {
                refused += 1;
                assert!(!error.contains('\n'));
                println!("{name}: {error}");
            }
        }
    }
    println!("{opened} opened, {refused} refused, slowest {slowest:?}");
    // Most are damaged in one object only, which must not keep the rest from being read.
    assert!(opened > 150, "{opened}");
}
