//! What a store has to do wherever it lies, by the command line: for a folder, a bucket, and a bucket far away that
//! fails now and then.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{qemu_img, qemu_io, run, tool};

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;
/// What is in a disk, and must not be found in an encrypted store.
const MARKER: &[u8] = b"the marker that nobody must find, and that does not compress away";

/// Where stores lie, and a folder for what is beside them.
pub trait Place {
    /// The program with these arguments, ready to reach the stores.
    fn strata(&self, args: &[&str]) -> Command;

    /// A file beside the stores.
    fn path(&self, name: &str) -> PathBuf;

    /// What a store is called that is to be made.
    fn store(&self, name: &str) -> String;

    /// The bytes of all objects of a store, read by other means than ours.
    fn bytes(&self, name: &str) -> Vec<Vec<u8>>;
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[track_caller]
fn told(place: &dyn Place, args: &[&str]) -> String {
    String::from_utf8(run(&mut place.strata(args)).stdout).unwrap()
}

#[track_caller]
fn json(place: &dyn Place, args: &[&str]) -> Value {
    serde_json::from_str(&told(place, &[args, &["--json"]].concat())).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A store, and a disk with a filesystem, a hole and some noise, of which it has a snapshot in the series `web`.
struct Begun<'a> {
    place: &'a dyn Place,
    store: String,
    disk: PathBuf,
    file: File,
    first: String,
    options: Vec<String>,
}

impl<'a> Begun<'a> {
    fn new(place: &'a dyn Place, name: &str, options: &[&str]) -> Self {
        let disk = place.path(&format!("{name}.raw"));
        File::create(&disk).unwrap().set_len(DISK).unwrap();
        let mut mke2fs = tool("mke2fs", "e2fsprogs");
        run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d", "src/store"]).arg(&disk).arg("12M"));
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        file.set_len(DISK).unwrap();
        file.write_all_at(&noise(1, 4 << 20), 16 * MIB).unwrap();
        file.write_all_at(MARKER, 22 * MIB).unwrap();
        let store = place.store(name);
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let mut begun = Self { place, store, disk, file, first: String::new(), options };
        begun.told(&["store", "init", &begun.store]);
        begun.first = begun.create();
        begun
    }

    #[track_caller]
    fn told(&self, args: &[&str]) -> String {
        let args = args.iter().copied().chain(self.options.iter().map(String::as_str));
        told(self.place, &args.collect::<Vec<_>>())
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.told(&[args, &["--json"]].concat())).unwrap()
    }

    #[track_caller]
    fn create(&self) -> String {
        let made = self.json(&["snapshot", "create", &self.store, "web", text(&self.disk)]);
        made["id"].as_str().unwrap().to_owned()
    }

    fn reference(&self, name: &str) -> String {
        format!("{}::{name}", self.store)
    }

    /// The disk of a snapshot.
    #[track_caller]
    fn raw(&self, name: &str) -> Vec<u8> {
        let out = self.place.path("out.raw");
        self.told(&["convert", "--overwrite", &self.reference(name), text(&out)]);
        fs::read(&out).unwrap()
    }

    #[track_caller]
    fn is_clean(&self) {
        let checked = self.json(&["store", "check", "--read-data", &self.store]);
        assert_eq!(checked["problems"], Value::Array(vec![]), "{checked}");
    }

    /// Does `what` with something mounted.
    fn mounted<T>(&self, args: &[&str], what: impl FnOnce(&Path) -> T) -> T {
        struct Mounted<'a>(&'a dyn Place, PathBuf);
        impl Drop for Mounted<'_> {
            fn drop(&mut self) {
                let _ = self.0.strata(&["unmount", text(&self.1)]).status();
            }
        }
        let mnt = self.place.path("mnt");
        fs::create_dir_all(&mnt).unwrap();
        self.told(&[&["mount"], args, &[text(&mnt)]].concat());
        let mounted = Mounted(self.place, mnt);
        what(&mounted.1)
    }
}

/// All of it.
pub fn all(place: &dyn Place) {
    collects(place);
    encrypts(place);
    tells_differences(place);
    shows_all_snapshots(place);
    converts(place);
    rolls_back(place);
    commits(place);
    machines_read_it(place);
}

