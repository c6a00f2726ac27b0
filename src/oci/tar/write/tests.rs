use super::*;

fn member<'a>(path: &'a [u8], kind: MemberKind<'a>) -> Member<'a> {
    Member { path, kind, mode: 0o644, uid: 0, gid: 0, modified: Time::default(), xattrs: &[] }
}

#[test]
fn a_record_counts_its_own_length() {
    let mut records = Records::default();
    records.add(b"k", b"v");
    assert_eq!(records.0, b"6 k=v\n");
    for len in [0, 80, 90, 91, 92, 93, 94, 95, 985, 990, 991, 992, 9988] {
        let mut records = Records::default();
        records.add(b"path", &vec![b'x'; len]);
        let digits: Vec<u8> = records.0.iter().copied().take_while(u8::is_ascii_digit).collect();
        assert_eq!(String::from_utf8(digits).unwrap(), records.0.len().to_string());
    }
}

#[test]
fn times_are_told_as_they_are() {
    for (seconds, nanos, told) in [
        (5, 0, ""),
        (5, 120_000_000, "14 mtime=5.12\n"),
        (-1, 0, "12 mtime=-1\n"),
        (-2, 100_000_000, "14 mtime=-1.9\n"),
        (-1, 999_999_999, "22 mtime=-0.000000001\n"),
        (1 << 33, 0, "20 mtime=8589934592\n"),
    ] {
        let mut records = Records::default();
        records.time(&mut [0; 12], Time { seconds, nanos });
        assert_eq!(String::from_utf8(records.0).unwrap(), told, "{seconds} {nanos}");
    }
}

#[test]
fn a_member_that_is_not_as_long_as_it_said_is_an_error() {
    let mut tar = Writer::new(Vec::new());
    tar.begin(&member(b"a", MemberKind::File(3))).unwrap();
    assert_eq!(tar.write(b"four").unwrap_err().kind(), Kind::OutOfBounds);
    let mut tar = Writer::new(Vec::new());
    tar.begin(&member(b"a", MemberKind::File(3))).unwrap();
    tar.write(b"tw").unwrap();
    assert_eq!(tar.begin(&member(b"b", MemberKind::Folder)).unwrap_err().kind(), Kind::Io);
}

#[test]
fn everything_begins_at_a_block() {
    let mut tar = Writer::new(Vec::new());
    tar.begin(&member(&[b'l'; 300], MemberKind::File(1))).unwrap();
    tar.write(b"x").unwrap();
    let bytes = tar.finish().unwrap();
    // Extended header and its records, header, contents, two blocks of zeros.
    assert_eq!(bytes.len(), 6 * 512);
    assert_eq!(bytes[2 * 512], b'l');
    assert_eq!(&bytes[3 * 512..3 * 512 + 2], b"x\0");
}
