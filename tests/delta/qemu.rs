//! Overlays that QEMU made, taken further; and QEMU taking ours further.

use std::path::Path;
use std::sync::Arc;

use stratafs::block::{BlockSink, BlockSource};
use stratafs::image::qcow2::{Backing, Delta, NewDelta};

use crate::model::{check, compare};
use crate::number;
use crate::rng::Rng;
use crate::storage::Below;
use crate::support::{qemu_img, qemu_io};
use crate::workload::{Operation, check_all};

const SIZE: usize = 2 << 20;

/// What qemu-img reads in `image`, or in its snapshot.
fn contents(image: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = image.with_extension("contents");
    let (image, out) = (image.to_str().unwrap(), raw.to_str().unwrap());
    let mut args = vec!["convert", "-f", "qcow2", "-O", "raw"];
    let name = snapshot.map(|name| format!("snapshot.name={name}"));
    if let Some(name) = &name {
        args.extend(["-l", name]);
    }
    args.extend([image, out]);
    qemu_img(args);
    std::fs::read(&raw).unwrap()
}

fn operations(delta: &Delta, rng: &mut Rng, expected: &mut [u8], count: usize) {
    for _ in 0..count {
        let operation = Operation::random(rng, expected.len() as u64);
        operation.run(delta, expected).unwrap();
        operation.apply(expected);
    }
}

fn foreign(seed: u64, dir: &Path) {
    let mut rng = Rng(seed);
    let mut bytes = rng.bytes(SIZE - 70_000);
    bytes[300_000..700_000].fill(0);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let base = dir.join("base.raw");
    std::fs::write(&base, &bytes).unwrap();
    let image = dir.join("foreign.qcow2");
    let name = image.to_str().unwrap();
    let extended = rng.below(2) == 0;
    let bits = if extended { 14 + rng.below(4) } else { 9 + rng.below(9) };
    let order = rng.below(7);
    let zstd = rng.below(2) == 0;
    let lazy = rng.below(2) == 0;
    let mut options = format!(
        "cluster_size={},refcount_bits={},extended_l2={},lazy_refcounts={},compression_type={}",
        1_u64 << bits,
        1 << order,
        if extended { "on" } else { "off" },
        if lazy { "on" } else { "off" },
        if zstd { "zstd" } else { "zlib" },
    );
    options += ",backing_file=base.raw,backing_fmt=raw";
    let _ = std::fs::remove_file(&image);
    qemu_img(["create", "-q", "-f", "qcow2", "-o", &options, name, &SIZE.to_string()]);
    // Plain, compressed and zero clusters; then a snapshot that shares them; then some more.
    let io = |rng: &mut Rng, compressed: bool| {
        let mut commands = Vec::new();
        // QEMU compresses only into clusters that are not there yet.
        for nth in (0..5).filter(|_| compressed) {
            let at = nth * 3 * 131_072;
            commands.push(format!("write -c -P {} {at} {}", rng.below(255), 1_u64 << bits));
        }
        for _ in 0..12 {
            let at = rng.below(SIZE as u64 / 65536 - 2) * 65536;
            commands.push(match rng.below(4) {
                1 => format!("write -z {at} 70k"),
                2 => format!("write -z -u {at} 128k"),
                _ => format!("write -P {} {} 9k", rng.below(255), at + 512),
            });
        }
        let mut args: Vec<String> = vec!["-f".into(), "qcow2".into()];
        for command in commands {
            args.extend(["-c".into(), command]);
        }
        args.push(name.into());
        qemu_io(args);
    };
    io(&mut rng, true);
    // Narrow counts have no room for a second reference to what compressed clusters share.
    let snapshot = order > 2 && rng.below(3) > 0;
    if snapshot {
        qemu_img(["snapshot", "-c", "before", name]);
        io(&mut rng, false);
    }
    check(&image);
    let mut expected = contents(&image, None);
    let before = snapshot.then(|| contents(&image, Some("before")));
    let below = || Some(Arc::new(Below(bytes.clone())) as Arc<dyn BlockSource>);
    for round in 0..3 {
        let delta = Delta::open(&image, below(), None).unwrap();
        check_all(&delta, &expected);
        operations(&delta, &mut rng, &mut expected, 60);
        check_all(&delta, &expected);
        if round == 1 {
            // As if it had been killed: the repair counts snapshots and compressed clusters.
            delta.flush().unwrap();
            let killed = dir.join("killed.qcow2");
            std::fs::copy(&image, &killed).unwrap();
            let repaired = Delta::open(&killed, below(), None).unwrap();
            check_all(&repaired, &expected);
            repaired.write_at(4000, &[1; 5000]).unwrap();
            repaired.close().unwrap();
            drop(repaired);
            check(&killed);
            if let Some(before) = &before {
                assert!(contents(&killed, Some("before")) == *before, "the snapshot has changed");
            }
        }
        delta.close().unwrap();
        drop(delta);
        check(&image);
        assert!(contents(&image, None) == expected, "qemu-img reads another disk");
        if let Some(before) = &before {
            assert!(contents(&image, Some("before")) == *before, "the snapshot has changed");
        }
        // QEMU writes to it again.
        io(&mut rng, false);
        expected = contents(&image, None);
    }
}

