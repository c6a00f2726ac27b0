//! The restart points of a blob, as they are kept in a file.
//!
//! | part | bytes |
//! |---|---|
//! | header | 72 |
//! | one record for each span, in order | 40 each |
//! | one hash for each piece of each span, in order | 8 each |
//! | windows, one behind the other | their packed lengths |
//!
//! All numbers are little-endian. The header's checksum covers all the rest. It protects against
//! damage; whoever can write the file can also write the checksum, so every number is checked
//! against the bounds it must keep, and what is decoded is checked against the hashes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Compression;
use super::cause::Cause;
use super::entrance::Chosen;
use super::gzip::Entrance;
use super::spool::Hash;
use crate::error::Result;
use crate::wire;

const MAGIC: [u8; 8] = *b"strspans";
const VERSION: u16 = 1;

/// Uncompressed bytes of a span at most. It bounds what a reader holds.
pub(super) const MAX_SPAN: u64 = 16 << 20;
/// Compressed bytes of a span that is decoded in one go.
pub(super) const MAX_ENCODED: u64 = 20 << 20;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    compression: u8,
    /// Bytes of a piece: a power of two, as its exponent.
    piece: u8,
    spans: U32,
    hashes: U32,
    reserved: U32,
    blob_len: U64,
    len: U64,
    windows: U64,
    side_len: U64,
    checksum: [u8; 16],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    /// Where the span begins, uncompressed.
    start: U64,
    /// Deflate: the bit to go on at. Else the byte where the encoded bytes begin.
    at: U64,
    /// Deflate: the bit where the block's header begins. Else the length of the encoded bytes.
    more: U64,
    /// Its first hash.
    hash: U32,
    /// Where its window ends among the windows; it begins where the last one's ends.
    window_end: U32,
    kind: u8,
    reserved: [u8; 7],
}

const PLAIN: u8 = 0;
const DEFLATE: u8 = 1;
const FRAMES: u8 = 2;
const SIDE: u8 = 3;

/// How a span is decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It is in the blob as it is, from this offset on.
    Plain(u64),
    Deflate(Entrance),
    /// Whole zstd frames: offset and length in the blob.
    Frames(u64, u64),
    /// A zstd frame: offset and length in the side file.
    Side(u64, u64),
}

/// One span: what is decoded from one restart point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span<'a> {
    pub(super) index: usize,
    /// Uncompressed.
    pub(super) range: Range<u64>,
    pub(super) start: Start,
    /// Packed.
    pub(super) window: &'a [u8],
    pub(super) hashes: &'a [Hash],
}

/// Restart points of one blob: where decoding can begin, and a hash for each piece of what comes
/// out. Cheap to clone.
#[derive(Clone)]
pub struct Spans {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    header: Header,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").field("len", &self.len()).field("spans", &self.count()).finish()
    }
}

/// What [`Spans`] are made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) compression: Compression,
    pub(super) piece: u32,
    pub(super) blob_len: u64,
    pub(super) len: u64,
    pub(super) side_len: u64,
    pub(super) spans: Vec<(u64, Start, Vec<u8>)>,
    pub(super) hashes: Vec<Hash>,
}

impl Parts {
    /// A span for each chosen place.
    pub(super) fn add(&mut self, chosen: Chosen) {
        self.spans.push((chosen.at, Start::Deflate(chosen.entrance), chosen.window));
    }

    /// Lays them out.
    pub(super) fn spans(self) -> Result<Spans> {
        let mut records = Vec::with_capacity(self.spans.len() * size_of::<Record>());
        let mut windows = vec![];
        let mut hash = 0_u64;
        for (index, (start, how, window)) in self.spans.iter().enumerate() {
            let (kind, at, more) = match *how {
                Start::Plain(at) => (PLAIN, at, 0),
                Start::Deflate(Entrance { header, bit }) => (DEFLATE, bit, header),
                Start::Frames(at, len) => (FRAMES, at, len),
                Start::Side(at, len) => (SIDE, at, len),
            };
            windows.extend_from_slice(window);
            let record = Record {
                start: U64::new(*start),
                at: U64::new(at),
                more: U64::new(more),
                hash: U32::new(u32::try_from(hash).map_err(|_| Cause::BadSpan(index))?),
                window_end: U32::new(
                    u32::try_from(windows.len()).map_err(|_| Cause::BadSpan(index))?,
                ),
                kind,
                reserved: [0; 7],
            };
            records.extend_from_slice(record.as_bytes());
            let end = self.spans.get(index + 1).map_or(self.len, |(start, ..)| *start);
            hash += end.saturating_sub(*start).div_ceil(u64::from(self.piece));
        }
        let count =
            |count: usize| u32::try_from(count).map(U32::new).map_err(|_| Cause::BadSpan(count));
        let mut header = Header {
            magic: MAGIC,
            version: U16::new(VERSION),
            compression: number(self.compression),
            piece: self.piece.trailing_zeros() as u8,
            spans: count(self.spans.len())?,
            hashes: count(self.hashes.len())?,
            reserved: U32::new(0),
            blob_len: U64::new(self.blob_len),
            len: U64::new(self.len),
            windows: U64::new(windows.len() as u64),
            side_len: U64::new(self.side_len),
            checksum: [0; 16],
        };
        let body = [&records, self.hashes.as_bytes(), &windows].concat();
        header.checksum = checksum(&header, &body);
        Spans::from_bytes([header.as_bytes(), &body].concat())
    }
}

/// What a file says of how its blob is compressed.
const NUMBERS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Zstd, Compression::Xz, Compression::Bzip2];

fn number(compression: Compression) -> u8 {
    NUMBERS.iter().position(|&it| it == compression).unwrap_or(0) as u8
}

fn from_number(number: u8) -> Option<Compression> {
    NUMBERS.get(usize::from(number)).copied()
}

