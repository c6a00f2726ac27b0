//! What an image may make us open, by whole chains.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use stratafs::error::{Error, Kind};
use stratafs::image::Format;
use stratafs::open::{Disk, Opener};
use stratafs::policy::Policy;

use crate::compare::*;
use crate::support::qemu_img;

/// An image that names `backing`, whatever that is; QEMU does not look at it.
fn names(bench: &Bench, image: &str, backing: &str, format: Option<&str>) {
    let path = bench.path(image);
    let mut args = vec!["create", "-q", "-f", "qcow2", "-u", "-b", backing];
    // QEMU insists on a format; what is written is taken out again below.
    args.extend(["-F", format.unwrap_or("qcow2"), path.to_str().unwrap(), "1M"]);
    qemu_img(args);
    if format.is_none() {
        let mut bytes = fs::read(&path).unwrap();
        let magic = 0xe279_2aca_u32.to_be_bytes();
        let at = bytes.windows(4).position(|window| window == magic).unwrap();
        bytes[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
        fs::write(&path, bytes).unwrap();
    }
}

fn open_with(bench: &Bench, image: &str, change: impl FnOnce(&mut Policy)) -> Result<Disk, Error> {
    let mut policy = Policy::default();
    change(&mut policy);
    opener_with(policy).disk(&bench.path(image).as_path().into())
}

#[track_caller]
fn refused(bench: &Bench, image: &str) -> Error {
    let error = open_with(bench, image, |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused, "{error}");
    error
}

/// The folder of the image, with `vm` in it that holds the image, and `outside` beside that.
fn layout() -> Bench {
    let bench = Bench::new();
    fs::create_dir_all(bench.path("vm/base")).unwrap();
    fs::create_dir_all(bench.path("outside")).unwrap();
    for name in ["vm/base/b.raw", "vm/a.raw", "outside/secret.raw"] {
        fs::write(bench.path(name), vec![name.len() as u8; 1 << 20]).unwrap();
    }
    bench
}

#[test]
fn files_of_the_own_folder_tree_open() {
    let bench = layout();
    for name in ["a.raw", "./a.raw", "base/b.raw", "base/../a.raw", "../vm/a.raw"] {
        names(&bench, "vm/top.qcow2", name, Some("raw"));
        let disk = open_with(&bench, "vm/top.qcow2", |_| {}).unwrap();
        assert_eq!(disk.chain.len(), 2, "{name}");
        let absolute = bench.path("vm").join(name);
        names(&bench, "vm/top.qcow2", absolute.to_str().unwrap(), Some("raw"));
        open_with(&bench, "vm/top.qcow2", |_| {}).unwrap();
    }
    // An image in a folder below names what is beside it, and what is above it in the tree.
    names(&bench, "vm/base/middle.qcow2", "../a.raw", Some("raw"));
    names(&bench, "vm/top.qcow2", "base/middle.qcow2", Some("qcow2"));
    assert_eq!(open_with(&bench, "vm/top.qcow2", |_| {}).unwrap().chain.len(), 3);
}

#[test]
fn files_outside_are_refused_whether_or_not_they_are_there() {
    let bench = layout();
    let secret = bench.path("outside/secret.raw");
    let nothing = bench.path("outside/nothing.raw");
    let mut messages = Vec::new();
    for path in [&secret, &nothing] {
        names(&bench, "vm/top.qcow2", path.to_str().unwrap(), Some("raw"));
        let error = refused(&bench, "vm/top.qcow2");
        assert!(error.hint().unwrap().contains("--allow-path"), "{:?}", error.hint());
        messages.push(error.to_string().replace("secret", "nothing"));
    }
    assert_eq!(messages[0], messages[1]);
    for name in ["/etc/passwd", "../outside/secret.raw", "base/../../outside/secret.raw", "/", ".."]
    {
        names(&bench, "vm/top.qcow2", name, Some("raw"));
        refused(&bench, "vm/top.qcow2");
    }
    names(&bench, "vm/top.qcow2", secret.to_str().unwrap(), Some("raw"));
    let outside = bench.path("outside");
    open_with(&bench, "vm/top.qcow2", |policy| policy.allow_paths.push(outside)).unwrap();
    open_with(&bench, "vm/top.qcow2", |policy| policy.allow_paths.push(secret)).unwrap();
    // What is allowed is the folder named, not one whose name begins like it.
    fs::create_dir(bench.path("vm2")).unwrap();
    fs::write(bench.path("vm2/x.raw"), [0; 512]).unwrap();
    names(&bench, "vm/top.qcow2", bench.path("vm2/x.raw").to_str().unwrap(), Some("raw"));
    refused(&bench, "vm/top.qcow2");
}

#[test]
fn links_are_followed_to_what_is_allowed_only() {
    let bench = layout();
    let link = |target: &Path, name: &str| symlink(target, bench.path(name)).unwrap();
    link(Path::new("base/b.raw"), "vm/inside");
    link(&bench.path("vm/base"), "vm/absolute");
    link(&bench.path("outside/secret.raw"), "vm/out");
    link(Path::new("../outside"), "vm/outdir");
    link(Path::new("loop2"), "vm/loop1");
    link(Path::new("loop1"), "vm/loop2");
    for name in ["inside", "absolute/b.raw", "absolute/../a.raw"] {
        names(&bench, "vm/top.qcow2", name, Some("raw"));
        open_with(&bench, "vm/top.qcow2", |_| {}).unwrap();
    }
    for name in ["out", "outdir/secret.raw", "outdir/nothing.raw", "loop1"] {
        names(&bench, "vm/top.qcow2", name, Some("raw"));
        refused(&bench, "vm/top.qcow2");
    }
    // The image itself may be a link: its own folder is where it really is, too.
    fs::create_dir(bench.path("links")).unwrap();
    names(&bench, "vm/top.qcow2", bench.path("vm/a.raw").to_str().unwrap(), Some("raw"));
    link(&bench.path("vm/top.qcow2"), "links/top.qcow2");
    open_with(&bench, "links/top.qcow2", |_| {}).unwrap();
    // And so may its folder be, by whatever name it is called.
    link(&bench.path("vm"), "other");
    names(&bench, "vm/top.qcow2", bench.path("other/a.raw").to_str().unwrap(), Some("raw"));
    open_with(&bench, "other/top.qcow2", |_| {}).unwrap();
}

#[test]
fn names_that_are_more_than_files_are_refused() {
    let bench = layout();
    let cases = [
        ("nbd://localhost/disk", "protocol \"nbd\""),
        ("nbd:unix:/run/socket", "protocol \"nbd\""),
        ("https://example.org/disk.qcow2", "protocol \"https\""),
        ("fat:rw:/etc", "protocol \"fat\""),
        ("rbd:pool/disk", "protocol \"rbd\""),
        ("host_device:/dev/sda", "protocol \"host_device\""),
        (r"\\server\share\disk.raw", "UNC"),
        (r#"json:{"driver":"nbd","host":"localhost"}"#, "\"host\""),
        (r#"json:{"driver":"raw","file":{"driver":"https","url":"x"}}"#, "\"file.url\""),
        (r#"json:{"driver":"raw","file":{"driver":"nbd"}}"#, "driver \"nbd\""),
        (r#"json:{"driver":"raw","offset":512,"file.filename":"a.raw"}"#, "\"offset\""),
        (
            r#"json:{"driver":"qcow2","file.filename":"a.raw","backing":{"file.filename":"/etc/passwd"}}"#,
            "\"backing.file.filename\"",
        ),
        (r#"json:{"driver":"raw","file.filename":"/etc/passwd"}"#, "outside"),
        (r#"json:{"driver":"qcow2","file":"node"}"#, "\"file\""),
        (r#"json:[1]"#, "no JSON object"),
        (r#"json:{}"#, "without a file name"),
        ("file:", "empty"),
    ];
    for (name, why) in cases {
        names(&bench, "vm/top.qcow2", name, Some("raw"));
        let error = refused(&bench, "vm/top.qcow2");
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}

#[test]
fn devices_fifos_and_folders_are_no_backing_files() {
    let bench = layout();
    crate::support::run(crate::support::tool("mkfifo", "coreutils").arg(bench.path("vm/fifo")));
    names(&bench, "vm/top.qcow2", "fifo", Some("raw"));
    refused(&bench, "vm/top.qcow2");
    symlink("/dev/zero", bench.path("vm/zero")).unwrap();
    names(&bench, "vm/top.qcow2", "zero", Some("raw"));
    refused(&bench, "vm/top.qcow2");
    let allowed =
        open_with(&bench, "vm/top.qcow2", |policy| policy.allow_paths.push("/dev".into()));
    let error = allowed.unwrap_err();
    assert!(error.to_string().contains("is a device"), "{error}");
    names(&bench, "vm/top.qcow2", "base", Some("raw"));
    assert_eq!(open_with(&bench, "vm/top.qcow2", |_| {}).unwrap_err().kind(), Kind::IsADirectory);
}

#[test]
fn no_backing_means_none() {
    let bench = layout();
    names(&bench, "vm/top.qcow2", "a.raw", Some("raw"));
    let closed = open_with(&bench, "vm/top.qcow2", |policy| policy.no_backing = true);
    assert_eq!(closed.unwrap_err().kind(), Kind::Refused);
    let alone = bench.create("vm/alone.qcow2", "1M", "");
    let disk = open_with(&bench, "vm/alone.qcow2", |policy| policy.no_backing = true).unwrap();
    assert_eq!(disk.chain[0].path, alone);
}

#[test]
fn data_files_are_under_the_same_policy() {
    let bench = layout();
    let secret = bench.path("outside/secret.raw");
    let copy = bench.path("outside/copy.raw");
    fs::copy(&secret, &copy).unwrap();
    bench.create("vm/top.qcow2", "1M", &format!("data_file={},data_file_raw=on", copy.display()));
    let error = refused(&bench, "vm/top.qcow2");
    assert!(error.to_string().contains("data file"), "{error}");
    let outside = bench.path("outside");
    open_with(&bench, "vm/top.qcow2", |policy| policy.allow_paths.push(outside)).unwrap();
}

/// A raw disk whose owner wrote a qcow2 header into it, naming a host file.
#[test]
fn raw_contents_do_not_become_another_format() {
    let bench = layout();
    names(&bench, "vm/guest.raw", "/etc/passwd", Some("raw"));
    names(&bench, "vm/top.qcow2", "guest.raw", None);
    let error = refused(&bench, "vm/top.qcow2");
    assert!(error.to_string().contains("looks like qcow2"), "{error}");
    assert!(error.hint().unwrap().contains("--backing-format"), "{:?}", error.hint());
    // Declared raw, it is the bytes of the header.
    names(&bench, "vm/top.qcow2", "guest.raw", Some("raw"));
    let disk = open_with(&bench, "vm/top.qcow2", |_| {}).unwrap();
    let mut head = [0; 4];
    disk.source.read_at(0, &mut head).unwrap();
    assert_eq!(head, *b"QFI\xfb");
    // Said to be qcow2 by the person, it is one, and what it names is refused all the same.
    names(&bench, "vm/top.qcow2", "guest.raw", None);
    let said = open_with(&bench, "vm/top.qcow2", |p| p.backing_format = Some(Format::Qcow2));
    let error = said.unwrap_err();
    assert!(error.to_string().contains("/etc/passwd"), "{error}");
    // Undeclared and without a signature: raw.
    names(&bench, "vm/top.qcow2", "a.raw", None);
    assert_eq!(open_with(&bench, "vm/top.qcow2", |_| {}).unwrap().chain[1].format, Format::Raw);
    // A format that cannot be opened is not read as another one.
    names(&bench, "vm/top.qcow2", "a.raw", Some("vmdk"));
    let error = open_with(&bench, "vm/top.qcow2", |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[test]
fn cycles_and_depth() {
    let bench = layout();
    names(&bench, "vm/self.qcow2", "self.qcow2", Some("qcow2"));
    let error = open_with(&bench, "vm/self.qcow2", |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("its own backing file"), "{error}");
    names(&bench, "vm/a.qcow2", "b.qcow2", Some("qcow2"));
    names(&bench, "vm/b.qcow2", "linked.qcow2", Some("qcow2"));
    symlink("a.qcow2", bench.path("vm/linked.qcow2")).unwrap();
    assert_eq!(open_with(&bench, "vm/a.qcow2", |_| {}).unwrap_err().kind(), Kind::Corrupt);

    names(&bench, "vm/0.qcow2", "a.raw", Some("raw"));
    for number in 1..=12 {
        let below = format!("{}.qcow2", number - 1);
        names(&bench, &format!("vm/{number}.qcow2"), &below, Some("qcow2"));
    }
    let disk = open_with(&bench, "vm/12.qcow2", |policy| policy.max_depth = 14).unwrap();
    assert_eq!(disk.chain.len(), 14);
    let deep = open_with(&bench, "vm/12.qcow2", |policy| policy.max_depth = 13).unwrap_err();
    assert_eq!(deep.kind(), Kind::Refused);
    assert!(deep.to_string().contains("more than 13 images"), "{deep}");
}

/// As deep as a chain may be, made without `qemu-img`: it would take minutes.
#[test]
fn the_deepest_chain_and_one_deeper() {
    let bench = layout();
    fs::write(bench.path("vm/000.qcow2"), fs::read(bench.create("x", "1M", "")).unwrap()).unwrap();
    bench.io(&bench.path("vm/000.qcow2"), &["write -q -P 5 64k 64k".to_owned()]);
    names(&bench, "vm/001.qcow2", "000.qcow2", Some("qcow2"));
    let mut bytes = fs::read(bench.path("vm/001.qcow2")).unwrap();
    let at = bytes.windows(9).position(|window| window == b"000.qcow2").unwrap();
    for number in 2..=512 {
        bytes[at..at + 3].copy_from_slice(format!("{:03}", number - 1).as_bytes());
        fs::write(bench.path(&format!("vm/{number:03}.qcow2")), &bytes).unwrap();
    }
    let disk = open_with(&bench, "vm/511.qcow2", |_| {}).unwrap();
    assert_eq!(disk.chain.len(), 512);
    let mut buf = [0; 4096];
    disk.source.read_at(65536, &mut buf).unwrap();
    assert_eq!(buf, [5; 4096]);
    let error = open_with(&bench, "vm/512.qcow2", |_| {}).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
}

#[test]
fn names_that_are_not_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let bench = layout();
    names(&bench, "vm/top.qcow2", "Xase.raw", Some("raw"));
    let path = bench.path("vm/top.qcow2");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"Xase.raw").unwrap();
    bytes[at] = 0xe4;
    fs::write(&path, &bytes).unwrap();
    fs::copy(bench.path("vm/a.raw"), bench.path("vm").join(OsStr::from_bytes(b"\xe4ase.raw")))
        .unwrap();
    let opener: Opener = opener();
    assert_eq!(opener.disk(&path.as_path().into()).unwrap().chain.len(), 2);
    bytes[at] = 0;
    fs::write(&path, &bytes).unwrap();
    let error = opener.disk(&path.as_path().into()).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("NUL"), "{error}");
}
