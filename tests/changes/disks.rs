//! `strata commit` of disks beside qemu-img.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::ext::Rng;
use crate::support::{fixture, qemu_img, run, stdout, strata, tool};

const MIB: u64 = 1 << 20;

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}

/// Writes, zeros and holes at random, in pieces of 512 bytes to 300 KiB.
fn scribble(image: &Path, size: u64, rng: &mut Rng, noise: &Path) {
    let mut io = tool("qemu-io", "qemu-utils");
    for _ in 0..40 {
        let len = (1 + rng.below(600)) * 512;
        let at = rng.below((size - len) / 512) * 512;
        io.arg("-c").arg(match rng.below(5) {
            0 => format!("write -z {at} {len}"),
            1 => format!("write -z -u {at} {len}"),
            2 => format!("write -P 0 {at} {len}"),
            _ => format!("write -s {} {at} {len}", noise.display()),
        });
    }
    run(io.arg(image));
}

/// A chain of four: a raw base, then one smaller than it, then two of other cluster sizes.
fn chain(dir: &Path, seed: u64) -> [PathBuf; 4] {
    let mut rng = Rng(seed);
    let noise = path(dir, "noise");
    fs::write(&noise, rng.bytes(300_000)).unwrap();
    let images = ["base.raw", "one.qcow2", "two.qcow2", "three.qcow2"].map(|name| path(dir, name));
    let mut bytes = rng.bytes(4 << 20);
    bytes.extend(vec![0; 4 << 20]);
    bytes.extend(rng.bytes(1 << 20));
    fs::write(&images[0], bytes).unwrap();
    let below = ["raw", "qcow2", "qcow2"].into_iter().zip(["base.raw", "one.qcow2", "two.qcow2"]);
    let sizes = [8 * MIB + 512 * 3, 9 * MIB, 10 * MIB];
    let options = ["cluster_size=4k", "extended_l2=on,cluster_size=64k", "cluster_size=64k"];
    for ((image, (format, name)), (size, options)) in
        images[1..].iter().zip(below).zip(sizes.into_iter().zip(options))
    {
        let mut create = tool("qemu-img", "qemu-utils");
        create.current_dir(dir).args(["create", "-q", "-f", "qcow2", "-F", format, "-b", name]);
        run(create.args(["-o", options]).arg(image).arg(size.to_string()));
        scribble(image, size, &mut rng, &noise);
    }
    images
}

#[track_caller]
fn sound_and_the_same(made: &Path, as_was: &Path) {
    qemu_img(["check", "-q"].map(OsStr::new).into_iter().chain([made.as_os_str()]));
    let images = [made.as_os_str(), as_was.as_os_str()];
    qemu_img(["compare", "-q"].map(OsStr::new).into_iter().chain(images));
    let [one, other] = [made, as_was].map(|image| info(image)["virtual-size"].as_u64().unwrap());
    assert_eq!(one, other);
}

/// Bytes that the top image itself holds, as data and as zeros.
fn held(image: &Path) -> (u64, u64) {
    let map = stdout(tool("qemu-img", "qemu-utils").args(["map", "--output=json"]).arg(image));
    let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
    let sum = |data: bool| {
        let own = map.iter().filter(|run| run["depth"] == 0 && run["data"] == data);
        own.map(|run| run["length"].as_u64().unwrap()).sum()
    };
    (sum(true), sum(false))
}

fn info(image: &Path) -> serde_json::Value {
    let mut command = tool("qemu-img", "qemu-utils");
    let told = stdout(command.args(["info", "-U", "--output=json"]).arg(image));
    serde_json::from_str(&told).unwrap()
}

