//! Blobs that are not what the image says: the layer and the digests are named, and nothing of it is kept.

use std::fs;
use std::path::Path;

use stratafs::error::Kind;

use crate::image::{Place, Registry};
use crate::seen::{self, same};

fn is_unfinished(path: &Path) -> bool {
    path.file_name().unwrap().as_encoded_bytes().starts_with(b".")
}

/// Changes the blob of the third layer, and opens the image.
#[track_caller]
fn with(place: &Place, image: &str, change: impl FnOnce(&mut Vec<u8>)) -> (Kind, String, String) {
    let digest = place.manifest(image)["layers"][2]["digest"].as_str().unwrap().to_owned();
    let path = place.blob(&digest);
    let good = fs::read(&path).unwrap();
    let mut bytes = good.clone();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    let error = place.open(&place.at("oci:", &format!("L:{image}"))).map(|_| ()).unwrap_err();
    fs::write(&path, good).unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let kept = place.kept();
    assert!(!kept.iter().any(|path| path.to_string_lossy().contains(hex)), "{kept:?}");
    assert!(!kept.iter().any(|path| is_unfinished(path)), "{kept:?}");
    (error.kind(), error.to_string(), digest)
}

#[test]
fn another_digest_is_told_with_the_layer() {
    let place = Place::new();
    // The time in the header of gzip: it changes the blob and nothing of what is in it.
    let (kind, said, digest) = with(&place, "v1", |bytes| bytes[4] ^= 1);
    assert_eq!(kind, Kind::Corrupt);
    let start = format!("layer 3 of 4, {digest}: the blob is sha256:");
    assert!(said.contains(&start) && said.contains(&format!(", not {digest} (")), "{said}");

    for at in [100, 3000] {
        let (kind, said, digest) = with(&place, "v1", |bytes| bytes[at] ^= 0x10);
        assert_eq!(kind, Kind::Corrupt, "{said}");
        assert!(said.contains(&format!("layer 3 of 4, {digest}: ")), "{said}");
    }
    // As it was, it opens.
    let (_, read) = place.open(&place.at("oci:", "L:v1")).unwrap();
    assert!(read > 0);
}

#[test]
fn a_blob_that_is_cut_short_or_not_there_is_told() {
    let place = Place::new();
    for len in [0, 1, 1000] {
        let (kind, said, digest) = with(&place, "v1", |bytes| bytes.truncate(len));
        assert_eq!(kind, Kind::Corrupt, "{said}");
        assert!(said.contains(&digest) && said.contains("its descriptor says"), "{said}");
    }
    let digest = place.manifest("mixed")["layers"][1]["digest"].as_str().unwrap().to_owned();
    fs::remove_file(place.blob(&digest)).unwrap();
    let error = place.open(&place.at("oci:", "L:mixed")).map(|_| ()).unwrap_err();
    let hex = digest.strip_prefix("sha256:").unwrap();
    assert!(error.to_string().contains(&format!("blobs/sha256/{hex} is missing")), "{error}");
    assert!(place.kept().is_empty(), "{:?}", place.kept());
}

#[test]
fn another_diff_id_is_told_with_the_layer() {
    let place = Place::new();
    let mut manifest = place.manifest("v1");
    let config = place.blob(manifest["config"]["digest"].as_str().unwrap());
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(config).unwrap()).unwrap();
    let wrong = format!("sha256:{}", "1".repeat(64));
    config["rootfs"]["diff_ids"][1] = wrong.clone().into();
    let mut put = place.put(config.to_string().as_bytes());
    put["mediaType"] = manifest["config"]["mediaType"].clone();
    manifest["config"] = put;
    manifest["mediaType"] = crate::image::MANIFEST.into();
    let put = place.put(manifest.to_string().as_bytes());
    place.name("wrong", put, crate::image::MANIFEST);
    let error = place.open(&place.at("oci:", "L:wrong")).map(|_| ()).unwrap_err();
    let said = error.to_string();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(said.contains("layer 2 of 4, sha256:"), "{said}");
    assert!(said.contains("the uncompressed tar is sha256:"), "{said}");
    assert!(said.contains(&format!(", not {wrong} (")), "{said}");
    let layer = manifest["layers"][1]["digest"].as_str().unwrap();
    let hex = layer.strip_prefix("sha256:").unwrap();
    assert!(!place.kept().iter().any(|path| path.to_string_lossy().contains(hex)));
}

/// Gives the folder `name` no more room than `size`.
fn narrow(place: &Place, name: &str, size: &str) {
    let mut mount = place.tool("mount", "mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "tmpfs", name]);
    assert!(mount.status().unwrap().success(), "this test mounts a tmpfs: run as root");
}

/// What a registry sends, and contents that have no restart points, go elsewhere then; and where there
/// is no room either, a hint says what to do.
#[test]
fn a_full_cache_is_got_around() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let reference = format!("docker://{}/app:mixed", registry.host);
    place.copy("oci:L:mixed", &reference);
    let whole = |reference: &str| {
        let (layered, _) = place.open(reference).unwrap_or_else(|error| panic!("{error}"));
        seen::of_tree(&layered.merged().unwrap())
    };
    let wanted = whole(&place.at("oci:", "L:mixed"));
    for file in place.kept() {
        fs::remove_file(file).unwrap();
    }
    // Room for no layer but the last, whose index comes first or not.
    narrow(&place, "cache", "128k");
    fs::create_dir(place.path("tmp")).unwrap();
    for reference in [&reference, &place.at("oci:", "L:mixed")] {
        same(&whole(reference), &wanted, reference);
        assert!(!place.kept().iter().any(|path| is_unfinished(path)), "{:?}", place.kept());
    }
    narrow(&place, "tmp", "128k");
    let mut strata = place.strata();
    let output = strata.args(["ls", &reference]).env("TMPDIR", place.path("tmp")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    let hint = "hint: STRATA_CACHE_DIR=DIR or TMPDIR=DIR names a folder where there is room\n";
    assert!(said.ends_with(hint), "{said}");
}

#[test]
fn a_full_cache_keeps_nobody_from_looking() {
    let place = Place::new();
    let cache = place.path("cache");
    narrow(&place, "cache", "4k");
    fs::write(cache.join("filler"), [1; 4096]).unwrap();
    let opened = [(), ()].map(|()| place.open(&place.at("oci:", "L:v1")).map(|(_, read)| read));
    let kept = place.kept();
    assert!(place.tool("umount", "mount").arg(&cache).status().unwrap().success());
    // Nothing could be kept, so all is read each time.
    for read in opened {
        assert!(read.unwrap() > 0);
    }
    assert_eq!(kept, [cache.join("filler")]);
}
