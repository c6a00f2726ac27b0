//! `strata convert` beside qemu-img.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{fixture, noise, qemu_img, require_root, run, stdout, strata, tool};

const MIB: u64 = 1 << 20;

/// A disk of 40 MiB and one sector: noise, text, holes, and data in a hole's middle.
fn disk(path: &Path) -> File {
    let file = File::create_new(path).unwrap();
    file.set_len(40 * MIB + 512).unwrap();
    file.write_all_at(&noise(1, 3 << 20), MIB).unwrap();
    file.write_all_at(&b"stratafs ".repeat(200_000), 10 * MIB + 512).unwrap();
    file.write_all_at(&noise(2, 512), 20 * MIB + 1024).unwrap();
    file.write_all_at(b"end", 40 * MIB + 509).unwrap();
    file
}

fn convert(args: &[&OsStr]) -> Command {
    let mut convert = strata();
    convert.arg("convert").args(args);
    convert
}

fn compare(a: &Path, b: &Path) {
    qemu_img([OsStr::new("compare"), a.as_ref(), b.as_ref()]);
}

fn fails(command: &mut Command) -> (i32, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

/// The names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Bytes of data by qemu-img's map.
fn mapped(image: &Path) -> u64 {
    let told = stdout(tool("qemu-img", "qemu-utils").args(["map", "--output=json"]).arg(image));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let data = told.as_array().unwrap().iter().filter(|run| run["data"] == true);
    data.map(|run| run["length"].as_u64().unwrap()).sum()
}

const FORMS: [(&str, &[&str]); 4] = [
    ("out.raw", &[]),
    ("out.qcow2", &[]),
    ("zlib.qcow2", &["--compress", "zlib"]),
    ("zstd.qcow2", &["--compress", "zstd"]),
];

/// Converts `reference` to every form, and compares with `original`.
fn every_form(reference: &OsStr, original: &Path, dir: &Path) -> Vec<PathBuf> {
    let form = |(name, options): (&str, &[&str])| {
        let out = dir.join(name);
        run(convert(&[reference, out.as_ref()]).args(options).args(["--overwrite", "--quiet"]));
        compare(original, &out);
        if name.ends_with("qcow2") {
            qemu_img([OsStr::new("check"), "-q".as_ref(), out.as_ref()]);
        }
        out
    };
    FORMS.map(form).into()
}

#[test]
fn every_form_is_the_disk_and_keeps_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("disk.raw");
    disk(&raw);
    let outs = every_form(raw.as_ref(), &raw, dir.path());
    // Whole pages and clusters of what holds data, and no more.
    let [out_raw, plain, zlib, zstd] = outs.as_slice() else { panic!("{outs:?}") };
    let bytes = fs::read(&raw).unwrap();
    let holding = |len: usize| {
        let full = bytes.chunks(len).filter(|piece| piece.iter().any(|&byte| byte != 0)).count();
        (full * len) as u64
    };
    assert_eq!(fs::read(out_raw).unwrap(), bytes);
    let room = fs::metadata(out_raw).unwrap().blocks() * 512;
    assert!(room <= holding(4096) + 64 * 1024, "{room}");
    assert!(mapped(plain) <= holding(64 * 1024), "{}", mapped(plain));
    let sizes = [plain, zlib, zstd].map(|image| fs::metadata(image).unwrap().len());
    assert!(sizes[1] + MIB < sizes[0] && sizes[2] + MIB < sizes[0], "{sizes:?}");
    // The other way round, and through a pipe.
    for image in [plain, zlib, zstd] {
        every_form(image.as_ref(), &raw, tempfile::tempdir().unwrap().path());
    }
    let Output { stdout, status, .. } = convert(&[zstd.as_ref(), "-".as_ref()]).output().unwrap();
    assert!(status.success() && stdout == bytes);
}

