//! Where the contents of a layer's files lie in its blob, chunk by chunk: what a table of contents
//! comes down to beside the list of entries, as it is kept in the index of the layer.
//!
//! | part | bytes |
//! |---|---|
//! | header | 24 |
//! | one record for each unit, in order | 40 each |
//! | one record for each chunk, in order | 40 each |
//!
//! All numbers are little-endian. A *unit* is what is decompressed from its start: a member of gzip
//! or frames of zstd. A *chunk* is a piece of a file in it, with the digest of its bytes. All chunks
//! one behind the other are the address space that the entries of the index have their places in.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;
use crate::wire;

const MAGIC: [u8; 8] = *b"strchunk";

/// Bytes that a unit holds at most, once it is decompressed. It bounds what a reader holds.
pub(super) const MOST_UNIT: u64 = 16 << 20;
/// Chunks of a layer at most.
pub(super) const MOST_CHUNKS: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    units: U32,
    chunks: U32,
    /// Whether units are zstd, and not gzip.
    zstd: U32,
    reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct UnitRecord {
    /// Where its first chunk is in the address space.
    place: U64,
    /// Where it begins in the blob.
    at: U64,
    /// Bytes of the blob that hold it.
    size: U64,
    /// Bytes to pass over once it is decompressed.
    skip: U64,
    /// Its first chunk.
    chunk: U32,
    reserved: U32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ChunkRecord {
    /// Where it is in what the unit decompresses to, behind what is passed over.
    inner: U32,
    len: U32,
    digest: [u8; 32],
}

/// How units are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Gzip,
    Zstd,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) inner: u64,
    pub(super) len: u64,
    pub(super) digest: [u8; 32],
}

/// What is fetched and decompressed as a whole.
#[derive(Debug, Clone)]
pub(super) struct Unit<'a> {
    /// Where its chunks are in the address space.
    pub(super) places: Range<u64>,
    /// Where it is in the blob.
    pub(super) stored: Range<u64>,
    pub(super) skip: u64,
    chunks: &'a [ChunkRecord],
}

impl Unit<'_> {
    pub(super) fn len(&self) -> usize {
        // As long as its chunks, which are bounded.
        (self.places.end - self.places.start) as usize
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = Chunk> {
        self.chunks.iter().map(|record| Chunk {
            inner: record.inner.get().into(),
            len: record.len.get().into(),
            digest: record.digest,
        })
    }
}

/// The table, as it was kept.
#[derive(Clone)]
pub(super) struct Table {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    header: Header,
    len: u64,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("units", &self.count()).finish_non_exhaustive()
    }
}

impl Table {
    /// Reads what [`Writer::finish`] gave, of a blob of `blob_len` bytes.
    pub(super) fn from_bytes(
        bytes: impl AsRef<[u8]> + Send + Sync + 'static,
        blob_len: u64,
    ) -> Result<Self, Cause> {
        let all = bytes.as_ref();
        let header = *wire::record::<Header>(all, 0).ok_or(Cause::Table(0))?;
        let units = u64::from(header.units.get()) * size_of::<UnitRecord>() as u64;
        let chunks = u64::from(header.chunks.get()) * size_of::<ChunkRecord>() as u64;
        let len = size_of::<Header>() as u64 + units + chunks;
        if header.magic != MAGIC || header.zstd.get() > 1 || len != all.len() as u64 {
            return Err(Cause::Table(0));
        }
        let mut table = Self { bytes: Arc::new(bytes), header, len: 0 };
        for index in 0..table.count() {
            let unit = table.unit(index)?;
            if unit.places.start != table.len || unit.stored.end > blob_len {
                return Err(Cause::Table(index));
            }
            table.len = unit.places.end;
        }
        Ok(table)
    }

    /// Bytes of all chunks.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn packing(&self) -> Packing {
        match self.header.zstd.get() {
            0 => Packing::Gzip,
            _ => Packing::Zstd,
        }
    }

    fn count(&self) -> usize {
        self.header.units.get() as usize
    }

    fn units(&self) -> &[UnitRecord] {
        let all = (*self.bytes).as_ref().get(size_of::<Header>()..).unwrap_or_default();
        wire::records(all.get(..self.count() * size_of::<UnitRecord>()).unwrap_or_default())
    }

    fn chunks(&self) -> &[ChunkRecord] {
        let at = size_of::<Header>() + self.count() * size_of::<UnitRecord>();
        wire::records((*self.bytes).as_ref().get(at..).unwrap_or_default())
    }

    /// The unit of this number.
    pub(super) fn unit(&self, index: usize) -> Result<Unit<'_>, Cause> {
        let bad = || Cause::Table(index);
        let units = self.units();
        let record = units.get(index).ok_or_else(bad)?;
        let next = units.get(index + 1).map_or(self.header.chunks, |next| next.chunk).get();
        let chunks = record.chunk.get() as usize..next as usize;
        let chunks = self.chunks().get(chunks).filter(|chunks| !chunks.is_empty());
        let chunks = chunks.ok_or_else(bad)?;
        let (mut len, mut end) = (0, 0);
        for chunk in chunks {
            if u64::from(chunk.inner.get()) < end || chunk.len.get() == 0 {
                return Err(bad());
            }
            len += u64::from(chunk.len.get());
            end = u64::from(chunk.inner.get()) + u64::from(chunk.len.get());
        }
        if end > MOST_UNIT {
            return Err(bad());
        }
        let place = record.place.get();
        let at = record.at.get();
        let places = place..place.checked_add(len).ok_or_else(bad)?;
        let stored = at..at.checked_add(record.size.get()).ok_or_else(bad)?;
        Ok(Unit { places, stored, skip: record.skip.get(), chunks })
    }

    /// The number of the unit that holds the byte at `place`.
    pub(super) fn find(&self, place: u64) -> usize {
        self.units().partition_point(|unit| unit.place.get() <= place).saturating_sub(1)
    }
}

