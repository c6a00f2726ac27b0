use serde_json::{Value, json};

use super::documents;
use super::*;

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn digest(of: &str) -> Digest {
    Digest::of(Algorithm::Sha256, of.as_bytes())
}

const CREATED: &str = "2001-09-09T01:46:40Z";

#[test]
fn a_config_keeps_what_is_not_about_layers() {
    let old = json!({
        "architecture": "s390x", "os": "linux", "variant": "z15", "x.unknown": [1, { "a": null }],
        "config": { "Env": ["A=b"], "Healthcheck": { "Test": ["NONE"] } },
        "rootfs": { "type": "layers", "diff_ids": ["sha256:old"] },
        "history": [{ "created_by": "a" }, { "created_by": "b", "empty_layer": true }],
    });
    let ids = [digest("below"), digest("new")];
    let new = documents::config(Some(old.to_string().as_bytes()), &ids, CREATED).unwrap();
    let mut wanted = old;
    wanted["created"] = CREATED.into();
    wanted["rootfs"]["diff_ids"] = json!([ids[0].to_string(), ids[1].to_string()]);
    let step = json!({ "created": CREATED, "created_by": "strata commit" });
    wanted["history"].as_array_mut().unwrap().push(step);
    assert_eq!(parsed(&new), wanted);
}

#[test]
fn a_config_that_says_little_gets_what_it_needs() {
    let ids = [digest("a"), digest("b"), digest("new")];
    let host = crate::oci::Platform::host();
    let old = json!({ "id": "0".repeat(64), "parent": "x", "os": "", "config": {} });
    for old in [None, Some(old.to_string())] {
        let new = documents::config(old.as_ref().map(|old| old.as_bytes()), &ids, CREATED).unwrap();
        let new = parsed(&new);
        assert_eq!(
            (&new["os"], &new["architecture"]),
            (&json!("linux"), &json!(host.architecture))
        );
        // A step for each layer.
        assert_eq!(new["history"].as_array().unwrap().len(), 3);
        assert_eq!(new["history"][2]["created_by"], "strata commit");
        assert_eq!((new.get("id"), new.get("parent")), (None, None));
    }
}

#[test]
fn a_manifest_becomes_one_of_oci_and_keeps_annotations() {
    let old = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "subject": { "digest": "x" },
        "annotations": { "k": "v" }, "config": { "digest": "old" },
        "layers": [{ "mediaType": "t", "digest": "old", "annotations": { "toc": "sha256:1" } }],
    });
    let config = documents::descriptor(media_type::OCI_CONFIG, &digest("config"), 7);
    let layer = |name| documents::descriptor("type", &digest(name), 5);
    let layers = vec![layer("below"), layer("new")];
    let new = documents::manifest(Some(old.to_string().as_bytes()), config.clone(), layers);
    let mut below = layer("below");
    below["annotations"] = json!({ "toc": "sha256:1" });
    let wanted = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "annotations": { "k": "v" },
        "config": config, "layers": [below, layer("new")],
    });
    assert_eq!(parsed(&new.unwrap()), wanted);
}

#[test]
fn a_name_means_one_image_in_its_place() {
    let entry = |name: &str, of: &str| {
        let mut entry = documents::descriptor(media_type::OCI_MANIFEST, &digest(of), 1);
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        entry
    };
    let unnamed = documents::descriptor(media_type::OCI_MANIFEST, &digest("unnamed"), 1);
    let old = json!({
        "schemaVersion": 2, "annotations": { "k": "v" },
        "manifests": [unnamed, entry("b", "1"), entry("a", "2"), entry("b", "3")],
    });
    let new = documents::descriptor(media_type::OCI_MANIFEST, &digest("new"), 1);
    let replaced = |name| {
        let index = documents::index(old.to_string().as_bytes(), name, new.clone()).unwrap();
        parsed(&index)
    };
    let mut wanted = old.clone();
    wanted["manifests"] = json!([unnamed, entry("b", "new"), entry("a", "2")]);
    assert_eq!(replaced("b"), wanted);
    wanted["manifests"] = old["manifests"].clone();
    wanted["manifests"].as_array_mut().unwrap().push(entry("c", "new"));
    assert_eq!(replaced("c"), wanted);
    let error = documents::index(b"[]", "a", new.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
}

#[test]
fn only_layouts_and_folders_that_may_become_one() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let path = dir.path().join("new");
    drop(Target::open(&path, &stop).unwrap());
    assert!(!path.exists(), "nothing was put into it");
    // What a killed run leaves.
    fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    fs::create_dir(path.join(PARTIAL)).unwrap();
    fs::write(path.join(PARTIAL).join("0"), "half").unwrap();
    let target = Target::open(&path, &stop).unwrap();
    assert_eq!(fs::read_dir(path.join(PARTIAL)).unwrap().count(), 0);
    // Whoever waits for it can be told not to.
    stop.store(true, Ordering::Relaxed);
    assert_eq!(Target::open(&path, &stop).unwrap_err().kind(), Kind::Io);
    stop.store(false, Ordering::Relaxed);
    drop(target);
    assert!(path.exists() && !path.join(PARTIAL).exists());

    fs::write(path.join("notes.txt"), "mine").unwrap();
    assert_eq!(Target::open(&path, &stop).unwrap_err().kind(), Kind::Exists);
    assert!(!path.join(PARTIAL).exists());
    fs::write(path.join(MARKER), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    let error = Target::open(&path, &stop).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::LayoutVersion("2.0.0".into())));
    // With others' files beside what is its own, a layout is one.
    fs::write(path.join(MARKER), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    drop(Target::open(&path, &stop).unwrap());
    assert!(path.join("notes.txt").exists());
}

#[test]
fn blobs_do_not_leave_the_layout() {
    let dir = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let (path, outside) = (dir.path().join("layout"), dir.path().join("outside"));
    fs::create_dir_all(outside.join("sha256")).unwrap();
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::symlink(&outside, path.join("blobs")).unwrap();
    let target = Target::open(&path, &stop).unwrap();
    let mut layer = target.layer(Compression::Gzip).unwrap();
    layer.write_all(b"tar").unwrap();
    let error = layer.finish().unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::Outside("blobs/sha256".into())), "{error}");
    assert_eq!(fs::read_dir(outside.join("sha256")).unwrap().count(), 0);
}
