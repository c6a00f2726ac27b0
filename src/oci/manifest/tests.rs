use serde_json::{Value, json};

use super::*;
use crate::oci::{Algorithm, Config};

fn descriptor(media_type: &str) -> Value {
    let digest = Digest::of(Algorithm::Sha256, media_type.as_bytes()).to_string();
    json!({ "mediaType": media_type, "digest": digest, "size": 3 })
}

fn manifest(layers: &[&str]) -> Value {
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(layer)).collect();
    json!({ "schemaVersion": 2, "config": descriptor(media_type::OCI_CONFIG), "layers": layers })
}

fn parse(value: &Value) -> Result<Document> {
    Document::parse(value.to_string().as_bytes(), None)
}

fn cause(value: &Value) -> Cause {
    parse(value).unwrap_err().cause::<Cause>().expect("a cause").clone()
}

#[test]
fn layers_of_both_families_are_known() {
    let layers = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
    ];
    let Document::Manifest(manifest) = parse(&manifest(&layers)).unwrap() else {
        panic!("an index")
    };
    let found: Vec<_> = manifest.layers.iter().map(|(_, compression)| *compression).collect();
    use Compression::{Gzip, None, Zstd};
    assert_eq!(found, [None, Gzip, Zstd, None, Gzip, Zstd]);
}

#[test]
fn other_layers_are_refused_by_name() {
    let of = |media_type: &str| cause(&manifest(&[media_type::OCI_LAYER, media_type]));
    let named = |media_type: &str| media_type.to_owned();
    for foreign in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        assert_eq!(of(foreign), Cause::ForeignLayer { number: 2, media_type: named(foreign) });
    }
    let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
    assert_eq!(of(encrypted), Cause::EncryptedLayer { number: 2, media_type: named(encrypted) });
    for unknown in ["application/vnd.oci.image.layer.v1.tar+lz4", "text/plain", ""] {
        assert_eq!(of(unknown), Cause::LayerType { number: 2, media_type: named(unknown) });
    }
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let mut chart = manifest(&[]);
    chart["config"] = descriptor("application/vnd.cncf.helm.config.v1+json");
    assert_eq!(cause(&chart), Cause::Artifact("application/vnd.cncf.helm.config.v1+json".into()));
    let mut typed = manifest(&[]);
    typed["config"] = descriptor("application/vnd.oci.empty.v1+json");
    typed["artifactType"] = json!("application/spdx+json");
    assert_eq!(cause(&typed), Cause::Artifact("application/spdx+json".into()));
    let old = json!({ "mediaType": media_type::OCI_ARTIFACT, "artifactType": "a/b", "blobs": [] });
    assert_eq!(cause(&old), Cause::Artifact("a/b".into()));
    for schema1 in [
        json!({ "schemaVersion": 1, "fsLayers": [], "history": [] }),
        json!({ "fsLayers": [{ "blobSum": "x" }] }),
        json!({ "schemaVersion": 2, "mediaType": media_type::SCHEMA1[1] }),
    ] {
        assert_eq!(cause(&schema1), Cause::Schema1);
    }
    assert_eq!(cause(&json!({ "schemaVersion": 3 })), Cause::SchemaVersion(3));
    assert_eq!(cause(&json!({ "schemaVersion": 2 })), Cause::Shapeless);
    let unknown = json!({ "schemaVersion": 2, "mediaType": "a/b", "layers": [] });
    assert_eq!(cause(&unknown), Cause::ManifestType("a/b".into()));
}

#[test]
fn what_two_programs_could_read_in_two_ways_is_corrupt() {
    let mut both = manifest(&[]);
    both["manifests"] = json!([]);
    assert_eq!(cause(&both), Cause::Ambiguous);
    // The type says one thing, the contents another.
    let mut said = manifest(&[]);
    said["mediaType"] = json!(media_type::OCI_INDEX);
    assert_eq!(cause(&said), Cause::Shapeless);
    let mut own = manifest(&[]);
    own["mediaType"] = json!(media_type::OCI_MANIFEST);
    let bytes = own.to_string();
    let error = Document::parse(bytes.as_bytes(), Some(media_type::OCI_INDEX)).unwrap_err();
    let (itself, announced) = (media_type::OCI_MANIFEST.into(), media_type::OCI_INDEX.into());
    assert_eq!(error.cause(), Some(&Cause::MediaTypes { itself, announced }));
    let twice = br#"{"schemaVersion":2,"layers":[],"layers":[],"config":{}}"#;
    assert!(matches!(Document::parse(twice, None).unwrap_err().cause(), Some(Cause::Json { .. })));
}

