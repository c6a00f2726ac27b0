//! The journal's file: its superblock, its ring of blocks, and how the journal's features shape
//! what is in them.

use zerocopy::big_endian::{U32, U64};

use super::super::Ext4;
use super::super::cause::Cause;
use super::super::checksum::crc32c;
use super::super::inode::Inode;
use super::super::map::Node;
use super::record::{
    self, COMMIT_CHECKSUM, HEADER, MAGIC, SUPERBLOCK_CHECKSUM, Superblock, block_type, incompat,
    tag_flag,
};
use crate::error::{Kind, Result};
use crate::tree::FileKind;
use crate::wire;

/// Blocks kept for fast commits if the superblock does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;
/// Tag of the record a fast commit begins with.
const FAST_COMMIT_HEAD: u16 = 9;

/// A tag: which block of the filesystem the next block of the log is a copy of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) block: u64,
    pub(super) flags: u32,
    pub(super) checksum: u32,
}

/// An opened journal.
#[derive(Debug)]
pub(super) struct Log<'a> {
    ext4: &'a Ext4,
    node: Node,
    pub(super) compat: u32,
    pub(super) incompat: u32,
    /// What its checksums start from.
    pub(super) seed: u32,
    /// The ring: its first block, and the block after its last one.
    pub(super) first: u64,
    pub(super) last: u64,
    /// Where the oldest transaction begins, or 0 if there is none, and its number.
    pub(super) start: u64,
    pub(super) sequence: u32,
}

impl<'a> Log<'a> {
    pub(super) fn open(ext4: &'a Ext4) -> Result<Self> {
        let number = ext4.sb.journal_inode;
        let own = ext4.any_inode(number).and_then(|inode| {
            if inode.attr.kind == FileKind::Regular && inode.attr.links > 0 {
                return Ok(inode);
            }
            Err(Cause::JournalInode(number).into())
        });
        let inode = match own {
            Err(error) if error.kind() == Kind::Corrupt => {
                Inode::of_journal(&ext4.sb).ok_or(error)?
            }
            own => own?,
        };
        let file_blocks = inode.attr.size / ext4.sb.block_size;
        let mut log = Self {
            ext4,
            node: Node::resolve(ext4, inode)?,
            compat: 0,
            incompat: 0,
            seed: 0,
            first: 0,
            last: 0,
            start: 0,
            sequence: 0,
        };
        let mut block = vec![0; log.block_size()];
        log.read(0, &mut block)?;
        log.superblock(&block, file_blocks)?;
        Ok(log)
    }

