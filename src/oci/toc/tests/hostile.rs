//! Tables of contents that lie, each with what is said about it.

use super::*;

fn cause(result: Result<Opened>) -> Cause {
    result.map(drop).unwrap_err().cause::<Cause>().cloned().unwrap()
}

/// What is said of an eStargz with a member of 100 bytes, at 0, and these entries.
#[track_caller]
fn said(entries: Value) -> Cause {
    let (blob, claim) = estargz_of(&[&[7; 100]], &toc(entries));
    cause(open(&blob, &claim))
}

fn file(changes: Value) -> Value {
    let mut file =
        json!({ "name": "f", "type": "reg", "size": 100, "chunkDigest": sha256(&[7; 100]) });
    let changes = changes.as_object().unwrap().clone();
    file.as_object_mut().unwrap().extend(changes);
    file
}

#[test]
fn entries() {
    let bad = |field, value| Cause::Number { field, value };
    for (change, expected) in [
        (json!({ "size": -1 }), bad("size", -1)),
        (json!({ "mode": -1 }), bad("mode", -1)),
        (json!({ "uid": 1_i64 << 32 }), bad("user", 1 << 32)),
        (json!({ "gid": -5 }), bad("group", -5)),
        (json!({ "offset": i64::MIN }), bad("offset", i64::MIN)),
        (json!({ "innerOffset": -1 }), bad("inner offset", -1)),
        (json!({ "chunkSize": -1 }), bad("chunk size", -1)),
        (json!({ "chunkOffset": -1 }), bad("chunk offset", -1)),
        (json!({ "type": "char", "devMajor": -1 }), bad("device", -1)),
        (json!({ "type": "door" }), Cause::Type("door".into())),
        (json!({ "modtime": "yesterday" }), Cause::Time("yesterday".into())),
        (json!({ "xattrs": { "user.a": "?" } }), Cause::Attribute("user.a".into())),
        (json!({ "name": "a\u{fffd}b" }), Cause::Name),
        (json!({ "type": "symlink", "linkName": "\u{fffd}" }), Cause::Name),
        (json!({ "chunkDigest": "" }), Cause::ChunkDigest(String::new())),
        (json!({ "chunkDigest": "sha512:00" }), Cause::ChunkDigest("sha512:00".into())),
        (json!({ "chunkSize": 101 }), Cause::ChunkLength { len: 101, most: 100 }),
        (json!({ "chunkSize": 99 }), Cause::Gap { filled: 99, size: 100 }),
        (json!({ "chunkOffset": 1 }), Cause::Order { wanted: 0, found: 1 }),
        (json!({ "chunkType": "odd" }), Cause::Type("odd".into())),
        (json!({ "size": MOST * 2 }), Cause::ChunkLength { len: MOST * 2, most: MOST }),
        (json!({ "innerOffset": MOST }), Cause::ChunkLength { len: MOST + 100, most: MOST }),
        (
            json!({ "size": i64::MAX, "innerOffset": i64::MAX }),
            Cause::ChunkLength { len: u64::MAX - 1, most: MOST },
        ),
    ] {
        assert_eq!(said(json!([file(change)])), expected);
    }
    assert_eq!(said(json!([{ "type": "chunk" }])), Cause::Stray);
}

const MOST: u64 = table::MOST_UNIT;

