//! What no program writes: each with its exact cause.

use std::io::{self, BufRead, BufReader, Read};

use super::super::cause::{Cause, SparseFault};
use super::super::{EXTENDED_LIMIT, NAME_LIMIT, Reader};
use super::builder::*;
use crate::error::{Error, Kind};
use crate::oci::tar::header::Header;

/// A GNU sparse header of `size` bytes with `stored` of them, in these pieces.
fn sparse(size: u64, stored: u64, pieces: &[(u64, u64)]) -> Header {
    let mut header = gnu(b'S', b"sparse", stored);
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut header);
    bytes[483..495].copy_from_slice(format!("{size:011o}\0").as_bytes());
    for (at, (start, len)) in pieces.iter().enumerate() {
        let text = format!("{start:011o}\0{len:011o}\0");
        bytes[386 + at * 24..][..24].copy_from_slice(text.as_bytes());
    }
    header
}

/// A sparse file of form 1.0 with that map.
fn inline(realsize: &str, map: &str, data: &[u8]) -> Vec<u8> {
    let contents = Tar::default().bytes(map.as_bytes()).bytes(data).0;
    Tar::default()
        .records(
            b'x',
            &[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"name"),
                ("GNU.sparse.realsize", realsize.as_bytes()),
            ],
        )
        .file(b"GNUSparseFile.1/name", &contents)
        .end()
}

#[test]
fn a_tar_cut_anywhere() {
    let whole = Tar::default()
        .file(b"a", &[b'a'; 700])
        .records(b'x', &[("path", &[b'p'; 600])])
        .file(b"b", &[b'b'; 512])
        .member(gnu(b'L', b"././@LongLink", 600), &[b'l'; 600])
        .member(sparse(2000, 100, &[(500, 100)]), &[b's'; 100]);
    let whole = whole.0;
    // A member ends at these, and no header for another has begun.
    let ends = [0, 3 * 512, 8 * 512, whole.len()];
    // The contents are whole at these.
    let unfilled = [512 + 700, whole.len() - 412];
    for cut in 0..=whole.len() {
        let part = &whole[..cut];
        if ends.contains(&cut) || unfilled.contains(&cut) {
            let all = names(&whole);
            let some = names(part);
            assert_eq!(some, all[..some.len()], "cut at {cut:#x}");
            continue;
        }
        match cause(part) {
            Cause::Cut { at, .. } => assert_eq!(at, cut as u64),
            // Behind a header about the next.
            Cause::Dangling => assert!([6 * 512, 11 * 512].contains(&cut), "cut at {cut:#x}"),
            other => panic!("cut at {cut:#x}: {other}"),
        }
    }
}

#[test]
fn what_is_cut_is_told() {
    let whole = Tar::default().file(b"a", &[b'a'; 700]).0;
    for (cut, what) in [
        (100, "a header"),
        (600, "the contents of a member"),
        (512 + 800, "the padding after the contents of a member"),
    ] {
        assert_eq!(cause(&whole[..cut]), Cause::Cut { what, at: cut as u64 });
    }
    let text = read(&whole[..100]).unwrap_err().to_string();
    assert_eq!(text, "member at 0x0: the tar ends at 0x64, within a header (corrupt image)");
}

#[test]
fn headers_about_nothing() {
    for flag in *b"LK" {
        assert_eq!(cause(&Tar::default().member(gnu(flag, b"x", 1), b"l").end()), Cause::Dangling);
        assert_eq!(cause(&Tar::default().member(gnu(flag, b"x", 1), b"l").0), Cause::Dangling);
    }
    let records = Tar::default().records(b'x', &[("uid", b"1")]);
    assert_eq!(cause(&records.clone().end()), Cause::Dangling);
    // However many there are.
    let mut many = Tar::default();
    for _ in 0..10_000 {
        many = many.bytes(&records.0);
    }
    assert_eq!(cause(&many.0), Cause::Dangling);
}

