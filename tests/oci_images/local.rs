//! Folders and files.

use std::fs;
use std::path::Path;

use serde_json::json;
use stratafs::error::Kind;
use stratafs::oci::{self, Algorithm, Compression, Digest, Options, Reference};

use crate::made::*;
use crate::support::{run, tool};

#[test]
fn every_local_kind_has_the_same_layers() {
    let dir = layout();
    let dir = dir.path();
    copy(dir, &[], "oci:L:v1", "oci-archive:o.tar:v1");
    copy(dir, &[], "oci:L:v1", "docker-archive:d.tar:h.example/app:v1");
    copy(dir, &["--dest-compress-format", "zstd"], "oci:L:v1", "oci:Z:v1");
    let image = open(at(dir, "oci:", "L:v1")).unwrap();
    assert_eq!(
        image.manifest_digest.as_ref().unwrap().to_string(),
        manifest_digest(dir, "oci:L:v1")
    );
    let wanted = layers(&image);
    assert_eq!(wanted.len(), 3);
    assert!(image.layers.iter().all(|layer| layer.compression == Compression::Gzip));

    let config = config(dir, "oci:L:v1");
    assert_eq!(json!(image.config.config.env), config["config"]["Env"]);
    assert_eq!(json!(image.config.config.labels), config["config"]["Labels"]);
    assert_eq!(json!(image.config.created), config["created"]);
    assert_eq!(json!(image.config.rootfs.diff_ids), config["rootfs"]["diff_ids"]);
    assert_eq!(image.config.history.len(), config["history"].as_array().unwrap().len());
    assert_eq!(image.platform().unwrap().to_string(), oci::Platform::host().to_string());

    for text in [
        at(dir, "oci:", "L"),
        at(dir, "oci:", "L:@0"),
        at(dir, "", "L"),
        at(dir, "oci:", "Z:v1"),
        at(dir, "oci-archive:", "o.tar"),
        at(dir, "oci-archive:", "o.tar:v1"),
        at(dir, "", "o.tar"),
        at(dir, "docker-archive:", "d.tar"),
        at(dir, "docker-archive:", "d.tar:h.example/app:v1"),
        at(dir, "docker-archive:", "d.tar:@0"),
        at(dir, "", "d.tar"),
    ] {
        let image = open(&text).unwrap();
        assert!(layers(&image) == wanted, "{text}");
        assert_eq!(image.transferred(), 0);
    }
    let squeezed = open(at(dir, "oci:", "Z:v1")).unwrap();
    assert!(squeezed.layers.iter().all(|layer| layer.compression == Compression::Zstd));
}

