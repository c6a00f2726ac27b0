//! Ztocs that are right, and those that lie, each with what is said about it.

use super::*;
use crate::oci::Algorithm;
use crate::oci::blob::LocalBlob;

/// A field of a table of FlatBuffers.
#[derive(Debug, Clone)]
enum Field {
    None,
    Byte(i8),
    Int(i32),
    Long(i64),
    Bytes(Vec<u8>),
    Table(Vec<Field>),
    Many(Vec<Field>),
}

use Field::{Byte, Bytes, Int, Long, Many, None as Nothing, Table as Fields};

/// Writes what a field leads to; gives where it is.
fn write(out: &mut Vec<u8>, field: &Field) -> usize {
    let mut todo = vec![];
    let at = match field {
        Bytes(bytes) => {
            let at = out.len();
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
            at
        }
        Many(fields) => {
            let at = out.len();
            out.extend_from_slice(&(fields.len() as u32).to_le_bytes());
            for field in fields {
                todo.push((out.len(), field));
                out.extend_from_slice(&[0; 4]);
            }
            at
        }
        Fields(fields) => {
            let (places, mut at) = (out.len(), 4_u16);
            out.extend_from_slice(&(4 + 2 * fields.len() as u16).to_le_bytes());
            out.extend_from_slice(&(4 + 8 * fields.len() as u16).to_le_bytes());
            for field in fields {
                let place = if matches!(field, Nothing) { 0 } else { at };
                out.extend_from_slice(&place.to_le_bytes());
                at += 8;
            }
            let table = out.len();
            out.extend_from_slice(&((table - places) as i32).to_le_bytes());
            for field in fields {
                let slot = out.len();
                out.extend_from_slice(&[0; 8]);
                match field {
                    Nothing => {}
                    Byte(byte) => out[slot..=slot].copy_from_slice(&byte.to_le_bytes()),
                    Int(int) => out[slot..slot + 4].copy_from_slice(&int.to_le_bytes()),
                    Long(long) => out[slot..].copy_from_slice(&long.to_le_bytes()),
                    field => todo.push((slot, field)),
                }
            }
            table
        }
        _ => panic!("no field of its own"),
    };
    for (slot, field) in todo {
        let there = write(out, field);
        out[slot..slot + 4].copy_from_slice(&((there - slot) as u32).to_le_bytes());
    }
    at
}

fn text(text: &str) -> Field {
    Bytes(text.into())
}

/// A layer, and the ztoc of it in its parts.
struct Made {
    blob: Vec<u8>,
    stored: i64,
    plain: i64,
    files: Vec<Vec<Field>>,
    algorithm: Field,
    last: i32,
    digests: Vec<Field>,
    checkpoints: Vec<u8>,
}

fn file(name: &str, kind: &str, place: i64, size: i64) -> Vec<Field> {
    let mut fields = vec![text(name), text(kind), Long(place), Long(size), text(""), Long(0o644)];
    fields.extend([Int(0), Int(0), Nothing, Nothing, text("2020-01-01T00:00:00Z")]);
    fields.extend([Long(0), Long(0), Many(vec![])]);
    fields
}

impl Made {
    /// A tar of the files `a`, which holds `one`, and `b`, with 600 bytes; one span.
    fn new() -> Self {
        let mut tar = [tar_header("a", 3), b"one".to_vec(), vec![0; 509]].concat();
        tar.extend([tar_header("b", 600), vec![7; 600], vec![0; 424 + 1024]].concat());
        let blob = gzip(&tar);
        let mut checkpoints = [&1_u32.to_le_bytes()[..], &4096_i64.to_le_bytes()].concat();
        checkpoints.extend(point(10, 0, 0));
        Self {
            stored: blob.len() as i64,
            plain: tar.len() as i64,
            files: vec![file("a", "reg", 512, 3), file("b", "reg", 1536, 600)],
            algorithm: Nothing,
            last: 0,
            digests: vec![text(&sha256(&blob[10..]))],
            checkpoints,
            blob,
        }
    }

    fn ztoc(&self) -> Vec<u8> {
        let files = self.files.iter().cloned().map(Fields).collect();
        let info = vec![
            self.algorithm.clone(),
            Int(self.last),
            Many(self.digests.clone()),
            Bytes(self.checkpoints.clone()),
        ];
        let root = Fields(vec![
            text("0.9"),
            text("test"),
            Long(self.stored),
            Long(self.plain),
            Fields(vec![Many(files)]),
            Fields(info),
        ]);
        let mut out = vec![0; 4];
        let at = write(&mut out, &root);
        out[..4].copy_from_slice(&(at as u32).to_le_bytes());
        out
    }