#[test]
fn a_block_of_zeros_among_members() {
    let tar = Tar::default().file(b"a", b"").bytes(&[0; 512]).file(b"b", b"");
    assert_eq!(cause(&tar.end()), Cause::LoneZeros);
    // The contents of a link begin with zeros: they are not the end.
    let link = Tar::default().member(header(b'1', b"l", 1024), &[[0; 512], [b'x'; 512]].concat());
    assert_eq!(cause(&link.end()), Cause::LoneZeros);
}

#[test]
fn checksums() {
    let good = Tar::default().file(b"a", b"").end();
    for at in [0, 100, 124, 148, 156, 257, 511] {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        assert_eq!(cause(&bad), Cause::Checksum, "byte {at}");
    }
    assert_eq!(cause(&[b'x'; 512]), Cause::Checksum);
}

#[test]
fn numbers_out_of_range() {
    let with = |change: fn(&mut Header)| {
        let mut file = header(b'0', b"a", 0);
        change(&mut file);
        cause(&Tar::default().member(file, b"").end())
    };
    assert_eq!(
        with(|h| h.size = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
        Cause::Number("size")
    );
    assert_eq!(with(|h| h.size = *b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Cause::Number("size"));
    assert_eq!(with(|h| h.size = *b"nonsense...."), Cause::Number("size"));
    assert_eq!(with(|h| h.mtime = *b"\x80\0\0\0\x80\0\0\0\0\0\0\0"), Cause::Number("mtime"));
    assert_eq!(with(|h| h.mode = *b"00009999"), Cause::Number("mode"));
    assert_eq!(with(|h| h.uid = *b"\x80\0\0\x01\0\0\0\0"), Cause::Number("uid"));
    assert_eq!(with(|h| h.gid = [0xff; 8]), Cause::Number("gid"));
    assert_eq!(
        with(|h| {
            h.typeflag = b'3';
            h.devminor = [0x80, 0, 0, 1, 0, 0, 0, 0];
        }),
        Cause::Number("devminor")
    );
    // The largest there is, which is not there.
    let mut file = header(b'0', b"a", 0);
    file.size = *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    assert!(matches!(cause(&Tar::default().member(file.clone(), b"").end()), Cause::Cut { .. }));
    file.typeflag = b'1';
    // Without contents it is nothing but a claim.
    assert_eq!(names(&Tar::default().member(file, b"").end()), ["a"]);
}

#[test]
fn values_of_records() {
    for (key, values) in [
        ("size", &["9223372036854775808", "18446744073709551616", "-1", "1.5", "0x10", " 1"][..]),
        ("uid", &["4294967296", "-1", "root"]),
        ("gid", &["4294967296", "-2", "1e3"]),
        ("mtime", &["1,5", "now", "99999999999999999999", "1.5a", "-"]),
        ("SCHILY.devmajor", &["4294967296"]),
        ("SCHILY.devminor", &["-1"]),
        ("LIBARCHIVE.xattr.user.a", &["A", "A===", "A A="]),
        ("SCHILY.acl.access", &["user", "user::rwx", "u::rwx,g::x,o::z"]),
        ("SCHILY.acl.default", &["none"]),
        ("GNU.sparse.major", &["", "x"]),
        ("GNU.sparse.size", &["9223372036854775808"]),
        ("GNU.sparse.numbytes", &["1"]),
        ("GNU.sparse.map", &["", "1", "1,2,3", "1,-2", "1,2,"]),
    ] {
        for value in values {
            let tar = Tar::default().records(b'x', &[(key, value.as_bytes())]).file(b"a", b"");
            assert_eq!(cause(&tar.end()), Cause::Value(key.to_owned()), "{key}={value}");
        }
    }
    for (key, what) in [
        ("path", "the path of an extended header"),
        ("linkpath", "the linkpath of an extended header"),
        ("GNU.sparse.name", "the name of a sparse file"),
        ("SCHILY.xattr.user.a\0b", "the name of an extended attribute"),
        ("LIBARCHIVE.xattr.user.a%00b", "the name of an extended attribute"),
    ] {
        let tar = Tar::default().records(b'x', &[(key, b"a\0b=")]).file(b"a", b"");
        let expected = Cause::Nul(what);
        let found = read(&tar.end()).unwrap_err().cause::<Cause>().cloned();
        // The value of the LIBARCHIVE record is looked at first.
        if key.starts_with("LIB") {
            assert_eq!(found, Some(Cause::Value(key.to_owned())));
        } else {
            assert_eq!(found, Some(expected), "{key}");
        }
    }
}

#[test]
fn records_that_are_none() {
    for (records, at) in [
        (&b"x"[..], 0),
        (b"5", 0),
        (b" a=b\n", 0),
        (b"0 a=b\n", 0),
        (b"3 a=b\n", 0),
        (b"5 a=b\n", 0),
        (b"7 a=b\n", 0),
        (b"99 a=b\n", 0),
        (b"-6 a=b\n", 0),
        (b"6 a=b\n6 a=bc\n", 6),
        (b"6 aab\n", 0),
        (b"5 =b\n", 0),
        (b"6 a=b\n\0\0\0\0", 6),
        (b"18446744073709551615 a=b\n", 0),
        (b"18446744073709551616 a=b\n", 0),
        (b"000000000000000000000000006 a=b\n", 0),
        (b"2 ", 0),
        (b"1 ", 0),
    ] {
        let tar = Tar::default()
            .member(header(b'x', b"x", records.len() as u64), records)
            .file(b"a", b"")
            .end();
        assert_eq!(cause(&tar), Cause::Record(at), "{:?}", records.escape_ascii().to_string());
    }
}

#[test]
fn too_much() {
    let limit = EXTENDED_LIMIT;
    for flag in *b"xg" {
        let tar = Tar::default().member(header(flag, b"x", limit + 1), b"").end();
        let what = "an extended header";
        assert_eq!(cause(&tar), Cause::TooLong { what, len: limit + 1, limit });
    }
    let limit = NAME_LIMIT;
    let tar = Tar::default().member(gnu(b'L', b"x", limit + 1), b"").end();
    assert_eq!(cause(&tar), Cause::TooLong { what: "a long name", len: limit + 1, limit });
    let tar = Tar::default().member(gnu(b'K', b"x", limit + 1), b"").end();
    assert_eq!(cause(&tar), Cause::TooLong { what: "a long link target", len: limit + 1, limit });
    let long = vec![b'/'; limit as usize + 1];
    let what = "the path of an extended header";
    let tar = Tar::default().records(b'x', &[("path", &long)]).file(b"a", b"").end();
    assert_eq!(cause(&tar), Cause::TooLong { what, len: limit + 1, limit });
    // As much as there may be: 4,096 folders deep.
    let deep = b"folder-name/".repeat(4096);
    let tar = Tar::default().records(b'x', &[("path", &deep)]).file(b"a", b"").end();
    assert_eq!(read(&tar).unwrap()[0].0.path, deep);
    // Millions of records in one header.
    let text = b"6 a=b\n".repeat(2_700_000);
    let tar = Tar::default().member(header(b'x', b"x", text.len() as u64), &text).file(b"a", b"");
    assert_eq!(names(&tar.end()), ["a"]);
}

/// What one header gives to all members, their number multiplies.
#[test]
fn bombs_in_headers_for_all_members() {
    let with = |key: &str, value: &[u8]| Tar::default().records(b'g', &[(key, value)]).end();
    assert_eq!(
        unsupported(&with("SCHILY.xattr.user.a", b"x")),
        Cause::Global("of extended attribute user.a".to_owned())
    );
    assert_eq!(
        unsupported(&with("GNU.sparse.map", b"0,1")),
        Cause::Global("of a sparse file".to_owned())
    );
    let what = "the name in a header for all members";
    for key in ["path", "linkpath"] {
        let found = cause(&with(key, &[b'p'; 4097]));
        assert_eq!(found, Cause::TooLong { what, len: 4097, limit: 4096 });
        assert!(read(&with(key, &[b'p'; 4096])).is_ok());
    }
}

#[test]
fn maps_of_old_sparse_files() {
    let of = |header: Header, rest: &[u8]| cause(&Tar::default().member(header, rest).end());
    let fault = Cause::Sparse;
    assert_eq!(of(sparse(100, 20, &[(50, 10), (40, 10)]), b""), fault(SparseFault::Backwards(40)));
    assert_eq!(of(sparse(100, 20, &[(50, 10), (59, 10)]), b""), fault(SparseFault::Backwards(59)));
    assert_eq!(
        of(sparse(100, 20, &[(90, 11)]), b""),
        fault(SparseFault::BeyondEnd { end: 101, size: 100 })
    );
    assert_eq!(
        of(sparse(100, 9, &[(90, 10)]), b""),
        fault(SparseFault::Data { mapped: 10, stored: 9 })
    );
    assert_eq!(of(sparse(100, 9, &[]), b""), fault(SparseFault::Data { mapped: 0, stored: 9 }));
    let edit = |at: usize, field: &[u8]| {
        let mut header = sparse(100, 10, &[(90, 10)]);
        zerocopy::IntoBytes::as_mut_bytes(&mut header)[at..][..field.len()].copy_from_slice(field);
        of(header, b"")
    };
    assert_eq!(edit(386, &[0xff; 12]), fault(SparseFault::Malformed));
    assert_eq!(edit(386, b"x"), fault(SparseFault::Malformed));
    assert_eq!(edit(483, &[0xff; 12]), Cause::Number("realsize"));
    let huge = b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    let found = edit(386, huge);
    let end = (i64::MAX as u64) + 10;
    assert_eq!(found, fault(SparseFault::BeyondEnd { end, size: 100 }));
    // A map that says it goes on, and does not.
    let mut more = sparse(100, 10, &[(90, 10)]);
    zerocopy::IntoBytes::as_mut_bytes(&mut more)[482] = 1;
    more.sum();
    let bytes = Tar::default().member(more.clone(), b"").0;
    assert_eq!(cause(&bytes), Cause::Cut { what: "the map of a sparse file", at: 512 });
    // One that goes on for ever.
    let mut endless = Tar::default().member(more, b"").0;
    let mut block = [0; 512];
    block[504] = 1;
    endless.extend(block.repeat(10_000));
    assert!(matches!(cause(&endless), Cause::Cut { .. }));
}

#[test]
fn maps_in_extended_headers() {
    let with = |records: &[(&str, &[u8])], stored: &[u8]| {
        cause(&Tar::default().records(b'x', records).file(b"a", stored).end())
    };
    let fault = Cause::Sparse;
    let size: (&str, &[u8]) = ("GNU.sparse.size", b"100");
    assert_eq!(
        with(&[size, ("GNU.sparse.map", b"50,10,40,10")], &[0; 20]),
        fault(SparseFault::Backwards(40))
    );
    assert_eq!(
        with(&[size, ("GNU.sparse.map", b"18446744073709551615,18446744073709551615")], &[0; 20]),
        fault(SparseFault::BeyondEnd { end: u64::MAX, size: 100 })
    );
    assert_eq!(
        with(&[size, ("GNU.sparse.map", b"0,21")], &[0; 20]),
        fault(SparseFault::Data { mapped: 21, stored: 20 })
    );
    assert_eq!(with(&[("GNU.sparse.map", b"0,1")], b"a"), fault(SparseFault::NoSize));
    assert_eq!(with(&[size], b"a"), fault(SparseFault::Data { mapped: 0, stored: 1 }));
    let many = b"1,0,".repeat(1 << 20);
    assert_eq!(
        with(&[size, ("GNU.sparse.map", &[&many[..], b"1,0"].concat())], b""),
        fault(SparseFault::Pieces(1 << 20))
    );
    let version = |major: &[u8], minor: &[u8]| {
        let records = [("GNU.sparse.major", major), ("GNU.sparse.minor", minor), size];
        unsupported(&Tar::default().records(b'x', &records).file(b"a", b"").end())
    };
    assert_eq!(version(b"1", b"1"), Cause::SparseVersion(1, 1));
    assert_eq!(version(b"0", b"2"), Cause::SparseVersion(0, 2));
}

#[test]
fn maps_before_the_contents() {
    let fault = |realsize: &str, map: &str, data: &[u8]| match cause(&inline(realsize, map, data)) {
        Cause::Sparse(fault) => fault,
        other => panic!("{other}"),
    };
    // As it should be, and with what GNU tar passes over.
    let good = read(&inline("1000", "1\n500\n100\n", &[b'd'; 100])).unwrap();
    let run = good[0].0.runs[0];
    assert_eq!((good[0].0.size, run.at, run.len, good[0].1.len()), (1000, 500, 100, 100));
    assert_eq!(good[0].0.path, b"name");
    assert_eq!(fault("9", "2\n5\n1\n4\n1\n", b"dd"), SparseFault::Backwards(4));
    assert_eq!(fault("9", "1\n5\n5\n", b"ddddd"), SparseFault::BeyondEnd { end: 10, size: 9 });
    assert_eq!(
        fault("9999", "1\n0\n5000\n", b"d"),
        SparseFault::Data { mapped: 5000, stored: 512 }
    );
    assert_eq!(fault("9", "1048577\n", b""), SparseFault::Pieces(1 << 20));
    assert_eq!(fault("9", "\n", b""), SparseFault::Malformed);
    assert_eq!(fault("9", "x\n", b""), SparseFault::Malformed);
    assert_eq!(fault("9", "-1\n", b""), SparseFault::Malformed);
    assert_eq!(fault("9", "0000000000000000000001\n", b""), SparseFault::Malformed);
    // A map with more lines than are stored.
    assert_eq!(fault("9", "1000\n", b""), SparseFault::Malformed);
    assert_eq!(fault("9", &format!("1000\n{}", "0\n".repeat(253) + "0"), b""), SparseFault::Cut);
    assert_eq!(fault("9", "", b""), SparseFault::Cut);
}

/// Gives an error once it has given some bytes.
struct Failing(BufReader<io::Chain<io::Cursor<Vec<u8>>, Fault>>);

struct Fault(fn() -> io::Error);

impl Read for Fault {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err((self.0)())
    }
}

#[test]
fn errors_of_the_input_are_told_as_they_are() {
    let failing = |fault: fn() -> io::Error| {
        let bytes = Tar::default().file(b"a", &[0; 5000]).0[..1000].to_vec();
        let input = Failing(BufReader::new(io::Cursor::new(bytes).chain(Fault(fault)))).0;
        let mut reader = Reader::new(input);
        reader.next().unwrap().unwrap();
        reader.next().unwrap_err()
    };
    let error = failing(|| io::Error::from_raw_os_error(libc::EIO));
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().starts_with("cannot read the tar at 0x3e8: "), "{error}");
    // What decompresses has errors of its own.
    let error = failing(|| io::Error::other(Error::new(Kind::Refused, "a digest is wrong")));
    assert_eq!(error.kind(), Kind::Refused);
    assert_eq!(error.to_string(), "cannot read the tar at 0x3e8: a digest is wrong (refused)");
}

/// Hands out one byte at a time.
struct Drops<'a>(&'a [u8]);

impl Read for Drops<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        unreachable!("only its buffer is read")
    }
}

impl BufRead for Drops<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(&self.0[..self.0.len().min(1)])
    }

    fn consume(&mut self, len: usize) {
        self.0 = &self.0[len..];
    }
}

#[test]
fn the_input_may_come_in_drops() {
    let map = "2\n0\n3\n500\n3\n";
    let whole = inline("600", map, b"abcdef");
    let mut drops = Reader::new(Drops(&whole));
    let expected = read(&whole).unwrap();
    let entry = drops.next().unwrap().unwrap();
    let mut stored = vec![];
    drops
        .contents(&mut |chunk| {
            stored.extend_from_slice(chunk);
            Ok(())
        })
        .unwrap();
    assert_eq!((entry, stored), expected[0]);
    assert_eq!(drops.next().unwrap(), None);
}
