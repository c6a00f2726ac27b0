//! Extent trees. Kernel documentation, `ext4/ifork.rst`.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::cause::Cause;
use super::checksum::crc32c;
use super::inode::Inode;
use super::map::Run;
use crate::error::Result;
use crate::wire;

/// What every node begins with.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: U16,
    entries: U16,
    max: U16,
    depth: U16,
    generation: U32,
}

/// An entry of an inner node.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Index {
    block: U32,
    leaf_lo: U32,
    leaf_hi: U16,
    unused: U16,
}

/// An entry of a leaf.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extent {
    block: U32,
    len: U16,
    start_hi: U16,
    start_lo: U32,
}

pub(super) const MAGIC: u16 = 0xf30a;
/// Header and entries are all of this size.
const ENTRY: usize = 12;
/// The deepest tree there can be: one more level would pass 2^32 blocks.
const MAX_DEPTH: u16 = 5;
/// Longer lengths mean: allocated, never written, reads as zeros.
const MAX_INITIALISED: u16 = 32_768;
/// Logical blocks are numbered by 32 bits.
pub(super) const END: u64 = 1 << 32;

impl Extent {
    fn run(&self) -> Run {
        let len = self.len.get();
        Run {
            logical: self.block.get(),
            len: u32::from(if len > MAX_INITIALISED { len - MAX_INITIALISED } else { len }),
            physical: u64::from(self.start_hi.get()) << 32 | u64::from(self.start_lo.get()),
        }
    }

    fn is_initialised(&self) -> bool {
        self.len.get() <= MAX_INITIALISED
    }
}

/// Where the walk goes from a node.
enum Step {
    Down { block: u64, depth: u16, range: Range<u64> },
    Leaf(Range<u64>),
}

impl Ext4 {
    /// Finds the leaf of `inode`'s extent tree that is responsible for the logical block
    /// `logical`, and calls `found` with its written extents, ascending. Returns the range of
    /// logical blocks the leaf answers for, which holds `logical`: what is not in an extent there
    /// is a hole.
    pub(super) fn extent_leaf(
        &self,
        inode: &Inode,
        logical: u64,
        found: &mut dyn FnMut(Run),
    ) -> Result<Range<u64>> {
        let root: &Header = wire::record(&inode.block, 0).ok_or(Cause::InodeFree(inode.number))?;
        let depth = root.depth.get();
        if depth > MAX_DEPTH {
            return Err(
                Cause::ExtentDepth { inode: inode.number, depth, expected: MAX_DEPTH }.into()
            );
        }
        let walk = Walk { ext4: self, inode, logical };
        let mut step = walk.node(&inode.block, depth, 0..END, found)?;
        // Ends: each step down lowers the depth by one, or fails.
        while let Step::Down { block, depth, range } = step {
            step = self.block("extent node", block, |bytes| {
                self.check_extent_node(inode, block, bytes)?;
                walk.node(bytes, depth, range, found)
            })??;
        }
        match step {
            Step::Leaf(range) => Ok(range),
            Step::Down { .. } => {
                Err(Cause::ExtentEntries { inode: inode.number, entries: 0, max: 0 }.into())
            }
        }
    }

    fn check_extent_node(&self, inode: &Inode, block: u64, bytes: &[u8]) -> Result<(), Cause> {
        if !self.sb.has_metadata_checksums() {
            return Ok(());
        }
        let wrong = || Cause::ExtentChecksum { inode: inode.number, block };
        let header: &Header = wire::record(bytes, 0).ok_or_else(wrong)?;
        let tail = ENTRY + ENTRY * usize::from(header.max.get());
        let stored: &U32 = wire::record(bytes, tail).ok_or_else(wrong)?;
        if stored.get() == crc32c(inode.seed, &bytes[..tail]) { Ok(()) } else { Err(wrong()) }
    }
}

/// One descent: what is looked for.
struct Walk<'a> {
    ext4: &'a Ext4,
    inode: &'a Inode,
    logical: u64,
}

impl Walk<'_> {
    /// Reads one node, which answers for `range`, which holds the block looked for.
    fn node(
        &self,
        bytes: &[u8],
        depth: u16,
        range: Range<u64>,
        found: &mut dyn FnMut(Run),
    ) -> Result<Step, Cause> {
        let inode = self.inode.number;
        let header: &Header =
            wire::record(bytes, 0).ok_or(Cause::ExtentMagic { inode, magic: 0 })?;
        if header.magic.get() != MAGIC {
            return Err(Cause::ExtentMagic { inode, magic: header.magic.get() });
        }
        if header.depth.get() != depth {
            return Err(Cause::ExtentDepth { inode, depth: header.depth.get(), expected: depth });
        }
        let (entries, max) = (header.entries.get(), header.max.get());
        let room = (bytes.len() - ENTRY) / ENTRY;
        if entries > max || usize::from(max) > room || (entries == 0 && depth > 0) {
            return Err(Cause::ExtentEntries { inode, entries, max });
        }
        let body = &bytes[ENTRY..ENTRY + ENTRY * usize::from(entries)];
        if depth == 0 {
            self.leaf(wire::records(body), &range, found)?;
            return Ok(Step::Leaf(range));
        }
        self.inner(wire::records(body), depth, range)
    }

    fn leaf(
        &self,
        extents: &[Extent],
        range: &Range<u64>,
        found: &mut dyn FnMut(Run),
    ) -> Result<(), Cause> {
        let inode = self.inode.number;
        let mut free = range.start;
        for extent in extents {
            let run = extent.run();
            let start = u64::from(run.logical);
            let end = start + u64::from(run.len);
            if run.len == 0 || start < free || end > range.end {
                return Err(Cause::ExtentOrder { inode, block: run.logical });
            }
            free = end;
            if !self.ext4.sb.holds(run.physical, u64::from(run.len)) {
                let (block, len) = (run.physical, u64::from(run.len));
                return Err(Cause::BlockRange { inode, block, len });
            }
            if extent.is_initialised() {
                found(run);
            }
        }
        Ok(())
    }

    fn inner(&self, entries: &[Index], depth: u16, range: Range<u64>) -> Result<Step, Cause> {
        let inode = self.inode.number;
        let block = |index: &Index| u64::from(index.block.get());
        let mut previous = None;
        for entry in entries {
            let at = block(entry);
            if at < range.start || at >= range.end || previous.is_some_and(|before| at <= before) {
                return Err(Cause::ExtentOrder { inode, block: entry.block.get() });
            }
            previous = Some(at);
        }
        let after = entries.partition_point(|entry| block(entry) <= self.logical);
        let end = entries.get(after).map_or(range.end, block);
        let Some(chosen) = after.checked_sub(1).and_then(|at| entries.get(at)) else {
            return Ok(Step::Leaf(range.start..end));
        };
        let leaf = u64::from(chosen.leaf_hi.get()) << 32 | u64::from(chosen.leaf_lo.get());
        if !self.ext4.sb.holds(leaf, 1) {
            return Err(Cause::BlockRange { inode, block: leaf, len: 1 });
        }
        Ok(Step::Down { block: leaf, depth: depth - 1, range: block(chosen)..end })
    }
}
