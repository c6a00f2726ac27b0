use super::format::head;
use super::*;
use crate::error::Kind;
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::Device;
use zerocopy::IntoBytes;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Time { seconds: 1_700_000_000, nanos: 0 },
        xattrs: Vec::new(),
        size: 0,
        runs: Vec::new(),
    }
}

fn file(path: &str, runs: &[(u64, u64, u64)], size: u64) -> Entry {
    let runs = runs.iter().map(|&(at, len, place)| Run { at, len, place }).collect();
    Entry { size, runs, ..entry(path, EntryKind::File) }
}

/// One of each, in their plain forms.
fn all_sorts() -> Vec<Entry> {
    let xattrs = |value: &[u8]| {
        vec![(b"security.capability".to_vec(), value.to_vec()), (b"user.a=b".to_vec(), Vec::new())]
    };
    let mut entries = vec![
        entry("", EntryKind::Folder),
        entry("usr", EntryKind::Folder),
        file("usr/empty", &[], 0),
        file("usr/file", &[(0, 1000, 2048)], 1000),
        file("usr/next", &[(0, 1, 3584)], 1),
        file("usr/back", &[(0, 1, 0)], 1),
        file("usr/sparse", &[(0, 512, 5120), (4096, 100, 5632), (1 << 40, 7, 5732)], 1 << 41),
        file("usr/hole", &[], u64::MAX),
        file("usr/part", &[(0, 5, 6000)], 6),
        entry("a", EntryKind::HardLink(b"usr/file".to_vec())),
        entry("b", EntryKind::Symlink(vec![b'x'; 4095])),
        entry("c", EntryKind::Fifo),
        entry("d", EntryKind::CharDevice(Device { major: u32::MAX, minor: 0 })),
        entry("e", EntryKind::BlockDevice(Device { major: 8, minor: u32::MAX })),
        entry("d/.wh..wh..opq", EntryKind::Folder),
        entry(".wh.gone", EntryKind::Fifo),
        entry(&vec!["n"; 30_000].join("/"), EntryKind::Folder),
    ];
    entries[1].modified = Time { seconds: i64::MIN, nanos: 999_999_999 };
    entries[2].modified = Time { seconds: i64::MAX, nanos: 1 };
    (entries[3].mode, entries[3].uid, entries[3].gid) = (0o7777, u32::MAX, u32::MAX - 1);
    entries[4].xattrs = xattrs(b"\0\x01");
    entries[5].xattrs = xattrs(b"\0\x01");
    entries[6].xattrs = xattrs(b"other");
    entries
}

const FACTS: fn() -> Facts = || Facts {
    blob_digest: format!("sha256:{}", "ab".repeat(32)),
    diff_id: format!("sha512:{}", "cd".repeat(64)),
    blob_len: 12345,
    tar_len: 10_000,
    learnt: Learnt::Estargz,
};

fn index(entries: Vec<Entry>, spans: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new().unwrap();
    for entry in entries {
        builder.add(entry).unwrap();
    }
    builder.finish(&FACTS(), spans).unwrap()
}

fn read(layer: &Layer) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    let mut entries = layer.entries()?;
    while let Some(entry) = entries.next()? {
        all.push(entry.clone());
    }
    Ok(all)
}

#[test]
fn gives_back_what_it_was_given() {
    let bytes = index(all_sorts(), b"restart points");
    let layer = Layer::from_bytes(bytes).unwrap();
    assert_eq!(read(&layer).unwrap(), all_sorts());
    assert_eq!(read(&layer).unwrap(), all_sorts());
    assert_eq!(layer.facts(), &FACTS());
    assert_eq!(layer.spans().unwrap(), b"restart points");
    assert_eq!((layer.entry_count(), layer.whiteout_count(), layer.link_count()), (17, 2, 1));
    assert_eq!(layer.newest(), Time { seconds: i64::MAX, nanos: 1 });
    let empty = Layer::from_bytes(index(Vec::new(), b"")).unwrap();
    assert_eq!(read(&empty).unwrap(), []);
    assert_eq!((empty.spans().unwrap(), empty.newest()), (b"".as_slice(), Time::default()));
}

#[test]
fn is_mapped_as_long_as_it_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    std::fs::write(&path, index(all_sorts(), b"spans")).unwrap();
    let layer = Layer::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(read(&layer).unwrap(), all_sorts());
    assert_eq!(Layer::open(&path).unwrap_err().kind(), Kind::NotFound);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(Layer::open(&path).unwrap_err().cause(), Some(&Cause::Magic));
}

