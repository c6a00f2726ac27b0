//! `strata commit --to oci:DIR:NAME`: skopeo copies what it makes, umoci unpacks it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "ext/rng.rs"]
mod rng;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rng::Rng;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use stratafs::oci::{Algorithm, Digest};
use support::{require_root, run, stdout, strata, tool};

/// A folder with a layout `L`, whose image `v1` has two layers, and an upper over it.
struct Made {
    dir: tempfile::TempDir,
    /// What is to be seen of image and upper together.
    seen: String,
}

fn ours(dir: &Path) -> Command {
    let mut strata = strata();
    strata.current_dir(dir).env("STRATA_CACHE_DIR", dir.join("cache"));
    strata.env_remove("SOURCE_DATE_EPOCH");
    strata
}

fn umoci(dir: &Path, args: &[&str]) {
    run(tool("umoci", "umoci").current_dir(dir).args(args));
}

fn copy(dir: &Path, from: &str, to: &str) {
    run(tool("skopeo", "skopeo").current_dir(dir).args(["copy", "-q", from, to]));
}

/// Everything a listing tells of a tree; of folders, not the time.
fn listing(root: &Path) -> String {
    let script = r#"
        cd "$0"
        find . -mindepth 1 \( -type d -printf '%P d %#m %U %G\n' \) \
            -o -printf '%P %y %#m %U %G %n %s %l %T@\n' | sort
        find . -type f -print0 | sort -z | xargs -0 -r sha256sum"#;
    stdout(Command::new("sh").args(["-c", script]).arg(root))
}

fn layout(dir: &Path) {
    require_root();
    umoci(dir, &["init", "--layout", "L"]);
    umoci(dir, &["new", "--image", "L:v1"]);
    for layer in 0..2 {
        umoci(dir, &["unpack", "--image", "L:v1", "B"]);
        let root = dir.join("B/rootfs");
        for folder in ["etc/deep", "opaque/inner", "gone/sub", "renamed/kept/below"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for name in ["etc/passwd", "etc/mode", "opaque/hidden", "gone/sub/x", "renamed/kept/y"] {
            fs::write(root.join(format!("{name}{layer}")), name.repeat(5000)).unwrap();
        }
        let (first, second) = (format!("etc/one{layer}"), format!("etc/deep/two{layer}"));
        fs::write(root.join(&first), "one").unwrap();
        fs::hard_link(root.join(&first), root.join(&second)).unwrap();
        umoci(dir, &["repack", "--image", "L:v1", "B"]);
        fs::remove_dir_all(dir.join("B")).unwrap();
    }
}

/// Whiteouts, an opaque folder, one that is renamed, files whose contents stay below, links.
fn change(root: &Path) {
    fs::write(root.join("etc/passwd0"), "new contents").unwrap();
    fs::set_permissions(root.join("etc/mode1"), fs::Permissions::from_mode(0o4750)).unwrap();
    std::os::unix::fs::chown(root.join("etc/mode0"), Some(3_000_000), Some(5)).unwrap();
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "n").unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("etc/one1")).unwrap();
    fs::rename(root.join("renamed"), root.join("etc/moved")).unwrap();
    fs::remove_file(root.join("etc/moved/kept/y0")).unwrap();
    fs::write(root.join("etc/moved/kept/z"), "z").unwrap();
    symlink("t".repeat(200), root.join("to-far")).unwrap();
    fs::write(root.join("caf\u{e9}"), vec![7; 300_000]).unwrap();
    fs::hard_link(root.join("caf\u{e9}"), root.join("second")).unwrap();
}

fn made() -> Made {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path());
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let mount = ["mount", "--allow-other", "--suid", "--dev", "--cow", "upper/", "oci:L:v1", "mnt"];
    run(ours(dir.path()).args(mount));
    change(&at);
    let seen = listing(&at);
    run(ours(dir.path()).args(["unmount", "mnt"]));
    Made { dir, seen }
}

fn commit(dir: &Path, to: &str, args: &[&str]) -> Value {
    let mut commit = ours(dir);
    commit.args(["commit", "-q", "--json", "--to", to]).args(args);
    serde_json::from_str(&stdout(&mut commit)).unwrap()
}

