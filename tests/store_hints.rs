//! What did not change since the parent was made is not read again, and what did is, however it looks.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, FileTimes, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use stratafs::block::{BlockSource, Cache, Extent, Origin};
use stratafs::chain::Chain;
use stratafs::error::{Error, Kind};
use stratafs::open::{Opener, Reference};
use stratafs::policy::Policy;
use stratafs::store::objects::{BucketOptions, Location};
use stratafs::store::{
    DiskSource, NewDisk, NewSnapshot, Progress, Reading, Settings, Snapshot, SnapshotLayer,
    SourceLayer, Store,
};
use support::{qemu_img, run, tool};

const SIZE: usize = 48 << 20;
/// A file that was left alone for so long can be told to be unchanged.
const SETTLED: Duration = Duration::from_millis(3100);

struct Place {
    dir: tempfile::TempDir,
    store: Arc<Store>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = Location::parse(dir.path().join("st").as_os_str()).unwrap();
        let objects = at.make(&BucketOptions::default()).unwrap();
        let settings = Settings { block_size: 64 << 10, ..Settings::default() };
        let store = Arc::new(Store::init(objects, settings, None, &Cache::new(0)).unwrap());
        Self { dir, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a snapshot as the command does; it, and how many bytes were read for it.
    fn create(&self, disk: &Path, parent: Option<&Snapshot>) -> (Snapshot, u64) {
        let opener = Opener::new(Policy::default(), Cache::new(0));
        let opened = opener.disk(&Reference::from(disk.as_os_str())).unwrap();
        let layers = opened.source_layers().unwrap();
        assert!(!layers.is_empty());
        let mut new = self.new_snapshot(disk, opened.source, layers);
        new.parent = parent.cloned();
        let progress = Progress::default();
        let made = self.store.create(new, &progress).unwrap();
        (made, progress.read.load(Ordering::Relaxed))
    }

    fn new_snapshot(
        &self,
        disk: &Path,
        source: Arc<dyn BlockSource>,
        layers: Vec<SourceLayer>,
    ) -> NewSnapshot {
        NewSnapshot {
            series: "web".to_owned(),
            time: Timestamp::now(),
            tags: vec![],
            parent: None,
            source: disk.display().to_string(),
            host: "here".to_owned(),
            sign: None,
            reading: Reading::default(),
            disks: vec![NewDisk {
                name: "disk".to_owned(),
                source: DiskSource::Image(source),
                layers,
            }],
        }
    }

    /// Whether a snapshot is what QEMU says the disk is.
    fn holds(&self, snapshot: &Snapshot, disk: &Path) {
        let raw = self.path("expected.raw");
        let args: [&std::ffi::OsStr; 5] =
            ["convert".as_ref(), "-O".as_ref(), "raw".as_ref(), disk.as_ref(), raw.as_ref()];
        qemu_img(args);
        let layer =
            SnapshotLayer::new(Arc::clone(&self.store), snapshot, &snapshot.record.disks[0])
                .unwrap();
        let chain = Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap();
        let mut bytes = vec![0; chain.len() as usize];
        chain.read_at(0, &mut bytes).unwrap();
        assert!(bytes == fs::read(raw).unwrap());
    }
}

/// Has QEMU write to a disk.
fn write(disk: &Path, commands: &[&str]) {
    let mut io = tool("qemu-io", "qemu-utils");
    for command in commands {
        io.args(["-c", command]);
    }
    run(io.arg(disk));
}

#[test]
fn a_chain_that_grew_is_read_where_it_did() {
    let place = Place::new();
    let (base, top) = (place.path("base.qcow2"), place.path("top.qcow2"));
    let size = SIZE.to_string();
    qemu_img(["create", "-q", "-f", "qcow2", base.to_str().unwrap(), &size]);
    write(&base, &["write -P 1 1M 20M", "write -P 2 30M 5M", "write -P 3 40M 1M"]);
    thread::sleep(SETTLED);
    let (first, read) = place.create(&base, None);
    assert!(read >= 26 << 20 && first.record.disks[0].made_of.is_some());
    place.holds(&first, &base);
    // Nothing changed.
    let (again, read) = place.create(&base, Some(&first));
    assert_eq!((read, again.record.disks[0].root), (0, first.record.disks[0].root));
    place.holds(&again, &base);
    // An overlay came above it: with data, zeros, and what is as it was.
    let args = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base.to_str().unwrap()];
    qemu_img(args.into_iter().chain([top.to_str().unwrap(), "50M"]));
    write(&top, &["write -P 9 10M 64k", "write -z 31M 1M", "write -P 8 49M 100k"]);
    let (grown, read) = place.create(&top, Some(&first));
    assert!(read <= 2 << 20, "{read} bytes");
    // It was written just now, and might be again within the same tick.
    assert!(grown.record.disks[0].made_of.is_none());
    place.holds(&grown, &top);
    thread::sleep(SETTLED);
    let (grown, _) = place.create(&top, Some(&first));
    let (same, read) = place.create(&top, Some(&grown));
    assert_eq!((read, same.record.disks[0].root), (0, grown.record.disks[0].root));
    // What was written to the one on top may be anywhere.
    write(&top, &["write -P 7 2M 64k", "write -z 10M 64k"]);
    let (changed, read) = place.create(&top, Some(&grown));
    assert!(read > 20 << 20);
    place.holds(&changed, &top);
    // And the one below must not change; if it did, it is read.
    write(&base, &["write -P 6 3M 64k"]);
    let (changed, _) = place.create(&top, Some(&grown));
    place.holds(&changed, &top);
}