#[test]
fn chunks_that_do_not_make_a_file() {
    let chunk = |changes: Value| {
        let mut chunk = file(json!({ "type": "chunk", "size": 0, "chunkOffset": 50 }));
        chunk.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        chunk
    };
    let half = || file(json!({ "chunkSize": 50 }));
    for (more, expected) in [
        (chunk(json!({ "name": "other" })), Cause::Stray),
        (chunk(json!({ "chunkOffset": 49 })), Cause::Order { wanted: 50, found: 49 }),
        (chunk(json!({ "chunkOffset": 51 })), Cause::Order { wanted: 50, found: 51 }),
        (chunk(json!({ "innerOffset": 49 })), Cause::Overlap { at: 0, before: 1 }),
        (chunk(json!({ "offset": 1, "chunkSize": 49 })), Cause::Gap { filled: 99, size: 100 }),
        (chunk(json!({ "offset": 1, "chunkSize": 51 })), Cause::ChunkLength { len: 51, most: 50 }),
    ] {
        assert_eq!(said(json!([half(), more])), expected);
    }
    let rest = || chunk(json!({ "offset": 1 }));
    let more = chunk(json!({ "offset": 2, "chunkOffset": 100 }));
    assert_eq!(said(json!([half(), rest(), more])), Cause::Order { wanted: 100, found: 100 });
    // The next file, told of what the one before has.
    let again = said(json!([file(json!({ "offset": 5 })), file(json!({ "offset": 4 }))]));
    assert_eq!(again, Cause::Overlap { at: 4, before: 6 });
    let twice = said(json!([file(json!({})), file(json!({}))]));
    assert_eq!(twice, Cause::Overlap { at: 0, before: 1 });
    let limit = gzip(&[7; 100]).len() as u64;
    let outside = |at| Cause::Outside { at, end: at, limit };
    assert_eq!(said(json!([file(json!({ "offset": limit }))])), outside(limit));
    let end = i64::MAX as u64;
    assert_eq!(said(json!([file(json!({ "offset": i64::MAX }))])), outside(end));
    let ends = said(json!([file(json!({ "endOffset": limit + 1 }))]));
    assert_eq!(ends, Cause::Outside { at: 0, end: limit + 1, limit });
}

#[test]
fn no_table_of_contents() {
    let entries = toc(json!([file(json!({}))]));
    let (blob, claim) = estargz_of(&[&[7; 100]], &entries);
    open(&blob, &claim).unwrap();

    let named = ESTARGZ_DIGEST.parse().unwrap();
    let found = sha256(&entries).parse().unwrap();
    let other = cause(open(&blob, &estargz_claim(ESTARGZ_DIGEST)));
    assert_eq!(other, Cause::Digest { named, found });

    let end = blob.len() as u64 - 51;
    let mut lost = blob.clone();
    let at = gzip(&[7; 100]).len();
    lost.splice(end as usize.., footer_of(end));
    assert_eq!(cause(open(&lost, &claim)), Cause::Place { at: end, len: 0, end });
    lost.splice(end as usize.., footer_of(u64::MAX));
    assert_eq!(cause(open(&lost, &claim)), Cause::Place { at: u64::MAX, len: 0, end });
    lost.splice(end as usize.., footer_of(at as u64 + 1));
    assert!(matches!(cause(open(&lost, &claim)), Cause::Decompress(_)));
    lost.splice(end as usize.., footer_of(0));
    assert!(matches!(cause(open(&lost, &claim)), Cause::Decompress(_) | Cause::Member));
    assert_eq!(cause(open(&blob[..blob.len() - 1], &claim)), Cause::Footer);
    assert_eq!(cause(open(b"short", &claim)), Cause::Footer);
    for at in [0, 3, 10, 12, 20, 32] {
        let mut wrong = blob.clone();
        wrong[end as usize + at] ^= 0x80;
        assert_eq!(cause(open(&wrong, &claim)), Cause::Footer, "{at}");
    }

    // One that claims a length of 8 GiB, and one that is cut.
    let mut blob = gzip(&tar_header("stargz.index.json", (8 << 30) - 1));
    blob.extend_from_slice(&footer_of(0));
    let too_long = Cause::TooLong { len: (8 << 30) - 1, most: MOST_PLAIN };
    assert_eq!(cause(open(&blob, &claim)), too_long);
    let mut blob = gzip(&[&tar_header("stargz.index.json", 100)[..], b"{\"version\":"].concat());
    blob.extend_from_slice(&footer_of(0));
    assert!(matches!(cause(open(&blob, &claim)), Cause::Json(_)));
    let mut blob = gzip(&tar_header("other.json", 100));
    blob.extend_from_slice(&footer_of(0));
    assert_eq!(cause(open(&blob, &claim)), Cause::Member);
}

