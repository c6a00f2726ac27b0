//! Copying the bytes of one file, with its holes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs;
use rustix::io::Errno;

use super::engine::{Progress, Stop};
use super::folder::Told;
use crate::error::{Error, Kind, Result};
use crate::tree::{Attr, FileTree};

/// Bytes moved at once.
pub(super) const CHUNK: usize = 1 << 20;
/// Files up to this size without missing blocks are copied without asking where their holes are.
const PLAIN: u64 = 64 << 10;

/// Why copying ended early.
pub(super) enum Halt {
    /// The image could not be read.
    Source(Error),
    /// The destination could not be written.
    Target(Error),
    /// Asked to stop.
    Stopped,
}

/// Copies a regular file from byte `from` on, which lies at or before its end, into `file`, whose
/// length is `from` or more and which reads as zeros beyond it.
pub(super) fn copy(
    tree: &dyn FileTree,
    attr: &Attr,
    file: &OwnedFd,
    from: u64,
    buffer: &mut [u8],
    progress: &Progress,
    stop: &Stop<'_>,
) -> Result<(), Halt> {
    let size = attr.size;
    let dense = size <= PLAIN && attr.blocks.saturating_mul(512) >= size;
    let mut at = from;
    let mut length = from;
    while at < size {
        if stop.is_asked() {
            return Err(Halt::Stopped);
        }
        let (run, hole) = if dense {
            (size - at, false)
        } else {
            let extent = tree.extent_at(attr.node, at).map_err(Halt::Source)?;
            (extent.len.clamp(1, size - at), extent.hole)
        };
        if hole {
            at += run;
            progress.bytes.fetch_add(run, Ordering::Relaxed);
            continue;
        }
        let end = at + run;
        while at < end {
            if stop.is_asked() {
                return Err(Halt::Stopped);
            }
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..wanted).unwrap_or_default();
            let count = tree.read_at(attr.node, at, part).map_err(Halt::Source)?;
            let part = part.get(..count).unwrap_or_default();
            if part.is_empty() {
                let message = format!("the file ends at byte {at}, {} bytes early", size - at);
                return Err(Halt::Source(Error::new(Kind::Corrupt, message)));
            }
            write_all(file, at, part).map_err(Halt::Target)?;
            at += part.len() as u64;
            length = at;
            progress.bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
        }
    }
    if length < size || from > 0 {
        fs::ftruncate(file, size).told("cannot set the length").map_err(Halt::Target)?;
    }
    Ok(())
}

fn write_all(file: impl AsFd, mut at: u64, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, bytes, at) {
            Ok(0) => return Err(Errno::IO).told("cannot write"),
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).told("cannot write"),
        }
    }
    Ok(())
}
