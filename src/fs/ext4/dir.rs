//! Folders: blocks of entries, read in the order they lie in. Kernel documentation,
//! `ext4/directory.rst`.
//!
//! The blocks of a hash index look like empty blocks of entries, by design, so that a plain
//! reader passes over them. A position is the offset of an entry in the folder: any block can be
//! entered without having read the ones before it.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::cause::Cause;
use super::checksum::crc32c;
use super::htree;
use super::inode::{BLOCK_LEN, Inode, flag};
use super::map::Node;
use crate::error::{Error, Result};
use crate::wire;

/// An entry up to its name.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    inode: U32,
    rec_len: U16,
    name_len: u8,
    file_type: u8,
}

/// Bytes before the name.
const HEADER: usize = 8;
/// The shortest entry.
const MIN_LEN: usize = 12;
/// The checksum of a block of entries is disguised as an unused entry at its end: no inode, no
/// name, and this file type.
const TAIL_TYPE: u8 = 0xde;
/// Inline folders begin with their parent's number, in place of `.` and `..`.
const INLINE_START: usize = 4;

/// An entry in use, other than `.` and `..`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    /// Offset in the folder of the entry, and of what comes after it.
    pub(super) at: u64,
    pub(super) next: u64,
    /// With encrypted case-insensitive names: the hash kept after the name.
    pub(super) hash: Option<(u32, u32)>,
}

/// What a scan does after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scan {
    GoOn,
    Stop,
}

/// Bytes of the record, from its two-byte encoding: blocks of 64 KiB need 17 bits.
pub(super) fn record_len(raw: u16, block_size: usize) -> usize {
    let raw = usize::from(raw);
    if block_size < 1 << 16 {
        return raw;
    }
    if raw == 0 || raw == 0xffff { block_size } else { (raw & 0xfffc) | (raw & 3) << 16 }
}

impl Ext4 {
    /// Calls `entry` with the entries at positions from `from` on until it says to stop.
    ///
    /// A damaged block does not hide the others: what can be read of it and all that comes after
    /// it is passed on first, then the first damage is returned.
    pub(super) fn scan(
        &self,
        node: &Node,
        from: u64,
        entry: &mut dyn FnMut(Entry<'_>) -> Scan,
    ) -> Result<()> {
        let inode = &node.inode;
        if let Some(bytes) = node.inline() {
            return self.scan_inline(inode, bytes, from, entry).map(|_| ()).map_err(Into::into);
        }
        let size = self.sb.block_size;
        let blocks = inode.attr.size.div_ceil(size);
        let mut damage: Option<Error> = None;
        let mut index = from / size;
        while index < blocks {
            if index >= self.present_blocks() {
                // More blocks than the whole image has: the same ones again and again.
                let cause = Cause::FileSize { inode: inode.number, size: inode.attr.size };
                return Err(damage.unwrap_or_else(|| cause.into()));
            }
            let base = index * size;
            let piece = match node.piece(self, index) {
                Ok(piece) => piece,
                Err(error) => {
                    damage.get_or_insert(error);
                    index += 1;
                    continue;
                }
            };
            let Some(physical) = piece.physical else {
                let cause = Cause::FolderHole { inode: inode.number, offset: base };
                damage.get_or_insert(cause.into());
                index = index.saturating_add(piece.len);
                continue;
            };
            let scanned = self.block("folder block", physical, |block| {
                self.scan_block(inode, base, block, from, entry)
            });
            match scanned {
                Ok(Ok(Scan::Stop)) => return damage.map_or(Ok(()), Err),
                Ok(Ok(Scan::GoOn)) => {}
                Ok(Err((cause, stopped))) => {
                    damage.get_or_insert(cause.into());
                    if stopped == Scan::Stop {
                        break;
                    }
                }
                Err(error) => {
                    damage.get_or_insert(error);
                }
            }
            index += 1;
        }
        damage.map_or(Ok(()), Err)
    }

    /// How many blocks the image can hold at most: a bound for loops over blocks.
    pub(super) fn present_blocks(&self) -> u64 {
        self.sb.blocks.min(self.source.len().div_ceil(self.sb.block_size))
    }

    /// Scans the block at offset `base` of the folder. With damage comes whether the scan was
    /// stopped before it.
    pub(super) fn scan_block(
        &self,
        inode: &Inode,
        base: u64,
        block: &[u8],
        from: u64,
        entry: &mut dyn FnMut(Entry<'_>) -> Scan,
    ) -> Result<Scan, (Cause, Scan)> {
        if inode.has(flag::INDEX) && htree::is_index(block, base == 0) {
            // In the root, `..` covers the rest of the block.
            return match htree::check(self, inode, base, block) {
                Ok(()) => Ok(Scan::GoOn),
                Err(cause) => Err((cause, Scan::GoOn)),
            };
        }
        let block = self.entries_of(inode, base, block).map_err(|cause| (cause, Scan::GoOn))?;
        self.scan_entries(inode, base, block, from, entry).map_err(|cause| (cause, Scan::GoOn))
    }

    /// Verifies the checksum of a block of entries; returns the block without it.
    fn entries_of<'a>(&self, inode: &Inode, base: u64, block: &'a [u8]) -> Result<&'a [u8], Cause> {
        if !self.sb.has_metadata_checksums() {
            return Ok(block);
        }
        let wrong = || Cause::FolderChecksum { inode: inode.number, offset: base };
        let (entries, tail) = block.split_at_checked(block.len() - MIN_LEN).ok_or_else(wrong)?;
        let record: &Record = wire::record(tail, 0).ok_or_else(wrong)?;
        let stored: &U32 = wire::record(tail, HEADER).ok_or_else(wrong)?;
        let is_tail = record.inode.get() == 0
            && usize::from(record.rec_len.get()) == MIN_LEN
            && record.name_len == 0
            && record.file_type == TAIL_TYPE;
        if is_tail && stored.get() == crc32c(inode.seed, entries) {
            Ok(entries)
        } else {
            Err(wrong())
        }
    }

