//! Several processes that write, remove and collect in one store at the same time, some of which are killed.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use stratafs::block::{BlockSource, Cache};
use stratafs::chain::Chain;
use stratafs::store::objects::Folder;
use stratafs::store::{Depth, Keyring, SnapshotLayer, Store};
use support::{run, stdout, strata};

const BLOCK: usize = 16 << 10;

fn store(dir: &Path) -> Arc<Store> {
    Arc::new(Store::open(Arc::new(Folder::new(dir)), &Cache::new(0), &Keyring::default()).unwrap())
}

fn init(dir: &Path) {
    run(strata().args(["store", "init", "--block-size", "16K"]).arg(dir));
}

/// The disk of a snapshot.
fn read(dir: &Path, id: &str) -> Vec<u8> {
    let store = store(dir);
    let (snapshot, disk) = store.select(id).unwrap();
    let layer = SnapshotLayer::new(store, &snapshot, &disk).unwrap();
    let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap();
    let mut bytes = vec![0; chain.len() as usize];
    chain.read_at(0, &mut bytes).unwrap();
    bytes
}

fn block(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes a snapshot of `disk`; its id.
fn create(dir: &Path, series: &str, disk: &Path) -> String {
    let mut create = strata();
    create.args(["snapshot", "create", "--json"]).arg(dir).arg(series).arg(disk);
    let told: serde_json::Value = serde_json::from_str(&stdout(&mut create)).unwrap();
    told["id"].as_str().unwrap().to_owned()
}

fn collect(dir: &Path) -> std::process::Command {
    let mut collect = strata();
    collect.args(["store", "collect", "--grace", "0s", "--unused", "0"]).arg(dir);
    collect.stdout(Stdio::null()).stderr(Stdio::null());
    collect
}

#[test]
fn writers_pruners_and_collectors_at_the_same_time() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("st");
    init(&dir);
    let is_over = AtomicBool::new(false);
    let made: Vec<(String, Vec<u8>)> = thread::scope(|scope| {
        // Blocks come and go, and are shared between the two.
        let writer = |number: u64| {
            let (dir, disk) = (&dir, place.path().join(format!("disk{number}.raw")));
            let mut made = Vec::new();
            for round in 0..10 {
                let seeds = (0..60).map(|at| (at * 7 + round * (number + 3) * at) % 90);
                let bytes: Vec<u8> = seeds.flat_map(block).collect();
                fs::write(&disk, &bytes).unwrap();
                made.push((create(dir, &format!("series{number}"), &disk), bytes));
            }
            made
        };
        let writers = [0, 1].map(|number| scope.spawn(move || writer(number)));
        let cleaner = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                let mut prune = strata();
                prune.args(["snapshot", "prune", "--keep-last", "2"]).arg(&dir);
                run(&mut prune);
                let mut child = collect(&dir).spawn().unwrap();
                // Every other one is killed, later and later.
                if round % 2 == 0 {
                    thread::sleep(Duration::from_millis(round));
                    child.kill().unwrap();
                }
                child.wait().unwrap();
                round += 1;
            }
        });
        let made = writers.map(|writer| writer.join().unwrap()).concat();
        is_over.store(true, Ordering::Relaxed);
        cleaner.join().unwrap();
        made
    });
    let check = || {
        let snapshots = store(&dir).snapshots().unwrap();
        for snapshot in &snapshots {
            let id = snapshot.id.to_string();
            let (_, bytes) = made.iter().find(|(made, _)| *made == id).unwrap();
            assert!(read(&dir, &id) == *bytes, "{id}");
        }
        let checked = store(&dir).check(Depth::Data, &|| {}).unwrap();
        assert_eq!(checked.problems, []);
        snapshots.len()
    };
    assert!(check() >= 4);
    run(strata().args(["snapshot", "prune", "--keep-last", "1"]).arg(&dir));
    // The first one condemns, the second one has nobody to wait for.
    run(&mut collect(&dir));
    run(&mut collect(&dir));
    assert_eq!(check(), 2);
    // What is left is what two disks need, and a little more.
    let usage = store(&dir).usage().unwrap();
    assert!(usage.pack_bytes < 2 * 61 * (BLOCK as u64 + 100), "{usage:?}");
}

#[test]
fn what_a_killed_writer_left_is_given_back() {
    let place = tempfile::tempdir().unwrap();
    let (dir, disk) = (place.path().join("st"), place.path().join("disk.raw"));
    init(&dir);
    fs::write(&disk, block(1)).unwrap();
    let kept = create(&dir, "kept", &disk);
    let large: Vec<u8> = (0..6000).flat_map(block).collect();
    fs::write(&disk, &large).unwrap();
    for kill in 1..8 {
        let mut create = strata();
        create.args(["snapshot", "create"]).arg(&dir).args(["web".as_ref(), disk.as_os_str()]);
        let mut child = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(kill * 15));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for snapshot in store(&dir).snapshots().unwrap() {
        if snapshot.id.to_string() != kept {
            store(&dir).remove(snapshot.id).unwrap();
        }
    }
    for grace in ["2d", "90m", "0s", "0s"] {
        run(strata().args(["store", "collect", "--grace", grace]).arg(&dir));
    }
    let usage = store(&dir).usage().unwrap();
    assert!(usage.pack_bytes < 2 * BLOCK as u64, "{usage:?}");
    for part in ["leases", "condemned"] {
        let left: Vec<_> = fs::read_dir(dir.join(part)).unwrap().collect();
        assert!(left.is_empty(), "{part}: {left:?}");
    }
    assert!(read(&dir, &kept) == block(1));
}