#[test]
fn paths_are_brought_into_their_plain_form() {
    let cases = [
        ("./a/b", "a/b"),
        ("/a//b/", "a/b"),
        ("a/./b/.", "a/b"),
        ("a/../../b", "b"),
        ("a/b/../..", ""),
        ("..", ""),
        ("/", ""),
        ("a/...", "a/..."),
    ];
    for (path, plain) in cases {
        let link = entry(path, EntryKind::HardLink(path.into()));
        let layer =
            Layer::from_bytes(index(vec![entry(path, EntryKind::Folder), link], b"")).unwrap();
        let all = read(&layer).unwrap();
        assert_eq!(all[0].path, plain.as_bytes(), "{path}");
        assert_eq!(all[1].kind, EntryKind::HardLink(plain.into()), "{path}");
    }
}

#[test]
fn attributes_are_told_once_and_impossible_ones_left_out() {
    let mut odd = entry("a", EntryKind::Folder);
    for name in ["user.z", "nodot", "user.a", ".x", "user.", "user.a", "user.nul\0", ""] {
        odd.xattrs.push((name.into(), b"v".to_vec()));
    }
    odd.xattrs.push((format!("user.{}", "x".repeat(251)).into_bytes(), b"v".to_vec()));
    let layer = Layer::from_bytes(index(vec![odd], b"")).unwrap();
    let names: Vec<_> =
        read(&layer).unwrap().remove(0).xattrs.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, [b"user.a", b"user.z"]);
}

#[track_caller]
fn refuses(entry: Entry, kind: Kind, cause: &Cause) {
    let error = Builder::new().unwrap().add(entry).unwrap_err();
    assert_eq!((error.kind(), error.cause::<Cause>()), (kind, Some(cause)), "{error}");
}