#[test]
fn what_a_server_announces_counts_only_if_it_means_something() {
    let bytes = manifest(&[]).to_string();
    for said in ["application/json", "text/plain; charset=utf-8", ""] {
        assert!(Document::parse(bytes.as_bytes(), Some(said)).is_ok(), "{said}");
    }
    let said = format!("{}; charset=utf-8", media_type::OCI_MANIFEST);
    assert!(Document::parse(bytes.as_bytes(), Some(&said)).is_ok());
}

#[test]
fn hostile_documents_end_in_an_error() {
    let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let deep_inside = [b"{\"annotations\":".as_slice(), &b"{\"a\":".repeat(100_000)].concat();
    let long = format!("{{\"schemaVersion\":{}}}", "9".repeat(100_000));
    let odd: [&[u8]; 9] = [
        b"",
        b"null",
        b"[]",
        b"\"\xff\"",
        b"{\"schemaVersion\":-1}",
        b"{\"manifests\":[{\"digest\":1,\"size\":1}]}",
        b"{\"manifests\":[{\"digest\":\"\",\"size\":-1}]}",
        b"{\"layers\":{}}",
        b"{\"config\":[]}",
    ];
    for bytes in [&*deep, &deep_inside, long.as_bytes()].into_iter().chain(odd) {
        let error = Document::parse(bytes, None).unwrap_err();
        assert_eq!(error.kind(), crate::error::Kind::Corrupt, "{error}");
        let _ = Config::parse(bytes);
    }
    let many = manifest(&vec![media_type::OCI_LAYER; MAX_LAYERS + 1]);
    assert_eq!(
        cause(&many),
        Cause::TooMany { what: "layers", count: MAX_LAYERS + 1, most: MAX_LAYERS }
    );
    let mut index = json!({ "schemaVersion": 2, "manifests": [] });
    index["manifests"] = vec![descriptor(media_type::OCI_MANIFEST); MAX_MANIFESTS + 1].into();
    let count = MAX_MANIFESTS + 1;
    assert_eq!(cause(&index), Cause::TooMany { what: "manifests", count, most: MAX_MANIFESTS });
    let mut climbing = manifest(&[]);
    climbing["config"]["digest"] = json!("sha256:../../../../etc/passwd");
    assert!(matches!(cause(&climbing), Cause::DigestSyntax(_)));
}

#[test]
fn a_config_may_leave_out_nearly_everything() {
    assert_eq!(Config::parse(b"{}").unwrap(), Config::default());
    let nulls = br#"{"config":null,"rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
    assert_eq!(Config::parse(nulls).unwrap(), Config::default());
    let config = json!({
        "created": "2026-11-22T08:00:00Z", "architecture": "arm", "os": "linux", "variant": "v7",
        "config": {
            "User": "1:2", "Env": ["A=b"], "Entrypoint": ["/x"], "Cmd": null, "WorkingDir": "/w",
            "Labels": { "k": "v" }, "ExposedPorts": { "80/tcp": {} }, "Volumes": null, "Odd": 1
        },
        "rootfs": { "type": "layers", "diff_ids": [Digest::of(Algorithm::Sha256, b"").to_string()] },
        "history": [{ "created_by": "ADD", "empty_layer": true }, { "comment": null }]
    });
    let config = Config::parse(config.to_string().as_bytes()).unwrap();
    assert_eq!(config.platform().unwrap().to_string(), "linux/arm/v7");
    assert_eq!(config.config.env, ["A=b"]);
    assert_eq!(config.config.exposed_ports, ["80/tcp"]);
    assert_eq!(config.config.labels["k"], "v");
    assert_eq!(config.diff_ids().unwrap().len(), 1);
    assert!(config.history[0].empty_layer && !config.history[1].empty_layer);
    let wrong = Config::parse(br#"{"rootfs":{"diff_ids":["x"]}}"#).unwrap();
    let error = wrong.diff_ids().unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::DigestSyntax("x".into())));
}
