//! Which files are not whole where parts of a disk are lost.
//!
//! The filesystems are opened on a disk that says of each byte that it lies where it is: so their own answer to where
//! a file's bytes are tells which files have any in the lost parts. Only what has no such place is read.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use super::names;
use super::system::{Contents, Found};
use crate::block::{BlockSource, Cache, Extent, Home, Origin};
use crate::chain::Chain;
use crate::error::{Error, Kind, Result};
use crate::fs::Filesystem;
use crate::store::{Id, Lost, SnapshotLayer, Store};
use crate::tree::{Attr, FileKind, FileTree, NodeId};

/// Bytes of a file that are read at once.
const READ: usize = 128 << 10;
/// What stands for the disk where it is said where bytes lie.
const DISK: (u64, u64) = (u64::MAX, u64::MAX);

/// Something that cannot be read, or not to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedFile {
    /// Its path, as the `files` view has it, or the `volumes` view if there are several filesystems.
    pub path: Vec<u8>,
    /// What of it.
    pub part: Part,
}

/// What of a file is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Some of its contents.
    Contents,
    /// What is said of it, and with that all of it.
    Attributes,
    /// Names in it, and with them files that nobody can tell of.
    Names,
    /// All of the filesystem.
    Filesystem,
}

impl Part {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contents => "contents",
            Self::Attributes => "attributes",
            Self::Names => "names",
            Self::Filesystem => "filesystem",
        }
    }
}

/// Calls `tell` with the files of a disk of the snapshot `id` of which something is lost.
///
/// # Errors
/// Those of reading the snapshot but for the damage, and of `tell`.
pub fn damaged_files(
    store: &Arc<Store>,
    id: Id,
    lost: &Lost,
    cache: &Arc<Cache>,
    tell: &mut dyn FnMut(DamagedFile) -> Result<()>,
) -> Result<()> {
    let snapshot = store.snapshot(id)?;
    let Some(disk) = snapshot.disk(&lost.disk) else { return Ok(()) };
    let layer = SnapshotLayer::new(Arc::clone(store), &snapshot, disk)?;
    let disk: Arc<dyn BlockSource> =
        Arc::new(Plotted(Chain::new(vec![Arc::new(layer)], Arc::clone(cache))?));
    let lost = lost.ranges.iter().map(|range| range.offset..range.end()).collect();
    let contents = match Contents::look(&disk, cache) {
        Ok(contents) => contents,
        Err(error) if error.kind() == Kind::Corrupt => {
            return tell(DamagedFile { path: b"/".to_vec(), part: Part::Filesystem });
        }
        Err(error) => return Err(error),
    };
    let is_one = contents.places.len() == 1;
    for place in &contents.places {
        let mut path = match (&place.volume, &place.found) {
            (Some(volume), Found::Filesystem(Filesystem { info, .. })) if !is_one => {
                names::volume(volume, info.label.as_deref()).into_bytes()
            }
            (Some(volume), _) if !is_one => names::volume(volume, None).into_bytes(),
            _ => Vec::new(),
        };
        match &place.found {
            Found::Filesystem(Filesystem { tree, .. }) => {
                if !path.is_empty() {
                    path.insert(0, b'/');
                }
                Search { tree: &**tree, lost: &lost, links: HashMap::new(), tell }.walk(path)?;
            }
            Found::Failed(error) if error.kind() == Kind::Corrupt => {
                path.insert(0, b'/');
                tell(DamagedFile { path, part: Part::Filesystem })?;
            }
            Found::Failed(_) | Found::Unknown(_) => {}
        }
    }
    Ok(())
}

/// A disk that says of its bytes that they lie where they are.
#[derive(Debug)]
struct Plotted(Chain);

impl BlockSource for Plotted {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.0.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let len = self.len().saturating_sub(offset).max(1);
        Ok(Origin { len, home: Home::Stored { file: DISK, offset } })
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

/// One filesystem's files, gone through.
struct Search<'a> {
    tree: &'a dyn FileTree,
    /// In order.
    lost: &'a Vec<Range<u64>>,
    /// Files of several names that were looked at.
    links: HashMap<NodeId, bool>,
    tell: &'a mut dyn FnMut(DamagedFile) -> Result<()>,
}

