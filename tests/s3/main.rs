//! Stores in buckets of a real object gateway, straight and behind a proxy that fails.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod ceph;
mod contract;
mod jobs;
mod proxy;
mod requests;

#[path = "../store_model/disks.rs"]
mod disks;
#[path = "../store_model/model.rs"]
mod model;
#[path = "../store_model/places.rs"]
mod places;
#[path = "../ext/rng.rs"]
mod rng;
#[path = "../store_suite/mod.rs"]
mod suite;
#[path = "../support/mod.rs"]
mod support;
#[path = "../store_model/tight.rs"]
mod tight;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ceph::{Ceph, KEY, SECRET};
use proxy::{Fault, Proxy};
use serde_json::Value;
use support::{qemu_img, run, strata, tool};

const DISK: u64 = 96 << 20;

/// A folder, and how the program is to be called in it.
struct Place {
    dir: tempfile::TempDir,
    endpoint: String,
    timeout: u64,
}

impl Place {
    fn new(endpoint: String) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), endpoint, timeout: 60 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn strata(&self, args: &[&str]) -> Command {
        let mut command = strata();
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path()).env("STRATA_CACHE_DIR", self.path("cache"));
        command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command.env("AWS_ENDPOINT_URL", &self.endpoint);
        command.args(args);
        command
    }

    /// What a command that must succeed prints; it talks to a bucket.
    #[track_caller]
    fn told(&self, args: &[&str]) -> String {
        let timeout = self.timeout.to_string();
        let mut command = self.strata(args);
        String::from_utf8(run(command.args(["--request-timeout", &timeout])).stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[args, &["--json"]].concat())).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.strata(args).output().unwrap();
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    #[track_caller]
    fn create(&self, store: &str, series: &str, disk: &Path) -> Value {
        self.json(&["snapshot", "create", store, series, disk.to_str().unwrap()])
    }

    /// A snapshot's whole disk, by way of a commit and qemu-img.
    #[track_caller]
    fn raw(&self, reference: &str) -> Vec<u8> {
        let (qcow2, raw) = (self.path("out.qcow2"), self.path("out.raw"));
        let _ = fs::remove_file(&qcow2);
        self.told(&["commit", reference, "--to", qcow2.to_str().unwrap()]);
        qemu_img([
            "convert".as_ref(),
            "-O".as_ref(),
            "raw".as_ref(),
            qcow2.as_os_str(),
            raw.as_os_str(),
        ]);
        fs::read(&raw).unwrap()
    }

    fn check(&self, store: &str) {
        let checked = self.json(&["store", "check", "--read-data", store]);
        assert_eq!(checked["problems"], Value::Array(vec![]), "{checked}");
    }
}

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A disk with a filesystem, holes and more than a pack of noise in it.
fn disk(path: &Path) -> File {
    File::create(path).unwrap().set_len(DISK).unwrap();
    let mut mke2fs = tool("mke2fs", "e2fsprogs");
    run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg("src").arg(path).arg("32M"));
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(DISK).unwrap();
    file.write_all_at(&noise(1, 44 << 20), 40 << 20).unwrap();
    file
}

fn ids(told: &Value) -> Vec<String> {
    let ids = told.as_array().unwrap().iter();
    ids.map(|id| id.as_str().unwrap().to_owned()).collect()
}

/// How often a snapshot is made and read behind the proxy.
fn rounds() -> u64 {
    std::env::var("STRATA_S3_ROUNDS").map_or(1, |rounds| rounds.parse().unwrap())
}

/// Seeds of what the proxy does.
fn seed() -> u64 {
    std::env::var("STRATA_S3_SEED").map_or(1, |seed| seed.parse().unwrap())
}

#[test]
fn a_store_lives_in_a_bucket() {
    let ceph = Ceph::start();
    let place = Place::new(ceph.endpoint());
    mistakes(&ceph, &place);
    contract::of_a_bucket(&ceph.endpoint());
    snapshots(&ceph, &place);
    kept_pieces(&place);
    copies(&ceph, &place);
    failing(&ceph);
}

/// What is wrong is told in a line.
fn mistakes(ceph: &Ceph, place: &Place) {
    let told = place.fails(&["store", "init", "s3://bucket/st"]);
    assert!(told.contains("NoSuchBucket") && told.contains("make the bucket first"), "{told}");
    ceph.make_bucket("bucket");
    let told = place.fails(&["snapshot", "list", "s3://bucket/st"]);
    assert!(told.contains("no snapshot store") && told.contains("strata store init"), "{told}");
    let mut wrong = place.strata(&["store", "init", "s3://bucket/st"]);
    let told = wrong.env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap().stderr;
    let told = String::from_utf8(told).unwrap();
    assert!(told.contains("403 SignatureDoesNotMatch") && told.contains("hint: "), "{told}");
    let told = place.fails(&["store", "init", "s3://bucket/st", "--endpoint=http://192.0.2.1"]);
    assert!(told.contains("plain HTTP") && told.contains("--allow-http"), "{told}");
    let dead = ["--endpoint=http://127.0.0.1:9", "--request-timeout=2"];
    let told = place.fails(&[&["snapshot", "list", "s3://bucket/st"], &dead[..]].concat());
    assert!(told.contains("127.0.0.1:9 cannot be reached") && told.contains("tried"), "{told}");
    ceph.curl(&["-X", "PUT", "--data-binary", "x"], "bucket/full/object");
    let told = place.fails(&["store", "init", "s3://bucket/full"]);
    assert!(told.contains("is not empty"), "{told}");
}