fn fails(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = ours(dir).arg("commit").args(args).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn blob(layout: &Path, digest: &Value) -> PathBuf {
    layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"))
}

/// The entry of the index, the manifest and the config of an image in a layout; every blob it names
/// is there, and is what its digest says.
#[track_caller]
fn image(layout: &Path, name: &str) -> (Value, Value, Value) {
    let index = json(&layout.join("index.json"));
    let named =
        |entry: &&Value| entry["annotations"]["org.opencontainers.image.ref.name"] == json!(name);
    let entries: Vec<Value> =
        index["manifests"].as_array().unwrap().iter().filter(named).cloned().collect();
    assert_eq!(entries.len(), 1, "{index}");
    let manifest = json(&blob(layout, &entries[0]["digest"]));
    let layers = manifest["layers"].as_array().unwrap();
    for part in layers.iter().chain([&entries[0], &manifest["config"]]) {
        let bytes = fs::read(blob(layout, &part["digest"])).unwrap();
        assert_eq!(part["digest"], Digest::of(Algorithm::Sha256, &bytes).to_string());
        assert_eq!(part["size"], bytes.len());
    }
    let config = json(&blob(layout, &manifest["config"]["digest"]));
    (entries[0].clone(), manifest, config)
}

/// What umoci unpacks.
fn unpacked(dir: &Path, image: &str) -> String {
    umoci(dir, &["unpack", "--image", image, "U"]);
    let listing = listing(&dir.join("U/rootfs"));
    fs::remove_dir_all(dir.join("U")).unwrap();
    listing
}

#[track_caller]
fn assert_same(found: &str, wanted: &str) {
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found, wanted);
}

#[test]
fn what_was_seen_is_what_others_unpack() {
    let Made { dir, seen } = made();
    let dir = dir.path();
    copy(dir, "oci:L:v1", "oci-archive:o.tar:v1");
    copy(dir, "oci:L:v1", "docker-archive:d.tar:app:v1");
    let (_, below, old) = image(&dir.join("L"), "v1");
    for (number, (from, to, compression)) in [
        ("oci:L:v1", "L", "gzip"),
        ("oci:L:v1", "L", "zstd"),
        ("oci:L:v1", "N", "gzip"),
        ("oci-archive:o.tar", "A", "gzip"),
        ("docker-archive:d.tar", "D", "zstd"),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, target) = (format!("t{number}"), dir.join(to));
        let to = format!("oci:{to}:{name}");
        let args = ["--compression", compression, "--cow", "upper/", from];
        let told = commit(dir, &to, &args);
        let (entry, manifest, config) = image(&target, &name);
        assert_eq!((&told["manifest"], &told["layers"]), (&entry["digest"], &json!(3)));
        let (layers, lower) = (manifest["layers"].as_array().unwrap(), &below["layers"]);
        if !from.starts_with("docker") {
            // The very same blobs, by digest, which `image` has looked at.
            assert_eq!(json!(layers[..2]), *lower, "{from}");
        }
        let media_type = format!("application/vnd.oci.image.layer.v1.tar+{compression}");
        assert_eq!(layers[2]["mediaType"], media_type);
        assert_eq!(layers[2]["digest"], told["layer"]["digest"]);
        assert_eq!(config["rootfs"]["diff_ids"][2], told["layer"]["diff_id"]);
        assert_eq!(config["rootfs"]["diff_ids"][1], old["rootfs"]["diff_ids"][1]);
        assert_eq!(
            config["history"].as_array().unwrap().last().unwrap()["created_by"],
            "strata commit"
        );
        assert!(!target.join(".strata-partial").exists());
        // skopeo holds every layer against its diff ID.
        copy(dir, &to, &format!("dir:c{number}"));
        // Neither umoci nor Docker's archives know zstd here.
        let unpackable = match compression {
            "gzip" => to.clone(),
            _ => format!("oci:C{number}:t"),
        };
        if unpackable != to {
            let mut skopeo = tool("skopeo", "skopeo");
            skopeo.current_dir(dir).args(["copy", "-q", "--dest-compress-format", "gzip"]);
            run(skopeo.args([&to, &unpackable]));
        }
        copy(dir, &unpackable, &format!("docker-archive:c{number}.tar:app:v2"));
        assert_same(&unpacked(dir, unpackable.strip_prefix("oci:").unwrap()), &seen);
    }
    let (_, still, _) = image(&dir.join("L"), "v1");
    assert_eq!(still, below);
}

