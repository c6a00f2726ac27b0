//! The files of layers once they are merged, as they are asked for.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use super::names::Text;
use crate::block::{BlockSource, Extent, Home, Origin};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::tar::Run;
use crate::tree::{Attr, Device, DirEntry, FileKind, FileTree, NodeId, StatFs, Time};

/// Extended attributes of a file: full names and values, in the order of the names.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One file, whatever names it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) seconds: i64,
    pub(super) nanos: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Which set of attributes it has; 0 is the empty one.
    pub(super) xattrs: u32,
    /// Names it has; of a folder, folders in it.
    pub(super) links: u32,
    pub(super) mode: u16,
    /// The layer that its contents lie in.
    pub(super) layer: u16,
    pub(super) body: Body,
}

const _: () = assert!(size_of::<Node>() <= 56);

/// What a file is, and where the rest of it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    /// In one piece in the tar.
    File {
        size: u64,
        place: u64,
    },
    /// In these pieces.
    Sparse {
        size: u64,
        first: u32,
        count: u32,
    },
    /// While layers are applied, the first of its slots; then where its entries are.
    Folder {
        first: u32,
        count: u32,
    },
    Symlink {
        text: u32,
        len: u32,
    },
    Fifo,
    CharDevice(Device),
    BlockDevice(Device),
    /// A hard link whose target is still to come.
    Waiting,
}

/// A name in a folder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named {
    pub(super) text: u32,
    pub(super) node: u32,
}

/// Files that never change. Node 1 is the root, and each the next one after where it lies here.
pub(super) struct Files {
    pub(super) nodes: Vec<Node>,
    pub(super) text: Text,
    /// The names of each folder together, in their order.
    pub(super) named: Vec<Named>,
    pub(super) runs: Vec<Run>,
    pub(super) xattrs: Vec<Xattrs>,
    /// The uncompressed tar of each layer.
    pub(super) data: Vec<Arc<dyn BlockSource>>,
    /// Bytes of regular files.
    pub(super) bytes: u64,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").field("names", &self.named.len()).finish_non_exhaustive()
    }
}

impl Files {
    fn node(&self, id: NodeId) -> Result<&Node> {
        let index = id.0.checked_sub(1).and_then(|index| usize::try_from(index).ok());
        // What layers hid is no file any more.
        let node = index.and_then(|index| self.nodes.get(index)).filter(|node| node.is_there());
        node.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no node {}", id.0)))
    }

    fn folder(&self, id: NodeId) -> Result<&[Named]> {
        let Body::Folder { first, count } = self.node(id)?.body else {
            return Err(Error::new(Kind::NotADirectory, "not a folder"));
        };
        let first = first as usize;
        Ok(self.named.get(first..first + count as usize).unwrap_or_default())
    }

    fn regular(&self, id: NodeId) -> Result<Contents<'_>> {
        let node = self.node(id)?;
        let source = || {
            let source = self.data.get(usize::from(node.layer));
            source.ok_or_else(|| Error::new(Kind::NotFound, "no layer has the contents"))
        };
        match node.body {
            Body::File { size, place } => {
                Ok(Contents { size, pieces: Pieces::One(place), source: source()?.as_ref() })
            }
            Body::Sparse { size, first, count } => {
                let first = first as usize;
                let runs = self.runs.get(first..first + count as usize).unwrap_or_default();
                Ok(Contents { size, pieces: Pieces::Many(runs), source: source()?.as_ref() })
            }
            Body::Folder { .. } => Err(Error::new(Kind::IsADirectory, "is a folder")),
            _ => Err(Error::new(Kind::Usage, "is no regular file")),
        }
    }

    fn xattrs(&self, id: NodeId) -> Result<&Xattrs> {
        static NONE: Xattrs = Vec::new();
        Ok(self.xattrs.get(self.node(id)?.xattrs as usize).unwrap_or(&NONE))
    }
}

impl Node {
    /// Whether it is a file: placeholders and what was hidden are none.
    pub(super) fn is_there(&self) -> bool {
        match self.body {
            Body::Folder { .. } => self.links != GONE,
            Body::Waiting => false,
            _ => self.links > 0,
        }
    }
}

/// What a hidden folder has for the number of its links.
pub(super) const GONE: u32 = u32::MAX;

/// Where the contents of a file are.
struct Contents<'a> {
    size: u64,
    pieces: Pieces<'a>,
    source: &'a dyn BlockSource,
}

enum Pieces<'a> {
    /// All of them from this place of the tar on.
    One(u64),
    Many(&'a [Run]),
}

/// Bytes of a file that lie together: in the tar from a place on, or in a hole.
struct Piece {
    len: u64,
    place: Option<u64>,
}

