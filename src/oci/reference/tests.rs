use std::fs;
use std::io::Write;

use super::*;
use crate::oci::cause::Cause;

const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn parse(text: &str) -> Result<Option<Reference>> {
    Reference::parse(OsStr::new(text))
}

/// What the reference means, written in full.
fn full(text: &str) -> String {
    parse(text).unwrap().unwrap_or_else(|| panic!("{text} is none")).to_string()
}

#[test]
fn names_in_full_are_those_of_docker_and_skopeo() {
    // The right side is what `podman pull --log-level debug` and skopeo resolve the left to.
    for (text, meant) in [
        ("docker://debian", "docker.io/library/debian:latest"),
        ("docker://debian:12", "docker.io/library/debian:12"),
        ("docker://user/app", "docker.io/user/app:latest"),
        ("docker://docker.io/debian", "docker.io/library/debian:latest"),
        ("docker://index.docker.io/debian", "docker.io/library/debian:latest"),
        ("docker://localhost/app", "localhost/app:latest"),
        ("docker://localhost:5000/app", "localhost:5000/app:latest"),
        ("docker://host.example/a/b/c:v1.2", "host.example/a/b/c:v1.2"),
        ("docker://host.example:80/a:80", "host.example:80/a:80"),
        ("docker://HOST/app", "HOST/app:latest"),
        ("docker://[::1]:5000/app", "[::1]:5000/app:latest"),
        ("docker://a__b/c-d---e.f", "docker.io/a__b/c-d---e.f:latest"),
    ] {
        assert_eq!(full(text), format!("docker://{meant}"), "{text}");
    }
    assert_eq!(
        full(&format!("docker://app@sha256:{HEX}")),
        format!("docker://docker.io/library/app@sha256:{HEX}")
    );
    let Some(Reference::Registry(name)) =
        parse(&format!("docker://h.example/a:v1@sha256:{HEX}")).unwrap()
    else {
        panic!("no name");
    };
    assert_eq!((name.tag.as_deref(), name.reference()), (Some("v1"), format!("sha256:{HEX}")));
}

#[test]
fn names_that_are_none_say_what_is_wrong() {
    for (text, why) in [
        ("docker://", "names no image"),
        ("docker://host.example/", "names no image"),
        ("docker://App", "capital letters"),
        ("docker://host.example/App", "capital letters"),
        ("docker://a//b", "is no name of an image"),
        ("docker://a.-b", "is no name of an image"),
        ("docker://../../etc", "begin with the name of a host"),
        ("docker://host.example/../x", "is no name of an image"),
        ("docker://host.example/a?x=1", "is no name of an image"),
        ("docker://host.example/a#x", "is no name of an image"),
        ("docker://user@host.example/a", "is no digest"),
        ("docker://ho st.example/a", "name of a host"),
        ("docker://host.example:99999/a", "name of a host"),
        ("docker://a:", "tag"),
        ("docker://a:-x", "tag"),
        ("docker://a@sha256:12", "is no digest"),
        ("docker://a@md5:d41d8cd98f00b204e9800998ecf8427e", "digest algorithm \"md5\""),
        (&format!("docker://{HEX}"), "image ID"),
        (&format!("docker://a:{}", "x".repeat(129)), "tag"),
        (&format!("docker://{}", "a".repeat(256)), "longer"),
        ("oci:", "names no path"),
        ("oci:dir:-x", "is no name of an image in a layout"),
        ("oci:dir:a::b", "is no name of an image in a layout"),
        ("oci:dir:@x", "a number"),
        ("oci:dir:@-1", "a number"),
        ("docker-archive:f:A", "capital letters"),
        (&format!("docker-archive:f:a@sha256:{HEX}"), "not digests"),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{text}: {error}");
        assert!(error.to_string().contains(why), "{text}: {error}");
        assert!(error.to_string().starts_with(text), "{error}");
    }
}