#[test]
fn every_form_of_docker_save_is_read_in_place() {
    let dir = layout();
    let dir = dir.path();
    let wanted = layers(&open(at(dir, "oci:", "L:v1")).unwrap());
    copy(dir, &[], "oci:L:v1", "docker-archive:d.tar:app:v1");
    // As docker writes it: layers by the folders of their IDs, which link to them.
    let saved = untar(&dir.join("d.tar"), dir.join("saved"));
    let manifest = fs::read(saved.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let by_link = |file: &serde_json::Value| {
        let links =
            fs::read_dir(&saved).unwrap().map(|entry| entry.unwrap().path().join("layer.tar"));
        let is_it = |link: &std::path::PathBuf| {
            fs::read_link(link).is_ok_and(|target| target.ends_with(file.as_str().unwrap()))
        };
        let link = links.into_iter().find(is_it).expect("a link to the layer");
        link.strip_prefix(&saved).unwrap().to_str().unwrap().to_owned()
    };
    let mut linked = manifest.clone();
    linked[0]["Layers"] =
        manifest[0]["Layers"].as_array().unwrap().iter().map(by_link).collect::<Vec<_>>().into();
    fs::write(saved.join("manifest.json"), linked.to_string()).unwrap();
    tar(&saved, &dir.join("linked.tar"));
    // Before Docker 1.10: `repositories` alone.
    fs::remove_file(saved.join("manifest.json")).unwrap();
    tar(&saved, &dir.join("old.tar"));
    // Since Docker 25: a layout with `manifest.json` beside its index.
    let layout = dir.join("L");
    let image = open(at(dir, "oci:", "L:v1")).unwrap();
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let config = Digest::of(Algorithm::Sha256, image.documents.config.as_ref().unwrap());
    let layers_of: Vec<_> =
        image.layers.iter().map(|layer| blob(layer.digest.as_ref().unwrap())).collect();
    let both = json!([{ "Config": blob(&config), "RepoTags": ["app:v1"], "Layers": layers_of }]);
    fs::write(layout.join("manifest.json"), both.to_string()).unwrap();
    tar(&layout, &dir.join("new.tar"));
    for name in ["linked.tar", "old.tar", "new.tar"] {
        for text in [
            at(dir, "docker-archive:", name),
            at(dir, "docker-archive:", name) + ":app:v1",
            at(dir, "", name),
        ] {
            assert!(layers(&open(&text).unwrap()) == wanted, "{text}");
        }
    }
    let is_layout = parse(at(dir, "", "new.tar")).unwrap();
    assert!(matches!(is_layout, Some(Reference::OciArchive { .. })), "{is_layout:?}");
    let is_docker = parse(at(dir, "", "old.tar")).unwrap();
    assert!(matches!(is_docker, Some(Reference::DockerArchive { .. })), "{is_docker:?}");
}

#[test]
fn several_images_are_listed_and_chosen_by_name() {
    let dir = layout();
    let dir = dir.path();
    run(tool("umoci", "umoci")
        .current_dir(dir)
        .args(["config", "--image", "L:v1", "--tag", "v2", "--author", "x"]));
    copy(dir, &[], "oci:L:v1", "docker-archive:d.tar:app:v1");
    let saved = untar(&dir.join("d.tar"), dir.join("saved"));
    let manifest = fs::read(saved.join("manifest.json")).unwrap();
    let one: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let mut other = one[0].clone();
    other["RepoTags"] = json!(["h.example/app:v2"]);
    fs::write(saved.join("manifest.json"), json!([one[0], other]).to_string()).unwrap();
    tar(&saved, &dir.join("two.tar"));
    let told = |text: String| {
        let error = open(&text).unwrap_err();
        let line = error.to_string().replace(&*dir.to_string_lossy(), "DIR");
        (error.kind(), line)
    };
    assert_eq!(
        told(at(dir, "oci:", "L")),
        (Kind::Usage, "oci:DIR/L: several images in it (v1, v2)".into())
    );
    assert_eq!(
        told(at(dir, "oci:", "L:v3")),
        (Kind::NotFound, "oci:DIR/L:v3: no image \"v3\" in it; there is v1, v2".into())
    );
    assert_eq!(
        told(at(dir, "oci:", "L:@2")),
        (Kind::NotFound, "oci:DIR/L:@2: no image number 2 in it, the last one is 1".into())
    );
    let names = "docker.io/library/app:v1, h.example/app:v2";
    assert_eq!(
        told(at(dir, "docker-archive:", "two.tar")),
        (Kind::Usage, format!("docker-archive:DIR/two.tar: several images in it ({names})"))
    );
    let (kind, line) = told(at(dir, "docker-archive:", "two.tar:app:v2"));
    assert_eq!(kind, Kind::NotFound);
    assert!(
        line.ends_with(&format!("no image \"docker.io/library/app:v2\" in it; there is {names}")),
        "{line}"
    );
    for text in ["two.tar:h.example/app:v2", "two.tar:app:v1", "two.tar:@1"] {
        open(at(dir, "docker-archive:", text)).unwrap();
    }
    assert_eq!(open(at(dir, "oci:", "L:v2")).unwrap().config.author.as_deref(), Some("x"));
    assert_eq!(open(at(dir, "oci:", "L:@1")).unwrap().name.as_deref(), Some("v2"));
}

/// The manifest of `L:v1`, as its index names it.
fn descriptor(dir: &Path) -> serde_json::Value {
    let index = fs::read(dir.join("L/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0].clone()
}

/// Adds a blob to `L`; its digest and length.
fn add(dir: &Path, bytes: &[u8], algorithm: Algorithm) -> (String, usize) {
    let digest = Digest::of(algorithm, bytes);
    let folder = dir.join("L/blobs").join(algorithm.name());
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(digest.hex()), bytes).unwrap();
    (digest.to_string(), bytes.len())
}

/// Puts an index in place of the image `L:v1`.
fn name_as_v1(dir: &Path, (digest, size): (String, usize), media_type: &str) {
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": media_type, "digest": digest, "size": size,
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }] });
    fs::write(dir.join("L/index.json"), index.to_string()).unwrap();
}

const INDEX: &str = oci::manifest::media_type::OCI_INDEX;
const MANIFEST: &str = oci::manifest::media_type::OCI_MANIFEST;

