//! A machine boots from the mounted disk view, of an image and of a snapshot in a store, to a line on its serial console.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]

#[path = "support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{fixture, run, stdout, strata, tool};

/// What a unit of the fixture prints once systemd runs from its disk.
const MARKER: &str = "STRATA-BOOT-OK";
/// An emulated CPU on a busy machine is slow: a boot takes half a minute to two.
const LIMIT: Duration = Duration::from_secs(420);

/// Unmounts when the test ends, however it ends.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = strata().arg("unmount").arg(self.0).status();
    }
}

/// A machine that is switched off when the test ends.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the drive that these options of QEMU tell of, until its system is running.
#[track_caller]
fn boot(drive: &str, work: &Path) -> Machine {
    let console = work.join("console");
    let complaints = File::create(work.join("complaints")).unwrap();
    let machine = tool("qemu-system-x86_64", "qemu-system-x86")
        .args(["-machine", "pc,accel=tcg", "-m", "512", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-nic", "none"])
        .args(["-drive", &format!("{drive},if=virtio")])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        // What -snapshot throws away goes where the test's own files are.
        .env("TMPDIR", work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(complaints)
        .spawn()
        .unwrap();
    let mut machine = Machine(machine);
    let started = Instant::now();
    loop {
        let said = fs::read(&console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        if said.contains(MARKER) {
            assert!(said.contains("Linux version"), "a marker without a kernel:\n{said}");
            return machine;
        }
        let ended = machine.0.try_wait().unwrap();
        let last: Vec<&str> = said.lines().rev().take(30).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        assert!(
            ended.is_none() && started.elapsed() < LIMIT,
            "no {MARKER} ({ended:?})\n{}\n{}",
            fs::read_to_string(work.join("complaints")).unwrap_or_default(),
            last.join("\n")
        );
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_machine_boots_from_the_mounted_disk() {
    // The topmost of 33 images, so that the boot loader reads through the chain as well.
    let image = fixture("debian-chain/layer-32.qcow2");
    let work = tempfile::tempdir().unwrap();
    let dir = work.path().join("mnt");
    fs::create_dir(&dir).unwrap();

    run(strata().args(["mount", "--view", "disk"]).arg(&image).arg(&dir));
    let mount = Mount(&dir);
    let disk = dir.join("disk.img");
    let drive = format!("file={},format=raw,snapshot=on", disk.display());
    drop(boot(&drive, work.path()));

    drop(mount);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "still mounted");
}

#[track_caller]
fn until(what: &str, seen: impl Fn() -> bool) {
    let started = Instant::now();
    while !seen() {
        assert!(started.elapsed() < LIMIT, "not seen: {what}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// Where the root's partition begins.
fn root_start(disk: &Path) -> u64 {
    let told = stdout(strata().args(["info", "--json"]).arg(disk));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let volumes = told["volumes"].as_array().unwrap();
    let root = volumes.iter().find(|volume| volume["contents"] == "ext4").unwrap();
    root["partition"]["start"].as_u64().unwrap()
}

/// A store with a snapshot of the fixture in the series `web01`, and its name.
fn store(work: &Path) -> String {
    let store = work.join("st").to_str().unwrap().to_owned();
    run(strata().args(["store", "init", &store]));
    let image = fixture("debian-chain/layer-32.qcow2");
    run(strata().args(["snapshot", "create", &store, "web01"]).arg(image));
    store
}

#[test]
fn a_machine_boots_from_a_mounted_snapshot_and_its_writes_are_thrown_away() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path());
    let dir = work.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    run(strata()
        .args(["mount", "--view", "disk", "--scratch", &format!("{store}::web01")])
        .arg(&dir));
    let mount = Mount(&dir);
    let disk = dir.join("disk.img");
    // The superblock of the root says that it is mounted, once it is to be written.
    let at = root_start(&disk) + 1024;
    let superblock = |disk: &Path| {
        let mut bytes = vec![0; 1024];
        File::open(disk).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let before = superblock(&disk);
    // The machine writes to the mounted disk itself.
    let machine = boot(&format!("file={},format=raw", disk.display()), work.path());
    until("the machine has written", || superblock(&disk) != before);
    drop(machine);

    // With the mount all of that is gone.
    drop(mount);
    run(strata().args(["mount", "--view", "disk", &format!("{store}::web01")]).arg(&dir));
    let mount = Mount(&dir);
    assert!(superblock(&disk) == before);
    let image = fixture("debian.raw");
    run(tool("cmp", "diffutils").args([disk.as_os_str(), image.as_os_str()]));
    drop(mount);
    run(strata().args(["store", "check", "--read-data", &store]));
}

#[test]
fn a_machine_boots_from_a_snapshot_among_all_of_a_mounted_store() {
    let work = tempfile::tempdir().unwrap();
    let store = store(work.path());
    let dir = work.path().join("mnt");
    fs::create_dir(&dir).unwrap();
    run(strata().args(["mount", "--view", "disk", &store]).arg(&dir));
    let mount = Mount(&dir);
    let overlay = work.path().join("overlay.qcow2");
    let mut create = tool("qemu-img", "qemu-utils");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    run(create.arg(dir.join("web01/latest/disk.img")).arg(&overlay));
    let len = || fs::metadata(&overlay).unwrap().len();
    let before = len();
    let machine = boot(&format!("file={},format=qcow2", overlay.display()), work.path());
    until("the machine has written", || len() > before);
    drop(machine);
    drop(mount);
    run(strata().args(["store", "check", "--read-data", &store]));
}
