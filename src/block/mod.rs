//! Random access to bytes: files, memory, windows of another source, a shared cache, and faults
//! on demand for tests.
//!
//! Everything here is positional, takes `&self` and may be used from any thread at once.

mod cache;
mod fault;
mod file;
mod lock;
mod memory;
mod pages;
mod sink;
mod storage;
mod window;

use std::fmt::Debug;
use std::fs::File;

use crate::error::{Error, Kind, Result};

pub use cache::{Cache, Key, Owner, Unit, Weigh};
pub use fault::{Fault, FaultSource};
pub use file::FileSource;
pub use memory::MemorySource;
pub use pages::Pages;
pub use sink::FileSink;
pub(crate) use storage::StorageSource;
pub use storage::{FileStorage, Storage};
pub use window::Window;

/// Random-access bytes of a fixed length.
#[expect(clippy::len_without_is_empty, reason = "a disk of no bytes is no case of its own")]
pub trait BlockSource: Send + Sync + Debug {
    /// The length in bytes. It never changes while the source is open.
    fn len(&self) -> u64;

    /// Fills `buf` with the bytes at `offset`: all of it, or an error and unspecified contents.
    ///
    /// # Errors
    /// [`Kind::OutOfBounds`] if the range does not lie within the source.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Whether there is data or a hole at `offset`, and how far that is known to go on.
    ///
    /// `offset` is below [`BlockSource::len`]. The answer is at least one byte long, ends at or
    /// before the end of the source, and is conservative: a hole surely reads as zeros, data may.
    /// The neighbouring extent may be of the same kind.
    fn extent_at(&self, offset: u64) -> Result<Extent>;

    /// Where the bytes at `offset` finally lie, however many layers and windows are in between.
    ///
    /// `offset` is below [`BlockSource::len`]. The answer is at least one byte long, ends at or
    /// before the end of the source, and holds for as long as no file changes. Nothing is read but
    /// what says where the bytes are.
    fn origin_at(&self, offset: u64) -> Result<Origin>;

    /// The host file whose bytes are this source's, from its first to its last, if there is one:
    /// the kernel can then read it without us.
    fn whole_file(&self) -> Option<&File>;
}

/// A source that can be written. Its length stays what it is.
///
/// Writers and readers may come from any thread at once. Of two writes at the same place that
/// overlap in time either may win, and a reader beside a write sees each byte as before or as
/// after it.
pub trait BlockSink: BlockSource {
    /// Writes all of `data` at `offset`, or fails; then the range holds any mixture of old and new.
    ///
    /// # Errors
    /// [`Kind::OutOfBounds`] if the range does not lie within the source, [`Kind::NoSpace`],
    /// [`Kind::ReadOnly`] once a flush has failed.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Makes `len` bytes at `offset` zeros, giving back the room they took: this is what discarding
    /// means here, too.
    ///
    /// # Errors
    /// As [`BlockSink::write_at`].
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()>;

    /// Returns once everything that was written before the call is on stable storage.
    ///
    /// # Errors
    /// The host's. What was not flushed may be lost by then; from there on the sink is read-only.
    fn flush(&self) -> Result<()>;
}

/// Whether all of `bytes` are zeros.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}

/// A run of data or of zeros that take no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the offset asked about to the end of the run; never 0.
    pub len: u64,
    /// Whether the run is a hole.
    pub hole: bool,
}

/// Where a run of bytes finally lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Bytes from the offset asked about to the end of the run; never 0.
    pub len: u64,
    /// Where its first byte is; the others follow.
    pub home: Home,
}

impl Origin {
    /// A run that lies nowhere in particular.
    pub const fn unknown(len: u64) -> Self {
        Self { len, home: Home::Unknown }
    }

    /// Bytes from the offset asked about that `self` and `other` surely have in common, because
    /// they are the same ones; 0 says that they have to be read.
    pub fn shared(&self, other: &Self) -> u64 {
        if self.home == other.home && self.home != Home::Unknown {
            self.len.min(other.len)
        } else {
            0
        }
    }
}

/// Where a byte finally is. Files are told apart as by [`FileSource::identity`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// Zeros that are stored nowhere.
    Zeros,
    /// At this offset of a host file.
    Stored {
        /// The file.
        file: (u64, u64),
        /// In bytes.
        offset: u64,
    },
    /// In what is stored encoded, as one piece, in a host file.
    Encoded {
        /// The file.
        file: (u64, u64),
        /// Where the piece is.
        unit: u64,
        /// Where the byte is once it is decoded.
        within: u32,
    },
    /// In bytes that are known by a name they alone have, such as their hash.
    Named {
        /// The name.
        name: [u8; 32],
        /// Where the byte is in them.
        within: u32,
    },
    /// Not told, or nowhere: it was made or changed on the way. Never the same as another.
    Unknown,
}

/// Fails unless `offset..offset + len` lies within `total` bytes.
pub(crate) fn check_range(offset: u64, len: usize, total: u64) -> Result<()> {
    match offset.checked_add(len as u64) {
        Some(end) if end <= total => Ok(()),
        _ => Err(Error::new(
            Kind::OutOfBounds,
            format!("{len} bytes at {offset:#x} pass the end at {total:#x}"),
        )),
    }
}

/// The extent at or after `offset` that is a hole (`hole`) or data (`!hole`): where it begins.
///
/// `None` if there is no such extent before `len`. This is what `lseek` with `SEEK_HOLE` and
/// `SEEK_DATA` asks, short of the rule that a file ends in a virtual hole.
///
/// The answer is conservative, as [`Extent`] is: a disk that claims exbibytes of holes must not
/// keep a thread for ever, so after `MAX_SEEK_STEPS` extents whatever comes next is told as
/// data.
///
/// # Errors
/// What `extent_at` returns, which is asked about consecutive offsets.
pub fn seek_extent(
    len: u64,
    offset: u64,
    hole: bool,
    extent_at: impl Fn(u64) -> Result<Extent>,
) -> Result<Option<u64>> {
    let mut at = offset;
    for _ in 0..MAX_SEEK_STEPS {
        if at >= len {
            return Ok(None);
        }
        let extent = extent_at(at)?;
        if extent.hole == hole {
            return Ok(Some(at));
        }
        at = at.saturating_add(extent.len.max(1));
    }
    Ok(if hole { None } else { Some(at).filter(|&at| at < len) })
}

/// Extents one [`seek_extent`] looks at: 8 TiB of unallocated disk in regions of 32 MiB.
const MAX_SEEK_STEPS: u32 = 1 << 18;

#[cfg(test)]
mod tests;
