//! A machine boots from the mounted disk view, of an image and of a snapshot in a store, to a line on its serial console.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]

#[path = "support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use support::{fixture, run, strata, tool};

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

/// Boots the drive that these options of QEMU tell of, and returns what the console said up to the marker.
#[track_caller]
fn boot(drive: &str, work: &Path) -> String {
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
            return said;
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
    let console = boot(&drive, work.path());
    assert!(console.contains("Linux version"), "a marker without a kernel:\n{console}");

    drop(mount);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "still mounted");
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
    // The machine writes to the mounted disk itself.
    let console = boot(&format!("file={},format=raw", disk.display()), work.path());
    assert!(console.contains("Linux version"), "a marker without a kernel:\n{console}");
    let image = fixture("debian.raw");
    let compare = |disk: &Path| {
        let mut cmp = tool("cmp", "diffutils");
        cmp.args(["-s".as_ref(), disk.as_os_str(), image.as_os_str()]).status().unwrap().code()
    };
    assert_eq!(compare(&disk), Some(1), "the machine wrote nothing");

    // With the mount all of that is gone.
    drop(mount);
    run(strata().args(["mount", "--view", "disk", &format!("{store}::web01")]).arg(&dir));
    let mount = Mount(&dir);
    assert_eq!(compare(&disk), Some(0));
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
    let console = boot(&format!("file={},format=qcow2", overlay.display()), work.path());
    assert!(console.contains("Linux version"), "a marker without a kernel:\n{console}");
    assert!(fs::metadata(&overlay).unwrap().len() > 1 << 20, "the machine wrote nothing");
    drop(mount);
    run(strata().args(["store", "check", "--read-data", &store]));
}
