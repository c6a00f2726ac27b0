//! What no program at hand writes, or none any more: each dialect and quirk by hand.

use std::io::{BufReader, Read};

use super::super::Reader;
use super::super::cause::Cause;
use super::builder::*;
use crate::oci::tar::header::{Header, octal, put};
use crate::oci::tar::{EntryKind, Run};
use crate::tree::{Device, Time};

fn linked(mut header: Header, target: &[u8]) -> Header {
    assert!(put(&mut header.linkname, target));
    header
}

#[test]
fn seventh_edition_has_neither_magic_nor_prefix_nor_types() {
    let mut file = v7(0, b"file", 3);
    put(&mut file.prefix, b"garbage");
    put(&mut file.devmajor, b"garbage");
    put(&mut file.uname, &[0xff; 32]);
    let tar = Tar::default()
        .member(file, b"abc")
        .member(v7(0, b"folder/", 0), b"")
        .member(linked(v7(b'1', b"hard", 0), b"file"), b"")
        .member(linked(v7(b'2', b"soft", 0), b"file"), b"");
    let members = read(&tar.end()).unwrap();
    let kinds: Vec<_> = members.iter().map(|(entry, _)| entry.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            EntryKind::File,
            EntryKind::Folder,
            EntryKind::HardLink(b"file".to_vec()),
            EntryKind::Symlink(b"file".to_vec())
        ]
    );
    let (file, stored) = &members[0];
    assert_eq!((file.path.as_slice(), stored.as_slice()), (&b"file"[..], &b"abc"[..]));
    assert_eq!((file.mode, file.uid, file.gid), (0o644, 1, 2));
    assert_eq!(file.modified, Time { seconds: 3, nanos: 0 });
    assert_eq!(file.runs, [Run { at: 0, len: 3, place: 512 }]);
}

#[test]
fn numbers_may_be_blank_or_padded_anyhow() {
    // plexus-archiver before 2.6.3: spaces all over; Perl's Archive::Tar: two zero bytes behind.
    let mut file = header(b'0', b"file", 0);
    file.uid = *b"        ";
    file.gid = *b"   17 \0\0";
    file.mode = *b"100644\0\0";
    file.mtime = *b"         12 ";
    file.size = [0; 12];
    let entry = only(Tar::default().member(file, b""));
    assert_eq!((entry.uid, entry.gid, entry.mode), (0, 0o17, 0o644));
    assert_eq!(entry.modified.seconds, 0o12);
}

#[test]
fn prefixes() {
    let mut posix = header(b'0', &[b'n'; 100], 0);
    put(&mut posix.prefix, &[b'p'; 155]);
    // star has two times behind a prefix of 131 bytes.
    let mut star = header(b'0', b"name", 0);
    put(&mut star.prefix, &[b'p'; 131]);
    star.prefix[131..143].copy_from_slice(b"07777777777 ");
    star.prefix[143..].copy_from_slice(b"07777777777 ");
    star.unused[8..].copy_from_slice(b"tar\0");
    // GNU tar has two times in its place (--incremental writes them).
    let mut times = gnu(b'0', b"name", 0);
    times.prefix[..24].copy_from_slice(b"15000000000\x0015000000000\0");
    // Go before 1.8 wrote a prefix there all the same.
    let mut old_go = gnu(b'0', b"name", 0);
    put(&mut old_go.prefix, b"folder/that/is/long/enough");
    let short = |c: char, n| c.to_string().repeat(n);
    for (header, name) in [
        (posix, format!("{}/{}", short('p', 155), short('n', 100))),
        (star, format!("{}/name", short('p', 131))),
        (times, "name".to_owned()),
        (old_go, "folder/that/is/long/enough/name".to_owned()),
    ] {
        assert_eq!(names(&Tar::default().member(header, b"").end()), [name]);
    }
}