#[test]
fn indexes_lie_in_indexes_and_platforms_choose() {
    let dir = layout();
    let dir = dir.path();
    let manifest = descriptor(dir);
    let on = |architecture: &str| {
        let mut on = manifest.clone();
        on["platform"] = json!({ "os": "linux", "architecture": architecture });
        on
    };
    let arms = json!({ "schemaVersion": 2, "manifests": [on("s390x"), on("arm64")] });
    let (digest, size) = add(dir, arms.to_string().as_bytes(), Algorithm::Sha512);
    let inner = json!({ "mediaType": INDEX, "digest": digest, "size": size, "platform": { "os": "linux", "architecture": "arm64" } });
    let mut said = manifest.clone();
    said["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let outer = json!({ "schemaVersion": 2, "manifests": [said, inner, on("amd64")] });
    name_as_v1(dir, add(dir, outer.to_string().as_bytes(), Algorithm::Sha256), INDEX);
    let open = |platform: &str| {
        let reference = parse(at(dir, "oci:", "L:v1")).unwrap().unwrap();
        let platform = Some(platform.parse().unwrap());
        oci::open(&reference, &Options { platform, ..Options::default() })
    };
    // The same image under two names: its config says amd64 or whatever the host is.
    let host = oci::Platform::host().architecture;
    let answer = |wanted: &str| match open(&format!("linux/{wanted}")) {
        Ok(image) => image.manifest_digest.unwrap().to_string(),
        Err(error) => error.to_string(),
    };
    assert_eq!(answer(&host), manifest["digest"].as_str().unwrap());
    let other = if host == "amd64" { "arm64" } else { "amd64" };
    assert!(
        answer(other).ends_with(&format!("image is for linux/{host}, not linux/{other}")),
        "{}",
        answer(other)
    );
    let told = answer("riscv64");
    assert!(
        told.ends_with("no image for linux/riscv64 in it; there is linux/arm64, linux/amd64"),
        "{told}"
    );
    // An index that holds itself cannot be made; a tower of them can.
    let mut tower = add(dir, outer.to_string().as_bytes(), Algorithm::Sha256);
    for _ in 0..10 {
        let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": INDEX, "digest": tower.0, "size": tower.1 }] });
        tower = add(dir, index.to_string().as_bytes(), Algorithm::Sha256);
    }
    name_as_v1(dir, tower, INDEX);
    let error = crate::made::open(at(dir, "oci:", "L:v1")).unwrap_err();
    assert!(
        error.to_string().ends_with("indexes lie 5 deep in each other (corrupt image)"),
        "{error}"
    );
}

#[test]
fn a_layout_that_lies_is_refused() {
    let dir = layout();
    let dir = dir.path();
    let manifest = descriptor(dir);
    let path = |digest: &str| dir.join("L/blobs").join(digest.replace(':', "/"));
    let error = || crate::made::open(at(dir, "oci:", "L:v1")).unwrap_err();
    let told = || error().to_string();
    let index = fs::read(dir.join("L/index.json")).unwrap();
    let digest = manifest["digest"].as_str().unwrap();
    let bytes = fs::read(path(digest)).unwrap();

    fs::write(path(digest), [&*bytes, b" "].concat()).unwrap();
    assert!(
        told().contains(&format!("manifest {digest} is {} bytes long", bytes.len() + 1)),
        "{}",
        told()
    );
    let mut changed = bytes.clone();
    changed[10] ^= 1;
    fs::write(path(digest), &changed).unwrap();
    assert!(told().contains("has other contents"), "{}", told());
    fs::remove_file(path(digest)).unwrap();
    assert!(
        told().ends_with(&format!("blobs/{} is missing (corrupt image)", digest.replace(':', "/"))),
        "{}",
        told()
    );
    // A link out of the layout is not followed, whether it leads anywhere or not.
    for target in ["/etc/passwd", "../../../../nowhere", "/proc/self/exe"] {
        std::os::unix::fs::symlink(target, path(digest)).unwrap();
        assert!(matches!(error().kind(), Kind::Refused | Kind::Corrupt), "{target}: {}", told());
        fs::remove_file(path(digest)).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", path(digest)).unwrap();
    assert!(told().contains("is a link that leads outside (refused)"), "{}", told());
    fs::remove_file(path(digest)).unwrap();
    fs::write(path(digest), &bytes).unwrap();

    let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let with = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut manifest = parsed.clone();
        change(&mut manifest);
        name_as_v1(dir, add(dir, manifest.to_string().as_bytes(), Algorithm::Sha256), MANIFEST);
        error().to_string()
    };
    let told = with(&|manifest| manifest["layers"].as_array_mut().unwrap().truncate(2));
    assert!(told.ends_with("manifest has 2 layers, its config 3 (corrupt image)"), "{told}");
    let told = with(&|manifest| manifest["layers"][1]["size"] = json!(1));
    assert!(
        told.contains("layer 2: layer sha256:") && told.contains("its descriptor says 1 "),
        "{told}"
    );
    let told = with(&|manifest| manifest["config"]["size"] = json!(9 << 20));
    assert!(
        told.contains("config sha256:") && told.contains("its descriptor says 9437184"),
        "{told}"
    );
    let told = with(&|manifest| manifest["config"]["digest"] = json!("sha256:../../../etc/passwd"));
    assert!(told.contains("\"sha256:../../../etc/passwd\" is no digest"), "{told}");
    let told =
        with(&|manifest| manifest["layers"][0]["mediaType"] = json!("application/x\u{1b}[2J"));
    assert!(
        told.contains("a type that is not known (not supported)") && !told.contains('\u{1b}'),
        "{told}"
    );

    fs::write(dir.join("L/index.json"), &index).unwrap();
    fs::write(dir.join("L/oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(error().to_string().ends_with("layout version 2.0.0 (not supported)"), "{}", error());
    assert_eq!(crate::made::open(at(dir, "oci:", "nowhere")).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn tarballs_are_images_of_one_layer() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("root/etc")).unwrap();
    fs::write(dir.join("root/etc/hostname"), "x").unwrap();
    // What a root filesystem may well hold too.
    fs::write(dir.join("root/manifest.json"), "{}").unwrap();
    tar(&dir.join("root"), &dir.join("rootfs.tar"));
    let wanted = fs::read(dir.join("rootfs.tar")).unwrap();
    let image = open(dir.join("rootfs.tar")).unwrap();
    assert!(layers(&image) == [&*wanted]);
    assert_eq!((&image.manifest_digest, image.platform()), (&None, None));
    for (program, package, name, compression) in [
        ("gzip", "gzip", "rootfs.tar.gz", Compression::Gzip),
        ("pigz", "pigz", "rootfs.tar.gz", Compression::Gzip),
        ("zstd", "zstd", "rootfs.tar.zst", Compression::Zstd),
        ("xz", "xz-utils", "rootfs.tar.xz", Compression::Xz),
        ("bzip2", "bzip2", "rootfs.tar.bz2", Compression::Bzip2),
    ] {
        run(tool(program, package).args(["-k", "-f", "-q"]).arg(dir.join("rootfs.tar")));
        let image = open(dir.join(name)).unwrap();
        assert_eq!(image.layers[0].compression, compression, "{program}");
        if matches!(compression, Compression::Gzip | Compression::Zstd) {
            assert!(layers(&image) == [&*wanted], "{program}");
        }
    }
}

#[test]
fn archives_that_lie_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let made = dir.join("made");
    fs::create_dir(&made).unwrap();
    let told = |manifest: serde_json::Value| {
        fs::write(made.join("manifest.json"), manifest.to_string()).unwrap();
        tar(&made, &dir.join("d.tar"));
        open(at(dir, "docker-archive:", "d.tar")).unwrap_err().to_string()
    };
    let diff_ids = [Digest::of(Algorithm::Sha256, b"").to_string()];
    fs::write(made.join("c.json"), json!({ "rootfs": { "diff_ids": diff_ids } }).to_string())
        .unwrap();
    for layer in ["../../etc/passwd", "/etc/passwd", "none.tar", "."] {
        let told = told(json!([{ "Config": "c.json", "Layers": [layer] }]));
        assert!(told.ends_with(&format!("layer 1: {layer} is missing (corrupt image)")), "{told}");
    }
    std::os::unix::fs::symlink("/etc/passwd", made.join("layer.tar")).unwrap();
    let said = told(json!([{ "Config": "c.json", "Layers": ["layer.tar"] }]));
    assert!(said.ends_with("layer 1: layer.tar is missing (corrupt image)"), "{said}");
    let said = told(json!([{ "Config": "c.json", "Layers": [] }]));
    assert!(said.ends_with("manifest has 0 layers, its config 1 (corrupt image)"), "{said}");
    let name = format!("{}.json", "0".repeat(64));
    fs::write(made.join(&name), "{}").unwrap();
    let said = told(json!([{ "Config": name, "Layers": null }]));
    assert!(said.contains("has other contents"), "{said}");
    assert!(told(json!([])).ends_with("no image in it"), "an empty list");
    assert!(told(json!({})).contains("manifest.json is not the JSON it should be"), "no list");
    fs::write(made.join("e"), "").unwrap();
    run(tool("gzip", "gzip").arg("-k").arg(dir.join("d.tar")));
    let error = open(at(dir, "docker-archive:", "d.tar.gz")).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.hint(), Some("decompress it first: gzip -d -k FILE"));
}