#[test]
fn paths_end_at_the_first_colon() {
    let dir = |dir: &str, image| Some(Reference::Layout { dir: dir.into(), image });
    let named = |name: &str| Selection::Named(name.into());
    assert_eq!(parse("oci:a/b").unwrap(), dir("a/b", Selection::Only));
    assert_eq!(parse("oci:a/b:").unwrap(), dir("a/b", Selection::Only));
    assert_eq!(parse("oci:/a:v1").unwrap(), dir("/a", named("v1")));
    assert_eq!(parse("oci:a:x:y").unwrap(), dir("a", named("x:y")));
    assert_eq!(
        parse("oci:a:h.example/x/y:v1--rc+2").unwrap(),
        dir("a", named("h.example/x/y:v1--rc+2"))
    );
    assert_eq!(parse("oci:a:@2").unwrap(), dir("a", Selection::Number(2)));
    let file = "x.tar".into();
    assert_eq!(
        parse("oci-archive:x.tar:v1").unwrap(),
        Some(Reference::OciArchive { file, image: named("v1") })
    );
    let docker = |image| Some(Reference::DockerArchive { file: "x.tar".into(), image });
    assert_eq!(parse("docker-archive:x.tar").unwrap(), docker(Selection::Only));
    assert_eq!(parse("docker-archive:x.tar:@0").unwrap(), docker(Selection::Number(0)));
    let name = named("docker.io/library/app:latest");
    assert_eq!(parse("docker-archive:x.tar:app").unwrap(), docker(name));
    let name = named("h.example:5000/app:1");
    assert_eq!(parse("docker-archive:x.tar:h.example:5000/app:1").unwrap(), docker(name));
    let bytes = OsStr::from_bytes(b"oci:\xff\xfe:v1");
    let odd = OsStr::from_bytes(b"\xff\xfe");
    assert_eq!(
        Reference::parse(bytes).unwrap(),
        Some(Reference::Layout { dir: odd.into(), image: named("v1") })
    );
}

#[test]
fn other_references_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    fs::write(&disk, vec![0; 4096]).unwrap();
    let squeezed = dir.path().join("disk.raw.zst");
    fs::write(&squeezed, zstd::bulk::compress(&vec![0; 4096], 1).unwrap()).unwrap();
    let qcow2 = dir.path().join("disk.qcow2");
    fs::write(&qcow2, [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 600]].concat()).unwrap();
    fs::write(dir.path().join("empty"), "").unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    for text in [
        text(&disk),
        text(&squeezed),
        text(&qcow2),
        text(&dir.path().join("empty")),
        text(dir.path()),
        "disk.qcow2".into(),
        "disk.qcow2::before".into(),
        "/dev/vdb".into(),
        "/dev/null".into(),
        "STORE::web01@2026-11-22".into(),
        "oci::web01".into(),
        "s3://bucket/oci".into(),
        "https://host.example/oci:x".into(),
        "./oci:x".into(),
        "docker:x".into(),
        "ocix:a".into(),
        String::new(),
    ] {
        assert_eq!(parse(&text).unwrap(), None, "{text}");
    }
}

#[test]
fn tarballs_are_told_by_their_first_block() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let tar = dir.path().join("rootfs");
    crate::oci::archive::tests::tar(dir.path(), &tar, &["file"]);
    let bytes = fs::read(&tar).unwrap();
    let is = |path: &Path| Some(Reference::Tarball { file: path.into() });
    assert_eq!(Reference::parse(tar.as_os_str()).unwrap(), is(&tar));
    let gzip = dir.path().join("a");
    let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(&bytes).unwrap();
    fs::write(&gzip, encoder.finish().unwrap()).unwrap();
    assert_eq!(Reference::parse(gzip.as_os_str()).unwrap(), is(&gzip));
    let squeezed = dir.path().join("b");
    fs::write(&squeezed, zstd::bulk::compress(&bytes, 1).unwrap()).unwrap();
    assert_eq!(Reference::parse(squeezed.as_os_str()).unwrap(), is(&squeezed));
    // What is not decompressed here is told by its name.
    for (name, start) in [("r.tar.xz", b"\xfd7zXZ\0".as_slice()), ("r.tbz2", b"BZh91AY&SY")] {
        let (path, other) = (dir.path().join(name), dir.path().join("disk.img"));
        fs::write(&path, start).unwrap();
        fs::write(&other, start).unwrap();
        assert_eq!(Reference::parse(path.as_os_str()).unwrap(), is(&path));
        assert_eq!(Reference::parse(other.as_os_str()).unwrap(), None);
    }
}

#[test]
fn a_tarball_compressed_as_is_not_known_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.tar.lz4");
    fs::write(&path, b"\x04\x22\x4d\x18").unwrap();
    let error = Reference::parse(path.as_os_str()).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::ArchiveCompressed("lz4")));
    assert_eq!(error.hint(), Some("decompress it first: lz4 -d FILE"));
    // One that is a tar all the same is one.
    fs::write(dir.path().join("file"), "x").unwrap();
    crate::oci::archive::tests::tar(dir.path(), &path, &["file"]);
    assert_eq!(
        Reference::parse(path.as_os_str()).unwrap(),
        Some(Reference::Tarball { file: path })
    );
}

#[test]
fn a_compressed_archive_of_images_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    let tar = dir.path().join("a.tar");
    crate::oci::archive::tests::tar(dir.path(), &tar, &["oci-layout"]);
    let bytes = zstd::bulk::compress(&fs::read(&tar).unwrap(), 1).unwrap();
    fs::write(&tar, bytes).unwrap();
    let error = Reference::parse(tar.as_os_str()).unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::ArchiveCompressed("zstd")));
    assert_eq!(error.hint(), Some("decompress it first: zstd -d -k FILE"));
}