#[test]
fn a_checksum_of_signed_bytes_counts() {
    let mut file = header(b'0', b"n\xe4me", 0);
    file.sum();
    let unsigned = file.sums().0;
    assert_eq!(file.sums().1, unsigned - 256);
    octal(&mut file.chksum[..7], (unsigned - 256).cast_unsigned());
    let tar = Tar::default().bytes(zerocopy::IntoBytes::as_bytes(&file));
    assert_eq!(names(&tar.end()), ["n\\xe4me"]);
}

#[test]
fn gnu_long_names_count_for_more_than_extended_headers_as_in_go() {
    let long = [b'l'; 300];
    let tar = Tar::default()
        .member(gnu(b'L', b"././@LongLink", 301), &[&long[..], b"\0"].concat())
        .member(gnu(b'K', b"././@LongLink", 7), b"target\0")
        .records(b'x', &[("path", b"other"), ("linkpath", b"other")])
        .member(linked(gnu(b'2', b"lll", 0), b"tar"), b"");
    let entry = only(tar);
    assert_eq!(entry.path, long);
    assert_eq!(entry.kind, EntryKind::Symlink(b"target".to_vec()));
    // An empty one says nothing; none holds for more than one member.
    let tar = Tar::default()
        .member(gnu(b'L', b"././@LongLink", 1), b"\0")
        .file(b"a", b"")
        .member(gnu(b'L', b"././@LongLink", 4), b"long")
        .file(b"b", b"")
        .file(b"c", b"");
    assert_eq!(names(&tar.end()), ["a", "long", "c"]);
}

#[test]
fn types_of_vendors() {
    let with = |flag| {
        Tar::default().file(b"a", b"a").member(gnu(flag, b"x", 600), &[b'x'; 600]).file(b"b", b"b")
    };
    // A volume's name, what Solaris knows about the next member.
    for flag in *b"VAE" {
        assert_eq!(names(&with(flag).end()), ["a", "b"], "{flag}");
    }
    // What nobody knows is a file, as POSIX says.
    for flag in *b"7Zq\x01\xff" {
        let members = read(&with(flag).end()).unwrap();
        assert_eq!(members[1].0.kind, EntryKind::File);
        assert_eq!(members[1].1, [b'x'; 600]);
        assert_eq!(members.len(), 3);
    }
    // A folder with the list of what was in it.
    let members = read(&with(b'D').end()).unwrap();
    assert_eq!((&members[1].0.kind, members[1].0.size), (&EntryKind::Folder, 0));
    assert!(members[1].1.is_empty() && members.len() == 3);
    for flag in *b"MNI" {
        assert!(
            matches!(unsupported(&with(flag).end()), Cause::Type { flag: of, .. } if of == flag)
        );
    }
    // Sparse files of star have another layout.
    let sparse = Tar::default().member(header(b'S', b"x", 0), b"").end();
    assert!(matches!(unsupported(&sparse), Cause::Type { flag: b'S', .. }));
}

#[test]
fn devices() {
    let mut device = header(b'3', b"tty", 0);
    octal(&mut device.devmajor, 4);
    octal(&mut device.devminor, 64);
    let entry = only(Tar::default().member(device.clone(), b""));
    assert_eq!(entry.kind, EntryKind::CharDevice(Device { major: 4, minor: 64 }));
    // Large ones as GNU tar and as star tell them.
    device.typeflag = b'4';
    device.devminor = *b"\x80\0\0\0\x12\x34\x56\x78";
    let entry = only(Tar::default().member(device.clone(), b""));
    assert_eq!(entry.kind, EntryKind::BlockDevice(Device { major: 4, minor: 0x1234_5678 }));
    let records: [(&str, &[u8]); 2] =
        [("SCHILY.devmajor", b"4294967295"), ("SCHILY.devminor", b"1048576")];
    let entry = only(Tar::default().records(b'x', &records).member(device, b""));
    let device = Device { major: u32::MAX, minor: 1 << 20 };
    assert_eq!(entry.kind, EntryKind::BlockDevice(device));
}

