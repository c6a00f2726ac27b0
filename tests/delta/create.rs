//! Making, opening, locking, growing, refusing.

use std::path::Path;
use std::sync::Arc;

use stratafs::block::{BlockSink, BlockSource};
use stratafs::error::Kind;
use stratafs::image::qcow2::{Backing, Delta, NewDelta};

use crate::model::check;
use crate::rng::Rng;
use crate::storage::Below;
use crate::support::{qemu_img, qemu_io, run, stdout, tool};
use crate::workload::check_all;

fn new(path: &Path, size: u64) {
    Delta::create(path, &NewDelta { size, backing: None }).unwrap();
}

#[test]
fn qemu_reads_what_was_made() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.raw"), vec![7; 100_000]).unwrap();
    let path = dir.path().join("delta.qcow2");
    let backing = Backing { name: "base.raw".as_ref(), format: "raw" };
    Delta::create(&path, &NewDelta { size: 99_999, backing: Some(backing) }).unwrap();
    check(&path);
    let info = stdout(tool("qemu-img", "qemu-utils").args(["info", "--output=json"]).arg(&path));
    for fact in [
        "\"virtual-size\": 100352",
        "\"backing-filename\": \"base.raw\"",
        "\"backing-filename-format\": \"raw\"",
        "\"lazy-refcounts\": true",
        "\"extended-l2\": true",
        "\"corrupt\": false",
    ] {
        assert!(info.contains(fact), "{fact} is not in {info}");
    }
    qemu_io(["-c", "read -P 7 0 99840", path.to_str().unwrap()]);
    let again = Delta::create(&path, &NewDelta { size: 1, backing: None }).unwrap_err();
    assert_eq!(again.kind(), Kind::Exists);
    let delta = Delta::open(&path, None, None).unwrap();
    assert_eq!(delta.backing().unwrap().name, "base.raw");
    assert_eq!(delta.backing().unwrap().format.as_deref(), Some("raw"));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing but the base and the delta: {left:?}");
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta.qcow2");
    new(&path, 1 << 20);
    let delta = Delta::open(&path, None, None).unwrap();
    let second = Delta::open(&path, None, None).unwrap_err();
    assert_eq!(second.kind(), Kind::Refused);
    assert!(second.hint().is_some());
    // QEMU is kept out too, and let in afterwards.
    let write = || {
        let mut qemu = tool("qemu-io", "qemu-utils");
        qemu.args(["-f", "qcow2", "-c", "write 0 512"]).arg(&path);
        qemu
    };
    let output = write().output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    drop(delta);
    run(&mut write());
    // And the other way round, while QEMU has it.
    let mut qemu = tool("qemu-io", "qemu-utils")
        .args(["-f", "qcow2"])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let source = stratafs::block::FileSource::open(&path).unwrap();
    while !source.has_qemu_writer() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let third = Delta::open(&path, None, None).unwrap_err();
    assert_eq!(third.kind(), Kind::Refused);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    let delta = Delta::open(&path, None, None).unwrap();
    assert!(source.has_qemu_writer(), "readers are warned of us as of QEMU");
    drop(delta);
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("delta.qcow2");
    // What lies below goes on behind the end of the smaller disk.
    let bytes = Rng(3).bytes(3 << 20);
    let below = || Some(Arc::new(Below(bytes.clone())) as Arc<dyn BlockSource>);
    new(&path, 1_000_448);
    let delta = Delta::open(&path, below(), None).unwrap();
    delta.write_at(1_000_000, &[9; 448]).unwrap();
    drop(delta);
    let mut expected = bytes[..1_000_448].to_vec();
    expected[1_000_000..].fill(9);
    // Past 64 GiB the L1 table needs another place, in clusters of 512 bytes sooner.
    for size in [1_500_160, 2 << 20, 4 << 20] {
        expected.resize(size, 0);
        let delta = Delta::open(&path, below(), Some(size as u64)).unwrap();
        check_all(&delta, &expected);
        drop(delta);
        check(&path);
    }
    let delta = Delta::open(&path, below(), Some(40 << 40)).unwrap();
    delta.write_at((40 << 40) - 5, b"last!").unwrap();
    drop(delta);
    check(&path);
    let delta = Delta::open(&path, below(), None).unwrap();
    assert_eq!(delta.len(), 40 << 40);
    let mut found = [0; 5];
    delta.read_at((40 << 40) - 5, &mut found).unwrap();
    assert_eq!(&found, b"last!");
    drop(delta);
    assert_eq!(Delta::open(&path, None, Some(512)).unwrap_err().kind(), Kind::Usage);
}