impl Search<'_> {
    fn walk(&mut self, top: Vec<u8>) -> Result<()> {
        let mut seen = HashSet::new();
        let mut folders = vec![(self.tree.root(), top)];
        while let Some((folder, path)) = folders.pop() {
            // One that is in itself is no folder of ours.
            if !seen.insert(folder) {
                continue;
            }
            let mut entries: Vec<(Vec<u8>, NodeId)> = Vec::new();
            let listed = self.tree.read_dir(folder, 0, &mut |entry| {
                entries.push((entry.name.to_vec(), entry.node));
                true
            });
            if is_lost(listed)? {
                let path = if path.is_empty() { b"/".to_vec() } else { path.clone() };
                (self.tell)(DamagedFile { path, part: Part::Names })?;
            }
            let mut below = Vec::new();
            for (name, node) in entries {
                let path = [&path[..], b"/", &name].concat();
                let attr = match self.tree.attr(node) {
                    Ok(attr) => attr,
                    Err(error) => {
                        is_lost(Err(error))?;
                        (self.tell)(DamagedFile { path, part: Part::Attributes })?;
                        continue;
                    }
                };
                if let Some(part) = self.lost_of(&attr)? {
                    (self.tell)(DamagedFile { path: path.clone(), part })?;
                }
                if attr.kind == FileKind::Directory {
                    below.push((node, path));
                }
            }
            // In the order of the names.
            folders.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// What of a file is lost, but for the names in a folder.
    fn lost_of(&mut self, attr: &Attr) -> Result<Option<Part>> {
        if is_lost(self.tree.xattr_names(attr.node).map(drop))? {
            return Ok(Some(Part::Attributes));
        }
        let is_lost = match attr.kind {
            FileKind::Regular if attr.links > 1 => match self.links.get(&attr.node) {
                Some(&known) => known,
                None => {
                    let is_lost = self.has_lost(attr)?;
                    self.links.insert(attr.node, is_lost);
                    is_lost
                }
            },
            FileKind::Regular => self.has_lost(attr)?,
            FileKind::Symlink => is_lost(self.tree.read_link(attr.node).map(drop))?,
            _ => false,
        };
        Ok(is_lost.then_some(Part::Contents))
    }

    fn has_lost(&self, attr: &Attr) -> Result<bool> {
        let mut at = 0;
        while at < attr.size {
            let Origin { len, home } = match self.tree.origin_at(attr.node, at) {
                Ok(origin) => origin,
                Err(error) => return is_lost(Err(error)),
            };
            let is_lost = match home {
                Home::Zeros => false,
                Home::Stored { file: DISK, offset } => {
                    let end = offset.saturating_add(len.min(attr.size - at));
                    let next = self.lost.partition_point(|lost| lost.end <= offset);
                    self.lost.get(next).is_some_and(|lost| lost.start < end)
                }
                _ => self.is_unreadable(attr.node, at, len.min(attr.size - at))?,
            };
            if is_lost {
                return Ok(true);
            }
            at = at.saturating_add(len.max(1));
        }
        Ok(false)
    }

    fn is_unreadable(&self, node: NodeId, from: u64, len: u64) -> Result<bool> {
        let mut buf = vec![0; READ.min(usize::try_from(len).unwrap_or(READ))];
        let mut at = 0;
        while at < len {
            let most = buf.len().min(usize::try_from(len - at).unwrap_or(READ));
            match self.tree.read_at(node, from + at, buf.get_mut(..most).unwrap_or_default()) {
                Ok(0) => break,
                Ok(read) => at += read as u64,
                Err(error) => return is_lost(Err(error)),
            }
        }
        Ok(false)
    }
}

/// Whether something failed because it is damaged.
fn is_lost(result: Result<(), Error>) -> Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == Kind::Corrupt => Ok(true),
        Err(error) => Err(error),
    }
}
