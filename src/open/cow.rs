//! Where changes go: a delta above a disk, or an upper above a tree.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Disk, Opener, Reference};
use crate::block::BlockSink;
use crate::error::{Error, Kind, Result};
use crate::tree::overlay::Overlay;
use crate::tree::{FileTree, WritableTree};

/// Where changes go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cow {
    /// Into a qcow2 overlay of the disk, which is made if it is not there.
    Delta {
        /// The overlay.
        path: PathBuf,
        /// The size the disk is to have, in bytes, if not the one it has. It only grows.
        size: Option<u64>,
    },
    /// Into an overlay that vanishes.
    Scratch {
        /// As above.
        size: Option<u64>,
    },
    /// Into a folder in the form of the kernel's overlayfs, which is made if it is not there.
    Upper {
        /// The folder.
        dir: PathBuf,
        /// A folder of the same filesystem for what is not finished; beside `dir` if `None`.
        work: Option<PathBuf>,
    },
}

/// What the changes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be looked at: nothing is written, not even to a delta that was not closed.
    Read,
    /// To be made.
    Change,
}

/// Opens the delta `cow` above `disk`, which `reference` named.
pub(super) fn delta(
    _opener: &Opener,
    _reference: &Reference,
    _disk: &Disk,
    _cow: &Cow,
) -> Result<Arc<dyn BlockSink>> {
    Err(Error::new(Kind::Unsupported, "a delta"))
}

/// Opens the upper `cow` above `tree`.
pub(super) fn upper(
    tree: Arc<dyn FileTree>,
    cow: &Cow,
    purpose: Purpose,
) -> Result<Arc<dyn WritableTree>> {
    let Cow::Upper { dir, work } = cow else {
        return Err(Error::new(Kind::Usage, "a tree of files has its changes in a folder"));
    };
    let overlay = Overlay::open(tree, dir, work.as_deref(), purpose == Purpose::Change)?;
    Ok(Arc::new(overlay))
}
