//! The header: its fields, its feature bits, and whether they make sense together.
//!
//! Checks are QEMU's, in QEMU's order, so that what it opens is opened here and what it refuses is
//! refused for the same reason.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::{Cause, Fault};
use crate::block::BlockSource;
use crate::error::Result;
use crate::wire;

/// What a qcow2 file begins with.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Most bytes of an L1 table (QEMU's limit).
pub(super) const MAX_L1_BYTES: u64 = 32 << 20;
/// Most bytes of a refcount table (QEMU's limit).
pub(super) const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots (QEMU's limit).
const MAX_SNAPSHOTS: u64 = 65536;
/// Longest backing file name, in bytes.
pub(super) const MAX_BACKING_NAME: u64 = 1023;

/// Bytes 0 to 71, which every version has.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fixed {
    pub magic: [u8; 4],
    pub version: U32,
    pub backing_file_offset: U64,
    pub backing_file_size: U32,
    pub cluster_bits: U32,
    pub size: U64,
    pub crypt_method: U32,
    pub l1_size: U32,
    pub l1_table_offset: U64,
    pub refcount_table_offset: U64,
    pub refcount_table_clusters: U32,
    pub nb_snapshots: U32,
    pub snapshots_offset: U64,
}

/// Bytes 72 to 103, from version 3 on.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Version3 {
    pub incompatible_features: U64,
    pub compatible_features: U64,
    pub autoclear_features: U64,
    pub refcount_order: U32,
    pub header_length: U32,
}

/// Incompatible feature bits.
pub(super) mod incompatible {
    pub(in super::super) const DIRTY: u64 = 1 << 0;
    pub(in super::super) const CORRUPT: u64 = 1 << 1;
    pub(in super::super) const DATA_FILE: u64 = 1 << 2;
    pub(in super::super) const COMPRESSION_TYPE: u64 = 1 << 3;
    pub(in super::super) const EXTENDED_L2: u64 = 1 << 4;
    pub(in super::super) const KNOWN: u64 =
        DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;
}

/// Compatible feature bit: refcounts are brought up to date lazily.
pub(super) const LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear feature bit: the bitmaps extension is consistent.
pub(super) const BITMAPS: u64 = 1 << 0;
/// Autoclear feature bit: the data file reads as a raw image by itself.
pub(super) const DATA_FILE_RAW: u64 = 1 << 1;

/// How compressed clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A bare deflate stream, as every reader knows; QEMU calls it zlib.
    Deflate,
    /// A zstd frame: QEMU 5.1 and later.
    Zstd,
}

/// The header's fields, checked one by one; tables are checked by [`Header::check_tables`].
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub backing_file_offset: u64,
    pub backing_file_size: u32,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    pub compression_type: u8,
}

impl Header {
    /// Reads the fields that say where the rest of the header is.
    pub(super) fn read(source: &dyn BlockSource) -> Result<Self> {
        let mut bytes = [0; 112];
        let len = source.len();
        let there = len.min(bytes.len() as u64) as usize;
        source.read_at(0, &mut bytes[..there])?;
        let cut = |needed: usize| Cause::HeaderCut { needed: needed as u64, len };
        if there < 4 || bytes[..4] != MAGIC {
            return Err(Cause::Signature.into());
        }
        let bytes = &bytes[..there];
        let fixed: &Fixed = wire::record(bytes, 0).ok_or_else(|| cut(size_of::<Fixed>()))?;
        let mut header = Self {
            version: fixed.version.get(),
            cluster_bits: fixed.cluster_bits.get(),
            size: fixed.size.get(),
            backing_file_offset: fixed.backing_file_offset.get(),
            backing_file_size: fixed.backing_file_size.get(),
            crypt_method: fixed.crypt_method.get(),
            l1_size: fixed.l1_size.get(),
            l1_table_offset: fixed.l1_table_offset.get(),
            refcount_table_offset: fixed.refcount_table_offset.get(),
            refcount_table_clusters: fixed.refcount_table_clusters.get(),
            nb_snapshots: fixed.nb_snapshots.get(),
            snapshots_offset: fixed.snapshots_offset.get(),
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            header_length: 72,
            compression_type: 0,
        };
        if !matches!(header.version, 2 | 3) {
            return Err(Cause::Version(header.version).into());
        }
        if !(9..=21).contains(&header.cluster_bits) {
            return Err(Cause::ClusterBits(header.cluster_bits).into());
        }
        if header.version == 3 {
            let fields: &Version3 =
                wire::record(bytes, 72).ok_or_else(|| cut(72 + size_of::<Version3>()))?;
            header.incompatible = fields.incompatible_features.get();
            header.compatible = fields.compatible_features.get();
            header.autoclear = fields.autoclear_features.get();
            header.refcount_order = fields.refcount_order.get();
            header.header_length = fields.header_length.get();
            if header.header_length < 104 {
                return Err(Cause::HeaderShort(header.header_length).into());
            }
        }
        if u64::from(header.header_length) > header.cluster_size() {
            return Err(Cause::HeaderLong(header.header_length).into());
        }
        if header.header_length > 104 {
            header.compression_type = *bytes.get(104).ok_or_else(|| cut(105))?;
        }
        if header.backing_file_offset > header.cluster_size() {
            return Err(Cause::BackingNameOffset(header.backing_file_offset).into());
        }
        Ok(header)
    }