#[test]
fn an_old_footer_is_known() {
    let mut old = vec![0; 4];
    old.extend_from_slice(&[0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 22, 0]);
    old.extend_from_slice(b"00000000000000ffSTARGZ\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
    let old = <[u8; 51]>::try_from(old).unwrap();
    assert_eq!(estargz::parse_footer(&old, 1000), Ok(255..953));
}

#[test]
fn documents() {
    let json = |text: &str| {
        let (blob, claim) = estargz_of(&[&[7; 100]], text.as_bytes());
        cause(open(&blob, &claim)).to_string()
    };
    for (text, expected) in [
        ("{}", "no version or no entries"),
        ("[]", "invalid type: sequence, expected a table of contents"),
        (r#"{"version":1}"#, "no version or no entries"),
        (r#"{"version":2,"entries":[]}"#, "version 2"),
        (r#"{"version":1,"entries":[],"entries":[]}"#, "a field told twice"),
        (r#"{"version":1,"version":1,"entries":[]}"#, "a field told twice"),
        (r#"{"version":1,"entries":[]} x"#, "trailing characters"),
        (r#"{"version":1,"entries":[5]}"#, "invalid type: integer"),
        (r#"{"version":1,"entries":[{"name":"a","size":1.5}]}"#, "invalid type: floating"),
    ] {
        let said = json(text);
        assert!(said.contains(expected), "{text}: {said}");
    }
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    assert!(json(&deep).contains("EOF while parsing"), "{}", json(&deep));
    // A name, attributes or what nobody knows: nothing is held without a bound.
    let long = "x".repeat(5 << 20);
    let (blob, claim) = estargz_of(&[], &toc(json!([{ "name": long, "type": "dir" }])));
    assert_eq!(cause(open(&blob, &claim)), Cause::Entry(4 << 20));
    let many: BTreeMap<String, String> =
        (0..200_000).map(|nth| (format!("user.{nth:020}"), String::new())).collect();
    let (blob, claim) =
        estargz_of(&[], &toc(json!([{ "name": "a", "type": "dir", "xattrs": many }])));
    assert_eq!(cause(open(&blob, &claim)), Cause::Entry(4 << 20));
}

#[test]
fn zstd_tables() {
    let entries = toc(json!([{ "name": "d", "type": "dir" }]));
    let (blob, claim) = zstd_of(&[&[7; 100]], &entries);
    open(&blob, &claim).unwrap();
    let Form::ZstdChunked(digest, position) = &claim.0 else { panic!() };
    let len = blob.len() as u64;
    let digest = digest.to_string();
    let at = |value: String| cause(open(&blob, &zstd_claim(&digest, &value)));
    assert_eq!(at(format!("{len}:1:1:1")), Cause::Place { at: len, len: 1, end: len });
    let max = u64::MAX;
    assert_eq!(at(format!("{max}:{max}:1:1")), Cause::Place { at: max, len: max, end: len });
    assert_eq!(at(format!("1:2:{max}:1")), Cause::TooLong { len: max, most: MOST_PLAIN });
    assert!(matches!(at("1:2:3:1".into()), Cause::Digest { .. }));
    let plain = position.plain;
    let place = format!("{}:{}", position.at, position.packed);
    let longer = at(format!("{place}:{}:1", plain + 1));
    assert_eq!(longer, Cause::Length { named: plain + 1, found: plain });
    assert!(matches!(at(format!("{place}:{}:1", plain - 1)), Cause::Json(_)));
    for value in ["", "1:2:3", "1:2:3:2", "1:2:3:1:5", "-1:2:3:1", "a:b:c:1", " 1:2:3:1"] {
        let both = [(zstd_chunked::CHECKSUM, &*digest), (zstd_chunked::POSITION, value)];
        let error = super::claim(&both).unwrap_err();
        let name = zstd_chunked::POSITION;
        assert_eq!(error.cause(), Some(&Cause::Annotation { name, value: value.into() }));
    }
    let three = [
        (zstd_chunked::CHECKSUM, &*digest),
        (zstd_chunked::POSITION, "1:2:3:1"),
        (estargz::ANNOTATION, &*digest),
    ];
    assert_eq!(super::claim(&three).unwrap_err().cause(), Some(&Cause::TwoTables));
    assert!(super::claim(&three[..1]).unwrap().is_none());
    let old = [(zstd_chunked::OLD_CHECKSUM, &*digest), (zstd_chunked::OLD_POSITION, "1:2:3:1")];
    let said = |claimed: &[_]| format!("{:?}", super::claim(claimed).unwrap());
    assert_eq!(said(&old), said(&three[..2]));
    let error = super::claim(&[(estargz::ANNOTATION, "md5:00")]).unwrap_err();
    assert_eq!(error.kind(), crate::error::Kind::Unsupported);
}

#[test]
fn contents_that_are_others() {
    let bad = sha256(b"other");
    let entries = json!([
        file(json!({ "name": "good" })),
        file(json!({ "name": "bad", "offset": gzip(&[7; 100]).len(), "chunkDigest": bad })),
        { "name": "cut", "type": "reg", "size": 101, "offset": 2 * gzip(&[7; 100]).len(),
            "chunkDigest": sha256(&[7; 101]) },
    ]);
    let (blob, claim) = estargz_of(&[&[7; 100], &[7; 100], &[7; 100]], &toc(entries));
    let opened = open(&blob, &claim).unwrap();
    assert_eq!(opened.read("good").unwrap(), [7; 100]);
    let error = opened.read("bad").unwrap_err();
    let at = gzip(&[7; 100]).len() as u64;
    let (named, found) = (bad.parse().unwrap(), sha256(&[7; 100]).parse().unwrap());
    assert_eq!(error.cause(), Some(&Cause::Contents { at, named, found }));
    assert_eq!(error.kind(), crate::error::Kind::Corrupt);
    let error = opened.read("cut").unwrap_err();
    assert!(matches!(error.cause(), Some(Cause::Chunk { .. })), "{error}");
    // Whatever is wrong with the blob, nothing but what the table vouches for comes out.
    for at in 0..blob.len() {
        let mut wrong = blob.clone();
        wrong[at] ^= 1;
        let Ok(opened) = open(&wrong, &claim) else { continue };
        match opened.read("good") {
            Ok(bytes) => assert_eq!(bytes, [7; 100], "{at}"),
            Err(error) => assert_eq!(error.kind(), crate::error::Kind::Corrupt, "{at}: {error}"),
        }
    }
}

#[test]
fn what_is_wrong_with_a_chunk_fails_no_neighbour() {
    let at = |nth: usize| nth * gzip(&[7; 100]).len();
    let entries = json!([
        file(json!({ "name": "first" })),
        file(json!({ "name": "second", "offset": at(1) })),
        file(json!({ "name": "bad", "offset": at(2), "chunkDigest": sha256(b"other") })),
    ]);
    let (blob, claim) = estargz_of(&[&[7; 100], &[7; 100], &[7; 100]], &toc(entries));
    let opened = open(&blob, &claim).unwrap();
    // The second read goes on where the first ended, and so fetches ahead.
    assert_eq!(opened.read("first").unwrap(), [7; 100]);
    assert_eq!(opened.read("second").unwrap(), [7; 100]);
    let error = opened.read("bad").unwrap_err();
    assert!(matches!(error.cause(), Some(Cause::Contents { .. })), "{error}");
}

#[test]
fn more_chunks_than_any_layer_has() {
    let mut table = table::Writer::new(u64::MAX);
    let chunk = table::Chunk { inner: 0, len: 1, digest: [0; 32] };
    for at in 0..table::MOST_CHUNKS {
        table.add(at, chunk).unwrap();
    }
    let more = table.add(u64::MAX - 1, chunk);
    assert_eq!(more, Err(Cause::Budget(table::MOST_CHUNKS, "chunks")));
}

#[test]
fn a_damaged_table_of_chunks_is_found_out() {
    let mut table = table::Writer::new(1000);
    for at in [10, 20, 30] {
        table.add(at, table::Chunk { inner: 5, len: 50, digest: [1; 32] }).unwrap();
    }
    let good = table.finish(Packing::Gzip).unwrap();
    let len = Table::from_bytes(good.clone(), 1000).unwrap().len();
    assert_eq!(len, 150);
    assert_eq!(Table::from_bytes(good.clone(), 999).unwrap_err(), Cause::Table(2));
    for cut in 0..good.len() {
        assert_eq!(Table::from_bytes(good[..cut].to_vec(), 1000).unwrap_err(), Cause::Table(0));
    }
    // Whatever a byte is, it is read within bounds.
    for at in 0..good.len() {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bad = good.clone();
            bad[at] = value;
            let Ok(table) = Table::from_bytes(bad, 1000) else { continue };
            let source = Contents::new(
                Arc::new(MemorySource::new(vec![0; 1000])),
                table,
                Cache::new(16 << 20),
            );
            let mut bytes = vec![0; source.len().min(1 << 20) as usize];
            assert!(source.read_at(0, &mut bytes).is_err());
        }
    }
}
