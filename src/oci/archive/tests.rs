use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::block::{FileSource, MemorySource};

/// A tar of `names` in `dir`, by GNU tar.
pub(in crate::oci) fn tar(dir: &Path, to: &Path, names: &[&str]) {
    tar_with(dir, to, &["--format=gnu"], names);
}

fn tar_with(dir: &Path, to: &Path, options: &[&str], names: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(options).arg("-cf").arg(to).arg("-C").arg(dir).args(names);
    assert!(tar.status().expect("tar is missing: apt-get install -y tar").success());
}

fn contents(archive: &Archive, name: &str) -> Option<Vec<u8>> {
    let window = archive.get(name).unwrap()?;
    let mut bytes = vec![0; window.len() as usize];
    window.read_at(0, &mut bytes).unwrap();
    Some(bytes)
}

fn memory(bytes: Vec<u8>) -> Result<Archive> {
    Archive::open(Arc::new(MemorySource::new(bytes)))
}

#[test]
fn members_of_every_dialect_are_found_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    // Beyond what a name field holds, and beyond what a name and a prefix do.
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let longer = ["e".repeat(150), "g".repeat(150), "h".repeat(20)].join("/");
    for (name, text) in [("a", "first"), ("b/c", "second"), (&long, "third"), (&longer, "")] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text.repeat(1000)).unwrap();
    }
    fs::hard_link(dir.path().join("a"), dir.path().join("hard")).unwrap();
    std::os::unix::fs::symlink("../a", dir.path().join("b/soft")).unwrap();
    std::os::unix::fs::symlink(&long, dir.path().join("far")).unwrap();
    std::os::unix::fs::symlink("../../../../etc/passwd", dir.path().join("out")).unwrap();
    let formats: [(&str, &[&str]); 4] = [
        ("gnu", &["a", "hard", "b", &long, &longer, "far", "out"]),
        ("pax", &["./a", "./hard", "./b", &long, &longer, "far", "out"]),
        ("oldgnu", &["a", "hard", "b", &long, &longer, "far", "out"]),
        ("ustar", &["a", "hard", "b", "out"]),
    ];
    for (format, names) in formats {
        let to = dir.path().join("to.tar");
        tar_with(dir.path(), &to, &[&format!("--format={format}")], names);
        let archive = Archive::open(Arc::new(FileSource::open(&to).unwrap())).unwrap();
        let first = Some("first".repeat(1000).into_bytes());
        for name in ["a", "./a", "hard", "b/soft", "b//c/../../a"] {
            let wanted = if name.contains("..") { None } else { first.clone() };
            assert_eq!(contents(&archive, name), wanted, "{format}: {name}");
        }
        assert_eq!(contents(&archive, "b/c"), Some("second".repeat(1000).into_bytes()));
        // Of this archive, not of the host.
        assert_eq!(contents(&archive, "out"), None);
        assert_eq!(contents(&archive, "b"), None);
        if format != "ustar" {
            let third = Some("third".repeat(1000).into_bytes());
            assert_eq!(contents(&archive, &long), third, "{format}");
            assert_eq!(contents(&archive, "far"), third, "{format}");
            assert_eq!(contents(&archive, &longer), Some(vec![]), "{format}");
        }
    }
}

#[test]
fn contents_are_passed_over() {
    // 40 GB of holes: reading them would take a minute.
    let dir = tempfile::tempdir().unwrap();
    let big = dir.path().join("big.tar");
    let mut header = vec![0; BLOCK];
    header[..3].copy_from_slice(b"big");
    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
    sum(&mut header);
    fs::write(&big, &header).unwrap();
    let mut last = vec![0; BLOCK];
    last[..4].copy_from_slice(b"last");
    last[124..136].copy_from_slice(b"00000000001\0");
    sum(&mut last);
    let file = fs::OpenOptions::new().write(true).open(&big).unwrap();
    let at = BLOCK as u64 + (10 << 32);
    std::os::unix::fs::FileExt::write_all_at(&file, &last, at).unwrap();
    file.set_len(at + 2048).unwrap();
    let archive = Archive::open(Arc::new(FileSource::open(&big).unwrap())).unwrap();
    assert_eq!(archive.get("big").unwrap().unwrap().len(), 10 << 32);
    assert_eq!(contents(&archive, "last"), Some(vec![0]));
}

fn sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A member with this type and size field, and so many blocks behind it.
fn member(name: &str, typeflag: u8, size: &[u8], blocks: usize) -> Vec<u8> {
    let mut header = vec![0; BLOCK];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[124..124 + size.len()].copy_from_slice(size);
    header[156] = typeflag;
    sum(&mut header);
    header.resize(BLOCK * (1 + blocks), 0);
    header
}