/// What a removed snapshot alone had is given back, and the rest stays.
pub fn collects(place: &dyn Place) {
    let begun = Begun::new(place, "collected", &[]);
    begun.file.write_all_at(&noise(2, 3 << 20), 16 * MIB).unwrap();
    begun.create();
    begun.told(&["snapshot", "remove", &begun.reference(&begun.first)]);
    let collect = ["store", "collect", "--grace=0s", "--unused=0", &begun.store];
    let done = begun.json(&collect);
    assert!(done["rewritten_packs"].as_u64().unwrap() > 0, "{done}");
    assert!(done["removed_bytes"].as_u64().unwrap() > 3 * MIB, "{done}");
    assert!(begun.raw("web") == fs::read(&begun.disk).unwrap());
    begun.is_clean();
    let again = begun.json(&collect);
    assert_eq!((&again["removed_packs"], &again["waiting_packs"]), (&0.into(), &0.into()));
    let left: usize = place.bytes("collected").iter().map(Vec::len).sum();
    assert!((left as u64) < 6 * MIB, "{left} bytes are left");
}

/// With another key nothing opens, and without one nothing is to be read.
pub fn encrypts(place: &dyn Place) {
    let keys = ["key", "other", "wrong"].map(|name| place.path(name));
    for (key, seed) in keys.iter().zip(100..) {
        fs::write(key, noise(seed, 32)).unwrap();
    }
    let given = keys.each_ref().map(|key| format!("--key-file={}", key.display()));
    {
        let mut init = place.strata(&["store", "init", "--encrypt", &given[0]]);
        run(init.arg(place.store("secret")));
    }
    let disk = place.path("secret.raw");
    let bytes = [&noise(3, 2 << 20)[..], MARKER, &vec![0; 1 << 20]].concat();
    let bytes = [&bytes[..], &vec![0; bytes.len().next_multiple_of(512) - bytes.len()]].concat();
    fs::write(&disk, &bytes).unwrap();
    let store = place.store("secret");
    let reference = format!("{store}::web");
    told(place, &["snapshot", "create", &store, "web", text(&disk), &given[0]]);
    let out = place.path("out.raw");
    let convert =
        |given: &str| place.strata(&["convert", "--overwrite", &reference, text(&out), given]);
    run(&mut convert(&given[0]));
    assert!(fs::read(&out).unwrap() == bytes);
    let new = format!("--new-key-file={}", keys[1].display());
    told(place, &["store", "key", "add", &store, &new, &given[0]]);
    run(&mut convert(&given[1]));
    assert!(fs::read(&out).unwrap() == bytes);
    let refused = convert(&given[2]).output().unwrap();
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && why.contains("opens none of its keys"), "{why}");
    let objects = place.bytes("secret");
    assert!(objects.len() > 5);
    let found = objects.iter().any(|bytes| bytes.windows(24).any(|part| part == &MARKER[..24]));
    assert!(!found, "the marker is there");
    let checked = json(place, &["store", "check", "--read-data", &store, &given[1]]);
    assert_eq!(checked["problems"], Value::Array(vec![]), "{checked}");
}