impl Contents<'_> {
    /// What is at `offset`, up to the end of a piece.
    fn at(&self, offset: u64) -> Piece {
        let runs = match self.pieces {
            Pieces::One(place) => {
                return Piece { len: self.size - offset, place: Some(place + offset) };
            }
            Pieces::Many(runs) => runs,
        };
        // The first run that ends after it.
        let next = runs.partition_point(|run| run.at + run.len <= offset);
        match runs.get(next) {
            Some(run) if run.at <= offset => {
                let within = offset - run.at;
                Piece { len: run.len - within, place: Some(run.place + within) }
            }
            Some(run) => Piece { len: run.at - offset, place: None },
            None => Piece { len: self.size - offset, place: None },
        }
    }

    fn check(&self, offset: u64) -> Result<()> {
        if offset >= self.size {
            let message = format!("{offset:#x} is past the end at {:#x}", self.size);
            return Err(Error::new(Kind::OutOfBounds, message));
        }
        Ok(())
    }
}

impl FileTree for Files {
    fn root(&self) -> NodeId {
        NodeId(1)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let entries = self.folder(dir)?;
        let found = entries.binary_search_by(|entry| self.text.get(entry.text).cmp(name)).ok();
        Ok(found.and_then(|index| entries.get(index)).map(|entry| id(entry.node)))
    }

    fn attr(&self, id: NodeId) -> Result<Attr> {
        let node = self.node(id)?;
        let (kind, size, stored) = match node.body {
            Body::File { size, .. } => (FileKind::Regular, size, size),
            Body::Sparse { size, first, count } => {
                let runs = self.runs.iter().skip(first as usize).take(count as usize);
                (FileKind::Regular, size, runs.map(|run| run.len).sum())
            }
            Body::Folder { .. } | Body::Waiting => (FileKind::Directory, 0, 0),
            Body::Symlink { len, .. } => (FileKind::Symlink, len.into(), 0),
            Body::Fifo => (FileKind::Fifo, 0, 0),
            Body::CharDevice(device) => (FileKind::CharDevice(device), 0, 0),
            Body::BlockDevice(device) => (FileKind::BlockDevice(device), 0, 0),
        };
        let links = match kind {
            FileKind::Directory => node.links.saturating_add(2),
            _ => node.links,
        };
        let modified = Time { seconds: node.seconds, nanos: node.nanos };
        Ok(Attr {
            node: id,
            kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            links,
            size,
            blocks: stored.div_ceil(512),
            accessed: modified,
            modified,
            changed: modified,
            created: None,
        })
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let entries = self.folder(dir)?;
        let first = usize::try_from(after).unwrap_or(usize::MAX);
        for (position, entry) in (1..).zip(entries).skip(first) {
            let name = self.text.get(entry.text);
            if !emit(DirEntry { name, node: id(entry.node), next: position }) {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, id: NodeId) -> Result<Vec<u8>> {
        match self.node(id)?.body {
            Body::Symlink { text, len } => Ok(self.text.bytes(text, len).to_vec()),
            _ => Err(Error::new(Kind::Usage, "is no symbolic link")),
        }
    }

    fn read_at(&self, id: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.regular(id)?;
        let left = file.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let mut at = offset;
        let mut rest = buf.get_mut(..len).unwrap_or_default();
        while !rest.is_empty() {
            let piece = file.at(at);
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            match piece.place {
                Some(place) => file
                    .source
                    .read_at(place, now)
                    .within(|| format!("contents at {place:#x} of the tar"))?,
                None => now.fill(0),
            }
            at += len as u64;
            rest = later;
        }
        Ok(len)
    }

    fn extent_at(&self, id: NodeId, offset: u64) -> Result<Extent> {
        let file = self.regular(id)?;
        file.check(offset)?;
        let piece = file.at(offset);
        Ok(Extent { len: piece.len, hole: piece.place.is_none() })
    }

    fn origin_at(&self, id: NodeId, offset: u64) -> Result<Origin> {
        let file = self.regular(id)?;
        file.check(offset)?;
        let piece = file.at(offset);
        let Some(place) = piece.place else {
            return Ok(Origin { len: piece.len, home: Home::Zeros });
        };
        let origin = file.source.origin_at(place)?;
        Ok(Origin { len: origin.len.min(piece.len), ..origin })
    }

    fn xattr_names(&self, id: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.xattrs(id)?.iter().map(|(name, _)| name.clone()).collect())
    }

    fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let xattrs = self.xattrs(id)?;
        let found = xattrs.binary_search_by(|(other, _)| other.as_slice().cmp(name)).ok();
        Ok(found.and_then(|index| xattrs.get(index)).map(|(_, value)| value.clone()))
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 4096,
            blocks: self.bytes.div_ceil(4096),
            free: 0,
            available: 0,
            files: self.named.len() as u64 + 1,
            files_free: 0,
            name_max: 255,
        })
    }

    fn whole_file(&self, _: NodeId) -> Option<&File> {
        // Contents lie amid a tar.
        None
    }
}

fn id(node: u32) -> NodeId {
    NodeId(u64::from(node) + 1)
}