#[test]
fn chains_snapshots_and_deltas_are_flattened() {
    let dir = tempfile::tempdir().unwrap();
    let top = fixture("debian-chain/layer-32.qcow2");
    for (name, options) in [FORMS[0], FORMS[3]] {
        let out = dir.path().join(name);
        run(convert(&[top.as_ref(), out.as_ref()]).args(options).arg("-q"));
        compare(&top, &out);
    }
    qemu_img([OsStr::new("check"), "-q".as_ref(), dir.path().join("zstd.qcow2").as_ref()]);

    let path = |name: &str| dir.path().join(name);
    let (raw, store, delta) = (path("disk.raw"), path("st"), path("delta.qcow2"));
    let file = disk(&raw);
    run(strata().args(["store", "init"]).arg(&store));
    run(strata().args(["snapshot", "create"]).arg(&store).arg("web").arg(&raw));
    let before = path("before.raw");
    fs::copy(&raw, &before).unwrap();
    file.write_all_at(&noise(3, 70_000), 30 * MIB).unwrap();
    run(strata().args(["snapshot", "create"]).arg(&store).arg("web").arg(&raw));
    let reference = format!("{}::web", store.display());
    every_form(OsStr::new(&reference), &raw, dir.path());

    // A delta above the disk of before.
    qemu_img(
        ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "before.raw"]
            .map(OsStr::new)
            .into_iter()
            .chain([delta.as_os_str()]),
    );
    let size = "write -P 7 33M 100k";
    support::qemu_io([OsStr::new("-c"), size.as_ref(), delta.as_ref()]);
    let out = path("below.raw");
    run(convert(&[before.as_ref(), out.as_ref()]).arg("--cow").arg(&delta));
    compare(&delta, &out);
    let (code, told) = fails(convert(&[raw.as_ref(), path("x").as_ref()]).arg("--cow").arg(&delta));
    assert_eq!(code, 2, "{told}");
    assert!(told.contains("is a delta above"), "{told}");
}

#[test]
fn nothing_is_lost_by_what_is_asked_amiss() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (raw, store, there) = (path("disk.raw"), path("st"), path("there.raw"));
    disk(&raw);
    let bytes = fs::read(&raw).unwrap();
    fs::write(&there, "precious").unwrap();
    run(strata().args(["store", "init"]).arg(&store));
    run(strata().args(["snapshot", "create"]).arg(&store).arg("web").arg(&raw));
    let reference = format!("{}::web", store.display());
    let over = path("over.qcow2");
    qemu_img([
        OsStr::new("create"),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-F".as_ref(),
        "raw".as_ref(),
        "-b".as_ref(),
        "disk.raw".as_ref(),
        over.as_ref(),
    ]);
    let told = |args: &[&OsStr], options: &[&str], code, part: &str| {
        let (exit, told) = fails(convert(args).args(options));
        assert!(exit == code && told.contains(part), "{args:?} {options:?}: {exit} {told}");
        assert!(!names(dir.path()).iter().any(|name| name.starts_with('.')));
    };
    told(&[raw.as_ref(), there.as_ref()], &[], 1, "is there already");
    assert_eq!(fs::read(&there).unwrap(), b"precious");
    told(&[raw.as_ref(), raw.as_ref()], &["--overwrite"], 1, "part of the disk");
    told(&[over.as_ref(), raw.as_ref()], &["--overwrite"], 1, "part of the disk");
    assert!(fs::read(&raw).unwrap() == bytes);
    let inside = store.join("packs/x.raw");
    told(&[reference.as_ref(), inside.as_ref()], &[], 1, "lies in the store");
    told(&[raw.as_ref(), "-".as_ref()], &["-O", "qcow2"], 2, "standard output");
    told(&[raw.as_ref(), path("x.raw").as_ref()], &["-O", "raw", "--compress", "zlib"], 2, "raw");
    let nowhere = path("no/where.raw");
    told(&[raw.as_ref(), nowhere.as_ref()], &[], 1, "No such file");
    run(convert(&[raw.as_ref(), there.as_ref()]).arg("--force"));
    assert!(fs::read(&there).unwrap() == bytes);
}

