//! The snapshot store from the command line, beside qemu-img and plain copies.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::{fails, noise, qemu_img, run, stdout, strata, tool};

/// Bytes of the test's disk.
const DISK: u64 = 96 << 20;

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with a store in it.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        run(strata().args(["store", "init"]).arg(place.path("st")));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn create(&self, series: &str, disk: &Path) -> Value {
        let mut create = strata();
        create.args(["snapshot", "create", "--json"]).arg(self.path("st")).arg(series).arg(disk);
        serde_json::from_str(&stdout(&mut create)).unwrap()
    }

    fn reference(&self, name: &str) -> String {
        format!("{}::{name}", self.path("st").display())
    }

    /// Writes a snapshot out as a raw disk, by way of a commit.
    fn raw(&self, name: &str) -> Vec<u8> {
        let (qcow2, raw) = (self.path("out.qcow2"), self.path("out.raw"));
        let _ = fs::remove_file(&qcow2);
        run(strata().arg("commit").arg(self.reference(name)).arg("--to").arg(&qcow2));
        qemu_img([
            "convert".as_ref(),
            "-O".as_ref(),
            "raw".as_ref(),
            qcow2.as_os_str(),
            raw.as_os_str(),
        ]);
        fs::read(&raw).unwrap()
    }

    fn check(&self) -> Value {
        let mut check = strata();
        check.args(["store", "check", "--read-data", "--json"]).arg(self.path("st"));
        serde_json::from_str(&stdout(&mut check)).unwrap()
    }
}

/// A disk with a filesystem, holes and noise in it.
fn disk(path: &Path) -> File {
    let file = File::create(path).unwrap();
    file.set_len(DISK).unwrap();
    let mut mke2fs = tool("mke2fs", "e2fsprogs");
    run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg("src").arg(path).arg("64M"));
    file.set_len(DISK).unwrap();
    file.write_all_at(&noise(1, 3 << 20), 70 << 20).unwrap();
    OpenOptions::new().write(true).open(path).unwrap()
}

#[test]
fn raw_and_qcow2_are_one_disk_and_each_snapshot_is_its_own() {
    let place = Place::new();
    let (raw, qcow2) = (place.path("disk.raw"), place.path("disk.qcow2"));
    let file = disk(&raw);
    let before = fs::read(&raw).unwrap();
    qemu_img([
        "convert".as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        raw.as_os_str(),
        qcow2.as_os_str(),
    ]);
    let first = place.create("web", &raw);
    assert!(first["disks"][0]["new_blocks"].as_u64().unwrap() > 24, "{first}");
    let again = place.create("web", &qcow2);
    assert_eq!(again["disks"][0]["new_blocks"], 0, "{again}");
    assert_eq!(again["parent"], first["id"]);
    assert_eq!(again["disks"][0]["root"], first["disks"][0]["root"]);

    // One hundredth of it changes, in one piece: little more than that is stored.
    let changed = noise(2, DISK as usize / 100);
    file.write_all_at(&changed, 71 << 20).unwrap();
    let third = place.create("web", &raw);
    let stored = third["disks"][0]["new_bytes"].as_u64().unwrap();
    assert!(stored as f64 <= changed.len() as f64 * 1.3, "{stored} for {}", changed.len());

    let id = first["id"].as_str().unwrap();
    assert!(place.raw(id) == before);
    assert!(place.raw("web") == fs::read(&raw).unwrap());
    assert_eq!(place.check()["problems"], Value::Array(vec![]));

    run(strata().args(["snapshot", "remove"]).arg(place.reference(id)));
    assert!(place.raw(again["id"].as_str().unwrap()) == before);
    let told = fails(strata().arg("ls").arg(place.reference(id)).arg("/"));
    assert!(told.contains("No such file") && told.lines().count() == 1, "{told}");
}