    /// Fails unless this reader knows every feature the image says it must know; `name` gives the
    /// name the image has for an incompatible bit.
    pub(super) fn check_features(&self, name: impl Fn(u8) -> Option<String>) -> Result<()> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let names: Vec<String> = (0..64)
                .filter(|&bit| unknown >> bit & 1 == 1)
                .map(|bit| name(bit).unwrap_or_else(|| format!("bit {bit}")))
                .collect();
            return Err(Cause::Features(names.join(", ")).into());
        }
        if self.extended_l2() && self.cluster_bits < 14 {
            return Err(Cause::SubclusterBits(self.cluster_bits).into());
        }
        if self.refcount_order > 6 {
            return Err(Cause::RefcountOrder(self.refcount_order).into());
        }
        match self.crypt_method {
            0 => {}
            1 => return Err(Cause::Encryption("clusters are encrypted with AES").into()),
            2 => return Err(Cause::Encryption("clusters are encrypted with LUKS").into()),
            other => return Err(Cause::EncryptionMethod(other).into()),
        }
        self.compression().map(drop)
    }

    /// How compressed clusters are compressed.
    pub(super) fn compression(&self) -> Result<Compression> {
        let announced = self.incompatible & incompatible::COMPRESSION_TYPE != 0;
        match (self.compression_type, announced) {
            (0, false) => Ok(Compression::Deflate),
            (0, true) => Err(Cause::CompressionMissing.into()),
            (other, false) => Err(Cause::CompressionBit(other).into()),
            (1, true) => Ok(Compression::Zstd),
            (other, true) => Err(Cause::CompressionType(other).into()),
        }
    }

    /// Checks where the header's tables lie in a file of `len` bytes, and how large they are.
    pub(super) fn check_tables(&self, len: u64) -> Result<()> {
        if self.size > i64::MAX as u64 {
            return Err(Cause::Size(self.size).into());
        }
        if self.refcount_table_clusters == 0 {
            return Err(Cause::Table("refcount table", Fault::Missing).into());
        }
        let refcounts = u64::from(self.refcount_table_clusters) << (self.cluster_bits - 3);
        let limit = MAX_REFCOUNT_TABLE_BYTES / 8;
        self.check_table("refcount table", self.refcount_table_offset, refcounts, limit)?;
        if self.refcount_table_offset >= len {
            let fault = Fault::BeyondEnd(self.refcount_table_offset, len);
            return Err(Cause::Table("refcount table", fault).into());
        }
        let snapshots = u64::from(self.nb_snapshots);
        self.check_table("snapshot table", self.snapshots_offset, snapshots, MAX_SNAPSHOTS)?;
        if snapshots > 0 && self.snapshots_offset >= len {
            let fault = Fault::BeyondEnd(self.snapshots_offset, len);
            return Err(Cause::Table("snapshot table", fault).into());
        }
        let needed = self.l1_entries_for(self.size);
        self.check_l1("L1 table", self.l1_table_offset, self.l1_size, needed, len)
    }

    /// Checks an L1 table of `entries` at `offset`, of which `needed` are used.
    pub(super) fn check_l1(
        &self,
        what: &'static str,
        offset: u64,
        entries: u32,
        needed: u64,
        len: u64,
    ) -> Result<()> {
        self.check_table(what, offset, u64::from(entries), MAX_L1_BYTES / 8)?;
        if u64::from(entries) < needed {
            let fault = Fault::TooSmall(u64::from(entries), needed);
            return Err(Cause::Table(what, fault).into());
        }
        if needed > 0 && offset.checked_add(needed * 8).is_none_or(|end| end > len) {
            return Err(Cause::Table(what, Fault::BeyondEnd(offset, len)).into());
        }
        Ok(())
    }

    fn check_table(&self, what: &'static str, offset: u64, entries: u64, limit: u64) -> Result<()> {
        if entries > limit {
            return Err(Cause::Table(what, Fault::TooLarge(entries, limit)).into());
        }
        if offset & (self.cluster_size() - 1) != 0 {
            return Err(Cause::Table(what, Fault::Misaligned(offset)).into());
        }
        Ok(())
    }

    /// Checks where the backing file's name is; the range of it if there is one.
    pub(super) fn backing_name(&self) -> Result<Option<(u64, usize)>> {
        if self.backing_file_offset == 0 || self.backing_file_size == 0 {
            return Ok(None);
        }
        let room = self.cluster_size() - self.backing_file_offset;
        let limit = room.min(MAX_BACKING_NAME);
        if u64::from(self.backing_file_size) > limit {
            return Err(Cause::BackingNameLength(self.backing_file_size, limit).into());
        }
        Ok(Some((self.backing_file_offset, self.backing_file_size as usize)))
    }

    /// Where the header extensions end, at the latest.
    pub(super) fn extensions_end(&self) -> u64 {
        match self.backing_file_offset {
            0 => self.cluster_size(),
            offset => offset,
        }
    }

    /// Bytes of a cluster.
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries are 128 bits wide and clusters have 32 subclusters.
    pub(super) fn extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    /// Whether guest clusters are stored in another file.
    pub(super) fn has_data_file(&self) -> bool {
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// log2 of the guest bytes one L1 entry stands for.
    pub(super) fn l1_shift(&self) -> u32 {
        let entry_bits = if self.extended_l2() { 4 } else { 3 };
        2 * self.cluster_bits - entry_bits
    }

    /// L1 entries a disk of `size` bytes needs.
    pub(super) fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(1 << self.l1_shift())
    }
}