    fn superblock(&mut self, block: &[u8], file_blocks: u64) -> Result<(), Cause> {
        let wrong = Cause::JournalSuperblock;
        let raw: &Superblock = wire::record(block, 0).ok_or(wrong("cut short"))?;
        if raw.header.magic.get() != MAGIC {
            return Err(wrong("its magic number"));
        }
        match raw.header.block_type.get() {
            // The first version has no features.
            block_type::SUPERBLOCK_V1 => {}
            block_type::SUPERBLOCK_V2 => {
                self.compat = raw.feature_compat.get();
                self.incompat = raw.feature_incompat.get();
            }
            _ => return Err(wrong("its block type")),
        }
        let unknown = self.incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Cause::JournalFeature(format!("I{unknown:#x}")));
        }
        if self.has_checksums() {
            if raw.checksum_type != record::CRC32C {
                return Err(wrong("its checksum type"));
            }
            let mut bytes = block[..size_of::<Superblock>()].to_vec();
            bytes[SUPERBLOCK_CHECKSUM..SUPERBLOCK_CHECKSUM + 4].fill(0);
            let (stored, computed) = (raw.checksum.get(), crc32c(!0, &bytes));
            if stored != computed {
                return Err(Cause::JournalChecksum { stored, computed });
            }
            self.seed = crc32c(!0, &raw.uuid);
        }
        if raw.block_size.get() as usize != self.block_size() {
            return Err(wrong("its block size is not the filesystem's"));
        }
        let max_len = u64::from(raw.max_len.get());
        if max_len > file_blocks {
            return Err(wrong("it is longer than its file"));
        }
        let fast = match raw.fast_commit_blocks.get() {
            _ if self.incompat & incompat::FAST_COMMIT == 0 => 0,
            0 => FAST_COMMIT_BLOCKS,
            blocks => blocks,
        };
        self.first = u64::from(raw.first.get());
        self.last = max_len.saturating_sub(u64::from(fast));
        self.start = u64::from(raw.start.get());
        self.sequence = raw.sequence.get();
        if self.first == 0 || self.first >= self.last {
            return Err(wrong("its first block lies beyond its last"));
        }
        if self.start != 0 && !(self.first..self.last).contains(&self.start) {
            return Err(wrong("its log starts outside of it"));
        }
        Ok(())
    }

    pub(super) fn block_size(&self) -> usize {
        self.ext4.sb.block_size as usize
    }

    /// Blocks of the filesystem.
    pub(super) fn blocks(&self) -> u64 {
        self.ext4.sb.blocks
    }

    /// Whether blocks of the log have checksums of their own.
    pub(super) fn has_checksums(&self) -> bool {
        self.incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0
    }

    /// The block `count` after `at`, going round.
    pub(super) fn after(&self, at: u64, count: u64) -> u64 {
        let len = self.last - self.first;
        self.first + (at - self.first + count) % len
    }

    /// Where the block `at` of the journal is, in blocks of the filesystem.
    pub(super) fn place(&self, at: u64) -> Result<u64> {
        Ok(self.node.piece(self.ext4, at)?.physical.ok_or(Cause::JournalHole(at))?)
    }

    /// Reads the block `at` of the journal.
    pub(super) fn read(&self, at: u64, block: &mut [u8]) -> Result<()> {
        self.read_place(self.place(at)?, block)
    }

    /// Reads a block of the filesystem, past the cache: it is wanted once.
    pub(super) fn read_place(&self, place: u64, block: &mut [u8]) -> Result<()> {
        self.ext4.read_blocks("journal block", place * self.ext4.sb.block_size, block)
    }

    /// Bytes at the end of descriptor and revoke blocks that are no tags or records.
    fn tail_len(&self) -> usize {
        if self.has_checksums() { 4 } else { 0 }
    }

    /// Whether a descriptor or revoke block matches the checksum at its end.
    pub(super) fn tail_matches(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let (body, tail) = block.split_at(block.len() - 4);
        let stored = wire::record::<U32>(tail, 0).map(|stored| stored.get());
        stored == Some(crc32c(crc32c(self.seed, body), &[0; 4]))
    }

    /// Whether a commit block matches its checksum.
    pub(super) fn commit_matches(&self, block: &[u8]) -> bool {
        if !self.has_checksums() {
            return true;
        }
        let stored = wire::record::<U32>(block, COMMIT_CHECKSUM).map(|stored| stored.get());
        let mut crc = crc32c(self.seed, &block[..COMMIT_CHECKSUM]);
        crc = crc32c(crc, &[0; 4]);
        stored == Some(crc32c(crc, &block[COMMIT_CHECKSUM + 4..]))
    }

    /// The tags of a descriptor block.
    pub(super) fn tags<'b>(&'b self, block: &'b [u8]) -> impl Iterator<Item = Tag> + 'b {
        let wide = self.incompat & incompat::BIT64 != 0;
        let version3 = self.incompat & incompat::CSUM_V3 != 0;
        let len = match (version3, self.incompat & incompat::CSUM_V2 != 0, wide) {
            (true, _, _) => 16,
            // Version 2 leaves two bytes unused at the end of each.
            (false, true, true) => 14,
            (false, true, false) => 10,
            (false, false, true) => 12,
            (false, false, false) => 8,
        };
        let end = block.len() - self.tail_len();
        let mut at = HEADER;
        let mut done = false;
        std::iter::from_fn(move || {
            let bytes = block.get(at..at + len).filter(|_| !done && at + len <= end)?;
            let tag = if version3 {
                let tag: &record::Tag3 = wire::record(bytes, 0)?;
                let hi = if wide { u64::from(tag.block_hi.get()) } else { 0 };
                Tag {
                    block: hi << 32 | u64::from(tag.block_lo.get()),
                    flags: tag.flags.get(),
                    checksum: tag.checksum.get(),
                }
            } else {
                let tag: &record::Tag = wire::record(bytes, 0)?;
                let hi: u64 = match wide {
                    true => u64::from(wire::record::<U32>(bytes, 8)?.get()),
                    false => 0,
                };
                Tag {
                    block: hi << 32 | u64::from(tag.block_lo.get()),
                    flags: u32::from(tag.flags.get()),
                    checksum: u32::from(tag.checksum.get()),
                }
            };
            at += len;
            if tag.flags & tag_flag::SAME_UUID == 0 {
                at += 16;
            }
            done = tag.flags & tag_flag::LAST != 0;
            Some(tag)
        })
    }

    /// The block numbers in a revoke block, or `None` if its length passes its end.
    pub(super) fn revoked(&self, block: &[u8]) -> Option<Vec<u64>> {
        let used = wire::record::<U32>(block, HEADER)?.get() as usize;
        let end = block.len() - self.tail_len();
        let records = block.get(HEADER + 4..used).filter(|_| used <= end)?;
        Some(if self.incompat & incompat::BIT64 != 0 {
            wire::records::<U64>(records).iter().map(|block| block.get()).collect()
        } else {
            wire::records::<U32>(records).iter().map(|block| u64::from(block.get())).collect()
        })
    }

    /// Whether the blocks for fast commits hold some that follow the full commit before number
    /// `next`.
    pub(super) fn has_fast_commits(&self, next: u32) -> Result<bool> {
        if self.incompat & incompat::FAST_COMMIT == 0 {
            return Ok(false);
        }
        let mut block = vec![0; self.block_size()];
        self.read(self.last, &mut block)?;
        // Unlike the rest of the journal these records are little-endian: tag, length, features,
        // transaction.
        let word = |at: usize| {
            wire::record::<zerocopy::little_endian::U32>(&block, at).map_or(0, |word| word.get())
        };
        Ok((word(0) & 0xffff) as u16 == FAST_COMMIT_HEAD && word(8) == next)
    }
}