#[test]
fn binary_numbers() {
    let mut file = gnu(b'0', b"file", 0);
    file.uid = *b"\x80\0\0\0\xff\xff\xff\xfe";
    file.gid = *b"\x80\0\0\0\0\x20\0\0";
    file.mtime = [0xff; 12];
    file.size = *b"\x80\0\0\0\0\0\0\0\0\0\0\x03";
    let entry = only(Tar::default().member(file, b"abc"));
    assert_eq!((entry.uid, entry.gid, entry.size), (u32::MAX - 1, 1 << 21, 3));
    assert_eq!(entry.modified, Time { seconds: -1, nanos: 0 });
}

/// A size that octal digits have no room for, of a file without holes; the stream is made as it is read.
#[test]
fn a_file_of_more_than_8_gib() {
    const LEN: u64 = (9 << 30) + 5;
    let mut binary = gnu(b'0', b"large", 0);
    binary.size = *b"\x80\0\0\0\0\0\0\x02\x40\0\0\x05";
    let of = |start: Tar| {
        let padding = LEN.next_multiple_of(512) - LEN;
        let zeros = BufReader::with_capacity(1 << 20, std::io::repeat(0)).take(LEN + padding);
        let rest = Tar::default().file(b"behind", b"abc").end();
        let start = start.0;
        let place = start.len() as u64;
        let mut reader = Reader::new(start.as_slice().chain(zeros).chain(rest.as_slice()));
        let large = reader.next().unwrap().unwrap();
        assert_eq!((large.size, large.runs), (LEN, vec![Run { at: 0, len: LEN, place }]));
        let behind = reader.next().unwrap().unwrap();
        let place = place + LEN + padding + 512;
        assert_eq!(
            (behind.path, behind.runs),
            (b"behind".to_vec(), vec![Run { at: 0, len: 3, place }])
        );
        assert_eq!(reader.next().unwrap(), None);
    };
    of(Tar::default().member(binary, b""));
    let said = LEN.to_string();
    of(Tar::default()
        .records(b'x', &[("size", said.as_bytes())])
        .member(header(b'0', b"large", 0), b""));
}

#[test]
fn extended_headers_say_it_in_place_of_the_header() {
    let records: [(&str, &[u8]); 9] = [
        ("path", b"p\xffath"),
        ("uid", b"4294967295"),
        ("gid", b"70000"),
        ("mtime", b"-1.25"),
        ("size", b"3"),
        ("hdrcharset", b"BINARY"),
        ("atime", b"no time"),
        ("VENDOR.key", b"line\nfeed\0=="),
        ("comment", b""),
    ];
    let mut file = header(b'0', b"name", 0);
    // What is told otherwise may be anything.
    file.uid = *b"nonsense";
    file.mtime = *b"nonsense....";
    for flag in *b"xX" {
        let tar =
            Tar::default().records(flag, &records).member(file.clone(), b"abc").file(b"b", b"");
        let members = read(&tar.end()).unwrap();
        let (entry, stored) = &members[0];
        assert_eq!((entry.path.as_slice(), stored.as_slice()), (&b"p\xffath"[..], &b"abc"[..]));
        assert_eq!((entry.uid, entry.gid), (u32::MAX, 70_000));
        assert_eq!(entry.modified, Time { seconds: -2, nanos: 750_000_000 });
        assert_eq!(members[1].0.path, b"b");
        assert_eq!(members[1].0.uid, 1);
    }
}

/// Readers that took the header's size where another was told have been made to see members that
/// others did not.
#[test]
fn the_size_of_an_extended_header_holds_everywhere() {
    let inner = Tar::default().file(b"smuggled", b"").0;
    // The header says 0, and that the next is a header: it is contents.
    let hidden = Tar::default()
        .records(b'x', &[("size", b"512")])
        .member(header(b'0', b"outer", 0), &inner)
        .file(b"last", b"");
    assert_eq!(names(&hidden.end()), ["outer", "last"]);
    // The header says 512 of contents: there are none.
    let shown = Tar::default()
        .records(b'x', &[("size", b"0")])
        .member(header(b'0', b"outer", 512), &inner)
        .file(b"last", b"");
    assert_eq!(names(&shown.end()), ["outer", "smuggled", "last"]);
    // Nor is it the size of other headers on the way.
    let between = Tar::default()
        .records(b'x', &[("size", b"512"), ("gid", b"9")])
        .member(gnu(b'L', b"././@LongLink", 4), b"long")
        .member(header(b'0', b"outer", 0), &inner);
    assert_eq!(names(&between.end()), ["long"]);
    // Nor of what has no contents.
    let folder = Tar::default()
        .records(b'x', &[("size", b"512")])
        .member(header(b'5', b"folder/", 512), b"")
        .file(b"last", b"");
    assert_eq!(names(&folder.end()), ["folder/", "last"]);
}

