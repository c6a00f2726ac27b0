//! A small fixed tree in memory: the folders and disk files a view shows.

mod write;

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Attr, DirEntry, FileKind, FileTree, NodeId, StatFs, Time};
use crate::block::{BlockSink, BlockSource, Extent, Origin};
use crate::error::{Error, Kind, Result};

use write::Times;

/// Bytes of the longest name.
const NAME_MAX: usize = 255;

/// A tree of folders, symbolic links and regular files, each file being a source or sink. Built
/// once; from then on nothing but the contents of sinks changes. Nodes count from 1, the root, in
/// the order they were added.
///
/// As a [`WritableTree`](super::WritableTree) its sinks are taken for parts of one disk, which may
/// overlap.
#[derive(Debug)]
pub struct Folder {
    nodes: Vec<Node>,
    uid: u32,
    gid: u32,
    /// When a sink was last written to.
    written: Mutex<Option<Time>>,
}

#[derive(Debug)]
struct Node {
    content: Content,
    modified: Time,
}

#[derive(Debug)]
enum Content {
    Folder(Entries),
    File { source: Arc<dyn BlockSource>, blocks: u64 },
    Sink { sink: Arc<dyn BlockSink>, blocks: u64, times: Mutex<Times> },
    Symlink(Vec<u8>),
}

#[derive(Debug, Default)]
struct Entries {
    order: Vec<(Arc<[u8]>, NodeId)>,
    by_name: HashMap<Arc<[u8]>, NodeId>,
    folders: u32,
}

impl Folder {
    /// An empty tree whose files belong to `uid` and `gid`; its root was changed at `modified`.
    pub fn new(uid: u32, gid: u32, modified: Time) -> Self {
        let root = Node { content: Content::Folder(Entries::default()), modified };
        Self { nodes: vec![root], uid, gid, written: Mutex::default() }
    }

    /// Adds a folder, which anyone may enter and nobody may write.
    ///
    /// # Errors
    /// [`Kind::Exists`], [`Kind::NotADirectory`], [`Kind::NotFound`] for a parent that is not
    /// there, [`Kind::Usage`] for what is no name.
    pub fn add_folder(&mut self, parent: NodeId, name: &[u8], modified: Time) -> Result<NodeId> {
        self.add(parent, name, Node { content: Content::Folder(Entries::default()), modified })
    }

    /// Adds a file with the bytes of `source`, of which the host stores about `allocated`: what
    /// copies by size and blocks only looks for holes in a file that takes less room than its
    /// size.
    ///
    /// # Errors
    /// As [`Folder::add_folder`].
    pub fn add_file(
        &mut self,
        parent: NodeId,
        name: &[u8],
        source: Arc<dyn BlockSource>,
        allocated: u64,
        modified: Time,
    ) -> Result<NodeId> {
        let blocks = allocated.min(source.len()).div_ceil(512);
        self.add(parent, name, Node { content: Content::File { source, blocks }, modified })
    }