#[test]
fn files_of_a_snapshot_are_those_of_the_disk() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    disk(&raw);
    place.create("web", &raw);
    let listed = |reference: &str| stdout(strata().args(["ls", "-lR", reference, "/"]));
    let of_disk = listed(raw.to_str().unwrap());
    assert!(of_disk.contains("lib.rs"), "{of_disk}");
    assert_eq!(listed(&place.reference("web")), of_disk);
    let cat = stdout(strata().args(["cat", &place.reference("web"), "/lib.rs"]));
    assert_eq!(cat, fs::read_to_string("src/lib.rs").unwrap());
    let out = place.path("restored");
    run(strata().args(["restore", &place.reference("web"), "/store/", "--to"]).arg(&out));
    run(Command::new("diff").arg("-r").arg("src/store").arg(&out));
    let same = stdout(strata().arg("diff").arg(&raw).arg(place.reference("web")));
    assert_eq!(same, "");
}

#[test]
fn changes_over_a_snapshot_go_to_a_delta_that_knows_it() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    let file = disk(&raw);
    place.create("web", &raw);
    let before = fs::read(&raw).unwrap();
    let (mnt, delta) = (place.path("mnt"), place.path("delta.qcow2"));
    fs::create_dir(&mnt).unwrap();
    let mount = |cow: &[&str]| {
        let mut mount = strata();
        mount.args(["mount", "--view", "disk"]).args(cow).arg(place.reference("web")).arg(&mnt);
        mount
    };
    let unmount = || run(strata().arg("unmount").arg(&mnt));
    for round in 0..2_u8 {
        run(&mut mount(&["--cow", delta.to_str().unwrap()]));
        let shown = OpenOptions::new().read(true).write(true).open(mnt.join("disk.img")).unwrap();
        let mut bytes = [0; 4];
        shown.read_exact_at(&mut bytes, 1234).unwrap();
        assert_eq!(bytes, [round; 4].map(|round| if round == 0 { 0 } else { round }));
        shown.write_all_at(&[round + 1; 4], 1234).unwrap();
        shown.sync_all().unwrap();
        drop(shown);
        unmount();
        if round == 0 {
            // A newer snapshot is not what the delta was made above.
            file.write_all_at(b"newer", 5).unwrap();
            place.create("web", &raw);
            let told = fails(&mut mount(&["--cow", delta.to_str().unwrap()]));
            assert!(told.contains("is a delta above"), "{told}");
            let newest: Value = serde_json::from_str(&stdout(
                strata().args(["snapshot", "show", "--json"]).arg(place.reference("web")),
            ))
            .unwrap();
            let newest = newest["id"].as_str().unwrap();
            run(strata().args(["snapshot", "remove"]).arg(place.reference(newest)));
        }
    }
    run(&mut mount(&["--scratch"]));
    OpenOptions::new()
        .write(true)
        .open(mnt.join("disk.img"))
        .unwrap()
        .write_all_at(b"x", 0)
        .unwrap();
    unmount();
    assert!(place.raw("web") == before);
}

#[test]
fn killed_at_any_moment_it_leaves_whole_snapshots_only() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    let file = disk(&raw);
    place.create("web", &raw);
    let base = fs::read(&raw).unwrap();
    for kill in 0..24_u64 {
        file.write_all_at(&noise(100 + kill, 6 << 20), 76 << 20).unwrap();
        let mut child = strata()
            .args(["snapshot", "create"])
            .arg(place.path("st"))
            .args(["web".as_ref(), raw.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(kill * 2500));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(place.check()["problems"], Value::Array(vec![]));
    let told = stdout(strata().args(["snapshot", "list", "--json"]).arg(place.path("st")));
    let snapshots: Vec<Value> =
        told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!snapshots.is_empty());
    assert!(place.raw(snapshots[0]["id"].as_str().unwrap()) == base);
    // What was left goes on being used.
    place.create("web", &raw);
    assert!(place.raw("web") == fs::read(&raw).unwrap());
}

#[test]
fn several_disks_are_one_snapshot() {
    let place = Place::new();
    let (one, two) = (place.path("one.raw"), place.path("two.raw"));
    fs::write(&one, noise(1, 300_000)).unwrap();
    fs::write(&two, noise(2, 500_000)).unwrap();
    let mut create = strata();
    create.args(["snapshot", "create"]).arg(place.path("st")).args(["db", "--tag", "weekly"]);
    run(create.arg(&one).arg(format!("logs={}", two.display())));
    let told = fails(strata().arg("ls").arg(place.reference("db")));
    assert!(told.contains("db has several disks") && told.contains("one, logs"), "{told}");
    // A raw disk is filled up to whole sectors.
    assert!(place.raw("db/one").starts_with(&fs::read(&one).unwrap()));
    assert!(place.raw("db/logs").starts_with(&fs::read(&two).unwrap()));
    let told = stdout(strata().args(["snapshot", "list"]).arg(place.path("st")));
    assert!(told.contains("db") && told.contains("weekly") && told.lines().count() == 1, "{told}");
}