    fn scan_inline(
        &self,
        inode: &Inode,
        bytes: &[u8],
        from: u64,
        entry: &mut dyn FnMut(Entry<'_>) -> Scan,
    ) -> Result<Scan, Cause> {
        let (first, second) = bytes.split_at(bytes.len().min(BLOCK_LEN));
        let first = first.get(INLINE_START..).unwrap_or(&[]);
        let done = self.scan_entries(inode, INLINE_START as u64, first, from, entry)?;
        if done == Scan::Stop {
            return Ok(done);
        }
        self.scan_entries(inode, BLOCK_LEN as u64, second, from, entry)
    }

    /// Scans entries that fill `bytes`, which are at offset `base` of the folder.
    fn scan_entries(
        &self,
        inode: &Inode,
        base: u64,
        bytes: &[u8],
        from: u64,
        entry: &mut dyn FnMut(Entry<'_>) -> Scan,
    ) -> Result<Scan, Cause> {
        let number = inode.number;
        let hashed = inode.has(flag::CASEFOLD) && inode.has(flag::ENCRYPTED);
        let block_size = self.sb.block_size as usize;
        let mut within = 0;
        while within < bytes.len() {
            let offset = base + within as u64;
            let rest = &bytes[within..];
            let record: &Record = wire::record(rest, 0).ok_or(Cause::EntryLength {
                inode: number,
                offset,
                len: 0,
            })?;
            let len = record_len(record.rec_len.get(), block_size);
            if len < MIN_LEN || !len.is_multiple_of(4) || len > rest.len() {
                return Err(Cause::EntryLength { inode: number, offset, len: len as u32 });
            }
            let name_len = usize::from(record.name_len);
            if HEADER + name_len > len {
                return Err(Cause::EntryName { inode: number, offset, len: record.name_len });
            }
            let target = record.inode.get();
            let name = &rest[HEADER..HEADER + name_len];
            if target != 0 && offset >= from && name != b"." && name != b".." {
                if name.is_empty()
                    || (name.iter().any(|&byte| byte == b'/' || byte == 0)
                        && !inode.has(flag::ENCRYPTED))
                {
                    return Err(Cause::EntryName { inode: number, offset, len: record.name_len });
                }
                if target > self.sb.inodes {
                    return Err(Cause::EntryInode { inode: number, offset, target });
                }
                let hash_at = HEADER + name_len.next_multiple_of(4);
                let hash = hashed
                    .then(|| wire::record::<[U32; 2]>(&rest[..len], hash_at))
                    .flatten()
                    .map(|hash| (hash[0].get(), hash[1].get()));
                let next = offset + len as u64;
                let found = Entry { name, inode: target, at: offset, next, hash };
                if entry(found) == Scan::Stop {
                    return Ok(Scan::Stop);
                }
            }
            within += len;
        }
        Ok(Scan::GoOn)
    }
}