    /// Adds a file with the bytes of `sink`, which its owner may write where the tree is served so;
    /// otherwise as [`Folder::add_file`].
    ///
    /// # Errors
    /// As [`Folder::add_folder`].
    pub fn add_sink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        sink: Arc<dyn BlockSink>,
        allocated: u64,
        modified: Time,
    ) -> Result<NodeId> {
        let blocks = allocated.min(sink.len()).div_ceil(512);
        let content = Content::Sink { sink, blocks, times: Mutex::default() };
        self.add(parent, name, Node { content, modified })
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Folder::add_folder`].
    pub fn add_symlink(
        &mut self,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
        modified: Time,
    ) -> Result<NodeId> {
        self.add(parent, name, Node { content: Content::Symlink(target.to_vec()), modified })
    }

    fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId> {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let valid = (1..=NAME_MAX).contains(&name.len())
            && !matches!(name, b"." | b"..")
            && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
        if !valid {
            return Err(Error::new(Kind::Usage, format!("\"{}\" is no file name", shown())));
        }
        let id = NodeId(self.nodes.len() as u64 + 1);
        let is_folder = matches!(node.content, Content::Folder(_));
        let entries = match self.node_mut(parent) {
            Some(Node { content: Content::Folder(entries), .. }) => entries,
            Some(_) => return Err(Error::new(Kind::NotADirectory, "not a folder")),
            None => return Err(no_node(parent)),
        };
        if entries.by_name.contains_key(name) {
            return Err(Error::new(Kind::Exists, format!("\"{}\" is there already", shown())));
        }
        let name: Arc<[u8]> = name.into();
        entries.by_name.insert(Arc::clone(&name), id);
        entries.order.push((name, id));
        entries.folders += u32::from(is_folder);
        self.nodes.push(node);
        Ok(id)
    }

    fn node(&self, id: NodeId) -> Result<&Node> {
        let index = id.0.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.nodes.get(index)).ok_or_else(|| no_node(id))
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(usize::try_from(id.0.checked_sub(1)?).ok()?)
    }

    fn entries(&self, id: NodeId) -> Result<&Entries> {
        match &self.node(id)?.content {
            Content::Folder(entries) => Ok(entries),
            Content::File { .. } | Content::Sink { .. } | Content::Symlink(_) => {
                Err(Error::new(Kind::NotADirectory, "not a folder"))
            }
        }
    }

    fn source(&self, id: NodeId) -> Result<&dyn BlockSource> {
        match &self.node(id)?.content {
            Content::File { source, .. } => Ok(source.as_ref()),
            Content::Sink { sink, .. } => Ok(sink.as_ref()),
            Content::Folder(_) => Err(Error::new(Kind::IsADirectory, "is a folder")),
            Content::Symlink(_) => Err(Error::new(Kind::Usage, "is a symbolic link")),
        }
    }
}

fn no_node(id: NodeId) -> Error {
    Error::new(Kind::NotFound, format!("there is no node {}", id.0))
}

impl FileTree for Folder {
    fn root(&self) -> NodeId {
        NodeId(1)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        Ok(self.entries(dir)?.by_name.get(name).copied())
    }

    fn attr(&self, id: NodeId) -> Result<Attr> {
        let node = self.node(id)?;
        let (kind, mode, links, size, blocks) = match &node.content {
            Content::Folder(entries) => {
                (FileKind::Directory, 0o555, entries.folders.saturating_add(2), 0, 0)
            }
            Content::File { source, blocks } => {
                (FileKind::Regular, 0o444, 1, source.len(), *blocks)
            }
            Content::Sink { sink, blocks, .. } => {
                (FileKind::Regular, 0o644, 1, sink.len(), *blocks)
            }
            Content::Symlink(target) => (FileKind::Symlink, 0o777, 1, target.len() as u64, 0),
        };
        let (accessed, modified, changed) = match &node.content {
            Content::Sink { times, .. } => times.lock().shown(node.modified, *self.written.lock()),
            _ => (node.modified, node.modified, node.modified),
        };
        Ok(Attr {
            node: id,
            kind,
            mode,
            uid: self.uid,
            gid: self.gid,
            links,
            size,
            blocks,
            accessed,
            modified,
            changed,
            created: None,
        })
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let entries = self.entries(dir)?;
        let first = usize::try_from(after).unwrap_or(usize::MAX);
        for (position, (name, node)) in (1..).zip(&entries.order).skip(first) {
            if !emit(DirEntry { name, node: *node, next: position }) {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        match &self.node(id)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            Content::Folder(_) | Content::File { .. } | Content::Sink { .. } => {
                Err(Error::new(Kind::Usage, "is no symbolic link"))
            }
        }
    }

    fn read_at(&self, id: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let source = self.source(id)?;
        let left = source.len().saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        if len > 0 {
            source.read_at(offset, &mut buf[..len])?;
        }
        Ok(len)
    }

    fn extent_at(&self, id: NodeId, offset: u64) -> Result<Extent> {
        let source = self.source(id)?;
        if offset >= source.len() {
            let message = format!("{offset:#x} is past the end at {:#x}", source.len());
            return Err(Error::new(Kind::OutOfBounds, message));
        }
        source.extent_at(offset)
    }

    fn origin_at(&self, id: NodeId, offset: u64) -> Result<Origin> {
        let source = self.source(id)?;
        if offset >= source.len() {
            let message = format!("{offset:#x} is past the end at {:#x}", source.len());
            return Err(Error::new(Kind::OutOfBounds, message));
        }
        source.origin_at(offset)
    }

    fn xattr_names(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        self.node(id).map(|_| Vec::new())
    }

    fn xattr(&self, id: NodeId, _name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.node(id).map(|_| None)
    }

    fn statfs(&self) -> Result<StatFs> {
        let blocks = self.nodes.iter().map(|node| match &node.content {
            Content::File { source, .. } => source.len().div_ceil(4096),
            Content::Sink { sink, .. } => sink.len().div_ceil(4096),
            Content::Folder(_) | Content::Symlink(_) => 0,
        });
        Ok(StatFs {
            block_size: 4096,
            blocks: blocks.fold(0, u64::saturating_add),
            free: 0,
            available: 0,
            files: self.nodes.len() as u64,
            files_free: 0,
            name_max: NAME_MAX as u32,
        })
    }

    fn whole_file(&self, id: NodeId) -> Option<&File> {
        match &self.node(id).ok()?.content {
            Content::File { source, .. } => source.whole_file(),
            // What is written goes through the sink, whatever file is behind it.
            Content::Sink { .. } | Content::Folder(_) | Content::Symlink(_) => None,
        }
    }
}