#[test]
fn refuses_by_name_what_it_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.qcow2");
    let name = path.to_str().unwrap();
    let made = |options: &str| {
        let _ = std::fs::remove_file(&path);
        qemu_img(["create", "-q", "-f", "qcow2", "-o", options, name, "1M"]);
        Delta::open(&path, None, None).unwrap_err()
    };
    let error = made("compat=0.10");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.hint().unwrap().contains("compat=1.1"), "{error}");
    let data = format!("data_file={}", dir.path().join("data.raw").display());
    assert_eq!(made(&data).kind(), Kind::Unsupported);
    let _ = std::fs::remove_file(&path);
    qemu_img(["create", "-q", "-f", "qcow2", name, "1M"]);
    qemu_img(["bitmap", "--add", name, "b0"]);
    let error = Delta::open(&path, None, None).unwrap_err();
    assert!(error.to_string().contains("bitmaps"), "{error}");
    // Incompatible features: corrupt, and one nobody knows.
    for (bit, kind) in [(1, Kind::Corrupt), (9, Kind::Unsupported)] {
        let _ = std::fs::remove_file(&path);
        new(&path, 1 << 20);
        let mut bytes = std::fs::read(&path).unwrap();
        let bits = u64::from_be_bytes(bytes[72..80].try_into().unwrap()) | 1 << bit;
        bytes[72..80].copy_from_slice(&bits.to_be_bytes());
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(Delta::open(&path, None, None).unwrap_err().kind(), kind);
    }
    std::fs::write(&path, b"QFI").unwrap();
    assert_eq!(Delta::open(&path, None, None).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(Delta::open(dir.path(), None, None).unwrap_err().kind(), Kind::IsADirectory);
}

/// Damaged in a few places, a delta opens or is refused; nothing panics, hangs or takes much memory.
#[test]
fn mutations_never_panic() {
    let (storage, _) = sample();
    let bytes = storage.0.lock().unwrap().bytes.clone();
    for seed in 0..crate::number("STRATA_MUTATIONS", 3000) {
        let mut rng = Rng(seed);
        let mut damaged = bytes.clone();
        for _ in 0..=rng.below(3) {
            // The header, the refcounts, and the tables.
            let at = match rng.below(3) {
                0 => rng.below(112),
                _ => rng.below(bytes.len() as u64),
            };
            damaged[at as usize] = rng.next() as u8;
        }
        if rng.below(2) == 0 {
            damaged[79] |= 1;
        }
        let storage = Arc::new(crate::storage::Memory::new(damaged));
        let Ok(delta) = Delta::open_on(storage, "delta", None, None) else { continue };
        let mut buf = [0; 5000];
        for _ in 0..10 {
            let at = rng.below(delta.len().max(1));
            let len = (delta.len() - at.min(delta.len())).min(5000) as usize;
            let _ = delta.read_at(at, &mut buf[..len]);
            let _ = delta.write_at(at, &buf[..len]);
            let _ = delta.write_zeroes(at, len as u64);
        }
        let _ = delta.close();
    }
}

/// A small delta with something in it, closed.
fn sample() -> (Arc<crate::storage::Memory>, Vec<u8>) {
    let storage = Arc::new(crate::storage::Memory::new(Vec::new()));
    let shape = stratafs::image::qcow2::Shape { cluster_bits: 14, subclusters: true };
    let made = NewDelta { size: 1 << 20, backing: None };
    Delta::create_on(&*storage, &made, shape).unwrap();
    let delta = Delta::open_on(storage.clone(), "delta", None, None).unwrap();
    let mut disk = vec![0; 1 << 20];
    disk[..200_000].copy_from_slice(&Rng(5).bytes(200_000));
    delta.write_at(0, &disk).unwrap();
    delta.write_zeroes(100_000, 50_000).unwrap();
    disk[100_000..150_000].fill(0);
    delta.close().unwrap();
    (storage, disk)
}
