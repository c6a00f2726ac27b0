//! All snapshots of a store through one mount, while others make and remove them.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use support::{run, stdout, strata, tool};

const DISK: u64 = 16 << 20;

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with a store, and one to mount on.
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("mnt")).unwrap();
        run(strata().args(["store", "init"]).arg(place.path("st")));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self) -> String {
        self.path("st").to_str().unwrap().to_owned()
    }

    /// A disk whose filesystem has one file, `hello`.
    fn disk(&self, name: &str, text: &str) -> PathBuf {
        let (disk, files) = (self.path(name), self.path("files"));
        fs::create_dir_all(&files).unwrap();
        fs::write(files.join("hello"), text).unwrap();
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        let mut mke2fs = tool("mke2fs", "e2fsprogs");
        run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&files).arg(&disk));
        disk
    }

    fn create(&self, series: &str, time: &str, disks: &[&str]) -> String {
        let mut create = strata();
        create.args(["snapshot", "create", "--json", "--time", time, &self.store(), series]);
        let made: serde_json::Value = serde_json::from_str(&stdout(create.args(disks))).unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    fn remove(&self, id: &str) {
        run(strata().args(["snapshot", "remove", &format!("{}::{id}", self.store())]));
    }

    fn mount(&self, options: &[&str]) -> Mounted {
        run(strata().arg("mount").args(options).arg(self.store()).arg(self.path("mnt")));
        Mounted(self.path("mnt"))
    }
}

struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = strata().arg("unmount").arg(&self.0).status();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits for what takes a moment to be seen.
fn until(what: &str, seen: impl Fn() -> bool) {
    for _ in 0..600 {
        if seen() {
            return;
        }
        sleep(Duration::from_millis(50));
    }
    panic!("not seen: {what}");
}

#[test]
fn snapshots_appear_and_disappear_while_mounted() {
    let place = Place::new();
    let disk = place.disk("disk.raw", "one");
    let first = place.create("web", "2026-11-22T01:00:00Z", &[disk.to_str().unwrap()]);
    let mounted = place.mount(&[]);
    let web = mounted.0.join("web");
    let hello = |at: &str| fs::read_to_string(web.join(at).join("hello")).ok();
    assert_eq!(names(&mounted.0), ["web"]);
    assert_eq!(names(&web), ["2026-11-22T01:00:00Z", "latest"]);
    assert_eq!(hello("latest").as_deref(), Some("one"));
    assert!(!web.join("2026-11-22T02:00:00Z").exists());

    // Of what was listed, asked for, and said not to be there.
    place.disk("disk.raw", "two");
    let second = place.create("web", "2026-11-22T02:00:00Z", &[disk.to_str().unwrap()]);
    until("a new snapshot by name", || hello("2026-11-22T02:00:00Z").as_deref() == Some("two"));
    until("a new snapshot in the list", || names(&web).len() == 3);
    until("a link that moves", || hello("latest").as_deref() == Some("two"));
    let target = fs::read_link(web.join("latest")).unwrap();
    assert_eq!(target, Path::new("2026-11-22T02:00:00Z"));
    assert_eq!(hello("2026-11-22T01:00:00Z").as_deref(), Some("one"));
    let same = place.create("web", "2026-11-22T02:00:00.5Z", &[disk.to_str().unwrap()]);
    let name = format!("2026-11-22T02:00:00Z-{}", &same[..12]);
    until("another of that second", || hello(&name).as_deref() == Some("two"));

    let open = File::open(web.join("2026-11-22T01:00:00Z/hello")).unwrap();
    place.remove(&first);
    until("a snapshot removed", || !names(&web).contains(&"2026-11-22T01:00:00Z".into()));
    until("a name removed", || !web.join("2026-11-22T01:00:00Z").exists());
    let mut text = [0; 3];
    open.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"one");
    place.remove(&second);
    place.remove(&same);
    until("a series removed", || names(&mounted.0).is_empty());
}

#[test]
fn disks_are_folders_and_every_view_is_there() {
    let place = Place::new();
    let (root, data) = (place.disk("root.raw", "root"), place.disk("data.raw", "data"));
    let named = [format!("root={}", root.display()), format!("data={}", data.display())];
    place.create("db", "2026-11-22T01:00:00Z", &[&named[0], &named[1]]);
    place.create("web", "2026-11-22T01:00:00Z", &[root.to_str().unwrap()]);
    {
        let mounted = place.mount(&["--view", "disk"]);
        let latest = mounted.0.join("db/latest");
        assert_eq!(names(&latest), ["data", "root"]);
        assert!(fs::read(latest.join("data/disk.img")).unwrap() == fs::read(&data).unwrap());
        assert!(
            fs::read(mounted.0.join("web/latest/disk.img")).unwrap() == fs::read(&root).unwrap()
        );
        assert!(fs::write(mounted.0.join("x"), "").is_err());
    }
    // The same without a mount.
    let store = place.store();
    let listed = stdout(strata().args(["ls", "-R", &store, "/db/2026-11-22T01:00:00Z/data"]));
    assert!(listed.contains("hello"), "{listed}");
    assert_eq!(stdout(strata().args(["cat", &store, "/web/latest/hello"])), "root");
    let out = place.path("out");
    run(strata().args(["restore", &store, "/db/latest/data/hello", "--to"]).arg(&out));
    assert_eq!(fs::read_to_string(out.join("hello")).unwrap(), "data");
    let told = stdout(strata().args(["info", &store]));
    assert!(told.contains("snapshots:") && told.contains('2'), "{told}");
    let refused = strata().args(["mount", "--scratch", &store]).arg(&out).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains("::SERIES"), "{told}");
}

/// What is damaged is not shown, or fails alone.
#[test]
fn a_damaged_snapshot_fails_alone() {
    let place = Place::new();
    let disk = place.disk("disk.raw", "one");
    let first = place.create("web", "2026-11-22T01:00:00Z", &[disk.to_str().unwrap()]);
    place.create("web", "2026-11-22T02:00:00Z", &[disk.to_str().unwrap()]);
    let record = place.path("st/snapshots").join(first);
    let mut bytes = fs::read(&record).unwrap();
    bytes[100] ^= 1;
    fs::write(&record, bytes).unwrap();
    let listed = Command::new(env!("CARGO_BIN_EXE_strata"))
        .args(["ls", &place.store(), "/web"])
        .output()
        .unwrap();
    let (told, warned) =
        (String::from_utf8(listed.stdout).unwrap(), String::from_utf8(listed.stderr).unwrap());
    assert!(told.contains("02:00:00Z") && !told.contains("01:00:00Z"), "{told}");
    assert!(warned.contains("not shown"), "{warned}");
}

/// As many as a schedule makes are listed at once, and one more is found soon.
#[test]
fn a_thousand_are_listed() {
    let place = Place::new();
    let disk = place.path("disk.raw");
    fs::write(&disk, [7; 4096]).unwrap();
    let count: u32 = std::env::var("STRATA_SNAPSHOTS").map_or(60, |count| count.parse().unwrap());
    for nth in 0..count {
        let time =
            jiff::Timestamp::from_second(1_700_000_000 + i64::from(nth)).unwrap().to_string();
        place.create("web", &time, &[disk.to_str().unwrap()]);
    }
    let mounted = place.mount(&["--view=disk"]);
    let web = mounted.0.join("web");
    assert_eq!(names(&web).len(), count as usize + 1);
    // With attributes, and into each.
    for name in names(&web) {
        assert!(fs::metadata(web.join(&name)).unwrap().is_dir());
        assert_eq!(fs::read(web.join(name).join("disk.img")).unwrap(), [7; 4096]);
    }
}