#[test]
fn the_same_changes_make_the_same_image() {
    let Made { dir, .. } = made();
    let dir = dir.path();
    let epoch = ["--source-date-epoch", "1000000000", "--cow", "upper/", "oci:L:v1"];
    for compression in ["gzip", "zstd"] {
        let args = [&["--compression", compression], &epoch[..]].concat();
        let told = ["A", "B"].map(|to| {
            let mut told = commit(dir, &format!("oci:{to}:{compression}"), &args);
            told["reference"].take();
            told
        });
        assert_eq!(told[0], told[1]);
    }
    let mut by_environment = ours(dir);
    by_environment.env("SOURCE_DATE_EPOCH", "1000000000").args(["commit", "--to", "oci:C:gzip"]);
    let line = stdout(by_environment.args(&epoch[2..]));
    let (entry, manifest, config) = image(&dir.join("C"), "gzip");
    assert_eq!(entry, image(&dir.join("A"), "gzip").0);
    assert!(line.ends_with(&format!("manifest {}\n", entry["digest"].as_str().unwrap())), "{line}");
    assert_eq!(config["created"], "2001-09-09T01:46:40Z");
    let layer = blob(&dir.join("C"), &manifest["layers"][2]["digest"]);
    // No name, no time (RFC 1952).
    assert_eq!(fs::read(&layer).unwrap()[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    let times = stdout(tool("tar", "tar").args(["--full-time", "--utc", "-tvzf"]).arg(&layer));
    assert!(times.contains("2001-09-09 01:46:40") && !times.contains(" 2026-"), "{times}");
}

#[test]
fn names_mean_one_image_and_other_things_stay() {
    let Made { dir, seen } = made();
    let dir = dir.path();
    let l = dir.join("L");
    umoci(dir, &["tag", "--image", "L:v1", "other"]);
    fs::write(l.join("notes.txt"), "mine").unwrap();
    let other = image(&l, "other");
    // Without REF, it is the image itself that gets the layer.
    assert_eq!(commit(dir, "oci:L:v1", &["upper/"])["layers"], 3);
    assert_same(&unpacked(dir, "L:v1"), &seen);
    // What the upper says of renamed folders is not true of that image any more.
    let (status, told) = fails(dir, &["--to", "oci:L:v1", "upper/"]);
    assert!(status == Some(1) && told.contains("is it the REF"), "{told}");
    assert_eq!(image(&l, "other"), other);
    assert_eq!(fs::read(l.join("notes.txt")).unwrap(), b"mine");
    // Of several at once, each adds its own.
    fs::create_dir(dir.join("alone")).unwrap();
    fs::write(dir.join("alone/file"), "f").unwrap();
    let spawn = || ours(dir).args(["commit", "-q", "--to", "oci:L:v1", "alone/"]).spawn().unwrap();
    for mut process in [spawn(), spawn(), spawn()] {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(image(&l, "v1").1["layers"].as_array().unwrap().len(), 6);

    fs::create_dir(dir.join("empty")).unwrap();
    commit(dir, "oci:empty:x", &["--cow", "upper/", "oci:L:other"]);
    assert_same(&unpacked(dir, "empty:x"), &seen);
    let before = fs::read_dir(dir).unwrap().count();
    for (code, args, word) in [
        (2, ["--to", "oci:L", "--cow", "upper/", "oci:L:other"], "needs a name"),
        (2, ["--to", "docker://h/x:t", "--cow", "upper/", "oci:L:other"], "skopeo copy"),
        (2, ["--to", "oci:none:t", "-q", "-q", "upper/"], "--cow UPPER/ REF"),
        (1, ["--to", "oci:none:t", "--cow", "upper/", "oci:L:absent"], "no image \"absent\""),
        (1, ["--to", "oci:upper:t", "--cow", "upper/", "oci:L:other"], "no OCI layout"),
        (2, ["--to", "oci:L:t", "--cow", "upper/", "upper"], "no layered image"),
        (2, ["--to", "layer.tar", "--compression", "zstd", "upper/"], "--json and --compression"),
    ] {
        let args: Vec<&str> = match args[2..4] {
            ["-q", "-q"] => vec![args[0], args[1], args[4]],
            _ => args.to_vec(),
        };
        let (status, told) = fails(dir, &args);
        assert!(status == Some(code) && told.contains(word), "{args:?}: {status:?} {told}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), before, "something is left");
    // A blob that is not what it is called.
    let (_, manifest, _) = other;
    let path = blob(&l, &manifest["layers"][0]["digest"]);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let args = ["--to", "oci:none:t", "--cow", "upper/", "oci:L:other"];
    let (status, told) = fails(dir, &args);
    assert!(status == Some(1) && told.contains("corrupt image"), "{told}");
    assert!(!dir.join("none").join("index.json").exists());
}

#[test]
fn only_the_image_for_the_platform_is_committed() {
    let Made { dir, seen } = made();
    let dir = dir.path();
    let l = dir.join("L");
    umoci(dir, &["config", "--image", "L:v1", "--tag", "s", "--architecture", "s390x"]);
    let on = |name: &str, architecture: &str| {
        let (mut entry, ..) = image(&l, name);
        entry.as_object_mut().unwrap().remove("annotations");
        entry["platform"] = json!({ "os": "linux", "architecture": architecture });
        entry
    };
    let index_type = "application/vnd.oci.image.index.v1+json";
    let host = stratafs::oci::Platform::host().architecture;
    let both = json!({ "schemaVersion": 2, "mediaType": index_type,
        "manifests": [on("v1", &host), on("s", "s390x")] });
    let bytes = both.to_string();
    let digest = Digest::of(Algorithm::Sha256, bytes.as_bytes());
    fs::write(l.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
    let mut index = json(&l.join("index.json"));
    index["manifests"].as_array_mut().unwrap().push(json!({
        "mediaType": index_type, "digest": digest.to_string(), "size": bytes.len(),
        "annotations": { "org.opencontainers.image.ref.name": "multi" } }));
    fs::write(l.join("index.json"), index.to_string()).unwrap();
    let args = ["--platform", "linux/s390x", "--cow", "upper/", "oci:L:multi"];
    commit(dir, "oci:N:t", &args);
    let (entry, _, config) = image(&dir.join("N"), "t");
    assert_eq!(entry["mediaType"], "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(config["architecture"], "s390x");
    // Two layers and the new one, a config and a manifest: nothing of the other image.
    assert_eq!(fs::read_dir(dir.join("N/blobs/sha256")).unwrap().count(), 5);
    assert_same(&unpacked(dir, "N:t"), &seen);
}

#[test]
fn what_an_ordinary_user_could_not_give_is_in_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("folder")).unwrap();
    for name in ["tool", "null"] {
        fs::write(upper.join(name), "").unwrap();
    }
    let set = |name: &str, attribute: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(upper.join(name), attribute, value, flags).unwrap();
    };
    set("", "user.overlay.impure", b"y");
    set("folder", "user.containers.override_stat", b"7:8:0711");
    set("tool", "user.containers.override_stat", b"0:5:4755");
    set("tool", "user.overlay.strata.xattr.security.x", b"kept");
    set("null", "user.containers.override_stat", b"0:0:0666:char-1-3");
    run(ours(dir).args(["commit", "--to", "layer.tar", "upper"]));
    let mut list = tool("tar", "tar");
    list.current_dir(dir).args(["--numeric-owner", "-tvf", "layer.tar"]);
    let told = stdout(&mut list);
    let lines: Vec<Vec<&str>> =
        told.lines().map(|line| line.split_whitespace().collect()).collect();
    let has = |mode: &str, owner: &str, name: &str| {
        lines
            .iter()
            .any(|line| line[0].starts_with(mode) && line[1] == owner && line.last() == Some(&name))
    };
    assert!(has("drwx--x--x", "7/8", "folder/"), "{told}");
    assert!(has("-rwsr-xr-x", "0/5", "tool"), "{told}");
    assert!(has("crw-rw-rw-", "0/0", "null"), "{told}");
    let tar = fs::read(dir.join("layer.tar")).unwrap();
    let holds = |text: &str| tar.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(holds("SCHILY.xattr.security.x=kept\n") && !holds("override_stat"));
}

/// Interrupts `commit` once `begun` says that it is at work: it ends with one line and leaves nothing.
#[track_caller]
fn interrupted(dir: &Path, args: &[&str], begun: impl Fn() -> bool) {
    let mut commit = ours(dir);
    commit.args(["commit", "-q", "--to", "oci:W:new"]).args(args);
    let mut process = commit.stderr(Stdio::piped()).spawn().unwrap();
    while !begun() {
        assert!(process.try_wait().unwrap().is_none(), "{args:?}: it is done already");
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(Pid::from_child(&process), Signal::INT).unwrap();
    let Output { status, stderr, .. } = process.wait_with_output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.ends_with(": interrupted\n"), "{said}");
    assert!(!dir.join("W").exists());
    let kept = fs::read_dir(dir.join("cache")).unwrap();
    let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!kept.iter().any(|name| name.as_encoded_bytes().starts_with(b".")), "{kept:?}");
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // 4 GiB of zeros in 4 MB: while layers are read.
    let script = "mkdir upper large; truncate -s 4G zeros large/zeros
        tar -cf small.tar upper
        tar -cf - zeros | head -c 512 | gzip >header.gz
        head -c 64M /dev/zero | gzip >part.gz
        head -c 1024 /dev/zero | gzip >end.gz
        { cat header.gz; for part in $(seq 64); do cat part.gz; done; cat end.gz; } >zeros.tar.gz";
    run(tool("sh", "dash").current_dir(dir).args(["-euc", script]));
    let reads = || {
        let files = fs::read_dir(dir.join("cache")).into_iter().flatten();
        files.flatten().any(|file| file.file_name().as_encoded_bytes().starts_with(b".new-"))
    };
    interrupted(dir, &["--cow", "upper/", "zeros.tar.gz"], reads);
    // While one is written.
    let partial = dir.join("W/.strata-partial/0");
    let writes = || fs::metadata(&partial).is_ok_and(|file| file.len() > 0);
    interrupted(dir, &["--cow", "large/", "small.tar"], writes);
}

/// `STRATA_COMMIT_KILLS` says how often (12 if unset).
#[test]
fn killed_it_leaves_a_layout_whose_names_hold() {
    let Made { dir, .. } = made();
    let dir = dir.path();
    let mut rng = Rng(7);
    fs::write(dir.join("upper/large"), rng.bytes(12 << 20)).unwrap();
    copy(dir, "oci:L:v1", "oci:T:v1");
    let (was, ..) = image(&dir.join("T"), "v1");
    let begin = |to: &str| {
        let args = ["commit", "-q", "--to", to, "--cow", "upper/", "oci:L:v1"];
        ours(dir).args(args).spawn().unwrap()
    };
    let began = Instant::now();
    assert!(begin("oci:W:v2").wait().unwrap().success());
    let whole = began.elapsed().as_micros() as u64;
    let kills = std::env::var("STRATA_COMMIT_KILLS").map_or(12, |kills| kills.parse().unwrap());
    for round in 0..kills {
        // Into a layout that is there, and into one that is not.
        let to = if round % 2 == 0 { "T" } else { "New" };
        let mut process = begin(&format!("oci:{to}:v2"));
        std::thread::sleep(Duration::from_micros(rng.below(whole)));
        process.kill().unwrap();
        process.wait().unwrap();
        let there = dir.join(to).join("index.json").exists();
        if to == "T" {
            assert_eq!(image(&dir.join("T"), "v1").0, was);
        }
        let index = if there { json(&dir.join(to).join("index.json")) } else { json!({}) };
        if index.to_string().contains("\"v2\"") {
            copy(dir, &format!("oci:{to}:v2"), &format!("dir:killed{round}"));
        }
    }
    for to in ["T", "New"] {
        assert!(begin(&format!("oci:{to}:v2")).wait().unwrap().success());
        image(&dir.join(to), "v2");
        assert!(!dir.join(to).join(".strata-partial").exists());
        umoci(dir, &["gc", "--layout", to]);
        copy(dir, &format!("oci:{to}:v2"), &format!("dir:after{to}"));
    }
}