/// Two snapshots differ in the blocks that were written.
pub fn tells_differences(place: &dyn Place) {
    let begun = Begun::new(place, "compared", &[]);
    begun.file.write_all_at(&noise(4, 1 << 20), 18 * MIB).unwrap();
    begun.create();
    let (before, after) = (begun.reference(&begun.first), begun.reference("web"));
    let found = begun.told(&["diff", "--blocks", "--json", &before, &after]);
    let ranges: Vec<(u64, u64)> = found
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|range| (range["offset"].as_u64().unwrap(), range["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(ranges, [(18 * MIB, MIB)], "{found}");
    assert_eq!(begun.told(&["diff", &before, &after]), "");
}

/// Every series and snapshot is a folder.
pub fn shows_all_snapshots(place: &dyn Place) {
    let begun = Begun::new(place, "shown", &[]);
    let before = fs::read(&begun.disk).unwrap();
    begun.file.write_all_at(&noise(5, 1 << 20), 18 * MIB).unwrap();
    begun.create();
    begun.mounted(&["--view=disk", &begun.store], |mnt| {
        let web = mnt.join("web");
        let mut names: Vec<_> =
            fs::read_dir(&web).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(fs::read(web.join(&names[0]).join("disk.img")).unwrap() == before);
        let now = fs::read(&begun.disk).unwrap();
        assert!(fs::read(web.join("latest/disk.img")).unwrap() == now);
    });
    let listed = begun.told(&["ls", &begun.reference("web"), "/objects"]);
    assert!(listed.contains("folder.rs"), "{listed}");
}

/// Written out, it is what qemu-img takes for the same disk.
pub fn converts(place: &dyn Place) {
    let begun = Begun::new(place, "converted", &[]);
    let out = place.path("out.qcow2");
    begun.told(&["convert", "--compress=zstd", &begun.reference("web"), text(&out)]);
    qemu_img(["check", "-q", text(&out)]);
    qemu_img(["compare", "-q", "-f", "qcow2", "-F", "raw", text(&out), text(&begun.disk)]);
    fs::remove_file(&out).unwrap();
    let mut convert = place.strata(&["convert", "-O", "raw", &begun.reference("web"), "-"]);
    assert!(run(&mut convert).stdout == fs::read(&begun.disk).unwrap());
}

/// A disk becomes what it was.
pub fn rolls_back(place: &dyn Place) {
    let begun = Begun::new(place, "rolled", &[]);
    let before = fs::read(&begun.disk).unwrap();
    begun.file.write_all_at(&noise(6, 2 << 20), 15 * MIB).unwrap();
    begun.create();
    begun.told(&[
        "snapshot",
        "rollback",
        "--yes",
        &begun.reference(&begun.first),
        text(&begun.disk),
    ]);
    assert!(fs::read(&begun.disk).unwrap() == before);
    assert!(begun.raw("web") != before);
}

/// What was written above a snapshot becomes the next one.
pub fn commits(place: &dyn Place) {
    let begun = Begun::new(place, "committed", &[]);
    let delta = place.path("fix.qcow2");
    let _ = fs::remove_file(&delta);
    let mount = ["--view=disk", "--cow", text(&delta), &begun.reference("web")];
    begun.mounted(&mount, |mnt| {
        let shown = File::options().write(true).open(mnt.join("disk.img")).unwrap();
        shown.write_all_at(&noise(7, 300_000), 19 * MIB).unwrap();
        shown.sync_all().unwrap();
    });
    begun.told(&["commit", text(&delta), "--to", &begun.reference("web")]);
    begun.file.write_all_at(&noise(7, 300_000), 19 * MIB).unwrap();
    assert!(begun.raw("web") == fs::read(&begun.disk).unwrap());
    let shown = begun.told(&["snapshot", "show", "--json", &begun.reference("web")]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["parent"], begun.first.as_str());
    begun.is_clean();
}

/// QEMU reads and writes above a snapshot, and `strata boot` gives a machine that disk.
pub fn machines_read_it(place: &dyn Place) {
    let begun = Begun::new(place, "machines", &[]);
    begun.mounted(&["--view=disk", "--scratch", &begun.reference("web")], |mnt| {
        let disk = mnt.join("disk.img");
        qemu_img(["compare", "-q", "-f", "raw", "-F", "raw", text(&disk), text(&begun.disk)]);
        let commands = ["-c", "write -P 7 17M 64k", "-c", "flush", "-c", "read -P 7 17M 64k"];
        qemu_io(["-f", "raw"].into_iter().chain(commands).chain([text(&disk)]));
    });
    assert!(begun.raw("web") == fs::read(&begun.disk).unwrap());
    // A machine that reads its disk once.
    let (machine, runtime, sum) = (place.path("machine"), place.path("run"), place.path("sum"));
    fs::create_dir_all(&runtime).unwrap();
    fs::set_permissions(&runtime, PermissionsExt::from_mode(0o700)).unwrap();
    let script = format!(
        "#!/bin/sh\nfind '{}' -name disk.img -exec sha256sum {{}} + > '{}'\n",
        runtime.display(),
        sum.display()
    );
    fs::write(&machine, script).unwrap();
    fs::set_permissions(&machine, PermissionsExt::from_mode(0o755)).unwrap();
    let mut boot = place.strata(&["boot", "--qemu", text(&machine), &begun.reference("web")]);
    run(boot.env("XDG_RUNTIME_DIR", &runtime).env("TMPDIR", &runtime));
    let expected = run(tool("sha256sum", "coreutils").arg(&begun.disk)).stdout;
    let found = fs::read_to_string(&sum).unwrap();
    assert_eq!(found.get(..64), String::from_utf8(expected).unwrap().get(..64), "{found}");
}