fn checksum(header: &Header, body: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(Header { checksum: [0; 16], ..*header }.as_bytes()).update(body);
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    short
}

impl Spans {
    /// Reads what [`Spans::as_bytes`] gave: a vector, or a mapping of a file.
    ///
    /// # Errors
    /// Corrupt: whatever is not what `as_bytes` gives. Unsupported: another version.
    pub fn from_bytes(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self> {
        let all = bytes.as_ref();
        let header = *wire::record::<Header>(all, 0).ok_or(Cause::SpansMagic)?;
        if header.magic != MAGIC {
            return Err(Cause::SpansMagic.into());
        }
        if header.version.get() != VERSION {
            return Err(Cause::SpansVersion(header.version.get()).into());
        }
        let (records, hashes) = (u64::from(header.spans.get()), u64::from(header.hashes.get()));
        let expected = (records * size_of::<Record>() as u64 + hashes * size_of::<Hash>() as u64)
            .checked_add(header.windows.get())
            .and_then(|len| len.checked_add(size_of::<Header>() as u64))
            .ok_or(Cause::SpansMagic)?;
        if expected != all.len() as u64 {
            return Err(Cause::SpansLength { found: all.len() as u64, expected }.into());
        }
        let spans = Self { header, bytes: Arc::new(bytes) };
        let body = spans.bytes().get(size_of::<Header>()..).unwrap_or_default();
        if checksum(&header, body) != header.checksum {
            return Err(Cause::SpansChecksum.into());
        }
        spans.check()?;
        Ok(spans)
    }

    /// What to keep in a file.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes()
    }

    /// Bytes of the data, uncompressed.
    #[expect(clippy::len_without_is_empty, reason = "as of a source")]
    pub fn len(&self) -> u64 {
        self.header.len.get()
    }

    /// Bytes of the compressed blob.
    pub fn blob_len(&self) -> u64 {
        self.header.blob_len.get()
    }

    /// Bytes of the side file that are used; 0 if none is needed.
    pub fn side_len(&self) -> u64 {
        self.header.side_len.get()
    }

    /// How many spans there are.
    pub fn count(&self) -> usize {
        self.header.spans.get() as usize
    }

    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        from_number(self.header.compression).unwrap_or(Compression::None)
    }

    pub(super) fn piece(&self) -> usize {
        1 << self.header.piece
    }

    fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn records(&self) -> &[Record] {
        let bytes = self.bytes().get(size_of::<Header>()..).unwrap_or_default();
        wire::records(bytes.get(..self.count() * size_of::<Record>()).unwrap_or_default())
    }

    fn after_records(&self) -> &[u8] {
        let at = size_of::<Header>() + self.count() * size_of::<Record>();
        self.bytes().get(at..).unwrap_or_default()
    }

    fn hashes(&self) -> &[Hash] {
        let len = self.header.hashes.get() as usize * size_of::<Hash>();
        wire::records(self.after_records().get(..len).unwrap_or_default())
    }

    fn windows(&self) -> &[u8] {
        let len = self.header.hashes.get() as usize * size_of::<Hash>();
        self.after_records().get(len..).unwrap_or_default()
    }

    /// The span of this number.
    pub(super) fn span(&self, index: usize) -> Result<Span<'_>, Cause> {
        let bad = || Cause::BadSpan(index);
        let records = self.records();
        let record = records.get(index).ok_or_else(bad)?;
        let next = records.get(index + 1);
        let range = record.start.get()..next.map_or(self.len(), |next| next.start.get());
        let len = range.end.checked_sub(range.start).filter(|len| (1..=MAX_SPAN).contains(len));
        let pieces = len.ok_or_else(bad)?.div_ceil(self.piece() as u64) as usize;
        let hash = record.hash.get() as usize;
        let hashes = hash.checked_add(pieces).and_then(|end| self.hashes().get(hash..end));
        let before = match index.checked_sub(1).and_then(|before| records.get(before)) {
            Some(before) => before.window_end.get() as usize,
            None => 0,
        };
        let window =
            self.windows().get(before..record.window_end.get() as usize).ok_or_else(bad)?;
        let (at, more) = (record.at.get(), record.more.get());
        let within = |total: u64| {
            let end = at.checked_add(more).filter(|&end| end <= total && more <= MAX_ENCODED);
            end.map(|_| (at, more)).ok_or_else(bad)
        };
        let start = match record.kind {
            PLAIN
                if at
                    .checked_add(range.end - range.start)
                    .is_some_and(|end| end <= self.blob_len()) =>
            {
                Start::Plain(at)
            }
            DEFLATE if more <= at && at / 8 < self.blob_len() => {
                Start::Deflate(Entrance { header: more, bit: at })
            }
            FRAMES => within(self.blob_len()).map(|(at, len)| Start::Frames(at, len))?,
            SIDE => within(self.side_len()).map(|(at, len)| Start::Side(at, len))?,
            _ => return Err(bad()),
        };
        Ok(Span { index, range, start, window, hashes: hashes.ok_or_else(bad)? })
    }

    /// The number of the span that holds the byte at `offset`.
    pub(super) fn find(&self, offset: u64) -> usize {
        self.records().partition_point(|record| record.start.get() <= offset).saturating_sub(1)
    }

    fn check(&self) -> Result<(), Cause> {
        if from_number(self.header.compression).is_none() || !(6..=24).contains(&self.header.piece)
        {
            return Err(Cause::BadSpan(0));
        }
        let first = self.records().first().map_or(0, |first| first.start.get());
        if first != 0 || (self.len() > 0) != (self.count() > 0) {
            return Err(Cause::BadSpan(0));
        }
        (0..self.count()).try_for_each(|index| self.span(index).map(drop))
    }
}