    fn open(&self) -> Result<Opened> {
        open_by(&self.blob, self.ztoc())
    }
}

fn open_by(blob: &[u8], ztoc: Vec<u8>) -> Result<Opened> {
    let digest = Digest::of(Algorithm::Sha256, &ztoc);
    let ztoc = LocalBlob(Arc::new(MemorySource::new(ztoc)));
    open(blob, &Claim::ztoc(digest, Arc::new(ztoc)))
}

fn point(at: i64, place: i64, bits: u8) -> Vec<u8> {
    [&at.to_le_bytes()[..], &place.to_le_bytes(), &[bits], &[0; 32 << 10]].concat()
}

#[test]
fn contents_are_where_their_headers_are() {
    let mut made = Made::new();
    let opened = made.open().unwrap();
    assert_eq!(opened.read("a").unwrap(), b"one");
    assert_eq!(opened.read("b").unwrap(), [7; 600]);
    assert_eq!(opened.index.facts().learnt, Learnt::Soci);
    assert_eq!(opened.entries()[1].modified.seconds, 1_577_836_800);
    // Nothing but contents of files is given out, and of one at a time.
    for (at, len) in [(0, 10), (511, 2), (512, 4), (515, 1), (1535, 2), (3000, 10)] {
        let error = opened.data.read_at(at, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.cause(), Some(&Cause::Headers { at }));
    }
    // As it was of old: the first checkpoint is left out.
    made.checkpoints.truncate(12);
    assert_eq!(made.open().unwrap().read("b").unwrap(), [7; 600]);
}

#[test]
fn what_is_elsewhere_is_not_given_out() {
    let read = |change: &dyn Fn(&mut Made), name: &str| {
        let mut made = Made::new();
        change(&mut made);
        made.open().unwrap().read(name).unwrap_err().cause::<Cause>().cloned().unwrap()
    };
    let moved = Cause::Headers { at: 0 };
    assert_eq!(read(&|made| made.files[0][0] = text("c"), "c"), moved);
    assert_eq!(read(&|made| made.files[0][3] = Long(2), "a"), moved);
    assert_eq!(read(&|made| made.files[0][3] = Long(4), "a"), moved);
    // All of the first as headers of the second.
    assert_eq!(read(&|made| drop(made.files.remove(0)), "b"), moved);
    let digest = sha256(b"other");
    let named = Cause::Contents {
        at: 10,
        named: digest.parse().unwrap(),
        found: sha256(&Made::new().blob[10..]).parse().unwrap(),
    };
    assert_eq!(read(&|made| made.digests = vec![text(&digest)], "a"), named);
    let cut = read(
        &|made| {
            made.blob.truncate(40);
            made.stored = 40;
            made.digests = vec![text(&sha256(&made.blob[10..]))];
        },
        "b",
    );
    assert!(matches!(cut, Cause::Chunk { at: 10, .. }), "{cut}");
}

