//! `strata diff` beside `diff -r`, and a walk over the kernel's mounts of both images.
//!
//! `STRATA_RANDOM_TREES` says how many trees are changed at random (300 if unset),
//! `STRATA_RANDOM_SEED` where to begin.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use stratafs::block::Cache;
use stratafs::open::view::{View, view};
use stratafs::open::{Opener, Reference};
use stratafs::policy::Policy;
use stratafs::tree::difference::{Aspects, Progress, Side, compare};

use crate::ext::{Image, Mounted, Rng};
use crate::support::{qemu_img, run, stdout, strata, tool};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}

/// Trees in one image.
const TREES: u64 = 100;

const NAMES: [&str; 8] = ["a", "b", "a.b", "long name", "\u{e9}", "z", "c", "-"];

fn plant(root: &Path, rng: &mut Rng) {
    fs::create_dir(root).unwrap();
    let mut folders = vec![root.to_owned()];
    for _ in 0..rng.below(20) {
        let folder = folders[rng.below(folders.len() as u64) as usize].clone();
        let path = folder.join(NAMES[rng.below(8) as usize]);
        if fs::symlink_metadata(&path).is_err() && make(&path, rng) {
            folders.push(path);
        }
    }
}

/// Makes anything; whether it is a folder.
fn make(path: &Path, rng: &mut Rng) -> bool {
    match rng.below(10) {
        0..=2 => {
            fs::create_dir(path).unwrap();
            return true;
        }
        3 => symlink(NAMES[rng.below(8) as usize], path).unwrap(),
        4 => {
            let minor = rng.below(3) as u32;
            let device = rustix::fs::makedev(1, minor);
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, mode, device).unwrap();
        }
        5 => {
            let mode = Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
        }
        _ => {
            let len = [0, 1, 100, 4096, 9000][rng.below(5) as usize];
            fs::write(path, rng.bytes(len)).unwrap();
        }
    }
    set_time(path, rng.below(1 << 30) as i64, rng.below(1_000_000_000) as i64);
    false
}

fn set_time(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn all_below(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(folder) = todo.pop() {
        let mut paths: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                todo.push(path.clone());
            }
            all.push(path);
        }
    }
    all
}

/// Changes a tree here and there.
pub fn change(root: &Path, rng: &mut Rng) {
    for _ in 0..rng.below(6) {
        let all = all_below(root);
        let Some(path) = all.get(rng.below(all.len() as u64) as usize) else { return };
        let metadata = fs::symlink_metadata(path).unwrap();
        match rng.below(8) {
            0 if metadata.is_dir() => fs::remove_dir_all(path).unwrap(),
            0 => fs::remove_file(path).unwrap(),
            1 if !metadata.is_dir() => {
                fs::remove_file(path).unwrap();
                make(path, rng);
            }
            // The same size and the same time, other bytes.
            2 if metadata.is_file() && metadata.len() > 0 => {
                let at = rng.below(metadata.len());
                let file = File::options().write(true).open(path).unwrap();
                file.write_all_at(&[rng.next() as u8], at).unwrap();
                set_time(path, metadata.mtime(), metadata.mtime_nsec());
            }
            3 if !metadata.is_symlink() => {
                fs::set_permissions(path, fs::Permissions::from_mode(0o751)).unwrap();
            }
            4 => std::os::unix::fs::lchown(path, Some(7), None).unwrap(),
            5 if metadata.is_file() || metadata.is_dir() => {
                let value = rng.bytes(5);
                rustix::fs::lsetxattr(path, "user.x", &value, XattrFlags::empty()).unwrap();
            }
            6 => set_time(path, rng.below(1 << 30) as i64, 0),
            // The same bytes, written anew elsewhere.
            _ if metadata.is_file() => {
                let bytes = fs::read(path).unwrap();
                fs::remove_file(path).unwrap();
                fs::write(path, bytes).unwrap();
            }
            _ => {}
        }
    }
}

