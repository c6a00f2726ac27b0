//! The filesystem as a tree of files.

use std::fs::File;
use std::sync::Arc;

use super::Ext4;
use super::cause::Cause;
use super::dir::Scan;
use super::encrypted::Shown;
use super::inode::{Inode, ROOT, flag};
use super::map::Node;
use crate::block::{Extent, Home, Key, Origin};
use crate::error::{Error, Kind, Result};
use crate::tree::{Attr, DirEntry, FileKind, FileTree, NodeId, StatFs};

/// The longest target a symbolic link may have.
const MAX_LINK: u64 = 4096;
/// The longest target that fits in `i_block`, with the byte that ends it.
const MAX_FAST_LINK: u64 = 60;

impl Ext4 {
    /// The inode and map of a file, from the shared cache if it is there.
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.cache.get_or_load(Key(self.nodes, id.0), || Node::resolve(self, self.inode(id.0)?))
    }

    fn folder(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        if node.inode.is_directory() {
            return Ok(node);
        }
        Err(Error::new(Kind::NotADirectory, format!("inode {} is not a folder", id.0)))
    }

    fn file(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        match node.inode.attr.kind {
            FileKind::Regular => Ok(node),
            FileKind::Directory => {
                Err(Error::new(Kind::IsADirectory, format!("inode {} is a folder", id.0)))
            }
            _ => Err(Error::new(Kind::Usage, format!("inode {} is not a regular file", id.0))),
        }
    }

    /// Fills `buf` with contents of `node` from `offset` on, which lie within its size.
    pub(super) fn read_contents(&self, node: &Node, offset: u64, buf: &mut [u8]) -> Result<()> {
        if let Some(bytes) = node.inline() {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let here = buf.len().min(bytes.len() - from);
            let (written, zeros) = buf.split_at_mut(here);
            written.copy_from_slice(&bytes[from..from + here]);
            zeros.fill(0);
            return Ok(());
        }
        let size = self.sb.block_size;
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let piece = node.piece(self, at / size)?;
            let within = at % size;
            let len = piece.len.saturating_mul(size) - within;
            let (part, tail) = rest.split_at_mut((rest.len() as u64).min(len) as usize);
            match piece.physical {
                Some(block) => self.read_blocks("data block", block * size + within, part)?,
                None => part.fill(0),
            }
            at += part.len() as u64;
            rest = tail;
        }
        Ok(())
    }

    /// The target of a symbolic link, as it is shown.
    fn target(&self, inode: Inode) -> Result<Vec<u8>> {
        let size = inode.attr.size;
        let wrong = Cause::LinkLength { inode: inode.number, size };
        if size == 0 || size > MAX_LINK.min(self.sb.block_size) {
            return Err(wrong.into());
        }
        let encrypted = inode.has(flag::ENCRYPTED);
        let mut bytes = vec![0; size as usize];
        if self.is_fast_link(&inode) {
            bytes.copy_from_slice(&inode.block[..size as usize]);
        } else {
            let node = Node::resolve(self, inode)?;
            self.read_contents(&node, 0, &mut bytes)?;
        }
        if encrypted {
            // Length, then so many bytes that only the key makes readable.
            let stored = bytes
                .split_at_checked(2)
                .and_then(|(len, stored)| {
                    stored.get(..usize::from(u16::from_le_bytes([len[0], len[1]])))
                })
                .filter(|stored| !stored.is_empty())
                .ok_or(wrong)?;
            return Ok(Shown::new((0, 0), stored).as_bytes().to_vec());
        }
        // What is after a zero byte is no part of it.
        if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
            bytes.truncate(end);
        }
        if bytes.is_empty() { Err(wrong.into()) } else { Ok(bytes) }
    }

    /// Whether a link's target is in `i_block`: it is if it fits and the link has no blocks but
    /// perhaps one of attributes.
    fn is_fast_link(&self, inode: &Inode) -> bool {
        let attributes = if inode.attribute_block == 0 { 0 } else { self.sb.cluster_size / 512 };
        inode.attr.size < MAX_FAST_LINK
            && !inode.has(flag::INLINE_DATA | flag::EXTENTS)
            && (inode.attr.blocks <= attributes
                || self.sb.features.has_incompat(super::features::incompat::EA_INODE))
    }
}

