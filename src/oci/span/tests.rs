use std::io::BufRead;
use std::sync::Arc;

use super::cause::Cause;
use super::*;
use crate::block::{BlockSource, Cache, MemorySource};
use crate::error::{Error, Kind};

/// Why a pass over `blob` fails, with the kind of the failure.
#[track_caller]
fn refused(blob: &[u8], options: Options) -> (Kind, Cause) {
    let mut pass = Pass::new(blob, detect(blob), options).unwrap();
    loop {
        match pass.fill_buf().map(<[u8]>::len) {
            Ok(0) => panic!("nothing is wrong with it"),
            Ok(len) => pass.consume(len),
            Err(error) => {
                let told = error.downcast::<Error>().unwrap();
                let error = pass.finish().unwrap_err();
                assert_eq!(told.to_string(), error.to_string(), "it fails the same way twice");
                return (error.kind(), error.cause::<Cause>().unwrap().clone());
            }
        }
    }
}

#[track_caller]
fn corrupt(blob: &[u8]) -> Cause {
    let (kind, cause) = refused(blob, Options::default());
    assert_eq!(kind, Kind::Corrupt, "{cause}");
    cause
}

/// A gzip member of this deflate stream, of `abc`.
fn member(deflate: &[u8]) -> Vec<u8> {
    let mut blob = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    blob.extend_from_slice(deflate);
    blob.extend(crc32fast::hash(b"abc").to_le_bytes());
    blob.extend(3_u32.to_le_bytes());
    blob
}

/// `abc` in a stored block.
const STORED: [u8; 8] = [1, 3, 0, 0xfc, 0xff, b'a', b'b', b'c'];

#[test]
fn detects_by_magic() {
    let cases: [(&[u8], Compression); 9] = [
        (&[0x1f, 0x8b, 8], Compression::Gzip),
        (b"\xfd7zXZ\0", Compression::Xz),
        (b"BZh9", Compression::Bzip2),
        (b"BZh0", Compression::None),
        (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        (&[0x5a, 0x2a, 0x4d, 0x18], Compression::Zstd),
        (&[0x27, 0xb5, 0x2f, 0xfd], Compression::Zstd),
        (b"./usr", Compression::None),
        (b"", Compression::None),
    ];
    for (head, how) in cases {
        assert_eq!(detect(head), how, "{head:02x?}");
    }
}

#[test]
fn a_member_by_hand() {
    let blob = member(&STORED);
    let passed =
        Pass::new(&blob[..], Compression::Gzip, Options::default()).unwrap().finish().unwrap();
    assert_eq!((passed.len, passed.blob_len, passed.trailing), (3, blob.len() as u64, 0));
    let source = Arc::new(MemorySource::new(blob));
    let source = Unpacked::new(source, None, passed.spans, Cache::new(0)).unwrap();
    let mut buf = [0; 2];
    source.read_at(1, &mut buf).unwrap();
    assert_eq!(&buf, b"bc");
}

#[test]
fn gzip_causes() {
    let good = member(&STORED);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    let (kind, cause) = refused(&with(2, 7), Options::default());
    assert_eq!((kind, cause), (Kind::Unsupported, Cause::GzipMethod { offset: 0, method: 7 }));
    assert_eq!(corrupt(&with(3, 0x80)), Cause::GzipFlags { offset: 0, flags: 0x80 });
    let cause = corrupt(&with(15, b'x'));
    assert!(matches!(cause, Cause::GzipCrc { offset: 18, .. }), "{cause:?}");
    let cause = corrupt(&with(22, 4));
    assert_eq!(cause, Cause::GzipLength { offset: 18, found: 3, expected: 4 });
    assert_eq!(corrupt(&good[..25]), Cause::Cut { offset: 25 });
    assert_eq!(corrupt(&good[..16]), Cause::Cut { offset: 16 });
    assert_eq!(corrupt(&good[..6]), Cause::Cut { offset: 6 });
    // A second member is held to the same.
    let mut twice = [&good[..], &good].concat();
    twice[good.len() + 2] = 9;
    let (_, cause) = refused(&twice, Options::default());
    assert_eq!(cause, Cause::GzipMethod { offset: 26, method: 9 });
    let not = Pass::new(&b"hello"[..], Compression::Gzip, Options::default()).unwrap();
    let error = not.finish().unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::GzipMagic { offset: 0 }));
}

#[test]
fn deflate_causes() {
    let cases: [(&[u8], Cause); 8] = [
        (&[0b111], Cause::BlockType),
        (&[1, 3, 0, 0, 0], Cause::StoredLength { len: 3, inverse: 0 }),
        // Fixed codes: a match of three bytes, one back, at the very start.
        (&[0x03, 0x02, 0x00], Cause::DistanceTooFar { distance: 1 }),
        // 287 literals and lengths.
        (&[0b1111_0101, 0, 0], Cause::TooManyCodes),
        // 31 distances.
        (&[0b0000_0101, 0b0001_1110, 0], Cause::TooManyCodes),
        // No code lengths at all.
        (&[0b0000_0101, 0, 0, 0], Cause::Incomplete { what: "code lengths" }),
        // Four code lengths of one bit.
        (
            &[0b0000_0101, 0, 0b1001_0010, 0b0000_0100],
            Cause::Oversubscribed { what: "code lengths" },
        ),
        // Fixed codes: 286 is no length.
        (&[0b0001_1011, 0b0000_0011], Cause::InvalidCode("literals")),
    ];
    for (deflate, expected) in cases {
        assert_eq!(corrupt(&member(deflate)), expected, "{deflate:02x?}");
    }
}