#[test]
fn damage_is_told_with_the_snapshots_it_concerns() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    disk(&raw);
    let made = place.create("web", &raw);
    let packs = stdout(Command::new("find").arg(place.path("st/packs")).args(["-type", "f"]));
    let pack = packs.lines().next().unwrap();
    let file = OpenOptions::new().read(true).write(true).open(pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 1 << 20).unwrap();
    let check =
        strata().args(["store", "check", "--read-data"]).arg(place.path("st")).output().unwrap();
    let told = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(1), "{told}");
    assert!(
        told.contains(made["id"].as_str().unwrap()) && told.contains("128 KiB lost at 0x"),
        "{told}"
    );
    assert!(told.contains("is not what its name says"), "{told}");
}

#[test]
fn pruning_tells_why_and_removes_the_rest() {
    let place = Place::new();
    let raw = place.path("disk.raw");
    fs::write(&raw, noise(1, 100_000)).unwrap();
    for day in 1..=9 {
        let mut create = strata();
        create.args(["snapshot", "create"]).arg(place.path("st")).arg("web").arg(&raw);
        run(create.args(["--time", &format!("2026-11-0{day}T12:00:00Z")]));
    }
    let prune = |options: &[&str]| {
        let mut prune = strata();
        prune.env("TZ", "UTC").args(["snapshot", "prune"]).arg(place.path("st")).args(options);
        stdout(&mut prune)
    };
    let rules = ["--keep-last", "2", "--keep-weekly", "2", "--keep-within", "3d"];
    let told = prune(&[&rules[..], &["--dry-run"]].concat());
    let lines: Vec<Vec<&str>> =
        told.lines().map(|line| line.split_whitespace().collect()).collect();
    let kept = |line: &[&str]| format!("{} {}", line[2], line[5..].concat());
    let kept: Vec<String> =
        lines.iter().filter(|line| line[0] == "keep").map(|line| kept(line)).collect();
    // The ninth of November 2026 was a Monday.
    let expected = [
        "2026-11-09 last,weekly,within",
        "2026-11-08 last,weekly,within",
        "2026-11-07 within",
        "2026-11-06 within",
    ];
    assert_eq!((lines.len(), kept), (9, expected.map(str::to_owned).to_vec()));
    let list = || stdout(strata().args(["snapshot", "list"]).arg(place.path("st"))).lines().count();
    assert_eq!(list(), 9);
    prune(&rules);
    assert_eq!(list(), 4);
    assert_eq!(place.check()["problems"], Value::Array(vec![]));
    let told = fails(strata().args(["snapshot", "prune"]).arg(place.path("st")));
    assert!(told.contains("nothing says which snapshots to keep"), "{told}");
}

#[test]
fn mistakes_are_told_in_a_line_and_a_hint() {
    let place = Place::new();
    let store = place.path("st");
    let told = fails(strata().args(["store", "init"]).arg(&store));
    assert!(told.contains("is not empty"), "{told}");
    let told = fails(strata().args(["snapshot", "list"]).arg(place.0.path()));
    assert!(told.contains("no snapshot store") && told.contains("strata store init"), "{told}");
    let told = fails(strata().arg("convert").arg(&store).arg("out.raw"));
    assert!(told.contains("is a snapshot store") && told.contains("::SERIES"), "{told}");
    let told = fails(strata().args(["snapshot", "create"]).arg(&store).args(["a/b", "disk.raw"]));
    assert!(told.contains("series \"a/b\""), "{told}");
    let told =
        fails(strata().args(["store", "init", "--block-size", "100K"]).arg(place.path("new")));
    assert!(told.contains("a power of two from 16 KiB to 4 MiB"), "{told}");
}
