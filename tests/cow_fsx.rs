//! Random reads, writes, mappings, cuts and holes of one file, beside the same in memory: on
//! `disk.img`, whose size stays, and on a file of an overlay.
//!
//! `STRATA_FSX_OPERATIONS` says how many (3,000), `STRATA_SEED` where to begin.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cow;
#[path = "cow/exerciser.rs"]
mod exerciser;
mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use cow::{Rng, Server, setting};
use exerciser::{Exerciser, Way};
use support::{require_root, run, strata, tool};

fn operations() -> u64 {
    setting("STRATA_FSX_OPERATIONS", 3000)
}

fn random(len: usize) -> Vec<u8> {
    let mut rng = Rng(7);
    std::iter::repeat_with(|| rng.next().to_le_bytes()).flatten().take(len).collect()
}

/// Runs all operations on `file`, in a few mounts: what is closed is there when it is opened.
fn exercise(serve: &dyn Fn() -> Server, file: &Path, contents: Vec<u8>, way: Way) {
    let mut exerciser = Exerciser::new(contents, way, setting("STRATA_SEED", 1));
    for _ in 0..3 {
        let server = serve();
        exerciser.run(file, operations().div_ceil(3));
        server.close();
    }
    let server = serve();
    exerciser.compare(file);
    server.close();
    println!("{} in 3 mounts, {way:?}", exerciser.done());
}

/// `disk.img` of a base image whose end is not that of a cluster.
fn on_a_disk(way: Way) {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let [base, delta, point] = ["base.raw", "delta.qcow2", "mnt"].map(|name| dir.path().join(name));
    let contents = random((1 << 20) + 7 * 512);
    fs::write(&base, &contents).unwrap();
    fs::create_dir(&point).unwrap();
    let serve = || {
        let mut command = strata();
        command.args(["mount", "--foreground", "--view=disk", "--cow"]);
        Server::start(command.arg(&delta).arg(&base).arg(&point), &point)
    };
    exercise(&serve, &point.join("disk.img"), contents.clone(), Way { resize: false, ..way });
    run(tool("qemu-img", "qemu-utils").args(["check", "-q"]).arg(&delta));
    assert!(fs::read(&base).unwrap() == contents, "the base image was written");
}

/// A filesystem that holds `contents` as `/file`, and nothing else.
fn lower(dir: &Path, contents: &[u8]) -> PathBuf {
    let [tree, image] = ["tree", "lower.ext4"].map(|name| dir.join(name));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), contents).unwrap();
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    run(tool("mkfs.ext4", "e2fsprogs").args(["-q", "-F", "-d"]).arg(&tree).arg(&image));
    image
}

fn on_an_overlay(way: Way, command: impl Fn(&Path, &Path) -> Command) {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let contents = random(100_000);
    let image = lower(dir.path(), &contents);
    let point = dir.path().join("mnt");
    fs::create_dir(&point).unwrap();
    let serve = || Server::start(&mut command(dir.path(), &image), &point);
    exercise(&serve, &point.join("file"), contents, way);
}

fn strata_overlay(dir: &Path, image: &Path) -> Command {
    let mut command = strata();
    command.args(["mount", "--foreground", "--view=files", "--cow"]).arg(dir.join("upper/"));
    command.arg(image).arg(dir.join("mnt"));
    command
}

const PLAIN: Way = Way { resize: true, mapped: false, direct: false };
const MAPPED: Way = Way { mapped: true, ..PLAIN };
const DIRECT: Way = Way { direct: true, ..PLAIN };

#[test]
fn fsx_on_a_disk() {
    on_a_disk(PLAIN);
}

#[test]
fn fsx_on_a_disk_mapped() {
    on_a_disk(MAPPED);
}

#[test]
fn fsx_on_a_disk_past_the_page_cache() {
    on_a_disk(DIRECT);
}

#[test]
fn fsx_on_an_overlay() {
    on_an_overlay(PLAIN, strata_overlay);
}

#[test]
fn fsx_on_an_overlay_mapped() {
    on_an_overlay(MAPPED, strata_overlay);
}

#[test]
fn fsx_on_an_overlay_past_the_page_cache() {
    on_an_overlay(DIRECT, strata_overlay);
}

/// The test itself holds beside the host's own filesystem.
#[test]
fn fsx_on_a_plain_file() {
    for way in [PLAIN, MAPPED] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let contents = random(100_000);
        fs::write(&file, &contents).unwrap();
        let mut exerciser = Exerciser::new(contents, way, 1);
        exerciser.run(&file, operations());
        exerciser.compare(&file);
    }
}

#[test]
#[should_panic(expected = "differs at 5000")]
fn the_exerciser_sees_a_wrong_byte() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let mut contents = random(100_000);
    fs::write(&file, &contents).unwrap();
    contents[5000] ^= 1;
    Exerciser::new(contents, PLAIN, 1).compare(&file);
}