/// What `strata diff` is to say of two mounted images.
pub fn expected(before: &Path, after: &Path) -> String {
    let mut lines = BTreeMap::new();
    let [old, new] = [before, after].map(|root| -> BTreeMap<Vec<Vec<u8>>, PathBuf> {
        let below = |path: &PathBuf| {
            let inner = path.strip_prefix(root).unwrap();
            inner.iter().map(|name| name.as_bytes().to_vec()).collect::<Vec<_>>()
        };
        let all = [root.to_owned()].into_iter().chain(all_below(root));
        all.map(|path| (below(&path), path)).collect()
    });
    for names in old.keys().chain(new.keys()) {
        let shown = format!("/{}", String::from_utf8(names.join(&b'/')).unwrap());
        let line = match (old.get(names), new.get(names)) {
            (Some(old), Some(new)) => match differ(old, new) {
                None => continue,
                Some(aspects) if aspects == "type" => format!("T\t{shown}"),
                Some(aspects) => format!("M\t{shown}\t{aspects}"),
            },
            (None, _) => format!("A\t{shown}"),
            (_, None) => format!("D\t{shown}"),
        };
        lines.insert(names.clone(), line);
    }
    lines.into_values().map(|line| line + "\n").collect()
}

fn differ(old: &Path, new: &Path) -> Option<String> {
    let [a, b] = [old, new].map(|path| fs::symlink_metadata(path).unwrap());
    if a.file_type() != b.file_type() {
        return Some("type".into());
    }
    let special = a.file_type().is_char_device() || a.file_type().is_block_device();
    let aspects = [
        ("contents", a.is_file() && fs::read(old).unwrap() != fs::read(new).unwrap()),
        ("size", a.is_file() && a.len() != b.len()),
        ("target", a.is_symlink() && fs::read_link(old).unwrap() != fs::read_link(new).unwrap()),
        ("device", special && a.rdev() != b.rdev()),
        ("mode", a.mode() != b.mode()),
        ("owner", (a.uid(), a.gid()) != (b.uid(), b.gid())),
        ("times", (a.mtime(), a.mtime_nsec()) != (b.mtime(), b.mtime_nsec())),
        ("xattrs", xattrs(old) != xattrs(new)),
    ];
    let aspects: Vec<_> = aspects.into_iter().filter(|(_, so)| *so).map(|(name, _)| name).collect();
    (!aspects.is_empty()).then(|| aspects.join(","))
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut list).unwrap();
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            value.truncate(len);
            (name.to_vec(), value)
        })
        .collect()
}

/// An image of random trees, and of one large file.
pub fn planted(rng: &mut Rng, trees: u64) -> Image {
    let image = Image::make(64, &["-t", "ext4", "-N", "8192", "-L", "r"]);
    let mounted = image.mount("rw");
    for number in 0..trees {
        plant(&mounted.path().join(format!("{number:04}")), rng);
    }
    fs::write(mounted.path().join("large"), rng.bytes(8 << 20)).unwrap();
    drop(mounted);
    image
}

/// Two images, the second a changed copy of the first.
fn pair(seed: u64, trees: u64) -> (Image, PathBuf) {
    let mut rng = Rng(seed);
    let image = planted(&mut rng, trees);
    let after = image.copy("after");
    {
        let mounted = Mounted::new(&after, "rw");
        for number in 0..trees {
            change(&mounted.path().join(format!("{number:04}")), &mut rng);
        }
    }
    (image, after)
}

fn diff(before: &OsStr, after: &OsStr) -> String {
    stdout(strata().arg("diff").args([before, after]))
}

/// What `diff -r` finds: files that differ in contents, and what is on one side only.
pub fn diff_r(before: &Path, after: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut diff = tool("diff", "diffutils");
    let output = diff.args(["-rq", "--no-dereference"]).args([before, after]).output().unwrap();
    let (mut differ, mut single) = (BTreeSet::new(), BTreeSet::new());
    let below = |path: &str| {
        let roots = [before, after].map(|root| root.to_str().unwrap().to_owned());
        let inner = roots.iter().find_map(|root| path.strip_prefix(root.as_str()));
        inner.unwrap_or_else(|| panic!("{path}")).to_owned()
    };
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        if let Some(only) = line.strip_prefix("Only in ") {
            let (folder, name) = only.split_once(": ").unwrap();
            single.insert(format!("{}/{name}", below(folder)));
        } else if let Some(files) = line.strip_prefix("Files ") {
            differ.insert(below(files.split_once(" and ").unwrap().0));
        }
    }
    (differ, single)
}

