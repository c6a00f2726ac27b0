//! The layer: L1 and L2 tables made into places.
//!
//! A region of the disk is mapped by reading just the L2 entries it needs, one `pread` per L2
//! table. Nothing is kept of them here: the chain keeps what they resolve to.

use std::ops::Range;
use std::sync::Arc;

use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::cause::Cause;
use super::compression;
use super::header::{Compression, Header};
use crate::block::BlockSource;
use crate::chain::{EncodedUnit, Layer, ParentLocator, Place};
use crate::error::{Error, Result};
use crate::wire;

/// Bits 9 to 55 of an entry: a host offset.
pub(super) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount is exactly one. It says "allocated" for offset 0 of a data file.
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 62: a compressed cluster.
pub(super) const COMPRESSED: u64 = 1 << 62;
/// Bit 0: a zero cluster, in version 3 and without extended L2 entries.
pub(super) const ZERO: u64 = 1;

/// An L2 entry of 128 bits.
#[derive(Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ExtendedEntry {
    descriptor: U64,
    /// Bits 0 to 31: allocated. Bits 32 to 63: reads as zeros.
    bitmap: U64,
}

/// The L1 table of the disk, or of one snapshot.
#[derive(Debug)]
enum L1 {
    /// In memory.
    Held(Box<[U64]>),
    /// Too large to hold one per layer of a deep chain: the entries of a region are read with it.
    InFile { offset: u64, entries: u64 },
}

impl L1 {
    /// Tables up to this many bytes are held: 4 TiB of disk at the default cluster size.
    const HELD: u64 = 64 << 10;

    fn load(source: &dyn BlockSource, offset: u64, entries: u64) -> Result<Self> {
        if entries * 8 > Self::HELD {
            return Ok(Self::InFile { offset, entries });
        }
        let mut bytes = vec![0; entries as usize * 8];
        source.read_at(offset, &mut bytes)?;
        Ok(Self::Held(wire::records::<U64>(&bytes).into()))
    }

    /// Calls `each` with every entry of `range`; those past the table's end are 0.
    fn for_each(
        &self,
        source: &dyn BlockSource,
        range: Range<u64>,
        mut each: impl FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Held(entries) => {
                for index in range {
                    let entry = usize::try_from(index).ok().and_then(|index| entries.get(index));
                    each(index, entry.map_or(0, |entry| entry.get()))?;
                }
            }
            Self::InFile { offset, entries } => {
                let mut buf = [0; 4096];
                let mut at = range.start;
                while at < range.end.min(*entries) {
                    let count = (range.end.min(*entries) - at).min(buf.len() as u64 / 8);
                    let bytes = &mut buf[..count as usize * 8];
                    source.read_at(offset + at * 8, bytes)?;
                    for entry in wire::records::<U64>(bytes) {
                        each(at, entry.get())?;
                        at += 1;
                    }
                }
                for index in at..range.end {
                    each(index, 0)?;
                }
            }
        }
        Ok(())
    }
}

/// Which L1 table to read, and how large its disk is.
#[derive(Debug)]
pub(super) struct View {
    pub l1_offset: u64,
    /// Entries of it that are used.
    pub l1_entries: u64,
    pub size: u64,
}

/// One qcow2 image, or one internal snapshot of it, as a layer of a chain.
#[derive(Debug)]
pub struct Qcow2 {
    /// What the image is called, for messages.
    name: String,
    size: u64,
    version: u32,
    cluster_bits: u32,
    extended_l2: bool,
    l1_shift: u32,
    compression: Compression,
    l1: L1,
    parent: Option<ParentLocator>,
    /// The image itself, then the external data file if there is one.
    sources: Vec<Arc<dyn BlockSource>>,
}

impl Qcow2 {
    pub(super) fn new(
        name: String,
        header: &Header,
        view: &View,
        parent: Option<ParentLocator>,
        source: Arc<dyn BlockSource>,
        data_file: Option<Arc<dyn BlockSource>>,
    ) -> Result<Self> {
        let l1 = L1::load(&*source, view.l1_offset, view.l1_entries)?;
        let mut sources = vec![source];
        sources.extend(data_file);
        Ok(Self {
            name,
            size: view.size,
            version: header.version,
            cluster_bits: header.cluster_bits,
            extended_l2: header.extended_l2(),
            l1_shift: header.l1_shift(),
            compression: header.compression()?,
            l1,
            parent,
            sources,
        })
    }

    fn image(&self) -> &dyn BlockSource {
        &*self.sources[0]
    }

    fn has_data_file(&self) -> bool {
        self.sources.len() > 1
    }

    fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Maps `guest`, which one L2 table describes: the one at `entry` of the L1 table.
    fn map_table(
        &self,
        entry: u64,
        guest: Range<u64>,
        table: &mut Vec<u8>,
        out: &mut Run<'_>,
    ) -> Result<()> {
        let host = entry & OFFSET_MASK;
        if host == 0 {
            out.push(guest.end - guest.start, To::Absent);
            return Ok(());
        }
        if host & (self.cluster_size() - 1) != 0 {
            out.damaged(guest.end - guest.start, Cause::L2Misaligned { guest: guest.start, host });
            return Ok(());
        }
        let entry_size = if self.extended_l2 { 16 } else { 8 };
        let per_table = self.cluster_size() / entry_size;
        let first = (guest.start >> self.cluster_bits) % per_table;
        let last = ((guest.end - 1) >> self.cluster_bits) % per_table;
        // What the file no longer has of the table is unknown, not unallocated.
        let there = self.image().len().saturating_sub(host) / entry_size;
        let end = (last + 1).min(there);
        let mut at = guest.start;
        if first < end {
            table.resize(((end - first) * entry_size) as usize, 0);
            self.image().read_at(host + first * entry_size, table)?;
            if self.extended_l2 {
                for entry in wire::records::<ExtendedEntry>(table) {
                    let piece = at..self.cluster_end(at).min(guest.end);
                    at = piece.end;
                    self.place_extended(entry.descriptor.get(), entry.bitmap.get(), piece, out);
                }
            } else {
                for entry in wire::records::<U64>(table) {
                    let piece = at..self.cluster_end(at).min(guest.end);
                    at = piece.end;
                    self.place_standard(entry.get(), piece, out);
                }
            }
        }
        if at < guest.end {
            out.damaged(guest.end - at, Cause::L2BeyondEnd { guest: at, host });
        }
        Ok(())
    }

    /// Where the cluster that holds `guest` ends.
    fn cluster_end(&self, guest: u64) -> u64 {
        (guest | (self.cluster_size() - 1)) + 1
    }

    fn place_standard(&self, entry: u64, piece: Range<u64>, out: &mut Run<'_>) {
        let len = piece.end - piece.start;
        if entry & COMPRESSED != 0 {
            return self.place_compressed(entry, piece, out);
        }
        if entry & ZERO != 0 {
            return if self.version < 3 {
                out.damaged(len, Cause::ZeroInVersion2 { guest: piece.start });
            } else {
                out.push(len, To::Zero);
            };
        }
        match self.data_cluster(entry, piece.start) {
            Ok(Some(host)) => out.push(len, To::Raw(host)),
            Ok(None) => out.push(len, To::Absent),
            Err(cause) => out.damaged(len, cause),
        }
    }

    /// The host offset of `guest` by the standard descriptor `entry`, or `None` if the cluster is
    /// not allocated.
    fn data_cluster(&self, entry: u64, guest: u64) -> Result<Option<u64>, Cause> {
        let within = guest & (self.cluster_size() - 1);
        let host = entry & OFFSET_MASK;
        if self.has_data_file() {
            if host == 0 && entry & COPIED == 0 {
                return Ok(None);
            }
            // A data file holds every cluster where the guest has it. It may be shorter than the
            // disk: then it reads as zeros past its end.
            return if host == guest - within {
                Ok(Some(guest))
            } else {
                Err(Cause::ClusterMoved { guest, host })
            };
        }
        if host == 0 {
            return Ok(None);
        }
        if host & (self.cluster_size() - 1) != 0 {
            return Err(Cause::ClusterMisaligned { guest, host });
        }
        if host >= self.image().len() {
            return Err(Cause::ClusterBeyondEnd { guest, host });
        }
        Ok(Some(host + within))
    }

    fn place_compressed(&self, entry: u64, piece: Range<u64>, out: &mut Run<'_>) {
        let (guest, len) = (piece.start, piece.end - piece.start);
        if self.has_data_file() {
            return out.damaged(len, Cause::CompressedOutside { guest });
        }
        let shift = 62 - (self.cluster_bits - 8);
        let host = entry & ((1 << shift) - 1);
        if host >= self.image().len() {
            return out.damaged(len, Cause::ClusterBeyondEnd { guest, host });
        }
        let more_sectors = (entry & (COMPRESSED - 1)) >> shift;
        // At most 8,192 sectors, as the field is 13 bits wide for the largest clusters.
        let stored = (more_sectors + 1) * 512 - (host & 511);
        let unit = EncodedUnit { host, stored: stored as u32, decoded: self.cluster_size() as u32 };
        let within = (guest & (self.cluster_size() - 1)) as u32;
        out.encoded(len, unit, within);
    }