/// The life of a store: made, written, read, mounted, damaged, repaired.
fn snapshots(ceph: &Ceph, place: &Place) {
    let store = "s3://bucket/st";
    place.told(&["store", "init", store]);
    let told = place.fails(&["store", "init", store]);
    assert!(told.contains("is not empty"), "{told}");
    let raw = place.path("disk.raw");
    let file = disk(&raw);
    let before = fs::read(&raw).unwrap();
    let first = place.create(store, "web", &raw);
    assert!(place.raw("s3://bucket/st::web") == before);
    let again = place.create(store, "web", &raw);
    assert_eq!(again["disks"][0]["new_blocks"], 0, "{again}");
    file.write_all_at(&noise(2, 1 << 20), 41 << 20).unwrap();
    let third = place.create(store, "web", &raw);
    assert_eq!(third["disks"][0]["new_blocks"], 8, "{third}");
    let listed = place.told(&["snapshot", "list", store, "--json"]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    place.check(store);

    // Objects are called what the format says, and another program sees them.
    let objects = ceph.objects("bucket");
    let record = format!("st/snapshots/{}", first["id"].as_str().unwrap());
    assert!(objects.contains(&record) && objects.contains(&"st/config".to_owned()), "{objects:?}");

    let listed = place.told(&["ls", "s3://bucket/st::web", "/store/objects"]);
    assert!(listed.contains("folder.rs"), "{listed}");
    mounted(place, &format!("{store}::{}", first["id"].as_str().unwrap()), &before);

    place.told(&["snapshot", "remove", &format!("{store}::{}", again["id"].as_str().unwrap())]);
    assert!(place.raw("s3://bucket/st::web") == fs::read(&raw).unwrap());
    place.told(&["snapshot", "prune", store, "--keep-last", "1"]);
    assert_eq!(place.told(&["snapshot", "list", store, "--json"]).lines().count(), 1);
    place.check(store);

    // An index is lost.
    let index = objects.iter().find(|name| name.starts_with("st/index/")).unwrap();
    ceph.curl(&["-X", "DELETE"], &format!("bucket/{index}"));
    let checked = place.strata(&["store", "check", store]).output().unwrap();
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    place.told(&["store", "repair", store]);
    place.check(store);
    assert!(place.raw("s3://bucket/st::web") == fs::read(&raw).unwrap());
}

fn mounted(place: &Place, reference: &str, expected: &[u8]) {
    let mnt = place.path("mnt");
    fs::create_dir(&mnt).unwrap();
    run(place.strata(&["mount", "--view=disk", reference]).arg(&mnt).stderr(Stdio::null()));
    let shown = fs::read(mnt.join("disk.img"));
    run(place.strata(&["unmount"]).arg(&mnt));
    assert!(shown.unwrap() == expected);
}

/// What was read is there the next time, and a damaged piece of it is not served.
fn kept_pieces(place: &Place) {
    let reference = "s3://bucket/st::web";
    let expected = fs::read(place.path("disk.raw")).unwrap();
    let info = place.told_alone(&["cache", "info", "--json"]);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert!(info["stores"]["pieces"].as_u64().unwrap() > 100, "{info}");
    let received = |args: &[&str]| {
        let output = run(&mut place.strata(&[args, &["-v"]].concat()));
        let told = String::from_utf8(output.stderr).unwrap();
        let line = told.lines().rfind(|line| line.contains(" requests: ")).unwrap();
        let before = line.split(" bytes received").next().unwrap();
        before.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let out = place.path("again.qcow2");
    let commit = ["commit", reference, "--to", out.to_str().unwrap()];
    let bytes = received(&commit);
    assert!(bytes < 100_000, "{bytes} of it were read again");
    // Every piece is damaged, in one byte.
    for (number, file) in walk(&place.path("cache/stores")).into_iter().enumerate() {
        let file = File::options().read(true).write(true).open(file).unwrap();
        let at = noise(number as u64, 1)[0].into();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    }
    assert!(place.raw(reference) == expected);
    place.told_alone(&["cache", "prune"]);
    assert_eq!(walk(&place.path("cache/stores")).len(), 0);
    fs::remove_file(&out).unwrap();
    let bytes = received(&commit);
    assert!(bytes > 40 << 20, "{bytes}");
}

impl Place {
    fn told_alone(&self, args: &[&str]) -> String {
        String::from_utf8(run(&mut self.strata(args)).stdout).unwrap()
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            files.extend(walk(&entry));
        } else {
            files.push(entry);
        }
    }
    files.sort();
    files
}

/// Snapshots go from a folder to a bucket and back, though copying is killed again and again.
fn copies(ceph: &Ceph, place: &Place) {
    let folder = place.path("folder");
    let folder = folder.to_str().unwrap();
    place.told_alone(&["store", "init", folder]);
    let raw = place.path("disk.raw");
    let file = File::options().write(true).open(&raw).unwrap();
    let mut made = Vec::new();
    for seed in 0..3 {
        file.write_all_at(&noise(10 + seed, 24 << 20), 60 << 20).unwrap();
        let told = place.create(folder, "web", &raw);
        made.push((told["id"].as_str().unwrap().to_owned(), fs::read(&raw).unwrap()));
    }
    let bucket = "s3://bucket/copy";
    let packs = || {
        let objects = ceph.objects("bucket");
        objects.into_iter().filter(|name| name.starts_with("copy/packs/")).count()
    };
    // What arrives before a kill is not sent again.
    let mut kills = 0;
    while packs() < 2 {
        let mut copy = place.strata(&["store", "copy", folder, bucket]);
        let mut copy = copy.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(150 + 50 * kills));
        copy.kill().unwrap();
        copy.wait().unwrap();
        kills += 1;
        assert!(kills < 60, "nothing arrives");
    }
    let there = packs() as u64;
    let told = place.json(&["store", "copy", folder, bucket]);
    let all = ["packs", "packs_there"].map(|key| told[key].as_u64().unwrap());
    let snapshots = ids(&told["snapshots"]).len() as u64 + told["already"].as_u64().unwrap();
    assert_eq!(snapshots, 3, "{told}");
    assert_eq!((all[0] + there, told["blobs"].as_u64()), (packs() as u64, Some(0)), "{told}");
    for (id, expected) in &made {
        assert!(place.raw(&format!("{bucket}::{id}")) == *expected);
    }
    place.check(bucket);
    let told = place.json(&["store", "copy", folder, bucket]);
    assert_eq!((&told["already"], &told["sent"]), (&3.into(), &0.into()), "{told}");

    // Back, into a store of another number: the same ids.
    let back = place.path("back");
    let back = back.to_str().unwrap();
    place.told_alone(&["store", "init", back]);
    let (last, expected) = &made[2];
    let told = place.json(&["store", "copy", bucket, back, "--snapshot", last]);
    assert_eq!(told["snapshots"], serde_json::json!([last]), "{told}");
    assert!(told["blobs"].as_u64().unwrap() > 300, "{told}");
    assert!(place.raw(&format!("{back}::web")) == *expected);
    let told = place.json(&["store", "copy", bucket, back, "--series", "web"]);
    assert_eq!(ids(&told["snapshots"]).len(), 2, "{told}");
    assert!(place.raw(&format!("{back}::{}", made[0].0)) == made[0].1);
    place.check(back);

    // Into blocks of another size.
    let other = place.path("other");
    let other = other.to_str().unwrap();
    place.told_alone(&["store", "init", other, "--block-size", "64K"]);
    let told = place.json(&["store", "copy", bucket, other, "--snapshot", "web"]);
    assert_eq!(ids(&told["snapshots"]).len(), 1, "{told}");
    assert!(place.raw(&format!("{other}::web")) == *expected);
    let told = place.json(&["store", "copy", bucket, other, "--snapshot", "web"]);
    assert_eq!(told["already"], 1, "{told}");
}

