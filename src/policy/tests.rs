use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

fn parse(name: &str) -> Result<(String, Option<Format>)> {
    let name = Name::parse(OsStr::new(name))?;
    Ok((name.path.into_string().unwrap(), name.format))
}

#[test]
fn names_of_plain_files() {
    let cases = [
        ("base.raw", "base.raw", None),
        ("a/b:c", "a/b:c", None),
        ("/x:y", "/x:y", None),
        ("./nbd:x", "./nbd:x", None),
        ("file:base.raw", "base.raw", None),
        ("file:/a:b", "/a:b", None),
        (r#"json:{"file.filename":"x:y"}"#, "x:y", None),
        (r#"json:{"driver":"raw","file.filename":"x"}"#, "x", Some(Format::Raw)),
        (
            r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"x","locking":"auto"}}"#,
            "x",
            Some(Format::Qcow2),
        ),
        (r#"json:{"driver":"file","filename":"x","read-only":true}"#, "x", Some(Format::Raw)),
    ];
    for (name, path, format) in cases {
        assert_eq!(parse(name).unwrap(), (path.to_owned(), format), "{name}");
    }
}

#[test]
fn names_of_anything_else() {
    let long = "x".repeat(4097);
    let deep = format!("json:{}1{}", "{\"a\":".repeat(1000), "}".repeat(1000));
    let cases = [
        "",
        "file:",
        "nbd:x",
        "json:",
        "json:null",
        "a\0b",
        r"\\host\share",
        &long,
        &deep,
        r#"json:{"driver":"qcow2"}"#,
        r#"json:{"driver":"file","file.filename":"x"}"#,
        r#"json:{"filename":"x"}"#,
        r#"json:{"driver":"raw","filename":"x","file.filename":"y"}"#,
        r#"json:{"file.filename":"x","file":{"filename":"y"}}"#,
        r#"json:{"file.filename":7}"#,
        r#"json:{"file.driver":"host_device","file.filename":"/dev/sda"}"#,
        r#"json:{"driver":"luks","file.filename":"x","key-secret":"s"}"#,
    ];
    for name in cases {
        assert_eq!(parse(name).unwrap_err().kind(), Kind::Refused, "{name}");
    }
}

/// The folder of an image in `/` is the whole machine: only its own files open.
#[test]
fn the_root_folder_is_not_a_tree() {
    let mut gate = Gate { roots: Vec::new(), files: Vec::new(), no_backing: false };
    gate.allow(Path::new("/"), true).unwrap();
    for path in ["/etc/passwd", "/etc/../etc/passwd", "/a/b"] {
        assert!(gate.anchor(Path::new(path)).is_err(), "{path}");
    }
    assert!(gate.anchor(Path::new("/disk.raw")).is_ok());
    gate.allow(Path::new("/"), false).unwrap();
    assert!(gate.anchor(Path::new("/etc/passwd")).is_ok());
}

proptest! {
    // The same in every run.
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever a name says, it opens a file of the folder or nothing.
    #[test]
    fn no_name_leads_out(
        parts in prop::collection::vec(
            prop_oneof!["\\.\\.", "in", "out", "link", "up", "file", "secret", "\\.", ""], 1..8),
        absolute in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("own/in")).unwrap();
        std::fs::create_dir_all(base.join("out")).unwrap();
        std::fs::write(base.join("own/file"), "own").unwrap();
        std::fs::write(base.join("own/in/file"), "own").unwrap();
        std::fs::write(base.join("out/secret"), "not own").unwrap();
        std::fs::write(base.join("secret"), "not own").unwrap();
        std::os::unix::fs::symlink("in/..", base.join("own/link")).unwrap();
        std::os::unix::fs::symlink(base.join("out"), base.join("own/in/out")).unwrap();
        std::os::unix::fs::symlink("../..", base.join("own/in/up")).unwrap();
        let top = FileSource::open(&base.join("own/file")).unwrap();
        let gate = Gate::new(&Policy::default(), &top).unwrap();
        let mut name = parts.join("/");
        if absolute {
            name = base.join("own").join(name.trim_start_matches('/')).display().to_string();
        }
        // A trailing "/" or "/." is let go here, which the host minds for a file.
        let path: PathBuf = base.join("own").join(&name).components().collect();
        let host = std::fs::read(path);
        match gate.open(OsStr::new(&name), &base.join("own")) {
            Ok(admitted) => {
                prop_assert_eq!(host.unwrap(), b"own");
                prop_assert!(admitted.folder.starts_with(base.join("own")));
            }
            Err(_) => {
                // Refused only if the host's own walk leaves the folder, or finds no file.
                let stays = host.is_ok_and(|bytes| bytes == b"own");
                let leaves = parts.iter().any(|part| part == ".." || part == "up");
                prop_assert!(!stays || leaves, "{}", name);
            }
        }
    }

    #[test]
    fn no_name_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), json in any::<bool>()) {
        let name = if json { [b"json:{\"", &bytes[..], b"}"].concat() } else { bytes };
        let _ = Name::parse(OsStr::from_bytes(&name));
    }
}
