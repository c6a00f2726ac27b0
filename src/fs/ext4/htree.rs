//! The hash index of a large folder: finds the one block that can hold a name. Kernel
//! documentation, `ext4/directory.rst`, "hash tree directories".

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::cause::Cause;
use super::checksum::crc32c;
use super::dir::{Scan, record_len};
use super::features::incompat;
use super::hash::{self, Version};
use super::inode::Inode;
use super::map::Node;
use crate::error::Result;
use crate::wire;

/// What the root has after its two disguise entries.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RootInfo {
    reserved_zero: U32,
    hash_version: u8,
    info_length: u8,
    indirect_levels: u8,
    unused_flags: u8,
}

/// In place of the first entry's hash, which needs none: it takes all that the second does not.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CountLimit {
    limit: U16,
    count: U16,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Entry {
    hash: U32,
    block: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Tail {
    reserved: U32,
    checksum: U32,
}

const ENTRY: usize = size_of::<Entry>();
const ROOT_INFO: usize = 24;
const ROOT_ENTRIES: usize = 32;
/// After the one disguise entry of an inner node.
const NODE_ENTRIES: usize = 8;
/// The upper bits of a block number are set apart.
const BLOCK_MASK: u32 = 0x0fff_ffff;
/// Names whose hashes collide may fill a few blocks; not this many.
const MAX_LEAVES: usize = 64;

/// Whether a block of an indexed folder belongs to the index; `first` if it is the folder's first.
pub(super) fn is_index(block: &[u8], first: bool) -> bool {
    let len_at = |at: usize| {
        wire::record::<U16>(block, at + 4).map_or(0, |len| record_len(len.get(), block.len()))
    };
    if first {
        let info: Option<&RootInfo> = wire::record(block, ROOT_INFO);
        return len_at(0) == 12
            && len_at(12) == block.len() - 12
            && info.is_some_and(|info| info.reserved_zero.get() == 0 && info.info_length == 8);
    }
    wire::record::<U32>(block, 0).is_some_and(|inode| inode.get() == 0) && len_at(0) == block.len()
}

/// The entries of an index block at offset `base` of the folder, its counts and checksum checked.
fn entries<'a>(
    ext4: &Ext4,
    inode: &Inode,
    base: u64,
    block: &'a [u8],
) -> Result<&'a [Entry], Cause> {
    let wrong = |what| Cause::HashIndex { inode: inode.number, what };
    let start = if base == 0 { ROOT_ENTRIES } else { NODE_ENTRIES };
    let counts: &CountLimit = wire::record(block, start).ok_or(wrong("no entries"))?;
    let (limit, count) = (usize::from(counts.limit.get()), usize::from(counts.count.get()));
    let checksums = ext4.sb.has_metadata_checksums();
    let room = (block.len() - start) / ENTRY - usize::from(checksums);
    if count == 0 || count > limit || limit > room {
        return Err(wrong("its counts"));
    }
    let end = start + count * ENTRY;
    if checksums {
        let tail: &Tail = wire::record(block, start + limit * ENTRY).ok_or(wrong("no tail"))?;
        let mut crc = crc32c(inode.seed, &block[..end]);
        crc = crc32c(crc, &tail.reserved.get().to_le_bytes());
        crc = crc32c(crc, &[0; 4]);
        if crc != tail.checksum.get() {
            return Err(Cause::FolderChecksum { inode: inode.number, offset: base });
        }
    }
    Ok(wire::records(&block[start..end]))
}

/// Checks an index block.
pub(super) fn check(ext4: &Ext4, inode: &Inode, base: u64, block: &[u8]) -> Result<(), Cause> {
    entries(ext4, inode, base, block).map(|_| ())
}

/// What an index says about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Inode(u32),
    Absent,
    /// The index is of no use: the folder has to be read.
    Unknown,
}

/// One level of the way down: an index block, the entry taken, and how many there are.
struct Level {
    block: u64,
    at: usize,
    count: usize,
}

/// Which entry of an index block to take.
enum Pick {
    /// The one whose hashes begin at or below this one.
    Hash(u32),
    /// The one of this number.
    Number(usize),
}