#[test]
fn of_two_extended_headers_the_last_holds() {
    let tar = Tar::default()
        .records(b'x', &[("path", b"first"), ("uid", b"7")])
        .records(b'x', &[("path", b"second")])
        .file(b"name", b"");
    let entry = only(tar);
    assert_eq!((entry.path.as_slice(), entry.uid), (&b"second"[..], 1));
}

#[test]
fn what_holds_for_all_members() {
    let tar = Tar::default()
        .records(b'g', &[("uid", b"7"), ("gid", b"8"), ("mtime", b"9.5"), ("comment", b"c")])
        .file(b"a", b"")
        .records(b'x', &[("uid", b"70"), ("mtime", b"")])
        // A header for all does not end what was said about the next.
        .records(b'g', &[("gid", b"")])
        .file(b"b", b"")
        .file(b"c", b"");
    let members = read(&tar.end()).unwrap();
    let seen: Vec<_> = members
        .iter()
        .map(|(entry, _)| (entry.uid, entry.gid, entry.modified.seconds, entry.modified.nanos))
        .collect();
    // The second member's own header holds again where a value was deleted.
    assert_eq!(seen, [(7, 8, 9, 500_000_000), (70, 2, 3, 0), (7, 2, 9, 500_000_000)]);
    // A tar of such a header alone is empty, as of a repository without files.
    assert!(read(&Tar::default().records(b'g', &[("comment", b"c")]).end()).unwrap().is_empty());
}

#[test]
fn attributes() {
    let records: [(&str, &[u8]); 8] = [
        ("SCHILY.xattr.user.raw", b"\0\n=\xff"),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.user.a%3Db%25", b"escaped"),
        ("LIBARCHIVE.xattr.user.b%20c", b"AP8="),
        ("LIBARCHIVE.xattr.user.raw", b"YWdhaW4"),
        ("RHT.security.selinux", b"system_u:object_r:t:s0"),
        ("SCHILY.acl.access", b"user::rw-,user:lisa:rwx:502,group::r--,mask::r--,other::---"),
        ("SCHILY.acl.default", b"user::rw-\ngroup::r--\nother::---\n"),
    ];
    let entry = only(Tar::default().records(b'x', &records).file(b"file", b""));
    let text = |(name, value): &(Vec<u8>, Vec<u8>)| {
        format!("{}={}", name.escape_ascii(), value.escape_ascii())
    };
    let all: Vec<_> = entry.xattrs.iter().map(text).collect();
    let undefined = "\\xff\\xff\\xff\\xff";
    assert_eq!(
        all,
        [
            format!(
                "system.posix_acl_access=\\x02\\x00\\x00\\x00\\x01\\x00\\x06\\x00{undefined}\
                 \\x02\\x00\\x07\\x00\\xf6\\x01\\x00\\x00\\x04\\x00\\x04\\x00{undefined}\
                 \\x10\\x00\\x04\\x00{undefined} \\x00\\x00\\x00{undefined}"
            ),
            format!(
                "system.posix_acl_default=\\x02\\x00\\x00\\x00\\x01\\x00\\x06\\x00{undefined}\
                 \\x04\\x00\\x04\\x00{undefined} \\x00\\x00\\x00{undefined}"
            ),
            "user.empty=".to_owned(),
            "user.a=b%=escaped".to_owned(),
            "user.b c=\\x00\\xff".to_owned(),
            "user.raw=again".to_owned(),
            "security.selinux=system_u:object_r:t:s0".to_owned(),
        ]
    );
    // A list in the kernel's own form says more than its text.
    let raw = [records[6], ("SCHILY.xattr.system.posix_acl_access", b"raw")];
    let entry = only(Tar::default().records(b'x', &raw).file(b"file", b""));
    assert_eq!(entry.xattrs, [(b"system.posix_acl_access".to_vec(), b"raw".to_vec())]);
}

