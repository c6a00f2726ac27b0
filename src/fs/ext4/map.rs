//! Where the contents of a file are.
//!
//! A file's map is resolved once, into a list of coalesced runs that lives in the shared cache
//! beside its inode. A list that would be too long, or that damage keeps from being complete, is
//! not made: such a file's tree is walked for each read instead, so that a damaged part of it
//! fails alone.

use super::Ext4;
use super::extent::END;
use super::inode::{Inode, flag};
use crate::block::Weigh;
use crate::error::Result;
use crate::tree::FileKind;

/// Runs a list holds at most: 1 MiB.
const MAX_RUNS: usize = 64 << 10;
/// Nodes of a tree read at most to make a list.
const MAX_NODES: usize = 1024;

/// Consecutive blocks that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) logical: u32,
    pub(super) len: u32,
    pub(super) physical: u64,
}

/// What is at one place of a file, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// The first block, or `None` for what reads as zeros.
    pub(super) physical: Option<u64>,
    /// How many blocks; never 0.
    pub(super) len: u64,
}

/// An inode, and where its contents are.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) inode: Inode,
    map: Map,
}

#[derive(Debug)]
enum Map {
    /// In these bytes; what is past them reads as zeros.
    Inline(Box<[u8]>),
    /// In these runs, ascending; what is in none reads as zeros.
    Runs(Box<[Run]>),
    /// To be looked up block by block.
    Tree,
}

impl Weigh for Node {
    fn weight(&self) -> usize {
        size_of::<Self>()
            + match &self.map {
                Map::Inline(bytes) => bytes.len(),
                Map::Runs(runs) => size_of_val::<[Run]>(runs),
                Map::Tree => 0,
            }
    }
}

impl Node {
    /// The contents, if they lie in the inode itself.
    pub(super) fn inline(&self) -> Option<&[u8]> {
        match &self.map {
            Map::Inline(bytes) => Some(bytes),
            Map::Runs(_) | Map::Tree => None,
        }
    }

    /// Resolves the map of `inode`.
    pub(super) fn resolve(ext4: &Ext4, inode: Inode) -> Result<Self> {
        let has_contents =
            matches!(inode.attr.kind, FileKind::Regular | FileKind::Directory | FileKind::Symlink);
        let map = if !has_contents {
            Map::Inline(Box::default())
        } else if inode.has(flag::INLINE_DATA) {
            Map::Inline(ext4.inline_data(&inode)?.into())
        } else {
            match ext4.runs(&inode) {
                Ok(Some(runs)) => Map::Runs(runs.into()),
                Ok(None) | Err(_) => Map::Tree,
            }
        };
        Ok(Self { inode, map })
    }

    /// What is at the logical block `logical`.
    pub(super) fn piece(&self, ext4: &Ext4, logical: u64) -> Result<Piece> {
        match &self.map {
            Map::Inline(_) => Ok(Piece { physical: None, len: END }),
            Map::Runs(runs) => Ok(in_runs(runs, logical, u64::MAX)),
            Map::Tree => ext4.piece(&self.inode, logical),
        }
    }
}

/// What `runs` say about `logical`, where they say all up to `end`.
fn in_runs(runs: &[Run], logical: u64, end: u64) -> Piece {
    let after = runs.partition_point(|run| u64::from(run.logical) <= logical);
    if let Some(run) = after.checked_sub(1).and_then(|at| runs.get(at)) {
        let within = logical - u64::from(run.logical);
        if within < u64::from(run.len) {
            let len = u64::from(run.len) - within;
            return Piece { physical: Some(run.physical + within), len };
        }
    }
    let next = runs.get(after).map_or(end, |run| u64::from(run.logical));
    Piece { physical: None, len: next.saturating_sub(logical).max(1) }
}

/// Adds a run to an ascending list, as part of the last one if it continues it.
fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && u64::from(last.logical) + u64::from(last.len) == u64::from(run.logical)
        && last.physical + u64::from(last.len) == run.physical
        && let Some(len) = last.len.checked_add(run.len)
    {
        last.len = len;
        return;
    }
    runs.push(run);
}

impl Ext4 {
    /// All runs of a file, or `None` if there are too many.
    fn runs(&self, inode: &Inode) -> Result<Option<Vec<Run>>> {
        let mut runs = Vec::new();
        let mut logical = 0;
        let end = inode.attr.size.div_ceil(self.sb.block_size).min(END);
        for _ in 0..MAX_NODES {
            if inode.has(flag::EXTENTS) {
                logical = self.extent_leaf(inode, logical, &mut |run| push(&mut runs, run))?.end;
            } else if logical < end {
                let piece = self.block_map(inode, logical)?;
                if let Some(physical) = piece.physical {
                    // A piece of a block map is shorter than one block of it has pointers.
                    let (logical, len) = (logical as u32, piece.len as u32);
                    push(&mut runs, Run { logical, len, physical });
                }
                logical += piece.len;
            }
            if runs.len() > MAX_RUNS {
                return Ok(None);
            }
            if logical >= end {
                runs.shrink_to_fit();
                return Ok(Some(runs));
            }
        }
        Ok(None)
    }

    /// What is at the logical block `logical`, by walking the file's tree.
    pub(super) fn piece(&self, inode: &Inode, logical: u64) -> Result<Piece> {
        if logical >= END {
            return Ok(Piece { physical: None, len: u64::MAX - logical });
        }
        if !inode.has(flag::EXTENTS) {
            return self.block_map(inode, logical);
        }
        let mut here: Option<Run> = None;
        let mut next = None;
        let leaf = self.extent_leaf(inode, logical, &mut |run| {
            let start = u64::from(run.logical);
            if start > logical {
                next = next.or(Some(start));
            } else if logical < start + u64::from(run.len) {
                here = Some(run);
            }
        })?;
        Ok(in_runs(here.as_slice(), logical, next.unwrap_or(leaf.end)))
    }
}