/// A disk that cannot be read from some place on.
#[derive(Debug)]
struct Failing(Arc<dyn BlockSource>, u64);

impl BlockSource for Failing {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> stratafs::error::Result<()> {
        match offset >= self.1 {
            true => Err(Error::new(Kind::Io, "a bad sector")),
            false => self.0.read_at(offset, buf),
        }
    }

    fn extent_at(&self, offset: u64) -> stratafs::error::Result<Extent> {
        self.0.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> stratafs::error::Result<Origin> {
        self.0.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&fs::File> {
        None
    }
}

#[test]
fn an_interrupted_attempt_at_files_goes_on_unless_they_were_written() {
    // Two and a half of what a page of the map covers.
    const PAGE: u64 = 64 << 20;
    let place = Place::new();
    let disk = place.path("disk.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", disk.to_str().unwrap(), "160M"]);
    write(&disk, &["write -P 1 1M 3M", "write -P 2 70M 5M", "write -P 3 150M 1M"]);
    thread::sleep(SETTLED);
    let opener = Opener::new(Policy::default(), Cache::new(0));
    let attempt = || {
        let opened = opener.disk(&Reference::from(disk.as_os_str())).unwrap();
        let layers = opened.source_layers().unwrap();
        let mut new = place.new_snapshot(&disk, opened.source, layers);
        let DiskSource::Image(source) = &new.disks[0].source else { unreachable!() };
        let failing = Failing(Arc::clone(source), 2 * PAGE);
        new.disks[0].source = DiskSource::Image(Arc::new(failing));
        place.store.create(new, &Progress::default()).unwrap_err();
    };
    attempt();
    let opened = opener.disk(&Reference::from(disk.as_os_str())).unwrap();
    let layers = opened.source_layers().unwrap();
    let progress = Progress::default();
    let new = place.new_snapshot(&disk, opened.source, layers);
    let made = place.store.create(new, &progress).unwrap();
    assert_eq!(progress.resumed.load(Ordering::Relaxed), 2 * PAGE);
    assert!(progress.read.load(Ordering::Relaxed) <= 2 << 20);
    assert!(made.record.disks[0].made_of.is_some());
    place.holds(&made, &disk);
    // What was written in between is read.
    place.store.remove(made.id).unwrap();
    attempt();
    write(&disk, &["write -P 9 2M 64k"]);
    let (made, read) = place.create(&disk, None);
    assert!(read >= 9 << 20, "{read} bytes");
    place.holds(&made, &disk);
}

#[test]
fn a_file_that_only_looks_unchanged_is_read() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    fs::write(&raw, vec![1; SIZE]).unwrap();
    thread::sleep(SETTLED);
    let (first, _) = place.create(&raw, None);
    let (_, read) = place.create(&raw, Some(&first));
    assert_eq!(read, 0);
    // The same length, and the same time of modification.
    let file = OpenOptions::new().write(true).open(&raw).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[2; 4096], 12345).unwrap();
    file.set_times(FileTimes::new().set_modified(modified)).unwrap();
    thread::sleep(SETTLED);
    let (second, read) = place.create(&raw, Some(&first));
    assert_eq!(read, SIZE as u64);
    place.holds(&second, &raw);
    // Another file in its place.
    fs::write(place.path("other.raw"), vec![3; SIZE]).unwrap();
    fs::rename(place.path("other.raw"), &raw).unwrap();
    let (third, _) = place.create(&raw, Some(&second));
    place.holds(&third, &raw);
}