/// libarchive before 3.8 puts the name as in a URL into both of its records: bsdtar 3.6 unpacks two
/// attributes, GNU tar the wrong one. The name is what libarchive's own record says.
#[test]
fn a_name_escaped_in_both_forms_is_one_attribute() {
    let names = |records: &[(&str, &[u8])]| {
        let entry = only(Tar::default().records(b'x', records).file(b"file", b""));
        let names = entry.xattrs.iter().map(|(name, _)| name.escape_ascii().to_string());
        names.collect::<Vec<_>>()
    };
    let star: (&str, &[u8]) = ("SCHILY.xattr.user.a%20b%3Dc", b"v");
    let libarchive: (&str, &[u8]) = ("LIBARCHIVE.xattr.user.a%20b%3Dc", b"dg");
    assert_eq!(names(&[libarchive, star]), ["user.a b=c"]);
    assert_eq!(names(&[star, libarchive]), ["user.a b=c"]);
    // Alone it is as GNU tar has it, and with another value another attribute.
    assert_eq!(names(&[star]), ["user.a%20b=c"]);
    assert_eq!(names(&[libarchive, (star.0, b"w")]), ["user.a b=c", "user.a%20b=c"]);
    // As libarchive writes them since: each in its own way.
    assert_eq!(
        names(&[("LIBARCHIVE.xattr.user.a%20b", b"dg"), ("SCHILY.xattr.user.a b", b"v")]),
        ["user.a b"]
    );
}

#[test]
fn a_link_that_claims_contents_has_them_or_not() {
    let link = |size| linked(header(b'1', b"link", size), b"a");
    // Old programs wrote the size of the file, and no contents.
    let without = Tar::default().file(b"a", &[b'a'; 700]).member(link(700), b"").file(b"b", b"");
    assert_eq!(names(&without.end()), ["a", "link", "b"]);
    // POSIX permits them in pax.
    for len in [1, 511, 512, 513, 1024, 5000] {
        let with = Tar::default().member(link(len), &vec![b'a'; len as usize]).file(b"b", b"b");
        let members = read(&with.end()).unwrap();
        assert_eq!(members[0].0.kind, EntryKind::HardLink(b"a".to_vec()));
        assert_eq!((members[0].0.size, members[1].1.as_slice()), (0, &b"b"[..]), "{len}");
    }
    assert_eq!(names(&Tar::default().member(link(700), b"").end()), ["link"]);
}

#[test]
fn solaris_tells_holes_and_stores_them() {
    let tar = Tar::default()
        .records(b'x', &[("SUN.holesdata", b" 0 512 1024 1536")])
        .file(b"hole", &[b'x'; 1536]);
    let entry = only(tar);
    assert_eq!(entry.runs, [Run { at: 0, len: 1536, place: 1536 }]);
}

#[test]
fn ends() {
    let file = Tar::default().file(b"a", b"abc").0;
    let zeros = [0; 512];
    // As it should be; one block; none; garbage behind; a tar behind.
    for end in [
        &[0; 1024][..],
        &zeros,
        b"",
        &[&[0; 1024], &[b'g'; 700][..]].concat(),
        &[&[0; 1024], &file[..]].concat(),
    ] {
        assert_eq!(names(&[&file, end].concat()), ["a"], "{} bytes", end.len());
    }
    assert_eq!(names(&[&file, &zeros[..], &[b'g'; 512]].concat()), ["a"]);
    // Nothing at all.
    assert!(read(b"").unwrap().is_empty());
    // The last block is not filled, as some programs leave it: nothing is lost.
    assert_eq!(names(&file[..512 + 3]), ["a"]);
}
