//! What stands in a journal, as it is on disk: big-endian throughout.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// What every block of the journal that is not a copy begins with.
pub(in super::super) const MAGIC: u32 = 0xc03b_3998;

pub(super) mod block_type {
    pub(in super::super) const DESCRIPTOR: u32 = 1;
    pub(in super::super) const COMMIT: u32 = 2;
    pub(in super::super) const SUPERBLOCK_V1: u32 = 3;
    pub(in super::super) const SUPERBLOCK_V2: u32 = 4;
    pub(in super::super) const REVOKE: u32 = 5;
}

pub(super) mod compat {
    pub(in super::super) const CHECKSUM: u32 = 1;
}

pub(super) mod incompat {
    pub(in super::super) const REVOKE: u32 = 0x1;
    pub(in super::super) const BIT64: u32 = 0x2;
    pub(in super::super) const ASYNC_COMMIT: u32 = 0x4;
    pub(in super::super) const CSUM_V2: u32 = 0x8;
    pub(in super::super) const CSUM_V3: u32 = 0x10;
    pub(in super::super) const FAST_COMMIT: u32 = 0x20;
    pub(in super::super) const KNOWN: u32 =
        REVOKE | BIT64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

pub(super) mod tag_flag {
    pub(in super::super) const ESCAPED: u32 = 1;
    pub(in super::super) const SAME_UUID: u32 = 2;
    pub(in super::super) const LAST: u32 = 8;
}

/// The checksum type of commit blocks that have one of the whole transaction.
pub(super) const CRC32: u8 = 1;
/// The checksum type of versions 2 and 3.
pub(super) const CRC32C: u8 = 4;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: U32,
    pub(super) block_type: U32,
    pub(super) sequence: U32,
}

pub(super) const HEADER: usize = size_of::<Header>();

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Superblock {
    pub(super) header: Header,
    pub(super) block_size: U32,
    pub(super) max_len: U32,
    pub(super) first: U32,
    pub(super) sequence: U32,
    pub(super) start: U32,
    pub(super) errno: U32,
    pub(super) feature_compat: U32,
    pub(super) feature_incompat: U32,
    pub(super) feature_ro_compat: U32,
    pub(super) uuid: [u8; 16],
    pub(super) users: U32,
    pub(super) dynamic_super: U32,
    pub(super) max_transaction: U32,
    pub(super) max_transaction_data: U32,
    pub(super) checksum_type: u8,
    pub(super) padding: [u8; 3],
    pub(super) fast_commit_blocks: U32,
    pub(super) head: U32,
    pub(super) padding2: [U32; 40],
    pub(super) checksum: U32,
    pub(super) user_ids: [u8; 768],
}

const _: () = assert!(size_of::<Superblock>() == 1024);
/// Where the superblock's own checksum is.
pub(super) const SUPERBLOCK_CHECKSUM: usize = 0xfc;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Commit {
    pub(super) header: Header,
    pub(super) checksum_type: u8,
    pub(super) checksum_size: u8,
    pub(super) padding: [u8; 2],
    pub(super) checksum: [U32; 8],
    pub(super) seconds: U64,
    pub(super) nanos: U32,
}

/// Where the commit block's first checksum word is.
pub(super) const COMMIT_CHECKSUM: usize = 16;

/// A tag in journals with checksums of version 3.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Tag3 {
    pub(super) block_lo: U32,
    pub(super) flags: U32,
    pub(super) block_hi: U32,
    pub(super) checksum: U32,
}

/// A tag in all others; the upper half of the block number follows with the 64-bit feature.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Tag {
    pub(super) block_lo: U32,
    pub(super) checksum: U16,
    pub(super) flags: U16,
}
