//! Guest filesystems, read-only: each turns a source into a tree of files.
//!
//! [`open`] recognises what lies on a source and opens it. Nothing is read by path, and nothing
//! is read that nobody asked for: opening costs a handful of reads whatever the size of the disk.

mod ext4;
mod identify;

use std::sync::Arc;

use serde::Serialize;

use crate::block::{BlockSource, Cache};
use crate::error::Result;
use crate::tree::FileTree;

pub use identify::identify;

/// A filesystem that was opened.
#[derive(Debug)]
pub struct Filesystem {
    /// Its files.
    pub tree: Arc<dyn FileTree>,
    /// What it is.
    pub info: Info,
}

/// What a filesystem says about itself.
#[derive(Debug, Clone, Serialize)]
pub struct Info {
    /// Which filesystem: `ext2`, `ext3`, `ext4`.
    pub kind: String,
    /// The name its owner gave it.
    pub label: Option<String>,
    /// The identifier made with it, in the customary form.
    pub uuid: Option<String>,
    /// Bytes it spans on its volume.
    pub size: u64,
    /// Bytes of that in use.
    pub used: u64,
    /// Bytes of one block.
    pub block_size: u32,
    /// Files there can be.
    pub files: u64,
    /// Files there could be more.
    pub files_free: u64,
    /// Format features in use, by the names its own tools give them.
    pub features: Vec<String>,
    /// Whether it was put away in good order.
    pub clean: bool,
    /// What a reader should know: damage noticed, a journal not replayed.
    pub warnings: Vec<String>,
}

/// Opens the filesystem that lies on `source`, reading its metadata through `cache`; `None` if
/// there is none that we know.
///
/// # Errors
/// [`Corrupt`](crate::error::Kind::Corrupt) or [`Unsupported`](crate::error::Kind::Unsupported)
/// for a filesystem that is recognised and cannot be opened, or the host's.
pub fn open(source: Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Result<Option<Filesystem>> {
    if ext4::probe(&*source)? {
        return ext4::open(source, cache).map(Some);
    }
    Ok(None)
}