impl FileTree for Ext4 {
    fn root(&self) -> NodeId {
        NodeId(u64::from(ROOT))
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let node = self.folder(dir)?;
        Ok(self.find(&node, name)?.map(|inode| NodeId(u64::from(inode))))
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        let inode = self.inode(node.0)?;
        let mut attr = inode.attr;
        if attr.kind == FileKind::Regular && inode.has(flag::INLINE_DATA) {
            // As the kernel does, so that nobody takes the file for one great hole.
            attr.blocks += attr.size.div_ceil(512);
        }
        if attr.kind == FileKind::Symlink && inode.has(flag::ENCRYPTED) {
            attr.size = self.target(inode)?.len() as u64;
        }
        Ok(attr)
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let node = self.folder(dir)?;
        let encrypted = node.inode.has(flag::ENCRYPTED);
        self.scan(&node, after, &mut |entry| {
            let (id, next) = (NodeId(u64::from(entry.inode)), entry.next);
            let taken = if encrypted {
                let shown = self.shown(&node.inode, &entry);
                emit(DirEntry { name: shown.as_bytes(), node: id, next })
            } else {
                emit(DirEntry { name: entry.name, node: id, next })
            };
            if taken { Scan::GoOn } else { Scan::Stop }
        })
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        let inode = self.inode(node.0)?;
        if inode.attr.kind != FileKind::Symlink {
            let message = format!("inode {} is not a symbolic link", node.0);
            return Err(Error::new(Kind::Usage, message));
        }
        self.target(inode)
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let node = self.file(node)?;
        let inode = &node.inode;
        if inode.has(flag::ENCRYPTED) {
            return Err(Cause::Encrypted(inode.number).into());
        }
        if inode.has(flag::COMPRESSED) {
            return Err(Cause::Compressed(inode.number).into());
        }
        let len = inode.attr.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        self.read_contents(&node, offset, &mut buf[..len])?;
        Ok(len)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        let node = self.file(node)?;
        let rest = node.inode.attr.size.saturating_sub(offset).max(1);
        if let Some(bytes) = node.inline() {
            let here = (bytes.len() as u64).saturating_sub(offset);
            return Ok(match here {
                0 => Extent { len: rest, hole: true },
                here => Extent { len: here, hole: false },
            });
        }
        let size = self.sb.block_size;
        let piece = node.piece(self, offset / size)?;
        let len = piece.len.saturating_mul(size) - offset % size;
        Ok(Extent { len: len.min(rest), hole: piece.physical.is_none() })
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        let node = self.file(node)?;
        let rest = node.inode.attr.size.saturating_sub(offset).max(1);
        if node.inline().is_some() {
            return Ok(Origin::unknown(rest));
        }
        let size = self.sb.block_size;
        let within = offset % size;
        let piece = node.piece(self, offset / size)?;
        let len = (piece.len.saturating_mul(size) - within).min(rest);
        let Some(block) = piece.physical else {
            return Ok(Origin { len, home: Home::Zeros });
        };
        let place = block.checked_mul(size).and_then(|start| start.checked_add(within));
        let place = place.filter(|&place| place < self.source.len());
        let place = place.ok_or(Cause::BeyondImage { what: "data block", block })?;
        let origin = self.source.origin_at(place)?;
        Ok(Origin { len: origin.len.min(len), ..origin })
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.attribute_names(&self.inode(node.0)?)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.attribute(&self.inode(node.0)?, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        let sb = &self.sb;
        Ok(StatFs {
            block_size: sb.block_size as u32,
            blocks: sb.blocks - sb.overhead_blocks,
            free: sb.free_blocks,
            available: sb.free_blocks.saturating_sub(sb.reserved_blocks),
            files: u64::from(sb.inodes),
            files_free: u64::from(sb.free_inodes),
            name_max: 255,
        })
    }

    fn whole_file(&self, _: NodeId) -> Option<&File> {
        None
    }
}
