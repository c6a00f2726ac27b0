//! A machine boots from the mounted disk view, to a line on its serial console.
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

/// Boots `disk`, whose writes are thrown away, and returns what the console said up to the marker.
#[track_caller]
fn boot(disk: &Path, work: &Path) -> String {
    let console = work.join("console");
    let complaints = File::create(work.join("complaints")).unwrap();
    let machine = tool("qemu-system-x86_64", "qemu-system-x86")
        .args(["-machine", "pc,accel=tcg", "-m", "512", "-snapshot", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-nic", "none"])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio", disk.display()))
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
    let console = boot(&dir.join("disk.img"), work.path());
    assert!(console.contains("Linux version"), "a marker without a kernel:\n{console}");

    drop(mount);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "still mounted");
}
