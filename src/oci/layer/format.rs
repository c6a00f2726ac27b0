//! How an index lies in its file: `docs/layer-index.md`, section by section.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the file begins with.
pub(super) const MAGIC: [u8; 8] = *b"STRATALX";
/// The version that is written, and the only one that is read.
pub(super) const VERSION: u32 = 2;

/// Entries of a layer at most.
pub(super) const MOST_ENTRIES: u64 = 1 << 24;
/// Bytes of the list of entries at most, before and after compression.
pub(super) const MOST_LIST: u64 = 2 << 30;
pub(super) const MOST_PACKED: u64 = 512 << 20;
/// Pieces of sparse files in a layer at most.
pub(super) const MOST_RUNS: u64 = 1 << 22;
/// Bytes of different sets of attributes in a layer at most.
pub(super) const MOST_ATTRIBUTES: u64 = 64 << 20;
/// Bytes of all paths of a layer at most, each counted whole.
pub(super) const MOST_PATHS: u64 = 4 << 30;
/// Bytes of a path at most.
pub(super) const MOST_PATH: usize = 1 << 16;
/// Bytes of a name at most, as everywhere on Linux.
pub(super) const MOST_NAME: usize = 255;
/// Bytes of a symbolic link's target at most, as on Linux.
pub(super) const MOST_TARGET: u64 = 4095;

/// The header. Places and lengths are in bytes.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    /// CRC-32C of the header with zeros here.
    pub(super) crc: U32,
    pub(super) entries: U64,
    pub(super) whiteouts: U64,
    pub(super) links: U64,
    pub(super) newest_seconds: I64,
    pub(super) newest_nanos: U32,
    pub(super) list_crc: U32,
    pub(super) list_at: U64,
    pub(super) list_len: U64,
    pub(super) list_plain: U64,
    pub(super) spans_at: U64,
    pub(super) spans_len: U64,
    pub(super) spans_crc: U32,
    /// How the entries were learnt: a [`super::Learnt`] as a number.
    pub(super) learnt: U32,
    pub(super) blob_len: U64,
    pub(super) tar_len: U64,
    /// Text, then zeros.
    pub(super) blob_digest: [u8; 136],
    pub(super) diff_id: [u8; 136],
}

pub(super) const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 392);

impl Header {
    /// Its checksum, as it should be.
    pub(super) fn sum(&self) -> u32 {
        let mut header = self.clone();
        header.crc.set(0);
        crc32c::crc32c(header.as_bytes())
    }
}

/// What an entry of the list begins with: its kind in the lower bits, and these.
pub(super) mod head {
    pub(in super::super) const FILE: u8 = 0;
    pub(in super::super) const HARD_LINK: u8 = 1;
    pub(in super::super) const SYMLINK: u8 = 2;
    pub(in super::super) const FOLDER: u8 = 3;
    pub(in super::super) const FIFO: u8 = 4;
    pub(in super::super) const CHAR_DEVICE: u8 = 5;
    pub(in super::super) const BLOCK_DEVICE: u8 = 6;
    /// The bits of the kind.
    pub(in super::super) const KIND: u8 = 0x07;
    /// It has attributes.
    pub(in super::super) const ATTRIBUTES: u8 = 0x08;
    /// A file whose pieces are listed: others are one piece.
    pub(in super::super) const SPARSE: u8 = 0x10;
    /// Same mode, user and group as the entry before.
    pub(in super::super) const SAME_OWNER: u8 = 0x20;
    /// Same time as the entry before.
    pub(in super::super) const SAME_TIME: u8 = 0x40;
}

/// Where the next member's contents would begin after contents that end at `end`: a header block
/// comes in between.
pub(super) fn next_place(end: u64) -> u64 {
    end.checked_next_multiple_of(512).unwrap_or(0).wrapping_add(512)
}

/// A signed difference as a number, small if it is.
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// What [`zigzag`] was given.
pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}