/// The paths of what `strata diff` printed whose letter and aspects are wanted.
pub fn told_of(found: &str, wanted: impl Fn(&str, &str) -> bool) -> BTreeSet<String> {
    let fields = found.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    fields
        .filter(|fields| wanted(fields[0], fields.get(2).copied().unwrap_or_default()))
        .map(|fields| fields[1].to_owned())
        .collect()
}

#[test]
fn random_images_of_changed_trees() {
    let first = number("STRATA_RANDOM_SEED", 1);
    let trees = number("STRATA_RANDOM_TREES", 300);
    for round in 0..trees.div_ceil(TREES) {
        let seed = first + round;
        eprintln!("STRATA_RANDOM_SEED={seed} STRATA_RANDOM_TREES={TREES} repeats it");
        let (image, after) = pair(seed, TREES);
        let found = diff(image.path.as_os_str(), after.as_os_str());
        let (old, new) = (image.mount("ro"), Mounted::new(&after, "ro"));
        let wanted = expected(old.path(), new.path());
        assert!(wanted.lines().count() > 50, "nothing much changed");
        for (found, wanted) in found.lines().zip(wanted.lines()) {
            assert_eq!(found, wanted);
        }
        assert_eq!(found, wanted);
        let (differ, single) = diff_r(old.path(), new.path());
        let modified = told_of(&found, |letter, what| letter == "M" && what.contains("contents"));
        assert_eq!(modified, differ);
        let came_or_went = told_of(&found, |letter, _| letter == "A" || letter == "D");
        assert!(single.is_subset(&came_or_went), "{single:?}");
        // The others are in a folder that came or went.
        for path in &came_or_went {
            let within = |folder: &String| path.starts_with(&format!("{folder}/"));
            let replaced = told_of(&found, |letter, _| letter == "T");
            assert!(single.contains(path) || single.iter().chain(&replaced).any(within), "{path}");
        }
    }
}

