//! The commands, and what they say where a layered image cannot do what a disk can.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;
use stratafs::oci::Platform;

use crate::image::{MANIFEST, Place};
use crate::seen::{self, same};
use crate::support::{run, stdout};

/// Runs a command that must fail, and gives its exit status and what it says.
#[track_caller]
fn fails(place: &Place, args: &[&str]) -> (Option<i32>, String) {
    let output = place.strata().args(args).output().unwrap();
    assert!(!output.status.success(), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[track_caller]
fn says(place: &Place, args: &[&str]) -> String {
    stdout(place.strata().args(args))
}

#[test]
fn files_are_listed_read_and_restored() {
    let place = Place::new();
    let theirs = place.unpacked();
    let image = "oci:L:mixed";
    let listed = says(&place, &["ls", "-R", "--json", image, "/srv", "/opt"]);
    let paths = |folder: &str| theirs.keys().filter(|path| path.starts_with(folder)).count();
    // Folders that are named are not told of themselves.
    assert_eq!(listed.lines().count(), paths("/srv/") + paths("/opt/"), "{listed}");
    let long = says(&place, &["ls", "-lR", "-n", image, "/opt"]);
    let line = long.lines().find(|line| line.ends_with(" link")).unwrap();
    assert!(
        line.starts_with("-rws") || line.starts_with("-rwx") || line.starts_with("-rw"),
        "{line}"
    );
    assert!(long.lines().any(|line| line.contains(" soft -> b004")), "{long}");
    assert!(!long.contains(".wh."), "{long}");

    let read = run(place.strata().args(["cat", image, "/opt/app/large.bin", "/srv/large"])).stdout;
    let file = |name: &str| fs::read(place.path("B/rootfs").join(name)).unwrap();
    assert!(read == [file("opt/app/large.bin"), file("srv/large")].concat());
    let (_, said) = fails(&place, &["cat", image, "/srv/etc/e07"]);
    assert!(said.contains("e07"), "{said}");

    run(place.strata().args(["restore", "-q", "--privileged", image, "/", "--to", "restored"]));
    let mut restored = seen::beside_umoci(seen::of_folder(&place.path("restored")), &theirs);
    // The folder that is restored into keeps its own time.
    restored.get_mut("").unwrap().modified = theirs[""].modified;
    same(&restored, &theirs, "restored");
}

/// A character device 0:0 of an image is a device; in an upper it would hide the file below.
#[test]
fn a_device_that_an_upper_takes_for_a_whiteout_is_not_copied_up() {
    let place = Place::new();
    let at = |name: &str| place.path("mnt").join(name);
    fs::create_dir(place.path("devices")).unwrap();
    run(place.tool("mknod", "coreutils").args(["devices/zero", "c", "0", "0"]));
    run(place.tool("tar", "tar").args(["-cf", "devices.tar", "-C", "devices", "."]));
    fs::create_dir(place.path("upper")).unwrap();
    run(place.strata().args(["mount", "--cow", "upper/", "devices.tar", "mnt"]));
    let is_there = || at("zero").symlink_metadata().unwrap().file_type().is_char_device();
    assert!(is_there());
    assert!(fs::set_permissions(at("zero"), PermissionsExt::from_mode(0o600)).is_err());
    assert!(fs::rename(at("zero"), at("other")).is_err());
    assert!(is_there() && !place.path("upper/zero").exists());
    fs::remove_file(at("zero")).unwrap();
    assert!(!at("zero").exists());
    run(place.strata().args(["unmount", "mnt"]));
}

#[test]
fn two_images_are_compared() {
    let place = Place::new();
    let mut shorter = place.manifest("v1");
    shorter["mediaType"] = MANIFEST.into();
    shorter["layers"].as_array_mut().unwrap().pop();
    let config = place.blob(shorter["config"]["digest"].as_str().unwrap());
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    let mut put = place.put(config.to_string().as_bytes());
    put["mediaType"] = shorter["config"]["mediaType"].clone();
    shorter["config"] = put;
    let put = place.put(shorter.to_string().as_bytes());
    place.name("three", put, MANIFEST);

    assert_eq!(says(&place, &["diff", "oci:L:v1", "oci:L:mixed"]), "");
    let said = says(&place, &["diff", "oci:L:three", "oci:L:v1", "--ignore", "times"]);
    for line in [
        "D /opt/app/a03",
        "D /opt/app/link2",
        "A /opt/app/a02",
        "A /opt/app/empty",
        "A /srv/doc/p03",
        "A /srv/doc/p03/new",
        "A /opt/app/large.link",
        "D /srv/lib",
    ] {
        let there = said.lines().any(|said| {
            let mut words = said.split_whitespace();
            words.next() == line.split(' ').next()
                && words.next().map(|path| path.trim_end_matches('/')) == line.split(' ').nth(1)
        });
        assert!(there, "{line} is not in\n{said}");
    }
    assert!(said.contains("/srv/doc/p06/copyright"), "{said}");
}

#[test]
fn layers_are_shown_as_they_are() {
    let place = Place::new();
    run(place.strata().args(["mount", "--view", "layers", "oci:L:mixed", "mnt"]));
    let mut names: Vec<_> = fs::read_dir(place.path("mnt"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let layers = place.manifest("mixed")["layers"].clone();
    let wanted: Vec<_> = (0..4)
        .map(|nth| {
            let digest = layers[nth]["digest"].as_str().unwrap();
            format!("{}-{}", nth + 1, &digest["sha256:".len()..][..12])
        })
        .collect();
    assert_eq!(names, wanted);
    let is_there = |layer: usize, path: &str| {
        place.path("mnt").join(&wanted[layer]).join(path).symlink_metadata().is_ok()
    };
    for (layer, path) in [
        (1, "srv/etc/.wh.e07"),
        (1, "srv/doc/p04/.wh.changelog"),
        (2, "srv/lib/pkg/.wh..wh..opq"),
        (3, "srv/.wh.lib"),
        (3, "opt/app/large.link"),
        (0, "srv/lib/pkg/l00.so"),
    ] {
        assert!(is_there(layer, path), "{path} of {}", wanted[layer]);
    }
    assert!(!is_there(1, "srv/large") && !is_there(3, "srv/lib"));
    let large = fs::read(place.path("mnt").join(&wanted[1]).join("opt/app/large.bin")).unwrap();
    assert_eq!(large.len(), 1_500_000);
    run(place.strata().args(["unmount", "mnt"]));
}

#[test]
fn changes_go_to_an_upper_and_stay() {
    let place = Place::new();
    fs::create_dir(place.path("upper")).unwrap();
    let mount = ["mount", "--cow", "upper/", "oci:L:v1", "mnt"];
    run(place.strata().args(mount));
    let at = |name: &str| place.path("mnt").join(name);
    let large = fs::read(at("srv/large")).unwrap();
    fs::write(at("opt/app/new"), "new").unwrap();
    fs::remove_file(at("opt/app/a00")).unwrap();
    fs::remove_dir_all(at("srv/doc")).unwrap();
    fs::write(at("srv/etc/e01"), "changed").unwrap();
    fs::rename(at("opt/app/a04"), at("opt/app/renamed")).unwrap();
    let changed = seen::of_folder(&place.path("mnt"));
    run(place.strata().args(["unmount", "mnt"]));
    run(place.strata().args(mount));
    same(&seen::of_folder(&place.path("mnt")), &changed, "mounted again");
    assert!(fs::read(at("srv/large")).unwrap() == large);
    assert_eq!(fs::read_to_string(at("srv/etc/e01")).unwrap(), "changed");
    run(place.strata().args(["unmount", "mnt"]));
    let said = says(&place, &["diff", "--cow", "upper/", "oci:L:v1", "--ignore", "times"]);
    for path in ["/opt/app/new", "/opt/app/a00", "/srv/doc", "/srv/etc/e01"] {
        assert!(said.contains(path), "{path} is not in\n{said}");
    }
    assert!(place.path("upper/srv/etc/e01").metadata().unwrap().size() == 7);
}

#[test]
fn platforms_are_chosen() {
    let place = Place::new();
    let mut manifests = vec![];
    for (name, os, architecture) in
        [("v1", "linux", Platform::host().architecture), ("mixed", "windows", "arm".into())]
    {
        let mut manifest = place.manifest(name);
        manifest["mediaType"] = MANIFEST.into();
        if os == "windows" {
            // What tells which of them was opened.
            manifest["layers"].as_array_mut().unwrap().truncate(1);
            let config = json!({ "os": os, "architecture": architecture, "rootfs": {
                "type": "layers",
                "diff_ids": [stratafs::oci::Digest::of(
                    stratafs::oci::Algorithm::Sha256, &fs::read(place.path("1.tar")).unwrap()).to_string()],
            } });
            let mut put = place.put(config.to_string().as_bytes());
            put["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
            manifest["config"] = put;
        }
        let mut put = place.put(manifest.to_string().as_bytes());
        put["mediaType"] = MANIFEST.into();
        put["platform"] = json!({ "os": os, "architecture": architecture });
        manifests.push(put);
    }
    let index_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({ "schemaVersion": 2, "mediaType": index_type, "manifests": manifests });
    let put = place.put(index.to_string().as_bytes());
    place.name("many", put, index_type);
    assert_eq!(says(&place, &["ls", "-d", "oci:L:many", "/opt/app/empty"]).lines().count(), 1);
    let other = says(&place, &["ls", "--platform", "windows/arm", "oci:L:many", "/"]);
    assert_eq!(other.trim(), "srv");
    let (status, said) = fails(&place, &["ls", "--platform", "linux/s390x", "oci:L:many"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("no image for linux/s390x in it; there is linux/"), "{said}");
}

#[test]
fn what_only_disks_have_is_refused() {
    let place = Place::new();
    for view in ["disk", "volumes", "snapshots"] {
        let (status, said) = fails(&place, &["mount", "--view", view, "oci:L:v1", "mnt"]);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(&format!("oci:L:v1: a layered image has no {view} view")), "{said}");
    }
    for options in [["--cow", "delta.qcow2"].as_slice(), &["--scratch"]] {
        let args = [&["mount", "oci:L:v1", "mnt"], options].concat();
        let (status, said) = fails(&place, &args);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains("a layered image is no disk"), "{said}");
        assert!(said.contains("--cow UPPER/"), "{said}");
    }
    assert!(!Path::new(&place.path("delta.qcow2")).exists());
    let (_, said) = fails(&place, &["ls", "oci:L:v9"]);
    assert!(said.contains("no image \"v9\" in it; there is v1, mixed"), "{said}");
    let (_, said) = fails(&place, &["ls", "oci:L"]);
    assert!(said.contains("several images in it"), "{said}");
    assert!(place.kept().is_empty(), "{:?}", place.kept());
}