#[test]
fn entries_that_no_index_may_hold_are_refused() {
    let folder = |path: &str| entry(path, EntryKind::Folder);
    refuses(folder(&"n".repeat(256)), Kind::Unsupported, &Cause::NameLength(256));
    let long = vec!["n"; 33_000].join("/");
    let cause = Cause::PathLength(long.len() as u64, format::MOST_PATH);
    refuses(folder(&long), Kind::Unsupported, &cause);
    refuses(folder("a\0b"), Kind::Corrupt, &Cause::ZeroByte);
    let link = |target: Vec<u8>| entry("l", EntryKind::Symlink(target));
    refuses(link(Vec::new()), Kind::Corrupt, &Cause::Target(0));
    refuses(link(vec![b'x'; 4096]), Kind::Corrupt, &Cause::Target(4096));
    refuses(link(b"a\0".to_vec()), Kind::Corrupt, &Cause::ZeroByte);
    let run = |at, len, size| Cause::Run { at, len, size };
    refuses(file("f", &[(0, 5, 0)], 4), Kind::Corrupt, &run(0, 5, 4));
    refuses(file("f", &[(2, 2, 0), (3, 1, 9)], 4), Kind::Corrupt, &run(3, 1, 4));
    refuses(file("f", &[(2, 0, 0)], 4), Kind::Corrupt, &run(2, 0, 4));
    refuses(file("f", &[(u64::MAX, 2, 0)], u64::MAX), Kind::Corrupt, &run(u64::MAX, 2, u64::MAX));
    let far = Cause::Place { place: u64::MAX, len: 2, end: u64::MAX };
    refuses(file("f", &[(0, 2, u64::MAX)], 2), Kind::Corrupt, &far);
    let mut odd = folder("d");
    odd.mode = 0o10000;
    refuses(odd, Kind::Corrupt, &Cause::Field("mode", 0o10000));
    let mut odd = folder("d");
    odd.modified.nanos = 1_000_000_000;
    refuses(odd, Kind::Corrupt, &Cause::Nanos(1_000_000_000));
    let mut odd = folder("d");
    odd.size = 1;
    refuses(odd, Kind::Corrupt, &Cause::Contents(1));

    let error = Builder::new().unwrap().add(folder("a\0b")).unwrap_err();
    let text = "entry 1, \"a\\u{0}b\": zero byte in a name (corrupt image)";
    assert_eq!(error.to_string().replace("\\0", "\\u{0}"), text);
    let mut builder = Builder::new().unwrap();
    builder.add(file("f", &[(0, 2, 9_999)], 2)).unwrap();
    assert_eq!(builder.finish(&FACTS(), b"").unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn sets_of_attributes_and_pieces_have_their_budgets() {
    let mut builder = Builder::new().unwrap();
    let mut fails = None;
    for number in 0_u8..70 {
        let mut entry = entry("a", EntryKind::Folder);
        let mut value = vec![0; 1 << 20];
        value[0] = number;
        entry.xattrs.push((b"user.x".to_vec(), value));
        fails = fails.or(builder.add(entry).err());
    }
    let cause = Cause::Budget(format::MOST_ATTRIBUTES, "bytes of attributes in a layer");
    assert_eq!(fails.unwrap().cause(), Some(&cause));

    let runs: Vec<_> = (0..1_u64 << 20).map(|number| (2 * number, 1, 0)).collect();
    let mut builder = Builder::new().unwrap();
    for _ in 0..4 {
        builder.add(file("f", &runs, 1 << 30)).unwrap();
    }
    let cause = Cause::Budget(format::MOST_RUNS, "pieces of sparse files in a layer");
    let error = builder.add(file("f", &runs[..2], 1 << 30)).unwrap_err();
    assert_eq!(error.cause(), Some(&cause));
}

/// An index whose header is changed, and its checksum made right.
fn with_header(change: impl FnOnce(&mut Header)) -> Error {
    let mut bytes = index(all_sorts(), b"spans");
    let mut header = record::<Header>(&bytes, 0).unwrap().clone();
    change(&mut header);
    header.crc.set(header.sum());
    bytes[..HEADER].copy_from_slice(header.as_bytes());
    match Layer::from_bytes(bytes) {
        Ok(layer) => read(&layer).map(|_| ()).and_then(|()| layer.spans().map(|_| ())).unwrap_err(),
        Err(error) => error,
    }
}

#[test]
fn a_header_that_lies_is_found_out() {
    let len = index(all_sorts(), b"spans").len() as u64;
    let list_len = len - HEADER as u64 - 5;
    let cause = |change: fn(&mut Header)| with_header(change).cause::<Cause>().cloned().unwrap();
    assert_eq!(cause(|header| header.magic[0] = b'T'), Cause::Magic);
    assert_eq!(cause(|header| header.version.set(3)), Cause::Version(3));
    assert_eq!(with_header(|header| header.version.set(3)).kind(), Kind::Unsupported);
    assert_eq!(
        cause(|header| header.blob_digest[0] = 0xff),
        Cause::Header("a digest that is no text")
    );
    assert_eq!(cause(|header| header.newest_nanos.set(1 << 30)), Cause::Nanos(1 << 30));
    assert_eq!(
        cause(|header| header.entries.set(u64::MAX)),
        Cause::Budget(format::MOST_ENTRIES, "entries in a layer")
    );
    assert_eq!(cause(|header| header.entries.set(18)), Cause::List);
    assert_eq!(cause(|header| header.entries.set(16)), Cause::ListLong);
    assert_eq!(
        cause(|header| header.list_plain.set(u64::MAX)),
        Cause::Budget(format::MOST_LIST, "bytes of names in a layer")
    );
    assert_eq!(cause(|header| header.list_plain.set(10)), Cause::List);
    assert_eq!(
        cause(|header| header.list_at.set(0)),
        Cause::Section("list of entries", 0, list_len, len)
    );
    assert_eq!(
        cause(|header| header.list_at.set(u64::MAX)),
        Cause::Section("list of entries", u64::MAX, list_len, len)
    );
    assert_eq!(cause(|header| header.list_crc.set(0)), Cause::SectionChecksum("entries"));
    assert_eq!(
        cause(|header| header.spans_len.set(6)),
        Cause::Section("restart points", HEADER as u64 + list_len, 6, len)
    );
    assert_eq!(
        cause(|header| header.spans_len.set(u64::MAX)),
        Cause::Section("restart points", HEADER as u64 + list_len, u64::MAX, len)
    );
    assert_eq!(cause(|header| header.spans_crc.set(0)), Cause::SectionChecksum("restart points"));
    assert!(matches!(cause(|header| header.tar_len.set(1000)), Cause::Place { end: 1000, .. }));

    let mut bytes = index(all_sorts(), b"");
    bytes[20] ^= 1;
    assert_eq!(Layer::from_bytes(bytes).unwrap_err().cause(), Some(&Cause::HeaderChecksum));
    assert_eq!(Layer::from_bytes(Vec::new()).unwrap_err().cause(), Some(&Cause::Magic));
}

/// Every byte of the file is under a checksum: a changed one is found, one that is cut off too.
#[test]
fn every_changed_byte_is_found() {
    let bytes = index(all_sorts(), b"spans");
    let is_found = |bytes: Vec<u8>| match Layer::from_bytes(bytes) {
        Ok(layer) => read(&layer).is_err() || layer.spans().is_err(),
        Err(_) => true,
    };
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(is_found(changed), "byte {at}");
        assert!(is_found(bytes[..at].to_vec()), "cut at {at}");
    }
}

/// A list that does not say what [`Builder`] writes, checksums and all.
fn with_list(plain: &[u8], entries: u64) -> Result<Vec<Entry>> {
    let list = zstd::encode_all(plain, 1).unwrap();
    let mut header = record::<Header>(&index(Vec::new(), b""), 0).unwrap().clone();
    header.entries.set(entries);
    header.list_crc.set(crc32c::crc32c(&list));
    header.list_len.set(list.len() as u64);
    header.list_plain.set(plain.len() as u64);
    header.spans_at.set((HEADER + list.len()) as u64);
    header.crc.set(header.sum());
    read(&Layer::from_bytes([header.as_bytes(), &list].concat())?)
}

#[test]
fn a_list_that_lies_is_found_out() {
    let cause = |list: &[u8]| with_list(list, 1).unwrap_err().cause::<Cause>().cloned().unwrap();
    // Kind, shared, name, mode, user, group, seconds, nanoseconds.
    let fine = [head::FOLDER, 0, 1, b'a', 0, 0, 0, 0, 0];
    assert_eq!(with_list(&fine, 1).unwrap()[0].path, b"a");
    let changed = |at: usize, bytes: &[u8]| [&fine[..at], bytes, &fine[at + 1..]].concat();
    assert_eq!(cause(&fine[..8]), Cause::List);
    assert_eq!(cause(&[&fine[..], &[0]].concat()), Cause::ListLong);
    assert_eq!(cause(&changed(0, &[7])), Cause::Kind(7));
    assert_eq!(cause(&changed(1, &[1])), Cause::Shared(1, 0));
    assert_eq!(cause(&changed(1, &[0xff; 10])), Cause::Number);
    assert_eq!(
        cause(&changed(2, &[0xff, 0xff, 0xff, 0xff, 0x0f])),
        Cause::PathLength(0xffff_ffff, format::MOST_PATH)
    );
    assert_eq!(cause(&changed(3, b"/")), Cause::Path);
    assert_eq!(cause(&changed(3, b".")), Cause::Path);
    assert_eq!(cause(&changed(3, b"\0")), Cause::ZeroByte);
    assert_eq!(cause(&changed(4, &[0x80, 0x20])), Cause::Field("mode", 0x1000));
    assert_eq!(cause(&changed(4, &[0x80, 0x80, 4])), Cause::Field("mode", 0x10000));
    assert_eq!(cause(&changed(5, &[0x80, 0x80, 0x80, 0x80, 0x10])), Cause::Field("user", 1 << 32));
    assert_eq!(cause(&changed(8, &[0x80, 0x94, 0xeb, 0xdc, 3])), Cause::Nanos(1_000_000_000));
    let flagged = |flag: u8, rest: &[u8]| [&changed(0, &[head::FOLDER | flag]), rest].concat();
    assert_eq!(cause(&flagged(head::ATTRIBUTES, &[1])), Cause::Attributes(1));
    assert_eq!(cause(&flagged(head::ATTRIBUTES, &[0, 1, 1, b'a', 0])), Cause::AttributeOrder);
    let twice = b"\0\x02\x06user.a\0\x06user.a\0";
    assert_eq!(cause(&flagged(head::ATTRIBUTES, twice)), Cause::AttributeOrder);
    let long = cause(&flagged(head::ATTRIBUTES, &[0, 1, 0xff, 1]));
    assert_eq!(long, Cause::Field("name of", 255));
    let kind = |kind: u8, rest: &[u8]| [&changed(0, &[kind]), rest].concat();
    assert_eq!(cause(&kind(head::SYMLINK, &[0])), Cause::Target(0));
    assert_eq!(cause(&kind(head::HARD_LINK, b"\x02a/")), Cause::Path);
    // Four bytes at 0 of a tar of 10,000: fine; at -1 they are not, nor are those of others.
    assert!(with_list(&kind(head::FILE, &[4, 0]), 1).is_ok());
    let place = cause(&kind(head::FILE, &[4, 1]));
    assert_eq!(place, Cause::Place { place: u64::MAX, len: 4, end: 10_000 });
    let run = cause(&kind(head::FILE | head::SPARSE, &[4, 1, 2, 3, 0]));
    assert_eq!(run, Cause::Run { at: 2, len: 3, size: 4 });
    let many = cause(&kind(head::FILE | head::SPARSE, &[4, 0xff, 0xff, 0xff, 0x7f]));
    assert_eq!(many, Cause::Budget(format::MOST_RUNS, "pieces of sparse files in a layer"));
}

#[test]
fn random_lists_are_errors_or_sound() {
    // A number of one, another of the other, of any length.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 24
    };
    let mut sound = 0;
    for _ in 0..20_000 {
        let len = random() % 60;
        let list: Vec<u8> =
            (0..len).map(|_| (random() % [4, 16, 256][(random() % 3) as usize]) as u8).collect();
        if let Ok(entries) = with_list(&list, 1 + random() % 3) {
            sound += 1;
            // What it lets pass is what it would have written.
            for entry in entries {
                check::check(&entry).unwrap();
                check::check_places(&entry, 10_000).unwrap();
            }
        }
    }
    assert!(sound > 0);
}