#[test]
fn zstd_causes() {
    for (first, version) in [(0x1e, "0.1"), (0x22, "0.2"), (0x27, "0.7")] {
        let (kind, cause) = refused(&[first, 0xb5, 0x2f, 0xfd, 0, 0], Options::default());
        assert_eq!((kind, cause), (Kind::Unsupported, Cause::ZstdLegacy { offset: 0, version }));
    }
    let frame = ::zstd::bulk::compress(b"abc", 3).unwrap();
    let passed =
        Pass::new(&frame[..], Compression::Zstd, Options::default()).unwrap().finish().unwrap();
    assert_eq!(passed.len, 3);
    let end = frame.len() as u64;
    assert_eq!(corrupt(&[&frame[..], b"garbage"].concat()), Cause::ZstdMagic { offset: end });
    assert_eq!(corrupt(&frame[..frame.len() - 1]), Cause::Cut { offset: end - 1 });
    // A skippable frame that is not all there.
    assert_eq!(corrupt(&[0x50, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]), Cause::Cut { offset: 9 });
    // A frame with a dictionary's number, of one byte.
    let (kind, cause) = refused(&[0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 3, 0, 0], Options::default());
    assert_eq!((kind, cause), (Kind::Unsupported, Cause::ZstdDictionary { offset: 0, id: 7 }));
    // Two to the power of 41 as the size of the window.
    let (kind, cause) = refused(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8, 1, 0, 0], Options::default());
    assert_eq!((kind, cause), (Kind::Refused, Cause::ZstdWindow { offset: 0, limit: 1 << 27 }));
}

#[test]
fn too_long() {
    let options = Options { max_len: 2, ..Options::default() };
    let (kind, cause) = refused(&member(&STORED), options);
    assert_eq!((kind, cause), (Kind::Refused, Cause::TooLong { limit: 2 }));
}

/// 10 MB of gzip hold 10 GB of zeros, 10 MB of zstd hundreds.
#[test]
fn how_much_is_too_long_follows_from_the_length_of_the_blob() {
    let most = |how, len| Options::max_len_of(how, len) >> 30;
    for how in [Compression::Gzip, Compression::Zstd, Compression::Xz, Compression::Bzip2] {
        let found =
            [0, 10 << 20, 128 << 20, 256 << 20, 1 << 30, u64::MAX].map(|len| most(how, len));
        assert_eq!(found, [32, 32, 32, 64, 256, 256]);
    }
    assert_eq!(most(Compression::None, 1), 256);
}

#[test]
fn a_pass_that_is_stopped() {
    let options = Options::default();
    options.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut pass = Pass::new(&b"x"[..], Compression::None, options).unwrap();
    let error = Error::io(std::io::Read::read(&mut pass, &mut [0]).unwrap_err());
    assert_eq!((error.kind(), error.to_string()), (Kind::Io, "interrupted".to_owned()));
}

#[test]
fn without_a_side_file() {
    let blob = b"BZh91AY&SY\x64\x8c\xbb\x73\x00\x00\x00\x01\x00\x38\x00\x20\x00\x21\x98\x19\x84\x61\x77\x24\x53\x85\x09\x06\x48\xcb\xb7\x30";
    let (kind, cause) = refused(blob, Options::default());
    assert_eq!((kind, cause), (Kind::Unsupported, Cause::NoSide));
}

#[test]
fn restart_points_that_are_none() {
    let cause = |bytes: &[u8]| {
        let error = Spans::from_bytes(bytes.to_vec()).unwrap_err();
        error.cause::<Cause>().unwrap().clone()
    };
    let blob = member(&STORED);
    let passed =
        Pass::new(&blob[..], Compression::Gzip, Options::default()).unwrap().finish().unwrap();
    let good = passed.spans.as_bytes().to_vec();
    assert_eq!(cause(b""), Cause::SpansMagic);
    assert_eq!(cause(&[7; 100]), Cause::SpansMagic);
    let with = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    assert_eq!(cause(&with(8, 9)), Cause::SpansVersion(9));
    let (found, expected) = (good.len() as u64 - 1, good.len() as u64);
    assert_eq!(cause(&good[..good.len() - 1]), Cause::SpansLength { found, expected });
    assert_eq!(cause(&with(good.len() - 1, good[good.len() - 1] ^ 1)), Cause::SpansChecksum);
}

#[test]
fn an_input_that_fails_says_so() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(libc::EIO))
        }
    }
    for how in [
        Compression::None,
        Compression::Gzip,
        Compression::Zstd,
        Compression::Xz,
        Compression::Bzip2,
    ] {
        let error = Pass::new(Broken, how, Options::default()).unwrap().finish().unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{how:?}: {error}");
    }
}
