//! The tar of a layer read by the spans of its ztoc, as they are kept in the index of the layer.
//!
//! | part | bytes |
//! |---|---|
//! | header | 32 |
//! | one record for each span, in order | 64 each |
//! | one record for each file with contents, in order | 40 each |
//! | windows, one behind the other, each a zstd frame | their lengths |
//!
//! All numbers are little-endian. Before contents of a file are given out for the first time, the
//! headers before them in the tar are held against its name and size: what says where contents are
//! could otherwise give one file those of another.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::cause::Cause;
use super::super::hash;
use super::super::table::MOST_UNIT;
use super::ztoc::name_hash;
use crate::block::{BlockSource, Cache, Extent, Key, Origin, Owner, Unit, check_range};
use crate::error::{Error, Kind, Result};
use crate::oci::tar::{self, EntryKind, Run};
use crate::oci::{Digest, span};
use crate::wire;

const MAGIC: [u8; 8] = *b"strsocis";
/// Bytes of a window, which is as far as deflate reaches back.
const WINDOW: usize = 32 << 10;
/// Spans of a layer at most: what their windows take is fetched with the ztoc.
const MOST_SPANS: usize = 1 << 14;
const LEVEL: i32 = 3;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    spans: U32,
    files: U32,
    /// Bytes of the tar.
    len: U64,
    windows: U64,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SpanRecord {
    /// Where it begins in the tar.
    place: U64,
    /// Where it is in the blob.
    start: U64,
    /// Bytes of the blob that hold it.
    size: U32,
    /// Where its window ends among the windows, and in the highest 3 bits how many bits of its first
    /// byte are its own; 0 for all.
    window: U32,
    digest: [u8; 32],
    /// How many bits of its last byte are those of the next span; 8 if the stream ends with it.
    next: U32,
    reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct FileRecord {
    place: U64,
    size: U64,
    headers: U64,
    name: [u8; 16],
}

/// What lies between two checkpoints.
#[derive(Debug)]
pub(super) struct Span<'a> {
    /// Where it is in the blob.
    pub(super) stored: Range<u64>,
    /// Where it begins in the tar.
    pub(super) place: u64,
    /// How many bits of its first byte are its own; 0 for all.
    pub(super) bits: u8,
    /// How many bits of its last byte are those of the next; `None` if the stream ends with it.
    pub(super) next: Option<u8>,
    /// Of the bytes in the blob.
    pub(super) digest: [u8; 32],
    /// What it may refer to; nothing for zeros.
    pub(super) window: &'a [u8],
}

/// A file with contents.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    pub(super) place: u64,
    pub(super) size: u64,
    /// Where its headers begin.
    pub(super) headers: u64,
    pub(super) name: [u8; 16],
}

/// Takes spans and files in their order.
#[derive(Debug)]
pub(in super::super) struct Writer {
    len: u64,
    spans: Vec<SpanRecord>,
    files: Vec<FileRecord>,
    windows: Vec<u8>,
}

impl Writer {
    pub(super) fn new(len: u64) -> Self {
        Self { len, spans: vec![], files: vec![], windows: vec![] }
    }

    pub(super) fn add(&mut self, span: Span<'_>) -> Result<(), Cause> {
        if self.spans.len() >= MOST_SPANS {
            return Err(Cause::Budget(MOST_SPANS as u64, "spans"));
        }
        if !span.window.is_empty() {
            let packed = zstd::bulk::compress(span.window, LEVEL);
            self.windows.extend_from_slice(&packed.map_err(|_| Cause::Table(self.spans.len()))?);
        }
        // Windows are 512 MiB at most, so the highest bits are free.
        let window = self.windows.len() as u32 | u32::from(span.bits) << 29;
        self.spans.push(SpanRecord {
            place: U64::new(span.place),
            start: U64::new(span.stored.start),
            size: U32::new((span.stored.end - span.stored.start) as u32),
            window: U32::new(window),
            digest: span.digest,
            next: U32::new(span.next.map_or(8, u32::from)),
            reserved: U32::new(0),
        });
        Ok(())
    }