#[test]
fn where_there_is_no_room_nothing_is_left() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (raw, small) = (dir.path().join("disk.raw"), dir.path().join("small"));
    disk(&raw);
    fs::create_dir(&small).unwrap();
    run(tool("mount", "mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&small));
    let told = FORMS.map(|(name, options)| {
        fails(convert(&[raw.as_ref(), small.join(name).as_ref()]).args(options))
    });
    let left = names(&small);
    run(tool("umount", "mount").arg(&small));
    for (code, told) in told {
        assert!(code == 1 && told.contains("No space left"), "{code} {told}");
    }
    assert_eq!(left, [""; 0]);
}

/// A program that reads nothing more lets it end; a signal leaves nothing.
#[test]
fn what_is_interrupted_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("large.raw");
    // Long enough to be caught, and no room: read as zeros that are looked at one by one.
    let file = File::create(&source).unwrap();
    file.set_len(64 << 30).unwrap();
    (0..256).for_each(|nth| file.write_all_at(&noise(nth, 1 << 16), nth << 28).unwrap());
    let mut reading =
        convert(&[source.as_ref(), "-".as_ref()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 4096];
    reading.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert!(reading.wait().unwrap().success());

    let out = dir.path().join("out.raw");
    let mut writing =
        convert(&[source.as_ref(), "-".as_ref()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = writing.stdout.take().unwrap();
    pipe.read_exact(&mut first).unwrap();
    run(Command::new("kill").args(["-INT", &writing.id().to_string()]));
    let _ = pipe.read_to_end(&mut Vec::new());
    let status = writing.wait().unwrap();
    assert!(status.code() == Some(1) && status.signal().is_none(), "{status}");

    // One that takes a while, ended once it has begun.
    let dense = dir.path().join("dense.raw");
    fs::write(&dense, noise(1, 128 << 20)).unwrap();
    let slow = ["--compress", "zlib", "-q"];
    let mut writing = convert(&[dense.as_ref(), out.as_ref()]).args(slow).spawn().unwrap();
    let partial = dir.path().join(".out.raw.partial/out.raw");
    while !fs::metadata(&partial).is_ok_and(|partial| partial.len() > 0) {
        assert!(writing.try_wait().unwrap().is_none(), "it ended before");
    }
    run(Command::new("kill").args(["-INT", &writing.id().to_string()]));
    let status = writing.wait().unwrap();
    assert!(status.code() == Some(1) && status.signal().is_none(), "{status}");
    fs::remove_file(&dense).unwrap();

    let fifo = dir.path().join("fifo");
    run(tool("mkfifo", "coreutils").arg(&fifo));
    let (code, told) = fails(convert(&[source.as_ref(), fifo.as_ref()]).arg("--overwrite"));
    assert!(code == 2 && told.contains("neither a regular file"), "{told}");
    assert!(!out.exists());
    assert_eq!(names(dir.path()), ["fifo", "large.raw"]);
}

#[test]
fn a_device_is_written_in_place_if_asked() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (raw, behind) = (path("disk.raw"), path("behind"));
    disk(&raw);
    fs::write(&behind, noise(9, 41 << 20)).unwrap();
    let device = stdout(tool("losetup", "mount").args(["-f", "--show"]).arg(&behind));
    let device = Device(device.trim().into());
    let (code, told) = fails(&mut convert(&[raw.as_ref(), device.0.as_ref()]));
    assert!(code == 1 && told.contains("--overwrite"), "{told}");
    run(convert(&[raw.as_ref(), device.0.as_ref()]).arg("--overwrite"));
    drop(device);
    let (wanted, found) = (fs::read(&raw).unwrap(), fs::read(&behind).unwrap());
    assert!(found[..wanted.len()] == wanted);
    assert!(found[wanted.len()..] == noise(9, 41 << 20)[wanted.len()..]);
}

/// A loop device, given back in the end.
struct Device(PathBuf);

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
