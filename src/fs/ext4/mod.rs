//! ext2, ext3 and ext4, read-only. The format is the one the Linux kernel documents in
//! `Documentation/filesystems/ext4`; each of its nouns has a file here.
//!
//! Metadata is read through the shared cache in pages, file contents straight from the source.
//! What is damaged fails alone: a checksum that does not match is an error of the inode, block or
//! attribute it belongs to, and of nothing else.

mod acl;
mod block_map;
mod cause;
mod checksum;
mod dir;
mod encrypted;
mod extent;
mod features;
mod group_desc;
mod hash;
mod htree;
mod inode;
mod journal;
mod lookup;
mod map;
mod replayed;
mod sha256;
mod superblock;
mod tree;
mod xattr;

use std::hash::RandomState;
use std::sync::Arc;

use self::cause::Cause;
use self::features::{incompat, ro_compat};
use self::replayed::Replayed;
use self::superblock::Superblock;
use super::{Filesystem, Info};
use crate::block::{BlockSource, Cache, Owner, Pages};
use crate::error::{Error, Kind, Result, ResultExt};

/// An opened filesystem.
struct Ext4 {
    sb: Superblock,
    /// The volume, with its journal replayed.
    source: Arc<dyn BlockSource>,
    /// The same, through the shared cache.
    pages: Pages,
    cache: Arc<Cache>,
    /// Key space of inodes with their maps.
    nodes: Owner,
    /// Key space of folder indexes.
    names: Owner,
    /// Its key is ours alone, so that no image can be made to collide in our indexes.
    hasher: RandomState,
}

impl std::fmt::Debug for Ext4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ext4").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Whether `source` has the magic number of an ext filesystem.
pub(super) fn probe(source: &dyn BlockSource) -> Result<bool> {
    let mut magic = [0; 2];
    if source.len() < superblock::OFFSET + superblock::LEN as u64 {
        return Ok(false);
    }
    source.read_at(superblock::OFFSET + 56, &mut magic)?;
    Ok(u16::from_le_bytes(magic) == superblock::MAGIC)
}

/// Opens the filesystem on `source`, whose journal is replayed in memory if it needs to be.
pub(super) fn open(source: Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Result<Filesystem> {
    let (ext4, warnings) = Ext4::open(source, cache).within(|| "ext4")?;
    let info = ext4.info(warnings);
    Ok(Filesystem { tree: Arc::new(ext4), info })
}

impl Ext4 {
    fn open(source: Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Result<(Self, Vec<String>)> {
        let mut warnings = Vec::new();
        let mut ext4 = Self::new(source, cache)?;
        if ext4.sb.features.has_incompat(incompat::RECOVER) {
            ext4 = ext4.replay(&mut warnings)?;
        }
        let root = ext4.any_inode(inode::ROOT).within(|| "root folder")?;
        if !root.is_directory() {
            let cause = Cause::Mode { inode: inode::ROOT, mode: root.attr.mode };
            return Err(Error::from(cause).within("root folder"));
        }
        ext4.note(&mut warnings);
        Ok((ext4, warnings))
    }

    /// Reads the superblock and nothing else.
    fn new(source: Arc<dyn BlockSource>, cache: &Arc<Cache>) -> Result<Self> {
        let pages = Pages::new(Arc::clone(&source), Arc::clone(cache));
        let sb = pages.with(superblock::OFFSET, superblock::LEN, Superblock::parse)??;
        Ok(Self {
            sb,
            source,
            pages,
            cache: Arc::clone(cache),
            nodes: cache.owner(),
            names: cache.owner(),
            hasher: RandomState::new(),
        })
    }

    /// The same filesystem as its journal says it is. A journal that cannot be used is a warning:
    /// somebody who has nothing but this image is helped by what can be read of it.
    fn replay(self, warnings: &mut Vec<String>) -> Result<Self> {
        if self.sb.journal_inode == 0 {
            let outside = if self.sb.journal_device == 0 { "missing" } else { "on another device" };
            warnings.push(format!(
                "not unmounted cleanly, and its journal is {outside}: not replayed, so that the \
                 latest changes may be missing or torn"
            ));
            return Ok(self);
        }
        let recovered = match journal::recover(&self) {
            Ok(recovered) => recovered,
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                warnings.push(format!(
                    "not unmounted cleanly, and its journal cannot be replayed, so that the \
                     latest changes may be missing or torn: {error}"
                ));
                return Ok(self);
            }
            Err(error) => return Err(error.within("journal")),
        };
        warnings.extend(recovered.warnings);
        if recovered.copies.is_empty() {
            return Ok(self);
        }
        log::debug!(
            "replayed {} transactions, {} blocks",
            recovered.transactions,
            recovered.copies.len()
        );
        let replayed = Replayed::new(self.source, self.sb.block_size, recovered.copies);
        Self::new(Arc::new(replayed), &self.cache).within(|| "after replaying the journal")
    }

    /// Adds what a reader should know to `warnings`.
    fn note(&self, warnings: &mut Vec<String>) {
        let sb = &self.sb;
        let end = sb.blocks * sb.block_size;
        if end > self.source.len() {
            warnings.push(format!(
                "cut short: the filesystem has {end} bytes, the image {}; what is past its end \
                 cannot be read",
                self.source.len()
            ));
        }
        if sb.errors {
            warnings.push("its driver noticed errors in it: check a copy with e2fsck".to_owned());
        }
        if !sb.valid && !sb.has_journal() {
            warnings.push("not unmounted cleanly, and it has no journal".to_owned());
        }
        if sb.last_orphan != 0 || sb.features.has_ro_compat(ro_compat::ORPHAN_PRESENT) {
            warnings.push(
                "some files were being deleted or cut when it was last in use; those being cut \
                 may show more than they should"
                    .to_owned(),
            );
        }
    }

    fn info(&self, warnings: Vec<String>) -> Info {
        let sb = &self.sb;
        let id: String = sb.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [&id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..]];
        Info {
            kind: sb.kind().to_owned(),
            label: (!sb.label.is_empty()).then(|| String::from_utf8_lossy(&sb.label).into_owned()),
            uuid: (sb.uuid != [0; 16]).then(|| parts.join("-")),
            size: sb.blocks * sb.block_size,
            used: (sb.blocks - sb.free_blocks) * sb.block_size,
            block_size: sb.block_size as u32,
            files: u64::from(sb.inodes),
            files_free: u64::from(sb.free_inodes),
            features: sb.features.names(),
            clean: sb.valid && !sb.errors && !sb.features.has_incompat(incompat::RECOVER),
            warnings,
        }
    }

    /// Calls `read` with `len` bytes of metadata at `offset`, from the shared cache.
    fn metadata<R>(
        &self,
        what: &'static str,
        offset: u64,
        len: usize,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let block = offset / self.sb.block_size;
        self.pages.with(offset, len, read).map_err(|error| beyond(error, what, block))
    }

    /// Calls `read` with a block of metadata.
    fn block<R>(&self, what: &'static str, block: u64, read: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let size = self.sb.block_size;
        self.metadata(what, block * size, size as usize, read)
    }

    /// Reads past the cache, straight into `buf`.
    fn read_blocks(&self, what: &'static str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let block = offset / self.sb.block_size;
        self.source.read_at(offset, buf).map_err(|error| beyond(error, what, block))
    }
}

/// An image that was cut short is a damaged image; nobody asked for too much.
fn beyond(error: Error, what: &'static str, block: u64) -> Error {
    if error.kind() == Kind::OutOfBounds {
        return Cause::BeyondImage { what, block }.into();
    }
    error
}

#[cfg(test)]
mod tests;