    pub(super) fn add_file(&mut self, file: File) -> Result<(), Cause> {
        self.files.push(FileRecord {
            place: U64::new(file.place),
            size: U64::new(file.size),
            headers: U64::new(file.headers),
            name: file.name,
        });
        Ok(())
    }

    /// Lays the table out.
    pub(in super::super) fn finish(self) -> Vec<u8> {
        let header = Header {
            magic: MAGIC,
            spans: U32::new(self.spans.len() as u32),
            files: U32::new(self.files.len() as u32),
            len: U64::new(self.len),
            windows: U64::new(self.windows.len() as u64),
        };
        [header.as_bytes(), self.spans.as_bytes(), self.files.as_bytes(), &self.windows].concat()
    }
}

/// A source of the tar, in which only contents of files can be read.
pub(in super::super) struct Spans {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    header: Header,
    blob: Arc<dyn BlockSource>,
    cache: Arc<Cache>,
    owner: Owner,
    /// Files whose headers were looked at.
    seen: Box<[AtomicBool]>,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spans").field("blob", &self.blob).finish_non_exhaustive()
    }
}

impl Spans {
    /// Reads what [`Writer::finish`] gave.
    pub(in super::super) fn new(
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
        blob: Arc<dyn BlockSource>,
        cache: &Arc<Cache>,
    ) -> Result<Self, Cause> {
        let header = *wire::record::<Header>(bytes.as_ref(), 0).ok_or(Cause::Table(0))?;
        let (spans, files) = (u64::from(header.spans.get()), u64::from(header.files.get()));
        let len = (spans * size_of::<SpanRecord>() as u64 + files * size_of::<FileRecord>() as u64)
            .checked_add(header.windows.get())
            .and_then(|len| len.checked_add(size_of::<Header>() as u64));
        if header.magic != MAGIC || len != Some(bytes.as_ref().len() as u64) {
            return Err(Cause::Table(0));
        }
        let seen = (0..files).map(|_| AtomicBool::new(false)).collect();
        let (cache, owner) = (Arc::clone(cache), cache.owner());
        let spans = Self { bytes: Arc::new(bytes), header, blob, cache, owner, seen };
        (0..header.spans.get() as usize).try_for_each(|index| spans.span(index).map(drop))?;
        Ok(spans)
    }

    fn after_header(&self) -> &[u8] {
        (*self.bytes).as_ref().get(size_of::<Header>()..).unwrap_or_default()
    }

    fn records(&self) -> &[SpanRecord] {
        let len = self.header.spans.get() as usize * size_of::<SpanRecord>();
        wire::records(self.after_header().get(..len).unwrap_or_default())
    }

    fn files(&self) -> &[FileRecord] {
        let at = self.header.spans.get() as usize * size_of::<SpanRecord>();
        let len = self.header.files.get() as usize * size_of::<FileRecord>();
        wire::records(self.after_header().get(at..at + len).unwrap_or_default())
    }

    fn windows(&self) -> &[u8] {
        let all = self.after_header();
        let at = all.len().saturating_sub(self.header.windows.get() as usize);
        all.get(at..).unwrap_or_default()
    }

    /// The span of this number, its window packed, and where it ends in the tar.
    fn span(&self, index: usize) -> Result<(Span<'_>, u64), Cause> {
        let bad = || Cause::Table(index);
        let records = self.records();
        let record = records.get(index).ok_or_else(bad)?;
        let end = records.get(index + 1).map_or(self.header.len, |next| next.place).get();
        let before = index.checked_sub(1).and_then(|before| records.get(before));
        let end_of = |record: &SpanRecord| (record.window.get() & (u32::MAX >> 3)) as usize;
        let window =
            self.windows().get(before.map_or(0, end_of)..end_of(record)).ok_or_else(bad)?;
        let start = record.start.get();
        let stored = start..start.checked_add(record.size.get().into()).ok_or_else(bad)?;
        let place = record.place.get();
        let len = end.checked_sub(place).filter(|len| (1..=MOST_UNIT).contains(len));
        if len.is_none() || stored.end > self.blob.len() || (index == 0) != (place == 0) {
            return Err(bad());
        }
        let bits = (record.window.get() >> 29) as u8;
        let next = u8::try_from(record.next.get()).ok().filter(|&next| next < 8);
        Ok((Span { stored, place, bits, next, digest: record.digest, window }, end))
    }