/// The budget of the index is 1 % of the compressed layer, most of it for restart points: an entry
/// may take 45 bytes.
#[test]
fn an_entry_takes_few_bytes() {
    let mut builder = Builder::new().unwrap();
    let mut place = 512;
    let count = 15_000;
    for number in 0_u64..count {
        // Names, sizes and times that do not repeat.
        let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let path = format!("usr/share/package{}/name-{:x}.gz", number / 12, mixed >> 40);
        let size = mixed >> 48;
        let mut entry = file(&path, &[(0, size + 1, place)], size + 1);
        entry.modified.seconds += (mixed >> 42).cast_signed();
        builder.add(entry).unwrap();
        place = (place + size + 1).next_multiple_of(512) + 512;
    }
    let facts = Facts { tar_len: place, ..FACTS() };
    let bytes = builder.finish(&facts, b"").unwrap();
    assert!(bytes.len() as u64 <= 30 * count, "{} bytes", bytes.len());
}

#[test]
fn the_header_is_as_documented() {
    use std::mem::offset_of;
    let page = include_str!("../../../docs/layer-index.md");
    let fields = [
        ("magic", offset_of!(Header, magic)),
        ("version", offset_of!(Header, version)),
        ("crc", offset_of!(Header, crc)),
        ("entries", offset_of!(Header, entries)),
        ("whiteouts", offset_of!(Header, whiteouts)),
        ("links", offset_of!(Header, links)),
        ("newest_seconds", offset_of!(Header, newest_seconds)),
        ("newest_nanos", offset_of!(Header, newest_nanos)),
        ("list_crc", offset_of!(Header, list_crc)),
        ("list_at", offset_of!(Header, list_at)),
        ("list_len", offset_of!(Header, list_len)),
        ("list_plain", offset_of!(Header, list_plain)),
        ("spans_at", offset_of!(Header, spans_at)),
        ("spans_len", offset_of!(Header, spans_len)),
        ("spans_crc", offset_of!(Header, spans_crc)),
        ("learnt", offset_of!(Header, learnt)),
        ("blob_len", offset_of!(Header, blob_len)),
        ("tar_len", offset_of!(Header, tar_len)),
        ("blob_digest", offset_of!(Header, blob_digest)),
        ("diff_id", offset_of!(Header, diff_id)),
    ];
    for (index, (name, offset)) in fields.iter().enumerate() {
        let end = fields.get(index + 1).map_or(HEADER, |(_, next)| *next);
        let row = format!("| {offset} | {} | `{name}` |", end - offset);
        assert!(page.contains(&row), "docs/layer-index.md has no row {row}");
    }
}