#[test]
fn overlays_of_qemu_are_taken_further() {
    let dir = tempfile::tempdir().unwrap();
    let first = number("STRATA_RANDOM_SEED", 1);
    for seed in first..first + number("STRATA_DELTA_FOREIGN", 25) {
        let done = std::panic::catch_unwind(|| foreign(seed, dir.path()));
        if let Err(panic) = done {
            eprintln!("seed {seed}: STRATA_RANDOM_SEED={seed} STRATA_DELTA_FOREIGN=1 repeats it");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn qemu_takes_ours_further() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = Rng(11).bytes(SIZE);
    let below = || Some(Arc::new(Below(bytes.clone())) as Arc<dyn BlockSource>);
    let base = dir.path().join("base.raw");
    std::fs::write(&base, &bytes).unwrap();
    let path = dir.path().join("delta.qcow2");
    let name = path.to_str().unwrap();
    let backing = Backing { name: "base.raw".as_ref(), format: "raw" };
    let new = NewDelta { size: SIZE as u64 + 300_032, backing: Some(backing) };
    Delta::create(&path, &new).unwrap();
    let mut expected = bytes.clone();
    expected.resize(new.size as usize, 0);
    let mut rng = Rng(12);
    let delta = Delta::open(&path, below(), None).unwrap();
    operations(&delta, &mut rng, &mut expected, 200);
    drop(delta);
    check(&path);
    compare(&path, Some(&bytes), &expected);
    qemu_img(["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base.raw", name]);
    // QEMU writes, we go on.
    qemu_io(["-f", "qcow2", "-c", "write -P 5 70000 100000", "-c", "discard 0 1M", name]);
    expected[70_000..170_000].fill(5);
    expected = contents(&path, None);
    let delta = Delta::open(&path, below(), None).unwrap();
    check_all(&delta, &expected);
    operations(&delta, &mut rng, &mut expected, 100);
    drop(delta);
    check(&path);
    // Committed into a copy of the base it is the same disk.
    let copy = dir.path().join("copy.raw");
    std::fs::copy(&base, &copy).unwrap();
    let other = dir.path().join("committed.qcow2");
    std::fs::copy(&path, &other).unwrap();
    qemu_img([
        "rebase",
        "-u",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        "copy.raw",
        other.to_str().unwrap(),
    ]);
    qemu_img(["commit", "-q", "-f", "qcow2", other.to_str().unwrap()]);
    let mut committed = std::fs::read(&copy).unwrap();
    committed.resize(expected.len(), 0);
    assert!(committed == expected, "qemu-img commit makes another disk");
    // Rebased onto nothing it stands alone.
    qemu_img(["rebase", "-f", "qcow2", "-b", "", name]);
    assert!(contents(&path, None) == expected, "qemu-img rebase makes another disk");
    let delta = Delta::open(&path, None, None).unwrap();
    check_all(&delta, &expected);
    assert!(delta.backing().is_none());
}