    /// The span of this number, decompressed. Whoever wants the same one waits for it.
    fn decoded(&self, index: usize) -> Result<Arc<Unit>> {
        self.cache.get_or_load(Key(self.owner, index as u64), || {
            let (span, end) = self.span(index)?;
            let mut packed = vec![0; (span.stored.end - span.stored.start) as usize];
            self.blob.read_at(span.stored.start, &mut packed)?;
            let (at, found) = (span.stored.start, hash(&packed));
            if found != span.digest {
                let (named, found) = (Digest::of_sha256(&span.digest), Digest::of_sha256(&found));
                return Err(Cause::Contents { at, named, found }.into());
            }
            let mut window = [0; WINDOW];
            if !span.window.is_empty() {
                let len = zstd::bulk::decompress_to_buffer(span.window, &mut window);
                len.ok().filter(|&len| len == WINDOW).ok_or(Cause::Table(index))?;
            }
            // The rest of a byte whose first bits are the span's before.
            let bit = (8 - span.bits) % 8;
            let bytes = span::inflate(packed, bit, span.next, &window, (end - span.place) as usize);
            bytes.map(Unit).map_err(|error| match error.kind() {
                Kind::Corrupt => Cause::Chunk { at, why: error.to_string() }.into(),
                _ => error,
            })
        })
    }

    fn fill(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut at, mut rest) = (offset, buf);
        let records = self.records();
        let mut index =
            records.partition_point(|span| span.place.get() <= offset).saturating_sub(1);
        while !rest.is_empty() {
            let bytes = self.decoded(index)?;
            let within = at.saturating_sub(self.span(index)?.0.place);
            let bytes = bytes.0.get(within as usize..).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            if len == 0 {
                return Err(Cause::Table(index).into());
            }
            let (now, others) = rest.split_at_mut(len);
            now.copy_from_slice(bytes.get(..len).unwrap_or_default());
            (at, rest, index) = (at + len as u64, others, index + 1);
        }
        Ok(())
    }

    /// Holds the headers of the file of this number against what is known of it.
    fn check(&self, number: usize, file: &FileRecord) -> Result<()> {
        let seen = self.seen.get(number).ok_or(Cause::Table(number))?;
        if seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let (at, place, size) = (file.headers.get(), file.place.get(), file.size.get());
        let len = place.checked_sub(at).filter(|&len| len <= MOST_UNIT);
        let len = len.ok_or(Cause::Table(number))?;
        let mut headers = vec![0; len as usize];
        self.fill(at, &mut headers)?;
        let rest = std::io::repeat(0).take(512);
        let mut reader = tar::Reader::new(std::io::BufReader::new(headers.chain(rest)));
        let whole = [Run { at: 0, len: size, place: len }];
        let is_it = |entry: &tar::Entry| {
            entry.kind == EntryKind::File
                && name_hash(&entry.path) == file.name
                && (entry.size, &*entry.runs) == (size, &whole)
        };
        match reader.next() {
            Ok(Some(entry)) if is_it(&entry) => {}
            Ok(_) | Err(_) => return Err(Error::from(Cause::Headers { at })),
        }
        seen.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl BlockSource for Spans {
    fn len(&self) -> u64 {
        self.header.len.get()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len())?;
        let end = offset + buf.len() as u64;
        let files = self.files();
        let number = files.partition_point(|file| file.place.get() <= offset).saturating_sub(1);
        // Nothing else of the tar is given out.
        let file = files.get(number).filter(|file| {
            let (place, size) = (file.place.get(), file.size.get());
            place <= offset && place.checked_add(size).is_some_and(|file_end| end <= file_end)
        });
        self.check(number, file.ok_or(Cause::Headers { at: offset })?)?;
        self.fill(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.len().saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len().saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&std::fs::File> {
        None
    }
}
