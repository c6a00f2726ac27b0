//! Layers applied one on the other, as one tree of files that never changes.
//!
//! Only the indexes are read; contents stay in the tars until somebody reads a file. In memory a
//! merged tree has about 100 bytes for each entry of all layers.
//!
//! The rules are those of the OCI image specification (`layer.md`); where it leaves a choice,
//! `tests/rules.rs` beside this file says for each which one is taken and who takes the same.

mod apply;
mod cause;
mod files;
mod finish;
mod links;
mod names;
mod way;
mod whiteouts;

use std::fs::File;
use std::sync::Arc;

use serde::Serialize;

use crate::block::{BlockSource, Extent, Origin};
use crate::error::{Result, ResultExt};
use crate::oci::layer::Layer;
use crate::tree::{Attr, DirEntry, FileTree, NodeId, StatFs};
use apply::Applying;
use files::Files;

/// A layer: what is in its tar, and the tar.
#[derive(Debug, Clone)]
pub struct LayerPart {
    /// Its index.
    pub index: Arc<Layer>,
    /// The tar, uncompressed.
    pub data: Arc<dyn BlockSource>,
}

/// What one layer brings and takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LayerNumbers {
    /// Entries of its tar, whiteouts counted.
    pub entries: u64,
    /// Entries that are whiteouts, or lie below one.
    pub whiteouts: u64,
    /// Bytes of contents in its tar.
    pub bytes: u64,
    /// Names of the layers below that it hides or replaces: all in a hidden folder, but no folder that
    /// is there before and after.
    pub hidden_entries: u64,
    /// Bytes of contents that it took the last name of.
    pub hidden_bytes: u64,
}

/// What layers are read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// All that an image has.
    Merged,
    /// Perhaps one of several, with its whiteouts understood.
    Tarball,
    /// One of several, with whiteouts as files.
    AsItIs,
}

/// The files of one layer, or of several merged.
///
/// Nodes are numbered in the order in which layers bring them: opened again, the same layers give
/// the same numbers.
#[derive(Debug)]
pub struct Merged {
    files: Files,
    layers: Vec<LayerNumbers>,
    wasted: u64,
}

impl Merged {
    /// Merges layers, the bottom one first. Without any there is an empty root.
    ///
    /// # Errors
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt), naming layer and path, for what no one could
    /// unpack: a hard link to nothing or to a folder, a file where a folder is needed on the way, a
    /// loop of symbolic links, a whiteout without a name; and what reading the indexes returns.
    pub fn new(parts: Vec<LayerPart>) -> Result<Self> {
        Self::apply(&parts, Reading::Merged)
    }

    /// A tarball, of which nobody says that it is all there is: the layer of an application, say, without
    /// those below.
    ///
    /// Hard links whose targets are not in it are left out, as by tar, and told in the log.
    ///
    /// # Errors
    /// As [`Merged::new`].
    pub fn of_tarball(part: LayerPart) -> Result<Self> {
        Self::apply(&[part], Reading::Tarball)
    }

    /// One layer as it is: whiteouts are files as any other.
    ///
    /// A hard link whose target lies in a layer below is an empty file with the attributes that the
    /// tar gives the link, and is told in the log.
    ///
    /// # Errors
    /// As [`Merged::new`].
    pub fn of_layer(part: LayerPart) -> Result<Self> {
        Self::apply(&[part], Reading::AsItIs)
    }

    fn apply(parts: &[LayerPart], reading: Reading) -> Result<Self> {
        let mut applying = Applying::new(parts, reading)?;
        for part in parts {
            let name = || match part.index.facts().blob_digest.as_str() {
                "" => "layer".to_owned(),
                digest => format!("layer {digest}"),
            };
            applying.apply(part).within(name)?;
        }
        let layers = std::mem::take(&mut applying.numbers);
        let wasted = applying.wasted;
        Ok(Self { files: applying.finish(), layers, wasted })
    }

    /// What each layer brings and takes, the bottom one first.
    pub fn layers(&self) -> &[LayerNumbers] {
        &self.layers
    }

    /// Bytes of contents in the tars that no file has.
    pub fn wasted(&self) -> u64 {
        self.wasted
    }

    /// Names of files, the root counted.
    pub fn entry_count(&self) -> u64 {
        self.files.named.len() as u64 + 1
    }
}

impl FileTree for Merged {
    fn root(&self) -> NodeId {
        self.files.root()
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        self.files.lookup(dir, name)
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        self.files.attr(node)
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        self.files.read_dir(dir, after, emit)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.files.read_link(node)
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.files.read_at(node, offset, buf)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        self.files.extent_at(node, offset)
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        self.files.origin_at(node, offset)
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.files.xattr_names(node)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.files.xattr(node, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        self.files.statfs()
    }

    fn whole_file(&self, node: NodeId) -> Option<&File> {
        self.files.whole_file(node)
    }
}

#[cfg(test)]
mod tests;
