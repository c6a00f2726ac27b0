//! Group descriptors, read one at a time when an inode of the group is wanted: a disk of 4 TiB
//! has 32,768 of them. Kernel documentation, `ext4/group_descr.rst`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::cause::Cause;
use super::checksum::{crc16, crc32c};
use super::features::{incompat, ro_compat};
use super::superblock::Superblock;
use crate::error::{Kind, Result};
use crate::wire;

/// A descriptor as it is on disk; the second half exists with the `64bit` feature only.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    block_bitmap_lo: U32,
    inode_bitmap_lo: U32,
    inode_table_lo: U32,
    free_blocks_count_lo: U16,
    free_inodes_count_lo: U16,
    used_dirs_count_lo: U16,
    flags: U16,
    exclude_bitmap_lo: U32,
    block_bitmap_csum_lo: U16,
    inode_bitmap_csum_lo: U16,
    itable_unused_lo: U16,
    checksum: U16,
}

const SIZE: usize = 32;
const _: () = assert!(size_of::<Record>() == SIZE);
const CHECKSUM: usize = SIZE - 2;
/// Where the upper half of the inode table's block number is.
const INODE_TABLE_HI: usize = 0x28;

impl Superblock {
    /// Where the descriptor of `group` is, in bytes of the volume.
    fn descriptor_offset(&self, group: u64) -> u64 {
        let per_block = self.block_size / self.descriptor_size;
        let table_block = group / per_block;
        let meta = self.features.has_incompat(incompat::META_BG);
        let block = if !meta || table_block < self.first_meta_group {
            // Right after the block with the superblock.
            super::superblock::OFFSET / self.block_size + 1 + table_block
        } else {
            let first_group = table_block * per_block;
            let mut block = self.first_data_block + first_group * self.blocks_per_group;
            if self.has_superblock(first_group) {
                block += 1;
            }
            // With 1 KiB blocks counted from 0, the superblock itself is in block 1.
            if self.block_size == 1024 && table_block == 0 && self.first_data_block == 0 {
                block += 1;
            }
            block
        };
        block * self.block_size + group % per_block * self.descriptor_size
    }

    fn check_descriptor(&self, group: u64, bytes: &[u8], stored: u16) -> Result<(), Cause> {
        // A group number fits in 32 bits: the superblock was checked for it.
        let number = (group as u32).to_le_bytes();
        let tail = bytes.get(SIZE..).unwrap_or(&[]);
        let computed = if self.has_metadata_checksums() {
            let mut crc = crc32c(self.checksum_seed, &number);
            crc = crc32c(crc, &bytes[..CHECKSUM]);
            crc = crc32c(crc, &[0; 2]);
            crc32c(crc, tail) as u16
        } else if self.features.has_ro_compat(ro_compat::GDT_CSUM) {
            crc16(&[&self.uuid, &number, &bytes[..CHECKSUM], tail])
        } else {
            return Ok(());
        };
        if stored == computed {
            Ok(())
        } else {
            Err(Cause::DescriptorChecksum { group, stored, computed })
        }
    }
}

impl Superblock {
    /// Where copies of the descriptor of `group` are: behind the first copies of the superblock.
    fn descriptor_copies(&self, group: u64) -> impl Iterator<Item = u64> {
        let per_block = self.block_size / self.descriptor_size;
        let meta = self.features.has_incompat(incompat::META_BG);
        let last = if meta { 0 } else { self.blocks.div_ceil(self.blocks_per_group).min(50) };
        (1..last).filter(|&backup| self.has_superblock(backup)).take(3).map(move |backup| {
            let start = self.first_data_block + backup * self.blocks_per_group;
            let block = start + 1 + group / per_block;
            block * self.block_size + group % per_block * self.descriptor_size
        })
    }
}

impl Ext4 {
    /// The first block of the inode table of `group`, which is below the number of groups.
    ///
    /// A table never moves, so that an old copy of a damaged descriptor serves as well.
    pub(super) fn inode_table(&self, group: u64) -> Result<u64> {
        self.inode_table_by(group, self.sb.descriptor_offset(group)).or_else(|error| {
            if error.kind() != Kind::Corrupt {
                return Err(error);
            }
            self.sb
                .descriptor_copies(group)
                .find_map(|offset| self.inode_table_by(group, offset).ok())
                .ok_or(error)
        })
    }

    /// The same, by the descriptor at `offset`.
    fn inode_table_by(&self, group: u64, offset: u64) -> Result<u64> {
        let sb = &self.sb;
        let block =
            self.metadata("group descriptor", offset, sb.descriptor_size as usize, |bytes| {
                let raw: &Record = wire::record(bytes, 0).ok_or(Cause::NoSuperblock)?;
                sb.check_descriptor(group, bytes, raw.checksum.get())?;
                let hi = wire::record::<U32>(bytes, INODE_TABLE_HI).map_or(0, |hi| hi.get());
                Ok::<_, Cause>(u64::from(hi) << 32 | u64::from(raw.inode_table_lo.get()))
            })??;
        let bytes = u64::from(sb.inodes_per_group) * sb.inode_size as u64;
        if !sb.holds(block, bytes.div_ceil(sb.block_size)) {
            return Err(Cause::InodeTable { group, block }.into());
        }
        Ok(block)
    }
}
