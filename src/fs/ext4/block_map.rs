//! Block maps: twelve direct blocks, then blocks of block numbers, up to three levels deep.
//! Kernel documentation, `ext4/blockmap.rst`.

use zerocopy::little_endian::U32;

use super::Ext4;
use super::cause::Cause;
use super::extent::END;
use super::inode::Inode;
use super::map::Piece;
use crate::error::Result;
use crate::wire;

/// Direct block numbers in `i_block`; single, double and triple indirect ones follow.
const DIRECT: u64 = 12;
const LEVELS: u32 = 3;

impl Ext4 {
    /// What is at the logical block `logical` of a file with a block map: as many blocks as one
    /// look at one block of the map can tell.
    pub(super) fn block_map(&self, inode: &Inode, logical: u64) -> Result<Piece> {
        let root: &[U32] = wire::records(&inode.block);
        if logical < DIRECT {
            return self.pointers(inode, &root[..DIRECT as usize], logical as usize, 1);
        }
        let per_block = self.sb.block_size / 4;
        let mut within = logical - DIRECT;
        let mut span = per_block;
        for level in 1..=LEVELS {
            if within < span {
                let pointer = root[(DIRECT as usize) + level as usize - 1].get();
                return self.descend(inode, pointer, within, span);
            }
            within -= span;
            span *= per_block;
        }
        Ok(Piece { physical: None, len: END.saturating_sub(logical).max(1) })
    }

    /// Goes down to the pointer of block `within` of the `span` blocks below `pointer`.
    fn descend(&self, inode: &Inode, pointer: u32, mut within: u64, span: u64) -> Result<Piece> {
        let per_block = self.sb.block_size / 4;
        let mut pointer = u64::from(pointer);
        let mut span = span;
        loop {
            if pointer == 0 {
                return Ok(Piece { physical: None, len: span - within });
            }
            if !self.sb.holds(pointer, 1) {
                let inode = inode.number;
                return Err(Cause::BlockRange { inode, block: pointer, len: 1 }.into());
            }
            let child = span / per_block;
            let index = (within / child) as usize;
            within %= child;
            // Each round divides the span, so that there are at most three.
            let next = self.block("indirect block", pointer, |bytes| {
                let pointers: &[U32] = wire::records(bytes);
                if child == 1 {
                    return self.pointers(inode, pointers, index, 1).map(Err);
                }
                match pointers.get(index).map_or(0, |pointer| pointer.get()) {
                    // Neighbouring empty pointers make one longer hole.
                    0 => self
                        .pointers(inode, pointers, index, child)
                        .map(|hole| Err(Piece { physical: None, len: hole.len - within })),
                    pointer => Ok(Ok(u64::from(pointer))),
                }
            })??;
            match next {
                Ok(below) => pointer = below,
                Err(piece) => return Ok(piece),
            }
            span = child;
        }
    }

    /// The run of empty pointers, or of pointers to consecutive blocks, from `index` on; each
    /// stands for `each` blocks.
    fn pointers(&self, inode: &Inode, pointers: &[U32], index: usize, each: u64) -> Result<Piece> {
        let rest = pointers.get(index..).unwrap_or(&[]);
        let first = rest.first().map_or(0, |pointer| u64::from(pointer.get()));
        let same = |(at, pointer): (usize, &U32)| {
            let pointer = u64::from(pointer.get());
            if first == 0 { pointer == 0 } else { pointer == first + at as u64 }
        };
        let len = rest.iter().enumerate().take_while(|&item| same(item)).count().max(1) as u64;
        if first == 0 {
            return Ok(Piece { physical: None, len: len * each });
        }
        if !self.sb.holds(first, len) {
            let inode = inode.number;
            return Err(Cause::BlockRange { inode, block: first, len }.into());
        }
        Ok(Piece { physical: Some(first), len })
    }
}