/// Three of ten requests fail: no byte is wrong, and all of it ends in time.
fn failing(ceph: &Ceph) {
    let proxy = Proxy::start(ceph.port(), seed());
    let mut place = Place::new(proxy.endpoint());
    place.timeout = 20;
    let raw = place.path("disk.raw");
    let file = disk(&raw);
    let store = "s3://bucket/far";
    proxy.fail(30, &Fault::ALL);
    place.told(&["store", "init", store]);
    for round in 0..rounds() {
        file.write_all_at(&noise(20 + round, 3 << 20), 70 << 20).unwrap();
        place.create(store, "web", &raw);
        assert!(place.raw("s3://bucket/far::web") == fs::read(&raw).unwrap());
        place.told_alone(&["cache", "prune"]);
    }
    place.check(store);
    let (requests, faults) = proxy.counted();
    assert!(faults * 100 > requests * 20 && faults > 10, "{faults} of {requests} failed");

    // All fail: it is told how, and soon.
    for (fault, told) in [
        (Fault::Unavailable, "the server answers 503 SlowDown"),
        (Fault::Internal, "the server answers 500 InternalError"),
        (Fault::TooMany, "the server answers 429"),
        (Fault::Reset, "cannot be reached"),
        (Fault::Hang, "does not answer in time"),
    ] {
        proxy.fail(100, &[fault]);
        let began = Instant::now();
        let list = ["snapshot", "list", store, "--request-timeout", "2"];
        let output = place.strata(&list).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(told), "{fault:?}: {said}");
        assert!(said.starts_with("strata: s3://bucket/far"), "{said}");
        // It may take a try more than it has time for.
        assert!(began.elapsed() < Duration::from_secs(15), "{fault:?}: {:?}", began.elapsed());
    }
}