/// Takes chunks in the order in which they lie in the blob.
#[derive(Debug)]
pub(super) struct Writer {
    units: Vec<Open>,
    chunks: Vec<ChunkRecord>,
    /// Bytes of all chunks.
    len: u64,
    /// Where in the blob there are no more contents of files.
    limit: u64,
}

#[derive(Debug)]
struct Open {
    place: u64,
    at: u64,
    /// Where it ends in the blob, once that is known.
    end: Option<u64>,
    skip: u64,
    chunk: u32,
    /// Where the last of its chunks ends in it.
    inner_end: u64,
}

impl Writer {
    /// For a blob that has contents of files up to `limit`.
    pub(super) fn new(limit: u64) -> Self {
        Self { units: vec![], chunks: vec![], len: 0, limit }
    }

    /// Adds a chunk of the unit at `at`; gives its place in the address space.
    pub(super) fn add(&mut self, at: u64, chunk: Chunk) -> Result<u64, Cause> {
        if at >= self.limit {
            return Err(Cause::Outside { at, end: at, limit: self.limit });
        }
        let same = match self.units.last_mut() {
            Some(last) if last.at == at && last.end.is_none() && chunk.inner >= last.inner_end => {
                true
            }
            Some(last) => {
                let before = last.end.unwrap_or(last.at + 1);
                if at < before {
                    return Err(Cause::Overlap { at, before });
                }
                last.end.get_or_insert(at);
                false
            }
            None => false,
        };
        if !same {
            self.open(at, 0)?;
        }
        self.push(chunk)
    }

    /// Adds a piece of what is not among the contents of files: `skip` bytes into what is stored in
    /// `stored`.
    pub(super) fn add_apart(
        &mut self,
        stored: Range<u64>,
        skip: u64,
        len: u64,
        digest: [u8; 32],
    ) -> Result<u64, Cause> {
        self.close(self.limit)?;
        self.open(stored.start, skip)?;
        if let Some(unit) = self.units.last_mut() {
            unit.end = Some(stored.end);
        }
        self.push(Chunk { inner: 0, len, digest })
    }

    /// Says where the unit that was added last ends in the blob, unless that is known.
    pub(super) fn close(&mut self, end: u64) -> Result<(), Cause> {
        match self.units.last_mut() {
            Some(unit) if unit.end.is_none() => {
                if end <= unit.at || end > self.limit {
                    return Err(Cause::Outside { at: unit.at, end, limit: self.limit });
                }
                unit.end = Some(end);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, at: u64, skip: u64) -> Result<(), Cause> {
        let chunk = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        let unit = Open { place: self.len, at, end: None, skip, chunk, inner_end: 0 };
        self.units.push(unit);
        Ok(())
    }

    fn push(&mut self, chunk: Chunk) -> Result<u64, Cause> {
        if self.chunks.len() as u64 >= MOST_CHUNKS {
            return Err(Cause::Budget(MOST_CHUNKS, "chunks"));
        }
        let end = chunk.inner.saturating_add(chunk.len);
        let most = Cause::ChunkLength { len: end, most: MOST_UNIT };
        let field = |value| u32::try_from(value).map(U32::new).map_err(|_| most.clone());
        if end > MOST_UNIT {
            return Err(most);
        }
        let (inner, len) = (field(chunk.inner)?, field(chunk.len)?);
        self.chunks.push(ChunkRecord { inner, len, digest: chunk.digest });
        if let Some(unit) = self.units.last_mut() {
            unit.inner_end = end;
        }
        let place = self.len;
        // At most as many as there may be, of at most so many bytes.
        self.len += chunk.len;
        Ok(place)
    }

    /// Bytes of all chunks so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Lays the table out.
    pub(super) fn finish(mut self, packing: Packing) -> Result<Vec<u8>, Cause> {
        self.close(self.limit)?;
        let header = Header {
            magic: MAGIC,
            units: U32::new(self.units.len() as u32),
            chunks: U32::new(self.chunks.len() as u32),
            zstd: U32::new(u32::from(packing == Packing::Zstd)),
            reserved: U32::new(0),
        };
        let mut bytes = header.as_bytes().to_vec();
        for unit in &self.units {
            // What no compressor needs belongs to what follows: headers of many small members.
            let plain = unit.skip + unit.inner_end;
            let size = unit.end.unwrap_or(unit.at).saturating_sub(unit.at);
            let record = UnitRecord {
                place: U64::new(unit.place),
                at: U64::new(unit.at),
                size: U64::new(size.min(2 * plain + (64 << 10))),
                skip: U64::new(unit.skip),
                chunk: U32::new(unit.chunk),
                reserved: U32::new(0),
            };
            bytes.extend_from_slice(record.as_bytes());
        }
        bytes.extend_from_slice(self.chunks.as_bytes());
        Ok(bytes)
    }
}