#[test]
fn what_is_no_tar_says_why() {
    let cases: [(Vec<u8>, Cause); 6] = [
        (vec![7; 1024], Cause::ArchiveHeader { at: 0, why: "is none of a tar" }),
        (
            [member("a", b'0', b"00000000000\0", 0), vec![7; 512]].concat(),
            Cause::ArchiveHeader { at: 512, why: "does not add up" },
        ),
        (member("a", b'0', b"00000001001\0", 1), Cause::ArchiveCut { at: 0, len: 513, room: 512 }),
        (
            member("a", b'0', &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], 1),
            Cause::ArchiveCut { at: 0, len: u64::MAX, room: 512 },
        ),
        (
            member("a", b'0', &[0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1),
            Cause::ArchiveHeader { at: 0, why: "has a size that is none" },
        ),
        (
            [member("a", b'L', b"00010000000\0", 0), vec![0; 3 << 20]].concat(),
            Cause::ArchiveHeader { at: 0, why: "claims more than 1 MiB of names" },
        ),
    ];
    for (bytes, cause) in cases {
        assert_eq!(memory(bytes).unwrap_err().cause(), Some(&cause));
    }
    let gzip = memory(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]).unwrap_err();
    assert_eq!(gzip.cause(), Some(&Cause::ArchiveCompressed("gzip")));
}

#[test]
fn links_that_go_round_and_sparse_members_are_errors() {
    let mut link = member("a", b'2', b"", 0);
    link[157] = b'a';
    sum(&mut link);
    let archive = memory(link).unwrap();
    let error = archive.get("a").unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::ArchiveLinks("a".into())));
    let archive = memory(member("s", b'S', b"00000000000\0", 0)).unwrap();
    assert_eq!(archive.get("s").unwrap_err().cause(), Some(&Cause::ArchiveSparse("s".into())));
}

#[test]
fn names_that_leave_the_archive_are_nobodys() {
    let bytes = [
        member("../a", b'0', b"00000000000\0", 0),
        member("x/../a", b'0', b"00000000000\0", 0),
        member("/b", b'0', b"00000000000\0", 0),
    ];
    let archive = memory(bytes.concat()).unwrap();
    assert!(archive.get("a").unwrap().is_none());
    assert!(archive.get("../a").unwrap().is_none());
    assert!(archive.get("b").unwrap().is_some());
}

#[test]
fn a_size_in_an_extended_header_is_the_size() {
    let records = b"13 size=1024\n";
    let mut extended = member("x", b'x', b"00000000015\0", 1);
    extended[BLOCK..BLOCK + records.len()].copy_from_slice(records);
    let bytes =
        [extended, member("a", b'0', b"00000000001\0", 2), member("b", b'0', b"00000000000\0", 0)];
    let archive = memory(bytes.concat()).unwrap();
    assert_eq!(archive.get("a").unwrap().unwrap().len(), 1024);
    assert!(archive.get("b").unwrap().is_some());
}

/// As the reader of layers has it: an archive must not hold one image for us and another for who unpacks it.
#[test]
fn of_several_headers_the_same_counts_as_for_a_layer() {
    let with = |typeflag: u8, contents: &[u8]| {
        let mut header = member("x", typeflag, format!("{:011o}\0", contents.len()).as_bytes(), 1);
        header[BLOCK..BLOCK + contents.len()].copy_from_slice(contents);
        header
    };
    let file = member("plain", b'0', b"00000000000\0", 0);
    let (long, first, second) =
        (with(b'L', b"long\0"), with(b'x', b"14 path=first\n"), with(b'x', b"15 path=second\n"));
    for (headers, name) in [
        ([&long, &first], "long"),
        ([&first, &long], "long"),
        ([&first, &second], "second"),
        ([&second, &with(b'x', b"9 uid=10\n")], "plain"),
        ([&with(b'X', b"14 path=first\n"), &vec![]], "first"),
    ] {
        let bytes = [headers[0], headers[1], &file, &member("next", b'0', b"00000000000\0", 0)];
        let bytes = bytes.map(Vec::as_slice).concat();
        let archive = memory(bytes.clone()).unwrap();
        let mut reader = crate::oci::tar::Reader::new(&*bytes);
        for wanted in [name, "next"] {
            assert_eq!(reader.next().unwrap().unwrap().path, wanted.as_bytes());
            assert!(archive.get(wanted).unwrap().is_some(), "{wanted}");
        }
        assert_eq!(archive.members.len(), 2);
    }
}
