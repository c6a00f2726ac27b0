//! Deltas that become snapshots, and snapshots that get tags.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use serde_json::Value;
use support::{fails, noise, qemu_img, run, stdout, strata};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        run(strata().args(["store", "init"]).arg(place.path("st")));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn reference(&self, name: &str) -> String {
        format!("{}::{name}", self.path("st").display())
    }

    fn show(&self, name: &str) -> Value {
        let told = stdout(strata().args(["snapshot", "show", "--json"]).arg(self.reference(name)));
        serde_json::from_str(&told).unwrap()
    }

    /// The disk of a snapshot.
    fn raw(&self, name: &str) -> Vec<u8> {
        let out = self.path("out.raw");
        run(strata().args(["convert", "--overwrite"]).arg(self.reference(name)).arg(&out));
        fs::read(out).unwrap()
    }
}

#[test]
fn a_delta_above_a_snapshot_becomes_the_next_one() {
    let place = Place::new();
    let (disk, mnt, delta) = (place.path("disk.raw"), place.path("mnt"), place.path("fix.qcow2"));
    let mut expected = noise(1, 40 << 20);
    fs::write(&disk, &expected).unwrap();
    run(strata().args(["snapshot", "create"]).arg(place.path("st")).arg("web").arg(&disk));
    let first = place.show("web");
    fs::create_dir(&mnt).unwrap();
    let mut mount = strata();
    mount.args(["mount", "--view", "disk", "--cow"]).arg(&delta);
    run(mount.arg(place.reference("web")).arg(&mnt));
    let shown = OpenOptions::new().write(true).open(mnt.join("disk.img")).unwrap();
    shown.write_all_at(&noise(2, 300_000), 10_000_000).unwrap();
    shown.write_all_at(&[0; 1 << 20], 20 << 20).unwrap();
    shown.sync_all().unwrap();
    drop(shown);
    run(strata().arg("unmount").arg(&mnt));
    expected[10_000_000..10_300_000].copy_from_slice(&noise(2, 300_000));
    expected[20 << 20..21 << 20].fill(0);
    let commit = |series: &str| {
        let mut commit = strata();
        commit.arg("commit").arg(&delta).arg("--to").arg(place.reference(series));
        commit
    };
    run(&mut commit("web"));
    let made = place.show("web");
    assert_eq!(made["parent"], first["id"]);
    // Of 320 blocks of the disk those of the first write, and one where the zeros begin or end within a block.
    let new = made["disks"][0]["new_blocks"].as_u64().unwrap();
    assert!((1..=5).contains(&new), "{new} blocks");
    assert!(place.raw("web") == expected);
    // Of another series it is the first, and yet nothing is new.
    run(&mut commit("other"));
    let other = place.show("other");
    assert_eq!(other["disks"][0]["root"], made["disks"][0]["root"]);
    assert_eq!(other["disks"][0]["new_blocks"], 0);
    let told = fails(commit("web").arg("--layer"));
    assert!(told.contains("not about snapshots"), "{told}");
}

#[test]
fn a_chain_of_images_becomes_a_snapshot() {
    let place = Place::new();
    let (disk, top) = (place.path("disk.raw"), place.path("top.qcow2"));
    fs::write(&disk, noise(1, 8 << 20)).unwrap();
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk.to_str().unwrap()];
    qemu_img(args.into_iter().chain([top.to_str().unwrap()]));
    run(strata().arg("commit").arg(&top).arg("--to").arg(place.reference("web")));
    assert!(place.raw("web") == noise(1, 8 << 20));
}

#[test]
fn tags_come_and_go() {
    let place = Place::new();
    let disk = place.path("disk.raw");
    fs::write(&disk, noise(1, 100_000)).unwrap();
    let mut create = strata();
    create.args(["snapshot", "create", "--tag", "daily"]).arg(place.path("st")).arg("web");
    run(create.arg(&disk));
    let before = place.show("web");
    let tag = |options: &[&str]| {
        let mut tag = strata();
        tag.args(["snapshot", "tag"]).args(options).arg(place.reference("web"));
        tag
    };
    run(&mut tag(&["--add", "keep", "--add", "daily", "--remove", "none"]));
    let after = place.show("web");
    assert_eq!(after["tags"], serde_json::json!(["daily", "keep"]));
    assert_ne!(after["id"], before["id"]);
    assert_eq!((&after["time"], &after["disks"]), (&before["time"], &before["disks"]));
    run(&mut tag(&["--remove", "daily"]));
    assert_eq!(place.show("web")["tags"], serde_json::json!(["keep"]));
    // One record takes the place of the other.
    let list = stdout(strata().args(["snapshot", "list"]).arg(place.path("st")));
    assert_eq!(list.lines().count(), 1, "{list}");
    assert!(fails(&mut tag(&["--add", "a b"])).contains("tag \"a b\""));
    // What is signed is signed as it is.
    let key = place.path("key.pem");
    run(strata().args(["snapshot", "generate-key"]).arg(&key));
    run(strata().args(["snapshot", "sign", "--sign-key"]).arg(&key).arg(place.reference("web")));
    let told = fails(&mut tag(&["--add", "more"]));
    assert!(told.contains("is signed as it is") && told.contains("--sign-key"), "{told}");
    run(&mut tag(&["--add", "more", "--sign-key", key.to_str().unwrap()]));
    let mut trusting = strata();
    trusting.args(["convert", "--overwrite", "--trusted-key"]).arg(place.path("key.pem.pub"));
    run(trusting.arg(place.reference("web")).arg(place.path("out.raw")));
}