fn backing(image: &Path) -> String {
    info(image)["backing-filename"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_chain_becomes_an_image_or_a_layer() {
    for seed in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let images = chain(dir, seed);
        let commit = |args: &[&OsStr], name: &str| -> PathBuf {
            let to = path(dir, name);
            run(strata().arg("commit").arg(&images[3]).args(args).arg("--to").arg(&to));
            to
        };
        let flat = commit(&[], "flat.qcow2");
        sound_and_the_same(&flat, &images[3]);
        assert_eq!(backing(&flat), "");
        // Zeros are not stored: no more data than there is in pieces of 4 KiB that hold any.
        let raw = path(dir, "raw");
        qemu_img(
            ["convert", "-O", "raw"]
                .map(OsStr::new)
                .into_iter()
                .chain([images[3].as_os_str(), raw.as_os_str()]),
        );
        let bytes = fs::read(&raw).unwrap();
        let full = bytes.chunks(4096).filter(|piece| piece.iter().any(|&byte| byte != 0)).count();
        assert!(held(&flat).0 <= full as u64 * 4096, "{:?} of {full} pieces", held(&flat));

        let layer = commit(&["--layer".as_ref()], "layer.qcow2");
        sound_and_the_same(&layer, &images[3]);
        assert_eq!(backing(&layer), "two.qcow2");
        let (data, zeros) = held(&layer);
        let (had_data, had_zeros) = held(&images[3]);
        assert!(data <= had_data, "{data} of {had_data}");
        assert!(data + zeros <= had_data + had_zeros);

        let merged = commit(&["--above".as_ref(), images[0].as_os_str()], "merged.qcow2");
        sound_and_the_same(&merged, &images[3]);
        assert_eq!(backing(&merged), "base.raw");
        let rest: u64 = images[1..].iter().map(|image| held(image).0).sum();
        assert!(held(&merged).0 <= rest, "{:?} of {rest}", held(&merged));
        // In another folder it names the image below by its whole path.
        fs::create_dir(path(dir, "elsewhere")).unwrap();
        let merged = commit(&["--above".as_ref(), images[1].as_os_str()], "elsewhere/m.qcow2");
        sound_and_the_same(&merged, &images[3]);
        assert_eq!(Path::new(&backing(&merged)), images[1].canonicalize().unwrap());
        let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.as_encoded_bytes().starts_with(b".")), "{left:?}");
    }
}

#[test]
fn a_chain_of_33_becomes_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let top = fixture("debian-chain/layer-32.qcow2");
    let to = path(dir.path(), "flat.qcow2");
    run(strata().arg("commit").arg(&top).arg("--to").arg(&to));
    sound_and_the_same(&to, &top);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let images = chain(dir.path(), 9);
    let to = path(dir.path(), "there");
    fs::write(&to, "precious").unwrap();
    let commit = |args: &[&str]| {
        strata().arg("commit").arg(&images[3]).args(args).arg("--to").arg(&to).output().unwrap()
    };
    let output = commit(&[]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("is there already") && told.contains("--overwrite"), "{told}");
    assert_eq!(fs::read(&to).unwrap(), b"precious");
    assert_eq!(commit(&["--overwrite"]).status.code(), Some(0));
    sound_and_the_same(&to, &images[3]);
    for args in [["--above", "/etc/passwd"], ["--above", "/nowhere"]] {
        assert_ne!(commit(&args).status.code(), Some(0));
    }
    // A disk cannot be its own layer.
    let mut command = strata();
    command.arg("commit").arg(&images[0]).args(["--layer", "--overwrite", "--to"]).arg(&to);
    assert_eq!(command.output().unwrap().status.code(), Some(2));
}

#[test]
fn a_commit_that_is_killed_leaves_no_file_of_that_name() {
    let dir = tempfile::tempdir().unwrap();
    let top = fixture("debian.qcow2");
    let to = path(dir.path(), "new.qcow2");
    let growing = path(dir.path(), ".new.qcow2.partial/new.qcow2");
    let mut child = strata().arg("commit").arg(&top).arg("--to").arg(&to).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while fs::metadata(&growing).map_or(0, |metadata| metadata.len()) < 4 * MIB {
        assert!(Instant::now() < deadline, "it does not grow");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Meanwhile nobody else may make it.
    let other = strata().arg("commit").arg(&top).arg("--to").arg(&to).output().unwrap();
    let told = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(told.contains("by another process"), "{told}");
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert!(!to.exists() && growing.exists());
    run(strata().arg("commit").arg(&top).arg("--to").arg(&to));
    sound_and_the_same(&to, &top);
    assert!(!growing.parent().unwrap().exists());
}