impl Ext4 {
    /// Looks `name`, as it is on disk, up through the hash index of a folder.
    ///
    /// # Errors
    /// Damage on the way, which need not keep a plain reading of the folder from succeeding.
    pub(super) fn index_lookup(&self, node: &Node, name: &[u8]) -> Result<Found> {
        let inode = &node.inode;
        let root = self.folder_block(node, 0, |block| {
            if !is_index(block, true) {
                return None;
            }
            wire::record::<RootInfo>(block, ROOT_INFO)
                .map(|info| (info.hash_version, usize::from(info.indirect_levels)))
        })?;
        let Some((version, levels)) = root else { return Ok(Found::Unknown) };
        let deepest = if self.sb.features.has_incompat(incompat::LARGEDIR) { 2 } else { 1 };
        if levels > deepest {
            return Ok(Found::Unknown);
        }
        let Some(version) = Version::new(version, self.sb.hash_unsigned) else {
            return Ok(Found::Unknown);
        };
        let (hash, _) = hash::hash(version, &self.sb.hash_seed, name);
        let mut path: Vec<Level> = Vec::with_capacity(levels + 1);
        let mut block = 0;
        for _ in 0..=levels {
            let (level, below) = self.index_step(node, block, &Pick::Hash(hash))?;
            path.push(level);
            block = below;
        }
        for _ in 0..MAX_LEAVES {
            let mut found = None;
            self.folder_block(node, block, |bytes| {
                let base = block * self.sb.block_size;
                self.scan_block(inode, base, bytes, 0, &mut |entry| {
                    if entry.name == name {
                        found = Some(entry.inode);
                        return Scan::Stop;
                    }
                    Scan::GoOn
                })
                .map_err(|(cause, _)| cause)
            })??;
            if let Some(found) = found {
                return Ok(Found::Inode(found));
            }
            match self.next_leaf(node, &mut path, hash)? {
                Some(next) => block = next,
                None => return Ok(Found::Absent),
            }
        }
        Ok(Found::Unknown)
    }

    /// The next block that may hold names of this hash: those of one hash may be spread over
    /// several, which their index entries say by continuing the hash before them.
    fn next_leaf(&self, node: &Node, path: &mut [Level], hash: u32) -> Result<Option<u64>> {
        let Some(turn) = path.iter().rposition(|level| level.at + 1 < level.count) else {
            return Ok(None);
        };
        let (block, number) = (path[turn].block, path[turn].at + 1);
        let start = self.folder_block(node, block, |bytes| {
            entries(self, &node.inode, block * self.sb.block_size, bytes)
                .map(|entries| entries.get(number).map(|entry| entry.hash.get()))
        })??;
        if start.is_none_or(|start| start & !1 != hash) {
            return Ok(None);
        }
        let (level, mut below) = self.index_step(node, block, &Pick::Number(number))?;
        path[turn] = level;
        for level in &mut path[turn + 1..] {
            (*level, below) = self.index_step(node, below, &Pick::Number(0))?;
        }
        Ok(Some(below))
    }

    /// Takes one entry of the index block `block`; returns it and the block it leads to.
    fn index_step(&self, node: &Node, block: u64, pick: &Pick) -> Result<(Level, u64)> {
        let inode = &node.inode;
        let base = block * self.sb.block_size;
        let wrong = |what| Cause::HashIndex { inode: inode.number, what };
        let step = self.folder_block(node, block, |bytes| {
            if !is_index(bytes, base == 0) {
                return Err(wrong("not an index block"));
            }
            let entries = entries(self, inode, base, bytes)?;
            let at = match *pick {
                Pick::Hash(hash) => {
                    // The first entry has no hash of its own.
                    entries[1..].partition_point(|entry| entry.hash.get() <= hash)
                }
                Pick::Number(number) => number,
            };
            let entry = entries.get(at).ok_or(wrong("its counts"))?;
            let below = u64::from(entry.block.get() & BLOCK_MASK);
            Ok((Level { block, at, count: entries.len() }, below))
        })??;
        if step.1 == 0 {
            return Err(wrong("it leads back to its root").into());
        }
        Ok(step)
    }

    /// Calls `read` with the block `index` of a folder.
    fn folder_block<R>(&self, node: &Node, index: u64, read: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let inode = &node.inode;
        let offset = index * self.sb.block_size;
        let hole = Cause::FolderHole { inode: inode.number, offset };
        if offset >= inode.attr.size {
            return Err(hole.into());
        }
        let physical = node.piece(self, index)?.physical.ok_or(hole)?;
        self.block("folder block", physical, read)
    }
}