#[test]
fn what_a_chain_and_its_snapshots_share_is_not_read() {
    let (image, after) = pair(77, 40);
    let wanted = {
        let (old, new) = (image.mount("ro"), Mounted::new(&after, "ro"));
        expected(old.path(), new.path())
    };
    let dir = image.dir.path();
    // An overlay of what differs, and a disk with a snapshot of what it was.
    let over = dir.join("over.qcow2");
    let args = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
    qemu_img(args.into_iter().chain([image.path.as_os_str(), over.as_os_str()]));
    let disk = dir.join("disk.qcow2");
    let args = ["convert", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
    qemu_img(args.into_iter().chain([image.path.as_os_str(), disk.as_os_str()]));
    qemu_img(["snapshot", "-c", "then"].map(OsStr::new).into_iter().chain([disk.as_os_str()]));
    // Only what differs is written: what is equal stays shared with the snapshot.
    let (old, new) = (fs::read(&image.path).unwrap(), fs::read(&after).unwrap());
    let mut writes = Vec::new();
    for (number, _) in
        old.chunks(4096).zip(new.chunks(4096)).enumerate().filter(|(_, (old, new))| old != new)
    {
        let piece = dir.join(format!("piece-{number}"));
        fs::write(&piece, &new[number * 4096..][..4096]).unwrap();
        writes.push("-c".to_owned());
        writes.push(format!("write -s {} {} 4096", piece.display(), number * 4096));
    }
    for image in [&over, &disk] {
        run(tool("qemu-io", "qemu-utils").args(&writes).arg(image));
    }
    let mut then = disk.clone().into_os_string();
    then.push("::then");
    assert_eq!(diff(image.path.as_os_str(), over.as_os_str()), wanted);
    assert_eq!(diff(&then, disk.as_os_str()), wanted);
    assert_eq!(diff(&then, image.path.as_os_str()), "", "other files, the same bytes");
    let ranges = |before: &OsStr, after: &OsStr| -> Vec<(u64, u64)> {
        let told = stdout(strata().args(["diff", "--blocks"]).args([before, after]));
        let number = |field: &str| field.parse().unwrap();
        let fields = told.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        fields.map(|fields| (number(fields[0]), number(fields[1]))).collect()
    };
    for told in [ranges(image.path.as_os_str(), over.as_os_str()), ranges(&then, disk.as_os_str())]
    {
        let mut outside = old.clone();
        let mut sum = 0;
        for (offset, len) in told {
            let range = offset as usize..(offset + len) as usize;
            outside[range.clone()].copy_from_slice(&new[range]);
            sum += len;
        }
        assert!(outside == new, "nothing differs outside of the ranges");
        assert!(sum < 8 << 20, "{sum} bytes of 64 MiB");
    }
    assert_eq!(ranges(&then, &then), []);

    // Of the 8 MiB of the large file and all else that is the same, next to nothing is read.
    let opener = Arc::new(Opener::new(Policy::default(), Cache::new(64 << 20)));
    let open = |reference: &OsStr| {
        let shown = view(&opener, &Reference::from(reference), View::Files, None).unwrap();
        shown.tree.files()
    };
    for (before, after) in [(image.path.as_os_str(), over.as_os_str()), (&then, disk.as_os_str())] {
        let (before, after) = (open(before), open(after));
        let progress = Progress::default();
        let sides = (
            Side { tree: &*before, node: Some(before.root()) },
            Side { tree: &*after, node: Some(after.root()) },
        );
        let mut changes = 0;
        let mut count = |_: &_| {
            changes += 1;
            Ok(())
        };
        let mut failed = |path: &[u8], error| panic!("{}: {error}", path.escape_ascii());
        compare(sides, b"/", Aspects::default(), &progress, &mut count, &mut failed).unwrap();
        assert_eq!(changes, wanted.lines().count());
        let bytes = progress.bytes.into_inner();
        assert!(bytes < 1 << 20, "{bytes} bytes were read");
    }
}

#[test]
fn paths_aspects_statuses_and_json() {
    let (image, after) = pair(3, 2);
    {
        let mounted = Mounted::new(&after, "rw");
        for folder in ["etc", "etc/sub"] {
            fs::create_dir(mounted.path().join(folder)).unwrap();
        }
        fs::write(mounted.path().join("etc/sub/x\u{1b}"), "new").unwrap();
        set_time(&mounted.path().join("large"), 5, 0);
    }
    let diff = |args: &[&str]| {
        let mut command = strata();
        command.arg("diff").args([&image.path, &after]).args(args);
        command.output().unwrap()
    };
    let told = |args: &[&str]| String::from_utf8(diff(args).stdout).unwrap();
    assert_eq!(told(&["/etc"]), "A\t/etc\nA\t/etc/sub\nA\t/etc/sub/x\u{1b}\n");
    assert_eq!(
        told(&["/large", "etc/sub/../sub"]),
        "M\t/large\ttimes\nA\t/etc/sub\nA\t/etc/sub/x\u{1b}\n"
    );
    assert_eq!(told(&["/large", "--ignore", "times,mode"]), "");
    assert_eq!(diff(&["/large"]).status.code(), Some(0));
    assert_eq!(diff(&["/large", "--exit-code"]).status.code(), Some(1));
    assert_eq!(diff(&["/large", "--exit-code", "--ignore", "times"]).status.code(), Some(0));
    let nowhere = diff(&["/nowhere", "--exit-code"]);
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("/nowhere: no such file"));
    assert_eq!(diff(&["/nowhere"]).status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(&told(&["/large", "--json"])).unwrap();
    assert_eq!(json["change"], "modified");
    assert_eq!(json["aspects"], serde_json::json!(["times"]));
    assert_eq!(json["after"]["modified"], "1970-01-01T00:00:05Z");
    assert_eq!(json["before"]["size"], 8 << 20);
    let alone = strata().arg("diff").arg(&after).output().unwrap();
    assert_eq!(alone.status.code(), Some(2));
}

#[test]
fn files_are_not_missing_where_their_filesystem_cannot_be_read() {
    let image = Image::make(16, &["-t", "ext4", "-O", "metadata_csum"]);
    let file = File::options().write(true).open(&image.path).unwrap();
    // The number of blocks, which the checksum covers.
    file.write_all_at(&[1, 2], 1024 + 4).unwrap();
    let to = image.dir.path().join("to");
    for args in [vec!["ls"], vec!["cat"], vec!["restore", "--to", to.to_str().unwrap()]] {
        let output = strata().args(&args).arg(&image.path).arg("/etc/fstab").output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        let error = told.lines().find(|line| !line.contains("warning")).unwrap();
        assert!(error.contains("/etc: no such file or folder"), "{told}");
        assert!(error.contains("superblock: checksum"), "{told}");
        assert!(told.contains("\nhint: "), "{told}");
        assert_eq!(output.status.code(), Some(1));
    }
}
