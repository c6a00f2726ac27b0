//! Disks rolled back to snapshots, snapshots compared, and deltas above them opened by themselves.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use stratafs::block::{BlockSource, Cache};
use stratafs::open::Opener;
use stratafs::policy::Policy;
use support::{noise, qemu_img, qemu_io, require_root, run, stdout, strata, tool};

const MIB: u64 = 1 << 20;
const DISK: u64 = 48 * MIB;

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with a store in it, and a disk that is in it.
    fn new() -> (Self, File) {
        let place = Self(tempfile::tempdir().unwrap());
        run(strata().args(["store", "init"]).arg(place.path("st")));
        let file = File::create(place.path("disk.raw")).unwrap();
        file.set_len(DISK).unwrap();
        let mut mke2fs = tool("mke2fs", "e2fsprogs");
        run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d", "src"]).arg(place.path("disk.raw")));
        file.write_all_at(&noise(1, 4 << 20), 40 * MIB).unwrap();
        place.create();
        let file = OpenOptions::new().write(true).open(place.path("disk.raw")).unwrap();
        (place, file)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn reference(&self, name: &str) -> String {
        format!("{}::{name}", self.path("st").display())
    }

    fn create(&self) -> String {
        let mut create = strata();
        create.args(["snapshot", "create", "--json"]).arg(self.path("st")).arg("web");
        let made: serde_json::Value =
            serde_json::from_str(&stdout(create.arg(self.path("disk.raw")))).unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    fn rollback(&self, id: &str, disk: &Path) -> Command {
        let mut command = strata();
        command.args(["snapshot", "rollback", &self.reference(id)]).arg(disk);
        command
    }
}

fn fails(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// Spoils a disk here and there, and changes its size.
fn spoil(file: &File, seed: u64, size: u64) {
    file.set_len(size).unwrap();
    file.write_all_at(&noise(seed, 300_000), 41 * MIB + 1000).unwrap();
    file.write_all_at(&noise(seed, 100), 30 * MIB).unwrap();
    file.write_all_at(&[0; 70_000], MIB).unwrap();
}

#[test]
fn a_raw_file_becomes_the_snapshot() {
    let (place, file) = Place::new();
    let disk = place.path("disk.raw");
    let wanted = fs::read(&disk).unwrap();
    for (seed, size) in [(2, DISK), (3, DISK + 5 * MIB), (4, 42 * MIB)] {
        spoil(&file, seed, size);
        let before = fs::read(&disk).unwrap();
        let (code, told) = fails(&mut place.rollback("web", &disk));
        assert!(code == 2 && told.contains("--yes"), "{told}");
        let dry = stdout(place.rollback("web", &disk).arg("--dry-run"));
        assert!(dry.contains("differ"), "{dry}");
        assert!(fs::read(&disk).unwrap() == before);
        let done = stdout(place.rollback("web", &disk).arg("--yes"));
        assert!(fs::read(&disk).unwrap() == wanted, "{done}");
        let amount =
            |told: &str| told.split(": ").nth(1).unwrap().split(" of").next().unwrap().to_owned();
        assert_eq!(amount(&dry), amount(&done));
    }
    let nothing = stdout(place.rollback("web", &disk).arg("--yes"));
    assert!(nothing.contains(": 0 bytes of") || nothing.contains(": 0 B of"), "{nothing}");
}

#[test]
fn killed_in_the_middle_it_is_mended_by_the_next() {
    let (place, file) = Place::new();
    let disk = place.path("disk.raw");
    let wanted = fs::read(&disk).unwrap();
    for nth in 0..6_u64 {
        spoil(&file, nth, DISK + MIB);
        file.write_all_at(&noise(nth, 30 << 20), 2 * MIB).unwrap();
        let mut child = place
            .rollback("web", &disk)
            .args(["--yes", "-q"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(10 + nth * 15));
        let _ = child.kill();
        child.wait().unwrap();
    }
    run(place.rollback("web", &disk).arg("--yes"));
    assert!(fs::read(&disk).unwrap() == wanted);
}

#[test]
fn a_qcow2_that_stands_alone_becomes_the_snapshot() {
    let (place, _) = Place::new();
    let (raw, image) = (place.path("disk.raw"), place.path("disk.qcow2"));
    for options in [&["-c"][..], &["-o", "compression_type=zstd"], &["-o", "cluster_size=2M"]] {
        let mut convert = tool("qemu-img", "qemu-utils");
        run(convert.args(["convert", "-O", "qcow2"]).args(options).arg(&raw).arg(&image));
        let write = ["-c", "write -P 3 1M 9M", "-c", "discard 40M 2M", "-c", "write -P 4 31M 1000"];
        qemu_io(write.map(OsStr::new).into_iter().chain([image.as_os_str()]));
        run(place.rollback("web", &image).args(["--yes", "-q"]));
        qemu_img([OsStr::new("compare"), raw.as_ref(), image.as_ref()]);
        qemu_img([OsStr::new("check"), image.as_ref()]);
    }
    qemu_img([
        OsStr::new("resize"),
        "-q".as_ref(),
        "--shrink".as_ref(),
        image.as_ref(),
        "20M".as_ref(),
    ]);
    run(place.rollback("web", &image).args(["--yes", "-q"]));
    qemu_img([OsStr::new("compare"), raw.as_ref(), image.as_ref()]);

    let told = |disk: &Path, part: &str| {
        let (code, told) = fails(place.rollback("web", disk).arg("--yes"));
        assert!(code == 1 && told.contains(part), "{told}");
    };
    let over = place.path("over.qcow2");
    qemu_img(
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "disk.qcow2"]
            .map(OsStr::new)
            .into_iter()
            .chain([over.as_os_str()]),
    );
    told(&over, "has a backing file");
    qemu_img([OsStr::new("resize"), "-q".as_ref(), image.as_ref(), "60M".as_ref()]);
    told(&image, "shrinking a qcow2");
    told(&place.path("st/config"), "lies in the store");
    told(&place.path("nothing"), "No such file");
}

/// A loop device, given back in the end.
struct Device(PathBuf);

impl Device {
    fn new(behind: &Path) -> Self {
        let device = stdout(tool("losetup", "mount").args(["-f", "--show"]).arg(behind));
        Self(device.trim().into())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

#[test]
fn a_device_becomes_the_snapshot_unless_it_is_in_use() {
    require_root();
    let (place, file) = Place::new();
    let disk = place.path("disk.raw");
    let mut wanted = fs::read(&disk).unwrap();
    spoil(&file, 5, DISK + 3 * MIB);
    file.write_all_at(&noise(6, 3 << 20), DISK).unwrap();
    wanted.extend(noise(6, 3 << 20));
    let device = Device::new(&disk);
    let (code, told) = fails(place.rollback("web", &disk).arg("--yes"));
    assert!(code == 1 && told.contains("is in use as /dev/loop"), "{told}");
    run(place.rollback("web", &device.0).args(["--yes"]));
    let point = place.path("mnt");
    fs::create_dir(&point).unwrap();
    run(tool("mount", "mount").args(["-o", "ro"]).arg(&device.0).arg(&point));
    let refused = fails(place.rollback("web", &device.0).arg("--yes"));
    run(tool("umount", "mount").arg(&point));
    assert!(refused.0 == 1 && refused.1.contains("mounted"), "{refused:?}");
    drop(device);
    assert!(fs::read(&disk).unwrap() == wanted);

    file.set_len(DISK - MIB).unwrap();
    let device = Device::new(&disk);
    let (code, told) = fails(place.rollback("web", &device.0).arg("--yes"));
    assert!(code == 1 && told.contains("bytes, and the snapshot"), "{told}");
}

#[test]
fn snapshots_are_compared_by_what_their_blocks_are_called() {
    let (place, file) = Place::new();
    let first = place.create();
    file.write_all_at(&[7; 512], 42 * MIB + 512).unwrap();
    file.write_all_at(&[0; 1 << 18], 40 * MIB).unwrap();
    let second = place.create();
    let (first, second) = (place.reference(&first), place.reference(&second));
    let blocks = |a: &str, b: &str| stdout(strata().args(["diff", "--blocks", a, b]));
    assert_eq!(blocks(&first, &first), "");
    let (zeros, block) = (40 * MIB, 42 * MIB);
    let expected = format!("{zeros}\t262144\tzeros\n{block}\t131072\n");
    assert_eq!(blocks(&first, &second), expected);
    let json = stdout(strata().args(["diff", "--blocks", "--json", &first, &second]));
    assert!(json.contains(r#"{"offset":44040192,"length":131072,"zeros":false}"#), "{json}");
    let status = |a: &str, b: &str| {
        strata().args(["diff", "--exit-code", "--blocks", a, b]).output().unwrap().status.code()
    };
    assert_eq!((status(&first, &first), status(&first, &second)), (Some(0), Some(1)));

    // The files' bytes are known to be the same without a look.
    let opener = Opener::new(Policy::default(), Cache::new(0));
    let disk = |reference: &str| opener.disk(&reference.parse().unwrap()).unwrap().source;
    let (a, b): (Arc<dyn BlockSource>, _) = (disk(&first), disk(&second));
    let shared = |at| a.origin_at(at).unwrap().shared(&b.origin_at(at).unwrap());
    assert_eq!(shared(43 * MIB + 5), (128 << 10) - 5);
    assert_eq!((shared(42 * MIB), shared(40 * MIB)), (0, 0));
    assert!(shared(47 * MIB) > 0);
}

#[test]
fn a_delta_above_a_snapshot_finds_it_again() {
    let (place, file) = Place::new();
    let before = fs::read(place.path("disk.raw")).unwrap();
    let point = place.path("mnt");
    fs::create_dir(&point).unwrap();
    fs::create_dir(place.path("far")).unwrap();
    let deltas = [place.path("delta.qcow2"), place.path("far/delta.qcow2")];
    for delta in &deltas {
        let mut mount = strata();
        mount.args(["mount", "--view", "disk", "--cow"]).arg(delta);
        run(mount.arg(place.reference("web")).arg(&point));
        let shown = OpenOptions::new().write(true).open(point.join("disk.img")).unwrap();
        shown.write_all_at(b"changed", 45 * MIB).unwrap();
        drop(shown);
        run(strata().arg("unmount").arg(&point));
    }
    file.write_all_at(b"newer", 9 * MIB).unwrap();
    place.create();
    let out = place.path("out.raw");
    let convert = |delta: &Path, options: &[&OsStr]| {
        let mut convert = strata();
        convert.arg("convert").args(["--overwrite", "-q"]).args(options).arg(delta).arg(&out);
        convert
    };
    let mut wanted = before;
    wanted[45 << 20..][..7].copy_from_slice(b"changed");
    run(&mut convert(&deltas[0], &[]));
    assert!(fs::read(&out).unwrap() == wanted);
    // The files are there; so is what it is made of.
    let listed = stdout(strata().arg("ls").arg(&deltas[0]).arg("/store"));
    assert!(listed.contains("rollback.rs"), "{listed}");
    let told = stdout(strata().arg("info").arg(&deltas[0]));
    assert!(told.contains("of web"), "{told}");
    // Another folder's store is opened if the person says so.
    let (code, told) = fails(&mut convert(&deltas[1], &[]));
    assert!(
        code == 1 && told.contains("outside the folders") && told.contains("--allow-path"),
        "{told}"
    );
    let store = place.path("st");
    run(&mut convert(&deltas[1], &["--allow-path".as_ref(), store.as_ref()]));
    assert!(fs::read(&out).unwrap() == wanted);
    let (code, _) = fails(&mut convert(&deltas[0], &["--no-backing".as_ref()]));
    assert_eq!(code, 1);
}
