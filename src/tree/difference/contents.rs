//! Comparing the bytes of two files, as few as can be.

use std::sync::atomic::Ordering;

use super::super::{FileTree, NodeId};
use super::Progress;
use crate::block::Home;
use crate::error::{Error, Kind, Result};

/// Bytes read of each file at once.
const CHUNK: u64 = 1 << 20;

type File<'a> = (&'a dyn FileTree, NodeId);

/// Whether two files of `size` bytes have the same contents.
pub(super) fn equal(files: [File<'_>; 2], size: u64, progress: &Progress) -> Result<bool> {
    let mut buffers = [Vec::new(), Vec::new()];
    let mut at = 0;
    while at < size {
        let (len, shared) = step(files, at)?;
        if shared || both_holes(files, at, len)? {
            at = at.saturating_add(len);
            continue;
        }
        // Small pieces that lie in different places are read together.
        let most = CHUNK.min(size - at);
        let mut len = len.min(most);
        while len < most {
            let (more, shared) = step(files, at + len)?;
            if shared {
                break;
            }
            len = len.saturating_add(more).min(most);
        }
        for (buffer, (tree, node)) in buffers.iter_mut().zip(files) {
            // At most a chunk.
            buffer.resize(len as usize, 0);
            let count = tree.read_at(node, at, buffer)?;
            if count < buffer.len() {
                let message = format!("the file ends at byte {}", at.saturating_add(count as u64));
                return Err(Error::new(Kind::Corrupt, message));
            }
        }
        progress.bytes.fetch_add(len, Ordering::Relaxed);
        let [before, after] = &buffers;
        if before != after {
            return Ok(false);
        }
        at += len;
    }
    Ok(true)
}

/// How far both files are the same bytes, or are not known to be.
fn step(files: [File<'_>; 2], at: u64) -> Result<(u64, bool)> {
    let [before, after] = files;
    let before = before.0.origin_at(before.1, at)?;
    let after = after.0.origin_at(after.1, at)?;
    match before.shared(&after) {
        0 => Ok((before.len.min(after.len).max(1), false)),
        shared => Ok((shared, true)),
    }
}

/// Whether `len` bytes are a hole in both files.
fn both_holes(files: [File<'_>; 2], at: u64, len: u64) -> Result<bool> {
    for (tree, node) in files {
        let extent = tree.extent_at(node, at)?;
        if !extent.hole || extent.len < len {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A run of bytes that may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many bytes; never 0.
    pub len: u64,
    /// Whether the file holds zeros there afterwards that are stored nowhere, or has ended.
    pub zeros: bool,
}

/// Calls `emit` with the ranges of two files that do not finally lie in the same place, in order.
/// Nothing of them is read: what was written anew with the same bytes is told, too.
///
/// # Errors
/// Those of the trees and of `emit`.
pub fn ranges(
    before: (&dyn FileTree, NodeId),
    after: (&dyn FileTree, NodeId),
    emit: &mut dyn FnMut(Range) -> Result<()>,
) -> Result<()> {
    let sizes = [before.0.attr(before.1)?.size, after.0.attr(after.1)?.size];
    let both = sizes[0].min(sizes[1]);
    let end = sizes[0].max(sizes[1]);
    let mut run: Option<Range> = None;
    let mut at = 0;
    while at < end {
        let (len, zeros) = if at < both {
            let (old, new) = (before.0.origin_at(before.1, at)?, after.0.origin_at(after.1, at)?);
            let shared = old.shared(&new);
            if shared > 0 {
                at = at.saturating_add(shared);
                continue;
            }
            (old.len.min(new.len).clamp(1, both - at), new.home == Home::Zeros)
        } else if sizes[1] > at {
            let new = after.0.origin_at(after.1, at)?;
            (new.len.clamp(1, end - at), new.home == Home::Zeros)
        } else {
            (end - at, true)
        };
        match &mut run {
            Some(last) if last.offset + last.len == at && last.zeros == zeros => last.len += len,
            _ => {
                if let Some(last) = run.take() {
                    emit(last)?;
                }
                run = Some(Range { offset: at, len, zeros });
            }
        }
        at += len;
    }
    run.map_or(Ok(()), emit)
}