#[test]
fn what_a_ztoc_cannot_say() {
    let said = |change: &dyn Fn(&mut Made)| {
        let mut made = Made::new();
        change(&mut made);
        made.open().map(drop).unwrap_err().cause::<Cause>().cloned().unwrap()
    };
    let length = |value| Cause::Number { field: "length of the layer", value };
    assert_eq!(said(&|made| made.stored = 1), length(1));
    assert_eq!(said(&|made| made.stored = -1), length(-1));
    let negative = Cause::Number { field: "length of the tar", value: -1 };
    assert_eq!(said(&|made| made.plain = -1), negative);
    let other = Cause::Type("compression 2".into());
    assert_eq!(said(&|made| made.algorithm = Byte(2)), other);
    let count = |digests, checkpoints| Cause::SpanCount { digests, checkpoints };
    assert_eq!(said(&|made| made.digests.clear()), count(0, 1));
    assert_eq!(said(&|made| made.last = 1), count(1, 1));
    assert_eq!(said(&|made| made.last = -1), count(1, 1));
    assert_eq!(
        said(&|made| made.digests = vec![text("sha256:x")]),
        Cause::ChunkDigest("sha256:x".into())
    );
    let len = Made::new().checkpoints.len();
    assert_eq!(said(&|made| made.checkpoints.clear()), Cause::Checkpoints(0));
    assert_eq!(said(&|made| made.checkpoints.truncate(len - 1)), Cause::Checkpoints(len - 1));
    assert_eq!(said(&|made| made.checkpoints[0] = 3), Cause::Checkpoints(len));
    for (at, place, bits) in
        [(-1, 0, 0), (0, 0, 1), (i64::MAX, 0, 0), (10, 1, 0), (10, 0, 8), (10, -1, 0)]
    {
        let change = |made: &mut Made| {
            made.checkpoints.truncate(12);
            made.checkpoints.extend(point(at, place, bits));
        };
        assert_eq!(said(&change), Cause::Checkpoint(0), "{at} {place} {bits}");
    }
    // A span of more than any that is honest.
    let huge = 17 << 20;
    let most = Cause::ChunkLength { len: huge, most: table::MOST_UNIT };
    assert_eq!(said(&|made| made.plain = huge as i64), most);

    let order = |wanted, found| Cause::Order { wanted, found };
    assert_eq!(said(&|made| made.files.reverse()), order(2560, 512));
    assert_eq!(said(&|made| made.files[0][2] = Long(0)), order(0, 0));
    assert_eq!(said(&|made| made.files[0][2] = Long(513)), order(0, 513));
    assert_eq!(said(&|made| made.files[1][2] = Long(1024)), order(1024, 1024));
    let offset = Cause::Number { field: "offset", value: -512 };
    assert_eq!(said(&|made| made.files[1][2] = Long(-512)), offset);
    for size in [2049, i64::MAX] {
        let limit = Made::new().plain.cast_unsigned();
        let outside = Cause::Outside { at: 1536, end: u64::MAX, limit };
        assert_eq!(said(&|made| made.files[1][3] = Long(size)), outside);
    }
    assert_eq!(said(&|made| made.files[1][1] = text("door")), Cause::Type("door".into()));
    assert_eq!(said(&|made| made.files[1][10] = text("noon")), Cause::Time("noon".into()));
    let sparse = |made: &mut Made| {
        let pair = Fields(vec![text("GNU.sparse.major"), text("1")]);
        made.files[0][13] = Many(vec![pair]);
    };
    assert_eq!(said(&sparse), Cause::Sparse);
}

#[test]
fn whatever_a_byte_is_it_is_read_within_bounds() {
    let made = Made::new();
    let mut good = made.ztoc();
    // Windows are data, and most of it.
    let window = good.windows(8192).position(|it| it.iter().all(|&byte| byte == 0)).unwrap();
    for at in (0..good.len()).filter(|&at| at < window + 16 || at % 997 == 0) {
        let was = good[at];
        for value in [0, 1, 0x7f, 0x80, 0xff, was ^ 4] {
            good[at] = value;
            if let Ok(opened) = open_by(&made.blob, good.clone()) {
                for entry in opened.entries() {
                    let _ = filled(&entry, &*opened.data);
                }
            }
        }
        good[at] = was;
    }
    for len in (0..good.len()).step_by(7) {
        assert!(open_by(&made.blob, good[..len].to_vec()).is_err(), "{len}");
    }
}

#[test]
fn what_is_told_twice_is_not_read_for_ever() {
    // Many offsets that lead to the same long attribute.
    let mut made = Made::new();
    let pair = Fields(vec![text("SCHILY.xattr.user.a"), Bytes(vec![7; 4096])]);
    made.files[0][13] = Many(vec![pair]);
    assert_eq!(made.open().unwrap().entries()[0].xattrs.len(), 1);
    let mut ztoc = made.ztoc();
    let follow = |ztoc: &[u8], slot: usize| {
        slot + u32::from_le_bytes(ztoc[slot..slot + 4].try_into().unwrap()) as usize
    };
    let field = |table: usize, number: usize| table + 4 + 8 * number;
    let toc = follow(&ztoc, field(follow(&ztoc, 0), 4));
    let first = follow(&ztoc, follow(&ztoc, field(toc, 0)) + 4);
    let slot = field(first, 13);
    let there = follow(&ztoc, follow(&ztoc, slot) + 4);
    // A new vector behind all: offsets only lead forward, so the table comes after it.
    let table = ztoc[there..].to_vec();
    let (count, at) = (100_000_u32, ztoc.len());
    ztoc[slot..slot + 4].copy_from_slice(&((at - slot) as u32).to_le_bytes());
    ztoc.extend_from_slice(&count.to_le_bytes());
    for nth in 0..count {
        ztoc.extend_from_slice(&(4 * (count - nth)).to_le_bytes());
    }
    let moved = ztoc.len();
    ztoc.extend_from_slice(&table);
    let back = i32::from_le_bytes(table[..4].try_into().unwrap()) + (moved - there) as i32;
    ztoc[moved..moved + 4].copy_from_slice(&back.to_le_bytes());
    let error = open_by(&made.blob, ztoc).map(drop).unwrap_err();
    let cause = error.cause::<Cause>().unwrap();
    assert!(matches!(cause, Cause::FlatBuffer(_)), "{cause}");
}