    fn place_extended(&self, entry: u64, bitmap: u64, piece: Range<u64>, out: &mut Run<'_>) {
        if entry & COMPRESSED != 0 {
            return self.place_compressed(entry, piece, out);
        }
        let (allocated, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        let len = piece.end - piece.start;
        let contradiction = Cause::Subclusters { guest: piece.start, bitmap };
        if allocated & zero != 0 {
            return out.damaged(len, contradiction);
        }
        let host = match self.data_cluster(entry, piece.start) {
            Ok(Some(host)) => host,
            Ok(None) if allocated != 0 => return out.damaged(len, contradiction),
            Ok(None) => 0,
            Err(cause) if allocated != 0 => return out.damaged(len, cause),
            // Where nothing is allocated, the offset is not used.
            Err(_) => 0,
        };
        let shift = self.cluster_bits - 5;
        let mut at = piece.start;
        while at < piece.end {
            // Subclusters of one sort that follow each other are one run.
            let first = (at >> shift) as u32 & 31;
            let (bits, to) = if allocated >> first & 1 == 1 {
                (allocated, To::Raw(host + (at - piece.start)))
            } else if zero >> first & 1 == 1 {
                (zero, To::Zero)
            } else {
                (!(allocated | zero), To::Absent)
            };
            let count = u64::from((bits >> first).trailing_ones());
            let end = (((at >> shift) + count) << shift).min(piece.end);
            out.push(end - at, to);
            at = end;
        }
    }
}

impl Layer for Qcow2 {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn parent(&self) -> Option<&ParentLocator> {
        self.parent.as_ref()
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        &self.sources
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        if guest.is_empty() {
            return Ok(());
        }
        let data = usize::from(self.has_data_file());
        let data_len = self.sources[data].len();
        let mut out = Run { name: &self.name, emit, data, data_len, len: 0, to: To::Absent };
        let mut table = Vec::new();
        let shift = self.l1_shift;
        let range = guest.start >> shift..((guest.end - 1) >> shift) + 1;
        self.l1.for_each(self.image(), range, |index, entry| {
            let start = (index << shift).max(guest.start);
            let end = ((index + 1) << shift).min(guest.end);
            self.map_table(entry, start..end, &mut table, &mut out)
        })?;
        out.flush();
        Ok(())
    }

    fn decode(&self, unit: EncodedUnit, out: &mut [u8]) -> Result<()> {
        compression::decode(self.image(), self.compression, unit, out)
            .map_err(|error| error.within(self.name.clone()))
    }
}

/// Where a run of clusters is.
#[derive(Debug, PartialEq)]
enum To {
    Absent,
    Zero,
    /// From this host offset on.
    Raw(u64),
    Damaged(Cause),
}

/// The run of pieces in one place that has not been emitted yet.
struct Run<'a> {
    name: &'a str,
    emit: &'a mut dyn FnMut(u64, Place),
    /// Index of the source that holds the clusters, and its length.
    data: usize,
    data_len: u64,
    len: u64,
    to: To,
}

impl Run<'_> {
    fn push(&mut self, len: u64, to: To) {
        let continues = match (&self.to, &to) {
            (To::Raw(start), To::Raw(next)) => start + self.len == *next,
            (To::Absent, To::Absent) | (To::Zero, To::Zero) => true,
            // The first of a run of damaged clusters speaks for all.
            (To::Damaged(_), To::Damaged(_)) => true,
            _ => false,
        };
        if continues {
            self.len += len;
        } else {
            self.flush();
            self.len = len;
            self.to = to;
        }
    }

    fn damaged(&mut self, len: u64, cause: Cause) {
        self.push(len, To::Damaged(cause));
    }

    fn encoded(&mut self, len: u64, unit: EncodedUnit, within: u32) {
        self.flush();
        (self.emit)(len, Place::Encoded { unit, within });
    }

    fn flush(&mut self) {
        let len = std::mem::take(&mut self.len);
        if len == 0 {
            return;
        }
        match std::mem::replace(&mut self.to, To::Absent) {
            To::Absent => (self.emit)(len, Place::Absent),
            To::Zero => (self.emit)(len, Place::Zero),
            To::Raw(offset) => {
                // The last cluster may be cut by the end of the file.
                let there = self.data_len.saturating_sub(offset).min(len);
                if there > 0 {
                    (self.emit)(there, Place::Raw { source: self.data, offset });
                }
                if there < len {
                    (self.emit)(len - there, Place::Zero);
                }
            }
            To::Damaged(cause) => {
                let error = Error::from(cause).within(self.name.to_owned());
                (self.emit)(len, Place::Damaged(error));
            }
        }
    }
}
